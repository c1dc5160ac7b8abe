//! The blueprint of a lab whose `machines.json` is lost: from the journal, which has it as it was last kept,
//! or, in a lab of an older nestlab, what was recorded of each VM before it was made.

use std::borrow::Cow;

use camino::{Utf8Path, Utf8PathBuf};

use super::blueprint::{self, Blueprint, GuestLogin, Machine};
use super::l0;
use super::vm_place::{L0Address, VmPlace};
use crate::error::{Error, Kind, Result};
use crate::hypervisor::{Firmware, GuestSpec, Media, Subnet, VmOrigin};
use crate::image::build::seed;
use crate::lab::{JournalEntry, Lab, Record, Resource, resources};
use crate::recipe::{
    Constraint, Cpus, Guest, GuestSource, HypervisorKind, Mebibytes, Readiness, Recipe,
    RecipeOrigin,
};

/// Returns the blueprint that the journal of `lab` tells of; `None` if nothing was begun.
///
/// # Errors
/// [`Kind::Io`] if the journal cannot be read or names what cannot be.
pub(super) fn blueprint(lab: &Lab) -> Result<Option<Blueprint>> {
    let reading = lab.read_journal()?;
    if let Some(recorded) = recorded(&reading.records) {
        return Ok(Some(recorded));
    }
    let vms: Vec<Resource> = resources::remaining(&reading.records)
        .into_iter()
        .rev()
        .filter(|resource| resource.carries().is_some())
        .collect();
    let adopted = !resources::adopted(&reading.records).is_empty();
    if vms.is_empty() && !adopted && reading.unexamined().is_empty() {
        return Ok(None);
    }
    let recipe = recipe(lab);
    let recipe = recipe.as_ref();
    let guests = recipe.map(Recipe::guests).unwrap_or_default();
    let mut machines: Vec<Machine> = guests.iter().filter_map(existing).collect();
    for vm in &vms {
        machines.push(machine(lab, vm, &vms)?);
    }
    Ok(Some(Blueprint::recalled(
        lab,
        recipe.and_then(|recipe| recipe.host.ssh.as_ref()).map(ToString::to_string),
        recipe.map_or(1.0, |recipe| recipe.patience),
        machines,
    )))
}

/// Returns the blueprint that was last recorded, if this nestlab can read it.
pub(super) fn recorded(records: &[Record]) -> Option<Blueprint> {
    let blueprint = records.iter().rev().find_map(|record| match &record.entry {
        JournalEntry::Blueprint { blueprint } => Some(blueprint),
        _ => None,
    })?;
    serde_json::from_value(blueprint.clone()).ok()
}

/// Returns the recipe as the lab was last built by, if this nestlab can read it.
fn recipe(lab: &Lab) -> Option<Recipe> {
    let name = lab.recipe_path().to_string();
    let origin = RecipeOrigin::Text { name, base: lab.directory().to_owned() };
    Recipe::parse(&lab.recipe().ok()?, origin).ok()
}

impl Blueprint {
    /// Returns the machine of `resource`, a VM of this lab, also if the blueprint has none like it: what was
    /// recorded before the VM was made is enough to remove it.
    ///
    /// # Errors
    /// As [`machine`].
    pub(super) fn machine_of(&self, lab: &Lab, resource: &Resource) -> Result<Cow<'_, Machine>> {
        match self.made(resource) {
            Ok(machine) if self.is_made_as(machine, resource) => Ok(Cow::Borrowed(machine)),
            _ => machine(lab, resource, &[]).map(Cow::Owned),
        }
    }
}

/// Returns the machine of the VM `resource`, one of `vms`, as far as its record tells.
///
/// # Errors
/// [`Kind::Io`] if its record has a name that no guest can have.
fn machine(lab: &Lab, resource: &Resource, vms: &[Resource]) -> Result<Machine> {
    let Resource::Vm { host, guest, hypervisor, vm, directory } = resource else {
        return Err(Error::internal(format!("{resource} is no VM")));
    };
    let name = |text: &str| {
        text.parse().map_err(|_| {
            let path = lab.journal_path();
            let text = text.escape_debug();
            Error::new(Kind::Io, format!("{path} has a guest called `{text}`, which cannot be"))
        })
    };
    let parent = host.parse().ok().filter(|_| host != l0::NAME);
    let place = if parent.is_none() { former_l0(host) } else { None };
    let media = Media::Disk(directory.join(match hypervisor {
        HypervisorKind::VirtualBox => "disk.vdi",
        HypervisorKind::Qemu => "disk.qcow2",
    }));
    let seeded = lab.keys().has_host_key(guest);
    let network = seed::SeedNetwork::default();
    let seed = seeded.then(|| directory.join(network.file_name()));
    let login = GuestLogin {
        user: user_inside(guest, vms),
        port: 22,
        key: None,
        host_key_injected: seeded,
    };
    Ok(Machine {
        name: name(guest)?,
        parent,
        outer: *hypervisor,
        spec: spec(vm.clone(), directory, VmOrigin::Made(media), seed),
        image: None,
        login: Some(login),
        ready: Readiness::Ssh,
        inner: vms.iter().find_map(|other| match other {
            Resource::Vm { host, hypervisor, .. } if host == guest => Some(*hypervisor),
            _ => None,
        }),
        further: Vec::new(),
        host_key: None,
        packages: Vec::new(),
        network,
        place,
    })
}

/// Returns where a guest of `host` is, which the journal calls so and no guest is called: on the lab's L0, or
/// on a machine that was that.
fn former_l0(host: &str) -> Option<VmPlace> {
    let this = L0Address::ThisMachine.to_string();
    let l0 = match host {
        l0::NAME => return None,
        host if host == this => L0Address::ThisMachine,
        host => L0Address::Ssh(host.to_owned()),
    };
    Some(VmPlace { l0, inside: Vec::new() })
}

/// Returns where the files of `lab` lie on a machine that nestlab enters as root.
pub(super) fn root_folder(lab: &Lab) -> Utf8PathBuf {
    blueprint::remote_directory(None, lab.name())
}

/// Returns the user who is logged in to `guest`: where files lie in it tells.
fn user_inside(guest: &str, vms: &[Resource]) -> String {
    let user = vms.iter().find_map(|vm| match vm {
        Resource::Vm { host, directory, .. } if host == guest => {
            directory.strip_prefix("/home").ok()?.iter().next()
        }
        _ => None,
    });
    user.unwrap_or("root").to_owned()
}

/// Returns the machine of `guest` if its VM existed before nestlab: no record was made of that.
fn existing(guest: &Guest) -> Option<Machine> {
    let GuestSource::Existing { vm, snapshot_before } = &guest.source else { return None };
    let origin = VmOrigin::Existing { vm: vm.to_string(), snapshot_before: *snapshot_before };
    Some(Machine {
        name: guest.name.value.clone(),
        parent: guest.parent.clone(),
        outer: HypervisorKind::VirtualBox,
        spec: spec(vm.to_string(), Utf8Path::new(""), origin, None),
        image: None,
        login: guest.ssh.as_ref().map(|ssh| GuestLogin {
            user: ssh.user.to_string(),
            port: ssh.port.get(),
            key: ssh.key.clone(),
            host_key_injected: false,
        }),
        ready: Readiness::Ssh,
        inner: None,
        further: Vec::new(),
        host_key: None,
        packages: Vec::new(),
        network: seed::SeedNetwork::default(),
        place: None,
    })
}

/// Returns what is needed of a VM to find, stop and remove it; the rest is the least that there can be.
fn spec(
    vm: String,
    directory: &Utf8Path,
    origin: VmOrigin,
    seed: Option<Utf8PathBuf>,
) -> GuestSpec {
    GuestSpec {
        vm,
        directory: directory.to_owned(),
        origin,
        cpus: Constraint::Exactly(Cpus::ONE),
        memory: Constraint::Exactly(Mebibytes::gib(1)),
        disk: None,
        firmware: Firmware::Bios,
        firmware_given: false,
        seed,
        nested: None,
        subnet: Subnet::new(10, 0, 2),
        forwards: Vec::new(),
        networks: Vec::new(),
        reach_host: false,
        gui: false,
    }
}
