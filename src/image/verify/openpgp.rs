//! A detached OpenPGP signature by one pinned key, judged before and after the signed bytes arrive.
//!
//! Everything that can be said about a signature without the bytes is said first, so that nobody
//! downloads gigabytes for a signature that could never hold. The bytes are hashed once, for all proofs
//! together, which is why Sequoia's own pull-style verifier is not used; the checks on key and
//! signature are the same as in its `verify_signatures`, and then stricter:
//! the key must be good today too, not only when it signed, and every signature in the file that
//! claims to be from the pinned key must hold.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use sequoia_openpgp::cert::amalgamation::key::ValidErasedKeyAmalgamation;
use sequoia_openpgp::cert::amalgamation::{ValidAmalgamation as _, ValidateAmalgamation as _};
use sequoia_openpgp::crypto::hash::Context;
use sequoia_openpgp::packet::{Key, Signature, key};
use sequoia_openpgp::parse::Parse as _;
use sequoia_openpgp::policy::{Policy as _, StandardPolicy};
use sequoia_openpgp::types::{HashAlgorithm, RevocationStatus, SignatureType};
use sequoia_openpgp::{Cert, Packet, PacketPile};

use crate::error::{Error, Kind, Result};
use crate::image::digest::Fingerprint;

/// How far ahead of ours a signer's clock may be.
const CLOCK_SKEW: Duration = Duration::from_secs(10 * 60);

/// What must hold of a signature.
#[derive(Debug, Clone)]
pub struct SignatureRules<'a> {
    /// The primary key.
    pub fingerprint: &'a Fingerprint,
    /// Notations, each with the one value that it must have.
    pub notations: BTreeMap<String, String>,
    /// No signature older than this: the manifest's floor.
    pub not_before: Option<Timestamp>,
    /// No signature older than this: the newest accepted before, under the image's name.
    pub newest_seen: Option<Timestamp>,
    /// The time by which keys and signatures are judged.
    pub now: Timestamp,
}

/// A signature that will hold if the bytes are the signed ones.
#[derive(Debug)]
pub struct Detached {
    signatures: Vec<(Signature, Key<key::PublicParts, key::UnspecifiedRole>)>,
    signer: Fingerprint,
    time: Timestamp,
}

/// What a hash context must have been made for, to serve a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// The algorithm.
    pub algorithm: HashAlgorithm,
    /// The signature's version: its trailer is hashed differently.
    pub version: u8,
    /// What a version 6 signature hashes ahead of the bytes.
    pub salt: Vec<u8>,
}

impl Lane {
    /// Returns the lane for a plain digest; version 4 signatures share it.
    pub fn plain(algorithm: HashAlgorithm) -> Self {
        Lane { algorithm, version: 4, salt: Vec::new() }
    }

    /// Returns a fresh context for this lane.
    pub fn context(&self) -> Result<Context> {
        let builder = self.algorithm.context().map_err(|error| {
            refused(format!("{} is not a hash that is trusted", self.algorithm)).with_source(error)
        })?;
        let mut context = builder.for_signature(self.version);
        context.update(&self.salt);
        Ok(context)
    }

    fn of(signature: &Signature) -> Self {
        Lane {
            algorithm: signature.hash_algo(),
            version: signature.version(),
            salt: match signature {
                Signature::V6(signature) => signature.salt().to_vec(),
                _ => Vec::new(),
            },
        }
    }
}

impl Detached {
    /// Judges the key file `key` and the signature file `signature` as far as that goes without the
    /// signed bytes.
    ///
    /// # Errors
    /// [`Kind::Untrusted`] with the reason.
    pub fn prepare(key: &[u8], signature: &[u8], wanted: &SignatureRules<'_>) -> Result<Self> {
        let cert = pinned(key, wanted.fingerprint)?;
        let policy = StandardPolicy::at(system(wanted.now));
        let mut signatures = Vec::new();
        let mut newest: Option<Timestamp> = None;
        for signature in packets(signature)? {
            let Some(key) = judged_key(&cert, &signature, &policy, wanted.now)? else { continue };
            let time = judged_signature(&signature, &policy, wanted)?;
            newest = newest.max(Some(time));
            signatures.push((signature, key));
        }
        let time = newest.ok_or_else(|| {
            refused(format!("no signature in the file is by {}", wanted.fingerprint))
        })?;
        Ok(Detached { signatures, signer: wanted.fingerprint.clone(), time })
    }

    /// Returns the hash contexts that [`Detached::holds`] will ask for.
    pub fn lanes(&self) -> impl Iterator<Item = Lane> {
        self.signatures.iter().map(|(signature, _)| Lane::of(signature))
    }

    /// Verifies every signature against the bytes that went through the contexts.
    ///
    /// # Errors
    /// [`Kind::Untrusted`] if one does not match.
    pub fn holds(&self, context: impl Fn(&Lane) -> Result<Context>) -> Result<()> {
        for (signature, key) in &self.signatures {
            let hashed = context(&Lane::of(signature))?;
            signature.verify_hash(key, hashed).map_err(|error| {
                refused("the signature does not match the bytes".to_owned()).with_source(error)
            })?;
        }
        Ok(())
    }

    /// Returns the primary key that signed.
    pub fn signer(&self) -> &Fingerprint {
        &self.signer
    }

    /// Returns when it was signed; of several signatures the newest counts.
    pub fn time(&self) -> Timestamp {
        self.time
    }
}

fn refused(why: String) -> Error {
    Error::new(Kind::Untrusted, format!("OpenPGP: {why}"))
}

/// Returns the pinned certificate from a key file, which may hold others too.
fn pinned(file: &[u8], fingerprint: &Fingerprint) -> Result<Cert> {
    let certs = sequoia_openpgp::cert::CertParser::from_bytes(file)
        .map_err(|error| refused("the key file is not a key".to_owned()).with_source(error))?;
    let mut found: Option<Cert> = None;
    for cert in certs {
        let cert =
            cert.map_err(|error| refused("the key file is damaged".to_owned()).with_source(error))?;
        if cert.fingerprint().to_hex() != fingerprint.as_str() {
            continue;
        }
        found = Some(match found {
            // The same key twice: what either says of it counts, a revocation above all.
            Some(other) => other.merge_public(cert).map_err(|error| {
                refused("the key file is damaged".to_owned()).with_source(error)
            })?,
            None => cert,
        });
    }
    found.ok_or_else(|| refused(format!("the key file does not hold {fingerprint}")))
}

/// Returns the file's signatures; it must hold nothing else.
fn packets(file: &[u8]) -> Result<Vec<Signature>> {
    if file.trim_ascii().is_empty() {
        return Err(refused("the signature is empty".to_owned()));
    }
    if file.trim_ascii_start().starts_with(b"-----BEGIN PGP SIGNED MESSAGE-----") {
        return Err(refused("this is a clear-signed message, not a detached signature".to_owned()));
    }
    let pile = PacketPile::from_bytes(file).map_err(|error| {
        refused("the signature file is not OpenPGP".to_owned()).with_source(error)
    })?;
    pile.into_children()
        .map(|packet| match packet {
            Packet::Signature(signature) => Ok(signature),
            Packet::Unknown(unknown)
                if unknown.tag() == sequoia_openpgp::packet::Tag::Signature =>
            {
                Err(refused("the file holds a signature that cannot be read".to_owned())
                    .with_source(unknown.error().to_string()))
            }
            other => Err(refused(format!(
                "the signature file holds a {} packet, not only signatures",
                other.tag()
            ))),
        })
        .collect()
}

/// Returns the key of `cert` that made `signature`, judged at the time of signing and now; `None` for
/// a signature that names another certificate.
fn judged_key(
    cert: &Cert,
    signature: &Signature,
    policy: &StandardPolicy<'_>,
    now: Timestamp,
) -> Result<Option<Key<key::PublicParts, key::UnspecifiedRole>>> {
    let issuers = signature.get_issuers();
    if issuers.is_empty() {
        return Err(refused("a signature does not say who made it".to_owned()));
    }
    let signed = created(signature)?;
    let Some(key) = cert.keys().key_handles(issuers.iter()).next() else { return Ok(None) };
    for (time, when) in [(signed, "when it signed"), (now, "today")] {
        let key = key.clone().with_policy(policy, system(time)).map_err(|error| {
            refused(format!("the signing key was not valid {when}")).with_source(error)
        })?;
        good_key(&key, when)?;
    }
    Ok(Some(key.key().clone()))
}

fn good_key(key: &ValidErasedKeyAmalgamation<'_, key::PublicParts>, when: &str) -> Result<()> {
    let name = key.key().fingerprint();
    let revoked = |status| matches!(status, RevocationStatus::Revoked(_));
    if revoked(key.valid_cert().revocation_status()) || revoked(key.revocation_status()) {
        return Err(refused(format!("key {name} is revoked")));
    }
    if let Err(error) = key.valid_cert().alive().and_then(|()| key.alive()) {
        return Err(refused(format!("key {name} was not alive {when}"))
            .with_source(error)
            .hint("an expired key may have been prolonged: get the key file again"));
    }
    if !key.for_signing() {
        return Err(refused(format!("key {name} may not sign")));
    }
    Ok(())
}

/// Judges everything about a signature but the bytes, and returns when it was made.
fn judged_signature(
    signature: &Signature,
    policy: &StandardPolicy<'_>,
    wanted: &SignatureRules<'_>,
) -> Result<Timestamp> {
    if signature.typ() != SignatureType::Binary {
        return Err(refused(format!("a {} signature is not one over a file", signature.typ())));
    }
    policy.signature(signature, Default::default()).map_err(|error| {
        refused("the signature uses an algorithm that is not trusted".to_owned()).with_source(error)
    })?;
    let time = created(signature)?;
    if time > wanted.now + CLOCK_SKEW {
        return Err(refused(format!("the signature is from the future: {time}"))
            .hint("is this machine's clock right?"));
    }
    signature
        .signature_alive(system(wanted.now), CLOCK_SKEW)
        .map_err(|error| refused("the signature has expired".to_owned()).with_source(error))?;
    for (name, value) in &wanted.notations {
        notation(signature, name, value)?;
    }
    if let Some(floor) = wanted.not_before.filter(|floor| time < *floor) {
        return Err(refused(format!(
            "the signature is of {time}, older than the manifest allows ({floor})"
        )));
    }
    if let Some(newest) = wanted.newest_seen.filter(|newest| time < *newest) {
        return Err(refused(format!(
            "rollback: the signature is of {time}, but one of {newest} was accepted before"
        ))
        .hint("`--accept-older` takes it all the same"));
    }
    Ok(time)
}

/// A notation counts if the signature carries it, and every time with the same value.
fn notation(signature: &Signature, name: &str, value: &str) -> Result<()> {
    let mut values = signature.notation(name).peekable();
    if values.peek().is_none() {
        return Err(refused(format!("the signature lacks the notation {name}")));
    }
    match values.find(|found| *found != value.as_bytes()) {
        None => Ok(()),
        Some(found) => Err(refused(format!(
            "the signature's notation {name} is `{}`, not `{value}`: it was made for another file",
            String::from_utf8_lossy(found).escape_debug()
        ))),
    }
}

fn created(signature: &Signature) -> Result<Timestamp> {
    signature
        .signature_creation_time()
        .and_then(|time| Timestamp::try_from(time).ok())
        .ok_or_else(|| refused("a signature does not say when it was made".to_owned()))
}

fn system(time: Timestamp) -> SystemTime {
    SystemTime::try_from(time).expect("a 64-bit clock holds every timestamp")
}
