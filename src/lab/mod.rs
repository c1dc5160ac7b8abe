//! One instance of a recipe on this machine: its state directory with recipe, journal, keys, lock,
//! logs and disks.
//!
//! This module must not know how guests are run or a plan is made.
