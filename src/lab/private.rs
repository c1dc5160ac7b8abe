//! Directories and files that only the user may read, and writes that happen whole or not at all.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};

use camino::Utf8Path;

use crate::error::{Error, Kind, Result};

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
        Err(error) => Err(Error::new(Kind::Io, format!("{path} cannot be made")).because(error)),
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

/// Writes `bytes` to `path` with mode 0600, whole or not at all, and durably.
pub fn write(path: &Utf8Path, bytes: &[u8]) -> Result<()> {
    let directory = path.parent().expect("a file of the state directory has a parent");
    let failed = |error: std::io::Error| {
        Error::new(Kind::Io, format!("{path} cannot be written")).because(error)
    };
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(FILE_MODE))
        .tempfile_in(directory)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    sync_directory(directory)
}

/// Opens `path` for appending and reading, made with mode 0600 if it is missing.
pub fn open_append(path: &Utf8Path) -> Result<fs::File> {
    let file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(|error| Error::new(Kind::Io, format!("{path} cannot be opened")).because(error))?;
    let directory = path.parent().expect("a file of the state directory has a parent");
    sync_directory(directory)?;
    Ok(file)
}

/// Makes the entries of `directory` durable.
pub fn sync_directory(directory: &Utf8Path) -> Result<()> {
    Ok(fs_err::File::open(directory)?.sync_all()?)
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
        write(&directory.join("secret"), b"x").expect("writes");
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
    fn a_directory_that_others_can_only_read_is_closed() {
        let (_keep, scratch) = scratch();
        fs::set_permissions(&scratch, fs::Permissions::from_mode(0o755)).expect("chmod");
        make_directory(&scratch).expect("nobody else can have written it");
        assert_eq!(mode(&scratch), 0o700);
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
        write(&path, b"secret").expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(check_secret(&path).expect_err("can be read").hints()[0].contains("chmod 600"));
    }
}
