//! How a guest reads the time stamp counter (TSC).
//!
//! VirtualBox lets a guest read the processor's own only if the processor says that its TSC is invariant;
//! else each RDTSC is an exit (VirtualBox's TM.cpp: tmR3HasFixedTSC). A processor that is itself emulated
//! does not say so, and a Linux guest reads its TSC thousands of times a second: it took four times as long
//! to boot (docs/evidence/tsc-in-emulated-l1.txt). A host that runs by its TSC has measured that it is
//! steady, and so may its guests.

use super::manage::Manage;
use super::parse;
use crate::error::Result;
use crate::hypervisor::{Actual, Power};

/// The extra data of a VM that says how its guest reads the TSC; the setting's name in [`Actual`], too.
pub(crate) const MODE: &str = "VBoxInternal/TM/TSCMode";

/// The guest reads the processor's own, with an offset and without an exit.
pub(crate) const OFFSET: &str = "RealTSCOffset";

/// The detail of a probe that says that guests should read the host's TSC and would not by themselves.
pub(crate) const STEADY: &str = "steady-tsc";

/// Whether guests should be told to read the TSC of a host with these processor flags and this clock
/// source, which Linux has chosen.
pub(crate) fn is_steady_but_not_said(flags: &str, clock_source: &str) -> bool {
    let has = |wanted: &str| flags.split_ascii_whitespace().any(|flag| flag == wanted);
    // Linux shows the processor's word (CPUID 0x80000007, EDX bit 8) as `nonstop_tsc`.
    clock_source == "tsc" && has("hypervisor") && !has("nonstop_tsc")
}

/// Whether it may be set now: while a VM is off. It is not worth the end of a session.
pub(crate) fn is_free(actual: &Actual) -> bool {
    actual.power == Power::Off
}

/// Adds to `actual` how its guest reads the TSC, where that was set.
pub(crate) async fn add(manage: &Manage<'_>, actual: &mut Actual) -> Result<()> {
    let answer = manage.run(&["getextradata", &actual.id, MODE]).await?;
    actual.settings.extend(parse::value(&answer).map(|mode| (MODE.to_owned(), mode)));
    Ok(())
}

/// Returns VBoxManage's arguments that have the guest of `vm` read the processor's own TSC.
pub(crate) fn set(vm: &str) -> [String; 4] {
    ["setextradata", vm, MODE, OFFSET].map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_vm_that_runs_by_its_tsc_and_does_not_say_why_is_steady_but_not_said() {
        let emulated = "flags\t\t: fpu tsc svm npt hypervisor";
        assert!(is_steady_but_not_said(emulated, "tsc"));
        assert!(!is_steady_but_not_said(emulated, "hpet"), "Linux found it unsteady");
        assert!(!is_steady_but_not_said(emulated, "kvm-clock"), "Linux runs by another clock");
        assert!(!is_steady_but_not_said("fpu tsc svm npt", "tsc"), "no VM");
        let says_so = "fpu tsc nonstop_tsc svm npt hypervisor";
        assert!(!is_steady_but_not_said(says_so, "tsc"), "VirtualBox sees it by itself");
    }
}
