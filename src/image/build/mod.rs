//! Images that are built instead of downloaded: a Debian system, or an appliance small enough for the
//! deepest level; and the seed volume that gives a guest its keys.
//!
//! An image holds no key and no identity, so that its digest can be shared and compared; what makes a
//! guest itself comes from its [`seed`].

mod appliance;
mod bootstrap;
mod cpio;
mod elf;
mod fat;
mod libraries;
pub mod mirror;
mod modules;
mod ova;
pub mod seed;
mod tree;
mod vmdk;
mod workshop;

pub use bootstrap::BuildRecord;
