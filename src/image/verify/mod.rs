//! What proves that bytes are the image that a manifest means.
//!
//! First the small files (key, signatures, checksums) are judged, then the bytes pass once through
//! [`Hashing`], then [`Expectations::judge`] compares. Only it makes a [`Proven`].

pub mod checksums;
mod hashing;
pub mod openpgp;
pub mod signify;

use std::collections::BTreeMap;

use jiff::Timestamp;

use checksums::Sum;
pub use hashing::{Hashed, Hashing};
use openpgp::{Detached, Lane, SignatureRules};

use super::digest::{Fingerprint, Sha256, Sha512};
use super::manifest::{Download, OpenPgp, Placeholders};
use crate::error::{Error, Kind, Result};

/// The small files that a download's proofs are made of; `None` where the manifest names none.
#[derive(Debug, Clone, Default)]
pub struct SignatureFiles {
    /// The OpenPGP key file.
    pub key: Option<Vec<u8>>,
    /// The detached OpenPGP signature over the image.
    pub signature: Option<Vec<u8>>,
    /// The checksum file.
    pub checksums: Option<Vec<u8>>,
    /// The signify signature over the checksum file.
    pub checksums_signify: Option<Vec<u8>>,
    /// The OpenPGP signature over the checksum file.
    pub checksums_signature: Option<Vec<u8>>,
    /// The key file for that one.
    pub checksums_key: Option<Vec<u8>>,
}

/// The times that signatures are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Now.
    pub now: Timestamp,
    /// The newest signature accepted before for this image name, if older ones are to be refused.
    pub newest_seen: Option<Timestamp>,
}

/// What must hold of an image's bytes.
#[derive(Debug)]
pub struct Expectations {
    size: Option<u64>,
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
    sum: Option<(Sum, &'static str)>,
    signature: Option<Detached>,
    /// The time and key of the signature over the image, else of the one over its checksum file.
    signed: Option<(Timestamp, Fingerprint)>,
}

/// Bytes whose every proof held: what they are, and what held.
#[derive(Debug)]
pub struct Proven {
    size: u64,
    sha256: Sha256,
    sha512: Sha512,
    signed_at: Option<Timestamp>,
    signer: Option<Fingerprint>,
    proofs: Vec<String>,
}

impl Proven {
    /// Returns how many bytes they are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns their SHA-256.
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// Returns their SHA-512.
    pub fn sha512(&self) -> Sha512 {
        self.sha512
    }

    /// Returns when they, or a checksum file that names them, were signed with OpenPGP.
    pub fn signed_at(&self) -> Option<Timestamp> {
        self.signed_at
    }

    /// Returns the primary key that signed them.
    pub fn signer(&self) -> Option<&Fingerprint> {
        self.signer.as_ref()
    }

    /// Returns what held, in words.
    pub fn proofs(&self) -> &[String] {
        &self.proofs
    }
}

impl Expectations {
    /// Judges the small files and returns what must hold of the image's bytes: every proof that the
    /// manifest names.
    ///
    /// # Errors
    /// [`Kind::Untrusted`] if one of them is not good enough or missing.
    pub fn new(
        download: &Download,
        names: Placeholders<'_>,
        evidence: &SignatureFiles,
        times: Times,
    ) -> Result<Self> {
        let signature = download
            .openpgp
            .as_ref()
            .map(|table| {
                let key = given(evidence.key.as_deref(), "key file")?;
                let made = given(evidence.signature.as_deref(), "signature")?;
                Detached::prepare(key, made, &wanted(table, names, times))
            })
            .transpose()?;
        let sum = signed_sum(download, names, evidence, times)?;
        let signed = signature.as_ref().map(|made| (made.time(), made.signer().clone()));
        let (sum, sum_signed) = sum.map_or((None, None), |(sum, signed)| (Some(sum), signed));
        Ok(Expectations {
            size: download.size,
            sha256: download.sha256,
            sha512: download.sha512,
            sum,
            signature,
            signed: signed.or(sum_signed),
        })
    }

    /// Returns the pinned size.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Starts the hashes that these proofs need.
    pub fn hashing(&self) -> Result<Hashing> {
        Hashing::start(self.signature.iter().flat_map(Detached::lanes))
    }

    /// Compares what passed with what must hold.
    ///
    /// # Errors
    /// [`Kind::Untrusted`] that names each proof that did not hold, and what differed.
    pub fn judge(&self, hashed: &Hashed) -> Result<Proven> {
        let (size, sha256, sha512) = (hashed.size(), hashed.sha256()?, hashed.sha512()?);
        let mut proofs = Vec::new();
        let mut differences = Vec::new();
        let mut check = |holds: bool, proof: String, difference: String| {
            if holds { proofs.push(proof) } else { differences.push(difference) }
        };
        if let Some(want) = self.size {
            check(size == want, format!("size {want}"), format!("size: {size}, not {want} bytes"));
        }
        let digest = |what: &str, want: &dyn ToString, have: &dyn ToString| {
            let (want, have) = (want.to_string(), have.to_string());
            (want == have, what.to_owned(), format!("{what}: {have}, not {want}"))
        };
        let mut digests = Vec::new();
        digests.extend(self.sha256.map(|want| digest("SHA-256 pin", &want, &sha256)));
        digests.extend(self.sha512.map(|want| digest("SHA-512 pin", &want, &sha512)));
        digests.extend(self.sum.map(|(want, words)| match want {
            Sum::Sha256(want) => digest(&format!("SHA-256 in the {words}"), &want, &sha256),
            Sum::Sha512(want) => digest(&format!("SHA-512 in the {words}"), &want, &sha512),
        }));
        for (holds, proof, difference) in digests {
            check(holds, proof, difference);
        }
        if let Some(signature) = &self.signature {
            let held = signature.holds(|lane| hashed.context(lane));
            let proof =
                format!("OpenPGP signature by {} of {}", signature.signer(), signature.time());
            let difference = held.as_ref().err().map(ToString::to_string).unwrap_or_default();
            check(held.is_ok(), proof, difference);
        }
        if !differences.is_empty() {
            return Err(Error::new(Kind::Untrusted, differences.join("; ")));
        }
        Ok(Proven {
            size,
            sha256,
            sha512,
            signed_at: self.signed.as_ref().map(|(time, _)| *time),
            signer: self.signed.as_ref().map(|(_, signer)| signer.clone()),
            proofs,
        })
    }
}

fn wanted<'a>(table: &'a OpenPgp, names: Placeholders<'_>, times: Times) -> SignatureRules<'a> {
    let notations: BTreeMap<String, String> =
        table.notations.iter().map(|(name, value)| (name.clone(), value.expand(names))).collect();
    SignatureRules {
        fingerprint: &table.fingerprint,
        notations,
        not_before: table.not_before,
        newest_seen: times.newest_seen,
        now: times.now,
    }
}

/// A checksum, in words what vouches for it, and when and by whom its file was signed with OpenPGP.
type SignedSum = ((Sum, &'static str), Option<(Timestamp, Fingerprint)>);

/// Returns the image's checksum from the checksum file, once every signature over that file held.
fn signed_sum(
    download: &Download,
    names: Placeholders<'_>,
    evidence: &SignatureFiles,
    times: Times,
) -> Result<Option<SignedSum>> {
    let Some(table) = &download.checksums else { return Ok(None) };
    let text = given(evidence.checksums.as_deref(), "checksum file")?;
    if let Some(signify) = &table.signify {
        let made =
            given(evidence.checksums_signify.as_deref(), "checksum file's signify signature")?;
        signify::verify(&signify.key, text, made)?;
    }
    let signed = match &table.openpgp {
        None => None,
        Some(openpgp) => {
            // Where the image is signed too, that signature's time is the one remembered.
            let newest_seen = times.newest_seen.filter(|_| download.openpgp.is_none());
            let wanted = wanted(openpgp, names, Times { newest_seen, ..times });
            let key = given(evidence.checksums_key.as_deref(), "checksum file's key file")?;
            let made = given(evidence.checksums_signature.as_deref(), "checksum file's signature")?;
            let signature = over_text(text, key, made, &wanted)
                .map_err(|error| error.context("signature over the checksum file"))?;
            Some((signature.time(), signature.signer().clone()))
        }
    };
    let words = match (&table.signify, &table.openpgp) {
        (Some(_), Some(_)) => "checksum file signed with signify and OpenPGP",
        (Some(_), None) => "checksum file signed with signify",
        (None, Some(_)) => "checksum file signed with OpenPGP",
        (None, None) => "checksum file",
    };
    Ok(Some(((checksums::of_file(text, names.file)?, words), signed)))
}

/// Verifies a detached signature over a text that is at hand.
fn over_text(
    text: &[u8],
    key: &[u8],
    made: &[u8],
    wanted: &SignatureRules<'_>,
) -> Result<Detached> {
    let signature = Detached::prepare(key, made, wanted)?;
    signature.holds(|lane: &Lane| {
        let mut hashed = lane.context()?;
        hashed.update(text);
        Ok(hashed)
    })?;
    Ok(signature)
}

fn given<'a>(file: Option<&'a [u8]>, what: &str) -> Result<&'a [u8]> {
    file.ok_or_else(|| {
        Error::new(Kind::Untrusted, format!("the manifest names a {what}, and there is none"))
    })
}
