//! Takes away what a lab made, thing by thing.

use async_trait::async_trait;
use camino::Utf8Path;

use super::machines::Machines;
use crate::error::{Error, Kind, Result};
use crate::event::{Feed, Level};
use crate::host::{Command, Host};
use crate::hypervisor::virtualbox::Former;
use crate::lab::{Journal, Ledger, Resource, resources};

/// Knows how to remove a thing. Removing what is not there succeeds.
#[async_trait]
pub trait Remover: Send + Sync {
    /// Removes `resource` and returns once it was seen to be gone.
    async fn remove(&self, resource: &Resource, feed: &Feed) -> Result<()>;
}

#[async_trait]
impl Remover for Machines {
    async fn remove(&self, resource: &Resource, feed: &Feed) -> Result<()> {
        match resource {
            Resource::Vm { host, guest, .. } => {
                let host = self.host(host).await?;
                let machine = self.blueprint().machine_of(self.lab(), resource)?;
                let driver = self.driver(machine.outer);
                driver.destroy(&*host, &machine.spec, feed).await?;
                self.forget(guest).await;
                remove_if_empty(&*host, machine.spec.directory.parent()).await
            }
            Resource::Directory { host, path } => {
                let host = self.host(host).await?;
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
    /// Gives every VM that existed before its former settings back.
    ///
    /// # Errors
    /// The first failure; what was restored until then is recorded.
    pub async fn restore_adopted(&self, journal: &Journal, feed: &Feed) -> Result<()> {
        let ledger = Ledger::of_step(journal, "restore");
        for adopted in resources::adopted(&journal.records()) {
            let mut formers = adopted.settings.into_iter().map(|settings| {
                serde_json::from_value::<Former>(settings).map_err(|error| {
                    Error::new(Kind::Stuck, format!("the former settings of {}", adopted.vm))
                        .because(error)
                })
            });
            let Some(mut former) = formers.next().transpose()? else { continue };
            for later in formers {
                former.add_later(later?);
            }
            let host = self.host(&adopted.host).await?;
            feed.notice(Level::Info, format!("{} gets its former settings back", former.name));
            self.drivers().virtualbox.restore_former(&*host, &former, feed).await?;
            ledger.restored(&adopted.host, &adopted.vm).await?;
        }
        Ok(())
    }
}
