//! What the user wants: the TOML model of a recipe, its validation, the resource budget over all
//! levels, and the JSON Schema.
//!
//! A recipe's way through the module: text → `read` (tables, every value with its place) → `validate`
//! (what the values mean together) → [`Recipe`] → [`budget::derive`] (what it leaves out).
//!
//! This module reads text and numbers only. It must not know hosts, hypervisors' commands or images'
//! bytes.

pub mod budget;
mod constraint;
pub mod diagnostic;
pub mod hostkey;
pub mod keywords;
mod model;
mod one_or_many;
mod read;
pub mod schema;
pub mod shipped;
mod tables;
#[cfg(test)]
mod tests;
pub mod types;
pub mod units;
mod validate;

pub use constraint::Constraint;
pub use hostkey::{HostKey, Platform};
pub use keywords::{Firmware, HypervisorChoice, HypervisorKind, Readiness, ReadyKind, Subnet};
pub use model::{
    Guest, GuestSource, ImageRef, MAX_LEVEL, Recipe, RecipeHost, RecipeOrigin, SshLogin,
};
pub use read::SCHEMA;
pub use shipped::{Shipped, shipped};
pub use tables::At;
pub use units::{Cpus, GuestName, ImageName, LabName, Mebibytes, NetworkName};
