//! Memory: the guests of one host fit into it together, beside its own system. What is left out comes
//! from the inside out: a guest with guests gets what they need and a reserve. An existing VM keeps its own,
//! unless its guests need more.

use super::settled::settled;
use super::{Derived, Limit, Resolver};
use crate::recipe::Constraint;
use crate::recipe::model::Guest;
use crate::recipe::units::Mebibytes;

/// What a guest gets of whose image nothing is known.
const UNKNOWN_IMAGE: Mebibytes = Mebibytes::gib(1);

/// What a guest with guests has at least where VirtualBox's kernel modules are built in it, or nothing is
/// known of its image: compilers and apt run before its guests do.
const HOST_LEAST: Mebibytes = Mebibytes::gib(2);

/// Derived amounts are multiples of this many MiB.
const GRAIN: u64 = 256;

/// Returns how much of a host's memory its own system keeps: an eighth, at least 512 MiB, which a
/// Debian without a desktop and the VMs' own overhead take, and at most 2 GiB.
pub fn reserve(total: Mebibytes) -> Mebibytes {
    mebibytes((total.get() / 8).clamp(512, 2048))
}

pub(super) fn derive(work: &mut Resolver<'_>) -> Vec<Derived<Constraint<Mebibytes>>> {
    let guests = work.recipe.guests();
    let mut memory: Vec<Option<Derived<Constraint<Mebibytes>>>> = vec![None; guests.len()];
    // Guests stand after their parents: from the end on, all children of a guest are known.
    for (index, guest) in guests.iter().enumerate().rev() {
        let children = work.children(Some(&guest.name.value));
        let inside: u64 =
            children.iter().filter_map(|&child| memory[child].as_ref()).map(mib).sum();
        let derived = match &guest.memory {
            Some(given) => Derived::given(Constraint::Exactly(given.value)),
            None if guest.is_existing() => of_existing(guest, inside),
            None => of_guest(work, guest, inside).map(Constraint::Exactly),
        };
        memory[index] = Some(settled(derived, work.kept(guest).memory));
    }
    let memory: Vec<_> = memory.into_iter().flatten().collect();
    check(work, None, work.host.memory, &memory);
    for (guest, amount) in guests.iter().zip(&memory) {
        if let Some(total) = amount.value.known() {
            check(work, Some(guest), total, &memory);
        }
    }
    memory
}

/// Returns how much is known to be taken; what an existing VM keeps is not.
fn mib(memory: &Derived<Constraint<Mebibytes>>) -> u64 {
    memory.value.known().map_or(0, Mebibytes::get)
}

/// Returns the memory of an existing VM that the recipe gives none, whose own guests need `inside` MiB.
fn of_existing(guest: &Guest, inside: u64) -> Derived<Constraint<Mebibytes>> {
    if guest.hypervisor.is_none() {
        return Derived::because(Constraint::Unchanged, "an existing VM keeps its memory");
    }
    let least = mebibytes(with_reserve(inside)).max(HOST_LEAST);
    let why = match inside {
        0 => "an existing VM keeps its memory; this much it needs as a host".to_owned(),
        _ => format!("an existing VM keeps its memory; its guests need {}", mebibytes(inside)),
    };
    Derived::because(Constraint::AtLeast { least }, why)
}

/// Returns the memory of a guest that the recipe gives none, whose own guests need `inside` MiB.
fn of_guest(work: &Resolver<'_>, guest: &Guest, inside: u64) -> Derived<Mebibytes> {
    let image = work.image(guest).memory;
    if guest.hypervisor.is_none() {
        return match image {
            Some(memory) => Derived::because(memory, "its image wants this much"),
            None => Derived::because(UNKNOWN_IMAGE, "nothing says how much it needs"),
        };
    }
    let own = image.map_or(0, Mebibytes::get);
    let fits = with_reserve(inside).max(grained(inside.saturating_add(own)));
    let builds = guest.runs_virtualbox() || image.is_none();
    if builds && fits <= HOST_LEAST.get() {
        return Derived::because(
            HOST_LEAST,
            "enough to install a hypervisor in it, and for its guests",
        );
    }
    let why = match inside {
        0 => "for its own system".to_owned(),
        _ => format!("its guests need {}, the rest is for itself", mebibytes(inside)),
    };
    Derived::because(mebibytes(fits), why)
}

/// Returns the least total, a multiple of [`GRAIN`], that leaves `inside` MiB beside its reserve.
fn with_reserve(inside: u64) -> u64 {
    // With r = inside/7 rounded up, an eighth of inside + r is at most r.
    grained(inside.saturating_add(inside.div_ceil(7).clamp(512, 2048)))
}

fn grained(mib: u64) -> u64 {
    mib.div_ceil(GRAIN).saturating_mul(GRAIN)
}

/// Checks that the guests of `parent` (`None`: L0), which has `total`, fit into it.
fn check(
    work: &mut Resolver<'_>,
    parent: Option<&Guest>,
    total: Mebibytes,
    memory: &[Derived<Constraint<Mebibytes>>],
) {
    let children = work.children(parent.map(|guest| &guest.name.value));
    let wanted: u64 = children.iter().map(|&child| mib(&memory[child])).sum();
    let kept = reserve(total);
    let left = total.get().saturating_sub(kept.get());
    if wanted <= left {
        return;
    }
    let (name, limit) = match parent {
        None => ("L0", Limit::Host),
        Some(guest) => (guest.name.as_str(), Limit::Recipe),
    };
    let guests = work.recipe.guests();
    let who = match children.as_slice() {
        [only] => format!("{} is", guests[*only].name.value),
        _ => format!("the {} guests of {name} are together", children.len()),
    };
    let message = format!(
        "{who} to have {}, and {name} has {total}, of which {kept} are for its own system",
        mebibytes(wanted),
    );
    let help = match parent {
        None => format!("at most {} can be given away here", shown(left)),
        Some(_) => format!(
            "give {name} at least `memory = \"{}\"`, or its guests at most {}",
            mebibytes(with_reserve(wanted)),
            shown(left),
        ),
    };
    // The largest amount that the recipe gives is the one to lower; without one, the first guest.
    let place = children
        .iter()
        .filter_map(|&child| guests[child].memory.as_ref())
        .max_by_key(|at| at.value)
        .map_or_else(|| guests[children[0]].name.span(), |at| at.span());
    work.refuse(place, limit, message, help);
}

fn shown(mib: u64) -> String {
    Mebibytes::new(mib).map_or_else(|| "nothing".to_owned(), |amount| amount.to_string())
}

/// Returns `mib` MiB, brought into what an amount can hold.
fn mebibytes(mib: u64) -> Mebibytes {
    Mebibytes::new(mib.clamp(1, u64::MAX >> 20)).expect("the amount was brought into range")
}
