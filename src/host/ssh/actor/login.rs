//! From an open connection to a session: who the server is, and who we are.

use std::sync::mpsc::TryRecvError;

use ssh2::{MethodType, Session};

use super::{ANSWER, Actor, is};
use crate::error::{Error, Kind, Result};
use crate::host::TimeoutScale;
use crate::host::ssh::HostKeyPolicy;
use crate::host::ssh::channel::is_again;
use crate::host::ssh::key::Credential;

/// What a server may send before it has authenticated us; a few KiB are usual.
const BEFORE_AUTHENTICATION: u64 = 1 << 20;

/// Everything a session is established with.
pub(crate) struct LoginRequest {
    pub(crate) user: String,
    pub(crate) credential: Credential,
    pub(crate) policy: HostKeyPolicy,
    /// The name and port by which the machine is known.
    pub(crate) known_as: (String, u16),
    /// Whether the server may show any kind of host key; it is compared all the same.
    pub(crate) any_host_key: bool,
    pub(crate) patience: TimeoutScale,
}

/// A failed attempt at a session.
pub(crate) struct NotConnected {
    pub(crate) error: Error,
    /// Whether it is worth another try.
    pub(crate) again: Again,
}

/// Whether, and how, a failed attempt is worth another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// It would fail again.
    No,
    /// It may go better in a moment.
    Later,
    /// The same, but nobody listens there: the server is being started anew, or what forwards to a guest has
    /// ended together with its VM. However slow the guest, that is not what takes the time.
    Soon,
    /// With whatever host key the server has: nothing was agreed on, perhaps for want of a key of the
    /// accepted kinds, and its key is needed to say so.
    WithAnyHostKey,
}

impl NotConnected {
    /// Returns a failure that may be gone in a moment.
    pub(crate) fn for_now(message: impl Into<String>) -> Self {
        NotConnected::unreachable(Error::new(Kind::Unreachable, message))
    }

    /// The same, of an error that says whether anybody listens.
    pub(crate) fn unreachable(error: Error) -> Self {
        let again = if error.is_refusal() { Again::Soon } else { Again::Later };
        NotConnected { error, again }
    }

    /// Returns a failure that would come again.
    pub(crate) fn for_good(error: Error) -> Self {
        NotConnected { error, again: Again::No }
    }
}

type Connected<T> = std::result::Result<T, NotConnected>;

impl Actor {
    /// Identifies, negotiates, compares the host key, and logs in.
    pub(super) fn establish(&mut self, login: &LoginRequest) -> Connected<()> {
        let (name, port) = &login.known_as;
        let accepted = login.policy.accepted(name, *port, &self.session);
        let accepted = accepted.map_err(NotConnected::for_good)?;
        self.identify()?;
        self.negotiate(accepted.methods().filter(|_| !login.any_host_key))?;
        let (key, _) = self
            .session
            .host_key()
            .ok_or_else(|| NotConnected::for_now("the server showed no host key".to_owned()))?;
        accepted.check(key).map_err(NotConnected::for_good)?;
        self.log_in(login)
    }

    fn identify(&mut self) -> Connected<()> {
        loop {
            match self.wire.identify() {
                Ok(true) => return Ok(()),
                Ok(false) => self.wait_for_answer("identify itself")?,
                Err(said) => {
                    let error = Error::new(Kind::Unreachable, format!("no SSH server: {said}"))
                        .hint("another program listens at this address");
                    return Err(NotConnected::for_good(error));
                }
            }
        }
    }

    fn negotiate(&mut self, methods: Option<String>) -> Connected<()> {
        if let Some(methods) = &methods {
            self.session.method_pref(MethodType::HostKey, methods).map_err(|cause| {
                let message = format!("libssh2 knows none of the host-key methods {methods}");
                NotConnected::for_good(Error::internal(message).with_source(cause))
            })?;
        }
        self.answered("negotiate", |session| session.handshake()).map_err(|failed| {
            // LIBSSH2_ERROR_KEX_FAILURE
            let nothing_in_common = matches!(&failed, Broken::Refused(error) if is(error, -5));
            let mut failed = failed.into_error("the key exchange failed");
            if nothing_in_common && methods.is_some() {
                failed.again = Again::WithAnyHostKey;
            }
            failed
        })
    }

    fn log_in(&mut self, login: &LoginRequest) -> Connected<()> {
        let user = login.user.as_str();
        let refused = |actor: &Actor, failed: Broken| match failed {
            // LIBSSH2_ERROR_AUTHENTICATION_FAILED and …_PUBLICKEY_UNVERIFIED.
            Broken::Refused(error)
                if (is(&error, -18) || is(&error, -19)) && actor.wire.closed().is_none() =>
            {
                let message = format!("the server does not let {user:?} in with this key");
                let error = Error::new(Kind::Unreachable, message)
                    .with_source(error)
                    .hint("is the public key in the user's ~/.ssh/authorized_keys there?");
                NotConnected::for_good(error)
            }
            failed => failed.into_error("logging in failed"),
        };
        match &login.credential {
            Credential::Private(key) => self
                .answered("log in", |session| session.userauth_pubkey_memory(user, None, key, None))
                .map_err(|failed| refused(self, failed)),
            Credential::Agent => self.log_in_with_agent(user),
        }
    }

    fn log_in_with_agent(&mut self, user: &str) -> Connected<()> {
        let no_agent = |cause: ssh2::Error| {
            let error = Error::new(Kind::Unreachable, "no ssh-agent answers")
                .with_source(cause)
                .hint("start one, `ssh-add` your key, and see that SSH_AUTH_SOCK is set");
            NotConnected::for_good(error)
        };
        let mut agent = self.session.agent().map_err(no_agent)?;
        agent.connect().map_err(no_agent)?;
        agent.list_identities().map_err(no_agent)?;
        for identity in agent.identities().map_err(no_agent)? {
            match self.answered("log in", |_| agent.userauth(user, &identity)) {
                Ok(()) => return Ok(()),
                Err(Broken::Refused(_)) if self.wire.closed().is_none() => {}
                Err(failed) => return Err(failed.into_error("logging in failed")),
            }
        }
        let message = format!("the server does not let {user:?} in with any key of the ssh-agent");
        Err(NotConnected::for_good(Error::new(Kind::Unreachable, message)))
    }

    /// Repeats `call` until the server has answered it.
    fn answered(
        &mut self,
        what: &str,
        mut call: impl FnMut(&mut Session) -> Result<(), ssh2::Error>,
    ) -> Result<(), Broken> {
        loop {
            let called = call(&mut self.session);
            self.wire.collect();
            self.wire.flush();
            match called {
                Ok(()) => return Ok(()),
                Err(error) if is_again(&error) => {
                    self.wait_for_answer(what).map_err(Broken::Lost)?;
                    self.wire.receive();
                }
                Err(error) => return Err(Broken::Refused(error)),
            }
        }
    }

    /// Sleeps until the server says something.
    fn wait_for_answer(&mut self, what: &str) -> Connected<()> {
        let limit = self.patience.limit(ANSWER);
        if let Some(why) = self.wire.closed() {
            let message = format!("the server did not {what}: {why}");
            return Err(NotConnected::for_now(message));
        }
        if self.wire.received() > BEFORE_AUTHENTICATION {
            let error =
                Error::new(Kind::Unreachable, format!("the server floods instead to {what}"));
            return Err(NotConnected::for_good(error));
        }
        let silent = self.wire.heard().elapsed();
        if silent >= limit {
            let message = format!(
                "the server did not {what}: nothing heard for {:.0} s",
                limit.as_secs_f64()
            );
            return Err(NotConnected::for_now(message));
        }
        self.sleep(limit - silent);
        match self.inbox.try_recv() {
            Err(TryRecvError::Empty) => Ok(()),
            _ => Err(NotConnected::for_now("nobody waits for it any more".to_owned())),
        }
    }
}

/// Why the server's answer did not come or was no.
enum Broken {
    Lost(NotConnected),
    Refused(ssh2::Error),
}

impl Broken {
    fn into_error(self, what: &str) -> NotConnected {
        match self {
            Broken::Lost(lost) => lost,
            Broken::Refused(cause) => {
                // LIBSSH2_ERROR_SOCKET_DISCONNECT: the server said that it hangs up, as one that is
                // overloaded or going down does.
                let again = if is(&cause, -13) { Again::Later } else { Again::No };
                let message = format!("{what}: {}", cause.message());
                NotConnected { error: Error::new(Kind::Unreachable, message), again }
            }
        }
    }
}
