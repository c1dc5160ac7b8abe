//! `nestlab cp`: a file into a guest, or out of it, at any depth.

use std::process::ExitCode;

use camino::Utf8PathBuf;

use super::Globals;
use super::session::{LabSession, RunSession};
use crate::engine::until_safe_point;
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::host::Host as _;
use crate::recipe::LabName;

/// Copy a file into a guest, or out of it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab cp notes.txt l2:/root/notes.txt
  nestlab cp l1:/var/log/dpkg.log ./dpkg.log")]
pub(crate) struct Args {
    /// A path, or GUEST:PATH
    from: String,
    /// A path, or GUEST:PATH
    to: String,
    /// The lab [default: the only one]
    #[arg(long, value_name = "NAME")]
    lab: Option<LabName>,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let (guest, work) = match (remote(&args.from), remote(&args.to)) {
        (None, Some((guest, to))) => (guest, CopyTask::In { from: args.from.as_str().into(), to }),
        (Some((guest, from)), None) => (guest, CopyTask::Out { from, to: args.to.as_str().into() }),
        _ => {
            return Err(Error::new(Kind::Usage, "exactly one of the two is to be GUEST:PATH")
                .hint("a local path with a colon in it is written with a `/`: ./a:b"));
        }
    };
    let session = LabSession::open(globals, args.lab.as_ref())?;
    let host = session.machines.enter(guest).await?;
    let run_session = RunSession::begin(globals, None)?;
    let (step, title) = (format!("{guest}/cp"), format!("copy {} to {}", args.from, args.to));
    let copy = async |events: &EventSink| match &work {
        CopyTask::In { from, to } => host.put(from, to, mode(from)?, events).await,
        CopyTask::Out { from, to } => host.get(from, to, events).await,
    };
    let cancel = run_session.cancel();
    let copy = async |events: &EventSink| until_safe_point(&cancel, copy(events)).await;
    let copied = run_session.events.step(&step, &title, "", copy).await;
    run_session.end();
    copied.map(|()| ExitCode::SUCCESS)
}

enum CopyTask {
    In { from: Utf8PathBuf, to: Utf8PathBuf },
    Out { from: Utf8PathBuf, to: Utf8PathBuf },
}

/// Returns guest and path of `GUEST:PATH`; `None` for a local path, as scp tells them apart: a colon
/// before the first slash.
fn remote(text: &str) -> Option<(&str, Utf8PathBuf)> {
    let (guest, path) = text.split_once(':')?;
    (!guest.is_empty() && !guest.contains('/') && !path.is_empty()).then(|| (guest, path.into()))
}

fn mode(path: &Utf8PathBuf) -> Result<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs_err::metadata(path)?.permissions().mode() & 0o777)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_before_the_first_slash_names_a_guest() {
        assert_eq!(remote("l1:/etc/hosts"), Some(("l1", "/etc/hosts".into())));
        for local in ["/a:b", "./a:b", "a", ":/x", "l1:"] {
            assert_eq!(remote(local), None, "{local}");
        }
    }
}
