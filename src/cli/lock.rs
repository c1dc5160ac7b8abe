//! `nestlab lock`: pin what a lab came to, beside its recipe.

use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};

use super::{Globals, output};
use crate::error::{Error, Kind, Result};
use crate::lab::Labs;
use crate::plan::{LabContext, Lock};
use crate::recipe::{LabName, Recipe, RecipeOrigin};

/// Pin what a running lab came to: images, packages, kernels, hypervisors
///
/// Writes `<recipe>.lock` beside the recipe (for one that ships: into this folder), and shows what
/// changed since the last one. `nestlab up --locked` builds just that.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab lock my-lab.toml                       writes my-lab.toml.lock
  nestlab lock old.lock --diff new.lock          what differs between two locks")]
pub(crate) struct Args {
    /// The name of a recipe that ships, or a path; with --diff, a lock file
    recipe: String,
    /// The lab to look at [default: the recipe's name]
    #[arg(long, value_name = "NAME")]
    lab: Option<LabName>,
    /// Only show what differs from the lock RECIPE to this one
    #[arg(long, value_name = "LOCK", conflicts_with = "lab")]
    diff: Option<Utf8PathBuf>,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    match &args.diff {
        Some(other) => {
            let (old, new) = (load(Utf8Path::new(&args.recipe))?, load(other)?);
            output::print(&old.diff(&new).to_string())?;
        }
        None => write(args, globals).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn write(args: Args, globals: &Globals) -> Result<()> {
    let recipe = Recipe::load(&args.recipe)?;
    let path = path(&recipe);
    let name = args.lab.as_ref().unwrap_or(&recipe.name).clone();
    let lab = Labs::at(&globals.state_dir).open(&name)?;
    let lock = Lock::of(&LabContext::open(recipe, &lab, &globals.cache_dir).await?).await?;
    let before = if path.exists() { Some(load(&path)?) } else { None };
    replace(&path, &lock.text()?)?;
    match before {
        None => output::print(&format!("{path}\n")),
        Some(before) if before.diff(&lock).is_empty() => {
            output::print(&format!("{path} (nothing changed)\n"))
        }
        Some(before) => output::print(&format!("{path}\n{}", before.diff(&lock))),
    }
}

/// Writes the file whole or not at all; it is no secret, so it gets a usual file's permissions.
fn replace(path: &Utf8Path, text: &str) -> Result<()> {
    let new = Utf8PathBuf::from(format!("{path}.new"));
    fs_err::write(&new, text)?;
    fs_err::File::open(&new)?.sync_all()?;
    Ok(fs_err::rename(&new, path)?)
}

/// Reads the lock that lies beside `recipe`.
///
/// # Errors
/// [`Kind::Usage`] if there is none.
pub(super) fn read(recipe: &Recipe) -> Result<Lock> {
    load(&path(recipe))
}

fn load(path: &Utf8Path) -> Result<Lock> {
    let text = fs_err::read_to_string(path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            Error::new(Kind::Usage, format!("there is no lock file {path}"))
                .hint("`nestlab lock RECIPE` writes it from a lab that is up")
        } else {
            error.into()
        }
    })?;
    Lock::parse(&text, path.as_str())
}

/// Returns where the lock of `recipe` lies.
fn path(recipe: &Recipe) -> Utf8PathBuf {
    match recipe.origin() {
        RecipeOrigin::File(path) => Utf8PathBuf::from(format!("{path}.lock")),
        RecipeOrigin::Shipped | RecipeOrigin::Text { .. } => {
            Utf8PathBuf::from(format!("{}.lock", recipe.name))
        }
    }
}
