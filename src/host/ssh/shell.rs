//! A session for the person at the terminal: their shell or command, with their own input and outputs.

use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags};
use rustix::termios::{OptionalActions, Termios};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::Ssh;
use super::actor::{ChannelTarget, Waker};
use super::channel::{ChannelRequest, TerminalSize};
use crate::error::{Error, Kind, Result};
use crate::host::{Command, Exit, quote};

/// How much is moved at once.
const CHUNK: usize = 16 << 10;

impl Ssh {
    /// Runs `command`, or the user's login shell, with this process's standard input and outputs, and
    /// returns how it ended. From a terminal it gets a terminal, which follows this one's size; otherwise
    /// it is given the input to its end.
    ///
    /// What the other side writes reaches the terminal as it is: that is what a session is for.
    ///
    /// # Errors
    /// As [`Host::run_streaming`](crate::host::Host::run_streaming).
    pub async fn shell(&self, command: Option<&Command>) -> Result<Exit> {
        self.attach(command).await.map_err(|error| self.named(error))
    }

    async fn attach(&self, command: Option<&Command>) -> Result<Exit> {
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        let wanted = stdin.is_terminal() && stdout.is_terminal();
        let terminal = wanted.then(Terminal::size).flatten();
        let (told, size) = watch::channel(terminal.unwrap_or_default());
        let kind = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_owned());
        let mut asks: Vec<ChannelRequest> =
            terminal.map(|size| ChannelRequest::Terminal(kind, size)).into_iter().collect();
        asks.push(match command {
            Some(command) => {
                let argv = command.argv_on(self.target.user == "root");
                ChannelRequest::Command(format!("exec {}", quote::posix(&argv)))
            }
            None => ChannelRequest::Shell,
        });
        let size = terminal.is_some().then_some(size);
        let mut held = self.open(ChannelTarget::Session(asks), size).await?;
        let raw = terminal.is_some().then(Terminal::raw).transpose()?;

        let connection = held.ending.connection().clone();
        let mut resized = signal(SignalKind::window_change())?;
        let follow_size = async {
            while resized.recv().await.is_some() {
                if let Some(size) = Terminal::size() {
                    told.send_replace(size);
                    connection.wake();
                }
            }
        };
        let (input, typed) = Input::start()?;
        let error = held.error.take();
        let (mut from, mut to) = held.main.split();
        let outputs = async {
            tokio::try_join!(
                pass_on(&mut from, std::io::stdout()),
                pass_on_some(error, std::io::stderr()),
            )
        };
        tokio::select! {
            written = outputs => drop(written?),
            () = follow_size => {}
            () = send(typed, &mut to) => {}
        }
        let exit = held.ending.exit().await?;
        drop((input, raw));
        Ok(exit)
    }
}

/// Sends what is typed, and its end; then waits for the session to end.
async fn send(mut typed: mpsc::Receiver<Vec<u8>>, to: &mut (impl AsyncWriteExt + Unpin)) {
    while let Some(bytes) = typed.recv().await {
        if to.write_all(&bytes).await.is_err() {
            break;
        }
    }
    // The other side may have gone already.
    let _ = to.shutdown().await;
    std::future::pending().await
}

async fn pass_on(
    from: &mut (impl AsyncReadExt + Unpin),
    mut to: impl Write,
) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            // How the channel ended tells why.
            Err(_) => return Ok(()),
        };
        to.write_all(&buffer[..read])?;
        to.flush()?;
    }
}

async fn pass_on_some(from: Option<UnixStream>, to: impl Write) -> std::io::Result<()> {
    match from {
        Some(mut from) => pass_on(&mut from, to).await,
        None => Ok(()),
    }
}

/// The user's terminal in raw mode; as it was, once dropped.
struct Terminal(Termios);

impl Terminal {
    /// Returns its columns and rows.
    fn size() -> Option<TerminalSize> {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
        Some((size.ws_col.into(), size.ws_row.into()))
    }

    fn raw() -> Result<Self> {
        let unusable = |cause: rustix::io::Errno| {
            Error::new(Kind::Io, "the terminal cannot be used").with_source(cause)
        };
        let before = rustix::termios::tcgetattr(std::io::stdin()).map_err(unusable)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .map_err(unusable)?;
        Ok(Terminal(before))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Standard input, read by a thread of its own that ends with this: a read that waits for a key could not
/// be given up otherwise.
struct Input(Waker);

impl Input {
    fn start() -> Result<(Self, mpsc::Receiver<Vec<u8>>)> {
        let waker = Waker::new()?;
        let (typing, typed) = mpsc::channel(4);
        let stop = waker.clone();
        std::thread::Builder::new().name("stdin".to_owned()).spawn(move || read(&stop, &typing))?;
        Ok((Input(waker), typed))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.0.wake();
    }
}

fn read(stop: &Waker, typing: &mpsc::Sender<Vec<u8>>) {
    let stdin = std::io::stdin();
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut polled = [
            PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        match rustix::event::poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) if !polled[1].revents().is_empty() => return,
            Ok(_) => {}
        }
        match rustix::io::read(stdin.as_fd(), &mut buffer) {
            Ok(0) => return,
            Ok(read) if typing.blocking_send(buffer[..read].to_vec()).is_ok() => {}
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            _ => return,
        }
    }
}
