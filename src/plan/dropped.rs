//! Machines that a lab's recipe had once and has no more. Their VMs are still there, and the lab must know
//! them until it is destroyed.

use super::blueprint::{Blueprint, Machine};
use crate::error::Result;
use crate::recipe::HypervisorKind;

impl Blueprint {
    /// Takes over from the blueprint `before` it each machine whose VM this one does not have: one that left
    /// the recipe, or that another hypervisor or host is to run now.
    pub(super) fn after(mut self, before: Option<Blueprint>) -> Self {
        let Some(before) = before else { return self };
        let still_there = |old: &Machine| self.machines.iter().any(|new| is_same_vm(new, old));
        let once = before.machines.into_iter().chain(before.dropped);
        // What existed before the lab gets its settings back by what the journal says.
        self.dropped = once.filter(|old| !old.is_existing() && !still_there(old)).collect();
        self
    }

    /// Returns the machine of the VM called `vm`, which the lab made for `guest`.
    ///
    /// # Errors
    /// As [`Blueprint::machine`].
    pub(super) fn made(&self, guest: &str, outer: HypervisorKind, vm: &str) -> Result<&Machine> {
        let is_it = |machine: &&Machine| {
            machine.name.as_str() == guest && machine.outer == outer && machine.spec.vm == vm
        };
        match self.machines.iter().chain(&self.dropped).find(is_it) {
            Some(machine) => Ok(machine),
            None => self.machine(guest),
        }
    }
}

fn is_same_vm(one: &Machine, other: &Machine) -> bool {
    let key = |machine: &Machine| {
        (machine.name.clone(), machine.parent.clone(), machine.outer, machine.spec.vm.clone())
    };
    key(one) == key(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{Lab, Labs};
    use crate::plan::Images;
    use crate::recipe::budget::{self, Resources};
    use crate::recipe::{Cpus, Mebibytes, Platform, Recipe, RecipeOrigin};

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

    #[test]
    fn a_guest_that_left_the_recipe_is_known_until_it_is_back() {
        use HypervisorKind::{Qemu, VirtualBox};
        let folder = tempfile::tempdir().expect("a folder");
        let state = camino::Utf8Path::from_path(folder.path()).expect("UTF-8");
        let name = "lab".parse().expect("a name");
        let lab = Labs::at(state).create(&name, "").expect("a lab");
        let at_first = blueprint(&lab, Qemu, &["one", "two"]);
        let shrunk = blueprint(&lab, Qemu, &["one"]).after(Some(at_first));
        assert_eq!((names(&shrunk.machines), names(&shrunk.dropped)), (vec!["one"], vec!["two"]));
        let vm = shrunk.made("two", Qemu, "nestlab-lab-two").expect("its VM can be removed");
        assert_eq!(vm.spec.vm, "nestlab-lab-two");
        assert!(shrunk.made("two", VirtualBox, "nestlab-lab-two").is_err(), "no such VM was made");

        let moved = blueprint(&lab, VirtualBox, &["one"]).after(Some(shrunk));
        assert_eq!(names(&moved.dropped), ["one", "two"], "the VM in QEMU is still there");
        assert_eq!(moved.made("one", Qemu, "nestlab-lab-one").expect("known").outer, Qemu);

        let back = blueprint(&lab, Qemu, &["one", "two"]).after(Some(moved));
        assert_eq!(back.made("two", Qemu, "nestlab-lab-two").expect("is there").outer, Qemu);
        assert_eq!(names(&back.dropped), ["one"], "the one in VirtualBox");
    }
}
