//! An image's manifest: where it comes from, what proves that it is the right one, and what it offers
//! to those who boot it.
//!
//! Text in, types out: a [`Manifest`] that exists is consistent. This module reads no image and opens
//! no connection.

mod check;
mod guest_defaults;
mod raw;
mod shipped;
mod url_template;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

pub use raw::SCHEMA;
pub use shipped::shipped_names;
pub(super) use url_template::is_plain_file_name;
pub use url_template::{Location, Placeholders, Template};

use super::digest::{Fingerprint, Sha256, Sha512};
use super::format::{Compression, ImageFormat};
use super::verify::signify::PublicKey;
use crate::error::{Error, Kind, Result};
use crate::recipe::{Cpus, Firmware, ImageName, Mebibytes, Readiness};

/// A version as image names carry it: letters, digits and `._+~-`, at most 64.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct ImageVersion(String);

impl ImageVersion {
    /// Returns the version as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ok = text.len() <= 64
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b))
            && !text.contains("..");
        if ok {
            Ok(ImageVersion(text.to_owned()))
        } else {
            Err(format!(
                "`{}` is not a version: 1 to 64 letters, digits and `._+~-`",
                text.escape_debug()
            ))
        }
    }
}

impl fmt::Display for ImageVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for ImageVersion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An image's manifest.
#[derive(Debug, Clone)]
pub struct Manifest {
    name: ImageName,
    version: Option<ImageVersion>,
    source: ImageSource,
    guest: GuestDefaults,
    origin: ManifestOrigin,
    text: String,
    spans: Spans,
}

/// Where a manifest was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestOrigin {
    /// Compiled into nestlab.
    Shipped,
    /// This file.
    File(Utf8PathBuf),
    /// Text that a program made; the words say whose.
    Text(String),
}

impl fmt::Display for ManifestOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ManifestOrigin::Shipped => f.write_str("shipped manifest"),
            ManifestOrigin::File(path) => write!(f, "{path}"),
            ManifestOrigin::Text(whose) => f.write_str(whose),
        }
    }
}

/// How an image comes to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSource {
    /// It is downloaded, and proven.
    Download(Box<Download>),
    /// It is built here from the Debian archive, whose signature is the proof.
    Build(BuildTable),
}

/// Where an image is downloaded from, and every proof that must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Download {
    /// What the file is.
    pub format: ImageFormat,
    /// What it is wrapped in.
    pub compression: Compression,
    /// Where it is, tried in this order.
    pub urls: Vec<Template>,
    /// Plain HTTP is allowed; the proofs hold either way.
    pub allow_http: bool,
    /// The file's exact size in bytes.
    pub size: Option<u64>,
    /// The most bytes that it may have once its compression is taken off.
    pub unpacked_size: Option<u64>,
    /// The file's SHA-256 digest.
    pub sha256: Option<Sha256>,
    /// The file's SHA-512 digest.
    pub sha512: Option<Sha512>,
    /// A detached OpenPGP signature over the file.
    pub openpgp: Option<OpenPgp>,
    /// A file of SHA-512 or SHA-256 sums that names the file.
    pub checksums: Option<Checksums>,
    /// Where the newest version's number is published.
    pub latest: Option<Template>,
}

/// What must hold of a detached OpenPGP signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OpenPgp {
    /// The primary key's fingerprint; its valid signing subkeys count.
    pub fingerprint: Fingerprint,
    /// Where the key is; only the fingerprint makes it trusted.
    pub key: Location,
    /// Where the signature is.
    pub signature: Location,
    /// Notations that the signature must carry, each exactly so.
    pub notations: BTreeMap<String, Template>,
    /// The signature must not be older than this.
    pub not_before: Option<Timestamp>,
}

/// A file of checksums, and what vouches for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checksums {
    /// Where it is.
    pub location: Location,
    /// The signify signature over it.
    pub signify: Option<Signify>,
    /// The OpenPGP signature over it.
    pub openpgp: Option<OpenPgp>,
}

/// A signify signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signify {
    /// The public key.
    pub key: PublicKey,
    /// Where the signature is.
    pub signature: Location,
}

/// What is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildKind {
    /// A Debian system that boots by its own firmware, boot loader and init.
    Debian,
    /// A kernel, busybox and dropbear: small enough for the deepest level.
    Appliance,
}

/// How an image is built from the Debian archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildTable {
    /// What is built.
    pub kind: BuildKind,
    /// The archive's suite, such as `sid`.
    pub suite: String,
    /// The archive's components, such as `main`.
    pub components: Vec<String>,
    /// Packages beside those that the kind needs.
    pub packages: Vec<String>,
    /// Kernel modules beside those that the kind needs; for an appliance.
    pub modules: Vec<String>,
    /// Debian packages on this machine to install, absolute paths.
    pub debs: Vec<Utf8PathBuf>,
    /// Why a release file past its `Valid-Until` is accepted; its signature is checked all the same.
    pub allow_stale: Option<String>,
    /// The form to write, if the manifest settles it.
    pub format: Option<ImageFormat>,
}

/// What an image offers to those who boot it. What it leaves open is theirs to choose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GuestDefaults {
    /// The user to log in as.
    pub user: Option<String>,
    /// Whether it runs an SSH server that takes the lab's key.
    pub ssh: bool,
    /// The best evidence that it is up.
    pub ready: Option<Readiness>,
    /// The least memory that it works with.
    pub memory: Option<Mebibytes>,
    /// The virtual CPUs that it wants.
    pub cpus: Option<Cpus>,
    /// The least disk that it works with.
    pub disk: Option<Mebibytes>,
    /// How it boots.
    pub firmware: Option<Firmware>,
    /// How it takes keys and names.
    pub seed: SeedKind,
}

/// How an image takes its keys and names at boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeedKind {
    /// From a volume labelled `CIDATA`.
    CiData,
    /// Not at all.
    #[default]
    None,
}

/// Where in the text the values stand that an update replaces.
#[derive(Debug, Clone, Default)]
struct Spans {
    version: Option<Range<usize>>,
    size: Option<Range<usize>>,
    sha256: Option<Range<usize>>,
    sha512: Option<Range<usize>>,
}

impl Manifest {
    /// Returns the manifest that `text` says; relative paths in it stand for paths in the folder of
    /// `origin`.
    ///
    /// # Errors
    /// [`Kind::Recipe`], with the line, for anything that is not a manifest.
    pub fn parse(text: &str, origin: ManifestOrigin) -> Result<Self> {
        check::manifest(text, origin)
    }

    /// Returns the manifest in the file `path`.
    ///
    /// # Errors
    /// [`Kind::Io`] if it cannot be read, else as [`Manifest::parse`].
    pub fn load(path: &Utf8Path) -> Result<Self> {
        let text = fs_err::read_to_string(path)?;
        let path = camino::absolute_utf8(path)?;
        Manifest::parse(&text, ManifestOrigin::File(path))
    }

    /// Returns the manifest of that name that is compiled into nestlab.
    ///
    /// # Errors
    /// [`Kind::Recipe`] if there is none; the message lists those there are.
    pub fn shipped(name: &str) -> Result<Self> {
        let text = shipped::text(name).ok_or_else(|| {
            Error::new(Kind::Recipe, format!("there is no image called `{}`", name.escape_debug()))
                .hint(format!("nestlab ships {}; a path to a manifest works too", {
                    let names: Vec<_> = shipped_names().collect();
                    names.join(", ")
                }))
        })?;
        Manifest::parse(text, ManifestOrigin::Shipped)
    }

    /// Returns the shipped manifest `text` names, or the one in the file at that path: what has a
    /// slash or ends in `.toml` is a path.
    ///
    /// # Errors
    /// As [`Manifest::shipped`] and [`Manifest::load`].
    pub fn named_or_at(text: &str) -> Result<Self> {
        if text.contains('/') || text.ends_with(".toml") {
            Manifest::load(Utf8Path::new(text))
        } else {
            Manifest::shipped(text)
        }
    }

    /// Returns the image's name.
    pub fn name(&self) -> &ImageName {
        &self.name
    }

    /// Returns the version; a built image need not have one.
    pub fn version(&self) -> Option<&ImageVersion> {
        self.version.as_ref()
    }

    /// Returns how the image comes to be.
    pub fn source(&self) -> &ImageSource {
        &self.source
    }

    /// Returns the download, if the image is downloaded.
    pub fn download(&self) -> Option<&Download> {
        match &self.source {
            ImageSource::Download(download) => Some(download),
            ImageSource::Build(_) => None,
        }
    }

    /// Returns what is built, if the image is built.
    pub fn build(&self) -> Option<&BuildTable> {
        match &self.source {
            ImageSource::Download(_) => None,
            ImageSource::Build(build) => Some(build),
        }
    }

    /// Returns what the image offers to those who boot it.
    pub fn guest(&self) -> &GuestDefaults {
        &self.guest
    }

    /// Returns where it was read from.
    pub fn origin(&self) -> &ManifestOrigin {
        &self.origin
    }

    /// Returns its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns a digest of all that decides which bytes are accepted as this image: its name, version,
    /// source and proofs. What is in the store under another identity does not answer for this one.
    pub fn identity(&self) -> Sha256 {
        let said = serde_json::to_vec(&(&self.name, &self.version, &self.source))
            .expect("plain data with text keys always serializes");
        Sha256::from_bytes(sha2::Sha256::digest(&said).into())
    }

    /// Returns the text of this manifest for `version` with the pins replaced, everything else,
    /// comments too, as it was. A pin that the manifest does not have is not added.
    pub fn text_for(
        &self,
        version: &ImageVersion,
        size: u64,
        sha256: &Sha256,
        sha512: &Sha512,
    ) -> String {
        let quoted = |value: &dyn fmt::Display| format!("\"{value}\"");
        let mut edits: Vec<(Range<usize>, String)> = [
            (&self.spans.version, quoted(version)),
            (&self.spans.size, size.to_string()),
            (&self.spans.sha256, quoted(sha256)),
            (&self.spans.sha512, quoted(sha512)),
        ]
        .into_iter()
        .filter_map(|(span, value)| span.clone().map(|span| (span, value)))
        .collect();
        edits.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
        let mut text = self.text.clone();
        for (span, value) in edits {
            text.replace_range(span, &value);
        }
        text
    }

    /// Returns this manifest for another version, without pins: they belong to the old one.
    pub fn at_version(&self, version: ImageVersion) -> Self {
        let mut manifest = self.clone();
        manifest.version = Some(version);
        if let ImageSource::Download(download) = &mut manifest.source {
            (download.size, download.sha256, download.sha512) = (None, None, None);
        }
        manifest
    }
}

#[cfg(test)]
mod tests;
