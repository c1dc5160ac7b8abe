//! Disk: a guest's disk is not smaller than its image, and a host has room for what its guests take at
//! the start. Disks grow as they fill, so their full sizes need not fit together.

use super::{Derived, Limit, Resolver};
use crate::recipe::model::{Guest, GuestSource};
use crate::recipe::units::Mebibytes;

/// What an image and a fresh disk of it take, where nothing is known (MiB).
const UNKNOWN_ROOM: u64 = 1024;

/// What a system with a hypervisor takes more: its packages, a compiler and kernel headers for
/// VirtualBox's modules, the packages' files on the way (MiB).
const HYPERVISOR_ROOM: u64 = 4096;

/// The least disk that a guest with guests gets, where nothing is given.
const HOST_LEAST: Mebibytes = Mebibytes::gib(20);

pub(super) fn derive(work: &mut Resolver<'_>) -> Vec<Derived<Option<Mebibytes>>> {
    let guests = work.recipe.guests();
    let mut rooms = vec![0; guests.len()];
    for (index, guest) in guests.iter().enumerate().rev() {
        rooms[index] = room(work, guest, &rooms);
    }
    let outermost: u64 = work.children(None).iter().map(|&child| rooms[child]).sum();
    if let Some(free) = work.host.free_disk
        && outermost > free.get()
    {
        let message = format!(
            "the lab takes {} of disk space at the least, and L0 has {free} free",
            mebibytes(outermost)
        );
        let help = "free some, or keep labs elsewhere with `--state-dir` and `--cache-dir`";
        work.refuse(guests[0].name.span(), Limit::Host, message, help);
    }
    guests.iter().zip(&rooms).map(|(guest, &room)| of_guest(work, guest, room)).collect()
}

/// Returns the room in MiB that `guest` takes on its host, its own guests included; `rooms` holds it
/// for the guests after it.
fn room(work: &Resolver<'_>, guest: &Guest, rooms: &[u64]) -> u64 {
    let own = match guest.source {
        GuestSource::Existing { .. } => 0,
        GuestSource::Image(_) => work.image(guest).room.map_or(UNKNOWN_ROOM, Mebibytes::get),
    };
    let hypervisor = if guest.hypervisor.is_some() { HYPERVISOR_ROOM } else { 0 };
    let children = work.children(Some(&guest.name.value));
    let inside: u64 = children.iter().map(|&child| rooms[child]).sum();
    own.saturating_add(hypervisor).saturating_add(inside)
}

fn of_guest(work: &mut Resolver<'_>, guest: &Guest, room: u64) -> Derived<Option<Mebibytes>> {
    let image = work.image(guest).disk;
    let Some(given) = &guest.disk else {
        return match guest.source {
            GuestSource::Existing { .. } => Derived::because(None, "an existing VM keeps its disk"),
            GuestSource::Image(_) if guest.hypervisor.is_none() => {
                Derived::because(None, "its image's own size")
            }
            GuestSource::Image(_) => {
                // Twice what the guests take at the start, since they will be used.
                let wanted = mebibytes(room.saturating_mul(2)).max(HOST_LEAST);
                let disk = image.map_or(wanted, |image| image.max(wanted));
                Derived::because(Some(disk), "room for its guests; it grows as it fills")
            }
        };
    };
    let name = &guest.name.value;
    if let Some(image) = image.filter(|image| given.value < *image) {
        let message =
            format!("{name} is to have {} of disk, and its image has {image}", given.value);
        work.refuse(
            given.span(),
            Limit::Recipe,
            message,
            format!("write `disk = \"{image}\"` or more"),
        );
    } else if guest.hypervisor.is_some() && given.get() < room {
        let message = format!("{name} and its guests take {} at the least", mebibytes(room));
        work.refuse(given.span(), Limit::Recipe, message, "give it more, or leave the disk out");
    }
    Derived::given(Some(given.value))
}

/// Returns `mib` MiB, rounded up to GiB for reading and brought into what an amount can hold.
fn mebibytes(mib: u64) -> Mebibytes {
    let rounded = mib.div_ceil(1024).saturating_mul(1024);
    Mebibytes::new(rounded.clamp(1, u64::MAX >> 20)).expect("the amount was brought into range")
}
