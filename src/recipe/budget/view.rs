//! A guest with all its values, as `--json` answers show it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Budget, Derived, GuestBudget};
use crate::recipe::constraint::Constraint;
use crate::recipe::model::{GuestSource, Recipe};
use crate::recipe::units::{Cpus, Mebibytes};

/// One of `guests` in the JSON answers of `plan` and `check`; fields are only ever added.
#[derive(Debug, Clone, Serialize)]
pub struct ResolvedView {
    /// Its name.
    pub name: String,
    /// Its level.
    pub level: u32,
    /// The guest that runs it, or `L0`.
    pub parent: String,
    /// What runs it.
    pub runs_on: String,
    /// What it runs for its own guests; of several, the first.
    pub hypervisor: Option<String>,
    /// What it runs beside that.
    pub further_hypervisors: Vec<String>,
    /// Virtual CPUs; `null`: an existing VM's own.
    pub cpus: Option<u32>,
    /// Memory in MiB; `null`: an existing VM's own.
    pub memory_mib: Option<u64>,
    /// How much of its own an existing VM keeps where the recipe says nothing, by field: `as it is`,
    /// `3 or fewer`.
    pub kept: BTreeMap<&'static str, String>,
    /// The disk's size in MiB; `null`: the image's own.
    pub disk_mib: Option<u64>,
    /// The image, if it is made from one.
    pub image: Option<String>,
    /// The existing VM, if it is one.
    pub vm: Option<String>,
    /// Its NAT network.
    pub subnet: String,
    /// Networks that it shares with guests beside it.
    pub networks: Vec<String>,
    /// Its addresses on them, by network; of an image that takes none, nothing.
    pub addresses: BTreeMap<String, String>,
    /// The Host Key of the VirtualBox inside.
    pub host_key: Option<String>,
    /// How it starts; `null`: an existing VM's.
    pub firmware: Option<String>,
    /// By which evidence it counts as up.
    pub ready: String,
    /// Whether it gets nested hardware virtualization.
    pub nested: bool,
    /// Why each value that the recipe leaves out is what it is, by field.
    pub derived: BTreeMap<&'static str, String>,
}

/// A Host Key, and whose windows it leaves: one of `host_keys` in the JSON answer of `plan`; fields are only
/// ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostKeyBinding {
    /// The host whose VirtualBox has it: `L0`, or the guest.
    pub host: String,
    /// The key.
    pub key: String,
    /// The guests of that VirtualBox.
    pub leaves: Vec<String>,
    /// Why it is this one.
    pub why: String,
}

impl Budget {
    /// Returns the Host Key of every VirtualBox, the outermost first.
    pub fn host_key_bindings(&self, recipe: &Recipe) -> Vec<HostKeyBinding> {
        let hosts = std::iter::once((None, &self.host_key))
            .chain(self.guests.iter().map(|guest| (Some(&guest.name), &guest.host_key)));
        hosts
            .filter_map(|(host, key)| {
                let key = key.as_ref()?;
                Some(HostKeyBinding {
                    host: host.map_or("L0".to_owned(), ToString::to_string),
                    key: key.value.to_string(),
                    leaves: recipe.children(host).map(|guest| guest.name.to_string()).collect(),
                    why: key.why.clone(),
                })
            })
            .collect()
    }

    /// Returns every guest with all its values, in the recipe's order.
    pub fn view(&self, recipe: &Recipe) -> Vec<ResolvedView> {
        let guests = recipe.guests().iter().zip(&self.guests);
        guests
            .map(|(guest, budget)| {
                let (image, vm) = match &guest.source {
                    GuestSource::Image(image) => (Some(image.to_string()), None),
                    GuestSource::Existing { vm, .. } => (None, Some(vm.to_string())),
                };
                ResolvedView {
                    name: budget.name.to_string(),
                    level: budget.level,
                    parent: guest.parent.as_ref().map_or("L0".to_owned(), ToString::to_string),
                    runs_on: budget.runs_on.to_string(),
                    hypervisor: budget.hypervisor.map(|hypervisor| hypervisor.to_string()),
                    further_hypervisors: budget.further.iter().map(ToString::to_string).collect(),
                    cpus: budget.cpus.value.known().map(Cpus::get),
                    memory_mib: budget.memory.value.known().map(Mebibytes::get),
                    kept: kept(budget),
                    disk_mib: budget.disk.value.map(|disk| disk.get()),
                    image,
                    vm,
                    subnet: budget.subnet.value.to_string(),
                    networks: guest.networks.iter().map(ToString::to_string).collect(),
                    addresses: budget
                        .links
                        .iter()
                        .map(|link| (link.network.to_string(), format!("{}/24", link.address)))
                        .collect(),
                    host_key: budget.host_key.as_ref().map(|key| key.value.to_string()),
                    firmware: budget.firmware.value.map(|firmware| firmware.to_string()),
                    ready: budget.ready.value.to_string(),
                    nested: budget.nested.value,
                    derived: whys(budget),
                }
            })
            .collect()
    }
}

/// Returns what an existing VM keeps, by the field's name in [`ResolvedView`].
fn kept(budget: &GuestBudget) -> BTreeMap<&'static str, String> {
    fn own<T: std::fmt::Display>(amount: &Constraint<T>) -> Option<String> {
        (!matches!(amount, Constraint::Exactly(_))).then(|| amount.to_string())
    }
    [("cpus", own(&budget.cpus.value)), ("memory_mib", own(&budget.memory.value))]
        .into_iter()
        .filter_map(|(field, kept)| Some((field, kept?)))
        .collect()
}

/// Returns why each derived value is what it is, by the field's name in [`ResolvedView`].
fn whys(budget: &GuestBudget) -> BTreeMap<&'static str, String> {
    fn why<T>(derived: &Derived<T>) -> Option<String> {
        (!derived.given).then(|| derived.why.clone())
    }
    [
        ("cpus", why(&budget.cpus)),
        ("memory_mib", why(&budget.memory)),
        ("disk_mib", why(&budget.disk)),
        ("subnet", why(&budget.subnet)),
        ("host_key", budget.host_key.as_ref().and_then(why)),
        ("firmware", why(&budget.firmware)),
        ("ready", why(&budget.ready)),
        ("nested", why(&budget.nested)),
    ]
    .into_iter()
    .filter_map(|(field, why)| Some((field, why?)))
    .collect()
}
