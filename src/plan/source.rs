//! Which recipe a lab is built by: another one of the same name does not take the lab over unasked.

use std::fmt;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::blueprint::Blueprint;
use crate::error::{Error, Kind, Result};
use crate::lab::Lab;
use crate::recipe::{Recipe, RecipeOrigin};

/// Where a recipe comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecipeSource {
    /// It ships, under this name.
    Shipped(String),
    /// The file at this path, without links in it.
    File(Utf8PathBuf),
}

impl RecipeSource {
    /// Returns where `recipe` comes from; `None` for text in memory.
    pub(super) fn of(recipe: &Recipe) -> Option<Self> {
        match recipe.origin() {
            RecipeOrigin::Shipped => Some(RecipeSource::Shipped(recipe.name.to_string())),
            RecipeOrigin::File(path) => {
                let path = path.canonicalize_utf8().unwrap_or_else(|_| path.clone());
                Some(RecipeSource::File(path))
            }
            RecipeOrigin::Text { .. } => None,
        }
    }

    /// Refuses `recipe` for `lab` if the lab was built by another one, unless the user `named` the lab.
    ///
    /// # Errors
    /// [`Kind::Usage`] with both recipes and the ways out.
    pub fn admits(recipe: &Recipe, lab: &Lab, named: bool) -> Result<()> {
        let before = Blueprint::of(lab)?.and_then(|before| before.recipe);
        let (Some(before), Some(now)) = (before, RecipeSource::of(recipe)) else { return Ok(()) };
        if named || before == now {
            return Ok(());
        }
        let name = lab.name();
        let message = format!("the lab {name} was built by {before}, and not by {now}");
        Err(Error::new(Kind::Usage, message)
            .hint("`--lab NAME` builds a lab of its own by this recipe")
            .hint(format!("if the recipe was moved, or is to take its place: `--lab {name}`")))
    }
}

impl fmt::Display for RecipeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecipeSource::Shipped(name) => write!(f, "the recipe `{name}` that ships"),
            RecipeSource::File(path) if path.exists() => write!(f, "{path}"),
            RecipeSource::File(path) => write!(f, "{path}, which is gone"),
        }
    }
}
