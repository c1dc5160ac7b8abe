//! Recipe + lab + hosts → the graph of steps that leads from what is there to what the recipe says.
//!
//! A plan's way through the module: recipe and budget → [`blueprint`] (the machines, settled) →
//! [`machines`] (the same, to act on) → [`chain`] (the graph of steps). What the steps do is in `media`,
//! `vm`, `provision` and, for a lab that is built by a lock, `pin`; what they may do with what is there is in
//! [`contract`]; how to take it all away again in [`removal`].
//!
//! This module decides *what* must happen and in which order. It must not know how a plan is run
//! (`engine`) or shown (`report`, `cli`).

mod action;
mod adoption;
pub mod blueprint;
pub mod builder;
pub mod context;
pub mod contract;
mod existing;
pub mod graph;
pub mod images;
pub mod l0;
pub(crate) mod l0_folder;
pub mod lock;
pub mod machines;
mod media;
mod network;
mod orphaned;
mod pin;
pub mod provenance;
mod provision;
mod recall;
pub mod recovery;
pub mod removal;
pub mod source;
pub mod step;
mod vm;
pub mod vm_place;

pub use blueprint::{Blueprint, Machine};
pub use context::LabContext;
pub use contract::{Consent, Disturbance, Effect};
pub use graph::Plan;
pub use images::Images;
pub use lock::Lock;
pub use machines::{Machines, VmHandle};
pub use orphaned::Remaining;
pub use removal::Remover;
pub use source::RecipeSource;
pub use step::{Check, Context, Step, StepId};
