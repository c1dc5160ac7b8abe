//! Files over a command's standard input and output, since a small server (dropbear) has no SFTP.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use camino::Utf8Path;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, ReadBuf};

use super::Ssh;
use crate::error::{Error, Kind, Result};
use crate::event::Feed;
use crate::host::{Command, StdStream};

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

/// What has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    /// Its size.
    pub(super) bytes: u64,
    /// Its SHA-256, of the bytes that were sent.
    pub(super) sha256: [u8; 32],
}

/// Sends the local file `from` to `to`.
pub(super) async fn put(
    ssh: &Ssh,
    from: &Utf8Path,
    to: &Utf8Path,
    mode: u32,
    feed: &Feed,
) -> Result<Sent> {
    let file = fs_err::tokio::File::open(from).await?;
    let size = file.metadata().await?.len();
    let part = format!("{to}.{}.part", uuid::Uuid::new_v4().simple());
    let command = Command::new("sh").args(["-c", PUT, "sh", to.as_str(), &part]);
    let command = command.arg(size.to_string()).arg(format!("{mode:o}"));
    let mut errors = Vec::new();
    let mut sending = Sending { file, size, sent: 0, digest: Sha256::new(), feed };
    let process = ssh.start(&command).await?;
    let mut on_output = |_: StdStream, bytes: &[u8]| errors.extend_from_slice(bytes);
    let exit = process.follow(&command, &mut sending, &mut on_output).await?;
    if !exit.success() {
        let message = format!("{from} could not be written to {to}: {exit}");
        return Err(hinted(Error::failed(message).tail(&errors), &errors));
    }
    if sending.sent != size {
        return Err(Error::failed(format!("{from} changed while it was being sent")));
    }
    Ok(Sent { bytes: size, sha256: sending.digest.finalize().into() })
}

/// A file on its way out, counted and hashed.
struct Sending<'a> {
    file: fs_err::tokio::File,
    size: u64,
    sent: u64,
    digest: Sha256,
    feed: &'a Feed,
}

impl AsyncRead for Sending<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.file).poll_read(context, buffer))?;
        let read = &buffer.filled()[before..];
        self.sent += read.len() as u64;
        self.digest.update(read);
        self.feed.bytes(self.sent, Some(self.size));
        Poll::Ready(Ok(()))
    }
}

/// Fetches the file `from` to the local path `to`, which appears whole or not at all.
pub(super) async fn get(ssh: &Ssh, from: &Utf8Path, to: &Utf8Path, feed: &Feed) -> Result<()> {
    let command = Command::new("sh").args(["-c", GET, "sh", from.as_str()]);
    let directory = to.parent().filter(|parent| !parent.as_str().is_empty());
    let part = tempfile::Builder::new()
        .prefix(".nestlab-")
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(directory.unwrap_or(Utf8Path::new(".")))
        .map_err(|cause| unwritable(to, &cause))?;
    let mut receiving = Receiving::new(part.as_file(), feed);
    let mut errors = Vec::new();
    let process = ssh.start(&command).await?;
    let mut on_output = |stream: StdStream, bytes: &[u8]| match stream {
        StdStream::Out => receiving.take(bytes),
        StdStream::Err => errors.extend_from_slice(bytes),
    };
    let exit = process.follow(&command, tokio::io::empty(), &mut on_output).await?;
    if !exit.success() {
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
    failed: Option<std::io::Error>,
    feed: &'a Feed,
}

impl<'a> Receiving<'a> {
    fn new(file: &'a std::fs::File, feed: &'a Feed) -> Self {
        Receiving { file, header: Vec::new(), size: None, received: 0, failed: None, feed }
    }

    /// Takes what has arrived; a failure to write it is kept for [`Self::whole`].
    fn take(&mut self, bytes: &[u8]) {
        if self.size.is_some() {
            return self.write(bytes);
        }
        self.header.extend_from_slice(bytes);
        if let Some(end) = self.header.iter().position(|&b| b == b'\n') {
            let rest = self.header.split_off(end + 1);
            self.size = std::str::from_utf8(&self.header[..end]).ok().and_then(|n| n.parse().ok());
            self.write(&rest);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            // Into the page cache, which is quicker than handing it to another thread.
            self.failed = self.file.write_all(bytes).err();
            self.received += bytes.len() as u64;
            self.feed.bytes(self.received, self.size);
        }
    }

    fn whole(self, from: &Utf8Path, to: &Utf8Path) -> Result<()> {
        if let Some(cause) = self.failed {
            return Err(unwritable(to, &cause));
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
