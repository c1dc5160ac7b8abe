//! The image store: every image under its own SHA-256, and what is known by each name.
//!
//! ```text
//! images/<sha256>/<file>         the image; never there before its proofs held
//! images/<sha256>/image.json     its digests, and how the file looked when they held
//! images/<sha256>/derived/       the same disk in other formats
//! images/<sha256>/users/         labs that need it
//! images/names/<name>.json       what that name has stood for, and its newest signature
//! images/partial/                downloads that are not done
//! images/quarantine/             downloads whose proofs did not hold, and why
//! ```
//! A folder of a digest appears whole, by one rename, or not at all.

mod adopt;
mod claim;
mod prune;
mod record;

use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind::NotFound;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;

pub use adopt::Built;
pub(super) use claim::Claim;
pub use prune::{Prune, Pruned};
pub use record::Provenance;
pub(super) use record::Stat;
use record::{Content, Entry, Known};

use super::digest::{Sha256, Sha512};
use super::format::{Compression, ImageFormat};
use super::manifest::Manifest;
use crate::error::{Error, Kind, Result};
use crate::event::{Feed, Level};
use crate::recipe::{ImageName, LabName};

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
    entry: Entry,
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
        self.folder.join("derived")
    }
}

impl Store {
    /// Returns the store in `root`, which is made if it is not there.
    ///
    /// # Errors
    /// [`Kind::Io`] if it cannot be made, or if others may write to it: what they can write to, they
    /// could swap after it was proven.
    pub fn open(root: &Utf8Path) -> Result<Self> {
        let root = camino::absolute_utf8(root)?;
        private_folder(&root)?;
        let store = Store { root };
        for folder in [store.names(), store.partial(), store.quarantined()] {
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
        self.find_built(manifest.name(), &manifest.identity())
    }

    /// Returns the image called `name` that was built from the inputs with the digest `inputs`; as
    /// [`Store::find`].
    pub fn find_built(&self, name: &ImageName, inputs: &Sha256) -> Result<Option<VerifiedImage>> {
        let known = self.known(name)?;
        match known.entries.into_iter().rev().find(|entry| entry.key == *inputs) {
            Some(entry) => self.image(name, entry, Self::trusted),
            None => Ok(None),
        }
    }

    /// Returns the image called `name` whose file has the digest `sha256`, also if a newer one has taken its
    /// place; as [`Store::find`].
    pub fn find_digest(&self, name: &ImageName, sha256: &Sha256) -> Result<Option<VerifiedImage>> {
        let known = self.known(name)?;
        match known.entries.into_iter().rev().find(|entry| entry.sha256 == *sha256) {
            Some(entry) => self.image(name, entry, Self::trusted),
            None => Ok(None),
        }
    }

    /// Returns the image as [`Store::find_built`] does, but for one that changed after it was proven: that
    /// is told, its file is moved to quarantine, and it is not here any more.
    pub(super) fn find_intact(
        &self,
        name: &ImageName,
        inputs: &Sha256,
        feed: &Feed,
    ) -> Result<Option<VerifiedImage>> {
        match self.find_built(name, inputs) {
            Err(error) if error.kind() == Kind::Untrusted => {
                let Some(kept) = self.set_aside(name, inputs, &error)? else {
                    return self.find_built(name, inputs);
                };
                let text = format!("{error}; it was moved to {kept}, and is got anew");
                feed.notice(Level::Warning, text);
                Ok(None)
            }
            found => found,
        }
    }

    /// Returns every image, by name, each name's oldest first; files are not read.
    pub fn list(&self) -> Result<Vec<VerifiedImage>> {
        let mut images = Vec::new();
        for name in self.all_names()? {
            for entry in self.known(&name)?.entries {
                images.extend(self.image(&name, entry, |_, _, _| Ok(()))?);
            }
        }
        Ok(images)
    }

    /// Returns the time of the newest signature ever accepted for `name`.
    pub fn newest_signature(&self, name: &ImageName) -> Result<Option<Timestamp>> {
        Ok(self.known(name)?.newest_signature)
    }

    /// Notes that `lab` needs the image, so that it is not pruned.
    pub fn hold(&self, image: &VerifiedImage, lab: &LabName) -> Result<()> {
        let users = image.folder.join("users");
        private_folder(&users)?;
        fs_err::write(users.join(lab.as_str()), b"")?;
        Ok(())
    }

    /// Returns the images that `lab` needs, by name, each name's oldest first; files are not read.
    pub fn held(&self, lab: &LabName) -> Result<Vec<VerifiedImage>> {
        let mut images = self.list()?;
        images.retain(|image| image.folder.join("users").join(lab.as_str()).exists());
        Ok(images)
    }

    /// Notes that `lab` needs no image any more.
    pub fn release(&self, lab: &LabName) -> Result<()> {
        for (_, folder) in self.content_folders()? {
            match fs_err::remove_file(folder.join("users").join(lab.as_str())) {
                Err(error) if error.kind() != NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn image(
        &self,
        name: &ImageName,
        entry: Entry,
        trusted: impl FnOnce(&Self, &Utf8Path, &mut Content) -> Result<()>,
    ) -> Result<Option<VerifiedImage>> {
        let folder = self.folder(&entry.sha256);
        let Some(mut content) = record::read::<Content>(&folder.join(Content::FILE))? else {
            return Ok(None);
        };
        // Somebody removed the file and left its note.
        if folder.join(&content.file).symlink_metadata().is_err_and(|e| e.kind() == NotFound) {
            return Ok(None);
        }
        trusted(self, &folder, &mut content)?;
        Ok(Some(VerifiedImage { folder, name: name.clone(), content, entry }))
    }

    /// Believes a file that looks as it did, reads it again if not.
    fn trusted(&self, folder: &Utf8Path, content: &mut Content) -> Result<()> {
        let path = folder.join(&content.file);
        let stat = Stat::of(&path)?;
        if stat != content.stat {
            reread(&path, content)?;
            content.stat = stat;
            record::write(&folder.join(Content::FILE), content)?;
        }
        Ok(())
    }

    fn known(&self, name: &ImageName) -> Result<Known> {
        Ok(record::read(&self.note(name))?.unwrap_or_else(|| Known::nothing(name)))
    }

    /// Waits until no other process changes the store's folders; moves and notes are short.
    fn lock(&self) -> Result<std::fs::File> {
        let file = std::fs::File::create(self.root.join("lock"))?;
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

    fn quarantined(&self) -> Utf8PathBuf {
        self.root.join("quarantine")
    }
}

/// Makes `folder` with mode 0700, or checks that nobody else can write to it.
fn private_folder(folder: &Utf8Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| Error::new(Kind::Io, format!("{folder} cannot be made")).because(error))?;
    let meta = fs_err::metadata(folder)?;
    if meta.mode() & 0o022 != 0 {
        return Err(Error::new(Kind::Io, format!("others can write to {folder}"))
            .hint(format!("chmod go-w {folder}")));
    }
    if meta.mode() & 0o077 != 0 && rustix::process::geteuid().as_raw() == meta.uid() {
        fs_err::set_permissions(folder, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn reread(path: &Utf8Path, content: &Content) -> Result<()> {
    let sha256 = Sha256::of_file(path)?;
    if sha256 == content.sha256 {
        return Ok(());
    }
    Err(Error::new(
        Kind::Untrusted,
        format!("{path} has changed since it was proven: SHA-256 {} → {sha256}", content.sha256),
    )
    .hint("the next `nestlab up`, `image fetch` or `image build` sets it aside and gets it anew"))
}

#[cfg(test)]
mod tests;
