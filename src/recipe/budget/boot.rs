//! How a guest starts, how it is seen to be up, and whether nestlab can get into it: what the recipe says,
//! else what the image offers and the hypervisor can.

use super::{Derived, Limit, Resolver, runs_on};
use crate::recipe::keywords::{Firmware, HypervisorKind, Readiness, ReadyKind};
use crate::recipe::model::{Guest, GuestSource};

pub(super) struct Boot {
    pub(super) firmware: Derived<Option<Firmware>>,
    pub(super) ready: Derived<Readiness>,
}

pub(super) fn derive(work: &mut Resolver<'_>) -> Vec<Boot> {
    let guests = work.recipe.guests().iter();
    guests
        .map(|guest| {
            enterable(work, guest);
            Boot { firmware: firmware(work, guest), ready: ready(work, guest) }
        })
        .collect()
}

fn firmware(work: &Resolver<'_>, guest: &Guest) -> Derived<Option<Firmware>> {
    if let GuestSource::Existing { .. } = guest.source {
        return Derived::because(None, "an existing VM keeps its firmware");
    }
    match (guest.firmware, work.image(guest).firmware) {
        (Some(firmware), _) => Derived::given(Some(firmware)),
        (None, Some(firmware)) => Derived::because(Some(firmware), "its image starts with it"),
        (None, None) => Derived::because(Some(Firmware::Bios), "the hypervisors' default"),
    }
}

/// Returns whether nestlab can get into `guest`.
fn has_ssh(work: &Resolver<'_>, guest: &Guest) -> bool {
    guest.ssh.is_some() || (matches!(guest.source, GuestSource::Image(_)) && work.image(guest).ssh)
}

/// A guest in which something is to be installed must let nestlab in.
fn enterable(work: &mut Resolver<'_>, guest: &Guest) {
    let why = if guest.hypervisor.is_some() {
        "a hypervisor"
    } else if !guest.packages.is_empty() {
        "packages"
    } else {
        return;
    };
    if has_ssh(work, guest) {
        return;
    }
    let (what, help) = match guest.source {
        GuestSource::Existing { .. } => (
            "it is an existing VM",
            "say how to get in: `ssh = { user = \"user\", key = \"id_ed25519\" }`",
        ),
        GuestSource::Image(_) => {
            ("its image has no SSH server", "use an image that has one, such as `debian-sid`")
        }
    };
    let message = format!("{why} cannot be installed in {}: {what}", guest.name.value);
    work.refuse(guest.name.span(), Limit::Recipe, message, help);
}

fn ready(work: &mut Resolver<'_>, guest: &Guest) -> Derived<Readiness> {
    let Some(at) = &guest.ready else { return offered(work, guest) };
    let name = &guest.name.value;
    let ready = match at.value {
        ReadyKind::Ssh => {
            if !has_ssh(work, guest) {
                let message = format!("nestlab cannot get into {name} over SSH");
                let help = "add `ssh = { user = … }`, or leave `ready` out";
                work.refuse(at.span(), Limit::Recipe, message, help);
            }
            Readiness::Ssh
        }
        ReadyKind::GuestAdditions => {
            if !sees_additions(work, guest) {
                let message = format!("guest additions are VirtualBox's, and QEMU runs {name}");
                let help =
                    "leave `ready` out, or write `hypervisor = \"virtualbox\"` under `[host]`";
                work.refuse(at.span(), Limit::Host, message, help);
            }
            Readiness::GuestAdditions
        }
        ReadyKind::Screen => Readiness::Screen,
        ReadyKind::Serial => Readiness::Serial { pattern: pattern(work, guest, at.span()) },
    };
    Derived::given(ready)
}

/// Returns the readiness that the image offers and the hypervisor can see.
fn offered(work: &Resolver<'_>, guest: &Guest) -> Derived<Readiness> {
    let additions = sees_additions(work, guest);
    match work.image(guest).ready {
        Some(Readiness::GuestAdditions) if !additions => Derived::because(
            Readiness::Screen,
            "it has no SSH server, and QEMU does not see its guest additions",
        ),
        Some(ready) => Derived::because(ready, "its image offers it"),
        None if has_ssh(work, guest) => Derived::because(Readiness::Ssh, "it has an SSH server"),
        None if additions => {
            Derived::because(Readiness::GuestAdditions, "nothing says how to get into it")
        }
        None => Derived::because(Readiness::Screen, "nothing says how to get into it"),
    }
}

fn sees_additions(work: &Resolver<'_>, guest: &Guest) -> bool {
    runs_on(work.recipe, work.host, guest) == HypervisorKind::VirtualBox
}

/// Returns the line to look for on the serial console: the recipe's, else the image's.
fn pattern(work: &mut Resolver<'_>, guest: &Guest, span: std::ops::Range<usize>) -> String {
    if let Some(pattern) = &guest.serial_pattern {
        return pattern.as_str().to_owned();
    }
    if let Some(Readiness::Serial { pattern }) = work.image(guest).ready {
        return pattern;
    }
    let name = &guest.name.value;
    let message = format!("nothing says which line on {name}'s serial console shows it is up");
    work.refuse(span, Limit::Recipe, message, "add `serial-pattern = \"login:\"`");
    String::new()
}
