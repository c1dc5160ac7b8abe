//! Machines that a lab's recipe had once and has no more. Their VMs are still there, and the lab knows them
//! until they are removed.

use super::blueprint::{Blueprint, Machine};
use crate::error::Result;
use crate::hypervisor::VmOrigin;
use crate::lab::journal::Reading;
use crate::lab::resources::{self, Adopted, Resource};

/// What there is of a lab, by its journal.
#[derive(Debug, Clone, Default)]
pub struct Remaining {
    made: Vec<Resource>,
    adopted: Vec<Adopted>,
    /// Whether the journal may have lost something.
    damaged: bool,
}

impl Remaining {
    /// Returns what the journal `reading` names.
    pub fn of(reading: &Reading) -> Self {
        Remaining {
            made: resources::remaining(&reading.records),
            adopted: resources::adopted(&reading.records),
            damaged: !reading.damaged.is_empty(),
        }
    }
}

impl Blueprint {
    /// Takes over from the blueprint `before` it each machine whose VM this one does not have, and of which
    /// something remains: one that left the recipe, or that another hypervisor, host or L0 is to run now.
    pub(super) fn after(mut self, before: Option<Blueprint>, remaining: &Remaining) -> Self {
        let Some(before) = before else { return self };
        if before.l0() != self.l0() || before.first_l0.is_some() {
            self.first_l0 = Some(before.l0_in_journal());
        }
        let once =
            before.all().map(|old| Machine { place: Some(before.place(old)), ..old.clone() });
        let gone: Vec<Machine> =
            once.filter(|old| !self.machines.iter().any(|new| self.is_still(new, old))).collect();
        let needed: Vec<bool> =
            gone.iter().map(|old| remaining.damaged || self.remains(old, remaining)).collect();
        // What is inside a guest is reached through it.
        let carries = |old: &Machine| {
            gone.iter().zip(&needed).any(|(other, needed)| *needed && stands_on(other, old))
        };
        let kept = gone.iter().zip(&needed).filter(|(old, needed)| **needed || carries(old));
        self.dropped = kept.map(|(old, _)| old.clone()).collect();
        self
    }

    /// Returns whether `new`, of this blueprint, is the VM that `old` was.
    fn is_still(&self, new: &Machine, old: &Machine) -> bool {
        is_same_vm(new, old) && Some(self.place(new)) == old.place
    }

    /// Returns whether anything of the VM of `machine` remains.
    fn remains(&self, machine: &Machine, remaining: &Remaining) -> bool {
        match &machine.spec.origin {
            VmOrigin::Existing { .. } => {
                remaining.adopted.iter().any(|adopted| self.is_adopted_as(machine, adopted))
            }
            VmOrigin::Made(_) => remaining.made.iter().any(|made| self.is_made_as(machine, made)),
        }
    }

    /// Returns whether `resource` is the VM of `machine`.
    pub fn is_made_as(&self, machine: &Machine, resource: &Resource) -> bool {
        let Resource::Vm { host, guest, hypervisor, vm, .. } = resource else { return false };
        *guest == *machine.name.as_str()
            && *hypervisor == machine.outer
            && *vm == machine.spec.vm
            && *host == self.host_in_journal(machine)
    }

    /// Returns whether `adopted` is the VM of `machine`, which the recipe calls by its name or UUID.
    pub fn is_adopted_as(&self, machine: &Machine, adopted: &Adopted) -> bool {
        let VmOrigin::Existing { vm, .. } = &machine.spec.origin else { return false };
        let name = adopted.settings.first().and_then(|former| former["name"].as_str());
        adopted.host == self.host_in_journal(machine)
            && (adopted.vm.eq_ignore_ascii_case(vm) || name == Some(vm))
    }

    /// Returns the machine of the VM that `resource` is.
    ///
    /// # Errors
    /// As [`Blueprint::machine`].
    pub(super) fn made(&self, resource: &Resource) -> Result<&Machine> {
        match self.all().find(|machine| self.is_made_as(machine, resource)) {
            Some(machine) => Ok(machine),
            None => self.machine(resource.carries().unwrap_or_default()),
        }
    }

    /// Returns the machines called `guest`, or all if none is named, and with each what is inside it; of
    /// those that the recipe has none if only the `orphaned` are meant.
    ///
    /// # Errors
    /// As [`Blueprint::machine`], if `guest` is none.
    pub fn chosen(&self, guest: Option<&str>, orphaned: bool) -> Result<Vec<&Machine>> {
        let named = |machine: &&Machine| guest.is_none_or(|guest| machine.name.as_str() == guest);
        if let Some(guest) = guest.filter(|_| !self.all().any(|machine| named(&machine))) {
            self.machine(guest)?;
        }
        let meant = |machine: &&Machine| named(machine) && (!orphaned || self.is_orphaned(machine));
        let roots: Vec<&Machine> = self.all().filter(meant).collect();
        let within = |machine: &&Machine| roots.iter().any(|root| self.is_within(machine, root));
        Ok(self.all().filter(within).collect())
    }
}

/// Returns whether two machines of one place are one VM.
pub(super) fn is_same_vm(one: &Machine, other: &Machine) -> bool {
    let key = |machine: &Machine| {
        (machine.name.clone(), machine.parent.clone(), machine.outer, machine.spec.vm.clone())
    };
    key(one) == key(other)
}

/// Returns whether `one` is inside `other`, both of which have left the recipe.
fn stands_on(one: &Machine, other: &Machine) -> bool {
    let (Some(one), Some(place)) = (&one.place, &other.place) else { return false };
    let around = one.inside.get(..place.inside.len()) == Some(&place.inside[..]);
    let next = one.inside.get(place.inside.len());
    one.l0 == place.l0 && around && next == Some(&(other.name.clone(), other.outer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Lab, Labs};
    use crate::plan::Images;
    use crate::plan::vm_place::L0Address;
    use crate::recipe::budget::{self, Resources};
    use crate::recipe::{Cpus, HypervisorKind, Mebibytes, Platform, Recipe, RecipeOrigin};

    fn blueprint(lab: &Lab, hypervisor: HypervisorKind, guests: &[&str]) -> Blueprint {
        let guests = guests.iter().map(|name| {
            format!("[[guest]]\nname = \"{name}\"\nparent = \"L0\"\nimage = \"appliance\"\n")
        });
        let text = format!("schema = 1\nname = \"lab\"\n{}", guests.collect::<String>());
        let recipe = Recipe::parse(&text, RecipeOrigin::Shipped).expect("a recipe");
        let images = Images::of(&recipe).expect("it ships");
        let resources = Resources {
            cores: Cpus::new(4).expect("not zero"),
            memory: Mebibytes::gib(16),
            free_disk: None,
            networks: Vec::new(),
            hypervisor,
            platform: Platform::Linux,
            host_key: None,
        };
        let budget = budget::derive(&recipe, &resources, &images.defaults()).expect("it fits");
        Blueprint::draw(&recipe, &budget, &images, lab).expect("drawn")
    }

    fn names(machines: &[Machine]) -> Vec<&str> {
        machines.iter().map(|machine| machine.name.as_str()).collect()
    }

    fn vm(guest: &str, hypervisor: HypervisorKind, host: &str) -> Resource {
        let (host, guest) = (host.to_owned(), guest.to_owned());
        let vm = format!("nestlab-lab-{guest}");
        Resource::Vm { host, guest, hypervisor, vm, directory: "/".into() }
    }

    fn remaining(made: &[Resource]) -> Remaining {
        Remaining { made: made.to_vec(), ..Remaining::default() }
    }

    fn lab(folder: &tempfile::TempDir) -> Lab {
        let state = camino::Utf8Path::from_path(folder.path()).expect("UTF-8");
        let name = "lab".parse().expect("a name");
        Labs::at(state).create(&name, "").expect("a lab")
    }

    #[test]
    fn a_guest_that_left_the_recipe_is_known_until_it_is_back() {
        use HypervisorKind::{Qemu, VirtualBox};
        let folder = tempfile::tempdir().expect("a folder");
        let lab = lab(&folder);
        let made = remaining(&[vm("one", Qemu, "L0"), vm("two", Qemu, "L0")]);
        let at_first = blueprint(&lab, Qemu, &["one", "two"]);
        let shrunk = blueprint(&lab, Qemu, &["one"]).after(Some(at_first), &made);
        assert_eq!((names(&shrunk.machines), names(&shrunk.dropped)), (vec!["one"], vec!["two"]));
        let found = shrunk.made(&vm("two", Qemu, "L0")).expect("its VM can be removed");
        assert_eq!(found.spec.vm, "nestlab-lab-two");
        assert!(shrunk.made(&vm("two", VirtualBox, "L0")).is_err(), "no such VM was made");
        let orphaned = shrunk.chosen(None, true).expect("there is one");
        assert_eq!(orphaned, [&shrunk.dropped[0]]);

        let moved = blueprint(&lab, VirtualBox, &["one"]).after(Some(shrunk), &made);
        assert_eq!(names(&moved.dropped), ["one", "two"], "the VM in QEMU is still there");
        assert_eq!(moved.made(&vm("one", Qemu, "L0")).expect("known").outer, Qemu);
        assert_eq!(moved.known("one").expect("known").outer, VirtualBox, "the recipe's first");
        let labels: Vec<_> = moved.all().map(|machine| moved.label(machine)).collect();
        assert_eq!(labels, ["one", "one in qemu on this machine", "two"]);

        let back = blueprint(&lab, Qemu, &["one", "two"]).after(Some(moved), &made);
        assert_eq!(back.made(&vm("two", Qemu, "L0")).expect("is there").outer, Qemu);
        assert_eq!(names(&back.dropped), [""; 0], "nothing was made in VirtualBox");
    }

    #[test]
    fn a_guest_of_which_nothing_remains_is_forgotten_unless_the_journal_is_damaged() {
        use HypervisorKind::Qemu;
        let folder = tempfile::tempdir().expect("a folder");
        let lab = lab(&folder);
        let at_first = || Some(blueprint(&lab, Qemu, &["one", "two"]));
        let after = blueprint(&lab, Qemu, &["one"]).after(at_first(), &Remaining::default());
        assert_eq!(names(&after.dropped), [""; 0]);
        let damaged = Remaining { damaged: true, ..Remaining::default() };
        let after = blueprint(&lab, Qemu, &["one"]).after(at_first(), &damaged);
        assert_eq!(names(&after.dropped), ["two"]);
    }

    #[test]
    fn the_guests_of_a_former_l0_are_known_with_where_they_are() {
        use HypervisorKind::Qemu;
        let folder = tempfile::tempdir().expect("a folder");
        let lab = lab(&folder);
        let on = |ssh: Option<&str>| {
            let mut drawn = blueprint(&lab, Qemu, &["one"]);
            drawn.l0_ssh = ssh.map(str::to_owned);
            drawn
        };
        let made = remaining(&[vm("one", Qemu, "L0"), vm("one", Qemu, "me@b")]);
        let moved = on(Some("me@a")).after(Some(on(None)), &remaining(&[vm("one", Qemu, "L0")]));
        let former = &moved.dropped[0];
        assert_eq!(moved.place(former).l0, L0Address::ThisMachine);
        assert_eq!(moved.host_in_journal(former), "L0", "as it was written down");
        assert_eq!(moved.host_in_journal(&moved.machines[0]), "me@a");
        assert_eq!(moved.label(former), "one in qemu on this machine");

        let again = on(Some("me@b")).after(Some(moved), &made);
        assert_eq!(names(&again.dropped), ["one"], "nothing was made on me@a");
        let home = on(None).after(Some(again), &made);
        assert_eq!(home.host_in_journal(&home.machines[0]), "L0");
        assert_eq!(home.place(&home.dropped[0]).l0, L0Address::Ssh("me@b".to_owned()));
    }
}
