//! `nestlab console`: what a guest writes to its first serial port, at any depth.

use std::io::Write as _;
use std::process::ExitCode;

use super::Globals;
use super::session::LabSession;
use crate::error::Result;
use crate::event::printable;
use crate::host::{Command, StdStream};
use crate::recipe::LabName;

/// How much of a line is waited for; a guest may write without ever ending one.
const LONGEST_LINE: usize = 64 << 10;

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
    let session = LabSession::open(globals, args.lab.as_ref())?;
    let vm = session.machines.vm(&args.guest).await?;
    let log = vm.hypervisor.serial_log(&vm.machine.spec);
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
        exit = vm.host.run_streaming(&tail, &mut on_output) => exit?,
        _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
    };
    if !line.is_empty() {
        show(&mut line, b"\n");
    }
    Ok(if exit.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows what there is in whole lines. A reader that hung up is no error.
fn show(line: &mut Vec<u8>, bytes: &[u8]) {
    let Some(text) = to_show(line, bytes) else { return };
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Returns the whole lines in `line` and the `bytes` behind it; what follows them waits in `line`, where it is
/// not longer than a line may be.
fn to_show(line: &mut Vec<u8>, bytes: &[u8]) -> Option<String> {
    line.extend_from_slice(bytes);
    let end = match line.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => end + 1,
        None if line.len() > LONGEST_LINE => line.len(),
        None => return None,
    };
    let rest = line.split_off(end);
    let whole = std::mem::replace(line, rest);
    Some(printable(&String::from_utf8_lossy(&whole)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_shown_whole_however_they_come() {
        let mut line = Vec::new();
        assert_eq!(to_show(&mut line, b"one\ntwo\nth").as_deref(), Some("one\ntwo\n"));
        assert_eq!(to_show(&mut line, b"r\x1b["), None);
        assert_eq!(to_show(&mut line, b"2Jee\n").as_deref(), Some("three\n"));
    }

    #[test]
    fn a_line_without_an_end_is_shown_in_pieces_and_never_kept_whole() {
        let (mut line, mut shown) = (Vec::new(), 0);
        for _ in 0..1000 {
            shown += to_show(&mut line, &[b'x'; 1024]).unwrap_or_default().len();
            assert!(line.len() <= LONGEST_LINE);
        }
        assert_eq!(shown + line.len(), 1000 * 1024);
    }
}
