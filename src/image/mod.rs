//! What a guest's disk is made from: manifests, and how an image is fetched, verified while its bytes
//! arrive, unpacked, kept in the store, or built.
//!
//! Only the verifier and the builders can make a [`VerifiedImage`]; nothing else is ever given to a
//! hypervisor. This module must not know hypervisors, labs or levels.

pub mod build;
pub mod digest;
pub mod format;
pub mod manifest;
pub mod proof;
pub mod store;

pub use digest::{Fingerprint, Sha256, Sha512};
pub use format::{Compression, ImageFormat};
pub use manifest::Manifest;
pub use store::{Built, Store, VerifiedImage};
