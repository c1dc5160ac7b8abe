//! The driver: [`Hypervisor`] for VirtualBox, and what VirtualBox has beyond it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};

use super::diff::{self, FREE_PORT};
use super::fault::Fault;
use super::host_facts::{HostFindings, look};
use super::manage::{self, Installed, Manage, PROGRAM_VARIABLE};
use super::remedies::{self, KvmBeside};
use super::{machine, parse, ports, serial_log, settings, start, tsc};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::host::{Command, Host, StreamAddress, TimeoutScale};
use crate::hypervisor::{
    Acceleration, Actual, Change, FoundVm, GuestSpec, Hypervisor, HypervisorKind, LogFile, Nesting,
    Power, Probe, Remains, Stop, VmOrigin,
};

/// How long a guest may take on bare metal to shut down when its power button is pressed.
const SHUTS_DOWN: Duration = Duration::from_secs(90);

/// How often what is left of the differences is worked off. One round is enough for a VM that is there;
/// an imported appliance shows what it lacks only afterwards.
const ROUNDS: usize = 3;

/// VirtualBox on any host. One value serves all hosts; it remembers what it found on each.
#[derive(Debug, Default)]
pub struct VirtualBox {
    known: Mutex<BTreeMap<String, HostCache>>,
}

/// What is remembered of a host.
#[derive(Debug, Clone)]
struct HostCache {
    installed: Installed,
    patience: TimeoutScale,
    /// What [`Probe::details`] has.
    details: BTreeMap<String, String>,
}

impl VirtualBox {
    /// Returns the driver. On this machine `NESTLAB_VBOXMANAGE` names the program if it is set.
    pub fn new() -> Self {
        VirtualBox::default()
    }

    /// Returns VirtualBox as it is installed on `host`, whether or not it can start VMs there.
    ///
    /// # Errors
    /// [`Kind::HostCannot`] if it is not there.
    pub async fn installed(&self, host: &dyn Host) -> Result<Installed> {
        Ok(self.known(host).await?.installed)
    }

    async fn known(&self, host: &dyn Host) -> Result<HostCache> {
        let remembered = self.lock().get(host.name()).cloned();
        if let Some(known) = remembered {
            return Ok(known);
        }
        let wanted = if host.is_local() { std::env::var(PROGRAM_VARIABLE).ok() } else { None };
        let installed = manage::find(host, wanted.as_deref().map(Utf8Path::new)).await?;
        let known =
            HostCache { installed, patience: TimeoutScale::NATIVE, details: BTreeMap::new() };
        self.lock().insert(host.name().to_owned(), known.clone());
        Ok(known)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, HostCache>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn manage<'a>(&self, host: &'a dyn Host) -> Result<Manage<'a>> {
        let known = self.known(host).await?;
        Ok(Manage::new(host, known.installed).patient(known.patience))
    }

    /// Returns how long a change of state may take on `host`.
    fn settles(&self, host: &dyn Host) -> Duration {
        self.patience(host).limit(machine::SETTLES)
    }

    fn patience(&self, host: &dyn Host) -> TimeoutScale {
        self.lock().get(host.name()).map_or(TimeoutScale::NATIVE, |known| known.patience)
    }

    /// Powers the VM off for a change of its settings: gracefully, and never at the cost of a session
    /// that was saved.
    pub(super) async fn power_off(
        &self,
        manage: &Manage<'_>,
        actual: &Actual,
        name: &str,
        how: fn(Duration) -> Stop,
        events: &EventSink,
    ) -> Result<()> {
        let host = manage.host();
        if actual.power == Power::Saved {
            return Err(Error::failed(format!(
                "{name} is saved, and its settings cannot be changed without losing its session"
            ))
            .on_host(host.name())
            .hint(format!(
                "start it and shut it down, or `{} discardstate {}`",
                manage.installed().program,
                actual.id
            )));
        }
        let grace = self.patience(host).limit(SHUTS_DOWN);
        machine::stop(manage, actual, how(grace), self.settles(host), events).await
    }

    /// Returns the VM of `spec` as [`diff::changes`] compares it; asks for no more than that looks at.
    async fn look_at(&self, manage: &Manage<'_>, spec: &GuestSpec) -> Result<Option<Actual>> {
        let mut actual = machine::inspect(manage, spec).await?;
        let steady = self.known(manage.host()).await?.details.contains_key(tsc::STEADY);
        if let Some(actual) = actual.as_mut().filter(|actual| steady && tsc::is_free(actual)) {
            tsc::add(manage, actual).await?;
        }
        Ok(actual)
    }

    /// Runs the commands of `changes` in their order; the VM was just seen to be as `actual` says.
    async fn apply(
        &self,
        manage: &Manage<'_>,
        spec: &GuestSpec,
        actual: Option<&Actual>,
        changes: &[Change],
        events: &EventSink,
    ) -> Result<()> {
        if changes.iter().any(|change| change.commands.iter().any(makes_media)) {
            machine::forget_media(manage, &spec.directory).await?;
        }
        if changes.iter().any(|change| change.needs_power_off)
            && let Some(actual) = actual
        {
            let how = if is_existing(spec) { Stop::Ask } else { Stop::Graceful };
            self.power_off(manage, actual, &spec.vm, how, events).await?;
        }
        for change in changes {
            events.doing(format!("{}: {}", change.setting, change.wanted));
            for command in &change.commands {
                let command = with_free_port(manage.host(), command).await?;
                manage.run_command(&command, events).await?;
            }
        }
        Ok(())
    }
}

/// Whether it is the user's, and never cut off.
fn is_existing(spec: &GuestSpec) -> bool {
    matches!(spec.origin, VmOrigin::Existing { .. })
}

/// Whether a command makes a disk image that VirtualBox may know from an interrupted run.
fn makes_media(command: &Command) -> bool {
    let makes = ["convertfromraw", "clonemedium", "import"];
    command.argv().get(1).is_some_and(|word| makes.contains(&word.as_str()))
}

/// Returns the command with a port that is free on `host` in place of [`FREE_PORT`].
async fn with_free_port(host: &dyn Host, command: &Command) -> Result<Command> {
    if !command.argv().iter().any(|arg| arg.contains(FREE_PORT)) {
        return Ok(command.clone());
    }
    let port = ports::free(host).await?.to_string();
    Ok(Command::from_argv(command.argv().iter().map(|arg| arg.replace(FREE_PORT, &port))))
}

/// Returns the VM of `spec`, which must be there.
pub(super) async fn there(manage: &Manage<'_>, spec: &GuestSpec) -> Result<Actual> {
    machine::inspect(manage, spec).await?.ok_or_else(|| not_there(manage, spec))
}

fn not_there(manage: &Manage<'_>, spec: &GuestSpec) -> Error {
    Error::failed(format!("the VM {} is not there", spec.vm))
        .on_host(manage.host().name())
        .hint("`nestlab up` makes it")
}

fn not_listed(manage: &Manage<'_>, spec: &GuestSpec) -> Error {
    Error::failed(format!("VirtualBox does not list {}, which it has just changed", spec.vm))
        .on_host(manage.host().name())
        .hint("run the same command again")
}

/// Returns the UUID of the VM's snapshot `name`; of several the first.
pub(super) fn snapshot_uuid(actual: &Actual, name: &str) -> Option<String> {
    let (setting, _) = actual
        .settings
        .iter()
        .find(|(setting, value)| setting.starts_with("SnapshotName") && value.as_str() == name)?;
    actual.settings.get(&setting.replacen("SnapshotName", "SnapshotUUID", 1)).cloned()
}

#[async_trait]
impl Hypervisor for VirtualBox {
    fn kind(&self) -> HypervisorKind {
        HypervisorKind::VirtualBox
    }

    async fn probe(&self, host: &dyn Host) -> Result<Probe> {
        // What is remembered may be older than an upgrade on the host.
        self.lock().remove(host.name());
        let installed = self.installed(host).await?;
        let mut found = look(host).await?;
        found.around.virtualbox = Some(installed.version.clone());
        let refuse = |message: &str, fault: Fault| {
            let error = Error::new(Kind::HostCannot, message).on_host(host.name());
            let hints = remedies::hints(fault, &found.around);
            Err(hints.into_iter().fold(error, Error::hint))
        };
        if found.driver == Some(false) {
            return refuse("VirtualBox's kernel driver is not loaded", Fault::Driver);
        }
        let manage = Manage::new(host, installed.clone());
        let hostinfo = parse::fields(&manage.run(&["list", "hostinfo"]).await?);
        let says =
            |what: &str| hostinfo.get(&format!("Processor supports {what}")).map(String::as_str);
        // Only Linux has no other way to execute guests than VirtualBox's own driver.
        let virtualizes = says("HW virtualization") != Some("no");
        if found.driver.is_some() && !virtualizes {
            return refuse(
                "VirtualBox cannot run 64-bit guests here",
                Fault::VirtualizationMissing,
            );
        }
        let nesting = if virtualizes {
            let nests = says("nested HW virtualization");
            remedies::nesting(&installed.version, found.around.cpu, nests)
        } else {
            Nesting::Absent(remedies::hints(Fault::Nem, &found.around).join("; "))
        };
        let patience = found.patience();
        let steady = found.steady_tsc.then(|| (tsc::STEADY.to_owned(), String::new()));
        let details: BTreeMap<_, _> = steady.into_iter().collect();
        let known = HostCache { installed: installed.clone(), patience, details: details.clone() };
        self.lock().insert(host.name().to_owned(), known);
        Ok(Probe {
            acceleration: Acceleration::VirtualBox,
            patience,
            nesting,
            details,
            notes: notes(&installed, &found),
            version: installed.version,
            version_text: installed.version_text,
            program: installed.program,
        })
    }

    async fn inspect(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Option<Actual>> {
        let manage = self.manage(host).await?;
        self.look_at(&manage, spec).await
    }

    fn changes(&self, spec: &GuestSpec, actual: Option<&Actual>, probe: &Probe) -> Vec<Change> {
        diff::changes(spec, actual, probe)
    }

    fn stays(&self, spec: &GuestSpec, actual: &Actual) -> Vec<String> {
        diff::stays(spec, actual)
    }

    async fn remains(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        _recorded: Option<&GuestSpec>,
    ) -> Result<Remains> {
        machine::remains(&self.manage(host).await?, spec).await
    }

    async fn set_aside(&self, host: &dyn Host, spec: &GuestSpec, kept: &Utf8Path) -> Result<()> {
        machine::set_aside(&self.manage(host).await?, spec, kept).await
    }

    async fn change(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        changes: &[Change],
        events: &EventSink,
    ) -> Result<()> {
        let manage = self.manage(host).await?;
        let probe = bare_probe(self.known(host).await?);
        let mut left = changes.to_vec();
        let mut actual = None;
        if left.iter().any(|change| change.needs_power_off) {
            actual = self.look_at(&manage, spec).await?;
        }
        for _ in 0..ROUNDS {
            if left.is_empty() {
                return Ok(());
            }
            self.apply(&manage, spec, actual.as_ref(), &left, events).await?;
            actual = self.look_at(&manage, spec).await?;
            // To make it again would remove what was just made, or what a guest has written.
            let changed = actual.as_ref().ok_or_else(|| not_listed(&manage, spec))?;
            left = diff::changes(spec, Some(changed), &probe);
        }
        if left.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = left.iter().map(|change| change.setting.as_str()).collect();
        Err(Error::failed(format!(
            "VirtualBox took the changes of {}, but these are not as wanted: {}",
            spec.vm,
            names.join(", ")
        ))
        .on_host(host.name()))
    }

    fn start_commands(&self, spec: &GuestSpec, probe: &Probe) -> Vec<Command> {
        start::commands(&probe.program, &probe.version, spec, &spec.vm, &[1])
    }

    async fn start(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        _probe: &Probe,
        events: &EventSink,
    ) -> Result<()> {
        let manage = self.manage(host).await?;
        let actual = there(&manage, spec).await?;
        match &actual.power {
            Power::Running => Ok(()),
            Power::Paused => {
                manage.run(&["controlvm", &actual.id, "resume"]).await?;
                Ok(())
            }
            Power::Off | Power::Saved => start::start(&manage, spec, &actual, events).await,
            Power::Crashed(_) | Power::Changing(_) => {
                machine::stop(&manage, &actual, Stop::PowerOff, self.settles(host), events).await?;
                let actual = there(&manage, spec).await?;
                start::start(&manage, spec, &actual, events).await
            }
        }
    }

    async fn stop(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        how: Stop,
        events: &EventSink,
    ) -> Result<()> {
        let manage = self.manage(host).await?;
        let how = match how {
            Stop::Graceful(grace) if is_existing(spec) => Stop::Ask(grace),
            how => how,
        };
        match machine::inspect(&manage, spec).await? {
            Some(actual) => machine::stop(&manage, &actual, how, self.settles(host), events).await,
            None => Ok(()),
        }
    }

    async fn destroy(&self, host: &dyn Host, spec: &GuestSpec, events: &EventSink) -> Result<()> {
        match &spec.origin {
            VmOrigin::Existing { .. } => Ok(()),
            VmOrigin::Made(_) => machine::remove(&self.manage(host).await?, spec, events).await,
        }
    }

    async fn endpoint(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        guest_port: u16,
    ) -> Result<StreamAddress> {
        let actual = there(&self.manage(host).await?, spec).await?;
        let port = settings::rules(&actual.settings).find_map(|rule| rule.host_port(guest_port));
        port.map(|port| StreamAddress::Tcp("127.0.0.1".to_owned(), port)).ok_or_else(|| {
            let error = Error::failed(format!("port {guest_port} of {} is not forwarded", spec.vm))
                .on_host(host.name());
            if settings::nat_adapter(&actual.settings).is_some() {
                error.hint("`nestlab up` forwards it")
            } else {
                error.hint("the VM has no NAT adapter: give it one, or an address in the recipe")
            }
        })
    }

    async fn guest_property(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        name: &str,
    ) -> Result<Option<String>> {
        let manage = self.manage(host).await?;
        let Some(vm) = machine::uuid(&manage, spec).await? else { return Ok(None) };
        Ok(parse::value(&manage.run(&["guestproperty", "get", &vm, name]).await?))
    }

    async fn screenshot(&self, host: &dyn Host, spec: &GuestSpec, to: &Utf8Path) -> Result<()> {
        let manage = self.manage(host).await?;
        let vm = machine::uuid(&manage, spec).await?.ok_or_else(|| not_there(&manage, spec))?;
        manage.run(&["controlvm", &vm, "screenshotpng", to.as_str()]).await?;
        host.check(&Command::new("test").args(["-s", to.as_str()])).await?;
        Ok(())
    }

    async fn vms(&self, host: &dyn Host) -> Result<Vec<FoundVm>> {
        machine::found(&self.manage(host).await?).await
    }

    async fn forget(&self, host: &dyn Host, vm: &FoundVm) -> Result<()> {
        let manage = self.manage(host).await?;
        machine::unregister(&manage, &vm.id, &EventSink::silent()).await?;
        match vm.file.as_deref().and_then(Utf8Path::parent) {
            Some(folder) => machine::forget_media(&manage, folder).await,
            None => Ok(()),
        }
    }

    fn serial_log(&self, spec: &GuestSpec) -> Utf8PathBuf {
        serial_log(spec)
    }

    async fn log_files(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Vec<LogFile>> {
        let manage = self.manage(host).await?;
        let mut log_files = vec![LogFile { name: "serial".to_owned(), path: serial_log(spec) }];
        if let Some(actual) = machine::inspect(&manage, spec).await?
            && let Some(folder) = machine::log_folder(&actual)
        {
            let files = ["VBox.log", "VBoxHardening.log"];
            log_files.extend(
                files.map(|name| LogFile { name: name.to_owned(), path: folder.join(name) }),
            );
        }
        Ok(log_files)
    }

    async fn snapshot(&self, host: &dyn Host, spec: &GuestSpec, name: &str) -> Result<()> {
        let manage = self.manage(host).await?;
        let actual = there(&manage, spec).await?;
        if snapshot_uuid(&actual, name).is_some() {
            return Err(Error::failed(format!("{} has a snapshot {name} already", spec.vm))
                .on_host(host.name()));
        }
        manage.run(&["snapshot", &actual.id, "take", name]).await?;
        Ok(())
    }

    async fn snapshots(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Vec<String>> {
        let actual = there(&self.manage(host).await?, spec).await?;
        // `SnapshotName`, `SnapshotName-1`, `SnapshotName-1-1` …: a parent stands before its children.
        let named = actual.settings.iter().filter(|(key, _)| key.starts_with("SnapshotName"));
        Ok(named.map(|(_, name)| name.clone()).collect())
    }

    async fn restore(&self, host: &dyn Host, spec: &GuestSpec, name: &str) -> Result<()> {
        let manage = self.manage(host).await?;
        let actual = there(&manage, spec).await?;
        let uuid = snapshot_uuid(&actual, name).ok_or_else(|| {
            Error::failed(format!("{} has no snapshot {name}", spec.vm)).on_host(host.name())
        })?;
        let events = EventSink::silent();
        machine::stop(&manage, &actual, Stop::PowerOff, self.settles(host), &events).await?;
        manage.run(&["snapshot", &actual.id, "restore", &uuid]).await?;
        let actual = there(&manage, spec).await?;
        if actual.power == Power::Saved {
            start::start(&manage, spec, &actual, &events).await?;
        }
        Ok(())
    }

    async fn down_because(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Option<Error>> {
        let manage = self.manage(host).await?;
        if machine::runs(&manage, spec).await? {
            return Ok(None);
        }
        match machine::inspect(&manage, spec).await? {
            Some(actual) => Ok(start::why_down(&manage, spec, &actual).await),
            None => Ok(None),
        }
    }
}

/// Returns what the pure parts need of a probe.
fn bare_probe(known: HostCache) -> Probe {
    Probe {
        version: known.installed.version,
        version_text: known.installed.version_text,
        program: known.installed.program,
        acceleration: Acceleration::VirtualBox,
        patience: known.patience,
        nesting: Nesting::Claimed,
        details: known.details,
        notes: Vec::new(),
    }
}

/// Returns what a user should know about VirtualBox on this host.
fn notes(installed: &Installed, found: &HostFindings) -> Vec<String> {
    let kernel = found.around.kernel.as_deref().and_then(remedies::kernel_number);
    let beside = kernel.map(|kernel| remedies::kvm_beside(kernel, &installed.version));
    match beside {
        Some(KvmBeside::MustLetGo) if found.around.kvm_loaded => {
            remedies::hints(Fault::VirtualizationInUse, &found.around)
        }
        _ => Vec::new(),
    }
}
