//! How an image comes into the store: all of its folder at once, after its proofs held.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;

use super::record::{Content, Form, ImageEntry, Provenance, Stat, StoredProofs};
use super::trust::private_folder;
use super::{INCOMING, Pins, Store, USERS, VerifiedImage, bound, record, trust};
use crate::error::{Error, Kind, Result};
use crate::image::digest::{Sha256, Sha512, size_and_digests};
use crate::image::format::{Compression, ImageFormat};
use crate::image::manifest::{Manifest, is_plain_file_name};
use crate::image::verify::{Proven, SignatureFiles};
use crate::recipe::ImageName;

/// What a builder made.
#[derive(Debug, Clone)]
pub struct Built<'a> {
    /// The finished file; it is moved into the store.
    pub file: &'a Utf8Path,
    /// Its name there: letters, digits and `._+~-`.
    pub file_name: &'a str,
    /// What it is; a built image is not compressed.
    pub format: ImageFormat,
    /// What to show as its version, such as the archive's release date.
    pub version: &'a str,
    /// A digest of all that decides the file's bytes; [`Store::find_built`] finds it by this.
    pub inputs: Sha256,
    /// What is to be known of it later, such as its package versions.
    pub record: serde_json::Value,
}

impl Store {
    /// Takes over a file that a builder made and returns it as an image, held for the lab in the directory
    /// `holder`, if there is one. Reads it once, so this blocks.
    ///
    /// # Errors
    /// [`Kind::Io`] if it cannot be read or moved.
    pub fn adopt_built(
        &self,
        name: &ImageName,
        built: &Built<'_>,
        holder: Option<&Utf8Path>,
    ) -> Result<VerifiedImage> {
        let digests = size_and_digests(built.file)?;
        let provenance = Provenance::Built { record: built.record.clone() };
        let _lock = self.lock()?;
        let form =
            Form { format: built.format, compression: Compression::None, unpacked_size: None };
        let content = self.take_in(built.file, built.file_name, digests, form)?;
        let image = self.note_entry(name, content, |sha256| ImageEntry {
            key: built.inputs,
            sha256,
            version: built.version.to_owned(),
            adopted: Timestamp::now(),
            provenance,
        })?;
        self.held_for(image, holder)
    }

    /// Takes over a downloaded file whose proofs held, remembers when it was signed, and holds it for the
    /// lab in the directory `holder`.
    pub(in crate::image) fn adopt_proven(
        &self,
        manifest: &Manifest,
        file: &Utf8Path,
        file_name: &str,
        url: &str,
        (proven, evidence): (&Proven, &SignatureFiles),
        holder: Option<&Utf8Path>,
    ) -> Result<VerifiedImage> {
        let download = manifest.download().ok_or_else(|| {
            Error::internal(format!("{} is built, not downloaded", manifest.name()))
        })?;
        let digests = (proven.size(), proven.sha256(), proven.sha512());
        let form = Form {
            format: download.format,
            compression: download.compression,
            unpacked_size: download.unpacked_size,
        };
        let _lock = self.lock()?;
        let content = self.take_in(file, file_name, digests, form)?;
        let kept = StoredProofs::new(manifest, url, file_name, evidence);
        self.keep_proofs(&content.0, &manifest.identity(), &kept)?;
        let image = self.note_entry(manifest.name(), content, |sha256| ImageEntry {
            key: manifest.identity(),
            sha256,
            version: manifest.version().map_or_else(String::new, ToString::to_string),
            adopted: Timestamp::now(),
            provenance: Provenance::Downloaded {
                url: url.to_owned(),
                proofs: proven.proofs().to_vec(),
                signed_at: proven.signed_at(),
                signer: proven.signer().cloned(),
            },
        })?;
        self.held_for(image, holder)
    }

    /// Holds the image before the store is unlocked: nothing can prune it in between.
    fn held_for(&self, image: VerifiedImage, holder: Option<&Utf8Path>) -> Result<VerifiedImage> {
        if let Some(lab) = holder {
            self.hold_if_there(&image, lab)?;
        }
        Ok(image)
    }

    /// Notes that an image also answers for `manifest`, whose pins are this image's own digests, and
    /// returns it as that.
    pub(in crate::image) fn also_answers(
        &self,
        image: &VerifiedImage,
        manifest: &Manifest,
    ) -> Result<VerifiedImage> {
        let _lock = self.lock()?;
        self.keep_proofs_also(image, manifest)?;
        let content = (image.folder.clone(), image.content.clone());
        let entry = image.entry.clone();
        let version = manifest.version().map_or_else(String::new, ToString::to_string);
        self.note_entry(manifest.name(), content, |_| ImageEntry {
            key: manifest.identity(),
            version,
            ..entry
        })
    }

    /// Moves `file` into the folder of its digest.
    fn take_in(
        &self,
        file: &Utf8Path,
        file_name: &str,
        digests: (u64, Sha256, Sha512),
        form: Form,
    ) -> Result<(Utf8PathBuf, Content)> {
        if !is_plain_file_name(file_name) || file_name == Content::FILE {
            return Err(Error::internal(format!("`{file_name}` cannot be an image's file name")));
        }
        let folder = self.folder(&digests.1);
        if let Some(content) = self.as_it_was_proven(&folder, &digests.1) {
            // The same bytes are here already, under this name or another.
            fs_err::remove_file(file)?;
            return Ok((folder, content));
        }
        let incoming = tempfile::Builder::new()
            .prefix(INCOMING)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&self.root)?;
        let inside = utf8(incoming.path())?;
        let placed = inside.join(file_name);
        move_file(file, &placed)?;
        let content = Content::new(file_name, digests, form, Stat::of(&placed)?);
        record::write(&inside.join(Content::FILE), &content)?;
        if folder.symlink_metadata().is_ok() {
            // Left by an interruption, or changed since: nothing in it is believed but who needs it.
            self.keep_users(&folder, &inside)?;
            fs_err::remove_dir_all(&folder)?;
        }
        fs_err::rename(&inside, &folder)?;
        // Nothing is left under the temporary name for its guard to remove.
        let _ = incoming.keep();
        record::sync_folder(&self.root)?;
        Ok((folder, content))
    }

    /// Returns the content of `folder`, if it is the image with that digest and looks as it did.
    fn as_it_was_proven(&self, folder: &Utf8Path, digest: &Sha256) -> Option<Content> {
        let content = self.content(folder).ok()??;
        bound(folder, &content, digest, Pins::default()).ok()?;
        looks_as_noted(&folder.join(&content.file), &content).then_some(content)
    }

    /// Moves the notes of who needs the image in `old` over to `new`, if nobody else could have made them.
    fn keep_users(&self, old: &Utf8Path, new: &Utf8Path) -> Result<()> {
        let users = old.join(USERS);
        if users.symlink_metadata().is_ok()
            && [old, &users].iter().all(|f| private_folder(f).is_ok())
        {
            fs_err::rename(users, new.join(USERS))?;
        }
        Ok(())
    }

    fn note_entry(
        &self,
        name: &ImageName,
        (folder, content): (Utf8PathBuf, Content),
        entry: impl FnOnce(Sha256) -> ImageEntry,
    ) -> Result<VerifiedImage> {
        let entry = entry(content.sha256);
        let mut known = self.known(name)?;
        known.entries.retain(|old| (old.key, old.sha256) != (entry.key, entry.sha256));
        known.entries.push(entry.clone());
        known.newest_signature = known.newest_signature.max(entry.provenance.signed_at());
        record::write(&self.note(name), &known)?;
        Ok(VerifiedImage { folder, name: name.clone(), content, entry })
    }

    /// Takes the image called `name` that answers for `key` out of the store, since it is not what was
    /// proven: its file goes into quarantine, what was derived from it away. Returns where it is; `None` if
    /// another process did so meanwhile.
    pub(super) fn set_aside(
        &self,
        name: &ImageName,
        key: &Sha256,
        pins: Pins,
        why: &Error,
    ) -> Result<Option<Utf8PathBuf>> {
        let _lock = self.lock()?;
        let known = self.known(name)?;
        let Some(entry) = known.entries.iter().rev().find(|entry| entry.key == *key) else {
            return Ok(None);
        };
        let folder = self.folder(&entry.sha256);
        let file = match self.content(&folder) {
            Ok(None) => return Ok(None),
            Ok(Some(content)) => {
                let file = folder.join(&content.file);
                match bound(&folder, &content, &entry.sha256, pins) {
                    Ok(()) if looks_as_noted(&file, &content) => return Ok(None),
                    Ok(()) => file,
                    // What its note says is not to be followed to any file.
                    Err(_) => folder.join(Content::FILE),
                }
            }
            Err(_) => folder.join(Content::FILE),
        };
        self.move_to_quarantine(name, &folder, &file, why).map(Some)
    }

    /// Takes what lies in `folder` out of the store, whatever its note says of it now; `None` if it is not
    /// there any more.
    pub(super) fn take_out(
        &self,
        name: &ImageName,
        folder: &Utf8Path,
        why: &Error,
    ) -> Result<Option<Utf8PathBuf>> {
        let _lock = self.lock()?;
        let note = folder.join(Content::FILE);
        if note.symlink_metadata().is_err() {
            return Ok(None);
        }
        let named = self.content(folder).ok().flatten().map(|content| content.file);
        let named = named.filter(|file| is_plain_file_name(file)).map(|file| folder.join(file));
        let file = named.filter(|file| file.symlink_metadata().is_ok()).unwrap_or(note);
        self.move_to_quarantine(name, folder, &file, why).map(Some)
    }

    /// Moves `file` from `folder` into quarantine and removes the rest, but for who needs the image.
    fn move_to_quarantine(
        &self,
        name: &ImageName,
        folder: &Utf8Path,
        file: &Utf8Path,
        why: &Error,
    ) -> Result<Utf8PathBuf> {
        let kept = self.quarantine(name, file, why)?;
        let users = tempfile::Builder::new().prefix(INCOMING).tempdir_in(&self.root)?;
        self.keep_users(folder, &utf8(users.path())?)?;
        fs_err::remove_dir_all(folder)?;
        if users.path().join(USERS).exists() {
            // Whoever gets the image anew finds who needs it.
            fs_err::rename(users.keep(), folder)?;
        }
        Ok(kept)
    }

    /// Moves a download whose proofs did not hold out of the way, with the reason beside it, and
    /// returns where it is; an earlier one of the same name is removed. Nothing looks for images there.
    pub(in crate::image) fn quarantine(
        &self,
        name: &ImageName,
        file: &Utf8Path,
        why: &Error,
    ) -> Result<Utf8PathBuf> {
        let kept = tempfile::Builder::new()
            .prefix(&format!("{}-{name}-", Timestamp::now().strftime("%Y%m%dT%H%M%SZ")))
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(self.quarantined())?;
        let folder = utf8(kept.path())?;
        fs_err::rename(file, folder.join("untrusted"))?;
        fs_err::write(folder.join("why.txt"), format!("{}\n", why.report()))?;
        let _ = kept.keep();
        for earlier in self.quarantined().read_dir_utf8()? {
            let earlier = earlier?;
            if earlier.path() != folder && name_in(earlier.file_name()) == Some(name.as_str()) {
                fs_err::remove_dir_all(earlier.path())?;
            }
        }
        Ok(folder)
    }
}

/// Returns the image's name in the name of a folder in quarantine: between the time and random letters.
fn name_in(folder: &str) -> Option<&str> {
    let (name, _) = folder.split_once('-')?.1.rsplit_once('-')?;
    Some(name)
}

fn looks_as_noted(file: &Utf8Path, content: &Content) -> bool {
    let owned = file.symlink_metadata().is_ok_and(|meta| trust::owned(file, &meta).is_ok());
    owned && Stat::of(file).is_ok_and(|stat| stat == content.stat)
}

/// Moves a file whole; what is moved is readable for its owner only, and on the disk.
fn move_file(from: &Utf8Path, to: &Utf8Path) -> Result<()> {
    match fs_err::rename(from, to) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            fs_err::copy(from, to)?;
            fs_err::remove_file(from)?;
        }
        Err(error) => return Err(error.into()),
    }
    fs_err::set_permissions(to, Permissions::from_mode(0o600))?;
    File::open(to)?.sync_all()?;
    Ok(())
}

fn utf8(path: &std::path::Path) -> Result<Utf8PathBuf> {
    Utf8PathBuf::from_path_buf(path.to_owned())
        .map_err(|path| Error::new(Kind::Io, format!("{} is not UTF-8", path.display())))
}
