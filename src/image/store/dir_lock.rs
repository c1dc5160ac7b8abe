//! The right to work in one of the store's folders. It knows nothing of what the folders are for.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::time::Duration;

use camino::Utf8Path;

use super::record::no_link;
use super::trust::private_folder;
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;

/// How often it is looked whether another's claim has ended.
const LOOK: Duration = Duration::from_millis(200);

/// The right to work in a folder, and to remove it; one process has it at a time, until it is dropped
/// or the process ends.
///
/// It is a kernel lock on the folder itself. A lock on a file inside would have to make that file, and
/// whoever asks would put it into a folder that its holder is just removing. Since NFS knows no locks on
/// folders that another machine would see, there is one on a file elsewhere too, which stays.
#[derive(Debug)]
pub(in crate::image) struct DirLock {
    _lock: File,
    _shared: File,
}

impl DirLock {
    /// Makes the folder if it is missing and takes it, with a file in the folder `locks`; while another has it, `events` is told `why`
    /// nothing goes on. May be dropped at any time.
    ///
    /// # Errors
    /// [`Kind::Io`] if the folder cannot be made, others can write to it, or as [`DirLock::take`].
    pub(in crate::image) async fn wait(
        locks: &Utf8Path,
        folder: &Utf8Path,
        events: &EventSink,
        why: &'static str,
    ) -> Result<Self> {
        loop {
            if let Some(claim) = DirLock::make(locks, folder)? {
                return Ok(claim);
            }
            events.doing(why);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Takes the folder as [`DirLock::take`], and makes it before if it is missing.
    fn make(locks: &Utf8Path, folder: &Utf8Path) -> Result<Option<Self>> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(
                    Error::new(Kind::Io, format!("{folder} cannot be made")).with_source(error)
                );
            }
            _ => {}
        }
        let claim = DirLock::take(locks, folder)?;
        if claim.is_some() {
            // Only now: until it is held, its holder may be removing it.
            private_folder(folder)?;
        }
        Ok(claim)
    }

    /// Takes the folder, or returns `None` if another has it or has just removed it.
    ///
    /// # Errors
    /// [`Kind::Io`] if the folder cannot be opened or its file system knows no locks.
    pub(in crate::image) fn take(locks: &Utf8Path, folder: &Utf8Path) -> Result<Option<Self>> {
        let failed = |error: std::io::Error| {
            Error::new(Kind::Io, format!("{folder} cannot be locked")).with_source(error)
        };
        let lock = match File::open(folder) {
            Ok(lock) => lock,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let shared = shared_file(locks, folder).map_err(failed)?;
        for lock in [&lock, &shared] {
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        // It may have been removed between opening and locking; then this lock holds nothing.
        let held = lock.metadata().map_err(failed)?.ino();
        match std::fs::metadata(folder) {
            Ok(meta) if meta.ino() == held => Ok(Some(DirLock { _lock: lock, _shared: shared })),
            _ => Ok(None),
        }
    }
}

/// Opens the file in `locks` that stands for `folder`, to be written: NFS locks no other for one alone.
fn shared_file(locks: &Utf8Path, folder: &Utf8Path) -> std::io::Result<File> {
    let names: Vec<&str> = folder.components().rev().take(2).map(|name| name.as_str()).collect();
    let path = locks.join(names.join("-"));
    let mut options = OpenOptions::new();
    no_link(options.write(true).create(true).truncate(false).mode(0o600)).open(path)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use camino::Utf8PathBuf;

    use super::*;

    fn place() -> (tempfile::TempDir, Utf8PathBuf, Utf8PathBuf) {
        let scratch = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(scratch.path().to_owned()).unwrap();
        let locks = root.join("locks");
        std::fs::create_dir(&locks).unwrap();
        (scratch, locks, root.join("folder"))
    }

    #[test]
    fn what_another_machine_holds_on_a_shared_file_system_is_not_taken() {
        let (_scratch, locks, folder) = place();
        std::fs::create_dir(&folder).unwrap();
        // All that NFS lets this machine see of another's claim.
        let elsewhere = shared_file(&locks, &folder).unwrap();
        elsewhere.lock().unwrap();
        assert!(DirLock::take(&locks, &folder).unwrap().is_none());
        drop(elsewhere);
        assert!(DirLock::take(&locks, &folder).unwrap().is_some());
    }

    #[test]
    fn a_folder_is_taken_once_and_again_when_it_is_let_go() {
        let (_scratch, locks, folder) = place();
        assert!(DirLock::take(&locks, &folder).unwrap().is_none(), "it is not there");
        std::fs::create_dir(&folder).unwrap();
        let held = DirLock::take(&locks, &folder).unwrap().expect("nobody has it");
        assert!(DirLock::take(&locks, &folder).unwrap().is_none(), "another has it");
        drop(held);
        assert!(DirLock::take(&locks, &folder).unwrap().is_some());
    }

    #[test]
    fn a_holder_removes_its_folder_whoever_asks_for_it_meanwhile() {
        const ROUNDS: usize = 300;
        let (_scratch, locks, folder) = place();
        let (inside, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            while done.load(Ordering::SeqCst) < ROUNDS {
                let Some(claim) = DirLock::make(&locks, &folder).unwrap() else { continue };
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two have the folder");
                for name in ["data", "state", "work"] {
                    std::fs::write(folder.join(name), name).unwrap();
                }
                inside.fetch_sub(1, Ordering::SeqCst);
                std::fs::remove_dir_all(&folder).expect("nobody else puts anything there");
                drop(claim);
                done.fetch_add(1, Ordering::SeqCst);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(work);
            }
        });
        assert!(done.load(Ordering::SeqCst) >= ROUNDS);
    }
}
