//! Host Keys: every VirtualBox on a path has one that clashes with none above or below it.

use super::{Derived, Limit, Resolver};
use crate::recipe::hostkey::{HostKey, Platform};
use crate::recipe::keywords::HypervisorKind;
use crate::recipe::model::Guest;

type KeyChoice = Option<Derived<HostKey>>;

/// Returns L0's Host Key and each guest's.
pub(super) fn derive(work: &mut Resolver<'_>) -> (KeyChoice, Vec<KeyChoice>) {
    let host_key = of_l0(work);
    let guests = work.recipe.guests();
    let given: Vec<Option<&HostKey>> =
        guests.iter().map(|guest| guest.host_key.as_ref().map(|at| &at.value)).collect();
    let mut keys: Vec<KeyChoice> = Vec::new();
    for (index, guest) in guests.iter().enumerate() {
        let key = if guest.runs_virtualbox() {
            of_guest(work, guest, index, &host_key, &keys, &given)
        } else {
            None
        };
        keys.push(key);
    }
    (host_key, keys)
}

fn of_l0(work: &mut Resolver<'_>) -> KeyChoice {
    let platform = work.host.platform;
    let mut kinds = work.recipe.host.further.iter().chain([&work.host.hypervisor]);
    let virtualbox = kinds.any(|kind| *kind == HypervisorKind::VirtualBox);
    match &work.recipe.host.host_key {
        Some(at) if !virtualbox => {
            let message = "L0 runs its guests with QEMU, which has no Host Key";
            let help = "leave `host-key` out, or write `hypervisor = \"virtualbox\"`";
            work.refuse(at.span(), Limit::Recipe, message, help);
            None
        }
        Some(at) => {
            on_platform(work, at.span(), &at.value, platform);
            Some(Derived::given(at.value.clone()))
        }
        None if virtualbox => work
            .host
            .host_key
            .clone()
            .map(|key| Derived::because(key, "as it is on L0, left alone")),
        None => None,
    }
}

fn of_guest(
    work: &mut Resolver<'_>,
    guest: &Guest,
    index: usize,
    host_key: &KeyChoice,
    keys: &[KeyChoice],
    given: &[Option<&HostKey>],
) -> KeyChoice {
    let guests = work.recipe.guests();
    let above: Vec<(&str, &HostKey)> = host_key
        .iter()
        .map(|key| ("L0", &key.value))
        .chain(work.recipe.ancestors(guest).filter_map(|ancestor| {
            let at = guests.iter().position(|g| g.name.value == ancestor.name.value)?;
            Some((ancestor.name.as_str(), &keys.get(at)?.as_ref()?.value))
        }))
        .collect();
    if let Some(at) = &guest.host_key {
        on_platform(work, at.span(), &at.value, Platform::Linux);
        if let Some((name, key)) = above.iter().find(|(_, key)| key.clashes_with(&at.value)) {
            let message = format!(
                "{} cannot be left with `{}`: {name}, around it, takes `{key}`",
                guest.name.value, at.value
            );
            let help = "choose another key, or leave it out and nestlab does";
            work.refuse(at.span(), Limit::Recipe, message, help);
        }
        return Some(Derived::given(at.value.clone()));
    }
    // Keys that deeper guests ask for are taken too: the recipe's word comes before a derived one.
    let below = guests.iter().enumerate().skip(index).filter_map(|(at, other)| {
        let inside = work.recipe.ancestors(other).any(|a| a.name.value == guest.name.value);
        if inside { given[at] } else { None }
    });
    let around: Vec<&HostKey> = above.iter().map(|(_, key)| *key).chain(below).collect();
    match HostKey::free(&around) {
        Some(key) => Some(Derived::because(key, "differs from all levels around it")),
        None => {
            let message = format!("no key is left to leave {} with", guest.name.value);
            work.refuse(guest.name.span(), Limit::Recipe, message, "give it a `host-key`");
            None
        }
    }
}

fn on_platform(
    work: &mut Resolver<'_>,
    span: std::ops::Range<usize>,
    key: &HostKey,
    platform: Platform,
) {
    if key.codes(platform).is_none() {
        let message = format!("`{key}` cannot be a Host Key on {platform}");
        work.refuse(span, Limit::Host, message, "choose a modifier key, such as `Right Ctrl`");
    }
}
