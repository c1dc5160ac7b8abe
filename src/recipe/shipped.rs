//! The recipes that are compiled into nestlab, and loading by name or path.

use camino::Utf8Path;

use super::diagnostic::{SourceText, nearest};
use super::model::{Recipe, RecipeOrigin};
use crate::error::{Error, Kind, Result};

/// A recipe that is compiled into nestlab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shipped {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

impl Shipped {
    /// Returns the recipe.
    ///
    /// # Errors
    /// None for what ships; a test loads each.
    pub fn recipe(&self) -> Result<Recipe> {
        let file = format!("recipes/{}.toml", self.name);
        Recipe::of(SourceText::new(&file, self.text), RecipeOrigin::Shipped)
    }
}

macro_rules! shipped {
    ($($name:literal,)+) => {
        &[$(Shipped { name: $name, text: include_str!(concat!("../../recipes/", $name, ".toml")) },)+]
    };
}

/// Returns the recipes that ship, the first one to try at the top.
pub fn shipped() -> &'static [Shipped] {
    shipped![
        "quickstart",
        "kicksecure-in-virtualbox",
        "kicksecure-in-kvm",
        "debian-in-kvm",
        "three-levels",
        "gateway-and-workstation",
        "whonix-in-virtualbox",
        "existing-vm",
    ]
}

/// Returns the shipped recipe called `name`.
///
/// # Errors
/// [`Kind::Usage`] with the nearest name.
pub fn find(name: &str) -> Result<&'static Shipped> {
    shipped().iter().find(|recipe| recipe.name == name).ok_or_else(|| {
        let names = shipped().iter().map(|recipe| recipe.name);
        let error = Error::new(
            Kind::Usage,
            format!("nestlab ships no recipe called `{}`", name.escape_debug()),
        );
        let error = match nearest(name, names) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint("`nestlab recipe list` shows those that ship"),
        };
        error.hint("a file is named by a path with a `/` in it, or one that ends in `.toml`")
    })
}

impl Recipe {
    /// Returns the recipe that a user names: a path, if it has a `/` or ends in `.toml`, else the name of
    /// one that ships.
    ///
    /// # Errors
    /// [`Kind::Usage`] for an unknown name, [`Kind::Io`] for a file that cannot be read,
    /// [`Kind::Recipe`] with every problem in it.
    pub fn load(name_or_path: &str) -> Result<Self> {
        if !name_or_path.contains('/') && !name_or_path.ends_with(".toml") {
            return find(name_or_path)?.recipe();
        }
        let path = Utf8Path::new(name_or_path);
        let text = fs_err::read_to_string(path).map_err(|error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let error = Error::new(Kind::Io, error.to_string());
            if missing { error.hint("`nestlab init` writes a recipe to start from") } else { error }
        })?;
        Recipe::parse(&text, RecipeOrigin::File(path.to_owned()))
    }
}
