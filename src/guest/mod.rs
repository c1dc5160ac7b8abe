//! What is done inside a guest through its [`Host`](crate::host::Host): apt, kernel and reboot, the
//! hypervisor's installation and its proof, readiness.
//!
//! This module must not know which hypervisor runs the guest from outside, or at which level.
