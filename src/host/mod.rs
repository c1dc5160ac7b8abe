//! A machine that commands run on: this one, or one over SSH (L0 elsewhere, or a booted guest).
//!
//! Everything above acts on machines through [`Host`] alone, so that the same code serves every
//! depth. This module must not know recipes, hypervisors or images.

pub mod command;
pub mod facts;
pub mod job;
pub mod local;
mod program;
pub mod quote;
#[cfg(test)]
pub(crate) mod scripted;
pub mod ssh;
pub mod timeout_scale;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

pub use command::{Command, Exit, Output, Stdin};
pub use local::Local;
pub use timeout_scale::TimeoutScale;

use crate::error::{Error, Result};
use crate::event::EventSink;

/// The most bytes that `run` keeps of either output.
const MOST_OUTPUT: usize = 64 << 20;

/// How much is kept of what a program complains of, which is more than an error shows.
const TAIL: usize = 16 << 10;

/// Adds `bytes` to `tail`, which keeps no more than its last [`TAIL`] bytes.
fn keep_tail(tail: &mut Vec<u8>, bytes: &[u8]) {
    tail.extend_from_slice(bytes);
    tail.drain(..tail.len().saturating_sub(TAIL));
}

/// An address to connect to, as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StreamAddress {
    /// TCP: a host name or IP address, and a port.
    Tcp(String, u16),
    /// A Unix socket's path on that host.
    Unix(Utf8PathBuf),
}

impl fmt::Display for StreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StreamAddress::Tcp(host, port) => write!(f, "{host}:{port}"),
            StreamAddress::Unix(path) => write!(f, "{path}"),
        }
    }
}

/// A byte stream to something that a host can reach.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Receives a command's output as it arrives; called with the bytes of either stream, in order.
pub type OnOutput<'a> = &'a mut (dyn FnMut(StdStream, &[u8]) + Send);

/// Which of a command's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdStream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A machine that commands run on.
///
/// Paths are those of that machine. No method believes an exit code alone: [`Host::run_streaming`]
/// returns how the command ended, and a lost connection is an error, never a success.
#[async_trait]
pub trait Host: Send + Sync + fmt::Debug {
    /// Returns the name that messages use: `L0`, or the guest's name.
    fn name(&self) -> &str;

    /// Runs `command`, passing its output on as it comes, and returns how it ended.
    ///
    /// # Errors
    /// [`Kind::Unreachable`](crate::Kind) if the host does not answer or the connection drops,
    /// `Failed` if the program cannot be started or is silent for longer than the command allows.
    async fn run_streaming(&self, command: &Command, on_output: OnOutput<'_>) -> Result<Exit>;

    /// Copies the local file `from` to `to` on the host, with the permission bits `mode`. The file
    /// appears whole or not at all.
    async fn put(
        &self,
        from: &Utf8Path,
        to: &Utf8Path,
        mode: u32,
        events: &EventSink,
    ) -> Result<()>;

    /// Copies the file `from` on the host to the local path `to`, whole or not at all.
    async fn get(&self, from: &Utf8Path, to: &Utf8Path, events: &EventSink) -> Result<()>;

    /// Opens a byte stream from the host to `address`, without opening a port anywhere.
    ///
    /// # Errors
    /// [`Kind::Unreachable`](crate::Kind); a [refusal](Error::is_refusal) if nobody listens there.
    async fn open_stream(&self, address: &StreamAddress) -> Result<Box<dyn Stream>>;

    /// Returns whether commands run as root without further ado.
    fn is_root(&self) -> bool;

    /// Returns whether this is the machine that nestlab itself runs on.
    fn is_local(&self) -> bool {
        false
    }
}

/// A shared host.
pub type HostRef = Arc<dyn Host>;

impl dyn Host + '_ {
    /// Runs `command` and returns its output and how it ended, success or not.
    ///
    /// # Errors
    /// As [`Host::run_streaming`], and [`Kind::Failed`](crate::Kind) once it has written more than
    /// 64 MiB: what is kept in memory, a guest must not fill.
    pub async fn run(&self, command: &Command) -> Result<Output> {
        self.run_watched(command, &mut |_, _| {}).await
    }

    /// Runs `command` as [`run`](<dyn Host>::run) does, and lets `watch` see the output as it comes.
    pub(crate) async fn run_watched(
        &self,
        command: &Command,
        watch: OnOutput<'_>,
    ) -> Result<Output> {
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        let flooded = CancellationToken::new();
        let mut keep = |stream, bytes: &[u8]| {
            watch(stream, bytes);
            let kept = match stream {
                StdStream::Out => &mut stdout,
                StdStream::Err => &mut stderr,
            };
            if kept.len() + bytes.len() > MOST_OUTPUT {
                flooded.cancel();
            } else {
                kept.extend_from_slice(bytes);
            }
        };
        let exit = tokio::select! {
            biased;
            () = flooded.cancelled() => None,
            exit = self.run_streaming(command, &mut keep) => Some(exit?),
        };
        match exit {
            Some(exit) if !flooded.is_cancelled() => Ok(Output { exit, stdout, stderr }),
            _ => Err(Error::failed(format!(
                "{} wrote more than {} MiB and was ended",
                command.argv()[0],
                MOST_OUTPUT >> 20
            ))
            .on_host(self.name())
            .with_command(command.argv().iter().cloned())),
        }
    }

    /// Returns the bytes of the file `path`.
    ///
    /// # Errors
    /// As [`check`](<dyn Host>::check), and [`Kind::Failed`](crate::Kind) if it has more than `most` bytes,
    /// of which no more are read.
    pub(crate) async fn read(&self, path: &Utf8Path, most: usize) -> Result<Vec<u8>> {
        let head = Command::new("head").args(["-c", &(most + 1).to_string(), "--", path.as_str()]);
        let bytes = self.check(&head).await?.stdout;
        if bytes.len() > most {
            let message = format!("{path} has more than {} MiB", most >> 20);
            return Err(Error::failed(message).on_host(self.name()));
        }
        Ok(bytes)
    }

    /// Runs `command`; anything but exit code 0 is a [`Kind::Failed`](crate::Kind) error that names
    /// host, command and the end of the output.
    pub async fn check(&self, command: &Command) -> Result<Output> {
        let output = self.run(command).await?;
        if output.exit.success() {
            Ok(output)
        } else {
            Err(output.error(command).on_host(self.name()))
        }
    }
}
