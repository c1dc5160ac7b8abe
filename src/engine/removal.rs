//! Removes what a lab made, at every level that still answers, and says what it could not reach.

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};
use crate::event::{Event, Failure, Feed, millis};
use crate::lab::{Entry, Journal, Resource};
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
        let names: Vec<String> =
            self.left.iter().map(|(resource, error)| format!("{resource}: {error}")).collect();
        Err(Error::new(kind, format!("{} could not be removed, first {first}", self.left.len()))
            .tail(names.join("\n").as_bytes())
            .hint("run the same destroy again when it can be reached; the rest is gone"))
    }
}

/// Removes what the journal names, the newest first, and records each removal. What fails does not
/// keep the rest from going; what was on a guest is gone once the guest's VM is.
pub async fn remove_all(
    journal: &Journal,
    remover: &dyn Remover,
    feed: &Feed,
    cancel: &CancellationToken,
) -> Removal {
    let mut removal = Removal::default();
    for resource in journal.resources() {
        if cancel.is_cancelled() {
            let error = Error::new(Kind::Interrupted, "interrupted")
                .hint("run the same destroy again to go on");
            removal.left.push((resource, error));
            continue;
        }
        match remove_one(journal, remover, &resource, feed).await {
            Ok(()) => {
                let carried = resource.carries().map(str::to_owned);
                removal.removed.push(resource);
                if let Some(guest) = carried {
                    gone_with(journal, &mut removal, &guest).await;
                }
            }
            Err(error) => removal.left.push((resource, error)),
        }
    }
    removal
}

async fn remove_one(
    journal: &Journal,
    remover: &dyn Remover,
    resource: &Resource,
    feed: &Feed,
) -> Result<()> {
    let began = std::time::Instant::now();
    let (step, title) = (format!("remove/{resource}"), format!("remove {resource}"));
    let feed = feed.for_step(&step);
    feed.send(Event::StepStarted {
        step: step.clone(),
        title: title.clone(),
        why: "the lab made it".to_owned(),
    });
    let removed = remover.remove(resource, &feed).await;
    match &removed {
        Ok(()) => {
            feed.send(Event::StepDone { step, title, millis: millis(began.elapsed()) });
        }
        Err(error) => {
            feed.send(Event::StepFailed { step, title, failure: Failure::from(error) });
        }
    }
    removed?;
    journal.append(Entry::Removed { resource: resource.clone() }).await
}

/// Takes from what is left all that was on `guest`, at any depth: its VM is gone, and its disk.
async fn gone_with(journal: &Journal, removal: &mut Removal, guest: &str) {
    let mut guests = vec![guest.to_owned()];
    while let Some(guest) = guests.pop() {
        let (gone, left): (Vec<_>, Vec<_>) = std::mem::take(&mut removal.left)
            .into_iter()
            .partition(|(resource, _)| resource.host() == guest);
        removal.left = left;
        for (resource, _) in gone {
            match journal.append(Entry::Removed { resource: resource.clone() }).await {
                Ok(()) => {
                    guests.extend(resource.carries().map(str::to_owned));
                    removal.removed.push(resource);
                }
                Err(error) => removal.left.push((resource, error)),
            }
        }
    }
}
