//! Starting and stopping: nothing is believed but a process that proves to be the VM's, and its QMP.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::argv;
use super::definition::Definition;
use super::folder::Folder;
use super::machine::Machine;
use super::scripts;
use super::snapshot::{self, DiskInfo};
use super::vm::{self, LOOK_AGAIN, Vm};
use crate::error::{Error, Kind, Result};
use crate::event::{Feed, Level};
use crate::host::{Command, Host};
use crate::hypervisor::{Firmware, GuestSpec, Power, Probe, Stop};

/// How long a guest that is changed may take to shut down before the plug is pulled.
pub(super) const GRACE: Duration = Duration::from_secs(120);

/// How long QEMU may take on bare metal from its start to its first answer.
const START: Duration = Duration::from_secs(15);

/// How long a process that was killed may take to be gone: it may have gigabytes to give back.
const DEATH: Duration = Duration::from_secs(60);

/// How often the power button is pressed.
const PRESS_AGAIN: Duration = Duration::from_secs(5);

/// How long QEMU may take to end by itself when told to.
const QUIT: Duration = Duration::from_secs(20);

/// How much of `qemu.log` goes into an error, in bytes.
const LOG_TAIL: usize = 8 << 10;

/// Returns what QEMU says about the running `vm`.
pub(super) async fn status(host: &dyn Host, spec: &GuestSpec, vm: &Vm) -> Result<Power> {
    let answer = match vm.qmp(host, &spec.directory).await {
        Ok(mut qmp) => qmp.execute("query-status", Value::Null).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) => Ok(vm::power(answer["status"].as_str().unwrap_or("unknown"))),
        // It may have ended between the two looks.
        Err(_) if Vm::look(host, spec).await?.is_none_or(|now| now.pid.is_none()) => Ok(Power::Off),
        Err(error) => Err(error.on(host.name())),
    }
}

/// Returns why the VM is down, if it went down by a failure of its own.
pub(super) async fn down_because(host: &dyn Host, spec: &GuestSpec) -> Result<Option<Error>> {
    let Some(vm) = Vm::look(host, spec).await? else { return Ok(None) };
    let why = match vm.pid {
        Some(_) => match status(host, spec, &vm).await? {
            Power::Crashed(why) => why,
            _ => return Ok(None),
        },
        None if vm.died => "QEMU was killed or crashed".to_owned(),
        None => return Ok(None),
    };
    Ok(Some(with_log(host, spec, format!("{} is down: {why}", spec.vm)).await))
}

/// Returns the commands that start the VM.
pub(super) fn start_commands(
    spec: &GuestSpec,
    definition: &Definition,
    machine: &Machine,
) -> Vec<Command> {
    let folder = Folder(&spec.directory);
    let mut commands = Vec::new();
    if let Some(efi) = machine.efi.as_ref().filter(|_| definition.firmware == Firmware::Efi) {
        commands.push(scripts::copy_variables(efi.variables.as_str(), &efi.format, folder));
    }
    let owner = machine.confinement.owner(argv::confined_user(definition.uuid));
    let argv = argv::argv(definition, machine);
    commands.push(scripts::start(folder, owner.as_deref(), &argv));
    commands
}

/// Starts the VM, or lets it go on if it is paused.
pub(super) async fn start(
    host: &dyn Host,
    spec: &GuestSpec,
    probe: &Probe,
    feed: &Feed,
) -> Result<()> {
    let machine = Machine::of(probe);
    let wanted = Definition::of(spec).map_err(|error| error.on(host.name()))?;
    let vm = Vm::look(host, spec)
        .await?
        .ok_or_else(|| Error::internal(format!("{} is started before it is defined", spec.vm)))?;
    let limit = probe.patience.limit(START);
    if let Some(pid) = vm.pid {
        match status(host, spec, &vm).await? {
            Power::Running => return Ok(()),
            Power::Paused => return go_on(host, spec, &vm).await,
            Power::Changing(_) => return wait_until_running(host, spec, pid, limit).await,
            Power::Crashed(why) => {
                feed.notice(Level::Warning, format!("{} is started anew: {why}", spec.vm));
                stop(host, spec, Stop::Now, feed).await?;
            }
            Power::Off | Power::Saved => {}
        }
    }
    can_start(&wanted, &machine).map_err(|error| error.on(host.name()))?;
    stands_alone(host, spec, &wanted).await?;
    let mut said = None;
    for command in start_commands(spec, &wanted, &machine) {
        said = Some(host.check(&command).await?.text());
    }
    let said = said.unwrap_or_default();
    let pid = said.trim().parse().map_err(|_| {
        Error::internal("the start of QEMU told no process id")
            .on(host.name())
            .tail(said.as_bytes())
    })?;
    feed.doing("waiting for QEMU");
    wait_until_running(host, spec, pid, limit).await
}

/// Returns an error if the host lacks what the definition needs.
fn can_start(definition: &Definition, machine: &Machine) -> Result<()> {
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
async fn stands_alone(host: &dyn Host, spec: &GuestSpec, definition: &Definition) -> Result<()> {
    let disk = snapshot::disk_info(host, definition).await?;
    match disk.as_ref().and_then(DiskInfo::other_file) {
        None => Ok(()),
        Some(other) => Err(Error::failed(format!(
            "the disk of {} names another file, {}, and a guest's disk must not",
            spec.vm,
            crate::event::printable(other)
        ))
        .on(host.name())
        .hint("if it is yours: `qemu-img convert -O qcow2` makes one disk of the two")),
    }
}

async fn go_on(host: &dyn Host, spec: &GuestSpec, vm: &Vm) -> Result<()> {
    let mut qmp = vm.qmp(host, &spec.directory).await?;
    qmp.execute("cont", Value::Null).await.map_err(|error| error.on(host.name()))?;
    Ok(())
}

/// Waits until QEMU, the process `pid`, says that the guest runs.
async fn wait_until_running(
    host: &dyn Host,
    spec: &GuestSpec,
    pid: u32,
    limit: Duration,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        let vm = Vm::look(host, spec).await?.filter(|vm| vm.pid == Some(pid));
        let Some(vm) = vm else {
            return Err(died(host, spec, "QEMU ended at once").await);
        };
        // Until it listens, there is nothing to connect to.
        if let Ok(power) = status(host, spec, &vm).await {
            match power {
                Power::Running => return Ok(()),
                Power::Crashed(why) => return Err(died(host, spec, &why).await),
                _ => {}
            }
        }
        if begun.elapsed() > limit {
            let error = died(host, spec, "QEMU does not say that it runs").await;
            return Err(error.hint("`nestlab down` ends it, whatever it does"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Returns the error that `spec`'s VM did not start.
async fn died(host: &dyn Host, spec: &GuestSpec, why: &str) -> Error {
    with_log(host, spec, format!("{} did not start: {why}", spec.vm)).await
}

/// Returns the error `message` with what QEMU said last.
async fn with_log(host: &dyn Host, spec: &GuestSpec, message: String) -> Error {
    let log = Folder(&spec.directory).log();
    let tail = Command::new("tail").args(["-c", &LOG_TAIL.to_string(), "--", log.as_str()]);
    let said = host.run(&tail).await.map(|output| output.stdout).unwrap_or_default();
    Error::failed(message).on(host.name()).tail(&said)
}

/// Stops the VM: by the power button, by QMP, by SIGKILL to the process that is proven to be it.
pub(super) async fn stop(host: &dyn Host, spec: &GuestSpec, how: Stop, feed: &Feed) -> Result<()> {
    let Some(vm) = Vm::look(host, spec).await? else { return Ok(()) };
    end(host, spec, &vm, how, feed).await?;
    host.check(&scripts::forget(Folder(&spec.directory))).await?;
    Ok(())
}

/// Ends the process of `vm`, if it has one.
async fn end(host: &dyn Host, spec: &GuestSpec, vm: &Vm, how: Stop, feed: &Feed) -> Result<()> {
    let Some(pid) = vm.pid else { return Ok(()) };
    if let Stop::Graceful(grace) = how {
        feed.doing("waiting for the guest to shut down");
        if shut_down(host, spec, vm, grace).await && gone(host, spec, pid, QUIT).await? {
            return Ok(());
        }
        feed.doing("pulling the plug");
    }
    if quit(host, spec, vm).await && gone(host, spec, pid, QUIT).await? {
        return Ok(());
    }
    host.check(&scripts::kill(pid, vm.definition.uuid)).await?;
    if gone(host, spec, pid, DEATH).await? {
        return Ok(());
    }
    Err(Error::new(Kind::Stuck, format!("QEMU's process {pid} does not die"))
        .on(host.name())
        .hint("it waits inside the kernel, mostly for a disk: look at `dmesg` there"))
}

/// Presses the power button until QEMU hangs up, and returns whether it does within `grace`.
async fn shut_down(host: &dyn Host, spec: &GuestSpec, vm: &Vm, grace: Duration) -> bool {
    let pressed = async {
        loop {
            match press(host, spec, vm).await {
                Ok(hung_up) => return hung_up,
                // It ended in the middle of the conversation, or another one keeps its socket busy.
                Err(_) => match Vm::look(host, spec).await {
                    Ok(now) if now.as_ref().is_none_or(|now| now.pid != vm.pid) => return true,
                    _ => tokio::time::sleep(LOOK_AGAIN).await,
                },
            }
        }
    };
    tokio::time::timeout(grace, pressed).await.unwrap_or(false)
}

/// Presses the power button until QEMU hangs up, or returns `false` where no guest is to hear it. One
/// press is not enough: a guest that is still booting does not hear that one.
async fn press(host: &dyn Host, spec: &GuestSpec, vm: &Vm) -> Result<bool> {
    let mut qmp = vm.qmp(host, &spec.directory).await?;
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
async fn quit(host: &dyn Host, spec: &GuestSpec, vm: &Vm) -> bool {
    match vm.qmp(host, &spec.directory).await {
        Ok(mut qmp) => qmp.execute("quit", Value::Null).await.is_ok(),
        Err(_) => false,
    }
}

/// Waits until the VM's process `pid` is gone and returns whether it is.
async fn gone(host: &dyn Host, spec: &GuestSpec, pid: u32, limit: Duration) -> Result<bool> {
    let begun = Instant::now();
    while Vm::look(host, spec).await?.is_some_and(|vm| vm.pid == Some(pid)) {
        if begun.elapsed() > limit {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(true)
}
