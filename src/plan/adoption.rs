//! A VM that existed before is in one lab at a time: of two, the second would take for the VM's own what the
//! first made of it, and either would give back what the other needs.

use super::machines::VmHandle;
use crate::error::{Error, Kind, Result};
use crate::hypervisor::Actual;
use crate::lab::resources::{self, Adopted};
use crate::lab::{Claim, Lab};

/// Refuses the VM of `vm`, which is `actual`, for `lab` if another lab has it.
///
/// # Errors
/// [`Kind::Usage`] with that lab.
pub(super) fn refuse_anothers(lab: &Lab, vm: &VmHandle, actual: &Actual) -> Result<()> {
    for name in lab.labs().list()?.iter().filter(|name| *name != lab.name()) {
        // A lab that cannot be read says nothing; the claim of those that are built from now on does.
        let Ok(reading) = lab.labs().planned(name).read_journal() else { continue };
        if resources::adopted(&reading.records).iter().any(|adopted| adopted.vm == actual.id) {
            return Err(taken(vm, name.as_str()));
        }
    }
    Ok(())
}

/// Notes, before its first change, that the VM of `vm` is in `lab`.
///
/// # Errors
/// As [`refuse_anothers`].
pub(super) fn claim(lab: &Lab, vm: &VmHandle, actual: &Actual) -> Result<()> {
    refuse_anothers(lab, vm, actual)?;
    let reservations = lab.labs().reservations();
    let claim = claim_of(&vm.recorded, &actual.id);
    while let Some(other) = reservations.claim(lab.name(), claim.clone())? {
        if lab.labs().planned(&other).is_there() {
            return Err(taken(vm, other.as_str()));
        }
        // Its files were deleted by hand.
        reservations.give_back(&other, &claim)?;
    }
    Ok(())
}

/// Notes that the VM is in `lab` no more.
pub(super) fn give_back(lab: &Lab, adopted: &Adopted) -> Result<()> {
    lab.labs().reservations().give_back(lab.name(), &claim_of(&adopted.host, &adopted.vm))
}

fn claim_of(host: &str, vm: &str) -> Claim {
    Claim::Name { host: host.to_owned(), name: vm.to_owned() }
}

fn taken(vm: &VmHandle, other: &str) -> Error {
    let vm = &vm.machine.spec.vm;
    Error::new(Kind::Usage, format!("the VM {vm} is in the lab {other} already"))
        .hint(format!("a VM is in one lab at a time: `nestlab destroy {other}` gives it back"))
}
