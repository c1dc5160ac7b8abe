//! `nestlab recipe`: the recipes that ship.

use std::process::ExitCode;

use clap::Subcommand;
use serde::Serialize;

use super::{Globals, output};
use crate::error::Result;
use crate::recipe::{shipped, shipped::find};

/// List the recipes that ship, or show one
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: RecipeCommand,
}

#[derive(Debug, Subcommand)]
enum RecipeCommand {
    /// List the recipes that ship, with what each is for
    List,
    /// Print a recipe that ships, to read or to start from
    #[command(after_help = "\
Examples:
  nestlab recipe show quickstart
  nestlab recipe show existing-vm > my-vm.toml")]
    Show {
        /// Its name, as `nestlab recipe list` shows it
        name: String,
    },
}

/// A recipe in the JSON answers.
#[derive(Serialize)]
struct RecipeEntry {
    name: &'static str,
    description: Option<String>,
    /// Why nobody should rely on it yet.
    untested: Option<String>,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    match args.command {
        RecipeCommand::List => list(globals)?,
        RecipeCommand::Show { name } => show(&name, globals)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn entry(recipe: &shipped::Shipped) -> Result<RecipeEntry> {
    let name = recipe.name;
    let recipe = recipe.recipe()?;
    let untested = recipe.untested().map(str::to_owned);
    Ok(RecipeEntry { name, description: recipe.description, untested })
}

fn list(globals: &Globals) -> Result<()> {
    #[derive(Serialize)]
    struct RecipeListAnswer {
        schema: u32,
        recipes: Vec<RecipeEntry>,
    }
    let recipes = shipped::shipped().iter().map(entry).collect::<Result<Vec<_>>>()?;
    if globals.json {
        return output::print_json(&RecipeListAnswer { schema: 1, recipes });
    }
    let width = recipes.iter().map(|recipe| recipe.name.len()).max().unwrap_or_default();
    let lines: String = recipes
        .iter()
        .map(|recipe| {
            let description = recipe.description.as_deref().unwrap_or_default();
            let untested = if recipe.untested.is_some() { " (untested)" } else { "" };
            format!("{:width$}  {description}{untested}\n", recipe.name)
        })
        .collect();
    output::print(&lines)
}

fn show(name: &str, globals: &Globals) -> Result<()> {
    #[derive(Serialize)]
    struct RecipeAnswer {
        schema: u32,
        recipe: RecipeEntry,
        text: &'static str,
    }
    let recipe = find(name)?;
    if globals.json {
        return output::print_json(&RecipeAnswer {
            schema: 1,
            recipe: entry(recipe)?,
            text: recipe.text,
        });
    }
    output::print(recipe.text)
}
