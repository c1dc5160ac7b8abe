use super::*;
use crate::engine::remove_all;
use crate::error::{Error, Kind};
use crate::hypervisor::HypervisorKind;
use crate::lab::{JournalEntry, Resource};
use crate::plan::Remover;

fn vm(host: &str, guest: &str) -> Resource {
    Resource::Vm {
        host: host.into(),
        guest: guest.into(),
        hypervisor: HypervisorKind::Qemu,
        vm: format!("nestlab-demo-{guest}"),
        directory: format!("/labs/{guest}").into(),
    }
}

fn folder(host: &str, path: &str) -> Resource {
    Resource::Directory { host: host.into(), path: path.into() }
}

/// Removes everything but what is on a host that does not answer.
struct Reaches {
    not: &'static str,
    seen: Mutex<Vec<Resource>>,
}

#[async_trait]
impl Remover for Reaches {
    async fn remove(&self, resource: &Resource, _feed: &EventSink) -> Result<()> {
        self.seen.lock().expect("unpoisoned").push(resource.clone());
        if resource.host() == self.not {
            return Err(Error::new(Kind::Unreachable, "does not answer").on_host(self.not));
        }
        Ok(())
    }
}

async fn made(bench: &Bench, resources: &[Resource]) -> Journal {
    let journal = bench.journal();
    for resource in resources {
        let entry = JournalEntry::Creating { step: None, resource: resource.clone() };
        journal.append(entry).await.expect("writes");
    }
    journal
}

#[tokio::test]
async fn what_was_made_goes_the_newest_first_and_is_then_forgotten() {
    let bench = Bench::new();
    let resources = [folder("L0", "/seed.img"), vm("L0", "l1"), folder("L0", "/port")];
    let journal = made(&bench, &resources).await;
    let remover = Reaches { not: "nowhere", seen: Mutex::default() };
    let removal =
        remove_all(&journal, &remover, &EventSink::silent(), &CancellationToken::new()).await;
    let mut expected = resources.to_vec();
    expected.reverse();
    assert_eq!(removal.into_result().expect("all is gone"), expected);
    assert_eq!(*remover.seen.lock().expect("unpoisoned"), expected);
    assert!(bench.lab.resources().expect("reads").is_empty());
}

#[tokio::test]
async fn what_is_on_a_guest_goes_with_its_vm_and_the_guest_is_not_even_asked() {
    let bench = Bench::new();
    let resources =
        [vm("L0", "l1"), folder("l1", "/image.ova"), vm("l1", "l2"), folder("l2", "/x")];
    let journal = made(&bench, &resources).await;
    let remover = Reaches { not: "l1", seen: Mutex::default() };
    let removal =
        remove_all(&journal, &remover, &EventSink::silent(), &CancellationToken::new()).await;
    assert!(removal.left.is_empty(), "{:?}", removal.left);
    assert_eq!(removal.removed.last(), Some(&vm("L0", "l1")), "it is forgotten last");
    assert_eq!(removal.removed.len(), 4);
    assert_eq!(*remover.seen.lock().expect("unpoisoned"), [vm("L0", "l1")]);
    assert!(bench.lab.resources().expect("reads").is_empty());
}

#[tokio::test]
async fn what_is_on_a_guest_goes_by_itself_if_the_guests_vm_cannot_be_removed() {
    let bench = Bench::new();
    let resources =
        [vm("L0", "l1"), folder("l1", "/image.ova"), vm("l1", "l2"), folder("l2", "/x")];
    let journal = made(&bench, &resources).await;
    let remover = Reaches { not: "L0", seen: Mutex::default() };
    let removal =
        remove_all(&journal, &remover, &EventSink::silent(), &CancellationToken::new()).await;
    assert_eq!(removal.removed, [folder("l2", "/x"), vm("l1", "l2"), folder("l1", "/image.ova")]);
    let seen = [vm("L0", "l1"), vm("l1", "l2"), folder("l1", "/image.ova")];
    assert_eq!(*remover.seen.lock().expect("unpoisoned"), seen);
    assert_eq!(bench.lab.resources().expect("reads"), [vm("L0", "l1")]);
}

#[tokio::test]
async fn what_could_not_be_reached_is_named_and_stays_recorded() {
    let bench = Bench::new();
    let resources = [folder("L0", "/seed.img"), folder("adopted", "/image.ova")];
    let journal = made(&bench, &resources).await;
    let remover = Reaches { not: "adopted", seen: Mutex::default() };
    let removal =
        remove_all(&journal, &remover, &EventSink::silent(), &CancellationToken::new()).await;
    assert_eq!(removal.removed, [folder("L0", "/seed.img")]);
    let error = removal.into_result().expect_err("one is left");
    assert_eq!(error.kind(), Kind::Stuck);
    assert!(error.message().contains("directory /image.ova on adopted"), "{error:?}");
    assert_eq!(bench.lab.resources().expect("reads"), [folder("adopted", "/image.ova")]);
    let lock = journal.lock().clone();
    assert!(
        bench.lab.clone().remove(lock).is_err(),
        "a lab that still has things is not forgotten"
    );
}

#[tokio::test]
async fn an_interrupted_removal_goes_on_where_it_was() {
    let bench = Bench::new();
    let journal = made(&bench, &[folder("L0", "/a"), folder("L0", "/b")]).await;
    let cancel = CancellationToken::new();
    let user = cancel.clone();
    let events = EventSink::new(move |event| {
        if matches!(event, Event::StepDone { .. }) {
            user.cancel();
        }
    });
    let remover = Reaches { not: "nowhere", seen: Mutex::default() };
    let first = remove_all(&journal, &remover, &events, &cancel).await;
    assert_eq!(first.removed, [folder("L0", "/b")]);
    assert_eq!(first.into_result().expect_err("is not through").kind(), Kind::Interrupted);
    let second = remove_all(&journal, &remover, &events, &CancellationToken::new()).await;
    assert_eq!(second.into_result().expect("goes on"), [folder("L0", "/a")]);
    let lock = journal.lock().clone();
    drop(journal);
    bench.lab.clone().remove(lock).expect("nothing is left");
    assert!(!bench.lab.directory().exists());
}
