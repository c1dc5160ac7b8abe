//! `nestlab init`: a commented recipe to start from.

use std::io::Write as _;
use std::process::ExitCode;

use camino::Utf8PathBuf;
use serde::Serialize;

use super::{Globals, output};
use crate::error::{Error, Kind, Result};
use crate::recipe::shipped::find;

/// The recipe that is written: every key there is, each with what it means.
const TEMPLATE: &str = include_str!("init.toml");

/// Write a commented recipe to start from
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab init                              writes lab.toml, with every key explained
  nestlab init my-vm.toml --from existing-vm
  nestlab check ./lab.toml")]
pub(crate) struct Args {
    /// The file to write; one that exists is left alone
    #[arg(default_value = "lab.toml")]
    file: Utf8PathBuf,
    /// Start from a recipe that ships
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
}

#[derive(Serialize)]
struct InitAnswer {
    schema: u32,
    file: Utf8PathBuf,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let text = match &args.from {
        Some(name) => find(name)?.text,
        None => TEMPLATE,
    };
    write_new(&args.file, text)?;
    if globals.json {
        output::print_json(&InitAnswer { schema: 1, file: args.file })?;
    } else if !globals.quiet {
        let file = &args.file;
        // As a bare name it would mean a recipe that ships.
        let named = file.as_str().contains('/') || file.as_str().ends_with(".toml");
        let named = if named { file.to_string() } else { format!("./{file}") };
        output::print(&format!("wrote {file}; edit it, then: nestlab check {named}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes `text` to `file`, which must not exist; leaves nothing if that fails half-way.
fn write_new(file: &Utf8PathBuf, text: &str) -> Result<()> {
    let opened = fs_err::OpenOptions::new().write(true).create_new(true).open(file);
    let mut opened = opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::new(Kind::Usage, format!("{file} exists already, and is left as it is"))
                .hint("name another file: `nestlab init other.toml`")
        }
        _ => Error::from(error),
    })?;
    opened.write_all(text.as_bytes()).and_then(|()| opened.sync_all()).map_err(|error| {
        let left = fs_err::remove_file(file);
        let error = Error::from(error);
        if left.is_err() { error.hint(format!("{file} is incomplete")) } else { error }
    })
}
