//! What a lab was built with stays, as long as its recipe says the same: what L0 has and is in now (its cores,
//! its networks, the defaults of its images) is no reason to power its guests off.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Derived, Resolver};
use crate::recipe::Constraint;
use crate::recipe::keywords::Subnet;
use crate::recipe::model::{Guest, Recipe};
use crate::recipe::units::{Cpus, GuestName, Mebibytes, NetworkName};

/// What the guests of a lab were built with, of what a recipe may leave out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SettledValues(BTreeMap<GuestName, SettledGuest>);

/// The same of one guest; what is `None` is derived anew.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SettledGuest {
    /// Virtual CPUs.
    pub cpus: Option<Constraint<Cpus>>,
    /// Memory.
    pub memory: Option<Constraint<Mebibytes>>,
    /// Its NAT network.
    pub subnet: Option<Subnet>,
    /// Its addresses in the networks that it shares.
    pub addresses: BTreeMap<NetworkName, Ipv4Addr>,
}

impl SettledGuest {
    /// Leaves out what `new` says otherwise than `old`, the recipe that the lab was built by, where that can
    /// still be read.
    fn without_what_changed(
        mut self,
        guest: &GuestName,
        old: Option<&Recipe>,
        new: &Recipe,
    ) -> Self {
        let Some(old) = old else { return self };
        let (Some(before), Some(now)) = (Words::of(old, guest), Words::of(new, guest)) else {
            return SettledGuest::default();
        };
        if before.cpus != now.cpus {
            self.cpus = None;
        }
        if before.memory != now.memory {
            self.memory = None;
        }
        self
    }
}

impl SettledValues {
    /// Returns what of `guests`, built by the recipe `old`, stays under the recipe `new`.
    pub fn of(
        guests: impl IntoIterator<Item = (GuestName, SettledGuest)>,
        old: Option<&Recipe>,
        new: &Recipe,
    ) -> Self {
        let stays = |(name, kept): (GuestName, SettledGuest)| {
            let kept = kept.without_what_changed(&name, old, new);
            (name, kept)
        };
        SettledValues(guests.into_iter().map(stays).collect())
    }

    pub(super) fn guest(&self, guest: &GuestName) -> Option<&SettledGuest> {
        self.0.get(guest)
    }

    pub(super) fn guests(&self) -> impl Iterator<Item = &SettledGuest> {
        self.0.values()
    }
}

/// What a recipe says that a guest's CPUs and memory depend on.
#[derive(PartialEq)]
struct Words<'a> {
    cpus: (Option<Cpus>, bool),
    /// Of the guest and of all inside.
    memory: Vec<(&'a GuestName, Option<Mebibytes>, bool)>,
}

impl<'a> Words<'a> {
    fn of(recipe: &'a Recipe, guest: &GuestName) -> Option<Self> {
        let guest = recipe.guest(guest)?;
        let own = (
            &guest.name.value,
            guest.memory.as_ref().map(|memory| memory.value),
            guest.hypervisor.is_some(),
        );
        let children = recipe.guests().iter();
        let inside = children.filter(|child| child.parent.as_ref() == Some(&guest.name.value));
        let inside = inside.filter_map(|child| Words::of(recipe, &child.name.value));
        let inside = inside.flat_map(|words| words.memory);
        Some(Words {
            cpus: (guest.cpus.as_ref().map(|cpus| cpus.value), guest.hypervisor.is_some()),
            memory: [own].into_iter().chain(inside).collect(),
        })
    }
}

/// Returns `derived`, or what the lab was built with, if the recipe leaves it out.
pub(super) fn settled<T>(derived: Derived<T>, kept: Option<T>) -> Derived<T> {
    match kept {
        Some(kept) if !derived.given => Derived::because(kept, "as the lab was built"),
        _ => derived,
    }
}

impl Resolver<'_> {
    /// Returns what `guest` was built with, if it was.
    pub(super) fn kept(&self, guest: &Guest) -> SettledGuest {
        self.kept.guest(&guest.name.value).cloned().unwrap_or_default()
    }
}
