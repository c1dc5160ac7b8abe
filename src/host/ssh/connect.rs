//! From a target to a session: the way there, and trying again.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use super::actor::{Again, LoginRequest, NotConnected};
use super::connection::Connection;
use super::{SshTarget, Via, wire};
use crate::error::{Error, Kind, Result};
use crate::host::{Stream, TimeoutScale};

/// How long an address may take to accept a connection, on bare metal.
const ACCEPT: Duration = Duration::from_secs(10);

/// How long a session that cannot be established is tried again, on bare metal: a server that is being
/// restarted is back within a second or two.
const TRY_AGAIN: Duration = Duration::from_secs(8);

/// The pause after the first failed attempt; doubled after each, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Establishes a session, trying again with growing pauses as long as patience lasts and it may help.
pub(super) async fn connect(target: &SshTarget) -> Result<Arc<Connection>> {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    let mut any_host_key = false;
    loop {
        let failed = match attempt(target, any_host_key).await {
            Ok(connection) => return Ok(connection),
            Err(failed) => failed,
        };
        let waited = started.elapsed() + pause;
        match failed.again {
            Again::WithAnyHostKey => any_host_key = true,
            Again::Soon | Again::Later if waited <= limit(target.patience, failed.again) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            _ => return Err(failed.error.context(format!("no SSH session with {}", target.name))),
        }
    }
}

/// Returns how long to try again after such a failure of a machine this slow.
fn limit(patience: TimeoutScale, again: Again) -> Duration {
    if again == Again::Soon { TRY_AGAIN } else { patience.limit(TRY_AGAIN) }
}

async fn attempt(target: &SshTarget, any_host_key: bool) -> Result<Arc<Connection>, NotConnected> {
    let login = LoginRequest {
        user: target.user.clone(),
        credential: target.key.load().map_err(NotConnected::for_good)?,
        policy: target.host_key.clone(),
        known_as: match &target.via {
            Via::Tcp { host, port } => (host.clone(), *port),
            // The same 127.0.0.1 and port mean another machine at every level.
            Via::Through(..) => (target.name.clone(), 22),
        },
        any_host_key,
        patience: target.patience,
    };
    let outer = socket(way(target).await?).map_err(local)?;
    Connection::establish(outer, login).await
}

/// Waits for the server's identification and hangs up.
pub(super) async fn probe(target: &SshTarget) -> Result<String> {
    let mut stream: Box<dyn Stream> = match way(target).await.map_err(|failed| failed.error)? {
        Way::Tcp(stream) => Box::new(stream),
        Way::Through(stream) => stream,
    };
    let limit = target.patience.limit(ACCEPT);
    let mut said = Vec::new();
    let unreachable =
        |why: String| Err(Error::new(Kind::Unreachable, format!("no SSH server answers: {why}")));
    loop {
        match wire::identification(&said) {
            Ok(Some(found)) => return Ok(found.line),
            Ok(None) => {}
            Err(instead) => return unreachable(instead),
        }
        match tokio::time::timeout(limit, stream.read_buf(&mut said)).await {
            Ok(Ok(0)) => return unreachable("the connection was closed".to_owned()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return unreachable(error.to_string()),
            Err(_) => {
                return unreachable(format!("nothing heard for {:.0} s", limit.as_secs_f64()));
            }
        }
    }
}

/// A byte stream to the server.
enum Way {
    Tcp(TcpStream),
    Through(Box<dyn Stream>),
}

async fn way(target: &SshTarget) -> Result<Way, NotConnected> {
    match &target.via {
        Via::Tcp { host, port } => {
            tcp(host, *port, target.patience.limit(ACCEPT)).await.map(Way::Tcp)
        }
        Via::Through(host, address) => {
            host.open_stream(address).await.map(Way::Through).map_err(|error| match error.kind() {
                Kind::Unreachable => NotConnected::unreachable(error),
                _ => NotConnected::for_good(error),
            })
        }
    }
}

async fn tcp(host: &str, port: u16, limit: Duration) -> Result<TcpStream, NotConnected> {
    let failed =
        |why: String| format!("cannot connect to {}:{port}: {why}", crate::event::printable(host));
    match tokio::time::timeout(limit, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => {
            stream.set_nodelay(true).map_err(local)?;
            Ok(stream)
        }
        Ok(Err(cause)) => {
            let error = Error::new(Kind::Unreachable, failed(cause.to_string())).with_source(cause);
            Err(NotConnected::unreachable(error))
        }
        Err(_) => {
            let silence = format!("no answer for {:.0} s", limit.as_secs_f64());
            Err(NotConnected::for_now(failed(silence)))
        }
    }
}

/// Returns a socket with the server at its other end; what is not a socket itself is bridged by a pair.
fn socket(way: Way) -> std::io::Result<OwnedFd> {
    let far = match way {
        Way::Tcp(stream) => return Ok(stream.into_std()?.into()),
        Way::Through(stream) => stream,
    };
    let (near, outer) = std::os::unix::net::UnixStream::pair()?;
    near.set_nonblocking(true)?;
    let near = UnixStream::from_std(near)?;
    tokio::spawn(async move {
        let (mut from_near, mut to_near) = tokio::io::split(near);
        let (mut from_far, mut to_far) = tokio::io::split(far);
        // SSH has no half-open connections: when one side ends, so does the other. Why it ended, both
        // ends know better.
        tokio::select! {
            _ = tokio::io::copy(&mut from_near, &mut to_far) => {}
            _ = tokio::io::copy(&mut from_far, &mut to_near) => {}
        }
    });
    Ok(outer.into())
}

fn local(error: std::io::Error) -> NotConnected {
    NotConnected::for_good(error.into())
}

#[cfg(test)]
mod tests {
    use super::super::{HostKeyPolicy, SshKey};
    use super::*;
    use crate::host::{HostRef, Local, StreamAddress};

    /// QEMU, which forwards to an emulated guest, is gone: that the guest was slow is no reason to wait.
    #[tokio::test]
    async fn where_nobody_listens_slowness_is_no_reason_to_wait() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let slow = TimeoutScale::new(50.0);
        let target = |via: Via| SshTarget {
            name: "l1".to_owned(),
            user: "root".to_owned(),
            key: SshKey::Agent,
            host_key: HostKeyPolicy::Pinned(Vec::new()),
            via,
            patience: slow,
        };
        let here: HostRef = Arc::new(Local::new());
        let address = StreamAddress::Tcp("127.0.0.1".to_owned(), port);
        for via in [Via::Tcp { host: "127.0.0.1".to_owned(), port }, Via::Through(here, address)] {
            let Err(failed) = way(&target(via)).await else { panic!("nobody listens") };
            assert_eq!(failed.again, Again::Soon);
            assert!(failed.error.is_refusal(), "{}", failed.error);
            assert_eq!(limit(slow, failed.again), limit(TimeoutScale::NATIVE, Again::Later));
        }
        assert_eq!(limit(slow, Again::Later), 50 * limit(TimeoutScale::NATIVE, Again::Later));
    }
}
