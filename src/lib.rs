//! nestlab builds nested virtualization labs: one recipe, one command, L0 → L1 → L2 and deeper.
//!
//! The sentence that carries the architecture: **a guest, once booted and reachable, is the host of
//! the next level.** One hypervisor driver therefore serves every depth; only the place where its
//! commands run differs.
//!
//! The map, from the top down; a module may use what stands below it and nothing above it:
//!
//! | module | what it is for |
//! |---|---|
//! | [`cli`] | one file per command; the only place that knows clap |
//! | [`report`] | events → terminal bars, plain lines, JSON lines |
//! | [`engine`] | runs a plan: schedule, retry, cancel, journal, events |
//! | [`plan`] | recipe + lab + hosts → graph of steps |
//! | [`preflight`] | can this host do it? each check: finding, verdict, remedy |
//! | [`lab`] | state directory: paths, keys, lock, journal, status |
//! | [`guest`] | what is done inside a guest: apt, kernel and reboot, hypervisor install, readiness |
//! | [`hypervisor`] | the trait `Hypervisor`; VirtualBox and QEMU |
//! | [`image`] | manifest, fetch, verify, unpack, store, build |
//! | [`host`] | the trait `Host`; this machine, or one over SSH |
//! | [`recipe`] | the TOML model, validation, resource budget, JSON Schema |
//!
//! Beside them stand the two vocabularies that everything shares, [`error`] and [`event`], and
//! [`faults`], through which the tests kill nestlab at every write.

#![warn(missing_docs, unreachable_pub, clippy::unwrap_used)]
// What is written to the terminal passes `cli::output` or a reporter, which make it printable.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod cli;
pub mod engine;
pub mod error;
pub mod event;
pub mod faults;
pub mod guest;
pub mod host;
pub mod hypervisor;
pub mod image;
pub mod lab;
pub mod plan;
pub mod preflight;
pub mod recipe;
pub mod report;

pub use error::{Error, Kind, Result};

#[cfg(test)]
mod tests {
    use proptest::test_runner::{Config, RngSeed};

    #[test]
    fn property_tests_try_the_same_cases_in_every_run() {
        let seed = Config::default().rng_seed;
        assert!(
            matches!(seed, RngSeed::Fixed(_)),
            "cargo sets PROPTEST_RNG_SEED, see .cargo/config.toml"
        );
    }
}
