//! The command line: one file per command. The only place that knows clap.
//!
//! A command is a module with its `Args` and `async fn run(Args, &Globals) -> Result<ExitCode>`; to add
//! one, add its module here, its variant to [`args::CliCommand`], and its line to [`dispatch`]. Results go
//! to stdout through [`output`]; progress and diagnostics go to stderr.

mod agree;
mod args;
mod ask;
mod bundle;
mod check;
mod completions;
mod console;
mod cp;
mod destroy;
mod doctor;
mod down;
mod failure;
mod gc;
mod guests;
mod image;
mod init;
mod lock;
mod logs;
mod man;
mod output;
mod plan;
mod recipe;
mod schema;
mod screenshot;
mod session;
mod ssh;
mod ssh_config;
mod status;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

pub(crate) use args::Globals;
use args::{Cli, CliCommand};

use crate::error::{Error, Result};

/// Runs nestlab with the process's arguments and returns its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::of_arguments(&error, std::env::args_os()),
    };
    let json = cli.globals.json;
    let done = Globals::new(cli.globals).and_then(|globals| {
        globals.set_up_terminal();
        block_on(dispatch(cli.command, &globals))?
    });
    done.unwrap_or_else(|error| failure::tell(&error, json))
}

async fn dispatch(command: CliCommand, globals: &Globals) -> Result<ExitCode> {
    match command {
        CliCommand::Up(args) => up::run(args, globals).await,
        CliCommand::Plan(args) => plan::run(args, globals).await,
        CliCommand::Status(args) => status::run(args, globals).await,
        CliCommand::Ssh(args) => ssh::ssh(args, globals).await,
        CliCommand::Exec(args) => ssh::exec(args, globals).await,
        CliCommand::Lock(args) => lock::run(args, globals).await,
        CliCommand::Cp(args) => cp::run(args, globals).await,
        CliCommand::SshConfig(args) => ssh_config::run(args, globals).await,
        CliCommand::Console(args) => console::run(args, globals).await,
        CliCommand::Screenshot(args) => screenshot::run(args, globals).await,
        CliCommand::Down(args) => down::run(args, globals).await,
        CliCommand::Destroy(args) => destroy::run(args, globals).await,
        CliCommand::Logs(args) => logs::run(args, globals).await,
        CliCommand::Bundle(args) => bundle::run(args, globals).await,
        CliCommand::Gc(args) => gc::run(args, globals).await,
        CliCommand::Image(args) => image::run(args, globals).await,
        CliCommand::Check(args) => check::run(args, globals).await,
        CliCommand::Doctor(args) => doctor::run(args, globals).await,
        CliCommand::Init(args) => init::run(args, globals).await,
        CliCommand::Recipe(args) => recipe::run(args, globals).await,
        CliCommand::Schema(args) => schema::run(args, globals).await,
        CliCommand::Completions(args) => completions::run(args, globals).await,
        CliCommand::Man(args) => man::run(args, globals).await,
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::from(error).context("nestlab cannot start its threads"))?;
    let done = runtime.block_on(work);
    // What was dropped while a thread of its own was at it, such as the copy of a disk, is not waited for.
    runtime.shutdown_background();
    Ok(done)
}
