//! What the user wants: the TOML model of a recipe, its validation, the resource budget over all
//! levels, and the JSON Schema.
//!
//! This module reads text and numbers only. It must not know hosts, hypervisors' commands or images'
//! bytes.

pub mod units;
pub mod words;

pub use units::{Cpus, GuestName, ImageName, LabName, Mebibytes, NetworkName};
pub use words::{Firmware, HypervisorChoice, HypervisorKind, Ready, ReadyKind, Subnet};
