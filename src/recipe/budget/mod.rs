//! The resource budget over all levels: what a recipe leaves out is derived, and what it says is
//! checked, from L0's resources down to the deepest guest. Pure: numbers in, numbers out.
//!
//! | value | rule | file |
//! |---|---|---|
//! | CPUs | one fewer than the host has | `cpus` |
//! | memory | the guests of one host fit into it beside its own system | `memory` |
//! | disk | room for the guests' images and disks | `disk` |
//! | subnet, addresses | differ from all networks around it | `subnet` |
//! | all but the Host Key | stay in a lab that was built, unless its recipe changed | `kept` |
//! | Host Key | differs from all levels around it | `keys` |
//! | firmware, readiness | what the image offers and the hypervisor can | `boot` |

mod boot;
mod cpus;
mod disk;
mod keys;
mod memory;
mod settled;
mod subnet;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::Range;

use serde::Serialize;

pub use memory::reserve;
pub use settled::{SettledGuest, SettledValues};
pub use view::{HostKeyBinding, ResolvedView};

use super::constraint::Constraint;
use super::diagnostic;
use super::hostkey::{HostKey, Platform};
use super::keywords::{Firmware, HypervisorKind, Readiness, Subnet};
use super::model::{Guest, Recipe};
use super::units::{Cpus, GuestName, Mebibytes, NetworkName};
use crate::error::{Error, Kind, Problem, Result};

/// What L0 has.
#[derive(Debug, Clone, PartialEq)]
pub struct Resources {
    /// Physical cores, not threads.
    pub cores: Cpus,
    /// Physical memory.
    pub memory: Mebibytes,
    /// Free disk space where labs are kept; `None`: not known, not checked.
    pub free_disk: Option<Mebibytes>,
    /// IPv4 networks that L0 is in or routes to, without the default route.
    pub networks: Vec<Ipv4Network>,
    /// What runs the outermost guests, `auto` being settled.
    pub hypervisor: HypervisorKind,
    /// Whose key codes L0's VirtualBox uses.
    pub platform: Platform,
    /// The Host Key of L0's VirtualBox as it is there; `None`: it has none, or no VirtualBox.
    pub host_key: Option<HostKey>,
}

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ipv4Network {
    /// An address in it.
    pub address: Ipv4Addr,
    /// The length of its prefix, 0 to 32.
    pub prefix: u8,
}

/// What an image offers and needs. The default is what is assumed where nothing is known, as of an existing
/// VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDefaults {
    /// Memory that it wants.
    pub memory: Option<Mebibytes>,
    /// CPUs that its own definition has; told, not followed.
    pub cpus: Option<Cpus>,
    /// The size of its virtual disk, which a guest's disk cannot be smaller than.
    pub disk: Option<Mebibytes>,
    /// Room that its file and a fresh guest's disk take together.
    pub room: Option<Mebibytes>,
    /// How it starts.
    pub firmware: Option<Firmware>,
    /// How it can be seen to be up.
    pub ready: Option<Readiness>,
    /// Whether it has an SSH server that lets nestlab in.
    pub ssh: bool,
    /// Whether it takes names, keys and addresses from a seed volume.
    pub seeded: bool,
}

impl Default for ImageDefaults {
    fn default() -> Self {
        ImageDefaults {
            memory: None,
            cpus: None,
            disk: None,
            room: None,
            firmware: None,
            ready: None,
            ssh: true,
            seeded: false,
        }
    }
}

/// A guest's address in a network that it shares with guests beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The network.
    pub network: NetworkName,
    /// Its subnet, which differs from every network around it.
    pub subnet: Subnet,
    /// The guest's address in it.
    pub address: Ipv4Addr,
}

/// A value and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Derived<T> {
    /// The value.
    pub value: T,
    /// Why it is this one, in a few words.
    pub why: String,
    /// Whether the recipe says it; otherwise it was derived.
    pub given: bool,
}

impl<T> Derived<T> {
    fn given(value: T) -> Self {
        Derived { value, why: "the recipe says so".to_owned(), given: true }
    }

    fn because(value: T, why: impl Into<String>) -> Self {
        Derived { value, why: why.into(), given: false }
    }

    fn map<U>(self, to: impl FnOnce(T) -> U) -> Derived<U> {
        Derived { value: to(self.value), why: self.why, given: self.given }
    }
}

/// Everything about a guest that its recipe says or leaves out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestBudget {
    /// The guest's name.
    pub name: GuestName,
    /// Its level.
    pub level: u32,
    /// What runs it.
    pub runs_on: HypervisorKind,
    /// Virtual CPUs.
    pub cpus: Derived<Constraint<Cpus>>,
    /// Memory.
    pub memory: Derived<Constraint<Mebibytes>>,
    /// The disk's size; `None`: the image's own, or an existing VM's, unchanged.
    pub disk: Derived<Option<Mebibytes>>,
    /// Its NAT network.
    pub subnet: Derived<Subnet>,
    /// Its addresses in the networks that it shares, unless its image takes none.
    pub links: Vec<Link>,
    /// What it runs for its own guests; of several, the first.
    pub hypervisor: Option<HypervisorKind>,
    /// What it runs beside that.
    pub further: Vec<HypervisorKind>,
    /// Whether it gets nested hardware virtualization.
    pub nested: Derived<bool>,
    /// The Host Key of the VirtualBox inside, if it runs VirtualBox.
    pub host_key: Option<Derived<HostKey>>,
    /// How it starts; `None`: an existing VM's, unchanged.
    pub firmware: Derived<Option<Firmware>>,
    /// By which evidence it counts as up.
    pub ready: Derived<Readiness>,
}

/// The budget of a whole recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// The Host Key of L0's VirtualBox; `None` where L0 runs no VirtualBox or has no Host Key.
    pub host_key: Option<Derived<HostKey>>,
    /// The guests, in the recipe's order.
    pub guests: Vec<GuestBudget>,
}

impl Budget {
    /// Returns the budget of the guest called `name`.
    pub fn guest(&self, name: &GuestName) -> Option<&GuestBudget> {
        self.guests.iter().find(|guest| guest.name == *name)
    }
}

/// Derives what `recipe` leaves out and checks what it says, on a machine with `host`'s resources.
/// `images` holds what each guest's image offers, by guest.
///
/// # Errors
/// Every value that breaks a rule, with its place: [`Kind::Recipe`] if one of them would do so on any
/// machine, [`Kind::HostCannot`] if a larger L0 would make all of them fine.
pub fn derive(
    recipe: &Recipe,
    host: &Resources,
    images: &BTreeMap<GuestName, ImageDefaults>,
) -> Result<Budget> {
    derive_for(recipe, host, images, &SettledValues::default())
}

/// As [`derive`], for a lab that was built with what `kept` has.
pub fn derive_for(
    recipe: &Recipe,
    host: &Resources,
    images: &BTreeMap<GuestName, ImageDefaults>,
    kept: &SettledValues,
) -> Result<Budget> {
    let mut work = Resolver { recipe, host, images, kept, faults: Vec::new() };
    let cpus = cpus::derive(&mut work);
    let memory = memory::derive(&mut work);
    let disk = disk::derive(&mut work);
    let subnets = subnet::derive(&mut work);
    let links = subnet::links(&mut work);
    let (host_key, keys) = keys::derive(&mut work);
    let boot = boot::derive(&mut work);
    work.finish()?;
    let guests = recipe
        .guests()
        .iter()
        .zip(cpus.into_iter().zip(memory))
        .zip(disk.into_iter().zip(subnets.into_iter().zip(links)))
        .zip(keys.into_iter().zip(boot))
        .map(|(((guest, (cpus, memory)), (disk, (subnet, links))), (host_key, boot))| GuestBudget {
            name: guest.name.value.clone(),
            level: guest.level,
            runs_on: runs_on(recipe, host, guest),
            cpus,
            memory,
            disk,
            subnet,
            links,
            hypervisor: guest.hypervisor,
            further: guest.further.clone(),
            nested: nested(guest),
            host_key,
            firmware: boot.firmware,
            ready: boot.ready,
        })
        .collect();
    Ok(Budget { host_key, guests })
}

fn nested(guest: &Guest) -> Derived<bool> {
    match (guest.nested, guest.hypervisor) {
        (Some(nested), _) => Derived::given(nested),
        (None, Some(hypervisor)) => {
            Derived::because(true, format!("it runs guests with {hypervisor}"))
        }
        (None, None) if guest.is_existing() => {
            Derived::because(false, "it runs no guests; what it has stays")
        }
        (None, None) => Derived::because(false, "it runs no guests"),
    }
}

/// Returns the hypervisor that runs `guest`.
fn runs_on(recipe: &Recipe, host: &Resources, guest: &Guest) -> HypervisorKind {
    if let Some(at) = &guest.runs_in {
        return at.value;
    }
    // `validate` has seen to it that a guest with guests names a hypervisor.
    recipe.parent(guest).map_or(Some(host.hypervisor), |p| p.hypervisor).unwrap_or(host.hypervisor)
}

/// A broken rule.
struct Violation {
    problem: Problem,
    /// Whether a larger L0 would make it fine.
    host_limited: bool,
}

/// What the rules work on, and what they found wrong.
struct Resolver<'a> {
    recipe: &'a Recipe,
    host: &'a Resources,
    images: &'a BTreeMap<GuestName, ImageDefaults>,
    kept: &'a SettledValues,
    faults: Vec<Violation>,
}

/// Who sets a limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// The recipe itself: wrong on every machine.
    Recipe,
    /// L0: another machine may do.
    Host,
}

impl<'a> Resolver<'a> {
    fn image(&self, guest: &Guest) -> ImageDefaults {
        self.images.get(&guest.name.value).cloned().unwrap_or_default()
    }

    /// Returns the position of `guest`'s parent among the recipe's guests.
    fn parent_index(&self, guest: &Guest) -> Option<usize> {
        let parent = guest.parent.as_ref()?;
        self.recipe.guests().iter().position(|other| other.name.value == *parent)
    }

    /// Returns the positions of the guests that `parent` runs; `None` stands for L0.
    fn children(&self, parent: Option<&'a GuestName>) -> Vec<usize> {
        let guests = self.recipe.guests().iter().enumerate();
        guests.filter(|(_, guest)| guest.parent.as_ref() == parent).map(|(i, _)| i).collect()
    }

    fn refuse(
        &mut self,
        span: Range<usize>,
        limit: Limit,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let problem = self.recipe.source().problem(span, message).help(help);
        self.faults.push(Violation { problem, host_limited: limit == Limit::Host });
    }

    fn finish(self) -> Result<(), Error> {
        if self.faults.is_empty() {
            return Ok(());
        }
        let host_limited = self.faults.iter().all(|fault| fault.host_limited);
        let kind = if host_limited { Kind::HostCannot } else { Kind::Recipe };
        let problems = self.faults.into_iter().map(|fault| fault.problem).collect();
        Err(diagnostic::error(problems).with_kind(kind))
    }
}
