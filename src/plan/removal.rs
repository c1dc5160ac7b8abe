//! Takes away what a lab made, thing by thing.

use async_trait::async_trait;
use camino::Utf8Path;
use serde::Deserialize as _;

use super::adoption;
use super::blueprint::Machine;
use super::machines::Machines;
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::host::{Command, Host};
use crate::hypervisor::VmOrigin;
use crate::hypervisor::virtualbox::SavedSettings;
use crate::lab::resources::Adopted;
use crate::lab::{Journal, JournalWriter, Resource};

/// Knows how to remove a thing. Removing what is not there succeeds.
#[async_trait]
pub trait Remover: Send + Sync {
    /// Removes `resource` and returns once it was seen to be gone.
    async fn remove(&self, resource: &Resource, events: &EventSink) -> Result<()>;
}

#[async_trait]
impl Remover for Machines {
    async fn remove(&self, resource: &Resource, events: &EventSink) -> Result<()> {
        match resource {
            Resource::Vm { guest, .. } => {
                let machine = self.blueprint().machine_of(self.lab(), resource)?;
                let vm = self.vm_handle(&machine).await?;
                let spec = &vm.machine.spec;
                vm.hypervisor.destroy(&*vm.host, spec, events).await?;
                self.forget(guest).await;
                remove_if_empty(&*vm.host, spec.directory.parent()).await
            }
            Resource::Directory { host, path } => {
                let host = self.host_in_journal(host).await?;
                let remove =
                    Command::new("rm").args(["-rf", "--one-file-system", "--", path.as_str()]);
                host.check(&remove).await.map(drop)
            }
            Resource::KnownHost { guest } => self.lab().known_hosts().remove(guest),
        }
    }
}

/// Removes the folder that a lab's guests on `host` share, once the last of them is gone.
async fn remove_if_empty(host: &dyn Host, folder: Option<&Utf8Path>) -> Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    let remove = Command::new("rmdir").args(["--ignore-fail-on-non-empty", "--", folder.as_str()]);
    // Where there is none, there is nothing to do.
    host.run(&remove).await.map(drop)
}

impl Machines {
    /// Gives a VM that existed before its former settings back, and records that.
    ///
    /// # Errors
    /// [`Kind::Stuck`] for settings that cannot be read; those of VirtualBox.
    pub async fn restore(
        &self,
        adopted: &Adopted,
        journal: &Journal,
        events: &EventSink,
    ) -> Result<()> {
        let host = self.host_in_journal(&adopted.host).await?;
        let former = former(adopted)?;
        events.notice(Level::Info, format!("{} gets its former settings back", former.name));
        self.drivers().virtualbox.restore_former(&*host, &former, events).await?;
        let journal = JournalWriter::of_step(journal, "restore");
        journal.restored(&adopted.host, &adopted.vm).await?;
        adoption::give_back(self.lab(), adopted)
    }

    /// Makes a VM that existed before what it was when the recipe's `snapshot-before` was taken, and removes
    /// that snapshot; returns whether there is one.
    pub async fn restore_snapshot(&self, adopted: &Adopted, events: &EventSink) -> Result<bool> {
        let host = self.host_in_journal(&adopted.host).await?;
        self.drivers().virtualbox.restore_snapshot_before(&*host, &adopted.vm, events).await
    }
}

/// Returns what the VM was before nestlab's first change.
fn former(adopted: &Adopted) -> Result<SavedSettings> {
    let mut formers = adopted.settings.iter().map(|settings| {
        SavedSettings::deserialize(settings).map_err(|error| {
            Error::new(Kind::Stuck, format!("the former settings of {}", adopted.vm))
                .with_source(error)
        })
    });
    let first = formers.next().ok_or_else(|| Error::internal("nothing was written down"))?;
    let mut former = first?;
    for later in formers {
        former.add_later(later?);
    }
    Ok(former)
}

impl Machine {
    /// Returns what `up` put into the VM, which existed before, that stays there when the lab is destroyed.
    pub fn keeps(&self) -> Vec<&'static str> {
        let mut kept = Vec::new();
        if self.inner.is_some() || !self.packages.is_empty() {
            kept.push("the packages that were installed and upgraded in it");
            kept.push("/var/lib/nestlab");
        }
        if let VmOrigin::Existing { snapshot_before: true, .. } = self.spec.origin {
            kept.push("the snapshot nestlab-before");
        }
        kept
    }
}
