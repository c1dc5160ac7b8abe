//! `nestlab schema`: the JSON Schema of a file format, for editors.

use std::process::ExitCode;

use clap::ValueEnum;

use super::{Globals, output};
use crate::error::{Error, Result};

/// Print the JSON Schema of recipes, for completion and checks in an editor
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab schema recipe > recipe.schema.json

An editor with Taplo (Even Better TOML) uses it for a recipe that begins with
  #:schema ./recipe.schema.json")]
pub(crate) struct Args {
    /// Which format
    #[arg(value_enum)]
    format: SchemaKind,
}

/// A file format.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum SchemaKind {
    /// A lab's recipe
    Recipe,
}

pub(crate) async fn run(args: Args, _: &Globals) -> Result<ExitCode> {
    let schema = match args.format {
        SchemaKind::Recipe => crate::recipe::schema::recipe(),
    };
    let mut text = serde_json::to_string_pretty(&schema)
        .map_err(|error| Error::internal("the schema is not JSON").with_source(error))?;
    text.push('\n');
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
