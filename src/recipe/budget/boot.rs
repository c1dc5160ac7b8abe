//! How a guest starts, how it is seen to be up, and whether nestlab can get into it: what the recipe says,
//! else what the image offers and the hypervisor can.

use super::{Derived, Limit, Work, runs_on};
use crate::recipe::tree::{Guest, GuestSource};
use crate::recipe::words::{Firmware, HypervisorKind, Ready, ReadyKind};

pub(super) struct Boot {
    pub(super) firmware: Derived<Option<Firmware>>,
    pub(super) ready: Derived<Ready>,
}

pub(super) fn derive(work: &mut Work<'_>) -> Vec<Boot> {
    let guests = work.recipe.guests().iter();
    guests
        .map(|guest| {
            enterable(work, guest);
            Boot { firmware: firmware(work, guest), ready: ready(work, guest) }
        })
        .collect()
}

fn firmware(work: &Work<'_>, guest: &Guest) -> Derived<Option<Firmware>> {
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
fn has_ssh(work: &Work<'_>, guest: &Guest) -> bool {
    guest.ssh.is_some() || (matches!(guest.source, GuestSource::Image(_)) && work.image(guest).ssh)
}

/// A guest in which something is to be installed must let nestlab in.
fn enterable(work: &mut Work<'_>, guest: &Guest) {
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

fn ready(work: &mut Work<'_>, guest: &Guest) -> Derived<Ready> {
    let offered = work.image(guest).ready;
    let additions = runs_on(work.recipe, work.host, guest) == HypervisorKind::VirtualBox;
    let Some(at) = &guest.ready else {
        return match offered {
            Some(Ready::GuestAdditions) if !additions => Derived::because(
                Ready::Screen,
                "it has no SSH server, and QEMU does not see its guest additions",
            ),
            Some(ready) => Derived::because(ready, "its image offers it"),
            None if has_ssh(work, guest) => Derived::because(Ready::Ssh, "it has an SSH server"),
            None if additions => {
                Derived::because(Ready::GuestAdditions, "nothing says how to get into it")
            }
            None => Derived::because(Ready::Screen, "nothing says how to get into it"),
        };
    };
    let name = &guest.name.value;
    match at.value {
        ReadyKind::Ssh => {
            if !has_ssh(work, guest) {
                let message = format!("nestlab cannot get into {name} over SSH");
                let help = "add `ssh = { user = … }`, or leave `ready` out";
                work.refuse(at.span(), Limit::Recipe, message, help);
            }
            Derived::given(Ready::Ssh)
        }
        ReadyKind::GuestAdditions => {
            if !additions {
                let message =
                    format!("guest additions are VirtualBox's, and QEMU runs {name} here");
                let help =
                    "leave `ready` out, or write `hypervisor = \"virtualbox\"` under `[host]`";
                work.refuse(at.span(), Limit::Host, message, help);
            }
            Derived::given(Ready::GuestAdditions)
        }
        ReadyKind::Screen => Derived::given(Ready::Screen),
        ReadyKind::Serial => match (&guest.serial_pattern, offered) {
            (Some(pattern), _) => {
                Derived::given(Ready::Serial { pattern: pattern.as_str().to_owned() })
            }
            (None, Some(Ready::Serial { pattern })) => Derived::given(Ready::Serial { pattern }),
            (None, _) => {
                let message =
                    format!("nothing says which line on {name}'s serial console shows it is up");
                let help = "add `serial-pattern = \"login:\"`";
                work.refuse(at.span(), Limit::Recipe, message, help);
                Derived::given(Ready::Serial { pattern: String::new() })
            }
        },
    }
}
