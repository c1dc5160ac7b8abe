//! The manifest as TOML has it, before it is checked. Every table refuses keys that it does not know.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use serde::Deserialize;
use toml::Spanned;

use super::{BuildKind, ImageVersion, SeedKind};
use crate::image::digest::{Fingerprint, Sha256, Sha512};
use crate::image::format::{Compression, ImageFormat};
use crate::image::verify::signify::PublicKey;
use crate::recipe::{Cpus, Firmware, ImageName, Mebibytes, ReadyKind};

/// The manifest schema that this nestlab writes, and the newest that it reads.
pub const SCHEMA: u32 = 1;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawManifest {
    pub(super) schema: Spanned<u32>,
    pub(super) name: ImageName,
    pub(super) version: Option<Spanned<ImageVersion>>,
    pub(super) arch: Option<Spanned<String>>,
    pub(super) format: Option<Spanned<ImageFormat>>,
    pub(super) compression: Option<Spanned<Compression>>,
    pub(super) urls: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) allow_http: Option<Spanned<bool>>,
    pub(super) size: Option<Spanned<u64>>,
    pub(super) unpacked_size: Option<Spanned<u64>>,
    pub(super) sha256: Option<Spanned<Sha256>>,
    pub(super) sha512: Option<Spanned<Sha512>>,
    pub(super) openpgp: Option<Spanned<RawOpenPgp>>,
    pub(super) checksums: Option<Spanned<RawChecksums>>,
    pub(super) latest: Option<RawLatest>,
    pub(super) build: Option<Spanned<RawBuild>>,
    pub(super) guest: Option<RawGuest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawOpenPgp {
    pub(super) fingerprint: Fingerprint,
    pub(super) key: Spanned<String>,
    pub(super) signature: Spanned<String>,
    #[serde(default)]
    pub(super) notations: BTreeMap<String, Spanned<String>>,
    pub(super) not_before: Option<Spanned<toml::value::Datetime>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawChecksums {
    pub(super) url: Spanned<String>,
    pub(super) signify: Option<RawSignify>,
    pub(super) openpgp: Option<Spanned<RawChecksumsOpenPgp>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawSignify {
    pub(super) key: PublicKey,
    pub(super) signature: Spanned<String>,
}

/// As [`RawOpenPgp`]; what it leaves out but the notations is as in the manifest's own `[openpgp]`.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawChecksumsOpenPgp {
    pub(super) signature: Spanned<String>,
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) key: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) notations: BTreeMap<String, Spanned<String>>,
    pub(super) not_before: Option<Spanned<toml::value::Datetime>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawLatest {
    pub(super) url: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawBuild {
    pub(super) kind: Spanned<BuildKind>,
    pub(super) suite: Spanned<String>,
    #[serde(default)]
    pub(super) components: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) packages: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) modules: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) debs: Vec<Spanned<Utf8PathBuf>>,
    pub(super) allow_stale: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawGuest {
    pub(super) user: Option<Spanned<String>>,
    pub(super) ssh: Option<bool>,
    pub(super) ready: Option<Spanned<ReadyKind>>,
    pub(super) serial_pattern: Option<Spanned<String>>,
    pub(super) memory: Option<Mebibytes>,
    pub(super) cpus: Option<Cpus>,
    pub(super) disk: Option<Mebibytes>,
    pub(super) firmware: Option<Firmware>,
    #[serde(default)]
    pub(super) seed: SeedKind,
}
