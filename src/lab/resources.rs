//! What exists because of a lab: every thing is recorded before it exists, so that `destroy` removes
//! exactly these and nothing else.

use std::fmt;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use super::record::{JournalEntry, Record};
use crate::hypervisor::HypervisorKind;

/// A thing that exists, or may exist, because of a lab. Hosts are named as in messages: `L0`, or the
/// guest's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Resource {
    /// A virtual machine that nestlab made. All that was made on the guest goes with it.
    Vm {
        /// The VM's host.
        host: String,
        /// The guest's name in the recipe.
        guest: String,
        /// What runs it.
        hypervisor: HypervisorKind,
        /// Its name on its host.
        vm: String,
        /// The folder on its host that belongs to it alone.
        directory: Utf8PathBuf,
    },
    /// A directory with all that is in it.
    Directory {
        /// Where it lies.
        host: String,
        /// Its path there.
        path: Utf8PathBuf,
    },
    /// A line of the lab's `known_hosts`.
    KnownHost {
        /// The guest whose key it is.
        guest: String,
    },
}

impl Resource {
    /// Returns the host that it is on; a line of `known_hosts` is on this machine.
    pub fn host(&self) -> &str {
        match self {
            Resource::Vm { host, .. } | Resource::Directory { host, .. } => host,
            Resource::KnownHost { .. } => "L0",
        }
    }

    /// Returns the guest whose VM it is: what is on that guest exists only as long as this does.
    pub fn carries(&self) -> Option<&str> {
        match self {
            Resource::Vm { guest, .. } => Some(guest),
            _ => None,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Vm { host, vm, hypervisor, .. } => {
                write!(f, "VM {vm} in {hypervisor} on {host}")
            }
            Resource::Directory { host, path } => write!(f, "directory {path} on {host}"),
            Resource::KnownHost { guest } => write!(f, "known host key of {guest}"),
        }
    }
}

/// Returns what was made and not removed since, the newest first: the order in which to remove it.
pub fn remaining(records: &[Record]) -> Vec<Resource> {
    let mut made: Vec<Resource> = Vec::new();
    for record in records {
        match &record.entry {
            JournalEntry::Creating { resource, .. } if !made.contains(resource) => {
                made.push(resource.clone());
            }
            JournalEntry::Removed { resource } | JournalEntry::Left { resource } => {
                made.retain(|known| known != resource);
            }
            _ => {}
        }
    }
    made.reverse();
    made
}

/// A VM that existed before nestlab, with the settings it had before the first change.
#[derive(Debug, Clone, PartialEq)]
pub struct Adopted {
    /// The VM's host.
    pub host: String,
    /// What runs it.
    pub hypervisor: HypervisorKind,
    /// Its name or UUID.
    pub vm: String,
    /// What each change overwrote, in the driver's own words, the oldest first: of a setting that was
    /// changed more than once, the first value is the one to restore.
    pub settings: Vec<serde_json::Value>,
}

/// Returns the VMs that existed before and have not been given their former settings back.
pub fn adopted(records: &[Record]) -> Vec<Adopted> {
    let mut adopted: Vec<Adopted> = Vec::new();
    for record in records {
        match &record.entry {
            JournalEntry::Former { host, hypervisor, vm, settings } => {
                let known = adopted.iter_mut().find(|known| known.host == *host && known.vm == *vm);
                match known {
                    Some(known) => known.settings.push(settings.clone()),
                    None => adopted.push(Adopted {
                        host: host.clone(),
                        hypervisor: *hypervisor,
                        vm: vm.clone(),
                        settings: vec![settings.clone()],
                    }),
                }
            }
            JournalEntry::Restored { host, vm } => {
                adopted.retain(|known| known.host != *host || known.vm != *vm);
            }
            _ => {}
        }
    }
    adopted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::record::SCHEMA;

    fn records(entries: Vec<JournalEntry>) -> Vec<Record> {
        let at = jiff::Timestamp::UNIX_EPOCH;
        entries.into_iter().map(|entry| Record { schema: SCHEMA, at, run: 1, entry }).collect()
    }

    fn folder(name: &str) -> Resource {
        Resource::Directory { host: "L0".into(), path: name.into() }
    }

    fn creating(name: &str) -> JournalEntry {
        JournalEntry::Creating { step: None, resource: folder(name) }
    }

    #[test]
    fn what_remains_is_what_was_made_less_what_was_removed_the_newest_first() {
        let records = records(vec![
            creating("a"),
            creating("b"),
            creating("a"),
            creating("c"),
            JournalEntry::Removed { resource: folder("b") },
        ]);
        assert_eq!(remaining(&records), [folder("c"), folder("a")]);
    }

    #[test]
    fn a_thing_made_again_after_its_removal_remains() {
        let records = records(vec![
            creating("a"),
            JournalEntry::Removed { resource: folder("a") },
            creating("a"),
        ]);
        assert_eq!(remaining(&records), [folder("a")]);
    }

    #[test]
    fn what_was_overwritten_of_an_adopted_vm_is_kept_in_order_until_it_is_restored() {
        let former = |cpus: u32| JournalEntry::Former {
            host: "L0".into(),
            hypervisor: HypervisorKind::VirtualBox,
            vm: "Whonix".into(),
            settings: serde_json::json!({ "cpus": cpus }),
        };
        let restored = JournalEntry::Restored { host: "L0".into(), vm: "Whonix".into() };
        let found = adopted(&records(vec![former(3), former(1)]));
        assert_eq!(found.len(), 1);
        let cpus: Vec<_> = found[0].settings.iter().map(|former| former["cpus"].clone()).collect();
        assert_eq!(cpus, [3, 1]);
        assert!(adopted(&records(vec![former(3), restored.clone()])).is_empty());
        let found = adopted(&records(vec![former(3), restored, former(2)]));
        assert_eq!(found[0].settings[0]["cpus"], 2);
    }
}
