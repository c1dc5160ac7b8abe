//! What the user wants: the TOML model of a recipe, its validation, the resource budget over all
//! levels, and the JSON Schema.
//!
//! A recipe's way through the module: text → `read` (tables, every value with its place) → `validate`
//! (what the values mean together) → [`Recipe`] → [`budget::derive`] (what it leaves out).
//!
//! This module reads text and numbers only. It must not know hosts, hypervisors' commands or images'
//! bytes.

mod amount;
pub mod budget;
pub mod diagnostic;
pub mod hostkey;
mod model;
mod read;
pub mod schema;
mod several;
pub mod shipped;
#[cfg(test)]
mod tests;
pub mod text;
mod tree;
pub mod units;
mod validate;
pub mod words;

pub use amount::Amount;
pub use hostkey::{HostKey, Platform};
pub use model::At;
pub use read::SCHEMA;
pub use shipped::{Shipped, shipped};
pub use tree::{
    Guest, GuestSource, ImageRef, MAX_LEVEL, Recipe, RecipeHost, RecipeOrigin, SshLogin,
};
pub use units::{Cpus, GuestName, ImageName, LabName, Mebibytes, NetworkName};
pub use words::{Firmware, HypervisorChoice, HypervisorKind, Ready, ReadyKind, Subnet};
