//! Runs a plan: what no arrow orders runs at once, every act is in the journal before it happens, and
//! an interrupted step is checked, not believed.
//!
//! | file | what it holds |
//! |---|---|
//! | [`state`] | the states of a step and every legal transition between them |
//! | [`run`] | runs a plan to its end, its first failure, or the next safe point |
//! | [`check`] | looks at every step of a plan and changes nothing |
//! | [`removal`] | removes what a lab made, at every level that still answers |
//! | [`retry`] | which failures pass by themselves, and how long to wait for that |
//! | [`signals`] | Ctrl-C, SIGTERM and a closed terminal |
//!
//! The engine knows steps only through the trait; it must not know what they do.

mod ready_queue;
mod step_runner;
#[cfg(test)]
mod tests;

pub mod check;
pub mod removal;
pub mod retry;
pub mod run;
pub mod signals;
pub mod state;

pub use check::check;
pub use removal::{Removal, remove, remove_all};
pub use retry::Retry;
pub use run::{Options, Summary, run};
pub use signals::{RunningSteps, Signals, until_safe_point};
pub use state::StepPhase;
