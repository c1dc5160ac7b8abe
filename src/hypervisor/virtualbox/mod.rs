//! Oracle VirtualBox, driven through `VBoxManage`; the same at L0 and inside every deeper level.
//!
//! The parts that only think (`parse`, `fault`, `settings`, `storage`, `diff`, `former`, `remedies`, `log`)
//! are pure; `manage` is the one that runs VBoxManage, `machine` and `driver` say when.

mod diff;
mod driver;
pub mod fault;
mod host_facts;
mod host_key;
mod log;
mod loopback;
mod machine;
mod manage;
pub mod parse;
mod ports;
pub mod remedies;
pub mod saved_settings;
mod settings;
mod start;
mod storage;
#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod transcript;
mod tsc;
mod version;

use camino::Utf8PathBuf;

pub use diff::{FREE_PORT, SNAPSHOT_BEFORE};
pub use driver::VirtualBox;
pub(crate) use host_key::GLOBAL;
pub(crate) use loopback::closes_loopback;
pub use manage::Installed;
pub use saved_settings::SavedSettings;

use super::GuestSpec;

/// Returns the file into which a guest's first serial port is written.
fn serial_log(spec: &GuestSpec) -> Utf8PathBuf {
    spec.directory.join("serial.log")
}
