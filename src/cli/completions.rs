//! `nestlab completions`: shell completion scripts.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::args::Cli;
use super::{Globals, output};
use crate::error::Result;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab completions bash > ~/.local/share/bash-completion/completions/nestlab
  nestlab completions fish > ~/.config/fish/completions/nestlab.fish
  nestlab completions zsh > \"${fpath[1]}/_nestlab\"")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(crate) async fn run(args: Args, _: &Globals) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "nestlab", &mut script);
    output::print_bytes(&script)?;
    Ok(ExitCode::SUCCESS)
}
