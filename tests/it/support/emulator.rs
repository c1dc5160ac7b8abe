//! What the emulator does to a machine, and nestlab did not: a fault that the machine's own logs show by a
//! signature (docs/known-issues.md has each with its reason).
//!
//! A machine that the emulator failed is started again once in a test, and the test says so. Only what was to be
//! carried to the machine is then carried again; what a test asserts of the answer it asserts once.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Output;

use super::lab::{Nestlab, text_of};

/// A line in one of the machine's logs that only a fault of the emulator's writes: the log, the line, and the
/// fault's name in docs/known-issues.md.
const SIGNATURES: &[(&str, &str, &str)] = &[
    ("qemu.log", "assertion failed: (bql_locked())", "emulator-cr8"),
    ("serial.log", "kthread timer wakeup didn't happen", "emulator-timer"),
    ("serial.log", "watchdog: BUG: soft lockup", "emulator-starved"),
];

/// What a kernel writes first on its console.
const BOOT: &str = "] Linux version ";

/// What a kernel writes last before a reboot or a power-off that somebody asked for.
const ASKED_FOR: &str = "] reboot: ";

/// The emulated L1 of a lab.
pub struct Emulated<'a> {
    nestlab: &'a Nestlab,
    lab: &'a str,
    recipe: &'a str,
    /// The faults that were seen.
    known: RefCell<BTreeSet<String>>,
}

impl<'a> Emulated<'a> {
    /// Returns L1 of `lab`, which `recipe` describes.
    pub fn l1_of(nestlab: &'a Nestlab, lab: &'a str, recipe: &'a str) -> Self {
        Emulated { nestlab, lab, recipe, known: RefCell::default() }
    }

    /// Runs `nestlab args…`, which is to succeed, and returns what it says on stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.carried(|| self.nestlab.run(args), |output| output.status.success());
        assert!(output.status.success(), "nestlab {} ended with {}", args.join(" "), output.status);
        text_of(&output.stdout)
    }

    /// Runs `script` in the innermost guest of `path` over OpenSSH, and returns what it says.
    pub fn sh(&self, path: &[&str], script: &str) -> String {
        // 255 is the client's own word for a connection that failed.
        let run = || self.nestlab.way_in(self.lab, path).run(script);
        let output = self.carried(run, |output| output.status.code() != Some(255));
        let (out, err) = (text_of(&output.stdout), text_of(&output.stderr));
        assert!(output.status.success(), "{path:?}: {script}: {out}{err}");
        out.trim().to_owned()
    }

    /// Carries something to the machine; once more if that fails and the emulator was at fault, for the first
    /// time in this test.
    fn carried(&self, carry: impl Fn() -> Output, arrived: impl Fn(&Output) -> bool) -> Output {
        let first = carry();
        if arrived(&first) {
            return first;
        }
        let is_first = self.known.borrow().is_empty();
        let faults = self.new_faults();
        if faults.is_empty() || !is_first {
            return first;
        }
        println!("the emulator failed L1 ({}): it is started again, once", faults.join(", "));
        self.nestlab.ok(&["up", self.recipe]);
        carry()
    }

    /// Returns the faults that the logs show since the last look.
    fn new_faults(&self) -> Vec<String> {
        let mut seen: BTreeSet<String> = SIGNATURES
            .iter()
            .filter(|(log, line, _)| self.log(log).contains(line))
            .map(|(_, _, fault)| (*fault).to_owned())
            .collect();
        let resets = resets(&self.log("serial.log"));
        seen.extend((1..=resets).map(|number| format!("emulator-reset {number}")));
        let mut known = self.known.borrow_mut();
        let new = seen.difference(&known).cloned().collect();
        known.extend(seen);
        new
    }

    fn log(&self, name: &str) -> String {
        let folder: PathBuf = self.nestlab.lab(self.lab).join("disks/l1");
        text_of(&std::fs::read(folder.join(name)).unwrap_or_default())
    }
}

/// Returns how often the machine of this console began a boot that nobody had asked for.
fn resets(console: &str) -> usize {
    let mut boots = console.split(BOOT);
    let before_the_first = boots.next();
    assert!(before_the_first.is_some(), "a split text has a first part");
    let lives: Vec<&str> = boots.collect();
    let ended = lives.len().saturating_sub(1);
    lives[..ended].iter().filter(|life| !life.contains(ASKED_FOR)).count()
}

#[test]
fn only_a_boot_that_nobody_asked_for_is_a_reset() {
    let boot = "SeaBIOS\n[    0.000000] Linux version 6.12\nlogin: ";
    let reboot = "[   99.1] reboot: Restarting system\n";
    assert_eq!(resets(""), 0);
    assert_eq!(resets(boot), 0);
    assert_eq!(resets(&[boot, reboot, boot].concat()), 0);
    assert_eq!(resets(&[boot, boot].concat()), 1);
    assert_eq!(resets(&[boot, reboot, boot, boot].concat()), 1);
}
