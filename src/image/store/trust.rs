//! Whether a place on this machine can be changed by its user and root alone. It knows nothing of images.

use std::collections::VecDeque;
use std::fs::{DirBuilder, Metadata, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};

use crate::error::{Error, Kind, Result};

/// How many links are followed before they count as a loop, as in Linux.
const MAX_LINKS: usize = 40;

/// The bit that keeps others from renaming what is not theirs in a folder that all can write to.
const STICKY: u32 = 0o1000;

/// Goes to the folder `path`, making what is missing of it with mode 0700, and returns where it really is:
/// without links, so that a later use of it follows none.
///
/// Every folder and link on the way must be the user's or root's, and no folder may be one in which
/// others could put something else in the place of the next. Nothing is made before all above it held.
///
/// # Errors
/// [`Kind::Untrusted`] with the remedy, [`Kind::Io`] if it cannot be made or looked at.
pub(super) fn reach(path: &Utf8Path) -> Result<Utf8PathBuf> {
    let mut ahead: VecDeque<String> = parts(path).collect();
    let mut at = Utf8PathBuf::from("/");
    judge(&at, &fs_err::symlink_metadata(&at)?)?;
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(part);
        let meta = there(&next)?;
        if !meta.is_symlink() {
            judge(&next, &meta)?;
            at = next;
            continue;
        }
        owned(&next, &meta)?;
        links += 1;
        if links > MAX_LINKS {
            return Err(Error::new(Kind::Io, format!("{path} leads through a loop of links")));
        }
        let target = next.read_link_utf8()?;
        if target.is_absolute() {
            at = Utf8PathBuf::from("/");
        }
        for part in parts(&target).rev() {
            ahead.push_front(part);
        }
    }
    Ok(at)
}

/// Makes the folder `folder`, or checks that the one that is there is the user's or root's, and that
/// nobody else can write to it. One that others could only look into is closed to them.
///
/// # Errors
/// As [`reach`].
pub(super) fn private_folder(folder: &Utf8Path) -> Result<()> {
    let meta = there(folder)?;
    owned(folder, &meta)?;
    folder_only(folder, &meta)?;
    if meta.mode() & 0o022 != 0 {
        return Err(writable(folder));
    }
    if meta.mode() & 0o077 != 0 && me() == meta.uid() {
        fs_err::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Checks that what lies at `path`, of which this is the metadata, is the user's or root's.
///
/// # Errors
/// [`Kind::Untrusted`].
pub(super) fn owned(path: &Utf8Path, meta: &Metadata) -> Result<()> {
    if is_ours(meta.uid(), me()) {
        return Ok(());
    }
    let (owner, me) = (meta.uid(), me());
    Err(untrusted(format!("{path} belongs to user {owner}, and nestlab runs as user {me}"))
        .hint(format!("give a --cache-dir that is yours; or, if only you can have written to it: chown -h {me} {path}")))
}

/// The parts of a path that lead somewhere.
fn parts(path: &Utf8Path) -> impl DoubleEndedIterator<Item = String> {
    let leads = |part| match part {
        Utf8Component::Normal(name) => Some(name.to_owned()),
        Utf8Component::ParentDir => Some("..".to_owned()),
        Utf8Component::CurDir | Utf8Component::RootDir | Utf8Component::Prefix(_) => None,
    };
    path.components().filter_map(leads)
}

/// Returns the metadata of what lies at `path`, a folder made just now if nothing did.
fn there(path: &Utf8Path) -> Result<Metadata> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        meta => return meta.map_err(|error| Error::from(error).context(path)),
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(Error::new(Kind::Io, format!("{path} cannot be made")).with_source(error))
        }
        _ => Ok(fs_err::symlink_metadata(path)?),
    }
}

fn judge(folder: &Utf8Path, meta: &Metadata) -> Result<()> {
    owned(folder, meta)?;
    folder_only(folder, meta)?;
    if is_closed(meta.mode()) { Ok(()) } else { Err(writable(folder)) }
}

fn folder_only(folder: &Utf8Path, meta: &Metadata) -> Result<()> {
    if meta.is_dir() {
        return Ok(());
    }
    Err(Error::new(Kind::Io, format!("{folder} is not a folder")))
}

fn writable(folder: &Utf8Path) -> Error {
    untrusted(format!("others can write to {folder}"))
        .hint(format!("chmod go-w {folder}; or give a --cache-dir that only you can write to"))
}

fn untrusted(why: String) -> Error {
    Error::new(Kind::Untrusted, format!("the image store cannot be trusted: {why}"))
}

fn me() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn is_ours(owner: u32, me: u32) -> bool {
    owner == me || owner == 0
}

/// Returns whether nobody but its owner can put another thing in the place of what is in a folder of this
/// mode. An access list that lets others write shows in the group's bits.
fn is_closed(mode: u32) -> bool {
    mode & 0o022 == 0 || mode & STICKY != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_trusted_if_it_is_the_users_or_roots_and_closed_to_others() {
        assert!(is_ours(1000, 1000) && is_ours(0, 1000) && is_ours(0, 0));
        assert!(!is_ours(65534, 1000) && !is_ours(1000, 0), "root trusts no user's folder");
        assert!(is_closed(0o755) && is_closed(0o700) && is_closed(0o1777));
        assert!(!is_closed(0o775) && !is_closed(0o757) && !is_closed(0o777));
    }

    fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().canonicalize().expect("is there");
        (folder, Utf8PathBuf::from_path_buf(path).expect("UTF-8"))
    }

    #[test]
    fn what_is_missing_is_made_closed_and_links_are_followed_to_where_they_lead() {
        let (_keep, scratch) = scratch();
        fs_err::create_dir(scratch.join("disk")).expect("makes");
        std::os::unix::fs::symlink("disk/../disk/./deep", scratch.join("link")).expect("links");
        std::os::unix::fs::symlink(scratch.join("link"), scratch.join("far")).expect("links");
        let reached = reach(&scratch.join("far/images")).expect("is all ours");
        assert_eq!(reached, scratch.join("disk/deep/images"));
        let mode = fs_err::metadata(&reached).expect("was made").mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_loop_of_links_ends() {
        let (_keep, scratch) = scratch();
        std::os::unix::fs::symlink("b", scratch.join("a")).expect("links");
        std::os::unix::fs::symlink("a", scratch.join("b")).expect("links");
        let error = reach(&scratch.join("a/images")).expect_err("leads nowhere");
        assert!(error.message().contains("loop"), "{error}");
    }

    #[test]
    fn nothing_is_made_below_a_folder_that_others_can_write_to() {
        let (_keep, scratch) = scratch();
        let open = scratch.join("open");
        fs_err::create_dir(&open).expect("makes");
        fs_err::set_permissions(&open, Permissions::from_mode(0o777)).expect("chmod");
        let error = reach(&open.join("cache/images")).expect_err("anybody could swap it");
        assert_eq!(error.kind(), Kind::Untrusted);
        assert!(error.report().contains(&format!("chmod go-w {open}")), "{}", error.report());
        assert!(!open.join("cache").exists());
        fs_err::set_permissions(&open, Permissions::from_mode(0o1777)).expect("chmod");
        reach(&open.join("cache/images")).expect("only its owner can swap what is in it");
    }
}
