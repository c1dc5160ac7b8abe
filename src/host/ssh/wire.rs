//! The bytes between a server and libssh2.
//!
//! libssh2 does not get the socket itself but one end of a socket pair, which the actor fills and
//! empties by hand. That costs a copy and buys three things. libssh2 sees new bytes only between two
//! rounds of calls, so that what one channel's call has read for another channel is never slept on. It
//! never sends a part of a packet, which would forbid every other call until the rest is gone. And
//! what a server says before it is authenticated is counted and looked at first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// How much is received at once; well below what a socket pair holds (net.core.wmem_default, 208 KiB).
const CHUNK: usize = 64 << 10;

/// How much may wait to be sent before channels are told to hold back.
const BACKLOG: usize = 256 << 10;

/// How much may wait to be sent at all. Channels hold back long before; what goes on growing are answers that
/// libssh2 gives by itself, to a server that asks without end and takes nothing.
const MOST_WAITING: usize = 4 << 20;

/// RFC 4253, section 4.2: the identification has at most 255 characters, line end included.
const IDENTIFICATION: usize = 255;

/// What a server may say in lines of its own before its identification.
const PREFACE: usize = 8 << 10;

/// The connection to a server on one side and libssh2 on the other. Nothing here ever blocks.
pub(super) struct Wire {
    outer: OwnedFd,
    inner: UnixStream,
    /// A second handle of libssh2's end, to see what it has left unread.
    theirs: UnixStream,
    inbound: Vec<u8>,
    outbound: Vec<u8>,
    heard: Instant,
    received: u64,
    closed: Option<String>,
}

impl Wire {
    /// Returns a wire to the server behind `outer`, and libssh2's end of it.
    pub(super) fn new(outer: OwnedFd) -> io::Result<(Self, UnixStream)> {
        rustix::io::ioctl_fionbio(&outer, true)?;
        let (inner, theirs) = UnixStream::pair()?;
        inner.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let wire = Wire {
            outer,
            inner,
            theirs: theirs.try_clone()?,
            inbound: Vec::new(),
            outbound: Vec::new(),
            heard: Instant::now(),
            received: 0,
            closed: None,
        };
        Ok((wire, theirs))
    }

    /// Receives what has arrived, if the last of it has been passed on, and passes on what fits.
    pub(super) fn receive(&mut self) {
        if self.inbound.is_empty() {
            self.listen();
        }
        self.feed();
    }

    /// Receives a chunk without passing it on.
    fn listen(&mut self) {
        if self.closed.is_some() {
            return;
        }
        let old = self.inbound.len();
        self.inbound.resize(old + CHUNK, 0);
        let received = rustix::net::recv(&self.outer, &mut self.inbound[old..], RecvFlags::empty());
        let received = received.map(|(_, length)| length);
        self.inbound.truncate(old + *received.as_ref().unwrap_or(&0));
        match received {
            Ok(0) => self.closed = Some("the server closed the connection".to_owned()),
            Ok(length) => {
                self.heard = Instant::now();
                self.received += length as u64;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => self.closed = Some(error.to_string()),
        }
    }

    /// Passes on to libssh2 what has been received.
    fn feed(&mut self) {
        while !self.inbound.is_empty() {
            match rustix::net::send(&self.inner, &self.inbound, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.inbound.drain(..sent)),
                Err(_) => return,
            }
        }
    }

    /// Receives the server's identification and lets libssh2 have it. Returns whether it is complete.
    ///
    /// # Errors
    /// What the server said instead.
    pub(super) fn identify(&mut self) -> Result<bool, String> {
        self.listen();
        let Some(found) = identification(&self.inbound)? else { return Ok(false) };
        self.inbound.drain(..found.start);
        self.feed();
        Ok(true)
    }

    /// Takes over what libssh2 has sent; called after every call into it, so that its end is never full.
    pub(super) fn collect(&mut self) {
        loop {
            let old = self.outbound.len();
            self.outbound.resize(old + CHUNK, 0);
            let taken =
                rustix::net::recv(&self.inner, &mut self.outbound[old..], RecvFlags::empty());
            let length = taken.map_or(0, |(_, length)| length);
            self.outbound.truncate(old + length);
            if self.outbound.len() > MOST_WAITING {
                self.outbound = Vec::new();
                self.closed = Some("the server takes nothing of what it asks for".to_owned());
            }
            if length < CHUNK {
                return;
            }
        }
    }

    /// Sends to the server what it takes.
    pub(super) fn flush(&mut self) {
        while !self.outbound.is_empty() && self.closed.is_none() {
            match rustix::net::send(&self.outer, &self.outbound, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.outbound.drain(..sent)),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(error) => self.closed = Some(error.to_string()),
            }
        }
    }

    /// Returns how many bytes libssh2 has not read yet.
    pub(super) fn unread(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.theirs).unwrap_or(0)
    }

    /// Returns whether channels may send more.
    pub(super) fn has_room(&self) -> bool {
        self.outbound.len() < BACKLOG
    }

    /// Returns whether everything received has gone to libssh2.
    pub(super) fn passed_on(&self) -> bool {
        self.inbound.is_empty()
    }

    /// Returns whether something waits to be sent.
    pub(super) fn is_sending(&self) -> bool {
        !self.outbound.is_empty()
    }

    /// Returns why the connection is over, if it is.
    pub(super) fn closed(&self) -> Option<&str> {
        self.closed.as_deref()
    }

    /// Returns when the server was heard last.
    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    /// Returns how many bytes the server has sent.
    pub(super) fn received(&self) -> u64 {
        self.received
    }
}

impl AsFd for Wire {
    /// The socket to the server, for `poll`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outer.as_fd()
    }
}

/// A server's identification in what it has said so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identification {
    /// Where it begins; a server may say lines of its own before it.
    start: usize,
    /// The line, such as `SSH-2.0-OpenSSH_9.2`.
    pub(super) line: String,
}

/// Returns the identification in `said`; `None` as long as it is not complete.
///
/// # Errors
/// What the server said instead.
pub(super) fn identification(said: &[u8]) -> Result<Option<Identification>, String> {
    let mut start = 0;
    while let Some(length) = said[start..].iter().position(|&b| b == b'\n') {
        let line = &said[start..start + length];
        if line.starts_with(b"SSH-") {
            if length >= IDENTIFICATION {
                return Err(format!("its identification has {length} bytes: {}", printable(line)));
            }
            return Ok(Some(Identification { start, line: printable(line) }));
        }
        start += length + 1;
    }
    let endless = said[start..].starts_with(b"SSH-") && said.len() - start > IDENTIFICATION;
    if endless || said.len() > PREFACE {
        return Err(format!("it does not speak SSH; it says: {}", printable(said)));
    }
    Ok(None)
}

/// Returns the beginning of what a server said, fit for a message.
fn printable(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(80)];
    let text = crate::event::printable(String::from_utf8_lossy(start).trim_end());
    let ellipsis = if start.len() < bytes.len() { "…" } else { "" };
    format!("{}{ellipsis}", text.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn wire() -> (Wire, UnixStream, UnixStream) {
        let (server, outer) = UnixStream::pair().unwrap();
        let (wire, libssh2) = Wire::new(outer.into()).unwrap();
        (wire, server, libssh2)
    }

    #[test]
    fn lines_before_the_identification_are_left_out() {
        let (mut wire, mut server, mut libssh2) = wire();
        server.write_all(b"welcome\r\nto this\r\nSSH-2.0-Ex").unwrap();
        assert_eq!(wire.identify(), Ok(false));
        server.write_all(b"ample\r\nand more").unwrap();
        assert_eq!(wire.identify(), Ok(true));
        let mut seen = [0; 100];
        let length = libssh2.read(&mut seen).unwrap();
        assert_eq!(&seen[..length], b"SSH-2.0-Example\r\nand more");
    }

    #[test]
    fn what_does_not_speak_ssh_is_quoted_without_its_escape_sequences() {
        let mut said = b"\x1b]0;x\x07HTTP/1.1 400 Bad Request\r\n".to_vec();
        assert_eq!(identification(&said), Ok(None));
        said.resize(PREFACE + 1, b'x');
        let error = identification(&said).unwrap_err();
        assert!(error.contains("HTTP/1.1 400") && !error.contains('\x1b'), "{error}");
    }

    #[test]
    fn an_endless_identification_is_refused() {
        let said = [b"SSH-2.0-".as_slice(), &[b'x'; 300]].concat();
        assert!(identification(&said).is_err());
        assert!(identification(&[said.as_slice(), b"\n"].concat()).is_err());
    }

    #[test]
    fn a_server_that_takes_no_answer_is_left() {
        let (mut wire, _server, mut libssh2) = wire();
        let mut sent = 0;
        while wire.closed().is_none() {
            libssh2.write_all(&[0; 16 << 10]).unwrap();
            wire.collect();
            wire.flush();
            sent += 16 << 10;
            assert!(wire.outbound.len() <= MOST_WAITING && sent <= 2 * MOST_WAITING);
        }
        assert!(wire.closed().unwrap().contains("takes nothing"));
    }

    #[test]
    fn bytes_go_both_ways_and_the_end_is_seen() {
        let (mut wire, mut server, mut libssh2) = wire();
        server.write_all(b"in").unwrap();
        wire.receive();
        assert_eq!((wire.unread(), wire.received()), (2, 2));
        libssh2.write_all(b"out").unwrap();
        wire.collect();
        assert!(wire.is_sending());
        wire.flush();
        let mut out = [0; 3];
        server.read_exact(&mut out).unwrap();
        assert_eq!(&out, b"out");
        drop(server);
        wire.receive();
        assert!(wire.closed().is_some());
    }
}
