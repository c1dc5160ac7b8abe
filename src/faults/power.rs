//! A power cut: what was written and not made durable is gone, as the page cache of a machine is.
//!
//! The kernel keeps what a killed process wrote, so a kill alone proves nothing about `fsync`. While a
//! cut is asked for, every write, name and rename of the lab's files is noted until it was made durable;
//! the cut takes back what is still noted: the worst that a file system may do.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};

/// What a power cut would take back.
#[derive(Debug, Default)]
struct UnsyncedWrites {
    /// Files that were written to, with the length that is durable.
    contents: BTreeMap<Utf8PathBuf, u64>,
    /// Names that were made or given to another file, oldest first, with what they named before.
    names: Vec<(Utf8PathBuf, Option<Vec<u8>>)>,
}

static VOLATILE: Mutex<UnsyncedWrites> =
    Mutex::new(UnsyncedWrites { contents: BTreeMap::new(), names: Vec::new() });

fn volatile() -> MutexGuard<'static, UnsyncedWrites> {
    VOLATILE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that `file`, which lies at `path`, is about to be written to.
pub(super) fn writing(file: &fs::File, path: &Utf8Path) -> io::Result<()> {
    let durable = file.metadata()?.len();
    volatile().contents.entry(path.to_owned()).or_insert(durable);
    Ok(())
}

/// Notes that what is in `path` is durable.
pub(super) fn synced(path: &Utf8Path) {
    volatile().contents.remove(path);
}

/// Notes that `path` is about to name a file that it did not name before.
pub(super) fn naming(path: &Utf8Path) {
    volatile().names.push((path.to_owned(), fs::read(path).ok()));
}

/// Notes that the file called `from` is called `to` now.
pub(super) fn renamed(from: &Utf8Path, to: &Utf8Path) {
    let mut volatile = volatile();
    if let Some(durable) = volatile.contents.remove(from) {
        volatile.contents.insert(to.to_owned(), durable);
    }
}

/// Notes that the names in `directory` are durable.
pub(super) fn names_synced(directory: &Utf8Path) {
    volatile().names.retain(|(path, _)| path.parent() != Some(directory));
}

/// Takes back what is not durable.
pub(super) fn cut() -> io::Result<()> {
    let mut volatile = volatile();
    for (path, durable) in std::mem::take(&mut volatile.contents) {
        match fs::File::options().write(true).open(&path) {
            Ok(file) => file.set_len(durable)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    for (path, before) in std::mem::take(&mut volatile.names).into_iter().rev() {
        match before {
            Some(bytes) => fs::write(&path, bytes)?,
            None => fs::remove_file(&path).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?,
        }
    }
    Ok(())
}
