//! Is there a newer version of an image? What the publisher's page says is only a hint; the proofs of
//! the new image decide.

use std::cmp::Ordering;

use camino::Utf8Path;
use tokio_util::sync::CancellationToken;

use super::fetch::{Client, FetchOptions, fetch};
use super::manifest::{ImageVersion, Manifest, ManifestOrigin, Placeholders};
use super::store::{Store, VerifiedImage};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;

/// What an update found.
#[derive(Debug)]
pub enum Update {
    /// The manifest names the newest version already.
    Newest(ImageVersion),
    /// There is a newer version.
    Newer {
        /// What the manifest names.
        old: ImageVersion,
        /// What the publisher names.
        new: ImageVersion,
    },
}

/// Asks the manifest's `[latest]` address for the newest version.
///
/// # Errors
/// [`Kind::Recipe`] if the manifest has no such address, [`Kind::Network`] if it cannot be reached or
/// answers anything but a plain version, [`Kind::Untrusted`] if that is older than the manifest's.
pub async fn newest(
    manifest: &Manifest,
    options: &FetchOptions,
    cancel: &CancellationToken,
) -> Result<Update> {
    let name = manifest.name();
    let missing = |what: &str| Error::new(Kind::Recipe, format!("{name} has no {what}"));
    let download =
        manifest.download().ok_or_else(|| missing("address: it is built, not downloaded"))?;
    let latest = download
        .latest
        .as_ref()
        .ok_or_else(|| missing("`[latest]` address that tells the newest version"))?;
    let old = manifest.version().ok_or_else(|| missing("version to compare with"))?;
    let url = latest.expand(Placeholders { version: "", url: "", file: "" });
    let client = Client::new(download.allow_http, options)?;
    let answer = client.small(&url, cancel).await.map_err(|trouble| trouble.into_error())?;
    let new = plain_version(&answer).ok_or_else(|| {
        let seen: Vec<u8> = answer.iter().take(200).copied().collect();
        Error::new(Kind::Network, format!("{url} does not answer with a plain version")).tail(&seen)
    })?;
    match compare(old.as_str(), new.as_str()) {
        Ordering::Equal => Ok(Update::Newest(new)),
        Ordering::Less => Ok(Update::Newer { old: old.clone(), new }),
        Ordering::Greater => Err(Error::new(
            Kind::Untrusted,
            format!("{url} calls {new} the newest, which is older than {old}"),
        )
        .hint("a publisher does not go back; a mirror that is stale or worse does")),
    }
}

/// Fetches `new` with every proof that `manifest` demands, and only then returns it with the manifest's
/// new text.
///
/// # Errors
/// As [`fetch`]; [`Kind::Recipe`] if nothing but the old version's digests proves the image.
pub async fn to_version(
    manifest: &Manifest,
    new: &ImageVersion,
    store: &Store,
    options: &FetchOptions,
    events: &EventSink,
    cancel: &CancellationToken,
) -> Result<(VerifiedImage, String)> {
    let updated = manifest.at_version(new.clone());
    if !has_lasting_proof(&updated) {
        return Err(Error::new(
            Kind::Recipe,
            format!("only the digests of the old version prove {}", manifest.name()),
        )
        .hint("put the new version and its digests, from a source you trust, into the manifest"));
    }
    let image = fetch(&updated, store, options, events, cancel).await?;
    let text = manifest.text_for(new, image.size(), &image.sha256(), &image.sha512());
    // What is written must be a manifest, and the image must answer for it.
    let written = Manifest::parse(&text, manifest.origin().clone())?;
    Ok((store.also_answers(&image, &written)?, text))
}

/// Returns the file that the manifest is in.
///
/// # Errors
/// [`Kind::Usage`] for a manifest that is not a file.
pub fn file_of(manifest: &Manifest) -> Result<&Utf8Path> {
    match manifest.origin() {
        ManifestOrigin::File(path) => Ok(path),
        ManifestOrigin::Shipped | ManifestOrigin::Text(_) => {
            Err(Error::new(Kind::Usage, "a shipped manifest cannot be changed").hint(format!(
                "nestlab image show {0} > {0}.toml, then update that file",
                manifest.name()
            )))
        }
    }
}

/// Replaces the manifest's file by `text`, whole or not at all.
///
/// # Errors
/// As [`file_of`]; [`Kind::Io`] if it cannot be written.
pub fn write(manifest: &Manifest, text: &str) -> Result<()> {
    let path = file_of(manifest)?;
    let folder = path.parent().expect("an absolute path of a file has a folder");
    let permissions = fs_err::metadata(path)?.permissions();
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    file.as_file().set_permissions(permissions)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| Error::from(error.error))?;
    Ok(())
}

/// A signature proves any version; a pinned digest proves one.
fn has_lasting_proof(manifest: &Manifest) -> bool {
    manifest.download().is_some_and(|download| {
        let sums = download.checksums.as_ref();
        download.openpgp.is_some()
            || sums.is_some_and(|sums| sums.signify.is_some() || sums.openpgp.is_some())
    })
}

/// Reads a version such as `18.2.1.9` from an answer that may go on with markup or further lines, as
/// Kicksecure's does. Only numbers and dots count: whatever else the page says becomes part of no
/// address.
fn plain_version(answer: &[u8]) -> Option<ImageVersion> {
    let text = std::str::from_utf8(answer).ok()?;
    let first = text.split(['<', '\n', '\r']).next()?.trim();
    let parts: Vec<&str> = first.split('.').collect();
    let plain = |part: &&str| {
        !part.is_empty() && part.len() <= 9 && part.bytes().all(|b| b.is_ascii_digit())
    };
    if (2..=6).contains(&parts.len()) && parts.iter().all(plain) {
        first.parse().ok()
    } else {
        None
    }
}

/// Compares versions number by number; a missing number counts as zero.
fn compare(one: &str, other: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0)).collect()
    };
    let (mut one, mut other) = (numbers(one), numbers(other));
    let length = one.len().max(other.len());
    one.resize(length, 0);
    other.resize(length, 0);
    one.cmp(&other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_version_is_taken_from_the_page() {
        for (answer, want) in [
            (&b"18.2.1.9<noinclude>\n[[Category:x]]</noinclude>\n"[..], Some("18.2.1.9")),
            (b"18.2.1.9\n", Some("18.2.1.9")),
            (b"  18.2 \r\nmore", Some("18.2")),
            (b"{{VersionNew}}<noinclude>", None),
            (b"<!DOCTYPE html><title>18.2.1.9</title>", None),
            (b"18.2.1.9-rc1", None),
            (b"18.2.1.9/../../evil", None),
            (b"18..2", None),
            (b"18", None),
            (b"1.2.3.4.5.6.7", None),
            (b"9999999999.1", None),
            (b"", None),
            (b"\xff\xfe", None),
        ] {
            let got = plain_version(answer);
            assert_eq!(got.as_ref().map(ImageVersion::as_str), want, "{answer:?}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (one, other, want) in [
            ("18.2.1.9", "18.2.1.10", Ordering::Less),
            ("18.2.1.9", "18.2.1.9", Ordering::Equal),
            ("18.2", "18.2.0.0", Ordering::Equal),
            ("18.10", "18.9.9", Ordering::Greater),
        ] {
            assert_eq!(compare(one, other), want, "{one} {other}");
        }
    }
}
