//! The one thread that owns a session: it alone calls libssh2, never blocks in it, and sleeps in `poll`
//! until the server, a caller or a limit wants something.

mod login;

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use ssh2::{Channel, Session};
use tokio::sync::oneshot;

use super::channel::{ChannelError, ChannelRequest, Ends, Pump, is_again};
use super::wire::Wire;
pub(super) use login::{Again, LoginRequest, NotConnected};

use crate::error::{Error, Result};
use crate::host::{StreamAddress, TimeoutScale};

/// How long the server may be silent while it identifies itself, negotiates, lets us in, or
/// opens a channel. On bare metal each takes well under a second.
const ANSWER: Duration = Duration::from_secs(15);

/// How long nothing may be heard before the server is asked whether it is still there.
const IDLE: Duration = Duration::from_secs(5);

/// How long a server that was asked may be silent before it counts as dead.
const DEAD: Duration = Duration::from_secs(30);

/// Wakes the actor from its `poll`.
#[derive(Debug, Clone)]
pub(super) struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(super) fn new() -> std::io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Waker(Arc::new(fd)))
    }

    pub(super) fn wake(&self) {
        // Fails only when the counter is full, and then the actor wakes anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Returns what becomes readable when it was woken, for another `poll`.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn clear(&self) {
        // Nothing to read means that nobody called.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// What a channel is to lead to.
#[derive(Debug, Clone)]
pub(super) enum ChannelTarget {
    /// A session on the server that asks for these.
    Session(Vec<ChannelRequest>),
    /// A byte stream that the server opens.
    Stream(StreamAddress),
    /// Nothing: a kind of channel that no server knows. The refusal shows that it is alive, and waiting
    /// for it makes libssh2 read what an idle session would leave lying.
    Ping,
}

/// What a caller asks of the actor.
pub(super) enum Request {
    /// Opens a channel.
    Open(ChannelTarget, Ends),
    /// Ends the session.
    Close,
}

/// Runs a session over `outer` until it ends. `ready` is told once it is established, or why not.
///
/// `over` is set as soon as the session takes no more requests.
pub(super) fn run(
    outer: OwnedFd,
    waker: Waker,
    inbox: Receiver<Request>,
    login: LoginRequest,
    ready: oneshot::Sender<Result<(), NotConnected>>,
    over: &AtomicBool,
) {
    let mut actor = match Actor::new(outer, waker, inbox, login.patience) {
        Ok(actor) => actor,
        Err(error) => return drop(ready.send(Err(NotConnected::for_good(error)))),
    };
    let established = actor.establish(&login);
    let failed = established.is_err();
    // A caller that has gone closes the session through its inbox.
    let _ = ready.send(established);
    if failed {
        return;
    }
    let why = actor.serve(over);
    over.store(true, Ordering::Relaxed);
    actor.end(&why);
}

struct Opening {
    goal: ChannelTarget,
    /// `None` for a ping.
    ends: Option<Ends>,
    since: Instant,
}

struct Actor {
    wire: Wire,
    session: Session,
    waker: Waker,
    inbox: Receiver<Request>,
    patience: TimeoutScale,
    pumps: Vec<Pump>,
    /// Channels whose callers have been told that the session is over. They are let go after the wire:
    /// before, libssh2 would wait for the server to agree, and leak what it cannot free at once.
    lost: Vec<Pump>,
    /// Channels to be opened; libssh2 opens one at a time.
    waiting: VecDeque<(ChannelTarget, Ends)>,
    opening: Option<Opening>,
    /// The server has refused one more session channel; it waits for one of the open ones to close.
    is_full: bool,
    asked: Instant,
}

impl Actor {
    fn new(
        outer: OwnedFd,
        waker: Waker,
        inbox: Receiver<Request>,
        patience: TimeoutScale,
    ) -> Result<Self> {
        let (wire, theirs) = Wire::new(outer)?;
        let mut session = Session::new()
            .map_err(|cause| Error::internal("libssh2 cannot be used").with_source(cause))?;
        session.set_blocking(false);
        session.set_tcp_stream(theirs);
        Ok(Actor {
            wire,
            session,
            waker,
            inbox,
            patience,
            pumps: Vec::new(),
            lost: Vec::new(),
            waiting: VecDeque::new(),
            opening: None,
            is_full: false,
            asked: Instant::now(),
        })
    }

    /// Serves callers until the session is over. Returns why it is.
    fn serve(&mut self, over: &AtomicBool) -> String {
        loop {
            if let Err(why) = self.turn() {
                return why;
            }
            if let Some(why) = self.wire.closed().map(str::to_owned) {
                over.store(true, Ordering::Relaxed);
                // What has been received is still passed on to callers that read it slowly.
                self.give_up(&why, Pump::needs_server);
                if self.pumps.is_empty() {
                    return why;
                }
            } else if let Err(why) = self.look_after_server() {
                return why;
            }
            self.sleep(self.next_look());
        }
    }

    /// Tells the callers of all channels that `which` chooses, and of those not opened yet, why they are lost.
    fn give_up(&mut self, why: &str, which: impl Fn(&Pump) -> bool) {
        let (lost, rest) = self.pumps.drain(..).partition(which);
        self.pumps = rest;
        for mut pump in Vec::into_iter(lost) {
            pump.lost(why);
            self.lost.push(pump);
        }
        let opening = self.opening.take().and_then(|opening| opening.ends);
        let waiting = self.waiting.drain(..).map(|(_, ends)| ends);
        let unread = std::iter::from_fn(|| self.inbox.try_recv().ok()).filter_map(|request| {
            if let Request::Open(_, ends) = request { Some(ends) } else { None }
        });
        for ends in opening.into_iter().chain(waiting).chain(unread) {
            ends.fail(ChannelError::NotOpened(why.to_owned()));
        }
    }

    /// Does everything that can be done without waiting.
    fn turn(&mut self) -> Result<(), String> {
        self.take_requests()?;
        self.wire.receive();
        loop {
            let unread = self.wire.unread();
            let mut moved = self.open()?;
            for pump in &mut self.pumps {
                moved |= pump.step(&mut self.wire)?;
            }
            moved |= self.finish_closed();
            self.wire.flush();
            // One channel's call may have read for another: go round until nothing is left to read.
            if !moved && self.wire.unread() == unread {
                return Ok(());
            }
        }
    }

    fn take_requests(&mut self) -> Result<(), String> {
        loop {
            match self.inbox.try_recv() {
                Ok(Request::Open(goal, ends)) => self.waiting.push_back((goal, ends)),
                Err(TryRecvError::Empty) => return Ok(()),
                Ok(Request::Close) | Err(TryRecvError::Disconnected) => {
                    return Err("the session was closed".to_owned());
                }
            }
        }
    }

    /// Goes on opening channels. Returns whether one was opened or refused.
    fn open(&mut self) -> Result<bool, String> {
        if self.opening.is_none() {
            let next = self
                .waiting
                .iter()
                .position(|(goal, _)| !(self.is_full && matches!(goal, ChannelTarget::Session(_))));
            let Some((goal, ends)) = next.and_then(|next| self.waiting.remove(next)) else {
                return Ok(false);
            };
            self.opening = Some(Opening { goal, ends: Some(ends), since: Instant::now() });
        }
        let opening = self.opening.as_ref().expect("set just above, unless it was set already");
        let opened = open_channel(&self.session, &opening.goal);
        self.wire.collect();
        match opened {
            Err(error) if is_again(&error) => return Ok(false),
            // LIBSSH2_ERROR_CHANNEL_FAILURE and …_CHANNEL_REQUEST_DENIED: this channel only.
            Err(error) if is(&error, -21) || is(&error, -22) => self.refused(&error),
            Err(error) => return Err(error.message().to_owned()),
            Ok(channel) => self.opened(channel)?,
        }
        Ok(true)
    }

    fn opened(&mut self, channel: Channel) -> Result<(), String> {
        let Some(Opening { goal, ends: Some(ends), .. }) = self.opening.take() else {
            return Err("the server opened a channel of a kind that does not exist".to_owned());
        };
        let asks = match goal {
            ChannelTarget::Session(asks) => asks,
            ChannelTarget::Stream(_) | ChannelTarget::Ping => Vec::new(),
        };
        self.pumps.push(Pump::new(channel, asks, ends).map_err(|error| error.to_string())?);
        Ok(())
    }

    fn refused(&mut self, error: &ssh2::Error) {
        let Some(Opening { goal, ends: Some(ends), .. }) = self.opening.take() else {
            return;
        };
        let others = self.pumps.iter().any(Pump::is_session);
        if matches!(goal, ChannelTarget::Session(_)) && others {
            // OpenSSH allows MaxSessions (10) at once and says only that it failed.
            self.is_full = true;
            self.waiting.push_front((goal, ends));
        } else {
            ends.fail(ChannelError::Refused(error.message().to_owned()));
        }
    }

    fn finish_closed(&mut self) -> bool {
        let before = self.pumps.len();
        let (closed, open) = self.pumps.drain(..).partition(Pump::is_closed);
        self.pumps = open;
        for pump in Vec::into_iter(closed) {
            self.is_full &= !Pump::is_session(&pump);
            pump.finished();
        }
        self.pumps.len() < before
    }

    /// Asks a server that has been silent for a while whether it is alive, and gives up on a dead one.
    fn look_after_server(&mut self) -> Result<(), String> {
        let silent = self.wire.heard().elapsed();
        if silent >= self.patience.limit(DEAD) {
            return Err(format!("nothing heard from the server for {:.0} s", silent.as_secs_f64()));
        }
        if let Some(opening) = &self.opening {
            let limit = self.patience.limit(ANSWER).max(self.patience.limit(DEAD));
            if opening.since.elapsed() >= limit {
                return Err(format!("no channel was opened for {:.0} s", limit.as_secs_f64()));
            }
            return Ok(());
        }
        let nobody_reads = self.pumps.is_empty() && self.wire.unread() > 0;
        if nobody_reads || silent.min(self.asked.elapsed()) >= IDLE {
            self.asked = Instant::now();
            self.opening =
                Some(Opening { goal: ChannelTarget::Ping, ends: None, since: self.asked });
            self.turn()?;
        }
        Ok(())
    }

    /// Returns when [`Self::look_after_server`] has something to do if nothing is heard.
    fn next_look(&self) -> Duration {
        let silent = self.wire.heard().elapsed();
        let dead = self.patience.limit(DEAD).saturating_sub(silent);
        let idle = IDLE.saturating_sub(silent.min(self.asked.elapsed()));
        if self.opening.is_some() { dead.min(IDLE) } else { dead.min(idle) }
    }

    /// Sleeps until the server or a caller wants something, or `limit` has passed.
    fn sleep(&mut self, limit: Duration) {
        let mut outer = PollFlags::empty();
        if self.wire.passed_on() && self.wire.closed().is_none() {
            outer |= PollFlags::IN;
        }
        if self.wire.is_sending() && self.wire.closed().is_none() {
            outer |= PollFlags::OUT;
        }
        let mut polled = vec![PollFd::new(&self.waker.0, PollFlags::IN)];
        if !outer.is_empty() {
            polled.push(PollFd::from_borrowed_fd(self.wire.as_fd(), outer));
        }
        for pump in &self.pumps {
            pump.watch(&self.wire, &mut polled);
        }
        // A limit too long for the system is cut short, and looked at again when that has passed.
        let limit = Timespec::try_from(limit.min(Duration::from_secs(3600)))
            .expect("an hour fits into a timespec");
        // An interrupted or failed poll leads to one more look at everything.
        let _ = rustix::event::poll(&mut polled, Some(&limit));
        self.waker.clear();
    }

    /// Tells everyone that it is over, and the server, if it still listens.
    fn end(&mut self, why: &str) {
        self.give_up(why, |_| true);
        // A courtesy; the server notices the closed connection anyway.
        let _ = self.session.disconnect(None, "done", None);
        self.wire.collect();
        self.wire.flush();
    }
}

/// Returns whether `error` is libssh2's error `number`.
fn is(error: &ssh2::Error, number: i32) -> bool {
    error.code() == ssh2::ErrorCode::Session(number)
}

fn open_channel(session: &Session, goal: &ChannelTarget) -> Result<Channel, ssh2::Error> {
    match goal {
        ChannelTarget::Session(_) => session.channel_session(),
        ChannelTarget::Stream(StreamAddress::Tcp(host, port)) => {
            session.channel_direct_tcpip(host, *port, None)
        }
        ChannelTarget::Stream(StreamAddress::Unix(path)) => {
            session.channel_direct_streamlocal(path.as_str(), None)
        }
        ChannelTarget::Ping => session.channel_open("ping@nestlab", 1 << 15, 1 << 15, None),
    }
}
