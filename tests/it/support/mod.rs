//! What several tests need: real programs on this machine, started and ended with the test, and a nestlab
//! with folders of its own.

pub(crate) mod bench;
pub(crate) mod boot_sector;
pub(crate) mod debian;
pub(crate) mod dropbear;
pub(crate) mod emulator;
pub(crate) mod golden;
pub(crate) mod lab;
pub(crate) mod machine;
pub(crate) mod outdated;
pub(crate) mod publisher;
pub(crate) mod sshd;
pub(crate) mod virtualbox_native;
