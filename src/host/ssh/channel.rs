//! One channel of a session: a command, a shell or a byte stream, pumped between libssh2 and a socket
//! pair whose other end the caller holds.
//!
//! Both directions hold back when the other side does: what the caller does not read stays with the
//! server, and what the server does not take stays with the caller.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

use rustix::event::{PollFd, PollFlags};
use ssh2::{Channel, ErrorCode};
use tokio::sync::{oneshot, watch};

use super::wire::Wire;
use crate::error::{Error, Kind};
use crate::host::Exit;

/// How much is moved in one call; an SSH packet carries 32 KiB.
const CHUNK: usize = 32 << 10;

/// `LIBSSH2_ERROR_EAGAIN`.
const AGAIN: ErrorCode = ErrorCode::Session(-37);

/// Returns whether `error` says that a call has to be repeated when more has arrived.
pub(super) fn is_again(error: &ssh2::Error) -> bool {
    error.code() == AGAIN
}

/// Why a channel did not do what it was opened for.
#[derive(Debug, Clone)]
pub(super) enum ChannelError {
    /// The session was over before anything was asked for in the channel, and why.
    NotOpened(String),
    /// The session is over, and why.
    Lost(String),
    /// The server refused, and what it said.
    Refused(String),
}

impl From<ChannelError> for Error {
    fn from(failure: ChannelError) -> Self {
        match failure {
            ChannelError::NotOpened(why) | ChannelError::Lost(why) => {
                Error::new(Kind::Unreachable, format!("the connection was lost: {why}"))
            }
            ChannelError::Refused(why) => Error::failed(format!("the server refused: {why}")),
        }
    }
}

/// The size of a terminal, in columns and rows.
pub(super) type TerminalSize = (u32, u32);

/// What a session channel is asked for, in order, before it runs.
#[derive(Debug, Clone)]
pub(super) enum ChannelRequest {
    /// A terminal of this type and size.
    Terminal(String, TerminalSize),
    /// A command line.
    Command(String),
    /// The user's login shell.
    Shell,
}

/// The actor's side of what a caller holds of a channel.
pub(super) struct Ends {
    /// Towards the command's standard input and from its standard output, or the stream itself.
    pub(super) main: UnixStream,
    /// From its standard error.
    pub(super) error: Option<UnixStream>,
    /// Told once the channel has what it was opened for.
    pub(super) opened: Option<oneshot::Sender<Result<(), ChannelError>>>,
    /// Told how it ended. Once nobody listens any more, the channel is closed.
    pub(super) done: Option<oneshot::Sender<Result<Exit, ChannelError>>>,
    /// Set before `main` ends early, since an end of file cannot say why.
    pub(super) lost: Arc<OnceLock<String>>,
    /// The size of the caller's terminal.
    pub(super) size: Option<watch::Receiver<TerminalSize>>,
}

impl Ends {
    /// Tells the caller that it came to nothing.
    pub(super) fn fail(mut self, failure: ChannelError) {
        self.told(failure);
    }

    fn told(&mut self, failure: ChannelError) {
        if let ChannelError::Lost(why) = &failure {
            // Set at most once, here.
            let _ = self.lost.set(why.clone());
        }
        // A caller that has gone does not hear it.
        if let Some(opened) = self.opened.take() {
            let _ = opened.send(Err(failure.clone()));
        }
        if let Some(done) = self.done.take() {
            let _ = done.send(Err(failure));
        }
    }

    fn opened(&mut self) {
        if let Some(opened) = self.opened.take() {
            // A caller that has gone is noticed by `is_abandoned`.
            let _ = opened.send(Ok(()));
        }
    }

    fn is_abandoned(&self) -> bool {
        self.done.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

/// Bytes on their way to a caller.
struct OutputSink {
    to: Option<UnixStream>,
    buffer: Vec<u8>,
    written: usize,
    ended: bool,
}

impl OutputSink {
    fn new(to: Option<UnixStream>) -> Self {
        OutputSink { to, buffer: Vec::with_capacity(CHUNK), written: 0, ended: false }
    }

    fn is_empty(&self) -> bool {
        self.written == self.buffer.len()
    }

    /// Reads from `source` if there is room. Returns whether anything came.
    fn fill(&mut self, source: &mut impl Read) -> Result<bool, String> {
        if !self.is_empty() {
            return Ok(false);
        }
        self.written = 0;
        self.buffer.resize(CHUNK, 0);
        let read = source.read(&mut self.buffer);
        self.buffer.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(length) => Ok(length > 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Hands over what the caller takes; what a caller that has gone would have got is dropped.
    fn drain(&mut self) -> bool {
        let before = self.written;
        while let Some(to) = self.to.as_mut().filter(|_| self.written < self.buffer.len()) {
            match to.write(&self.buffer[self.written..]) {
                Ok(length) => self.written += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.to = None,
            }
        }
        if self.to.is_none() {
            self.written = self.buffer.len();
        }
        self.written > before
    }

    /// Lets the caller see the end of the output.
    fn end(&mut self) {
        if let (Some(to), false) = (&self.to, self.ended) {
            // Fails only if the caller has gone.
            let _ = to.shutdown(std::net::Shutdown::Write);
        }
        self.ended = true;
    }
}

/// Where a channel stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChannelStage {
    /// Asking the server for what it is to be.
    Asking,
    /// Moving bytes.
    Running,
    /// Being closed from our side.
    Closing,
    /// Closed by both sides.
    Closed,
}

/// An open channel.
pub(super) struct Pump {
    channel: Channel,
    asks: VecDeque<ChannelRequest>,
    stage: ChannelStage,
    ends: Ends,
    from: UnixStream,
    input: Vec<u8>,
    input_ended: bool,
    eof_sent: bool,
    output: OutputSink,
    error: OutputSink,
    exit: Option<Exit>,
    is_session: bool,
}

impl Pump {
    /// Returns the pump of a channel that the server has opened.
    pub(super) fn new(
        channel: Channel,
        asks: Vec<ChannelRequest>,
        mut ends: Ends,
    ) -> std::io::Result<Self> {
        let output = ends.main.try_clone()?;
        let from = ends.main.try_clone()?;
        let error = OutputSink::new(ends.error.take());
        let is_session = !asks.is_empty();
        if !is_session {
            ends.opened();
        }
        Ok(Pump {
            channel,
            stage: if is_session { ChannelStage::Asking } else { ChannelStage::Running },
            asks: asks.into(),
            ends,
            from,
            input: Vec::new(),
            input_ended: false,
            eof_sent: false,
            output: OutputSink::new(Some(output)),
            error,
            exit: None,
            is_session,
        })
    }

    /// Returns whether it counts against the server's limit of session channels.
    pub(super) fn is_session(&self) -> bool {
        self.is_session
    }

    /// Returns whether it is closed and can be finished.
    pub(super) fn is_closed(&self) -> bool {
        self.stage == ChannelStage::Closed
    }

    /// Returns whether all that it still waits for must come from the server.
    pub(super) fn needs_server(&self) -> bool {
        !self.is_closed() && self.output.is_empty() && self.error.is_empty()
    }

    /// Does what can be done without waiting. Returns whether anything was done.
    ///
    /// # Errors
    /// Why the whole session is broken.
    pub(super) fn step(&mut self, wire: &mut Wire) -> Result<bool, String> {
        let moved = match self.stage {
            ChannelStage::Asking => self.ask()?,
            ChannelStage::Running if self.ends.is_abandoned() => {
                self.stage = ChannelStage::Closing;
                true
            }
            ChannelStage::Running => self.run(wire)?,
            ChannelStage::Closing => self.close()?,
            ChannelStage::Closed => false,
        };
        wire.collect();
        Ok(moved)
    }

    fn ask(&mut self) -> Result<bool, String> {
        let asked = match self.asks.front().expect("a channel that asks has something to ask for") {
            ChannelRequest::Terminal(kind, (columns, rows)) => {
                self.channel.request_pty(kind, None, Some((*columns, *rows, 0, 0)))
            }
            ChannelRequest::Command(line) => self.channel.exec(line),
            ChannelRequest::Shell => self.channel.shell(),
        };
        match asked {
            Ok(()) => {
                self.asks.pop_front();
                if self.asks.is_empty() {
                    self.ends.opened();
                    self.stage = ChannelStage::Running;
                }
                Ok(true)
            }
            Err(error) if is_again(&error) => Ok(false),
            Err(error) if is_refusal(&error) => {
                if let Some(opened) = self.ends.opened.take() {
                    // A caller that has gone does not hear it.
                    let _ = opened.send(Err(ChannelError::Refused(error.message().to_owned())));
                }
                self.stage = ChannelStage::Closing;
                Ok(true)
            }
            Err(error) => Err(error.message().to_owned()),
        }
    }

    fn run(&mut self, wire: &mut Wire) -> Result<bool, String> {
        let mut moved = self.resize()?;
        if wire.has_room() {
            moved |= self.send()?;
        }
        moved |= self.output.fill(&mut self.channel)?;
        moved |= self.error.fill(&mut self.channel.stderr())?;
        moved |= self.output.drain();
        moved |= self.error.drain();
        if self.channel.eof() && self.output.is_empty() && self.error.is_empty() {
            moved |= self.finish()?;
        }
        Ok(moved)
    }

    fn resize(&mut self) -> Result<bool, String> {
        let Some(size) = &mut self.ends.size else { return Ok(false) };
        if !size.has_changed().unwrap_or(false) {
            return Ok(false);
        }
        let (columns, rows) = *size.borrow();
        match self.channel.request_pty_size(columns, rows, None, None) {
            Ok(()) => {
                size.mark_unchanged();
                Ok(true)
            }
            Err(error) if is_again(&error) => Ok(false),
            Err(error) => Err(error.message().to_owned()),
        }
    }

    /// Moves the caller's bytes to the server.
    fn send(&mut self) -> Result<bool, String> {
        let mut moved = false;
        if self.input.is_empty() && !self.input_ended {
            moved |= self.take_input();
        }
        if !self.input.is_empty() {
            return match self.channel.write(&self.input) {
                Ok(length) => {
                    self.input.drain(..length);
                    Ok(moved || length > 0)
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(moved),
                Err(error) => Err(error.to_string()),
            };
        }
        if self.input_ended && !self.eof_sent {
            match self.channel.send_eof() {
                Ok(()) => self.eof_sent = true,
                Err(error) if is_again(&error) => return Ok(moved),
                Err(error) => return Err(error.message().to_owned()),
            }
            moved = true;
        }
        Ok(moved)
    }

    fn take_input(&mut self) -> bool {
        self.input.resize(CHUNK, 0);
        let read = self.from.read(&mut self.input);
        self.input.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(length) => {
                self.input_ended = length == 0;
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(_) => {
                self.input_ended = true;
                true
            }
        }
    }

    /// Everything that the server had to say has reached the caller.
    fn finish(&mut self) -> Result<bool, String> {
        let news = !self.output.ended;
        self.output.end();
        self.error.end();
        match self.channel.wait_close() {
            Ok(()) => {
                self.exit = self.is_session.then(|| self.exit_of()).transpose()?;
                self.stage = ChannelStage::Closing;
                return Ok(true);
            }
            Err(error) if is_again(&error) => {}
            Err(error) => return Err(error.message().to_owned()),
        }
        if !self.is_session && self.eof_sent {
            self.stage = ChannelStage::Closing;
            return Ok(true);
        }
        Ok(news)
    }

    /// Returns how the command ended: a signal first, since a killed one reports status 0 as well.
    fn exit_of(&self) -> Result<Exit, String> {
        let signal = self.channel.exit_signal().map_err(|error| error.message().to_owned())?;
        if let Some(name) = signal.exit_signal {
            return Ok(Exit::Signal(name));
        }
        self.channel.exit_status().map(Exit::Code).map_err(|error| error.message().to_owned())
    }

    fn close(&mut self) -> Result<bool, String> {
        match self.channel.close() {
            Ok(()) => {
                self.stage = ChannelStage::Closed;
                Ok(true)
            }
            Err(error) if is_again(&error) => Ok(false),
            Err(error) => Err(error.message().to_owned()),
        }
    }

    /// Tells the caller how it ended, and lets go of the channel.
    pub(super) fn finished(mut self) {
        if let (Some(exit), Some(done)) = (self.exit.take(), self.ends.done.take()) {
            // A caller that has gone does not hear it.
            let _ = done.send(Ok(exit));
        }
    }

    /// Tells the caller that the session is over. The pump is not to be used any more.
    pub(super) fn lost(&mut self, why: &str) {
        self.ends.told(ChannelError::Lost(why.to_owned()));
        self.output.end();
        self.error.end();
    }

    /// Adds what of the caller's ends it waits for.
    pub(super) fn watch<'a>(&'a self, wire: &Wire, polled: &mut Vec<PollFd<'a>>) {
        if self.stage != ChannelStage::Running {
            return;
        }
        if self.input.is_empty() && !self.input_ended && wire.has_room() {
            polled.push(PollFd::new(&self.from, PollFlags::IN));
        }
        for sink in [&self.output, &self.error] {
            if let (Some(to), false) = (&sink.to, sink.is_empty()) {
                polled.push(PollFd::new(to, PollFlags::OUT));
            }
        }
    }
}

/// Returns whether `error` concerns one request only: `LIBSSH2_ERROR_CHANNEL_FAILURE`,
/// `…_CHANNEL_REQUEST_DENIED`, or an argument that cannot be sent (`…_INVAL`).
fn is_refusal(error: &ssh2::Error) -> bool {
    matches!(error.code(), ErrorCode::Session(-21 | -22 | -34))
}
