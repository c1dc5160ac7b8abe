//! The store's own notes, as JSON: what lies in an image's folder, and what is known by a name.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::image::digest::{Fingerprint, Sha256, Sha512};
use crate::image::format::{Compression, ImageFormat};
use crate::image::manifest::{Manifest, ManifestOrigin};
use crate::image::verify::SignatureFiles;
use crate::recipe::ImageName;

/// The version of the notes. A reader refuses newer ones; fields are only ever added.
const SCHEMA: u32 = 1;

/// What lies in the folder of one digest: `images/<sha256>/image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Content {
    pub(super) schema: u32,
    /// The file's name in the folder.
    pub(super) file: String,
    pub(super) size: u64,
    pub(super) sha256: Sha256,
    pub(super) sha512: Sha512,
    pub(super) format: ImageFormat,
    pub(super) compression: Compression,
    /// The most bytes that may come out when it is unpacked, if its manifest says so.
    pub(super) unpacked_size: Option<u64>,
    /// How the file looked when its digests were known to hold.
    pub(super) stat: Stat,
}

impl Content {
    pub(super) const FILE: &str = "image.json";

    pub(super) fn new(
        file: &str,
        (size, sha256, sha512): (u64, Sha256, Sha512),
        form: Form,
        stat: Stat,
    ) -> Self {
        Content {
            schema: SCHEMA,
            file: file.to_owned(),
            size,
            sha256,
            sha512,
            format: form.format,
            compression: form.compression,
            unpacked_size: form.unpacked_size,
            stat,
        }
    }
}

/// What a file is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    pub(super) format: ImageFormat,
    pub(super) compression: Compression,
    pub(super) unpacked_size: Option<u64>,
}

/// What changes when a file is written to, replaced or restored. A file that still has it is not read
/// again: its change time cannot be set by a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::image) struct Stat {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last modification and of the last change.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stat {
    /// Returns how the plain file at `path` looks.
    pub(in crate::image) fn of(path: &Utf8Path) -> Result<Self> {
        let meta = fs_err::symlink_metadata(path)?;
        if !meta.is_file() {
            return Err(Error::new(Kind::Untrusted, format!("{path} is not a plain file")));
        }
        Ok(Stat {
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// What is known by one image name: `images/names/<name>.json`. It outlives the images themselves,
/// since it remembers the newest signature ever accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub(super) schema: u32,
    pub(super) name: ImageName,
    /// The time of the newest signature accepted for this name.
    pub(super) newest_signature: Option<Timestamp>,
    /// Oldest first.
    pub(super) entries: Vec<ImageEntry>,
}

impl ImageRecord {
    pub(super) fn nothing(name: &ImageName) -> Self {
        ImageRecord {
            schema: SCHEMA,
            name: name.clone(),
            newest_signature: None,
            entries: Vec::new(),
        }
    }
}

/// One image under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageEntry {
    /// What it answers for: a manifest's identity, or a digest of a build's inputs.
    pub(super) key: Sha256,
    pub(super) sha256: Sha256,
    pub(super) version: String,
    pub(super) adopted: Timestamp,
    pub(super) provenance: Provenance,
}

/// What an image was proven by: `images/<sha256>/proofs/<key>.json`, the small files in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredProofs {
    schema: u32,
    /// The manifest's text, and the file that it was in, if any: its own paths begin there.
    pub(super) manifest: String,
    pub(super) origin: Option<Utf8PathBuf>,
    /// What its placeholders stood for.
    pub(super) url: String,
    pub(super) file: String,
    key: Option<String>,
    signature: Option<String>,
    checksums: Option<String>,
    checksums_signify: Option<String>,
    checksums_signature: Option<String>,
    checksums_key: Option<String>,
}

impl StoredProofs {
    /// Returns where the note is for the manifest with this identity.
    pub(super) fn path(folder: &Utf8Path, key: &Sha256) -> Utf8PathBuf {
        folder.join("proofs").join(format!("{key}.json"))
    }

    pub(super) fn new(
        manifest: &Manifest,
        url: &str,
        file: &str,
        evidence: &SignatureFiles,
    ) -> Self {
        let text = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| BASE64.encode(bytes));
        let kept = StoredProofs {
            schema: SCHEMA,
            manifest: String::new(),
            origin: None,
            url: url.to_owned(),
            file: file.to_owned(),
            key: text(&evidence.key),
            signature: text(&evidence.signature),
            checksums: text(&evidence.checksums),
            checksums_signify: text(&evidence.checksums_signify),
            checksums_signature: text(&evidence.checksums_signature),
            checksums_key: text(&evidence.checksums_key),
        };
        kept.under(manifest)
    }

    /// Returns the same proofs as those that another manifest demands.
    pub(super) fn under(self, manifest: &Manifest) -> Self {
        let origin = match manifest.origin() {
            ManifestOrigin::File(path) => Some(path.clone()),
            ManifestOrigin::Shipped | ManifestOrigin::Text(_) => None,
        };
        StoredProofs { manifest: manifest.text().to_owned(), origin, ..self }
    }

    /// # Errors
    /// [`Kind::Untrusted`] if it is not as it was written.
    pub(super) fn evidence(&self) -> Result<SignatureFiles> {
        let bytes = |text: &Option<String>| {
            let bytes = text.as_ref().map(|text| BASE64.decode(text)).transpose();
            bytes.map_err(|error| {
                Error::new(Kind::Untrusted, "what it was proven by is damaged").with_source(error)
            })
        };
        Ok(SignatureFiles {
            key: bytes(&self.key)?,
            signature: bytes(&self.signature)?,
            checksums: bytes(&self.checksums)?,
            checksums_signify: bytes(&self.checksums_signify)?,
            checksums_signature: bytes(&self.checksums_signature)?,
            checksums_key: bytes(&self.checksums_key)?,
        })
    }
}

/// Where an image came from, and why it is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Provenance {
    /// It was downloaded.
    Downloaded {
        /// The address that it came from.
        url: String,
        /// The proofs that held, in words.
        proofs: Vec<String>,
        /// When it was signed, if it is.
        signed_at: Option<Timestamp>,
        /// The primary key that signed it.
        signer: Option<Fingerprint>,
    },
    /// It was built here.
    Built {
        /// What the builder wants to be known of it, such as its package versions.
        record: serde_json::Value,
    },
}

impl Provenance {
    /// Returns when the image was signed, if it is.
    pub fn signed_at(&self) -> Option<Timestamp> {
        match self {
            Provenance::Downloaded { signed_at, .. } => *signed_at,
            Provenance::Built { .. } => None,
        }
    }
}

/// A note that carries a schema number.
trait Note {
    fn schema(&self) -> u32;
}
impl Note for Content {
    fn schema(&self) -> u32 {
        self.schema
    }
}
impl Note for ImageRecord {
    fn schema(&self) -> u32 {
        self.schema
    }
}

impl Note for StoredProofs {
    fn schema(&self) -> u32 {
        self.schema
    }
}

/// Reads a note; `None` if there is none.
///
/// # Errors
/// [`Kind::Io`] if it is damaged or newer: the memory in it is not to be overwritten silently.
#[expect(private_bounds, reason = "the trait names the notes of this module")]
pub(super) fn read<T: DeserializeOwned + Note>(path: &Utf8Path) -> Result<Option<T>> {
    let mut bytes = Vec::new();
    match no_link(OpenOptions::new().read(true)).open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::from(error).context(path)),
    };
    let note: T = serde_json::from_slice(&bytes).map_err(|error| {
        Error::new(Kind::Io, format!("{path} is damaged"))
            .with_source(error)
            .hint("remove it if nothing in the image store is to be kept")
    })?;
    if note.schema() > SCHEMA {
        return Err(Error::new(Kind::Io, format!("{path} was written by a newer nestlab")));
    }
    Ok(Some(note))
}

/// Has files opened by these options only where they lie, not where a link leads.
pub(super) fn no_link(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
}

/// Writes a note whole or not at all, for its owner only.
pub(super) fn write<T: Serialize>(path: &Utf8Path, note: &T) -> Result<()> {
    let folder = path.parent().expect("a note lies in a folder");
    // tempfile makes files with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&mut file, note).map_err(|error| {
        Error::new(Kind::Io, format!("{path} cannot be written")).with_source(error)
    })?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| Error::from(error.error))?;
    sync_folder(folder)
}

/// Makes the names in `folder` survive a loss of power.
pub(super) fn sync_folder(folder: &Utf8Path) -> Result<()> {
    Ok(fs_err::File::open(folder)?.sync_all()?)
}
