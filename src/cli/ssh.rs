//! `nestlab ssh` and `nestlab exec`: into a guest at any depth.

use std::io::Write as _;
use std::process::ExitCode;

use super::Globals;
use super::session::LabSession;
use crate::error::Result;
use crate::host::{Command, Exit, Host, StdStream};
use crate::recipe::LabName;

/// Log in to a guest, or run a command in it, over every level between
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab ssh l2                   a shell in L2
  nestlab ssh l2 -- nproc          one command; its exit code is nestlab's")]
pub(crate) struct SshArgs {
    /// The guest
    guest: String,
    /// The lab [default: the only one]
    #[arg(long, value_name = "NAME")]
    lab: Option<LabName>,
    /// A command and its arguments; without one, a shell
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Run a command in a guest, without a terminal
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab exec l1 -- VBoxManage list runningvms
  nestlab exec l2 -- uname -a")]
pub(crate) struct ExecArgs {
    /// The guest
    guest: String,
    /// The lab [default: the only one]
    #[arg(long, value_name = "NAME")]
    lab: Option<LabName>,
    /// A command and its arguments
    #[arg(last = true, value_name = "CMD", required = true)]
    command: Vec<String>,
}

pub(crate) async fn ssh(args: SshArgs, globals: &Globals) -> Result<ExitCode> {
    let session = LabSession::open(globals, args.lab.as_ref())?;
    let guest = session.machines.enter(&args.guest).await?;
    let command = (!args.command.is_empty()).then(|| Command::from_argv(args.command));
    Ok(code(&guest.shell(command.as_ref()).await?))
}

pub(crate) async fn exec(args: ExecArgs, globals: &Globals) -> Result<ExitCode> {
    let session = LabSession::open(globals, args.lab.as_ref())?;
    let guest = session.machines.enter(&args.guest).await?;
    let command = Command::from_argv(args.command);
    let exit = guest.run_streaming(&command, &mut pass_on).await?;
    Ok(code(&exit))
}

/// Passes a guest's output on as it is, as ssh does; a reader that hung up is no error.
fn pass_on(stream: StdStream, bytes: &[u8]) {
    let _ = match stream {
        StdStream::Out => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
        StdStream::Err => std::io::stderr().lock().write_all(bytes),
    };
}

/// Returns the command's exit code; for a signal 255, as ssh does.
fn code(exit: &Exit) -> ExitCode {
    match exit {
        Exit::Code(code) => ExitCode::from(u8::try_from(*code).unwrap_or(u8::MAX)),
        Exit::Signal(_) => ExitCode::from(u8::MAX),
    }
}
