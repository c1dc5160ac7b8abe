//! Where a guest's VM is: on which machine, and inside which guests. By that a guest which left the recipe is
//! told from one of its name that the recipe has.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::blueprint::{Blueprint, Machine};
use super::l0;
use crate::recipe::{GuestName, HypervisorKind};

/// A machine that is a lab's L0, or was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum L0Address {
    /// This machine.
    ThisMachine,
    /// Another one: `user@host[:port]`.
    Ssh(String),
}

impl L0Address {
    /// Returns the L0 of a recipe's `[host] ssh`.
    pub(super) fn of(ssh: Option<&str>) -> Self {
        ssh.map_or(L0Address::ThisMachine, |ssh| L0Address::Ssh(ssh.to_owned()))
    }
}

impl fmt::Display for L0Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            L0Address::ThisMachine => f.pad("this machine"),
            L0Address::Ssh(destination) => f.pad(destination),
        }
    }
}

/// Where a VM is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmPlace {
    /// The machine at the bottom.
    pub l0: L0Address,
    /// The guests around it, the outermost first, each with what runs it.
    pub inside: Vec<(GuestName, HypervisorKind)>,
}

impl Blueprint {
    /// Returns the lab's L0.
    pub fn l0(&self) -> L0Address {
        L0Address::of(self.l0_ssh.as_deref())
    }

    /// Returns every machine of the lab: those of the recipe, then those that it had once.
    pub fn all(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter().chain(&self.dropped)
    }

    /// Returns whether the recipe has `machine` no more, or not there.
    pub fn is_orphaned(&self, machine: &Machine) -> bool {
        self.dropped.contains(machine)
    }

    /// Returns where the VM of `machine` is.
    pub fn place(&self, machine: &Machine) -> VmPlace {
        if let Some(place) = &machine.place {
            return place.clone();
        }
        let named = |name: &GuestName| self.all().find(|other| other.name == *name);
        let mut inside = Vec::new();
        let mut next = machine.parent.as_ref().and_then(named);
        // Whatever the file says, no guest is inside itself.
        while let Some(around) =
            next.filter(|_| inside.len() < self.machines.len() + self.dropped.len())
        {
            inside.insert(0, (around.name.clone(), around.outer));
            next = around.parent.as_ref().and_then(named);
        }
        VmPlace { l0: self.l0(), inside }
    }

    /// Returns the guest that runs `machine`; `None`: an L0 does.
    pub fn host_of(&self, machine: &Machine) -> Option<&Machine> {
        let mut around = self.place(machine);
        let (name, outer) = around.inside.pop()?;
        self.all()
            .find(|other| other.name == name && other.outer == outer && self.place(other) == around)
    }

    /// Returns whether the VM of `machine` is inside that of `other`, at any depth, or is it.
    pub fn is_within(&self, machine: &Machine, other: &Machine) -> bool {
        let mut next = Some(machine);
        while let Some(machine) = next {
            if machine == other {
                return true;
            }
            next = self.host_of(machine);
        }
        false
    }

    /// Returns the machine called `name`: the recipe's, else one that it had once.
    ///
    /// # Errors
    /// As [`Blueprint::machine`].
    pub fn known(&self, name: &str) -> crate::Result<&Machine> {
        match self.all().find(|machine| machine.name.as_str() == name) {
            Some(machine) => Ok(machine),
            None => self.machine(name),
        }
    }

    /// Returns what tells `machine` from all others: its name, for the first that has it.
    pub(super) fn label(&self, machine: &Machine) -> String {
        let name = machine.name.as_str();
        match self.known(name) {
            Ok(first) if first != machine => {
                let place = self.place(machine);
                let inside = place.inside.iter().map(|(guest, _)| format!("{guest} on "));
                let inside: String = inside.rev().collect();
                format!("{name} in {} on {inside}{}", machine.outer, place.l0)
            }
            _ => name.to_owned(),
        }
    }

    /// Returns what the journal calls the host of `machine`.
    pub(super) fn host_in_journal(&self, machine: &Machine) -> String {
        let place = self.place(machine);
        match place.inside.last() {
            Some((parent, _)) => parent.to_string(),
            None if place.l0 == self.l0_in_journal() => l0::NAME.to_owned(),
            None => place.l0.to_string(),
        }
    }

    /// Returns which machine the journal calls `L0`: the lab's first.
    pub(super) fn l0_in_journal(&self) -> L0Address {
        self.first_l0.clone().unwrap_or_else(|| self.l0())
    }
}
