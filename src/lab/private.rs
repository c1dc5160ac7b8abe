//! Directories and files that only the user may read, and writes that happen whole or not at all.

use std::fs;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};

use camino::{Utf8Path, Utf8PathBuf};

use super::filesystem;
use crate::error::{Error, Kind, Result};
use crate::faults;

/// The permission bits of a directory of nestlab's state.
pub const DIRECTORY_MODE: u32 = 0o700;
/// The permission bits of a file of nestlab's state.
pub const FILE_MODE: u32 = 0o600;

/// Makes `path` a directory that only the user may enter, with the parents that are missing.
///
/// # Errors
/// [`Kind::Io`] if it cannot be made, or is there and [`check_directory`] refuses it.
pub fn make_directory(path: &Utf8Path) -> Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_str().is_empty()) {
        fs_err::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => check_directory(path),
        Err(error) => {
            Err(Error::new(Kind::Io, format!("{path} cannot be made")).with_source(error))
        }
    }
}

/// Checks that `path` is a directory of this user that nobody else can write; one that others could
/// merely read is closed to them.
///
/// # Errors
/// [`Kind::Io`] with the remedy, if somebody else could have changed what is in it.
pub fn check_directory(path: &Utf8Path) -> Result<()> {
    let metadata = fs_err::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Err(Error::new(Kind::Io, format!("{path} is not a directory"))
            .hint(format!("move it away; nestlab makes a directory there: mv {path} {path}.old")));
    }
    check_owner_and_writers(path, &metadata, DIRECTORY_MODE)?;
    if metadata.mode() & 0o077 != 0 {
        fs_err::set_permissions(path, fs::Permissions::from_mode(DIRECTORY_MODE))?;
    }
    Ok(())
}

/// Checks that the secret at `path` is a file of this user that nobody else can read or write.
///
/// # Errors
/// [`Kind::Io`] with the remedy, if somebody else could know or have changed it.
pub fn check_secret(path: &Utf8Path) -> Result<()> {
    let metadata = fs_err::symlink_metadata(path)?;
    if !metadata.is_file() {
        return Err(Error::new(Kind::Io, format!("{path} is not a regular file")));
    }
    check_owner_and_writers(path, &metadata, FILE_MODE)?;
    if metadata.mode() & 0o077 != 0 {
        return Err(Error::new(Kind::Io, format!("{path} is a secret that others can read"))
            .hint(format!("chmod 600 {path}, if nobody else has read it; else destroy the lab")));
    }
    Ok(())
}

fn check_owner_and_writers(path: &Utf8Path, metadata: &fs::Metadata, mode: u32) -> Result<()> {
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me {
        let owner = metadata.uid();
        return Err(Error::new(
            Kind::Io,
            format!("{path} belongs to user {owner}, and nestlab runs as user {me}"),
        )
        .hint("run nestlab as the user who made the lab, or give another --state-dir"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(Error::new(Kind::Io, format!("{path} can be written by others"))
            .hint(format!("look at what is in it, then close it: chmod {mode:o} {path}")));
    }
    Ok(())
}

/// Makes the directory `name` in `directory` for one use; only the user may enter it, and it is removed when
/// it is dropped. One that a killed run left under that name is removed before.
pub fn scratch(directory: &Utf8Path, name: &str) -> Result<tempfile::TempDir> {
    match fs_err::remove_dir_all(directory.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(name).rand_bytes(0).permissions(fs::Permissions::from_mode(DIRECTORY_MODE));
    Ok(builder.tempdir_in(directory)?)
}

/// What the name of a file begins with while it is being written.
const UNFINISHED: &str = ".new-";

/// The file that is locked in a directory that other machines may have, too.
pub(super) const LOCK: &str = ".lock";

/// Returns whether `name` is that of a file which is being written, or was when its writer was killed.
pub(super) fn is_unfinished(name: &str) -> bool {
    name.starts_with(UNFINISHED)
}

/// The right to write the files of one directory, held by one thread of one process at a time.
///
/// It is a kernel lock on the directory itself, for the instant of a change; what a writer that was
/// killed left unfinished is removed by the next. NFS keeps a lock on a directory to the one machine, and
/// one on a file not: where other machines may have the directory, too, a file in it is locked.
#[derive(Debug)]
pub struct Writing {
    directory: Utf8PathBuf,
    lock: fs::File,
}

impl Writing {
    /// Waits for the right to write into `directory`.
    pub fn into_directory(directory: &Utf8Path) -> Result<Self> {
        Writing::with_lock_of(directory, filesystem::is_shared(directory))
    }

    fn with_lock_of(directory: &Utf8Path, shared: bool) -> Result<Self> {
        let failed = |error: std::io::Error| {
            Error::new(Kind::Io, format!("{directory} cannot be locked")).with_source(error)
        };
        let lock = if shared {
            // NFS locks for writing only what is open for writing.
            let mut options = fs::OpenOptions::new();
            options.create(true).truncate(false).write(true).mode(FILE_MODE);
            options.open(directory.join(LOCK))
        } else {
            fs::File::open(directory)
        };
        let lock = lock.map_err(failed)?;
        lock.lock().map_err(failed)?;
        let writing = Writing { directory: directory.to_owned(), lock };
        writing.remove_unfinished()?;
        Ok(writing)
    }

    fn remove_unfinished(&self) -> Result<()> {
        for entry in fs_err::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs_err::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Writes `bytes` to the file `name` with mode 0600, whole or not at all, and durably.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        let unfinished = self.directory.join(format!("{UNFINISHED}{name}"));
        let failed = |error: std::io::Error| {
            Error::new(Kind::Io, format!("{path} cannot be written")).with_source(error)
        };
        let write = || {
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(FILE_MODE);
            let mut file = faults::create(&options, &unfinished)?;
            faults::write_all(&mut file, &unfinished, bytes)?;
            faults::sync(&file, &unfinished)?;
            faults::rename(&unfinished, &path)
        };
        if let Err(error) = write() {
            // It is removed by the next writer, if not now.
            let _ = fs::remove_file(&unfinished);
            return Err(failed(error));
        }
        sync_directory(&self.directory)
    }
}

impl Drop for Writing {
    /// Unlocks; to close is not enough while another program is just being started, with a copy of
    /// every open file.
    fn drop(&mut self) {
        // What cannot be unlocked is unlocked when the process ends.
        let _ = self.lock.unlock();
    }
}

/// Opens `path` for appending and reading, made with mode 0600 if it is missing.
pub fn open_append(path: &Utf8Path) -> Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.create(true).append(true).read(true).mode(FILE_MODE);
    let file = faults::create(&options, path).map_err(|error| {
        Error::new(Kind::Io, format!("{path} cannot be opened")).with_source(error)
    })?;
    let directory = path.parent().expect("a file of the state directory has a parent");
    sync_directory(directory)?;
    Ok(file)
}

/// Makes the entries of `directory` durable.
pub fn sync_directory(directory: &Utf8Path) -> Result<()> {
    faults::sync_directory(directory).map_err(|error| {
        Error::new(Kind::Io, format!("{directory} cannot be made durable")).with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = Utf8Path::from_path(directory.path()).expect("UTF-8").to_owned();
        (directory, path)
    }

    fn mode(path: &Utf8Path) -> u32 {
        fs::metadata(path).expect("is there").mode() & 0o777
    }

    #[test]
    fn what_is_made_is_closed_to_others() {
        let (_keep, scratch) = scratch();
        let directory = scratch.join("a/b");
        make_directory(&directory).expect("makes");
        make_directory(&directory).expect("is content with what is there");
        let writing = Writing::into_directory(&directory).expect("locks");
        writing.write("secret", b"x").expect("writes");
        drop(open_append(&directory.join("journal")).expect("opens"));
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join("secret")), 0o600);
        assert_eq!(mode(&directory.join("journal")), 0o600);
        check_secret(&directory.join("secret")).expect("is private");
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused_with_the_remedy() {
        let (_keep, scratch) = scratch();
        for writable in [0o770, 0o702, 0o777] {
            fs::set_permissions(&scratch, fs::Permissions::from_mode(writable)).expect("chmod");
            let error = make_directory(&scratch).expect_err("others can write it");
            assert!(error.hints()[0].contains(&format!("chmod 700 {scratch}")), "{error:?}");
            assert_eq!(mode(&scratch), writable, "nothing is hidden by repairing it silently");
        }
    }

    #[test]
    fn what_a_killed_writer_left_is_gone_after_the_next() {
        let (_keep, scratch) = scratch();
        std::fs::write(scratch.join(".new-known_hosts"), "half").expect("writes");
        let writing = Writing::into_directory(&scratch).expect("locks");
        writing.write("other", b"whole").expect("writes");
        let names: Vec<_> = scratch
            .read_dir_utf8()
            .expect("lists")
            .map(|entry| entry.expect("is there").file_name().to_owned())
            .collect();
        assert_eq!(names, ["other"]);
    }

    #[test]
    fn where_other_machines_may_write_a_file_is_locked_that_tells_of_no_secret() {
        let (_keep, scratch) = scratch();
        let one = Writing::with_lock_of(&scratch, true).expect("locks");
        let path = scratch.join(LOCK);
        let other = fs::File::options().write(true).open(&path).expect("is there");
        assert!(matches!(other.try_lock(), Err(fs::TryLockError::WouldBlock)));
        one.write("file", b"x").expect("writes");
        drop(one);
        other.try_lock().expect("nobody writes any more");
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
        let (_keep, scratch) = scratch();
        std::fs::create_dir_all(scratch.join("there/full")).expect("makes");
        let writing = Writing::into_directory(&scratch).expect("locks");
        writing.write("there", b"x").expect_err("a directory that is not empty is there");
        assert_eq!(scratch.read_dir_utf8().expect("lists").count(), 1);
    }

    #[test]
    fn a_directory_that_others_can_only_read_is_closed() {
        let (_keep, scratch) = scratch();
        fs::set_permissions(&scratch, fs::Permissions::from_mode(0o755)).expect("chmod");
        make_directory(&scratch).expect("nobody else can have written it");
        assert_eq!(mode(&scratch), 0o700);
    }

    #[test]
    fn a_scratch_directory_is_the_users_alone_and_what_a_killed_run_left_of_it_is_gone() {
        let (_keep, directory) = scratch();
        std::fs::create_dir(directory.join(".seed-l1")).expect("makes");
        std::fs::write(directory.join(".seed-l1/seed.img"), "a host key").expect("writes");
        let made = super::scratch(&directory, ".seed-l1").expect("makes");
        assert_eq!(made.path(), directory.join(".seed-l1"));
        assert_eq!(made.path().read_dir().expect("lists").count(), 0);
        assert_eq!(mode(&directory.join(".seed-l1")), 0o700);
        drop(made);
        assert_eq!(directory.read_dir_utf8().expect("lists").count(), 0);
    }

    #[test]
    fn a_link_is_not_taken_for_a_directory() {
        let (_keep, scratch) = scratch();
        std::os::unix::fs::symlink("/tmp", scratch.join("link")).expect("links");
        let error = check_directory(&scratch.join("link")).expect_err("is a link");
        assert!(error.message().contains("not a directory"), "{error:?}");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let (_keep, scratch) = scratch();
        let path = scratch.join("key");
        let writing = Writing::into_directory(&scratch).expect("locks");
        writing.write("key", b"secret").expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(check_secret(&path).expect_err("can be read").hints()[0].contains("chmod 600"));
    }
}
