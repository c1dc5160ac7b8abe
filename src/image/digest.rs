//! Digests and fingerprints as types: what is built here has the right length and only hex digits.

use std::fmt;
use std::io::Read as _;
use std::str::FromStr;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::error::Result;

/// Defines a digest of a fixed length, read and written as lower-case hex.
macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(into = "String")]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// Returns the digest with these bytes.
            pub fn from_bytes(bytes: [u8; $bytes]) -> Self {
                $name(bytes)
            }

            /// Returns the bytes.
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> std::result::Result<Self, String> {
                let mut bytes = [0; $bytes];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| {
                    format!(
                        "`{}` is not a {} digest: {} hex digits",
                        text.escape_debug(),
                        $what,
                        2 * $bytes
                    )
                })?;
                Ok($name(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl From<$name> for String {
            fn from(digest: $name) -> String {
                digest.to_string()
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

digest_type! {
    /// A SHA-256 digest; the name of an image in the store.
    Sha256, "SHA-256", 32
}
digest_type! {
    /// A SHA-512 digest.
    Sha512, "SHA-512", 64
}

impl Sha256 {
    /// Returns the digest of the file at `path`. Blocks.
    ///
    /// # Errors
    /// [`Kind::Io`](crate::Kind) if it cannot be read.
    pub fn of_file(path: &Utf8Path) -> Result<Self> {
        let mut hasher = sha2::Sha256::new();
        read_through(path, |piece| hasher.update(piece))?;
        Ok(Sha256(hasher.finalize().into()))
    }
}

/// Returns the size in bytes and both digests of the file at `path`, which is read once. Blocks.
///
/// # Errors
/// [`Kind::Io`](crate::Kind) if it cannot be read.
pub(super) fn size_and_digests(path: &Utf8Path) -> Result<(u64, Sha256, Sha512)> {
    let (mut sha256, mut sha512) = (sha2::Sha256::new(), sha2::Sha512::new());
    let size = read_through(path, |piece| {
        sha256.update(piece);
        sha512.update(piece);
    })?;
    Ok((size, Sha256(sha256.finalize().into()), Sha512(sha512.finalize().into())))
}

/// Gives the file at `path` to `each`, piece by piece, and returns its size in bytes.
fn read_through(path: &Utf8Path, mut each: impl FnMut(&[u8])) -> Result<u64> {
    let mut file = fs_err::File::open(path)?;
    let (mut size, mut piece) = (0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(size),
            read => {
                size += read as u64;
                each(&piece[..read]);
            }
        }
    }
}

/// An OpenPGP fingerprint: 40 hex digits (version 4 keys) or 64 (version 6), upper case.
///
/// Key IDs are refused: 64 bits can be forged.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Returns the fingerprint as upper-case hex without spaces.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let digits: String = text.chars().filter(|c| *c != ' ').collect();
        let ok = matches!(digits.len(), 40 | 64) && digits.bytes().all(|b| b.is_ascii_hexdigit());
        if ok {
            Ok(Fingerprint(digits.to_ascii_uppercase()))
        } else {
            Err(format!(
                "`{}` is not an OpenPGP fingerprint: 40 or 64 hex digits (a key ID is too short to trust)",
                text.escape_debug()
            ))
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_what_it_writes_and_refuses_other_lengths() {
        let text = "ab".repeat(32);
        let digest: Sha256 = text.to_uppercase().parse().expect("64 hex digits");
        assert_eq!(digest.to_string(), text);
        for bad in ["", "ab", &"zz".repeat(32), &"ab".repeat(33)] {
            assert!(bad.parse::<Sha256>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_id_is_not_a_fingerprint() {
        assert!("8D66066A2EEACCDA".parse::<Fingerprint>().is_err());
        let spaced = "916B 8D99 C38E AF5E 8ADC  7A2A 8D66 066A 2EEA CCDA";
        assert_eq!(
            spaced.parse::<Fingerprint>().expect("40 digits").as_str(),
            "916B8D99C38EAF5E8ADC7A2A8D66066A2EEACCDA"
        );
    }
}
