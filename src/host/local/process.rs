//! A command as a process of this machine.

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};

use super::keeper::GuardedGroup;
use crate::error::{Error, Result};
use crate::host::{Command, Exit, OnOutput, StdStream, program};

/// How much is read at once; a pipe holds this much on Linux.
const CHUNK: usize = 64 << 10;

/// How long a group that was asked to end (SIGTERM) may take before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// Runs `command`, passing on what it writes, and returns how it ended.
pub(super) async fn run(command: &Command, is_root: bool, on_output: OnOutput<'_>) -> Result<Exit> {
    let argv = command.argv_on(is_root);
    let tried = |error: Error| error.with_command(command.argv().iter().cloned());
    let mut child = spawn(command, &argv).map_err(tried)?;
    let mut group = Group::of(&child, argv.len() != command.argv().len());
    let ended = follow(command, &mut child, on_output).await;
    match ended {
        Ok(status) => {
            group.leave();
            Ok(exit(status))
        }
        Err(LocalStop::Silent(limit)) => {
            group.end(&mut child).await;
            Err(tried(crate::host::command::silent(command, limit)))
        }
        Err(LocalStop::Broken(cause)) => {
            Err(tried(Error::failed(format!("lost track of `{}`", argv[0])).with_source(cause)))
        }
    }
}

fn spawn(command: &Command, argv: &[String]) -> Result<Child> {
    let mut process = tokio::process::Command::new(&argv[0]);
    process
        .args(&argv[1..])
        .envs(command.envs())
        .stdin(if command.input().is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    process.spawn().map_err(|cause| match cause.kind() {
        std::io::ErrorKind::NotFound => program::missing(&argv[0]),
        _ => Error::failed(format!("cannot start `{}`: {cause}", argv[0])),
    })
}

/// Why a process is no longer followed.
enum LocalStop {
    Silent(Duration),
    Broken(std::io::Error),
}

impl From<std::io::Error> for LocalStop {
    fn from(error: std::io::Error) -> Self {
        LocalStop::Broken(error)
    }
}

/// Feeds and reads `child` until it has ended. A process that it leaves behind may keep the pipes
/// open; that is not waited for.
async fn follow(
    command: &Command,
    child: &mut Child,
    on_output: OnOutput<'_>,
) -> Result<ExitStatus, LocalStop> {
    let mut out = child.stdout.take();
    let mut err = child.stderr.take();
    let feeding = feed(child.stdin.take(), command.input());
    tokio::pin!(feeding);
    let mut fed = false;
    let (mut out_buffer, mut err_buffer) = (vec![0; CHUNK], vec![0; CHUNK]);
    let limit = command.silence_limit();
    let silence = tokio::time::sleep(limit.unwrap_or(Duration::MAX));
    tokio::pin!(silence);
    loop {
        let (stream, read) = tokio::select! {
            biased;
            read = read_some(&mut out, &mut out_buffer) => (StdStream::Out, read?),
            read = read_some(&mut err, &mut err_buffer) => (StdStream::Err, read?),
            done = &mut feeding, if !fed => {
                done?;
                fed = true;
                continue;
            }
            status = child.wait() => {
                let status = status?;
                drain(out.as_ref(), StdStream::Out, &mut out_buffer, on_output)?;
                drain(err.as_ref(), StdStream::Err, &mut err_buffer, on_output)?;
                return Ok(status);
            }
            () = &mut silence, if limit.is_some() => {
                return Err(LocalStop::Silent(limit.unwrap_or_default()));
            }
        };
        match (stream, read) {
            (StdStream::Out, 0) => out = None,
            (StdStream::Err, 0) => err = None,
            (StdStream::Out, read) => on_output(stream, &out_buffer[..read]),
            (StdStream::Err, read) => on_output(stream, &err_buffer[..read]),
        }
        if let Some(limit) = limit {
            silence.as_mut().reset(tokio::time::Instant::now() + limit);
        }
    }
}

/// Reads from `pipe`, or waits forever once it has ended.
async fn read_some(
    pipe: &mut Option<impl AsyncRead + Unpin>,
    buffer: &mut [u8],
) -> std::io::Result<usize> {
    match pipe {
        Some(pipe) => pipe.read(buffer).await,
        None => std::future::pending().await,
    }
}

/// Writes `input` and closes the pipe. A program that does not read all of it is free to do so.
async fn feed(stdin: Option<ChildStdin>, input: &[u8]) -> std::io::Result<()> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    match stdin.write_all(input).await {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Passes on what an ended process left in its pipe, which tokio has made non-blocking.
fn drain(
    pipe: Option<&impl AsFd>,
    stream: StdStream,
    buffer: &mut [u8],
    on_output: &mut (dyn FnMut(StdStream, &[u8]) + Send),
) -> std::io::Result<()> {
    let Some(pipe) = pipe else { return Ok(()) };
    loop {
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Ok(read) => on_output(stream, &buffer[..read]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn exit(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(program::signal_name(signal.unwrap_or_default())),
    }
}

/// The process group of a running command; dropped before the command has ended, it is killed.
struct Group {
    leader: Option<Pid>,
    elevated: bool,
    kept: Option<GuardedGroup>,
}

impl Group {
    fn of(child: &Child, elevated: bool) -> Self {
        let leader = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        let kept = leader.map(|leader| GuardedGroup::new(leader, elevated));
        Group { leader, elevated, kept }
    }

    /// Lets the group go: its leader has ended, and what it started may stay.
    fn leave(&mut self) {
        self.leader = None;
        self.kept = None;
    }

    /// Asks the group to end, and kills it after [`GRACE`].
    async fn end(&mut self, child: &mut Child) {
        self.signal(Signal::TERM);
        let asked_in_vain = tokio::time::timeout(GRACE, child.wait()).await.is_err();
        self.signal(Signal::KILL);
        if asked_in_vain {
            // Killed just now; an error would only say that it is gone already.
            let _ = child.wait().await;
        }
        self.leave();
    }

    /// Sends `signal` to the group; one that is gone already is no matter.
    fn signal(&self, signal: Signal) {
        let Some(leader) = self.leader else { return };
        if rustix::process::kill_process_group(leader, signal).is_err() && self.elevated {
            let signal = format!("-{}", program::signal_name(signal.as_raw()));
            let group = format!("-{}", leader.as_raw_nonzero());
            // What runs as root through sudo takes signals from root alone.
            let _ = std::process::Command::new("sudo")
                .args(["-n", "--", "kill", &signal, "--", &group])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
