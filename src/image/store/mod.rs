//! The image store: every image under its own SHA-256, and what is known by each name.
//!
//! ```text
//! images/<sha256>/<file>         the image; never there before its proofs held
//! images/<sha256>/image.json     its digests, and how the file looked when they held
//! images/<sha256>/derived/       the same disk in other formats
//! images/<sha256>/users/         labs that need it
//! images/names/<name>.json       what that name has stood for, and its newest signature
//! images/<sha256>/proofs/        what it was proven by, for each manifest
//! images/partial/                downloads and builds that are not done
//! images/quarantine/             the last download of each name whose proofs did not hold, and why
//! images/locks/                  an empty file for each folder that was ever claimed
//! ```
//! A folder of a digest appears whole, by one rename, or not at all.

mod audit;
mod dir_lock;
mod import;
mod prune;
mod record;
mod trust;

use std::io::ErrorKind::NotFound;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use sha2::Digest as _;

pub use audit::Audited;
pub(super) use dir_lock::DirLock;
pub use import::Built;
pub use prune::{Prune, Pruned};
pub use record::Provenance;
pub(super) use record::Stat;
use record::{Content, ImageEntry, ImageRecord};
use trust::private_folder;

use super::digest::{Sha256, Sha512};
use super::format::{Compression, ImageFormat};
use super::manifest::{Manifest, is_plain_file_name};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::recipe::ImageName;

/// The folder of an image with a note for each lab that needs it.
const USERS: &str = "users";

/// The folder of an image with the same disk in other formats.
const DERIVED: &str = "derived";

/// The store's folder that claims are noted in.
const LOCKS: &str = "locks";

/// What the name of a disk begins with that is still being written, in [`DERIVED`].
pub(super) const UNFINISHED: &str = "unfinished-";

/// What the name of a folder begins with that is not yet, or no more, an image's.
const INCOMING: &str = "incoming-";

/// The image store in one folder.
#[derive(Debug, Clone)]
pub struct Store {
    root: Utf8PathBuf,
}

/// An image in the store whose proofs held. Only the store makes one, from what the verifier or a
/// builder hands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedImage {
    folder: Utf8PathBuf,
    name: ImageName,
    content: Content,
    entry: ImageEntry,
}

impl VerifiedImage {
    /// Returns the file's absolute path. It is shared: read it, never write to it.
    pub fn path(&self) -> Utf8PathBuf {
        self.folder.join(&self.content.file)
    }

    /// Returns the file's SHA-256.
    pub fn sha256(&self) -> Sha256 {
        self.content.sha256
    }

    /// Returns the file's SHA-512.
    pub fn sha512(&self) -> Sha512 {
        self.content.sha512
    }

    /// Returns the file's size in bytes.
    pub fn size(&self) -> u64 {
        self.content.size
    }

    /// Returns what the file is once its compression is taken off.
    pub fn format(&self) -> ImageFormat {
        self.content.format
    }

    /// Returns what the file is wrapped in.
    pub fn compression(&self) -> Compression {
        self.content.compression
    }

    /// Returns the most bytes that may come out when it is unpacked, if its manifest says so.
    pub fn unpacked_size(&self) -> Option<u64> {
        self.content.unpacked_size
    }

    /// Returns the name that it was asked for by.
    pub fn name(&self) -> &ImageName {
        &self.name
    }

    /// Returns its version under that name.
    pub fn version(&self) -> &str {
        &self.entry.version
    }

    /// Returns when it was signed; `None` if no OpenPGP signature vouches for it.
    pub fn signed_at(&self) -> Option<Timestamp> {
        self.entry.provenance.signed_at()
    }

    /// Returns where it came from and why it is believed.
    pub fn provenance(&self) -> &Provenance {
        &self.entry.provenance
    }

    /// Returns when it came into the store under that name.
    pub fn adopted(&self) -> Timestamp {
        self.entry.adopted
    }

    /// Returns the folder for the same disk in other formats; it need not exist.
    pub(super) fn derived(&self) -> Utf8PathBuf {
        self.folder.join(DERIVED)
    }

    /// Waits for the right to work in that folder. What a conversion that was killed left in it is gone then.
    pub(super) async fn claim_derived(&self, events: &EventSink) -> Result<DirLock> {
        let root = self.folder.parent().expect("an image's folder lies in the store");
        let why = "waiting for another conversion of the same image";
        let derived = self.derived();
        let claim = DirLock::wait(&root.join(LOCKS), &derived, events, why).await?;
        for unfinished in prune::unfinished_in(&derived)? {
            fs_err::remove_dir_all(unfinished)?;
        }
        Ok(claim)
    }
}

impl Store {
    /// Returns the store in `root`, which is made if it is not there.
    ///
    /// # Errors
    /// [`Kind::Untrusted`] if it, or a folder above it, belongs to another user than this one or root, or
    /// if others may write to it: they could swap what was proven. [`Kind::Io`] if it cannot be made.
    pub fn open(root: &Utf8Path) -> Result<Self> {
        let root = trust::reach(&camino::absolute_utf8(root)?)?;
        private_folder(&root)?;
        let store = Store { root };
        for folder in [store.names(), store.partial(), store.quarantined(), store.locks()] {
            private_folder(&folder)?;
        }
        Ok(store)
    }

    /// Returns the folder that the store lies in.
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// Returns the image that answers for `manifest`, if it is here. The file is read again only if
    /// it looks other than when it was proven, and then this blocks.
    ///
    /// # Errors
    /// [`Kind::Untrusted`] if the file is not what was proven, [`Kind::Io`] if the store is damaged.
    pub fn find(&self, manifest: &Manifest) -> Result<Option<VerifiedImage>> {
        self.find_pinned(manifest.name(), &manifest.identity(), Pins::of(manifest))
    }

    /// Returns the image called `name` that was built from the inputs with the digest `inputs`; as
    /// [`Store::find`].
    pub fn find_built(&self, name: &ImageName, inputs: &Sha256) -> Result<Option<VerifiedImage>> {
        self.find_pinned(name, inputs, Pins::default())
    }

    fn find_pinned(
        &self,
        name: &ImageName,
        key: &Sha256,
        pins: Pins,
    ) -> Result<Option<VerifiedImage>> {
        let known = self.known(name)?;
        match known.entries.into_iter().rev().find(|entry| entry.key == *key) {
            Some(entry) => self.image(name, entry, pins, Self::trusted),
            None => Ok(None),
        }
    }

    /// Returns the image called `name` whose file has the digest `sha256`, also if a newer one has taken its
    /// place; as [`Store::find`].
    pub fn find_digest(&self, name: &ImageName, sha256: &Sha256) -> Result<Option<VerifiedImage>> {
        let known = self.known(name)?;
        match known.entries.into_iter().rev().find(|entry| entry.sha256 == *sha256) {
            Some(entry) => self.image(name, entry, Pins::default(), Self::trusted),
            None => Ok(None),
        }
    }

    /// Returns the image as [`Store::find`] does, by its `key` and what its manifest pins, held for the lab
    /// in the directory `holder`. One that is not what was proven is told of and moved to quarantine, and is
    /// not here any more.
    pub(super) fn find_intact(
        &self,
        name: &ImageName,
        key: &Sha256,
        pins: Pins,
        holder: Option<&Utf8Path>,
        events: &EventSink,
    ) -> Result<Option<VerifiedImage>> {
        let found = match self.find_pinned(name, key, pins) {
            Err(error) if error.kind() == Kind::Untrusted => {
                match self.set_aside(name, key, pins, &error)? {
                    None => self.find_pinned(name, key, pins)?,
                    Some(kept) => {
                        let text = format!("{error}; it was moved to {kept}, and is got anew");
                        events.notice(Level::Warning, text);
                        None
                    }
                }
            }
            found => found?,
        };
        let (Some(image), Some(lab)) = (&found, holder) else { return Ok(found) };
        let _lock = self.lock()?;
        // It may have been pruned since it was found; then it is not here.
        Ok(if self.hold_if_there(image, lab)? { found } else { None })
    }

    /// Returns every image, by name, each name's oldest first; files are not read. What cannot be what was
    /// proven is left out: [`Store::find`] says why.
    pub fn list(&self) -> Result<Vec<VerifiedImage>> {
        let mut images = Vec::new();
        for name in self.all_names()? {
            for entry in self.known(&name)?.entries {
                match self.image(&name, entry, Pins::default(), |_, _, _| Ok(())) {
                    Err(error) if error.kind() == Kind::Untrusted => {}
                    image => images.extend(image?),
                }
            }
        }
        Ok(images)
    }

    /// Returns the time of the newest signature ever accepted for `name`.
    pub fn newest_signature(&self, name: &ImageName) -> Result<Option<Timestamp>> {
        Ok(self.known(name)?.newest_signature)
    }

    /// Notes that the lab in the directory `lab` needs the image, so that it is not pruned.
    ///
    /// # Errors
    /// [`Kind::Failed`] if it was removed meanwhile, [`Kind::Io`].
    pub fn hold(&self, image: &VerifiedImage, lab: &Utf8Path) -> Result<()> {
        let _lock = self.lock()?;
        if self.hold_if_there(image, lab)? {
            return Ok(());
        }
        Err(Error::failed(format!("{} was removed from the image store just now", image.name))
            .hint("run the same command again: it is fetched or built anew"))
    }

    /// Notes the same if the image is still there, and returns whether it is. The store is locked.
    fn hold_if_there(&self, image: &VerifiedImage, lab: &Utf8Path) -> Result<bool> {
        if !image.path().exists() {
            return Ok(false);
        }
        let users = image.folder.join(USERS);
        private_folder(&users)?;
        let lab = really(lab)?;
        // The name is what counts; what is in it is for people.
        fs_err::write(users.join(user(&lab)?), format!("{lab}\n"))?;
        Ok(true)
    }

    /// Returns the images that the lab in the directory `lab` needs, by name, each name's oldest first;
    /// files are not read.
    pub fn held(&self, lab: &Utf8Path) -> Result<Vec<VerifiedImage>> {
        let users = users(lab)?;
        let mut images = self.list()?;
        images
            .retain(|image| users.iter().any(|user| image.folder.join(USERS).join(user).exists()));
        Ok(images)
    }

    /// Notes that the lab in the directory `lab` needs no image any more.
    pub fn release(&self, lab: &Utf8Path) -> Result<()> {
        let users = users(lab)?;
        let _lock = self.lock()?;
        for (_, folder) in self.content_folders()? {
            for user in &users {
                match fs_err::remove_file(folder.join(USERS).join(user)) {
                    Err(error) if error.kind() != NotFound => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn image(
        &self,
        name: &ImageName,
        entry: ImageEntry,
        pins: Pins,
        trusted: impl FnOnce(&Self, &Utf8Path, &mut Content) -> Result<()>,
    ) -> Result<Option<VerifiedImage>> {
        let folder = self.folder(&entry.sha256);
        let Some(mut content) = self.content(&folder)? else { return Ok(None) };
        bound(&folder, &content, &entry.sha256, pins)?;
        // Somebody removed the file and left its note.
        if folder.join(&content.file).symlink_metadata().is_err_and(|e| e.kind() == NotFound) {
            return Ok(None);
        }
        trusted(self, &folder, &mut content)?;
        Ok(Some(VerifiedImage { folder, name: name.clone(), content, entry }))
    }

    /// Reads what is noted of the image in `folder`.
    ///
    /// # Errors
    /// [`Kind::Untrusted`] if another user owns it, or could have written to it.
    fn content(&self, folder: &Utf8Path) -> Result<Option<Content>> {
        let note = folder.join(Content::FILE);
        if note.symlink_metadata().is_err_and(|error| error.kind() == NotFound) {
            return Ok(None);
        }
        private_folder(folder)?;
        trust::owned(&note, &fs_err::symlink_metadata(&note)?)?;
        record::read(&note)
    }

    /// Believes a file that looks as it did, reads it again if not.
    fn trusted(&self, folder: &Utf8Path, content: &mut Content) -> Result<()> {
        let path = folder.join(&content.file);
        trust::owned(&path, &fs_err::symlink_metadata(&path)?)?;
        let stat = Stat::of(&path)?;
        if stat != content.stat {
            reread(&path, content)?;
            content.stat = stat;
            record::write(&folder.join(Content::FILE), content)?;
        }
        Ok(())
    }

    fn known(&self, name: &ImageName) -> Result<ImageRecord> {
        Ok(record::read(&self.note(name))?.unwrap_or_else(|| ImageRecord::nothing(name)))
    }

    /// Waits until no other process changes the store's folders; moves and notes are short.
    fn lock(&self) -> Result<std::fs::File> {
        let path = self.root.join("lock");
        let mut options = std::fs::OpenOptions::new();
        let file = record::no_link(options.write(true).create(true).truncate(false))
            .open(&path)
            .map_err(|error| Error::from(error).context(path))?;
        file.lock()?;
        Ok(file)
    }

    fn note(&self, name: &ImageName) -> Utf8PathBuf {
        self.names().join(format!("{name}.json"))
    }

    fn all_names(&self) -> Result<Vec<ImageName>> {
        let mut names = Vec::new();
        for file in self.names().read_dir_utf8()? {
            let file = file?;
            names.extend(file.file_name().strip_suffix(".json").and_then(|n| n.parse().ok()));
        }
        names.sort();
        Ok(names)
    }

    fn content_folders(&self) -> Result<Vec<(Sha256, Utf8PathBuf)>> {
        let mut folders = Vec::new();
        for folder in self.root.read_dir_utf8()? {
            let folder = folder?;
            if let Ok(digest) = folder.file_name().parse() {
                folders.push((digest, folder.into_path()));
            }
        }
        folders.sort();
        Ok(folders)
    }

    fn folder(&self, digest: &Sha256) -> Utf8PathBuf {
        self.root.join(digest.to_string())
    }

    fn names(&self) -> Utf8PathBuf {
        self.root.join("names")
    }

    /// Returns the folder for downloads that are not done.
    pub(super) fn partial(&self) -> Utf8PathBuf {
        self.root.join("partial")
    }

    /// Returns the folder that claims are noted in, see [`DirLock`].
    pub(super) fn locks(&self) -> Utf8PathBuf {
        self.root.join(LOCKS)
    }

    fn quarantined(&self) -> Utf8PathBuf {
        self.root.join("quarantine")
    }
}

/// Returns where `lab` really lies: a lab is the same one whichever link leads to it.
fn really(lab: &Utf8Path) -> Result<Utf8PathBuf> {
    match lab.canonicalize_utf8() {
        Ok(lab) => Ok(lab),
        Err(error) if error.kind() == NotFound => Ok(camino::absolute_utf8(lab)?),
        Err(error) => Err(Error::from(error).context(lab)),
    }
}

/// Returns what the lab in the directory `lab` is called among an image's users: its name, and a digest of
/// the whole path, since labs of two state directories may have one name.
fn user(lab: &Utf8Path) -> Result<String> {
    let digest = sha2::Sha256::digest(lab.as_str());
    Ok(format!("{}@{}", name_of(lab)?, hex::encode(&digest[..8])))
}

/// Returns all that it may be called: earlier versions took the name alone.
fn users(lab: &Utf8Path) -> Result<[String; 2]> {
    let lab = really(lab)?;
    Ok([user(&lab)?, name_of(&lab)?.to_owned()])
}

fn name_of(lab: &Utf8Path) -> Result<&str> {
    lab.file_name().ok_or_else(|| Error::internal(format!("{lab} is no lab's directory")))
}

/// What a manifest says of an image's bytes beforehand.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pins {
    size: Option<u64>,
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
}

impl Pins {
    /// Returns what `manifest` pins; nothing, if the image is built.
    pub(super) fn of(manifest: &Manifest) -> Self {
        manifest.download().map_or_else(Pins::default, |download| Pins {
            size: download.size,
            sha256: download.sha256,
            sha512: download.sha512,
        })
    }
}

/// Checks that the image in `folder` is the one that everything about it speaks of: the folder's name, the
/// name that it is found by, its own note, and what its manifest pins.
fn bound(folder: &Utf8Path, content: &Content, entry: &Sha256, pins: Pins) -> Result<()> {
    let refused = |why: String| Error::new(Kind::Untrusted, format!("{folder}: {why}")).hint(ANEW);
    if content.sha256 != *entry {
        let found = content.sha256;
        return Err(refused(format!("its note is of another image, SHA-256 {found}")));
    }
    if !is_plain_file_name(&content.file) || content.file == Content::FILE {
        let file = content.file.escape_debug();
        return Err(refused(format!(
            "its note names the file `{file}`, which is not an image in it"
        )));
    }
    let differs = pins.size.is_some_and(|size| size != content.size)
        || pins.sha256.is_some_and(|sha256| sha256 != content.sha256)
        || pins.sha512.is_some_and(|sha512| sha512 != content.sha512);
    if differs {
        return Err(refused("it is not the image that the manifest pins".to_owned()));
    }
    Ok(())
}

/// What becomes of an image that is not what was proven.
const ANEW: &str =
    "the next `nestlab up`, `image fetch` or `image build` sets it aside and gets it anew";

fn reread(path: &Utf8Path, content: &Content) -> Result<()> {
    let sha256 = Sha256::of_file(path)?;
    if sha256 == content.sha256 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Untrusted,
        format!("{path} has changed since it was proven: SHA-256 {} → {sha256}", content.sha256),
    )
    .hint(ANEW))
}

#[cfg(test)]
mod tests;
