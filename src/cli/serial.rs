//! `nestlab console`: what a guest writes to its first serial port, at any depth.

use std::io::Write as _;
use std::process::ExitCode;

use super::Globals;
use super::session::Session;
use crate::error::Result;
use crate::event::printable;
use crate::host::{Command, StdStream};
use crate::recipe::LabName;

/// Show a guest's serial console, and follow it
///
/// Escape sequences are taken out: what a guest writes cannot drive your terminal. Ctrl-C ends it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The guest
    guest: String,
    /// The lab [default: the only one]
    #[arg(long, value_name = "NAME")]
    lab: Option<LabName>,
    /// Only what is there, without waiting for more
    #[arg(long)]
    no_follow: bool,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let session = Session::open(globals, args.lab.as_ref())?;
    let seat = session.machines.seat(&args.guest).await?;
    let log = seat.hypervisor.serial_log(&seat.machine.spec);
    let tail = Command::new("tail").args(["-n", "+1"]);
    let tail = if args.no_follow { tail } else { tail.arg("-F") };
    let tail = tail.args(["--", log.as_str()]);
    let mut line = Vec::new();
    let mut on_output = |stream, bytes: &[u8]| {
        if stream == StdStream::Out {
            show(&mut line, bytes);
        }
    };
    let exit = tokio::select! {
        exit = seat.host.run_streaming(&tail, &mut on_output) => exit?,
        _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
    };
    if !line.is_empty() {
        show(&mut line, b"\n");
    }
    Ok(if exit.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows whole lines; the rest waits in `line`. A reader that hung up is no error.
fn show(line: &mut Vec<u8>, bytes: &[u8]) {
    line.extend_from_slice(bytes);
    let Some(end) = line.iter().rposition(|byte| *byte == b'\n') else { return };
    let rest = line.split_off(end + 1);
    let whole = std::mem::replace(line, rest);
    let mut stdout = std::io::stdout().lock();
    let text = printable(&String::from_utf8_lossy(&whole));
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}
