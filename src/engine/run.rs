//! Runs a plan to its end, its first failure, or the next safe point.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::ready_queue::ReadyQueue;
use super::retry::Retry;
use super::state::StepPhase;
use super::step_runner::{Ended, StepRunner};
use crate::error::{Error, Kind, Result};
use crate::event::{Event, EventSink, Failure, millis};
use crate::faults;
use crate::lab::{Journal, JournalEntry, JournalWriter, Outcome};
use crate::plan::{Context, Plan, Step, StepId};

/// How a plan is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What nestlab was called with, for the journal.
    pub command: Vec<String>,
    /// What to do about failures that may pass by themselves.
    pub retry: Retry,
}

/// How a run ended.
#[derive(Debug)]
pub struct Summary {
    /// The end that each step of the plan came to.
    pub steps: BTreeMap<StepId, StepPhase>,
    /// How long the run took.
    pub took: Duration,
    /// The first failure; [`Kind::Interrupted`] if the run was stopped.
    pub failure: Option<Error>,
}

impl Summary {
    /// Returns the steps that came to `state`.
    pub fn at(&self, state: StepPhase) -> impl Iterator<Item = &StepId> {
        self.steps.iter().filter(move |(_, end)| **end == state).map(|(id, _)| id)
    }

    /// Returns how many steps changed something.
    pub fn changed(&self) -> usize {
        self.at(StepPhase::Changed).count()
    }

    /// Returns how many steps were already as they should be.
    pub fn satisfied(&self) -> usize {
        self.at(StepPhase::Unchanged).count()
    }

    /// Returns the summary, or the failure as an error.
    pub fn into_result(mut self) -> Result<Summary> {
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(self),
        }
    }
}

/// Runs `plan`: every step begins as soon as all that it needs is as it should be.
///
/// After the first failure nothing new begins, and what runs stops at its next safe point; so it
/// does when `cancel` fires. Both leave a lab that the next run continues.
pub async fn run(
    plan: &Plan,
    options: Options,
    journal: Journal,
    events: EventSink,
    cancel: CancellationToken,
) -> Summary {
    let began = Instant::now();
    let lab = journal.lock().lab().name().to_string();
    let events = keeping_notices(events, journal.clone());
    events.send(Event::RunStarted { lab: lab.clone(), steps: plan.steps().len() });
    let started = JournalEntry::RunStarted {
        command: options.command.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        steps: plan.steps().len(),
    };
    let mut run = EngineRun::new(plan, options.retry, journal.clone(), events.clone(), cancel);
    match journal.append(started).await {
        Ok(()) => run.drive().await,
        Err(error) => run.failure = Some(error),
    }
    let mut summary = run.summary(began);
    let ended = JournalEntry::RunEnded { outcome: outcome(summary.failure.as_ref()) };
    if let Err(error) = journal.append(ended).await {
        summary.failure.get_or_insert(error);
    }
    events.send(Event::RunEnded {
        lab,
        changed: summary.changed(),
        satisfied: summary.satisfied(),
        millis: millis(summary.took),
        failure: summary.failure.as_ref().map(Failure::from),
    });
    summary
}

fn outcome(failure: Option<&Error>) -> Outcome {
    match failure {
        None => Outcome::Done,
        Some(error) if error.kind() == Kind::Interrupted => Outcome::Interrupted,
        Some(error) if error.kind() == Kind::Stuck => Outcome::Stuck { failure: error.into() },
        Some(error) => Outcome::Failed { failure: error.into() },
    }
}

/// Returns a feed that also keeps in the journal what the user is told.
fn keeping_notices(events: EventSink, journal: Journal) -> EventSink {
    EventSink::new(move |event| {
        if let Event::Notice { level, text } = &event {
            journal.note(JournalEntry::Notice { level: *level, text: text.clone() });
        }
        events.send(event);
    })
}

struct EngineRun {
    frontier: ReadyQueue,
    retry: Retry,
    journal: Journal,
    events: EventSink,
    /// The user's wish to end.
    cancel: CancellationToken,
    /// That, or a failure.
    stop: CancellationToken,
    running: JoinSet<Ended>,
    steps: HashMap<Id, Arc<dyn Step>>,
    ends: BTreeMap<StepId, StepPhase>,
    failure: Option<Error>,
}

impl EngineRun {
    fn new(
        plan: &Plan,
        retry: Retry,
        journal: Journal,
        events: EventSink,
        cancel: CancellationToken,
    ) -> Self {
        EngineRun {
            frontier: ReadyQueue::of(plan),
            retry,
            journal,
            events,
            stop: cancel.child_token(),
            cancel,
            running: JoinSet::new(),
            steps: HashMap::new(),
            ends: BTreeMap::new(),
            failure: None,
        }
    }

    async fn drive(&mut self) {
        loop {
            if !self.stop.is_cancelled() {
                self.begin_what_is_ready();
            }
            match self.running.join_next_with_id().await {
                Some(Ok((id, ended))) => self.take(id, ended),
                Some(Err(error)) => self.take_broken(error),
                None => return,
            }
        }
    }

    fn begin_what_is_ready(&mut self) {
        for step in self.frontier.take_ready() {
            let id = step.id();
            let context = Context {
                events: self.events.for_step(id.as_str()),
                cancel: self.stop.clone(),
                journal: JournalWriter::of_step(&self.journal, id.as_str()),
            };
            let one = StepRunner::new(step.clone(), context, self.journal.clone(), self.retry);
            let task = self.running.spawn(faults::in_step(id.to_string(), one.run()));
            self.steps.insert(task.id(), step);
        }
    }

    fn take(&mut self, task: Id, ended: Ended) {
        let id = self.steps.remove(&task).expect("every task is a step").id().clone();
        if ended.state.is_right() {
            self.frontier.met(&id);
        } else {
            // A step that was stopped is not what the run failed of.
            if ended.state != StepPhase::Interrupted && !self.cancel.is_cancelled() {
                self.failure = self.failure.take().or(ended.error);
            }
            self.stop.cancel();
        }
        self.ends.insert(id, ended.state);
    }

    /// Takes the end of a step whose task panicked, and tells of it in the step's place.
    fn take_broken(&mut self, error: JoinError) {
        let task = error.id();
        let what = match error.try_into_panic() {
            Ok(panic) => panic_text(&*panic),
            Err(error) => error.to_string(),
        };
        let step = &self.steps[&task];
        let error = Error::internal(format!("`{}` broke off: {what}", step.title()))
            .in_step(step.id())
            .hint("this is a bug in nestlab; nestlab bundle gathers what a report of it needs");
        self.events.send(Event::StepFailed {
            step: step.id().to_string(),
            title: step.title(),
            failure: Failure::from(&error),
        });
        self.take(task, Ended { state: StepPhase::Failed, error: Some(error) });
    }

    fn summary(mut self, began: Instant) -> Summary {
        for id in self.frontier.rest() {
            self.ends.insert(id.clone(), StepPhase::Skipped);
        }
        let left = self.ends.values().filter(|state| !state.is_right()).count();
        if self.failure.is_none() && left > 0 {
            let text = match left {
                1 => "interrupted; 1 step is left".to_owned(),
                left => format!("interrupted; {left} steps are left"),
            };
            self.failure = Some(
                Error::new(Kind::Interrupted, text)
                    .hint("run the same command again: it goes on where it was stopped"),
            );
        }
        Summary { steps: self.ends, took: began.elapsed(), failure: self.failure }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}
