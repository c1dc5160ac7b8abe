//! What the journal holds: one [`Record`] a line.

use std::fmt;

use camino::Utf8PathBuf;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::resources::Resource;
use crate::event::{Failure, Level};
use crate::hypervisor::HypervisorKind;
use crate::image::Sha256;
use crate::recipe::ImageName;

/// The format's number. It grows when an older nestlab could misread what a newer one wrote; new
/// fields alone do not make it grow. A kind of entry that a nestlab does not know keeps it from
/// writing, too.
pub const SCHEMA: u32 = 1;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The format's number when it was written.
    pub schema: u32,
    /// When it was written.
    pub at: Timestamp,
    /// Which run wrote it, counted from 1; 0 before the first.
    pub run: u64,
    /// What happened.
    #[serde(flatten)]
    pub entry: JournalEntry,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum JournalEntry {
    /// A run begins.
    RunStarted {
        /// The argument vector that nestlab was called with.
        command: Vec<String>,
        /// The version of nestlab.
        version: String,
        /// The process.
        pid: u32,
        /// Number of steps in its plan.
        steps: usize,
    },
    /// A run is over. A run without it was ended by force.
    RunEnded {
        /// How.
        outcome: Outcome,
    },
    /// A step is about to change something; written, and durable, before it does.
    Intent {
        /// The step's id.
        step: String,
        /// The step in words.
        title: String,
        /// Why it is needed.
        why: String,
    },
    /// A step that was intended has ended.
    Outcome {
        /// The step's id.
        step: String,
        /// How.
        outcome: Outcome,
        /// How long it took, in milliseconds.
        millis: u64,
    },
    /// A step was found as it should be.
    Satisfied {
        /// The step's id.
        step: String,
    },
    /// A thing is about to come into being because of this lab; written, and durable, before it does.
    Creating {
        /// The step that makes it.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        step: Option<String>,
        /// The thing.
        resource: Resource,
    },
    /// A thing that this lab made is gone, and was seen to be.
    Removed {
        /// The thing.
        resource: Resource,
    },
    /// A thing that this lab made is left where it is, since the user wanted the lab to end without it.
    Left {
        /// The thing.
        resource: Resource,
    },
    /// The settings of a VM that existed before, as they were before nestlab's first change.
    Former {
        /// The VM's host.
        host: String,
        /// What runs the VM.
        hypervisor: HypervisorKind,
        /// The VM's name or UUID.
        vm: String,
        /// The settings, in the driver's own words.
        settings: serde_json::Value,
    },
    /// A VM that existed before has its former settings again.
    Restored {
        /// The VM's host.
        host: String,
        /// The VM's name or UUID.
        vm: String,
    },
    /// A guest's disk was made from an image, and proven to be it where it lies.
    MadeFrom {
        /// The guest.
        guest: String,
        /// The image.
        image: DiskImage,
    },
    /// A guest is about to be made anew: what it has is moved aside; written, and durable, before it is.
    Replacing {
        /// The guest.
        guest: String,
        /// The folder on its host in which it is kept.
        kept: Utf8PathBuf,
    },
    /// What a guest had was moved aside, so that another may be made in its place.
    Replaced {
        /// The guest.
        guest: String,
    },
    /// A guest gave evidence of being up.
    Ready {
        /// The guest.
        guest: String,
        /// The evidence, such as `ssh` or `serial: login:`.
        evidence: String,
        /// Where it is reached from its host, if it is.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        address: Option<String>,
    },
    /// A guest was stopped.
    Stopped {
        /// The guest.
        guest: String,
    },
    /// The lab's machines as they are about to be kept in `machines.json`, which is made anew from this
    /// if it is lost.
    Blueprint {
        /// The same JSON as in that file.
        blueprint: serde_json::Value,
    },
    /// Damaged lines of the journal were made up for: what they may have hidden was looked for.
    Examined {
        /// Their numbers, from 1.
        damaged: Vec<usize>,
    },
    /// Something that the user was told.
    Notice {
        /// How much it matters.
        level: Level,
        /// The text.
        text: String,
    },
    /// Written by a newer nestlab: kept, skipped by who looks, and a reason to write nothing.
    #[serde(other)]
    Unknown,
}

/// The image that a guest's disk was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskImage {
    /// Its name.
    pub name: ImageName,
    /// Its version.
    pub version: String,
    /// The digest of its file in the store.
    pub sha256: Sha256,
}

impl fmt::Display for DiskImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// How a step or a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum Outcome {
    /// All is as it should be.
    Done,
    /// It failed.
    Failed {
        /// The failure.
        failure: Failure,
    },
    /// It can be neither completed nor undone without the user; the failure's hints say the way out.
    Stuck {
        /// The failure.
        failure: Failure,
    },
    /// It was stopped at a safe point; nothing is wrong with it.
    Interrupted,
}
