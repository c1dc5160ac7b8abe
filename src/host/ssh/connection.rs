//! A live session as its callers hold it.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use super::actor::{self, ChannelTarget, LoginRequest, NotConnected, Request, Waker};
use super::channel::{ChannelError, Ends, TerminalSize};
use crate::error::{Error, Kind, Result};
use crate::host::Exit;

/// An established session; it ends when the last holder lets go of it.
#[derive(Debug)]
pub(super) struct Connection {
    requests: Sender<Request>,
    waker: Waker,
    over: Arc<AtomicBool>,
}

impl Connection {
    /// Establishes a session over `outer`.
    pub(super) async fn establish(
        outer: OwnedFd,
        login: LoginRequest,
    ) -> Result<Arc<Self>, NotConnected> {
        let unusable = |what: &str, cause: std::io::Error| {
            NotConnected::for_good(Error::new(Kind::Io, what).with_source(cause))
        };
        let waker = Waker::new().map_err(|cause| unusable("no event descriptor is left", cause))?;
        let (requests, inbox) = std::sync::mpsc::channel();
        let over = Arc::new(AtomicBool::new(false));
        // Made first: if this future is dropped, its drop ends the thread.
        let connection =
            Arc::new(Connection { requests, waker: waker.clone(), over: over.clone() });
        let (ready, established) = oneshot::channel();
        std::thread::Builder::new()
            .name("ssh".to_owned())
            .spawn(move || actor::run(outer, waker, inbox, login, ready, &over))
            .map_err(|cause| unusable("no thread can be started", cause))?;
        established.await.unwrap_or_else(|_| {
            Err(NotConnected::for_good(Error::internal("the thread of an SSH session died")))
        })?;
        Ok(connection)
    }

    /// Returns whether it still takes requests.
    pub(super) fn is_alive(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Opens a channel; a terminal in it follows `size`.
    pub(super) async fn open(
        self: &Arc<Self>,
        goal: ChannelTarget,
        size: Option<watch::Receiver<TerminalSize>>,
    ) -> Result<ChannelHold, ChannelError> {
        let with_errors = matches!(goal, ChannelTarget::Session(_));
        let local = |error: std::io::Error| ChannelError::Refused(error.to_string());
        let (main, far_main) = pair().map_err(local)?;
        let (error, far_error) = if with_errors {
            let (error, far_error) = pair().map_err(local)?;
            (Some(error), Some(far_error))
        } else {
            (None, None)
        };
        let (opened, is_open) = oneshot::channel();
        let (done, is_done) = oneshot::channel();
        let lost = Arc::new(OnceLock::new());
        let ends = Ends {
            main: far_main,
            error: far_error,
            opened: Some(opened),
            done: Some(done),
            lost: lost.clone(),
            size,
        };
        let ending = Ending { done: Some(is_done), connection: self.clone() };
        let held = ChannelHold { main, error, lost, ending };
        let over = "the session is over";
        self.requests
            .send(Request::Open(goal, ends))
            .map_err(|_| ChannelError::NotOpened(over.to_owned()))?;
        self.waker.wake();
        is_open.await.unwrap_or_else(|_| Err(ChannelError::Lost(over.to_owned())))?;
        Ok(held)
    }

    /// Wakes the session's thread, so that it sees a changed terminal size.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Fails only if the thread has ended.
        let _ = self.requests.send(Request::Close);
        self.waker.wake();
    }
}

/// Returns a socket pair: a tokio end for a caller, and a non-blocking one for the session's thread.
fn pair() -> std::io::Result<(UnixStream, std::os::unix::net::UnixStream)> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    Ok((UnixStream::from_std(near)?, far))
}

/// A caller's hold on a channel; letting go of it closes the channel.
pub(super) struct ChannelHold {
    /// Standard input and output, or the stream itself.
    pub(super) main: UnixStream,
    /// Standard error; `None` once it has ended, and for a stream.
    pub(super) error: Option<UnixStream>,
    /// How it ends.
    pub(super) ending: Ending,
    lost: Arc<OnceLock<String>>,
}

/// How a channel ends; letting go of it closes the channel.
pub(super) struct Ending {
    done: Option<oneshot::Receiver<Result<Exit, ChannelError>>>,
    connection: Arc<Connection>,
}

impl Ending {
    /// Returns how the command ended, once it has; to be asked until it has answered, not after.
    pub(super) async fn exit(&mut self) -> Result<Exit, ChannelError> {
        let gone = || ChannelError::Lost("the session is over".to_owned());
        match &mut self.done {
            Some(done) => done.await.unwrap_or_else(|_| Err(gone())),
            None => Err(gone()),
        }
    }

    /// Returns the session that the channel belongs to.
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.done = None;
        self.connection.wake();
    }
}

/// A byte stream through a session. Unlike a socket pair, it tells a lost session from an end.
pub(super) struct Bridged {
    held: ChannelHold,
}

impl Bridged {
    /// Returns the stream that a channel carries.
    pub(super) fn new(held: ChannelHold) -> Self {
        Bridged { held }
    }
}

impl AsyncRead for Bridged {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.held.main).poll_read(context, buffer);
        let ended = matches!(polled, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        // The pair itself resets when the session's thread lets go of it with bytes still to send.
        let failed = matches!(polled, Poll::Ready(Err(_)));
        match self.held.lost.get() {
            Some(why) if failed || (ended && buffer.remaining() > 0) => {
                let error = std::io::Error::new(std::io::ErrorKind::ConnectionReset, why.clone());
                Poll::Ready(Err(error))
            }
            _ => polled,
        }
    }
}

impl AsyncWrite for Bridged {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.held.main).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.held.main).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.held.main).poll_shutdown(context)
    }
}
