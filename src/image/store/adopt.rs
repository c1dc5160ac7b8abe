//! How an image comes into the store: all of its folder at once, after its proofs held.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;

use super::record::{Content, Entry, Form, Provenance, Stat};
use super::{Store, VerifiedImage, record};
use crate::error::{Error, Kind, Result};
use crate::image::digest::{Sha256, Sha512, size_and_digests};
use crate::image::format::{Compression, ImageFormat};
use crate::image::manifest::{Manifest, is_plain_file_name};
use crate::image::proof::Proven;
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
    /// Takes over a file that a builder made and returns it as an image. Reads it once, so this blocks.
    ///
    /// # Errors
    /// [`Kind::Io`] if it cannot be read or moved.
    pub fn adopt_built(&self, name: &ImageName, built: &Built<'_>) -> Result<VerifiedImage> {
        let digests = size_and_digests(built.file)?;
        let provenance = Provenance::Built { record: built.record.clone() };
        let _lock = self.lock()?;
        let form =
            Form { format: built.format, compression: Compression::None, unpacked_size: None };
        let content = self.take_in(built.file, built.file_name, digests, form)?;
        self.note_entry(name, content, |sha256| Entry {
            key: built.inputs,
            sha256,
            version: built.version.to_owned(),
            adopted: Timestamp::now(),
            provenance,
        })
    }

    /// Takes over a downloaded file whose proofs held, and remembers when it was signed.
    pub(in crate::image) fn adopt_proven(
        &self,
        manifest: &Manifest,
        file: &Utf8Path,
        file_name: &str,
        url: &str,
        proven: &Proven,
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
        self.note_entry(manifest.name(), content, |sha256| Entry {
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
        })
    }

    /// Notes that an image also answers for `manifest`, whose pins are this image's own digests, and
    /// returns it as that.
    pub(in crate::image) fn also_answers(
        &self,
        image: &VerifiedImage,
        manifest: &Manifest,
    ) -> Result<VerifiedImage> {
        let _lock = self.lock()?;
        let content = (image.folder.clone(), image.content.clone());
        let entry = image.entry.clone();
        let version = manifest.version().map_or_else(String::new, ToString::to_string);
        self.note_entry(manifest.name(), content, |_| Entry {
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
        if let Some(content) = record::read::<Content>(&folder.join(Content::FILE))? {
            // The same bytes are here already, under this name or another.
            if content.size == digests.0 && folder.join(&content.file).is_file() {
                fs_err::remove_file(file)?;
                return Ok((folder, content));
            }
        }
        let incoming = tempfile::Builder::new()
            .prefix("incoming-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&self.root)?;
        let inside = utf8(incoming.path())?;
        let placed = inside.join(file_name);
        move_file(file, &placed)?;
        let content = Content::new(file_name, digests, form, Stat::of(&placed)?);
        record::write(&inside.join(Content::FILE), &content)?;
        if folder.exists() {
            // Left by an interruption, without its note: nothing in it was ever believed.
            fs_err::remove_dir_all(&folder)?;
        }
        fs_err::rename(&inside, &folder)?;
        // Nothing is left under the temporary name for its guard to remove.
        let _ = incoming.keep();
        record::sync_folder(&self.root)?;
        Ok((folder, content))
    }

    fn note_entry(
        &self,
        name: &ImageName,
        (folder, content): (Utf8PathBuf, Content),
        entry: impl FnOnce(Sha256) -> Entry,
    ) -> Result<VerifiedImage> {
        let entry = entry(content.sha256);
        let mut known = self.known(name)?;
        known.entries.retain(|old| (old.key, old.sha256) != (entry.key, entry.sha256));
        known.entries.push(entry.clone());
        known.newest_signature = known.newest_signature.max(entry.provenance.signed_at());
        record::write(&self.note(name), &known)?;
        Ok(VerifiedImage { folder, name: name.clone(), content, entry })
    }

    /// Takes the image called `name` that answers for `key` out of the store, since it has changed after
    /// it was proven: its file goes into quarantine, what was derived from it away. Returns where it is;
    /// `None` if another process did so meanwhile.
    pub(super) fn set_aside(
        &self,
        name: &ImageName,
        key: &Sha256,
        why: &Error,
    ) -> Result<Option<Utf8PathBuf>> {
        let _lock = self.lock()?;
        let known = self.known(name)?;
        let Some(entry) = known.entries.iter().rev().find(|entry| entry.key == *key) else {
            return Ok(None);
        };
        let folder = self.folder(&entry.sha256);
        let Some(content) = record::read::<Content>(&folder.join(Content::FILE))? else {
            return Ok(None);
        };
        let file = folder.join(content.file);
        if Stat::of(&file).is_ok_and(|stat| stat == content.stat) {
            return Ok(None);
        }
        let kept = self.quarantine(name, &file, why)?;
        fs_err::remove_dir_all(&folder)?;
        Ok(Some(kept))
    }

    /// Moves a download whose proofs did not hold out of the way, with the reason beside it, and
    /// returns where it is. Nothing looks for images there.
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
        Ok(folder)
    }
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
