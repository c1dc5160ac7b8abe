//! The states of a step in a run, and every legal transition between them.

use crate::error::{Error, Result};

/// Where a step stands in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StepPhase {
    /// It waits for what it needs.
    Waiting,
    /// The real world is being looked at.
    Checking,
    /// It is needed, and the journal is being told so.
    Intending,
    /// It is being done.
    Applying,
    /// It says it is done, and the real world is being asked.
    Verifying,
    /// End: it was as it should be, and nothing was changed.
    Unchanged,
    /// End: it was changed, and is as it should be.
    Changed,
    /// End: it failed. The next run tries it again.
    Failed,
    /// End: it can be neither completed nor undone without the user.
    Stuck,
    /// End: it stopped at a safe point. The next run goes on with it.
    Interrupted,
    /// End: it was not begun.
    Skipped,
}

/// What moves a step from one state to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// All that it needs is as it should be.
    NeedsMet,
    /// The world is as it should be.
    FoundUnchanged,
    /// The world is not as it should be, or cannot be looked at yet.
    FoundNeeded,
    /// The intent is durable.
    IntentKept,
    /// The step says that it is done.
    Applied,
    /// What was tried failed in a way that passes by itself: once more.
    Again,
    /// What was tried failed.
    Failed,
    /// What was tried left something that nestlab cannot repair.
    Stuck,
    /// It stopped at a safe point, because the run is to end.
    Stopped,
    /// The run ends before it was begun.
    NotBegun,
}

impl StepPhase {
    /// Every state, for tests and tables.
    pub const ALL: [StepPhase; 11] = [
        StepPhase::Waiting,
        StepPhase::Checking,
        StepPhase::Intending,
        StepPhase::Applying,
        StepPhase::Verifying,
        StepPhase::Unchanged,
        StepPhase::Changed,
        StepPhase::Failed,
        StepPhase::Stuck,
        StepPhase::Interrupted,
        StepPhase::Skipped,
    ];

    /// Returns whether nothing follows it.
    pub fn is_end(self) -> bool {
        match self {
            StepPhase::Unchanged
            | StepPhase::Changed
            | StepPhase::Failed
            | StepPhase::Stuck
            | StepPhase::Interrupted
            | StepPhase::Skipped => true,
            StepPhase::Waiting
            | StepPhase::Checking
            | StepPhase::Intending
            | StepPhase::Applying
            | StepPhase::Verifying => false,
        }
    }

    /// Returns whether the world is as the step wants it, so that what needs it may begin.
    pub fn is_right(self) -> bool {
        matches!(self, StepPhase::Unchanged | StepPhase::Changed)
    }

    /// Returns the state after `signal`. The one place that says what may follow what.
    ///
    /// # Errors
    /// [`Kind::Internal`](crate::Kind) for a transition that is not legal.
    pub fn after(self, signal: Transition) -> Result<StepPhase> {
        let next = match (self, signal) {
            (StepPhase::Waiting, Transition::NeedsMet) => StepPhase::Checking,
            (StepPhase::Waiting, Transition::NotBegun) => StepPhase::Skipped,

            (StepPhase::Checking, Transition::FoundUnchanged) => StepPhase::Unchanged,
            (StepPhase::Checking, Transition::FoundNeeded) => StepPhase::Intending,
            (StepPhase::Intending, Transition::IntentKept) => StepPhase::Applying,
            (StepPhase::Applying, Transition::Applied) => StepPhase::Verifying,
            (StepPhase::Verifying, Transition::FoundUnchanged) => StepPhase::Changed,
            // A step that says it is done and is not has failed.
            (StepPhase::Verifying, Transition::FoundNeeded) => StepPhase::Failed,

            (
                again @ (StepPhase::Checking | StepPhase::Applying | StepPhase::Verifying),
                Transition::Again,
            ) => again,
            (
                StepPhase::Checking
                | StepPhase::Intending
                | StepPhase::Applying
                | StepPhase::Verifying,
                Transition::Failed,
            ) => StepPhase::Failed,
            (
                StepPhase::Checking
                | StepPhase::Intending
                | StepPhase::Applying
                | StepPhase::Verifying,
                Transition::Stopped,
            ) => StepPhase::Interrupted,
            (
                StepPhase::Checking | StepPhase::Applying | StepPhase::Verifying,
                Transition::Stuck,
            ) => StepPhase::Stuck,

            (
                StepPhase::Waiting,
                Transition::FoundUnchanged
                | Transition::FoundNeeded
                | Transition::IntentKept
                | Transition::Applied
                | Transition::Again
                | Transition::Failed
                | Transition::Stuck
                | Transition::Stopped,
            )
            | (
                StepPhase::Checking,
                Transition::NeedsMet
                | Transition::IntentKept
                | Transition::Applied
                | Transition::NotBegun,
            )
            | (
                StepPhase::Intending,
                Transition::NeedsMet
                | Transition::FoundUnchanged
                | Transition::FoundNeeded
                | Transition::Applied
                | Transition::Again
                | Transition::Stuck
                | Transition::NotBegun,
            )
            | (
                StepPhase::Applying,
                Transition::NeedsMet
                | Transition::FoundUnchanged
                | Transition::FoundNeeded
                | Transition::IntentKept
                | Transition::NotBegun,
            )
            | (
                StepPhase::Verifying,
                Transition::NeedsMet
                | Transition::IntentKept
                | Transition::Applied
                | Transition::NotBegun,
            )
            | (
                StepPhase::Unchanged
                | StepPhase::Changed
                | StepPhase::Failed
                | StepPhase::Stuck
                | StepPhase::Interrupted
                | StepPhase::Skipped,
                _,
            ) => {
                return Err(Error::internal(format!("a step that is {self:?} got {signal:?}")));
            }
        };
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIGNALS: [Transition; 10] = [
        Transition::NeedsMet,
        Transition::FoundUnchanged,
        Transition::FoundNeeded,
        Transition::IntentKept,
        Transition::Applied,
        Transition::Again,
        Transition::Failed,
        Transition::Stuck,
        Transition::Stopped,
        Transition::NotBegun,
    ];

    #[test]
    fn nothing_follows_an_end_and_something_follows_every_other_state() {
        for state in StepPhase::ALL {
            let followed = SIGNALS.iter().any(|signal| state.after(*signal).is_ok());
            assert_eq!(followed, !state.is_end(), "{state:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_applied_before_its_intent_is_kept_nor_believed_before_it_is_verified(
            choices in prop::collection::vec(0..SIGNALS.len(), 0..60),
        ) {
            let mut path = vec![StepPhase::Waiting];
            for choice in choices {
                let state = *path.last().expect("it begins with one");
                path.extend(state.after(SIGNALS[choice]));
            }
            for pair in path.windows(2) {
                if pair[1] == StepPhase::Applying && pair[0] != StepPhase::Applying {
                    prop_assert_eq!(pair[0], StepPhase::Intending);
                }
                if pair[1] == StepPhase::Changed {
                    prop_assert_eq!(pair[0], StepPhase::Verifying);
                }
            }
        }
    }
}
