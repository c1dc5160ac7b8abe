//! What a step may write into the journal: what it makes, removes and finds.

use std::sync::Arc;

use camino::Utf8PathBuf;

use super::journal::Journal;
use super::record::{DiskImage, JournalEntry};
use super::resources::Resource;
use crate::error::{Error, Result};
use crate::hypervisor::HypervisorKind;

/// The part of the journal that a step writes. What it writes is durable when the method returns.
#[derive(Debug, Clone)]
pub struct JournalWriter {
    journal: Option<Journal>,
    step: Option<Arc<str>>,
}

impl JournalWriter {
    /// Returns a ledger in which nothing can be written, for those who only look: `plan`, `status`.
    pub fn closed() -> Self {
        JournalWriter { journal: None, step: None }
    }

    /// Returns whether it can be written in.
    pub(crate) fn is_open(&self) -> bool {
        self.journal.is_some()
    }

    /// Returns the ledger of the step `id`.
    pub fn of_step(journal: &Journal, id: &str) -> Self {
        JournalWriter { journal: Some(journal.clone()), step: Some(id.into()) }
    }

    /// Records that `resource` is about to exist. To be called before it does; a thing that is
    /// already recorded is not recorded twice.
    pub async fn creating(&self, resource: Resource) -> Result<()> {
        let step = self.step.as_deref().map(str::to_owned);
        self.journal()?.append_new(step, resource).await
    }

    /// Records that `resource` is gone. To be called after that was seen.
    pub async fn removed(&self, resource: Resource) -> Result<()> {
        self.journal()?.append(JournalEntry::Removed { resource }).await
    }

    /// Records that `resource` stays where it is when the lab ends.
    pub async fn left(&self, resource: Resource) -> Result<()> {
        self.journal()?.append(JournalEntry::Left { resource }).await
    }

    /// Records what a change is about to overwrite of a VM that existed before.
    pub async fn former(
        &self,
        host: &str,
        hypervisor: HypervisorKind,
        vm: &str,
        settings: serde_json::Value,
    ) -> Result<()> {
        let (host, vm) = (host.to_owned(), vm.to_owned());
        self.journal()?.append(JournalEntry::Former { host, hypervisor, vm, settings }).await
    }

    /// Records that a VM that existed before has its former settings again.
    pub async fn restored(&self, host: &str, vm: &str) -> Result<()> {
        self.journal()?
            .append(JournalEntry::Restored { host: host.to_owned(), vm: vm.to_owned() })
            .await
    }

    /// Records which image the disk of `guest` was made from. To be called once it was proven there.
    pub async fn made_from(&self, guest: &str, image: DiskImage) -> Result<()> {
        self.journal()?.append(JournalEntry::MadeFrom { guest: guest.to_owned(), image }).await
    }

    /// Records that what `guest` has is about to be moved to the folder `kept`.
    pub async fn replacing(&self, guest: &str, kept: Utf8PathBuf) -> Result<()> {
        self.journal()?.append(JournalEntry::Replacing { guest: guest.to_owned(), kept }).await
    }

    /// Records that it was moved.
    pub async fn replaced(&self, guest: &str) -> Result<()> {
        self.journal()?.append(JournalEntry::Replaced { guest: guest.to_owned() }).await
    }

    /// Records the evidence that `guest` is up, and where it is reached from its host.
    pub async fn ready(&self, guest: &str, evidence: &str, address: Option<String>) -> Result<()> {
        let (guest, evidence) = (guest.to_owned(), evidence.to_owned());
        self.journal()?.append(JournalEntry::Ready { guest, evidence, address }).await
    }

    /// Records that `guest` was stopped.
    pub async fn stopped(&self, guest: &str) -> Result<()> {
        self.journal()?.append(JournalEntry::Stopped { guest: guest.to_owned() }).await
    }

    fn journal(&self) -> Result<&Journal> {
        self.journal
            .as_ref()
            .ok_or_else(|| Error::internal("something was changed while nestlab was only looking"))
    }
}
