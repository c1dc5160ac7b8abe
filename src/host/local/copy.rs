//! A file copied on this machine: whole or not at all, and as sparse as it was.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::File;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};
use crate::event::EventSink;

/// How much is copied between two looks at whether to go on.
const CHUNK: u64 = 8 << 20;

/// Copies `from` to `to` with the permission bits `mode`. Dropping the future ends it and leaves nothing.
pub(super) async fn copy(
    from: &Utf8Path,
    to: &Utf8Path,
    mode: u32,
    events: &EventSink,
) -> Result<()> {
    let dropped = OnDrop(Arc::new(AtomicBool::new(false)));
    let stop = dropped.0.clone();
    let (from, to, events) = (from.to_owned(), to.to_owned(), events.clone());
    tokio::task::spawn_blocking(move || copy_now(&from, &to, mode, &events, &stop))
        .await
        .map_err(|panic| Error::internal("copying a file panicked").with_source(panic))?
}

/// Tells the blocking thread that nobody waits for it any more.
struct OnDrop(Arc<AtomicBool>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn copy_now(
    from: &Utf8PathBuf,
    to: &Utf8PathBuf,
    mode: u32,
    events: &EventSink,
    stop: &AtomicBool,
) -> Result<()> {
    let source = File::open(from)?;
    let size = source.metadata()?.len();
    let directory = to.parent().filter(|parent| !parent.as_str().is_empty());
    let directory = directory.unwrap_or(Utf8Path::new("."));
    // Named as the part of a file that is sent over SSH: whoever removes `to` knows what a copy that was killed
    // left beside it.
    let target = tempfile::Builder::new()
        .prefix(&format!("{}.", to.file_name().unwrap_or_default()))
        .suffix(".part")
        .tempfile_in(directory)
        .map_err(|cause| unwritable(to, &cause))?;
    if rustix::fs::ioctl_ficlone(target.as_file(), source.file()).is_err() {
        copy_data(source.file(), target.as_file(), size, events, stop)
            .map_err(|cause| unwritable(to, &cause))?;
    }
    events.bytes(size, Some(size));
    let finish = || -> std::io::Result<()> {
        target.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        target.as_file().sync_all()
    };
    finish().map_err(|cause| unwritable(to, &cause))?;
    target.persist(to).map_err(|failed| unwritable(to, &failed.error))?;
    // The name is durable only once its directory is.
    File::open(directory)?.sync_all()?;
    Ok(())
}

/// Copies the data of `source`, seeking over its holes.
fn copy_data(
    source: &std::fs::File,
    target: &std::fs::File,
    size: u64,
    events: &EventSink,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    target.set_len(size)?;
    let mut at = 0;
    while at < size {
        let (start, end) = match extent(source, at, size)? {
            Some(extent) => extent,
            None => break,
        };
        at = start;
        while at < end {
            if stop.load(Ordering::Relaxed) {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            let wanted = usize::try_from((end - at).min(CHUNK)).unwrap_or(usize::MAX);
            let copied = copy_range(source, target, at, wanted)?;
            if copied == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            at += copied as u64;
            events.bytes(at, Some(size));
        }
    }
    Ok(())
}

/// Returns where the next data at or after `at` begins and ends; `None` if only a hole follows.
fn extent(file: &std::fs::File, at: u64, size: u64) -> std::io::Result<Option<(u64, u64)>> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some((start, rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size)))),
        Err(Errno::NXIO) => Ok(None),
        // A file system without holes is all data.
        Err(Errno::INVAL) => Ok(Some((at, size))),
        Err(error) => Err(error.into()),
    }
}

/// Copies up to `wanted` bytes at offset `at`, inside the kernel where it can.
fn copy_range(
    source: &std::fs::File,
    target: &std::fs::File,
    at: u64,
    wanted: usize,
) -> std::io::Result<usize> {
    use std::os::unix::fs::FileExt;
    let (mut from, mut to) = (at, at);
    match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
        // Across file systems older kernels refuse, and some file systems answer 0 for data.
        Ok(0) | Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
            let mut buffer = vec![0; wanted.min(1 << 20)];
            let read = source.read_at(&mut buffer, at)?;
            target.write_all_at(&buffer[..read], at)?;
            Ok(read)
        }
        Ok(copied) => Ok(copied),
        Err(error) => Err(error.into()),
    }
}

fn unwritable(path: &Utf8Path, cause: &std::io::Error) -> Error {
    let error = Error::new(Kind::Io, format!("cannot write {path}: {cause}"));
    match cause.kind() {
        std::io::ErrorKind::StorageFull => error.hint("free some disk space, or use another disk"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use std::os::unix::fs::MetadataExt;

    fn directory() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(directory.path().to_owned()).unwrap();
        (directory, path)
    }

    #[tokio::test]
    async fn holes_stay_holes_and_the_bytes_are_the_same() {
        let (_kept, path) = directory();
        let (from, to) = (path.join("from"), path.join("to"));
        let mut file = std::fs::File::create(&from).unwrap();
        file.write_all(&[1; 5000]).unwrap();
        file.seek(std::io::SeekFrom::Start(64 << 20)).unwrap();
        file.write_all(&[2; 3000]).unwrap();
        file.set_len(128 << 20).unwrap();
        drop(file);

        copy(&from, &to, 0o640, &EventSink::silent()).await.unwrap();

        let copied = std::fs::metadata(&to).unwrap();
        assert_eq!((copied.len(), copied.mode() & 0o777), (128 << 20, 0o640));
        assert!(copied.blocks() * 512 < 1 << 20, "{} blocks are in use", copied.blocks());
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
    }

    #[tokio::test]
    async fn a_copy_that_fails_leaves_what_was_there() {
        let (_kept, path) = directory();
        let to = path.join("to");
        std::fs::write(&to, "before").unwrap();
        let error = copy(&path.join("none"), &to, 0o600, &EventSink::silent()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "before");
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_copy_replaces_the_old_file() {
        let (_kept, path) = directory();
        let (from, to) = (path.join("from"), path.join("to"));
        std::fs::write(&from, "new").unwrap();
        std::fs::write(&to, "old and longer").unwrap();
        copy(&from, &to, 0o600, &EventSink::silent()).await.unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "new");
    }
}
