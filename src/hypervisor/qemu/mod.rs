//! QEMU, on KVM where a guest really runs on it, else TCG.
//!
//! QEMU keeps no registry, so a VM is its folder: `guest.json` says what it is, and a process with the
//! VM's UUID among its arguments is it running. Everything else follows from these two.
//!
//! | module | what it is for |
//! |---|---|
//! | [`probe`], [`trial`] | find QEMU, and try how guests execute |
//! | [`micro_guest`] | the guest that shows whether they do |
//! | [`definition`] | `guest.json`, and what differs from it |
//! | [`argv`] | the command line; pure |
//! | [`loopback`] | what keeps a guest from its host's loopback |
//! | [`vm`] | the VM as it is: its definition, its process, its QMP |
//! | [`power`] | start and stop |
//! | [`screen`], [`snapshot`] | what QEMU does with a VM |
//! | [`scripts`] | every command that runs on the host |
//! | [`qmp`] | the protocol |

mod accel_probe;
mod argv;
mod definition;
mod folder;
mod install;
mod loopback;
mod micro_guest;
mod power;
mod probe;
pub mod qmp;
mod sandbox;
mod screen;
mod scripts;
mod snapshot;
#[cfg(test)]
mod test_support;
mod vm;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};

use self::definition::Definition;
use self::folder::Folder;
use self::install::QemuInstall;
pub use self::micro_guest::MicroGuestResult;
use self::snapshot::Restored;
use self::vm::QemuVm;
use super::{
    Acceleration, Actual, Change, Firmware, FoundVm, GuestSpec, Hypervisor, HypervisorKind,
    LogFile, Power, Probe, Remains, Stop, VmOrigin,
};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::host::{Command, Host, StreamAddress, TimeoutScale};

/// The driver. All that is known of a VM lies on its host; the driver only remembers how slow its hosts
/// turned out to be.
#[derive(Debug, Default)]
pub struct Qemu {
    patience: Mutex<BTreeMap<String, TimeoutScale>>,
}

impl Qemu {
    /// Returns the driver.
    pub fn new() -> Self {
        Qemu::default()
    }

    fn vm_site<'a>(&self, host: &'a dyn Host, spec: &'a GuestSpec) -> QemuVm<'a> {
        let known = self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        // A host that was not probed by this driver may well be an emulated one.
        let patience = known.get(host.name()).copied().unwrap_or(accel_probe::emulated_patience());
        QemuVm { host, spec, patience }
    }

    /// Runs the micro-guest on `host` by `acceleration` and returns what was seen of it, for whoever
    /// wants to know why guests run there or do not.
    ///
    /// # Errors
    /// [`Kind::HostCannot`](crate::Kind) if QEMU is not installed; a guest that dies is a sighting.
    pub async fn try_guest(
        &self,
        host: &dyn Host,
        acceleration: Acceleration,
    ) -> Result<MicroGuestResult> {
        probe::try_guest(host, acceleration).await
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::Qemu
    }

    async fn probe(&self, host: &dyn Host) -> Result<Probe> {
        let probe = probe::probe(host).await?;
        let mut known = self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(host.name().to_owned(), probe.patience);
        Ok(probe)
    }

    async fn inspect(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Option<Actual>> {
        let vm_site = self.vm_site(host, spec);
        let Some(vm) = vm_site.look().await? else { return Ok(None) };
        let disk = snapshot::disk_info(host, &vm.definition).await?;
        let settings =
            definition::actual_settings(&vm.definition, disk.map(|disk| disk.virtual_size));
        let power = match vm.pid {
            None => Power::Off,
            Some(pid) => power::status(vm_site, pid).await?,
        };
        let id = vm.pid.map(|pid| pid.to_string()).unwrap_or_default();
        Ok(Some(Actual { id, power, settings }))
    }

    fn changes(&self, spec: &GuestSpec, actual: Option<&Actual>, _probe: &Probe) -> Vec<Change> {
        definition::changes(spec, actual)
    }

    fn stays(&self, spec: &GuestSpec, actual: &Actual) -> Vec<String> {
        definition::stays(spec, actual)
    }

    async fn remains(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        recorded: Option<&GuestSpec>,
    ) -> Result<Remains> {
        let folder = Folder(&spec.directory);
        let what = match self.vm_site(host, spec).look().await {
            Ok(Some(_)) => return Err(Error::internal(format!("{} is defined", spec.vm))),
            Ok(None) => "missing",
            Err(error) if error.kind() == Kind::Stuck => "damaged",
            Err(error) => return Err(error),
        };
        let why = format!("{}, which says what it is, is {what}", folder.definition());
        let Some(recorded) = recorded else {
            return Ok(Remains::Lost(format!("{why}, and the lab has not written it down")));
        };
        let variables = Command::new("test").args(["-e", folder.efi_variables().as_str()]);
        let uefi = host.run(&variables).await?.exit.success().then_some(Firmware::Efi);
        let definition = Definition::after(recorded, uefi)?;
        Ok(Remains::Known { why, commands: vec![definition.write(folder)] })
    }

    async fn set_aside(&self, host: &dyn Host, spec: &GuestSpec, kept: &Utf8Path) -> Result<()> {
        let vm_site = self.vm_site(host, spec);
        if vm_site.process().await?.is_some() {
            return Err(vm_site.failure("runs, and what runs is not moved"));
        }
        host.check(&super::aside::command(&spec.directory, kept)).await.map(drop)
    }

    async fn change(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        changes: &[Change],
        events: &EventSink,
    ) -> Result<()> {
        let wanted = Definition::of(spec).map_err(|error| error.on_host(host.name()))?;
        if changes.is_empty() {
            return Ok(());
        }
        if changes.iter().any(|change| change.needs_power_off) {
            let vm_site = self.vm_site(host, spec);
            let grace = vm_site.patience.limit(power::SHUTS_DOWN);
            power::stop(vm_site, Stop::Graceful(grace), events).await?;
        }
        for change in changes {
            // A VM that is not defined yet has a disk of unknown size.
            if change.setting == definition::DISK_SIZE && change.actual.is_none() {
                let disk = snapshot::disk_info(host, &wanted).await?;
                let bytes = spec.disk.map_or(0, |size| size.bytes());
                if disk.is_none_or(|disk| disk.virtual_size >= bytes) {
                    continue;
                }
            }
            for command in &change.commands {
                host.check(command).await?;
            }
        }
        Ok(())
    }

    fn start_commands(&self, spec: &GuestSpec, probe: &Probe) -> Vec<Command> {
        match Definition::of(spec) {
            Ok(definition) => power::start_commands(spec, &definition, &QemuInstall::of(probe)),
            // `start` gives the reason as an error.
            Err(_) => Vec::new(),
        }
    }

    async fn start(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        probe: &Probe,
        events: &EventSink,
    ) -> Result<()> {
        power::start(QemuVm { patience: probe.patience, ..self.vm_site(host, spec) }, probe, events)
            .await
    }

    async fn stop(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        how: Stop,
        events: &EventSink,
    ) -> Result<()> {
        power::stop(self.vm_site(host, spec), how, events).await
    }

    async fn destroy(&self, host: &dyn Host, spec: &GuestSpec, events: &EventSink) -> Result<()> {
        if matches!(spec.origin, VmOrigin::Existing { .. }) {
            return Ok(());
        }
        power::stop(self.vm_site(host, spec), Stop::PowerOff, events).await?;
        let folder = Folder(&spec.directory);
        let mut files = folder.made();
        files.extend(definition::own_files(spec));
        let left = host.check(&scripts::remove(folder, &files)).await?.text();
        if !left.is_empty() {
            events.notice(Level::Warning, super::left(host, &left));
        }
        Ok(())
    }

    async fn endpoint(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        guest_port: u16,
    ) -> Result<StreamAddress> {
        let port = screen::forwarded(self.vm_site(host, spec), guest_port).await?;
        Ok(StreamAddress::Tcp("127.0.0.1".to_owned(), port))
    }

    async fn guest_property(
        &self,
        _host: &dyn Host,
        _spec: &GuestSpec,
        _name: &str,
    ) -> Result<Option<String>> {
        Ok(None)
    }

    async fn screenshot(&self, host: &dyn Host, spec: &GuestSpec, to: &Utf8Path) -> Result<()> {
        screen::screenshot(self.vm_site(host, spec), to).await
    }

    async fn vms(&self, host: &dyn Host) -> Result<Vec<FoundVm>> {
        Ok(vm::found(&host.check(&scripts::arguments_of_all()).await?.stdout))
    }

    async fn forget(&self, host: &dyn Host, vm: &FoundVm) -> Result<()> {
        let (Ok(pid), Some(uuid)) = (vm.id.parse(), vm.uuid) else { return Ok(()) };
        power::kill(host, pid, uuid).await
    }

    fn serial_log(&self, spec: &GuestSpec) -> Utf8PathBuf {
        Folder(&spec.directory).serial()
    }

    async fn screen_text(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Option<String>> {
        screen::text(self.vm_site(host, spec)).await.map(Some)
    }

    async fn console(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Option<StreamAddress>> {
        let (_vm, pid) = self.vm_site(host, spec).running().await?;
        Ok(Some(StreamAddress::Unix(Folder(&spec.directory).socket(argv::SERIAL_SOCKET, pid))))
    }

    async fn log_files(&self, _host: &dyn Host, spec: &GuestSpec) -> Result<Vec<LogFile>> {
        let folder = Folder(&spec.directory);
        Ok(vec![
            LogFile { name: "serial".to_owned(), path: folder.serial() },
            LogFile { name: "serial.old".to_owned(), path: folder.serial_before() },
            LogFile { name: "qemu.log".to_owned(), path: folder.log() },
        ])
    }

    async fn down_because(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Option<Error>> {
        power::down_because(self.vm_site(host, spec)).await
    }

    async fn snapshot(&self, host: &dyn Host, spec: &GuestSpec, name: &str) -> Result<()> {
        snapshot::take(self.vm_site(host, spec), name).await
    }

    async fn snapshots(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Vec<String>> {
        snapshot::names(self.vm_site(host, spec)).await
    }

    async fn restore(&self, host: &dyn Host, spec: &GuestSpec, name: &str) -> Result<()> {
        let vm_site = self.vm_site(host, spec);
        if snapshot::restore(vm_site, name).await? == Restored::NeedsPowerOff {
            power::stop(vm_site, Stop::PowerOff, &EventSink::silent()).await?;
            snapshot::restore(vm_site, name).await?;
        }
        Ok(())
    }
}
