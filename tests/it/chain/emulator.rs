//! A fault of the emulator's own: QEMU's TCG was seen to reset an L1 in which VirtualBox ran
//! (docs/evidence/emulated-l1-reset.txt). What a test asserts of the lab it then asserts after another
//! `up`, which is what helps a user too; any other failure stays one.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::support::lab::Nestlab;

/// The boots of L1 that the chain is to have: the first, and one into the kernel of the upgrade.
const PLANNED: usize = 2;

/// The emulator that runs L1 of the lab `chain`.
pub struct Emulator<'a> {
    nestlab: &'a Nestlab,
    recipe: &'a str,
    resets: Cell<usize>,
}

impl<'a> Emulator<'a> {
    /// Returns the one of the lab that `recipe` describes.
    pub fn of(nestlab: &'a Nestlab, recipe: &'a str) -> Self {
        Emulator { nestlab, recipe, resets: Cell::new(0) }
    }

    /// Does `work`; if it fails and L1 was reset meanwhile, brings the lab up again and does it once more.
    pub fn outlast<T>(&self, work: impl Fn() -> T) -> T {
        match catch_unwind(AssertUnwindSafe(&work)) {
            Ok(done) => done,
            Err(_) if self.has_reset_l1() => {
                println!("the emulator has reset L1: the lab is brought up again");
                self.nestlab.ok(&["up", self.recipe]);
                work()
            }
            Err(failure) => resume_unwind(failure),
        }
    }

    /// Whether L1's console shows one more boot than is planned and was known of.
    fn has_reset_l1(&self) -> bool {
        let console = self.nestlab.lab("chain").join("disks/l1/serial.log");
        let console = std::fs::read(console).unwrap_or_default();
        let boots = String::from_utf8_lossy(&console).matches("] Linux version ").count();
        let before = self.resets.replace(boots.saturating_sub(PLANNED));
        self.resets.get() > before
    }
}
