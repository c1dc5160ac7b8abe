//! One step from the moment its needs are met to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::retry::{self, Retry};
use super::signals::until_safe_point;
use super::state::{StepPhase, Transition};
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Failure, Level, millis};
use crate::lab::{Journal, JournalEntry, Outcome};
use crate::plan::{Check, Context, Step};

/// How long a look at the world may take before it is told of. On a slow host a lab in which all is right
/// would be looked at for minutes without a word.
const SLOW_LOOK: Duration = Duration::from_secs(2);

/// How a step ended.
pub(super) struct Ended {
    pub(super) state: StepPhase,
    /// Why it is not as it should be.
    pub(super) error: Option<Error>,
}

/// A step on its way through its states.
pub(super) struct StepRunner {
    step: Arc<dyn Step>,
    context: Context,
    journal: Journal,
    waits: Box<dyn Iterator<Item = Duration> + Send>,
    retries: usize,
    state: StepPhase,
    why: String,
    error: Option<Error>,
    began: Instant,
}

impl StepRunner {
    pub(super) fn new(
        step: Arc<dyn Step>,
        context: Context,
        journal: Journal,
        retry: Retry,
    ) -> Self {
        StepRunner {
            step,
            context,
            journal,
            waits: Box::new(retry.waits()),
            retries: retry.times,
            state: StepPhase::Waiting,
            why: String::new(),
            error: None,
            began: Instant::now(),
        }
    }

    /// Takes the step to its end, and tells of it.
    pub(super) async fn run(mut self) -> Ended {
        let mut signal = Transition::NeedsMet;
        let mut intended = false;
        loop {
            self.state = match self.state.after(signal) {
                Ok(state) => state,
                Err(illegal) => {
                    self.error = Some(illegal);
                    StepPhase::Failed
                }
            };
            intended |= self.state == StepPhase::Applying;
            signal = match self.state {
                StepPhase::Checking => self.look(JournalEntry::Satisfied { step: self.id() }).await,
                StepPhase::Intending => self.intend().await,
                StepPhase::Applying => self.apply().await,
                StepPhase::Verifying => {
                    let (step, millis) = (self.id(), self.elapsed());
                    self.look(JournalEntry::Outcome { step, outcome: Outcome::Done, millis }).await
                }
                StepPhase::Waiting
                | StepPhase::Unchanged
                | StepPhase::Changed
                | StepPhase::Failed
                | StepPhase::Stuck
                | StepPhase::Interrupted
                | StepPhase::Skipped => return self.end(intended).await,
            };
        }
    }

    fn id(&self) -> String {
        self.step.id().to_string()
    }

    fn elapsed(&self) -> u64 {
        millis(self.began.elapsed())
    }

    /// Looks at the world, and keeps `if_right` in the journal if it is as it should be.
    async fn look(&mut self, if_right: JournalEntry) -> Transition {
        match self.check().await.and_then(Check::into_why) {
            Ok(None) => {
                let kept = self.journal.append(if_right).await;
                self.or_problem(kept, Transition::FoundUnchanged).await
            }
            Ok(Some(why)) => {
                if self.state == StepPhase::Verifying {
                    self.error = Some(still_wrong(&*self.step, &why));
                }
                self.why = why;
                Transition::FoundNeeded
            }
            Err(error) => self.problem(error).await,
        }
    }

    /// Checks the step, and says so if that takes a while.
    async fn check(&mut self) -> Result<Check> {
        // A check changes nothing, so it may be dropped anywhere.
        let check = self.context.or_cancelled(self.step.check(&self.context));
        tokio::pin!(check);
        tokio::select! {
            biased;
            found = &mut check => found,
            () = tokio::time::sleep(SLOW_LOOK) => {
                self.context.events.doing("looking at how it is");
                check.await
            }
        }
    }

    async fn intend(&mut self) -> Transition {
        let (step, title, why) = (self.id(), self.step.title(), self.why.clone());
        self.began = Instant::now();
        let entry =
            JournalEntry::Intent { step: step.clone(), title: title.clone(), why: why.clone() };
        let kept = self.journal.append(entry).await;
        if kept.is_ok() {
            self.context.events.send(Event::StepStarted { step, title, why });
        }
        self.or_problem(kept, Transition::IntentKept).await
    }

    async fn apply(&mut self) -> Transition {
        let applied = match self.context.proceed() {
            Ok(()) => until_safe_point(&self.context.cancel, self.step.apply(&self.context)).await,
            Err(stopped) => Err(stopped),
        };
        self.or_problem(applied, Transition::Applied).await
    }

    async fn or_problem(&mut self, result: Result<()>, signal: Transition) -> Transition {
        match result {
            Ok(()) => signal,
            Err(error) => self.problem(error).await,
        }
    }

    /// Says what a failure means for the step. Waits, if it may pass by itself.
    async fn problem(&mut self, error: Error) -> Transition {
        let stopping = self.context.cancel.is_cancelled();
        let signal = match error.kind() {
            Kind::Interrupted if stopping => Transition::Stopped,
            Kind::Stuck if self.state != StepPhase::Intending => Transition::Stuck,
            _ if retry::is_transient(&error) && !stopping => match self.waits.next() {
                Some(wait) => return self.wait_for_another_try(error, wait).await,
                None => Transition::Failed,
            },
            _ => Transition::Failed,
        };
        self.error = Some(error);
        signal
    }

    async fn wait_for_another_try(&mut self, error: Error, wait: Duration) -> Transition {
        let text = format!(
            "{}: {}; trying again in {:.0?} (at most {} times)",
            self.step.title(),
            error.message(),
            wait,
            self.retries,
        );
        self.context.events.notice(Level::Warning, text);
        tokio::select! {
            () = tokio::time::sleep(wait) => Transition::Again,
            () = self.context.cancel.cancelled() => {
                self.error = self.context.proceed().err();
                Transition::Stopped
            }
        }
    }

    /// Writes the outcome, if an intent was written and no outcome yet, and tells of the end.
    async fn end(mut self, intended: bool) -> Ended {
        let (step, title) = (self.id(), self.step.title());
        let mut error = self.error.take().map(|error| error.in_step(&step));
        if self.state == StepPhase::Stuck {
            error = error.map(with_a_way_out);
        }
        let failure = error.as_ref().map(Failure::from);
        let outcome = match (self.state, failure.clone()) {
            (StepPhase::Failed, Some(failure)) => Some(Outcome::Failed { failure }),
            (StepPhase::Stuck, Some(failure)) => Some(Outcome::Stuck { failure }),
            (StepPhase::Interrupted, _) => Some(Outcome::Interrupted),
            _ => None,
        };
        if let Some(outcome) = outcome.filter(|_| intended) {
            let entry =
                JournalEntry::Outcome { step: step.clone(), outcome, millis: self.elapsed() };
            // Without it, the next run finds an intent that never ended, and checks: the same.
            if let Err(unwritten) = self.journal.append(entry).await {
                self.context.events.notice(Level::Warning, unwritten.to_string());
            }
        }
        let event = match (self.state, failure) {
            (StepPhase::Unchanged, _) => Some(Event::StepSatisfied { step, title }),
            (StepPhase::Changed, _) => {
                Some(Event::StepDone { step, title, millis: self.elapsed() })
            }
            (StepPhase::Failed | StepPhase::Stuck, Some(failure)) => {
                Some(Event::StepFailed { step, title, failure })
            }
            (StepPhase::Interrupted, _) if intended => Some(Event::StepInterrupted { step, title }),
            _ => None,
        };
        event.into_iter().for_each(|event| self.context.events.send(event));
        Ended { state: self.state, error }
    }
}

fn still_wrong(step: &dyn Step, why: &str) -> Error {
    Error::failed(format!(
        "`{}` ended without an error, but it is still not as wanted: {why}",
        step.title()
    ))
    .hint("nestlab logs shows what its commands said")
}

/// A stuck step always says how to get out.
fn with_a_way_out(error: Error) -> Error {
    if error.hints().is_empty() {
        error.hint("nestlab destroy removes what the lab made; nestlab up then builds it again")
    } else {
        error
    }
}
