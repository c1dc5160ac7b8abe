//! Verifying a file that is already here, offline.

use std::io::Read as _;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use tokio_util::sync::CancellationToken;

use super::manifest::{Download, Location, Manifest, Placeholders};
use super::verify::{Expectations, Proven, SignatureFiles, Times};
use super::{small_file, structure};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;

/// The size of the blocks that are hashed.
const BLOCK: usize = 512 * 1024;

/// Where the small files of the proofs are. What is not given is looked for where the manifest's
/// address would put it beside the file: `{url}.asc` is `FILE.asc`.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// The OpenPGP key file.
    pub key: Option<Utf8PathBuf>,
    /// The OpenPGP signature over the file.
    pub signature: Option<Utf8PathBuf>,
    /// The checksum file.
    pub checksums: Option<Utf8PathBuf>,
    /// The signify signature over the checksum file.
    pub signify: Option<Utf8PathBuf>,
    /// The OpenPGP signature over the checksum file.
    pub checksums_signature: Option<Utf8PathBuf>,
}

/// Verifies `file` as the image that `manifest` describes, with every proof that it names and without
/// any connection. The name that counts, for a notation or a checksum line, is the one that the file is
/// published under, not the one it has here. Blocks for as long as reading the file takes.
///
/// # Errors
/// [`Kind::Untrusted`] if a proof does not hold, [`Kind::Usage`] if what it needs is not there,
/// [`Kind::Interrupted`] once `cancel` fires.
pub fn verify_file(
    manifest: &Manifest,
    file: &Utf8Path,
    beside: &Beside,
    times: Times,
    events: &EventSink,
    cancel: &CancellationToken,
) -> Result<Proven> {
    let download = manifest.download().ok_or_else(|| {
        Error::new(Kind::Recipe, format!("{} is built, not downloaded", manifest.name()))
    })?;
    let (_, name) = download.urls[0].image_url(manifest.version())?;
    let version = manifest.version().map_or("", |version| version.as_str());
    let names = Placeholders { version, url: file.as_str(), file: &name };
    let evidence = evidence(download, names, beside)?;
    let expectations = Expectations::new(download, names, &evidence, times)?;
    let proven = prove(&expectations, file, events, cancel)?;
    structure::check(file, download.format, download.compression)?;
    Ok(proven)
}

/// Reads `file` and judges it by `expectations`.
///
/// # Errors
/// As [`verify_file`].
pub(super) fn prove(
    expectations: &Expectations,
    file: &Utf8Path,
    events: &EventSink,
    cancel: &CancellationToken,
) -> Result<Proven> {
    let mut hashing = expectations.hashing()?;
    let mut reader = fs_err::File::open(file)?;
    let total = reader.metadata()?.len();
    let mut done = 0;
    loop {
        if cancel.is_cancelled() {
            return Err(Error::new(Kind::Interrupted, "interrupted: nothing is verified"));
        }
        let mut block = vec![0; BLOCK];
        let count = reader.read(&mut block)?;
        if count == 0 {
            break;
        }
        block.truncate(count);
        hashing.update(&Bytes::from(block));
        done += count as u64;
        events.bytes(done, Some(total));
    }
    expectations.judge(&hashing.finish()?)
}

fn evidence(
    download: &Download,
    names: Placeholders<'_>,
    beside: &Beside,
) -> Result<SignatureFiles> {
    let mut evidence = SignatureFiles::default();
    if let Some(openpgp) = &download.openpgp {
        let signature = found(&beside.signature, &openpgp.signature, names, "--signature")?;
        evidence.signature = Some(signature);
        evidence.key = Some(found(&beside.key, &openpgp.key, names, "--key")?);
    }
    if let Some(sums) = &download.checksums {
        evidence.checksums = Some(found(&beside.checksums, &sums.location, names, "--checksums")?);
        if let Some(signify) = &sums.signify {
            let made = found(&beside.signify, &signify.signature, names, "--signify")?;
            evidence.checksums_signify = Some(made);
        }
        if let Some(openpgp) = &sums.openpgp {
            let option = "--checksums-signature";
            let made = found(&beside.checksums_signature, &openpgp.signature, names, option)?;
            evidence.checksums_signature = Some(made);
            evidence.checksums_key = Some(found(&beside.key, &openpgp.key, names, "--key")?);
        }
    }
    Ok(evidence)
}

/// Reads the file that is given, else the one beside the image.
fn found(
    given: &Option<Utf8PathBuf>,
    location: &Location,
    names: Placeholders<'_>,
    option: &str,
) -> Result<Vec<u8>> {
    let path = match (given, location) {
        (Some(given), _) => given.clone(),
        (None, Location::Path(path)) => path.clone(),
        (None, Location::Url(template)) => Utf8PathBuf::from(template.expand(names)),
    };
    small_file(&path).map_err(|error| match given {
        Some(_) => error,
        None => Error::new(Kind::Usage, format!("the manifest demands {path}, which is not there"))
            .hint(format!("get it, and name it with `{option} FILE` if it lies elsewhere")),
    })
}
