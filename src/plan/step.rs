//! One idempotent change with its own check.

use std::fmt;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::contract::{self, Effect};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::host::Command;
use crate::lab::JournalWriter;

/// A step's name: `guest/what` or `image/name`, unique in its plan and the same in every run.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct StepId(String);

impl StepId {
    /// Returns the id `of/what`.
    pub fn new(of: impl fmt::Display, what: &str) -> Self {
        StepId(format!("{of}/{what}"))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whose step it is: a guest, L0, or `image`.
    pub fn of(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(of, _)| of)
    }

    /// Returns what it is about, without whose it is.
    pub fn what(&self) -> Option<&str> {
        self.0.split_once('/').map(|(_, what)| what)
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a check found in the real world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// It is as it should be.
    Satisfied,
    /// It must be changed, and why: `not there`, `cpus: 2 → 1`. Nothing that is there is disturbed by it.
    Needed(String),
    /// It is not as wanted, and more follows from that than that it is made so.
    Affects {
        /// Why it is not as wanted.
        why: String,
        /// What follows.
        effect: Effect,
    },
    /// It cannot be looked at yet, and why: `l1 is not up`. A plan shows it; a run treats it as needed.
    Unknown(String),
}

impl Check {
    /// Returns the check that found something [`Effect::Stuck`], by the error that tells of it.
    pub fn stuck(error: &Error) -> Self {
        let (why, hints) = (error.message().to_owned(), error.hints().to_vec());
        Check::Affects { why, effect: Effect::Stuck { hints } }
    }

    /// Returns whether what needs it can go on: it is as it should be, or stays as it is.
    pub fn is_right(&self) -> bool {
        matches!(self, Check::Satisfied | Check::Affects { effect: Effect::Keep { .. }, .. })
    }

    /// Returns why the step is to be applied; `None` if what needs it can go on.
    ///
    /// # Errors
    /// [`Kind::Stuck`] for what is.
    pub(crate) fn into_why(self) -> Result<Option<String>> {
        match self {
            Check::Satisfied | Check::Affects { effect: Effect::Keep { .. }, .. } => Ok(None),
            Check::Affects { why, effect: Effect::Stuck { hints } } => {
                Err(contract::stuck(&why, &hints))
            }
            Check::Needed(why) | Check::Unknown(why) | Check::Affects { why, .. } => Ok(Some(why)),
        }
    }
}

/// What a step works with while it is checked or applied.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where it tells of its progress; stamped with the step's id.
    pub events: EventSink,
    /// Fires when the run is to end at the next safe point. A step that waits or loops must look at it.
    pub cancel: CancellationToken,
    /// Where it records what it is about to make, before it does; closed while it is only checked.
    pub journal: JournalWriter,
}

impl Context {
    /// Returns the context for those who only look.
    pub fn looking(events: EventSink, cancel: CancellationToken) -> Self {
        Context { events, cancel, journal: JournalWriter::closed() }
    }

    /// Returns whether what is found to be needed is done next.
    pub(super) fn changes(&self) -> bool {
        self.journal.is_open()
    }

    /// Returns an [`Kind::Interrupted`] error if the run is to end.
    pub fn proceed(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(interrupted()) } else { Ok(()) }
    }

    /// Runs `work` until it is done or the run is to end, whichever is first. For work that may be
    /// dropped at any of its waiting points.
    pub async fn or_cancelled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            () = self.cancel.cancelled() => Err(interrupted()),
        }
    }
}

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted").hint("run the same `nestlab up` again to go on")
}

/// One idempotent change: `check` says whether it is needed and why, `apply` makes it so, and `check`
/// is satisfied afterwards. The engine holds every step to that.
#[async_trait]
pub trait Step: Send + Sync {
    /// Returns its id.
    fn id(&self) -> &StepId;

    /// Returns the guest it belongs to, if it belongs to one.
    fn guest(&self) -> Option<&str>;

    /// Returns what it does, in the imperative: `start l1`.
    fn title(&self) -> String;

    /// Returns the steps that must be satisfied before it is looked at.
    fn needs(&self) -> &[StepId];

    /// Returns whether its check may find an [`Effect`] that the user is to know of before anything is
    /// changed.
    fn may_disturb(&self) -> bool {
        false
    }

    /// Looks at the real world; changes nothing.
    async fn check(&self, context: &Context) -> Result<Check>;

    /// Makes it so. May be run on what an interrupted run left.
    async fn apply(&self, context: &Context) -> Result<()>;

    /// Returns the exact commands that `apply` would run on the guest's host, as far as they can be
    /// known before; changes nothing.
    async fn commands(&self, context: &Context) -> Result<Vec<Command>>;
}
