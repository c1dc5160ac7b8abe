//! CPUs: a guest has at most one fewer than its host, never under one. An outermost guest gets all of
//! them; a deeper one starts with one. An existing VM keeps its own, as far as it runs no guests.

use super::settled::settled;
use super::{Derived, Limit, Resolver};
use crate::recipe::Constraint;
use crate::recipe::units::Cpus;

pub(super) fn derive(work: &mut Resolver<'_>) -> Vec<Derived<Constraint<Cpus>>> {
    let mut derived: Vec<Derived<Constraint<Cpus>>> = Vec::new();
    for guest in work.recipe.guests() {
        let parent = work.parent_index(guest);
        let (most, of, limit) = match parent {
            None => {
                let cores = work.host.cores;
                (
                    cores.one_fewer(),
                    format!("L0's {}", counted(cores, "physical core")),
                    Limit::Host,
                )
            }
            Some(index) => {
                let cpus = &derived[index];
                let count = cpus.value.known().unwrap_or(Cpus::ONE);
                let name = &work.recipe.guests()[index].name.value;
                // What L1 has by derivation is L0's doing; every other number stands in the recipe.
                let outermost = work.recipe.guests()[index].level == 1;
                let limit = if outermost && !cpus.given { Limit::Host } else { Limit::Recipe };
                (count.one_fewer(), format!("{name}'s {}", counted(count, "CPU")), limit)
            }
        };
        let cpus = match &guest.cpus {
            Some(given) => {
                if given.value > most && !guest.overcommit {
                    let wanted = counted(given.value, "CPU");
                    let message = format!(
                        "{} is to have {wanted}, and one fewer than {of} is {most}",
                        guest.name.value
                    );
                    let help = format!("write `cpus = {most}`, or add `overcommit = true`");
                    work.refuse(given.span(), limit, message, help);
                }
                Derived::given(Constraint::Exactly(given.value))
            }
            None if guest.is_existing() && guest.hypervisor.is_none() => {
                Derived::because(Constraint::Unchanged, "an existing VM keeps its CPUs")
            }
            None if guest.is_existing() => Derived::because(
                Constraint::AtMost { most },
                format!("an existing VM keeps its CPUs, up to one fewer than {of}"),
            ),
            None if parent.is_none() => {
                Derived::because(Constraint::Exactly(most), format!("one fewer than {of}"))
            }
            None => Derived::because(Constraint::Exactly(Cpus::ONE), start(work.image(guest).cpus)),
        };
        derived.push(settled(cpus, work.kept(guest).cpus));
    }
    derived
}

/// Why a deeper guest has one CPU, with what its image would have had.
fn start(image: Option<Cpus>) -> String {
    match image {
        Some(cpus) if cpus > Cpus::ONE => {
            format!("a deeper guest starts with 1; its image comes with {cpus}")
        }
        _ => "a deeper guest starts with 1".to_owned(),
    }
}

fn counted(count: Cpus, what: &str) -> String {
    if count == Cpus::ONE { format!("1 {what}") } else { format!("{count} {what}s") }
}
