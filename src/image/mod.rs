//! What a guest's disk is made from: manifests, and how an image is fetched, verified while its bytes
//! arrive, unpacked, kept in the store, or built.
//!
//! Only the verifier and the builders can make a [`VerifiedImage`]; nothing else is ever given to a
//! hypervisor. This module must not know hypervisors, labs or levels.

pub mod build;
