//! The last known state of a lab, from its journal alone. Pure: whether the world still agrees is for
//! those to say who look at it.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use jiff::Timestamp;

use super::record::{DiskImage, JournalEntry, Outcome, Record};
use super::resources::Resource;
use crate::event::Failure;

/// The step in whose name is recorded what damage of a journal may hide.
pub const RECOVERED: &str = "recover";

/// The last known state of a lab.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LabState {
    /// The last run.
    pub run: Option<RunRecord>,
    /// The steps, by id.
    pub steps: BTreeMap<String, StepStatus>,
    /// The guests that gave evidence of being up, and were not stopped since.
    pub ready: BTreeMap<String, ReadyRecord>,
    /// The VMs that were once defined whole: from then on their disks are their guests', whatever becomes of
    /// the definition.
    pub used: Vec<Resource>,
    /// The image that each guest's disk was made from, as far as that was written down.
    pub images: BTreeMap<String, DiskImage>,
    /// What guests had before they were made anew, and is not removed yet; the oldest first.
    pub aside: Vec<Aside>,
    /// The VM of each guest that was made last.
    made: BTreeMap<String, Resource>,
}

/// What a guest had before it was made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// The guest.
    pub guest: String,
    /// The folder on its host in which it is kept.
    pub kept: Utf8PathBuf,
    /// Whether all of it is there: else the move was interrupted, or is under way.
    pub moved: bool,
}

/// A run of nestlab.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRecord {
    /// Its number, from 1.
    pub number: u64,
    /// The argument vector.
    pub command: Vec<String>,
    /// When it began.
    pub started: Timestamp,
    /// When and how it ended; `None` while it runs, or if it was ended by force.
    pub ended: Option<(Timestamp, Outcome)>,
}

/// What is known of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepStatus {
    /// Since when.
    pub since: Timestamp,
    /// In which run.
    pub run: u64,
    /// The state.
    pub state: StepState,
}

/// The last known state of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepState {
    /// It was intended and has not ended: it runs, or nestlab was ended by force.
    Begun,
    /// It was as it should be when it was last looked at.
    Good,
    /// It failed.
    Failed(Failure),
    /// It can be neither completed nor undone without the user.
    Stuck(Failure),
    /// It was stopped at a safe point.
    Interrupted,
}

/// The evidence that a guest is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyRecord {
    /// Since when.
    pub since: Timestamp,
    /// The evidence.
    pub evidence: String,
    /// Where it is reached from its host.
    pub address: Option<String>,
}

impl LabState {
    /// Returns the state that these records, oldest first, lead to.
    pub fn from_records(records: &[Record]) -> Self {
        let mut status = LabState::default();
        for record in records {
            status.take(record);
        }
        status
    }

    fn take(&mut self, record: &Record) {
        let at = record.at;
        match &record.entry {
            JournalEntry::RunStarted { command, .. } => {
                let (number, command) = (record.run, command.clone());
                self.run = Some(RunRecord { number, command, started: at, ended: None });
            }
            JournalEntry::RunEnded { outcome } => {
                if let Some(run) = &mut self.run {
                    run.ended = Some((at, outcome.clone()));
                }
            }
            JournalEntry::Intent { step, .. } => self.set(record, step, StepState::Begun),
            JournalEntry::Satisfied { step } => self.set(record, step, StepState::Good),
            JournalEntry::Outcome { step, outcome, .. } => {
                let state = match outcome.clone() {
                    Outcome::Done => StepState::Good,
                    Outcome::Failed { failure } => StepState::Failed(failure),
                    Outcome::Stuck { failure } => StepState::Stuck(failure),
                    Outcome::Interrupted => StepState::Interrupted,
                };
                self.set(record, step, state);
            }
            JournalEntry::Ready { guest, evidence, address } => {
                let (evidence, address) = (evidence.clone(), address.clone());
                self.ready.insert(guest.clone(), ReadyRecord { since: at, evidence, address });
                self.use_vm_of(guest);
            }
            JournalEntry::Stopped { guest } => {
                self.ready.remove(guest);
                self.use_vm_of(guest);
            }
            JournalEntry::Creating { step, resource } => {
                if let Some(guest) = resource.carries() {
                    self.made.insert(guest.to_owned(), resource.clone());
                    // What was damaged may have said that it was defined.
                    if step.as_deref() == Some(RECOVERED) {
                        self.use_vm_of(guest);
                    }
                }
            }
            JournalEntry::Removed { resource } => self.forget(resource),
            JournalEntry::MadeFrom { guest, image } => {
                self.images.insert(guest.clone(), image.clone());
            }
            JournalEntry::Replacing { guest, kept } => {
                let (guest, kept) = (guest.clone(), kept.clone());
                self.aside.retain(|aside| aside.kept != kept);
                self.aside.push(Aside { guest, kept, moved: false });
            }
            JournalEntry::Replaced { guest } => {
                let its = self.aside.iter_mut().filter(|aside| aside.guest == *guest);
                its.for_each(|aside| aside.moved = true);
                self.begin_anew(guest);
            }
            JournalEntry::Left { .. }
            | JournalEntry::Former { .. }
            | JournalEntry::Restored { .. }
            | JournalEntry::Blueprint { .. }
            | JournalEntry::Examined { .. }
            | JournalEntry::Notice { .. }
            | JournalEntry::Unknown => {}
        }
    }

    /// Takes note that the VM of `guest` is whole.
    fn use_vm_of(&mut self, guest: &str) {
        if let Some(vm) = self.made.get(guest)
            && !self.used.contains(vm)
        {
            self.used.push(vm.clone());
        }
    }

    fn forget(&mut self, gone: &Resource) {
        self.used.retain(|vm| vm != gone);
        match gone {
            Resource::Vm { guest, .. } if self.made.get(guest) == Some(gone) => {
                self.made.remove(guest);
                self.aside.retain(|aside| aside.guest != *guest);
                self.begin_anew(guest);
            }
            Resource::Directory { path, .. } => self.aside.retain(|aside| aside.kept != *path),
            _ => {}
        }
    }

    /// Forgets what was known of a guest whose disk is gone, or another one now.
    fn begin_anew(&mut self, guest: &str) {
        self.used.retain(|vm| vm.carries() != Some(guest));
        self.images.remove(guest);
        self.ready.remove(guest);
        let its = |id: &str| id.split_once('/').is_some_and(|(of, _)| of == guest);
        self.steps.retain(|id, _| !its(id));
    }

    /// Returns whether the guest's disk, of this VM, may have been written to.
    pub fn is_used(&self, vm: &Resource) -> bool {
        self.used.contains(vm)
    }

    fn set(&mut self, record: &Record, step: &str, state: StepState) {
        if state == StepState::Good
            && let Some((guest, "define")) = step.split_once('/')
        {
            self.use_vm_of(guest);
        }
        let status = StepStatus { since: record.at, run: record.run, state };
        self.steps.insert(step.to_owned(), status);
    }

    /// Returns the steps of `guest`, those whose id begins with its name and a slash.
    pub fn steps_of(&self, guest: &str) -> impl Iterator<Item = (&str, &StepStatus)> {
        self.steps.iter().filter_map(move |(id, status)| {
            let what = id.strip_prefix(guest)?.strip_prefix('/')?;
            Some((what, status))
        })
    }

    /// Returns the steps that did not end well, the latest first.
    pub fn troubled(&self) -> Vec<(&str, &StepStatus)> {
        let mut troubled: Vec<_> = self
            .steps
            .iter()
            .filter(|(_, status)| status.state != StepState::Good)
            .map(|(id, status)| (id.as_str(), status))
            .collect();
        troubled.sort_by_key(|(_, status)| std::cmp::Reverse(status.since));
        troubled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::record::SCHEMA;

    fn status(entries: Vec<JournalEntry>) -> LabState {
        let records: Vec<Record> = entries
            .into_iter()
            .enumerate()
            .map(|(second, entry)| {
                let at = Timestamp::from_second(second as i64).expect("in range");
                Record { schema: SCHEMA, at, run: 1, entry }
            })
            .collect();
        LabState::from_records(&records)
    }

    fn intent(step: &str) -> JournalEntry {
        JournalEntry::Intent { step: step.into(), title: String::new(), why: String::new() }
    }

    fn outcome(step: &str, outcome: Outcome) -> JournalEntry {
        JournalEntry::Outcome { step: step.into(), outcome, millis: 1 }
    }

    #[test]
    fn a_step_that_was_intended_and_never_ended_counts_as_begun() {
        let status = status(vec![
            intent("l1/start"),
            outcome("l1/start", Outcome::Done),
            intent("l1/upgrade"),
        ]);
        assert_eq!(status.steps["l1/start"].state, StepState::Good);
        assert_eq!(status.troubled()[0].0, "l1/upgrade");
        assert_eq!(status.steps["l1/upgrade"].state, StepState::Begun);
    }

    #[test]
    fn the_last_word_about_a_step_counts() {
        let status = status(vec![
            intent("l1/start"),
            outcome("l1/start", Outcome::Interrupted),
            JournalEntry::Satisfied { step: "l1/start".into() },
        ]);
        assert!(status.troubled().is_empty());
    }

    fn vm(guest: &str) -> Resource {
        Resource::Vm {
            host: "L0".into(),
            guest: guest.into(),
            hypervisor: crate::hypervisor::HypervisorKind::Qemu,
            vm: format!("nestlab-demo-{guest}"),
            directory: format!("/disks/{guest}").into(),
        }
    }

    fn creating(resource: Resource) -> JournalEntry {
        JournalEntry::Creating { step: None, resource }
    }

    #[test]
    fn a_vm_is_used_from_the_moment_it_is_defined_until_it_is_removed() {
        let defined = outcome("l1/define", Outcome::Done);
        let begun = vec![creating(vm("l1")), intent("l1/define")];
        assert!(!status(begun.clone()).is_used(&vm("l1")), "its definition was interrupted");
        let used = [begun, vec![defined]].concat();
        assert!(status(used.clone()).is_used(&vm("l1")));
        let changed = [used.clone(), vec![intent("l1/define")]].concat();
        assert!(status(changed).is_used(&vm("l1")), "a later change was interrupted");
        let removed = [used, vec![JournalEntry::Removed { resource: vm("l1") }]].concat();
        assert!(!status(removed.clone()).is_used(&vm("l1")));
        let again = [removed, vec![creating(vm("l1"))]].concat();
        assert!(!status(again).is_used(&vm("l1")));
        let found = vec![creating(vm("l1")), JournalEntry::Satisfied { step: "l1/define".into() }];
        assert!(status(found).is_used(&vm("l1")), "killed before the outcome was written");
        let started = vec![creating(vm("l1")), JournalEntry::Stopped { guest: "l1".into() }];
        assert!(status(started).is_used(&vm("l1")));
    }

    #[test]
    fn a_guest_begins_anew_only_once_all_it_had_was_moved_aside() {
        let kept: Utf8PathBuf = "/disks/l1/replaced-2".into();
        let image = DiskImage {
            name: "img".parse().expect("a name"),
            version: "1".into(),
            sha256: crate::image::Sha256::from_bytes([1; 32]),
        };
        let moving = vec![
            creating(vm("l1")),
            JournalEntry::MadeFrom { guest: "l1".into(), image },
            outcome("l1/define", Outcome::Done),
            JournalEntry::Replacing { guest: "l1".into(), kept: kept.clone() },
        ];
        let interrupted = status(moving.clone());
        assert!(interrupted.is_used(&vm("l1")));
        assert!(!interrupted.aside[0].moved);
        let moved = [moving, vec![JournalEntry::Replaced { guest: "l1".into() }]].concat();
        let anew = status(moved.clone());
        assert!(!anew.is_used(&vm("l1")) && anew.images.is_empty() && anew.aside[0].moved);
        assert_eq!(anew.steps_of("l1").count(), 0);
        let directory = Resource::Directory { host: "L0".into(), path: kept };
        let gone = [moved, vec![JournalEntry::Removed { resource: directory }]].concat();
        assert!(status(gone).aside.is_empty());
    }

    #[test]
    fn a_guest_is_ready_until_it_is_stopped_and_its_steps_are_its_own() {
        let ready = JournalEntry::Ready {
            guest: "l1".into(),
            evidence: "ssh".into(),
            address: Some("127.0.0.1:4022".into()),
        };
        let up = status(vec![ready.clone(), JournalEntry::Satisfied { step: "l10/start".into() }]);
        assert_eq!(up.ready["l1"].evidence, "ssh");
        assert_eq!(up.steps_of("l1").count(), 0);
        assert_eq!(up.steps_of("l10").map(|(what, _)| what).collect::<Vec<_>>(), ["start"]);
        assert!(status(vec![ready, JournalEntry::Stopped { guest: "l1".into() }]).ready.is_empty());
    }
}
