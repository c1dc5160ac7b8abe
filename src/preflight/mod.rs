//! Can this host do it? Each check is a value: what was found and where, a verdict, a remedy.
//!
//! Checks read through [`Host`](crate::host::Host), so that the same ones judge L0 and every level
//! from inside. This module changes nothing.
