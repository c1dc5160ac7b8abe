//! OpenBSD's signify: a public key and a detached Ed25519 signature, as two lines of text each.
//!
//! A signify signature says nothing about when it was made or what the file is called; who names a
//! file by its checksum line and pins a version gets both.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// What both files start with after base64: Ed25519, and a number by which key and signature are
/// matched (signify(1), `struct pubkey` and `struct sig`).
const ALGORITHM: &[u8; 2] = b"Ed";
const NUMBER: usize = 8;

/// A signify public key: the base64 line that starts with `RW`.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct PublicKey {
    number: [u8; NUMBER],
    key: VerifyingKey,
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{}` is not a signify public key", text.escape_debug());
        let bytes = STANDARD.decode(text).map_err(|_| bad())?;
        let (number, key) = split(&bytes).ok_or_else(bad)?;
        let key: &[u8; 32] = key.try_into().map_err(|_| bad())?;
        let key = VerifyingKey::from_bytes(key).map_err(|_| bad())?;
        Ok(PublicKey { number, key })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&ALGORITHM[..], &self.number, self.key.as_bytes()].concat();
        f.pad(&STANDARD.encode(bytes))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Splits decoded bytes into key number and what follows.
fn split(bytes: &[u8]) -> Option<([u8; NUMBER], &[u8])> {
    let (number, rest) = bytes.strip_prefix(ALGORITHM)?.split_at_checked(NUMBER)?;
    Some((number.try_into().ok()?, rest))
}

/// Verifies the signature file `signature` over `message` with `key`.
///
/// # Errors
/// [`Kind::Untrusted`] if it is not a signify signature, was made by another key, or does not match.
pub fn verify(key: &PublicKey, message: &[u8], signature: &[u8]) -> Result<()> {
    let refused = |why: &str| Err(Error::new(Kind::Untrusted, format!("signify: {why}")));
    let Some((number, made)) = parse(signature, message) else {
        return refused("this is not a signature file");
    };
    if number != key.number {
        return refused("the signature was made by a key with another number");
    }
    if key.key.verify_strict(message, &made).is_err() {
        return refused("the signature does not match");
    }
    Ok(())
}

/// Reads a signature file: a comment line, a base64 line, and, in one made by `signify -e`, the
/// message itself, which then must be the one at hand.
fn parse(file: &[u8], message: &[u8]) -> Option<([u8; NUMBER], Signature)> {
    let comment_end = file.iter().position(|b| *b == b'\n')?;
    let (comment, rest) = file.split_at(comment_end);
    if !comment.starts_with(b"untrusted comment: ") {
        return None;
    }
    let rest = &rest[1..];
    let (line, embedded) = match rest.iter().position(|b| *b == b'\n') {
        Some(end) => (&rest[..end], &rest[end + 1..]),
        None => (rest, &[][..]),
    };
    if !embedded.is_empty() && embedded != message {
        return None;
    }
    let bytes = STANDARD.decode(line).ok()?;
    let (number, signature) = split(&bytes)?;
    Some((number, Signature::from_slice(signature).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer as _, SigningKey};

    fn signer(number: u8) -> (PublicKey, impl Fn(&[u8]) -> String) {
        let secret = SigningKey::from_bytes(&[7; 32]);
        let public = PublicKey { number: [number; 8], key: secret.verifying_key() };
        let sign = move |message: &[u8]| {
            let made = secret.sign(message).to_bytes();
            let bytes = [&ALGORITHM[..], &[number; 8], &made].concat();
            format!("untrusted comment: test\n{}\n", STANDARD.encode(bytes))
        };
        (public, sign)
    }

    #[test]
    fn a_good_signature_holds_and_any_other_does_not() {
        let (key, sign) = signer(1);
        let good = sign(b"sums");
        verify(&key, b"sums", good.as_bytes()).expect("made over these bytes");
        let (other_number, _) = signer(2);
        for (key, message, signature, part) in [
            (&key, &b"sumz"[..], good.clone(), "does not match"),
            (&other_number, b"sums", good.clone(), "another number"),
            (&key, b"sums", String::new(), "not a signature file"),
            (&key, b"sums", good.replace("untrusted comment: ", "x"), "not a signature file"),
            (&key, b"sums", good.replace("RW", "QW"), "not a signature file"),
            (&key, b"sums", format!("{good}other"), "not a signature file"),
        ] {
            let error = verify(key, message, signature.as_bytes()).expect_err(part);
            assert_eq!(error.kind(), Kind::Untrusted);
            assert!(error.message().contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn kicksecures_key_is_read_and_written_alike() {
        let text = "RWQ6KRormNEETq+M8IysxRe/HAWlqZRlO8u7ACIiv5poAW0ztsirOjCQ";
        assert_eq!(text.parse::<PublicKey>().expect("published key").to_string(), text);
        assert!("RWQ6".parse::<PublicKey>().is_err());
    }
}
