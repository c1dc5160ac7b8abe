//! `nestlab man`: the manual pages.

use std::process::ExitCode;

use camino::Utf8PathBuf;
use clap::CommandFactory as _;

use super::args::Cli;
use super::{Globals, output};
use crate::error::Result;

/// Print the manual page, or write one for every command into a folder
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab man | man -l -
  nestlab man --dir ~/.local/share/man/man1")]
pub(crate) struct Args {
    /// Write nestlab.1 and a page for every command into this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<Utf8PathBuf>,
}

pub(crate) async fn run(args: Args, _: &Globals) -> Result<ExitCode> {
    match args.dir {
        Some(dir) => {
            fs_err::create_dir_all(&dir)?;
            clap_mangen::generate_to(Cli::command(), &dir)?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            output::print_bytes(&page)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
