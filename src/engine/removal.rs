//! Removes what a lab made, at every level that still answers, and says what it could not reach.

use std::collections::{BTreeMap, VecDeque};

use tokio_util::sync::CancellationToken;

use super::until_safe_point;
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::lab::{Journal, JournalEntry, Resource};
use crate::plan::Remover;

/// What a removal came to.
#[derive(Debug, Default)]
pub struct Removal {
    /// What is gone, in the order in which it went.
    pub removed: Vec<Resource>,
    /// What is still there, or may be, and why.
    pub left: Vec<(Resource, Error)>,
}

impl Removal {
    /// Returns what was removed, or an error that names what was not.
    ///
    /// # Errors
    /// [`Kind::Interrupted`], else [`Kind::Stuck`] with every thing that is left.
    pub fn into_result(self) -> Result<Vec<Resource>> {
        let Some((first, error)) = self.left.first() else { return Ok(self.removed) };
        let kind = match error.kind() {
            Kind::Interrupted => Kind::Interrupted,
            _ => Kind::Stuck,
        };
        let line = |(resource, error): &(Resource, Error)| {
            let causes = error.causes().into_iter().map(|cause| format!(": {cause}"));
            format!("{resource}: {error}{}", causes.collect::<String>())
        };
        let names: Vec<String> = self.left.iter().map(line).collect();
        Err(Error::new(kind, format!("{} could not be removed, first {first}", self.left.len()))
            .tail(names.join("\n").as_bytes())
            .hint("run the same destroy again when it can be reached; the rest is gone"))
    }
}

/// Removes what the journal names, the newest first, and records each removal. What fails does not
/// keep the rest from going. What is on a guest goes with the guest's VM, without asking the guest, which
/// may hang; only if that VM cannot be removed does each thing on it go by itself.
pub async fn remove_all(
    journal: &Journal,
    remover: &dyn Remover,
    events: &EventSink,
    cancel: &CancellationToken,
) -> Removal {
    remove(journal, journal.resources(), remover, events, cancel).await
}

/// Removes `resources`, the newest first, as [`remove_all`] does.
pub async fn remove(
    journal: &Journal,
    resources: Vec<Resource>,
    remover: &dyn Remover,
    events: &EventSink,
    cancel: &CancellationToken,
) -> Removal {
    let mut removal = Removal::default();
    let mut waiting = VecDeque::from(outermost_first(resources));
    while let Some(resource) = waiting.pop_front() {
        if cancel.is_cancelled() {
            let error = Error::new(Kind::Interrupted, "interrupted")
                .hint("run the same destroy again to go on");
            removal.left.push((resource, error));
            continue;
        }
        let inside = inside_of(&resource, &waiting);
        match remove_one(journal, remover, &resource, &inside, events, cancel).await {
            Ok(()) => {
                waiting.retain(|resource| !inside.contains(resource));
                removal.removed.extend(inside);
                removal.removed.push(resource);
            }
            Err(error) => removal.left.push((resource, error)),
        }
    }
    removal
}

/// Orders things by how many of the VMs among them they are inside of; those of one depth stay in order.
fn outermost_first(mut resources: Vec<Resource>) -> Vec<Resource> {
    let hosts: BTreeMap<String, String> = resources
        .iter()
        .filter_map(|vm| Some((vm.carries()?.to_owned(), vm.host().to_owned())))
        .collect();
    resources.sort_by_key(|resource| {
        let around = std::iter::successors(hosts.get(resource.host()), |host| hosts.get(*host));
        // A journal that says that a guest is inside itself is no reason to go on for ever.
        around.take(hosts.len()).count()
    });
    resources
}

/// Removes `resource`, a VM with what is `inside` of it.
async fn remove_one(
    journal: &Journal,
    remover: &dyn Remover,
    resource: &Resource,
    inside: &[Resource],
    events: &EventSink,
    cancel: &CancellationToken,
) -> Result<()> {
    let (step, title) = (format!("remove/{resource}"), format!("remove {resource}"));
    let remove =
        async |events: &EventSink| until_safe_point(cancel, remover.remove(resource, events)).await;
    events.step(&step, &title, "the lab made it", remove).await?;
    // The VM comes last: as long as it is recorded, what is recorded inside of it can be removed with it.
    for gone in inside.iter().chain([resource]) {
        journal.append(JournalEntry::Removed { resource: gone.clone() }).await?;
    }
    Ok(())
}

/// Returns what of `others` goes with `resource`, if that is a VM: what is on the guest, at any depth.
fn inside_of(resource: &Resource, others: &VecDeque<Resource>) -> Vec<Resource> {
    let mut guests: Vec<&str> = resource.carries().into_iter().collect();
    let mut inside: Vec<Resource> = Vec::new();
    while let Some(guest) = guests.pop() {
        let on_it = others.iter().filter(|other| other.host() == guest && !inside.contains(other));
        let on_it: Vec<&Resource> = on_it.collect();
        guests.extend(on_it.iter().filter_map(|resource| resource.carries()));
        inside.extend(on_it.into_iter().cloned());
    }
    // The deepest first.
    inside.reverse();
    inside
}
