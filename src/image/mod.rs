//! What a guest's disk is made from: manifests, and how an image is fetched, verified while its bytes
//! arrive, unpacked, kept in the store, or built.
//!
//! Only the verifier and the builders can make a [`VerifiedImage`]; nothing else is ever given to a
//! hypervisor. This module must not know hypervisors, labs or levels.

pub mod build;
pub mod convert;
pub mod digest;
pub mod disk;
mod fetch;
pub mod format;
pub mod manifest;
pub mod ova;
pub mod ovf;
pub mod store;
mod structure;
pub mod unpack;
pub mod update;
pub mod verify;
mod verify_file;

use std::io::Read as _;

use camino::Utf8Path;

pub use digest::{Fingerprint, Sha256, Sha512};
pub use disk::DiskFormat;
pub use fetch::{FetchOptions, fetch};
pub use format::{Compression, ImageFormat};
pub use manifest::Manifest;
pub use store::{Built, Store, VerifiedImage};
pub use verify_file::{Beside, verify_file};

use crate::error::{Error, Kind, Result};

/// Reads a key, signature or checksum file from this machine.
fn small_file(path: &Utf8Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs_err::File::open(path)?.take(fetch::SMALL as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > fetch::SMALL {
        return Err(Error::new(
            Kind::Untrusted,
            format!("{path} is too big to be a key, a signature or a checksum file"),
        ));
    }
    Ok(bytes)
}
