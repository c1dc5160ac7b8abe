//! Files over a command's standard input and output, since a small server (dropbear) has no SFTP.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use camino::Utf8Path;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::Ssh;
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::host::{Command, StdStream, keep_tail};

/// Writes standard input to `$2`, and makes it `$1` with the mode `$4` if it has `$3` bytes. A
/// connection that drops looks like the end of the input: then the size is wrong.
const PUT: &str = r#"umask 077
trap 'rm -f -- "$2"' EXIT
trap 'exit 1' HUP INT PIPE TERM
cat > "$2" || exit
size=$(stat -c %s -- "$2") || exit
[ "$size" = "$3" ] || { echo "$size of $3 bytes arrived" >&2; exit 1; }
chmod -- "$4" "$2" || exit
sync -- "$2" 2>/dev/null || sync
mv -f -- "$2" "$1""#;

/// Writes the size of `$1`, a newline, and as many bytes of it: it may be growing.
const GET: &str = r#"size=$(stat -L -c %s -- "$1") || exit
echo "$size"
exec head -c "$size" -- "$1""#;

/// The most bytes of the line that tells a file's size: the digits of the largest one, and some spaces.
const HEADER: usize = 32;

/// Sends the local file `from` to `to`. SSH proves each packet, and the size proves that all of them came.
pub(super) async fn put(
    ssh: &Ssh,
    from: &Utf8Path,
    to: &Utf8Path,
    mode: u32,
    events: &EventSink,
) -> Result<()> {
    let file = fs_err::tokio::File::open(from).await?;
    let size = file.metadata().await?.len();
    let part = format!("{to}.{}.part", uuid::Uuid::new_v4().simple());
    let command = Command::new("sh").args(["-c", PUT, "sh", to.as_str(), &part]);
    let command = command.arg(size.to_string()).arg(format!("{mode:o}"));
    let mut errors = Vec::new();
    let mut sending = Sending { file, size, sent: 0, events };
    let process = ssh.start(&command).await?;
    let mut on_output = |_: StdStream, bytes: &[u8]| keep_tail(&mut errors, bytes);
    let exit = process.follow(&command, &mut sending, &mut on_output).await?;
    if !exit.success() {
        let message = format!("{from} could not be written to {to}: {exit}");
        return Err(hinted(Error::failed(message).tail(&errors), &errors));
    }
    if sending.sent != size {
        return Err(Error::failed(format!("{from} changed while it was being sent")));
    }
    Ok(())
}

/// A file on its way out, counted.
struct Sending<'a> {
    file: fs_err::tokio::File,
    size: u64,
    sent: u64,
    events: &'a EventSink,
}

impl AsyncRead for Sending<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.file).poll_read(context, buffer))?;
        self.sent += (buffer.filled().len() - before) as u64;
        self.events.bytes(self.sent, Some(self.size));
        Poll::Ready(Ok(()))
    }
}

/// Fetches the file `from` to the local path `to`, which appears whole or not at all; no more of it is written
/// than the other side has said that there is.
pub(super) async fn get(
    ssh: &Ssh,
    from: &Utf8Path,
    to: &Utf8Path,
    events: &EventSink,
) -> Result<()> {
    let command = Command::new("sh").args(["-c", GET, "sh", from.as_str()]);
    let directory = to.parent().filter(|parent| !parent.as_str().is_empty());
    let part = tempfile::Builder::new()
        .prefix(".nestlab-")
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(directory.unwrap_or(Utf8Path::new(".")))
        .map_err(|cause| unwritable(to, &cause))?;
    let mut receiving = Receiving::new(part.as_file(), events);
    let mut errors = Vec::new();
    let in_vain = CancellationToken::new();
    let process = ssh.start(&command).await?;
    let mut on_output = |stream: StdStream, bytes: &[u8]| match stream {
        StdStream::Out => {
            receiving.take(bytes);
            if receiving.failed.is_some() {
                in_vain.cancel();
            }
        }
        StdStream::Err => keep_tail(&mut errors, bytes),
    };
    let exit = tokio::select! {
        biased;
        () = in_vain.cancelled() => None,
        exit = process.follow(&command, tokio::io::empty(), &mut on_output) => Some(exit?),
    };
    if let Some(exit) = exit.filter(|exit| !exit.success()) {
        return Err(Error::failed(format!("{from} could not be read: {exit}")).tail(&errors));
    }
    receiving.whole(from, to)?;
    let persisted = || -> std::io::Result<()> {
        part.as_file().sync_all()?;
        part.persist(to).map_err(|failed| failed.error)?;
        Ok(())
    };
    persisted().map_err(|cause| unwritable(to, &cause))
}

/// A file on its way in: its size in a line of its own, then its bytes.
struct Receiving<'a> {
    file: &'a std::fs::File,
    header: Vec<u8>,
    size: Option<u64>,
    received: u64,
    failed: Option<Failed>,
    events: &'a EventSink,
}

/// Why a file is received in vain.
enum Failed {
    /// It cannot be written here.
    Here(std::io::Error),
    /// The other side does not do as it should, in words.
    There(&'static str),
}

impl<'a> Receiving<'a> {
    fn new(file: &'a std::fs::File, events: &'a EventSink) -> Self {
        Receiving { file, header: Vec::new(), size: None, received: 0, failed: None, events }
    }

    /// Takes what has arrived; a failure to write it is kept for [`Self::whole`].
    fn take(&mut self, bytes: &[u8]) {
        if self.size.is_some() {
            return self.write(bytes);
        }
        let end = bytes.iter().position(|&b| b == b'\n');
        let (header, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
        if self.header.len() + header.len() <= HEADER {
            self.header.extend_from_slice(header);
            if end.is_none() {
                return;
            }
            let digits = std::str::from_utf8(&self.header);
            self.size = digits.ok().and_then(|digits| digits.trim().parse().ok());
        }
        match self.size {
            Some(_) => self.write(rest),
            None => self.failed = Some(Failed::There("its size was not told")),
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let left = self.size.unwrap_or_default() - self.received;
        if bytes.len() as u64 > left {
            self.failed = Some(Failed::There("more of it came than there was said to be"));
            return;
        }
        // Into the page cache, which is quicker than handing it to another thread.
        self.failed = self.file.write_all(bytes).err().map(Failed::Here);
        self.received += bytes.len() as u64;
        self.events.bytes(self.received, self.size);
    }

    fn whole(self, from: &Utf8Path, to: &Utf8Path) -> Result<()> {
        match self.failed {
            None => {}
            Some(Failed::Here(cause)) => return Err(unwritable(to, &cause)),
            Some(Failed::There(why)) => {
                return Err(Error::failed(format!("{from} could not be read: {why}")));
            }
        }
        if self.size != Some(self.received) {
            let message = format!("{from} shrank while it was read: {} bytes came", self.received);
            return Err(Error::failed(message));
        }
        Ok(())
    }
}

fn unwritable(path: &Utf8Path, cause: &std::io::Error) -> Error {
    Error::new(Kind::Io, format!("cannot write {path}: {cause}"))
}

fn hinted(error: Error, output: &[u8]) -> Error {
    if String::from_utf8_lossy(output).contains("No space left on device") {
        return error.hint("the disk there is full");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what is written of what comes in `pieces`, and the failure.
    fn received(pieces: &[&[u8]]) -> (Vec<u8>, Option<String>) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let events = EventSink::silent();
        let mut receiving = Receiving::new(file.as_file(), &events);
        pieces.iter().for_each(|piece| receiving.take(piece));
        assert!(receiving.header.len() <= HEADER);
        let failed = receiving.whole("/there".into(), "/here".into()).err();
        let written = std::fs::read(file.path()).expect("is read");
        (written, failed.map(|error| error.message().to_owned()))
    }

    #[test]
    fn a_file_comes_in_any_pieces() {
        for pieces in [&[&b"3\nabc"[..]][..], &[b"3", b"\na", b"", b"bc"], &[b"  3\n", b"abc"]] {
            assert_eq!(received(pieces), (b"abc".to_vec(), None), "{pieces:?}");
        }
        assert_eq!(received(&[b"0\n"]), (Vec::new(), None));
    }

    #[test]
    fn no_more_is_written_than_was_said_to_come() {
        let (written, failed) = received(&[b"3\nab", &[b'x'; 4096], b"more"]);
        assert_eq!(written, b"ab");
        assert!(failed.expect("fails").contains("more of it came"));
    }

    #[test]
    fn less_than_was_said_to_come_is_no_file() {
        assert!(received(&[b"4\nabc"]).1.expect("fails").contains("3 bytes came"));
    }

    #[test]
    fn a_size_that_never_ends_costs_one_short_line() {
        for line in [&[b'1'; 4096][..], &[0; 4096], b"many\n", b"\n"] {
            let (written, failed) = received(&[line, line]);
            assert!(written.is_empty() && failed.expect("fails").contains("size was not told"));
        }
    }
}
