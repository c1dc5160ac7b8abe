//! The states of a step in a run, and every legal transition between them.

use crate::error::{Error, Result};

/// Where a step stands in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
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
    Right,
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
pub enum Signal {
    /// All that it needs is as it should be.
    NeedsMet,
    /// The world is as it should be.
    FoundRight,
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

impl State {
    /// Every state, for tests and tables.
    pub const ALL: [State; 11] = [
        State::Waiting,
        State::Checking,
        State::Intending,
        State::Applying,
        State::Verifying,
        State::Right,
        State::Changed,
        State::Failed,
        State::Stuck,
        State::Interrupted,
        State::Skipped,
    ];

    /// Returns whether nothing follows it.
    pub fn is_end(self) -> bool {
        match self {
            State::Right
            | State::Changed
            | State::Failed
            | State::Stuck
            | State::Interrupted
            | State::Skipped => true,
            State::Waiting
            | State::Checking
            | State::Intending
            | State::Applying
            | State::Verifying => false,
        }
    }

    /// Returns whether the world is as the step wants it, so that what needs it may begin.
    pub fn is_right(self) -> bool {
        matches!(self, State::Right | State::Changed)
    }

    /// Returns the state after `signal`. The one place that says what may follow what.
    ///
    /// # Errors
    /// [`Kind::Internal`](crate::Kind) for a transition that is not legal.
    pub fn after(self, signal: Signal) -> Result<State> {
        let next = match (self, signal) {
            (State::Waiting, Signal::NeedsMet) => State::Checking,
            (State::Waiting, Signal::NotBegun) => State::Skipped,

            (State::Checking, Signal::FoundRight) => State::Right,
            (State::Checking, Signal::FoundNeeded) => State::Intending,
            (State::Intending, Signal::IntentKept) => State::Applying,
            (State::Applying, Signal::Applied) => State::Verifying,
            (State::Verifying, Signal::FoundRight) => State::Changed,
            // A step that says it is done and is not has failed.
            (State::Verifying, Signal::FoundNeeded) => State::Failed,

            (again @ (State::Checking | State::Applying | State::Verifying), Signal::Again) => {
                again
            }
            (
                State::Checking | State::Intending | State::Applying | State::Verifying,
                Signal::Failed,
            ) => State::Failed,
            (
                State::Checking | State::Intending | State::Applying | State::Verifying,
                Signal::Stopped,
            ) => State::Interrupted,
            (State::Checking | State::Applying | State::Verifying, Signal::Stuck) => State::Stuck,

            (
                State::Waiting,
                Signal::FoundRight
                | Signal::FoundNeeded
                | Signal::IntentKept
                | Signal::Applied
                | Signal::Again
                | Signal::Failed
                | Signal::Stuck
                | Signal::Stopped,
            )
            | (
                State::Checking,
                Signal::NeedsMet | Signal::IntentKept | Signal::Applied | Signal::NotBegun,
            )
            | (
                State::Intending,
                Signal::NeedsMet
                | Signal::FoundRight
                | Signal::FoundNeeded
                | Signal::Applied
                | Signal::Again
                | Signal::Stuck
                | Signal::NotBegun,
            )
            | (
                State::Applying,
                Signal::NeedsMet
                | Signal::FoundRight
                | Signal::FoundNeeded
                | Signal::IntentKept
                | Signal::NotBegun,
            )
            | (
                State::Verifying,
                Signal::NeedsMet | Signal::IntentKept | Signal::Applied | Signal::NotBegun,
            )
            | (
                State::Right
                | State::Changed
                | State::Failed
                | State::Stuck
                | State::Interrupted
                | State::Skipped,
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

    const SIGNALS: [Signal; 10] = [
        Signal::NeedsMet,
        Signal::FoundRight,
        Signal::FoundNeeded,
        Signal::IntentKept,
        Signal::Applied,
        Signal::Again,
        Signal::Failed,
        Signal::Stuck,
        Signal::Stopped,
        Signal::NotBegun,
    ];

    #[test]
    fn nothing_follows_an_end_and_something_follows_every_other_state() {
        for state in State::ALL {
            let followed = SIGNALS.iter().any(|signal| state.after(*signal).is_ok());
            assert_eq!(followed, !state.is_end(), "{state:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_applied_before_its_intent_is_kept_nor_believed_before_it_is_verified(
            choices in prop::collection::vec(0..SIGNALS.len(), 0..60),
        ) {
            let mut path = vec![State::Waiting];
            for choice in choices {
                let state = *path.last().expect("it begins with one");
                path.extend(state.after(SIGNALS[choice]));
            }
            for pair in path.windows(2) {
                if pair[1] == State::Applying && pair[0] != State::Applying {
                    prop_assert_eq!(pair[0], State::Intending);
                }
                if pair[1] == State::Changed {
                    prop_assert_eq!(pair[0], State::Verifying);
                }
            }
        }
    }
}
