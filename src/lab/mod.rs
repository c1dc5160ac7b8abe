//! One instance of a recipe on this machine: its state directory with recipe, journal, keys, lock,
//! logs and disks.
//!
//! | file | what it holds |
//! |---|---|
//! | [`directory`] | where everything lies; creating, finding and removing labs |
//! | [`private`] | what only the user may read: permissions, whole-or-not-at-all writes |
//! | [`lock`] | one nestlab at a time |
//! | [`identity`] | which machine a lab is of, and which folder is its own |
//! | [`filesystem`] | which file systems other machines may have, too |
//! | [`keys`], [`known_hosts`] | the lab's SSH keys, and their public halves for the user's own ssh |
//! | [`record`], [`journal`], [`journal_writer`] | what was intended, done and made |
//! | [`resources`] | what exists because of this lab, from the journal |
//! | [`reservations`] | VMs that no other lab may take over |
//! | [`status`] | the last known state, from the journal |
//! | [`bundle`] | what helps to understand a failure, in one archive without secrets |
//! | [`leftovers`] | labs whose last run did not end well, and VMs whose lab is gone |
//!
//! This module must not know how guests are run or a plan is made.

pub mod bundle;
pub mod directory;
mod filesystem;
mod identity;
pub mod journal;
pub mod journal_writer;
pub mod keys;
pub mod known_hosts;
pub mod leftovers;
pub mod lock;
pub mod numbered;
pub mod private;
pub mod record;
pub mod reservations;
pub mod resources;
pub mod status;

pub use directory::{Lab, Labs};
pub use journal::Journal;
pub use journal_writer::JournalWriter;
pub use keys::{KeyPair, LabKeys};
pub use known_hosts::KnownHosts;
pub use lock::{LabLock, LockHolder};
pub use record::{DiskImage, JournalEntry, Outcome, Record};
pub use reservations::{Claim, Reservations};
pub use resources::Resource;
pub use status::{Aside, LabState, RECOVERED, StepState};
