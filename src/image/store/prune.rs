//! Taking away what nobody needs.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};

use super::record::Content;
use super::{DERIVED, DirLock, INCOMING, Store, UNFINISHED, USERS, record};
use crate::error::Result;
use crate::image::digest::Sha256;
use crate::image::fetch::work_folders;

/// How much to take away. The memory of the newest signatures always stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// What is superseded: images that are not the newest of any name, failed downloads, left-overs.
    Superseded,
    /// Every image that no lab needs.
    Unused,
}

/// Why what was never, or is no more, an image is taken away.
const INTERRUPTED: &str = "an interrupted move";

/// What was taken away, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// The folder.
    pub path: Utf8PathBuf,
    /// Why nobody needs it.
    pub why: &'static str,
    /// How many bytes of disk it takes.
    pub bytes: u64,
}

impl Store {
    /// Takes away what `how` says, except what a lab holds or a running download uses; with
    /// `dry_run` it only tells.
    ///
    /// # Errors
    /// [`Kind::Io`](crate::Kind) if something cannot be removed.
    pub fn prune(&self, how: Prune, dry_run: bool) -> Result<Vec<Pruned>> {
        let _lock = self.lock()?;
        let mut pruned = Vec::new();
        let newest = self.newest_of_each_name()?;
        // Claimed until they are gone: what begins now waits, and makes a folder of its own.
        let mut claims = Vec::new();
        for (digest, folder) in self.content_folders()? {
            let derived = folder.join(DERIVED);
            let claim = DirLock::take(&self.locks(), &derived)?;
            if claim.is_none() && derived.exists() {
                // A conversion is under way.
                continue;
            }
            claims.extend(claim);
            if let Some(why) = unneeded(&folder, &digest, how, &newest) {
                pruned.push(taken(folder, why)?);
                continue;
            }
            for folder in unfinished_in(&derived)? {
                pruned.push(taken(folder, "an unfinished conversion")?);
            }
        }
        for (folder, why) in self.leftovers()? {
            pruned.push(taken(folder, why)?);
        }
        let (unfinished, downloads) = self.unfinished()?;
        claims.extend(downloads);
        for folder in unfinished {
            pruned.push(taken(folder, "an unfinished download")?);
        }
        if !dry_run {
            for one in &pruned {
                fs_err::remove_dir_all(&one.path)?;
            }
            self.forget_missing()?;
        }
        Ok(pruned)
    }

    /// Removes what runs left that were killed, where nobody works on it. What a later run can go on with
    /// stays. What cannot be removed is left to [`Store::prune`], which says why.
    pub(in crate::image) fn sweep(&self) {
        // Nothing depends on it: a disk that is full of it says so soon enough.
        let _ = self.try_sweep();
    }

    fn try_sweep(&self) -> Result<()> {
        let _lock = self.lock()?;
        for (folder, why) in self.leftovers()? {
            if why == INTERRUPTED {
                fs_err::remove_dir_all(folder)?;
            }
        }
        for (_, folder) in self.content_folders()? {
            let derived = folder.join(DERIVED);
            if let Some(_claim) = DirLock::take(&self.locks(), &derived)? {
                for unfinished in unfinished_in(&derived)? {
                    fs_err::remove_dir_all(unfinished)?;
                }
            }
        }
        let (folders, _claims) = self.unfinished()?;
        for folder in folders {
            for work in work_folders(&folder)? {
                fs_err::remove_dir_all(work)?;
            }
            if folder.read_dir_utf8()?.next().is_none() {
                fs_err::remove_dir(folder)?;
            }
        }
        Ok(())
    }

    fn newest_of_each_name(&self) -> Result<BTreeSet<Sha256>> {
        let mut newest = BTreeSet::new();
        for name in self.all_names()? {
            newest.extend(self.known(&name)?.entries.last().map(|entry| entry.sha256));
        }
        Ok(newest)
    }

    /// Downloads that nobody works on, with the claims on them.
    fn unfinished(&self) -> Result<(Vec<Utf8PathBuf>, Vec<DirLock>)> {
        let (mut folders, mut claims) = (Vec::new(), Vec::new());
        for folder in self.partial().read_dir_utf8()? {
            let folder = folder?.into_path();
            if let Some(claim) = DirLock::take(&self.locks(), &folder)? {
                folders.push(folder);
                claims.push(claim);
            }
        }
        Ok((folders, claims))
    }

    /// Failed downloads, and folders of interrupted moves.
    fn leftovers(&self) -> Result<Vec<(Utf8PathBuf, &'static str)>> {
        let mut found = Vec::new();
        for folder in self.quarantined().read_dir_utf8()? {
            found.push((folder?.into_path(), "its proofs did not hold"));
        }
        for folder in self.root.read_dir_utf8()? {
            let folder = folder?;
            if folder.file_name().starts_with(INCOMING) {
                found.push((folder.into_path(), INTERRUPTED));
            }
        }
        Ok(found)
    }

    /// Drops the entries whose images are gone; the newest signature of a name stays.
    fn forget_missing(&self) -> Result<()> {
        for name in self.all_names()? {
            let mut known = self.known(&name)?;
            let before = known.entries.len();
            known.entries.retain(|entry| self.folder(&entry.sha256).exists());
            if known.entries.len() != before {
                record::write(&self.note(&name), &known)?;
            }
        }
        Ok(())
    }
}

/// Returns the disks in `derived` that were not written to their end; whoever has claimed it knows that
/// nobody does any more.
pub(super) fn unfinished_in(derived: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    let mut found = Vec::new();
    if derived.exists() {
        for entry in derived.read_dir_utf8()? {
            let entry = entry?;
            if entry.file_name().starts_with(UNFINISHED) {
                found.push(entry.into_path());
            }
        }
    }
    Ok(found)
}

fn unneeded(
    folder: &Utf8Path,
    digest: &Sha256,
    how: Prune,
    newest: &BTreeSet<Sha256>,
) -> Option<&'static str> {
    let held = folder.join(USERS).read_dir_utf8().is_ok_and(|mut users| users.next().is_some());
    if !held && !folder.join(Content::FILE).is_file() {
        return Some(INTERRUPTED);
    }
    match how {
        _ if held => None,
        Prune::Unused => Some("no lab needs it"),
        Prune::Superseded if newest.contains(digest) => None,
        Prune::Superseded => Some("a newer one has taken its place"),
    }
}

fn taken(path: Utf8PathBuf, why: &'static str) -> Result<Pruned> {
    let bytes = disk_usage(&path)?;
    Ok(Pruned { path, why, bytes })
}

/// Returns how many bytes of disk `path` takes, holes not counted.
fn disk_usage(path: &Utf8Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = fs_err::symlink_metadata(path)?;
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        for inner in path.read_dir_utf8()? {
            bytes += disk_usage(inner?.path())?;
        }
    }
    Ok(bytes)
}
