//! What VirtualBox has beyond [`Hypervisor`](crate::hypervisor::Hypervisor): the Host Key, the former
//! settings of a VM that was there before nestlab, and how a guest executes.

use std::collections::BTreeMap;

use camino::Utf8Path;

use super::diff::SNAPSHOT_BEFORE;
use super::driver::{VirtualBox, snapshot_uuid, there};
use super::manage::Manage;
use super::saved_settings::SavedSettings;
use super::version::Spelling;
use super::{machine, parse, start};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::host::{Command, Host};
use crate::hypervisor::{GuestSpec, Stop};
use crate::recipe::hostkey::{HostKey, Platform};

/// The extra data under which VirtualBox's windows keep their Host Key.
const HOST_KEY: &str = "GUI/Input/HostKeyCombination";

/// What VBoxManage calls VirtualBox itself where a VM may be named; VMs are named by UUID here.
pub(crate) const GLOBAL: &str = "global";

impl VirtualBox {
    /// Returns the Host Key of VirtualBox's windows on `host`; `None` if it has been set to no key.
    pub async fn host_key(&self, host: &dyn Host) -> Result<Option<HostKey>> {
        let manage = self.manage(host).await?;
        let codes = host_key_codes(&manage).await?;
        let platform = platform(host, &manage.installed().program).await?;
        HostKey::from_codes(codes.as_deref(), platform)
            .map_err(|message| Error::failed(message).on_host(host.name()))
    }

    /// Sets the Host Key of VirtualBox's windows on `host`.
    ///
    /// # Errors
    /// [`Kind::HostCannot`] if that system has no such key.
    pub async fn set_host_key(&self, host: &dyn Host, key: &HostKey) -> Result<()> {
        let manage = self.manage(host).await?;
        let platform = platform(host, &manage.installed().program).await?;
        let codes = key.codes(platform).ok_or_else(|| {
            Error::new(Kind::HostCannot, format!("there is no key {key} on {platform}"))
                .on_host(host.name())
        })?;
        manage.run(&["setextradata", GLOBAL, HOST_KEY, &codes]).await?;
        Ok(())
    }

    /// Returns the Host Key of VirtualBox's windows on `host` as it is, to be given back by
    /// [`VirtualBox::restore_former`].
    pub async fn former_host_key(&self, host: &dyn Host) -> Result<SavedSettings> {
        let manage = self.manage(host).await?;
        let codes = host_key_codes(&manage).await?;
        Ok(SavedSettings {
            vm: GLOBAL.to_owned(),
            name: "VirtualBox".to_owned(),
            settings: BTreeMap::from([(HOST_KEY.to_owned(), codes)]),
        })
    }

    /// Returns the command that sets the Host Key on a host of `platform`, for a plan; `None` if such
    /// hosts have no such key.
    pub fn host_key_command(key: &HostKey, platform: Platform) -> Option<Command> {
        let set = ["setextradata", GLOBAL, HOST_KEY];
        Some(Command::new("VBoxManage").args(set).arg(key.codes(platform)?))
    }

    /// Gives an existing VM the settings back that it had before nestlab changed it. A VM that is gone
    /// has nothing to be given back.
    pub async fn restore_former(
        &self,
        host: &dyn Host,
        former: &SavedSettings,
        events: &EventSink,
    ) -> Result<()> {
        let manage = self.manage(host).await?;
        if former.vm == GLOBAL {
            return restore_global(&manage, former).await;
        }
        let spelling = Spelling::of(&manage.installed().version);
        let Some(actual) = machine::show(&manage, &former.vm).await? else {
            return unreadable_or_gone(&manage, former).await;
        };
        let way_back = former.way_back(&actual.settings, spelling);
        if way_back.is_empty() {
            return Ok(());
        }
        self.power_off(&manage, &actual, &former.name, Stop::Ask, events).await?;
        for (setting, args) in way_back {
            events.doing(format!("restoring {setting}"));
            let command = manage.command(["modifyvm", &former.vm]).args(args);
            manage.run_command(&command, events).await?;
        }
        let left = match machine::show(&manage, &former.vm).await? {
            Some(actual) => former.way_back(&actual.settings, spelling),
            None => Vec::new(),
        };
        if left.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = left.iter().map(|(setting, _)| setting.as_str()).collect();
        Err(Error::failed(format!("{} did not get back: {}", former.name, names.join(", ")))
            .on_host(host.name()))
    }

    /// Makes an existing VM what it was when the snapshot before its first change was taken, whatever it does
    /// now, and removes that snapshot; returns whether there is one.
    pub async fn restore_snapshot_before(
        &self,
        host: &dyn Host,
        vm: &str,
        events: &EventSink,
    ) -> Result<bool> {
        let manage = self.manage(host).await?;
        let Some(actual) = machine::show(&manage, vm).await? else { return Ok(false) };
        let Some(snapshot) = snapshot_uuid(&actual, SNAPSHOT_BEFORE) else { return Ok(false) };
        machine::stop(&manage, &actual, Stop::PowerOff, machine::SETTLES, events).await?;
        events.doing(format!("restoring the snapshot {SNAPSHOT_BEFORE}"));
        manage.run(&["snapshot", vm, "restore", &snapshot]).await?;
        events.doing(format!("removing the snapshot {SNAPSHOT_BEFORE}"));
        manage.run(&["snapshot", vm, "delete", &snapshot]).await?;
        Ok(true)
    }

    /// Returns how VirtualBox executes the guest, as the log of its run tells: `HM: HMR3Init: AMD-V w/
    /// nested paging`.
    pub async fn execution(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Option<String>> {
        let manage = self.manage(host).await?;
        Ok(start::execution(host, &there(&manage, spec).await?).await)
    }
}

/// Returns the key codes that VirtualBox itself keeps as its Host Key; `None`: none were ever set.
async fn host_key_codes(manage: &Manage<'_>) -> Result<Option<String>> {
    let answer = manage.run(&["getextradata", GLOBAL, HOST_KEY]).await?;
    Ok(parse::value(&answer))
}

/// Gives VirtualBox itself its extra data back; one without a value is unset again.
async fn restore_global(manage: &Manage<'_>, former: &SavedSettings) -> Result<()> {
    for (key, value) in &former.settings {
        let set = ["setextradata", GLOBAL, key].into_iter().chain(value.as_deref());
        manage.run(&set.collect::<Vec<_>>()).await?;
    }
    Ok(())
}

/// A VM that is gone has nothing to be given back; one whose settings file cannot be read has, later.
async fn unreadable_or_gone(manage: &Manage<'_>, former: &SavedSettings) -> Result<()> {
    if machine::listed(manage).await?.iter().any(|vm| vm.uuid == former.vm) {
        return Err(Error::failed(format!("the settings of {} cannot be read", former.name))
            .on_host(manage.host().name())
            .hint("is its settings file still there, and does this user own it?"));
    }
    Ok(())
}

/// Returns whose key codes the VirtualBox `program` on `host` uses.
async fn platform(host: &dyn Host, program: &Utf8Path) -> Result<Platform> {
    if program.as_str().ends_with(".exe") {
        return Ok(Platform::Windows);
    }
    let system = host.check(&Command::new("uname").arg("-s")).await?.text();
    Ok(if system.trim() == "Darwin" { Platform::MacOs } else { Platform::Linux })
}
