//! Starting and stopping: nothing is believed but a process that proves to be the VM's, and its QMP.

use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use super::argv;
use super::definition::Definition;
use super::folder::Folder;
use super::install::QemuInstall;
use super::loopback;
use super::scripts;
use super::snapshot::{self, DiskInfo};
use super::vm::{self, LOOK_AGAIN, QemuVm};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::host::{Command, Host};
use crate::hypervisor::{Firmware, FoundVm, GuestSpec, Power, Probe, Stop, still_on};

/// How long a guest that is to be changed may take on bare metal to shut down, before the plug is pulled.
pub(super) const SHUTS_DOWN: Duration = Duration::from_secs(60);

/// How long QEMU may take on bare metal from its start to its first answer.
const STARTS: Duration = Duration::from_secs(15);

/// How often the power button is pressed.
const PRESS_AGAIN: Duration = Duration::from_secs(5);

/// How long QEMU's process may take on bare metal to be gone once it ends: it may have gigabytes to give back.
const GONE: Duration = Duration::from_secs(10);

/// How much of `qemu.log` goes into an error, in bytes.
const LOG_TAIL: usize = 8 << 10;

/// Returns what QEMU's process `pid` says about the VM.
pub(super) async fn status(vm_site: QemuVm<'_>, pid: u32) -> Result<Power> {
    let answer = match vm_site.qmp(pid).await {
        Ok(mut qmp) => qmp.execute("query-status", Value::Null).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) => Ok(vm::power(answer["status"].as_str().unwrap_or("unknown"))),
        // It may have ended between the two looks.
        Err(_) if !vm_site.is_alive(pid).await? => Ok(Power::Off),
        Err(error) => Err(error.on_host(vm_site.host.name())),
    }
}

/// Returns why the VM is down, if it went down by a failure of its own.
pub(super) async fn down_because(vm_site: QemuVm<'_>) -> Result<Option<Error>> {
    let Some(vm) = vm_site.look().await? else { return Ok(None) };
    let why = match vm.pid {
        Some(pid) => match status(vm_site, pid).await? {
            Power::Crashed(why) => why,
            _ => return Ok(None),
        },
        None if vm.died => "QEMU was killed or crashed".to_owned(),
        None => return Ok(None),
    };
    let error = vm_site.failure(format_args!("is down: {why}"));
    Ok(Some(with_log(vm_site, error).await))
}

/// Returns the commands that start the VM.
pub(super) fn start_commands(
    spec: &GuestSpec,
    definition: &Definition,
    machine: &QemuInstall,
) -> Vec<Command> {
    let folder = Folder(&spec.directory);
    let mut commands = Vec::new();
    if let Some(efi) = machine.efi.as_ref().filter(|_| definition.firmware == Firmware::Efi) {
        commands.push(scripts::copy_variables(efi.variables.as_str(), &efi.format, folder));
    }
    let owner = machine.confinement.owner(argv::confined_user(definition.uuid));
    let argv = argv::argv(definition, machine);
    commands.push(scripts::start(folder, owner.as_deref(), definition.reach_host, &argv));
    commands
}

/// Starts the VM, or lets it go on if it is paused.
pub(super) async fn start(vm_site: QemuVm<'_>, probe: &Probe, events: &EventSink) -> Result<()> {
    let machine = QemuInstall::of(probe);
    let vm = vm_site.defined().await?;
    let wanted = Definition::after(vm_site.spec, Some(vm.definition.firmware))
        .map_err(|error| error.on_host(vm_site.host.name()))?;
    if let Some(pid) = vm.pid {
        match status(vm_site, pid).await? {
            Power::Running => return Ok(()),
            Power::Paused => {
                let went_on = vm_site.qmp(pid).await?.execute("cont", Value::Null).await;
                return went_on.map(|_| ()).map_err(|error| error.on_host(vm_site.host.name()));
            }
            Power::Changing(_) => return wait_until_running(vm_site, pid).await,
            Power::Crashed(why) => {
                events
                    .notice(Level::Warning, format!("{} is started anew: {why}", vm_site.spec.vm));
                stop(vm_site, Stop::PowerOff, events).await?;
            }
            Power::Off | Power::Saved => {}
        }
    }
    can_start(&wanted, &machine).map_err(|error| error.on_host(vm_site.host.name()))?;
    stands_alone(vm_site, &wanted).await?;
    let mut said = String::new();
    for command in start_commands(vm_site.spec, &wanted, &machine) {
        said = vm_site.host.check(&command).await?.text();
    }
    let pid = said.trim().parse().map_err(|_| {
        vm_site.failure("told no process id").with_kind(Kind::Internal).tail(said.as_bytes())
    })?;
    events.doing("waiting for QEMU");
    wait_until_running(vm_site, pid).await?;
    tell_open_loopback(vm_site, &wanted, pid, events).await
}

/// Says so when the guest reaches its host's loopback services, though its recipe does not say so: where `run/` lies
/// in a file system that is mounted `noexec`, QEMU starts without the library.
async fn tell_open_loopback(
    vm_site: QemuVm<'_>,
    definition: &Definition,
    pid: u32,
    events: &EventSink,
) -> Result<()> {
    if definition.reach_host {
        return Ok(());
    }
    let kept = vm_site.host.run(&scripts::is_kept_from_loopback(pid)).await?;
    if !kept.exit.success() {
        let text = format!(
            "{} reaches services on the loopback of {}: its QEMU has not taken {} (is its folder mounted `noexec`?)",
            vm_site.spec.vm,
            vm_site.host.name(),
            loopback::NAME
        );
        events.notice(Level::Warning, text);
    }
    Ok(())
}

/// Returns an error if the host lacks what the definition needs.
fn can_start(definition: &Definition, machine: &QemuInstall) -> Result<()> {
    if definition.firmware == Firmware::Efi && machine.efi.is_none() {
        return Err(Error::new(Kind::HostCannot, "there is no UEFI firmware for QEMU")
            .hint("Debian and Ubuntu: apt install ovmf; Fedora: dnf install edk2-ovmf; Arch: pacman -S edk2-ovmf"));
    }
    if definition.gui && machine.display.is_none() {
        return Err(Error::new(Kind::HostCannot, "QEMU can open no window here")
            .hint("Debian and Ubuntu: apt install qemu-system-gui; or leave out `gui = true`"));
    }
    Ok(())
}

/// Refuses a disk that names other files of the host.
async fn stands_alone(vm_site: QemuVm<'_>, definition: &Definition) -> Result<()> {
    let disk = snapshot::disk_info(vm_site.host, definition).await?;
    match disk.as_ref().and_then(DiskInfo::other_file) {
        None => Ok(()),
        Some(other) => Err(vm_site
            .failure(format_args!(
                "has a disk that names another file, {}, and must not",
                crate::event::printable(other)
            ))
            .hint("if it is yours: `qemu-img convert -O qcow2` makes one disk of the two")),
    }
}

/// Waits until QEMU, the process `pid`, says that the guest runs.
async fn wait_until_running(vm_site: QemuVm<'_>, pid: u32) -> Result<()> {
    let begun = Instant::now();
    let failed = |why: &str| vm_site.failure(format_args!("did not start: {why}"));
    loop {
        if !vm_site.is_alive(pid).await? {
            // A process that is just becoming QEMU has no arguments for a moment.
            tokio::time::sleep(LOOK_AGAIN).await;
            if !vm_site.is_alive(pid).await? {
                return Err(with_log(vm_site, failed("QEMU ended at once")).await);
            }
        }
        // Until it listens, there is nothing to connect to.
        if let Ok(power) = status(vm_site, pid).await {
            match power {
                Power::Running => return Ok(()),
                Power::Crashed(why) => return Err(with_log(vm_site, failed(&why)).await),
                _ => {}
            }
        }
        if begun.elapsed() > vm_site.patience.limit(STARTS) {
            let error = with_log(vm_site, failed("QEMU does not say that it runs")).await;
            return Err(error.hint("`nestlab down` ends it, whatever it does"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Adds what QEMU said last to `error`.
async fn with_log(vm_site: QemuVm<'_>, error: Error) -> Error {
    let log = vm_site.folder().log();
    let tail = Command::new("tail").args(["-c", &LOG_TAIL.to_string(), "--", log.as_str()]);
    let said = vm_site.host.run(&tail).await.map(|output| output.stdout).unwrap_or_default();
    error.tail(&said)
}

/// Stops the VM: by the power button, by QMP, by SIGKILL to the process that is proven to be it. What became
/// of its definition does not matter.
pub(super) async fn stop(vm_site: QemuVm<'_>, how: Stop, events: &EventSink) -> Result<()> {
    if let Some((pid, uuid)) = vm_site.process().await? {
        end(vm_site, pid, uuid, how, events).await?;
    }
    vm_site.host.check(&scripts::forget(vm_site.folder())).await?;
    Ok(())
}

/// Ends the VM's process `pid`.
async fn end(
    vm_site: QemuVm<'_>,
    pid: u32,
    uuid: Uuid,
    how: Stop,
    events: &EventSink,
) -> Result<()> {
    if let Stop::Graceful(grace) | Stop::Ask(grace) = how {
        events.doing("waiting for the guest to shut down");
        if shut_down(vm_site, pid, grace).await && gone(vm_site, pid).await? {
            return Ok(());
        }
        if let Stop::Ask(grace) = how {
            return Err(still_on(&vm_site.spec.vm, grace).on_host(vm_site.host.name()));
        }
        events.doing("powering it off");
    }
    if quit(vm_site, pid).await && gone(vm_site, pid).await? {
        return Ok(());
    }
    vm_site.host.check(&scripts::kill(pid, uuid)).await?;
    if gone(vm_site, pid).await? {
        return Ok(());
    }
    Err(vm_site
        .failure(format_args!("does not die: its process {pid} ignores even SIGKILL"))
        .with_kind(Kind::Stuck)
        .hint("it waits inside the kernel, mostly for a disk: look at `dmesg` there"))
}

/// Presses the power button until QEMU hangs up, and returns whether it does within `grace`.
async fn shut_down(vm_site: QemuVm<'_>, pid: u32, grace: Duration) -> bool {
    let pressed = async {
        loop {
            match press(vm_site, pid).await {
                Ok(hung_up) => return hung_up,
                // It ended in the middle of the conversation, or another one keeps its socket busy.
                Err(_) if matches!(vm_site.is_alive(pid).await, Ok(false)) => return true,
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    };
    tokio::time::timeout(grace, pressed).await.unwrap_or(false)
}

/// Presses the power button until QEMU hangs up, or returns `false` where no guest is to hear it. One
/// press is not enough: a guest that is still booting does not hear that one.
async fn press(vm_site: QemuVm<'_>, pid: u32) -> Result<bool> {
    let mut qmp = vm_site.qmp(pid).await?;
    let status = qmp.execute("query-status", Value::Null).await?;
    match vm::power(status["status"].as_str().unwrap_or_default()) {
        Power::Running => {}
        Power::Paused => drop(qmp.execute("cont", Value::Null).await?),
        _ => return Ok(false),
    }
    loop {
        qmp.execute("system_powerdown", Value::Null).await?;
        if tokio::time::timeout(PRESS_AGAIN, qmp.closed()).await.is_ok() {
            return Ok(true);
        }
    }
}

/// Tells QEMU to end and returns whether it heard that.
async fn quit(vm_site: QemuVm<'_>, pid: u32) -> bool {
    match vm_site.qmp(pid).await {
        Ok(mut qmp) => qmp.execute("quit", Value::Null).await.is_ok(),
        Err(_) => false,
    }
}

/// Kills the QEMU that has `uuid` and the process id `pid`, whose folder may be gone.
pub(super) async fn kill(host: &dyn Host, pid: u32, uuid: Uuid) -> Result<()> {
    host.check(&scripts::kill(pid, uuid)).await?;
    let begun = Instant::now();
    while let Some(vm) = running_as(host, pid, uuid).await? {
        if begun.elapsed() > GONE {
            return Err(Error::new(
                Kind::Stuck,
                format!("{} does not die: its process {pid} ignores even SIGKILL", vm.name),
            )
            .on_host(host.name()));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

async fn running_as(host: &dyn Host, pid: u32, uuid: Uuid) -> Result<Option<FoundVm>> {
    let vms = vm::found(&host.check(&scripts::arguments_of_all()).await?.stdout);
    let is_it = |vm: &FoundVm| vm.id == pid.to_string() && vm.uuid == Some(uuid);
    Ok(vms.into_iter().find(is_it))
}

/// Waits until the VM's process `pid` is gone and returns whether it is.
async fn gone(vm_site: QemuVm<'_>, pid: u32) -> Result<bool> {
    let begun = Instant::now();
    while vm_site.is_alive(pid).await? {
        if begun.elapsed() > vm_site.patience.limit(GONE) {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(true)
}
