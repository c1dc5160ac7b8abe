//! Recipe + lab + hosts → the graph of steps that leads from what is there to what the recipe says.
//!
//! This module decides *what* must happen and in which order. It must not know how a plan is run
//! (`engine`) or shown (`report`, `cli`).

pub mod graph;
pub mod images;
pub mod step;

pub use graph::Plan;
pub use step::{Check, Context, Step, StepId};
