//! One nestlab at a time: the lab's lock.
//!
//! It is a kernel lock (`flock`) on the file `lock`, held by a living process. One that died, in
//! whatever way, holds nothing: there is no stale lock to take over and none to remove by hand.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::directory::{Lab, RECIPE};
use super::identity;
use super::journal::Journal;
use super::private::{self, Writing};
use crate::error::{Error, Kind, Result};

/// Who holds a lab's lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    /// The process.
    pub pid: u32,
    /// Since when.
    pub since: Timestamp,
    /// What it was called with.
    pub command: Vec<String>,
}

/// The lab's lock, held until the last clone is dropped. Only with it can a lab be written.
#[derive(Debug, Clone)]
pub struct LabLock {
    lab: Lab,
    _held: Arc<LockFile>,
}

/// The locked file.
#[derive(Debug)]
struct LockFile(File);

impl Drop for LockFile {
    /// Unlocks, since to close is not enough: a program that is being started has, for an instant
    /// before it is replaced, a copy of every open file.
    fn drop(&mut self) {
        // What cannot be unlocked is unlocked when the process ends.
        let _ = self.0.unlock();
    }
}

/// How long the lock of a process that is gone may stay locked, for the same reason.
const LINGERING: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);

impl LabLock {
    /// Returns the lab that is locked.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Opens the lab's journal for writing.
    pub fn journal(&self) -> Result<Journal> {
        Journal::open(self)
    }

    /// Keeps `text` as the recipe that was applied.
    pub fn keep_recipe(&self, text: &str) -> Result<()> {
        let path = self.lab.recipe_path();
        if fs_err::read(&path).is_ok_and(|kept| kept == text.as_bytes()) {
            return Ok(());
        }
        Writing::into_directory(self.lab.directory())?.write(RECIPE, text.as_bytes())
    }
}

/// Takes the lock of `lab`.
pub(super) fn take(lab: &Lab, command: Vec<String>) -> Result<LabLock> {
    take_watched(lab, command, || {})
}

/// Takes the lock; `opened` is called each time that the file has just been opened and is not locked yet.
fn take_watched(lab: &Lab, command: Vec<String>, mut opened: impl FnMut()) -> Result<LabLock> {
    let path = lab.directory().join("lock");
    let began = Instant::now();
    loop {
        let mut file = open(&path)?;
        opened();
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if is_only_looked_at(&file)? => continue,
            Err(TryLockError::WouldBlock) => {
                let holder = read_holder(&mut file);
                let gone = holder.as_ref().is_none_or(|holder| !is_alive(holder.pid));
                if gone && began.elapsed() < LINGERING {
                    std::thread::sleep(POLL);
                    continue;
                }
                return Err(busy(lab, holder));
            }
            Err(TryLockError::Error(error)) => {
                return Err(
                    Error::new(Kind::Io, format!("{path} cannot be locked")).with_source(error)
                );
            }
        }
        // The lab may have been destroyed between opening and locking: then the file that is locked
        // is no longer the one at the path.
        if !is_at(&file, &path)? {
            if !lab.directory().is_dir() {
                return Err(Error::new(
                    Kind::Usage,
                    format!("the lab {} was just destroyed", lab.name()),
                ));
            }
            continue;
        }
        let mut held = LockFile(file);
        identity::admit(lab)?;
        let holder = LockHolder { pid: std::process::id(), since: Timestamp::now(), command };
        write_holder(&mut held.0, &holder)?;
        return Ok(LabLock { lab: lab.clone(), _held: Arc::new(held) });
    }
}

/// Returns who holds the lock in `directory`, if anybody does.
pub(super) fn holder(directory: &Utf8Path) -> Result<Option<LockHolder>> {
    let path = directory.join("lock");
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Error::new(Kind::Io, format!("{path} cannot be opened")).with_source(error));
        }
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(read_holder(&mut file)),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Whether nobody holds the lock but those who, in [`holder`], look for a moment.
fn is_only_looked_at(file: &File) -> Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

fn open(path: &Utf8Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(private::FILE_MODE)
        .open(path)
        .map_err(|error| {
            Error::new(Kind::Io, format!("{path} cannot be opened")).with_source(error)
        })
}

fn is_at(file: &File, path: &Utf8Path) -> Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    // A process of another user is alive and refuses to be asked.
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

fn write_holder(file: &mut File, holder: &LockHolder) -> Result<()> {
    let text = serde_json::to_vec(holder).expect("a holder is plain data");
    file.rewind()?;
    file.set_len(0)?;
    Ok(file.write_all(&text)?)
}

/// What the holder wrote about itself; nothing, in the instant before it has.
fn read_holder(file: &mut File) -> Option<LockHolder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

fn busy(lab: &Lab, holder: Option<LockHolder>) -> Error {
    let name = lab.name();
    let Some(holder) = holder else {
        return Error::new(Kind::Busy, format!("another nestlab works on the lab {name}"));
    };
    let command = crate::host::quote::display(&holder.command);
    Error::new(
        Kind::Busy,
        format!(
            "another nestlab works on the lab {name}: `{command}`, process {}, since {:.0}",
            holder.pid, holder.since
        ),
    )
    .hint(format!(
        "wait until it has ended, or end it (kill {}) and run the command again",
        holder.pid
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Labs;

    fn lab() -> (tempfile::TempDir, Labs, Lab) {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let state = Utf8Path::from_path(scratch.path()).expect("UTF-8").join("state");
        let labs = Labs::at(state);
        let lab = labs.create(&"demo".parse().expect("a name"), "").expect("makes");
        (scratch, labs, lab)
    }

    #[test]
    fn a_lab_that_was_made_anew_before_its_lock_was_taken_is_locked_itself() {
        let (_keep, labs, lab) = lab();
        let mut first = true;
        let _held = take_watched(&lab, vec!["late".into()], || {
            if std::mem::take(&mut first) {
                std::fs::remove_dir_all(lab.directory()).expect("is there");
                labs.create(lab.name(), "").expect("makes");
            }
        })
        .expect("the new one is free");
        let error = take(&lab, vec!["later".into()]).expect_err("it is held");
        assert_eq!(error.kind(), Kind::Busy);
    }

    #[test]
    fn a_lab_that_was_destroyed_before_its_lock_was_taken_is_gone() {
        let (_keep, _labs, lab) = lab();
        let destroy = || std::fs::remove_dir_all(lab.directory()).expect("is there");
        let error = take_watched(&lab, vec!["late".into()], destroy).expect_err("it is gone");
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.message().contains("just destroyed"), "{error:?}");
    }

    #[test]
    fn a_lock_that_lingers_after_its_holder_is_waited_for_and_a_living_one_is_not() {
        let (_keep, _labs, lab) = lab();
        let path = lab.directory().join("lock");
        let mut child = std::process::Command::new("true").spawn().expect("true runs");
        child.wait().expect("waits");
        for (pid, taken) in [(child.id(), true), (std::process::id(), false)] {
            let mut file = open(&path).expect("opens");
            let holder = LockHolder { pid, since: Timestamp::now(), command: vec!["gone".into()] };
            write_holder(&mut file, &holder).expect("writes");
            file.lock().expect("is free");
            let mut tries = 0;
            let mut lingering = Some(file);
            let got = take_watched(&lab, vec!["next".into()], || {
                tries += 1;
                // What still had a copy of the dead process's file closes it.
                if tries == 3 {
                    lingering.take();
                }
            });
            assert_eq!((got.is_ok(), tries), (taken, if taken { 3 } else { 1 }));
            assert!(got.map_or_else(|error| error.kind() == Kind::Busy, |_| true));
        }
    }
}
