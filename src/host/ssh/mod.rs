//! A machine reached over SSH: L0 elsewhere, or a booted guest at any depth.
//!
//! A session is one thread that alone calls libssh2 ([`actor`]), many channels at once. A session to a
//! deeper level runs over a byte stream that its parent host opens, so that no port is opened anywhere.
//! A session that was lost is established again by the next call; a command that ran in it is lost with
//! it, and what must survive that is a [job](super::job).

mod actor;
mod channel;
mod connect;
mod connection;
mod key;
mod process;
mod shell;
mod transfer;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;
use camino::Utf8Path;
use tokio::sync::{Mutex, watch};

pub use key::{HostKeyPolicy, SshKey};

use super::{Command, Exit, Host, HostRef, OnOutput, Stream, StreamAddress, TimeoutScale};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use actor::ChannelTarget;
use channel::{ChannelError, TerminalSize};
use connection::{Bridged, ChannelHold, Connection};
use process::{PreparedCommand, RemoteProcess};

/// How the server is reached.
#[derive(Debug, Clone)]
pub enum Via {
    /// From this machine.
    Tcp {
        /// A host name or IP address.
        host: String,
        /// The port, 22 by default.
        port: u16,
    },
    /// From another host, as that host sees the address.
    Through(HostRef, StreamAddress),
}

/// A machine to be reached over SSH, and how.
#[derive(Debug, Clone)]
pub struct SshTarget {
    /// The name that messages use, such as a guest's.
    pub name: String,
    /// The user to log in as.
    pub user: String,
    /// What to log in with.
    pub key: SshKey,
    /// Which host keys are the right ones.
    pub host_key: HostKeyPolicy,
    /// The way there.
    pub via: Via,
    /// How slow the machine is.
    pub patience: TimeoutScale,
}

/// A machine reached over SSH. Nothing is connected before the first call.
#[derive(Debug)]
pub struct Ssh {
    target: SshTarget,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Ssh {
    /// Returns the machine, not connected yet.
    pub fn new(target: SshTarget) -> Self {
        Ssh { target, connection: Mutex::new(None) }
    }

    /// Returns what it was made from.
    pub fn target(&self) -> &SshTarget {
        &self.target
    }

    /// Waits for the server's identification, such as `SSH-2.0-OpenSSH_9.2p1`, and hangs up. An open port
    /// shows only that something forwards it; this shows that the guest's SSH server runs.
    ///
    /// # Errors
    /// [`Kind::Unreachable`]; the caller asks again as long as the guest may still be booting.
    pub async fn probe(&self) -> Result<String> {
        connect::probe(&self.target).await.map_err(|error| self.named(error))
    }

    /// Ends the session, if there is one; the next call establishes another.
    pub async fn disconnect(&self) {
        *self.connection.lock().await = None;
    }

    /// Returns the session; establishes one if there is none that lives.
    async fn connection(&self) -> Result<Arc<Connection>> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref().filter(|connection| connection.is_alive()) {
            return Ok(connection.clone());
        }
        *held = None;
        let connection = connect::connect(&self.target).await?;
        *held = Some(connection.clone());
        Ok(connection)
    }

    /// Opens a channel. If the session turns out to be over before anything was asked of the server in it,
    /// that is done once more in a new one.
    async fn open(
        &self,
        goal: ChannelTarget,
        size: Option<watch::Receiver<TerminalSize>>,
    ) -> Result<ChannelHold> {
        let connection = self.connection().await?;
        match connection.open(goal.clone(), size.clone()).await {
            Err(ChannelError::NotOpened(_)) => {
                self.forget(&connection).await;
                Ok(self.connection().await?.open(goal, size).await?)
            }
            opened => Ok(opened?),
        }
    }

    /// Lets go of a session that is over, unless there is another already.
    async fn forget(&self, over: &Arc<Connection>) {
        let mut held = self.connection.lock().await;
        if held.as_ref().is_some_and(|connection| Arc::ptr_eq(connection, over)) {
            *held = None;
        }
    }

    async fn start(&self, command: &Command) -> Result<RemoteProcess> {
        let start = PreparedCommand::of(command, self.is_root())?;
        let held = self.open(start.goal(), None).await?;
        Ok(RemoteProcess::started(held, start))
    }

    fn named(&self, error: Error) -> Error {
        error.on_host(&self.target.name)
    }
}

#[async_trait]
impl Host for Ssh {
    fn name(&self) -> &str {
        &self.target.name
    }

    /// Runs `command` in its own process group there. Dropping the future, or silence beyond the
    /// command's limit, ends the whole group; a lost connection is [`Kind::Unreachable`].
    async fn run_streaming(&self, command: &Command, on_output: OnOutput<'_>) -> Result<Exit> {
        let run = async {
            let process = self.start(command).await?;
            process.follow(command, command.input(), on_output).await
        };
        run.await.map_err(|error| self.named(error).with_command(command.argv().iter().cloned()))
    }

    async fn put(
        &self,
        from: &Utf8Path,
        to: &Utf8Path,
        mode: u32,
        events: &EventSink,
    ) -> Result<()> {
        let put = transfer::put(self, from, to, mode, events);
        put.await.map(drop).map_err(|error| self.named(error))
    }

    async fn get(&self, from: &Utf8Path, to: &Utf8Path, events: &EventSink) -> Result<()> {
        transfer::get(self, from, to, events).await.map_err(|error| self.named(error))
    }

    async fn open_stream(&self, address: &StreamAddress) -> Result<Box<dyn Stream>> {
        match self.open(ChannelTarget::Stream(address.clone()), None).await {
            Ok(held) => Ok(Box::new(Bridged::new(held))),
            // The server tried, or is not allowed to.
            Err(error) if error.kind() == Kind::Failed => Err(self
                .named(error.with_kind(Kind::Unreachable))
                .with_source(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
                .context(format!("cannot connect to {address}"))),
            Err(error) => Err(self.named(error)),
        }
    }

    fn is_root(&self) -> bool {
        self.target.user == "root"
    }
}
