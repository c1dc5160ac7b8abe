//! The last known state of a lab, from its journal alone. Pure: whether the world still agrees is for
//! those to say who look at it.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::record::{Entry, Outcome, Record};
use crate::event::Failure;

/// The last known state of a lab.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Status {
    /// The last run.
    pub run: Option<Run>,
    /// The steps, by id.
    pub steps: BTreeMap<String, StepStatus>,
    /// The guests that gave evidence of being up, and were not stopped since.
    pub ready: BTreeMap<String, Ready>,
}

/// A run of nestlab.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
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
pub struct Ready {
    /// Since when.
    pub since: Timestamp,
    /// The evidence.
    pub evidence: String,
    /// Where it is reached from its host.
    pub address: Option<String>,
}

impl Status {
    /// Returns the state that these records, oldest first, lead to.
    pub fn from_records(records: &[Record]) -> Self {
        let mut status = Status::default();
        for record in records {
            status.take(record);
        }
        status
    }

    fn take(&mut self, record: &Record) {
        let at = record.at;
        match &record.entry {
            Entry::RunStarted { command, .. } => {
                let (number, command) = (record.run, command.clone());
                self.run = Some(Run { number, command, started: at, ended: None });
            }
            Entry::RunEnded { outcome } => {
                if let Some(run) = &mut self.run {
                    run.ended = Some((at, outcome.clone()));
                }
            }
            Entry::Intent { step, .. } => self.set(record, step, StepState::Begun),
            Entry::Satisfied { step } => self.set(record, step, StepState::Good),
            Entry::Outcome { step, outcome, .. } => {
                let state = match outcome.clone() {
                    Outcome::Done => StepState::Good,
                    Outcome::Failed { failure } => StepState::Failed(failure),
                    Outcome::Stuck { failure } => StepState::Stuck(failure),
                    Outcome::Interrupted => StepState::Interrupted,
                };
                self.set(record, step, state);
            }
            Entry::Ready { guest, evidence, address } => {
                let (evidence, address) = (evidence.clone(), address.clone());
                self.ready.insert(guest.clone(), Ready { since: at, evidence, address });
            }
            Entry::Stopped { guest } => {
                self.ready.remove(guest);
            }
            Entry::Creating { .. }
            | Entry::Left { .. }
            | Entry::Removed { .. }
            | Entry::Former { .. }
            | Entry::Restored { .. }
            | Entry::Blueprint { .. }
            | Entry::Examined { .. }
            | Entry::Notice { .. }
            | Entry::Unknown => {}
        }
    }

    fn set(&mut self, record: &Record, step: &str, state: StepState) {
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

    fn status(entries: Vec<Entry>) -> Status {
        let records: Vec<Record> = entries
            .into_iter()
            .enumerate()
            .map(|(second, entry)| {
                let at = Timestamp::from_second(second as i64).expect("in range");
                Record { schema: SCHEMA, at, run: 1, entry }
            })
            .collect();
        Status::from_records(&records)
    }

    fn intent(step: &str) -> Entry {
        Entry::Intent { step: step.into(), title: String::new(), why: String::new() }
    }

    fn outcome(step: &str, outcome: Outcome) -> Entry {
        Entry::Outcome { step: step.into(), outcome, millis: 1 }
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
            Entry::Satisfied { step: "l1/start".into() },
        ]);
        assert!(status.troubled().is_empty());
    }

    #[test]
    fn a_guest_is_ready_until_it_is_stopped_and_its_steps_are_its_own() {
        let ready = Entry::Ready {
            guest: "l1".into(),
            evidence: "ssh".into(),
            address: Some("127.0.0.1:4022".into()),
        };
        let up = status(vec![ready.clone(), Entry::Satisfied { step: "l10/start".into() }]);
        assert_eq!(up.ready["l1"].evidence, "ssh");
        assert_eq!(up.steps_of("l1").count(), 0);
        assert_eq!(up.steps_of("l10").map(|(what, _)| what).collect::<Vec<_>>(), ["start"]);
        assert!(status(vec![ready, Entry::Stopped { guest: "l1".into() }]).ready.is_empty());
    }
}
