//! One VM on one host: found without taking another for it, looked at, started, stopped and removed.

use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use super::fault::Fault;
use super::manage::{Manage, VBoxManageFailure};
use super::parse::{self, Listed};
use super::{diff, storage};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::host::Command;
use crate::hypervisor::{
    self, Actual, FoundVm, GuestSpec, Media, Power, Remains, Stop, VmOrigin, aside, still_on,
};

/// How often a VM is looked at that is to change its state.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How long VirtualBox may take on bare metal to bring a VM from one state into the next.
pub(crate) const SETTLES: Duration = Duration::from_secs(60);

/// Returns the power that VirtualBox's word for a VM's state means (VBoxManageInfo.cpp, machineStateToName).
pub(crate) fn power(state: &str) -> Power {
    match state {
        "poweroff" | "aborted" | "teleported" => Power::Off,
        "saved" | "aborted-saved" => Power::Saved,
        "running" | "livesnapshotting" | "onlinesnapshotting" | "teleporting" => Power::Running,
        "paused" | "teleportingpausedvm" => Power::Paused,
        "gurumeditation" => Power::Crashed(state.to_owned()),
        other => Power::Changing(other.to_owned()),
    }
}

/// Returns the VMs of `list vms`.
pub(crate) async fn listed(manage: &Manage<'_>) -> Result<Vec<Listed>> {
    Ok(parse::list_vms(&manage.run(&["list", "vms"]).await?))
}

/// Returns every VM with its settings file, also those whose file cannot be read.
pub(crate) async fn found(manage: &Manage<'_>) -> Result<Vec<FoundVm>> {
    let mut files = parse::settings_files(&manage.run(&["list", "--long", "vms"]).await?);
    let vms = listed(manage).await?.into_iter();
    Ok(vms
        .map(|vm| {
            let file = files.remove(&vm.uuid).map(Utf8PathBuf::from);
            let name = match (&file, vm.is_inaccessible()) {
                // Its settings file has its name.
                (Some(file), true) => file.file_stem().unwrap_or_default().to_owned(),
                _ => vm.name,
            };
            FoundVm { name, id: vm.uuid, uuid: None, file }
        })
        .collect())
}

/// Returns the VM `uuid` as it is; `None` if it is not there, or its settings file cannot be read.
pub(crate) async fn show(manage: &Manage<'_>, uuid: &str) -> Result<Option<Actual>> {
    match manage.run(&["showvminfo", uuid, "--machinereadable"]).await {
        Ok(text) => {
            let settings = parse::machine_readable(&text);
            let state = settings.get("VMState").map_or("", String::as_str);
            Ok(Some(Actual { id: uuid.to_owned(), power: power(state), settings }))
        }
        Err(VBoxManageFailure { fault: Fault::NotFound | Fault::AccessDenied, .. }) => Ok(None),
        Err(failure) => Err(failure.into()),
    }
}

/// Returns the VM of `spec`, and what `showvminfo` does not tell of it.
pub(crate) async fn inspect(manage: &Manage<'_>, spec: &GuestSpec) -> Result<Option<Actual>> {
    let found = match &spec.origin {
        VmOrigin::Made(_) => find_made(manage, spec).await?,
        VmOrigin::Existing { vm, .. } => Some(find_existing(manage, vm).await?),
    };
    let Some(mut actual) = found else { return Ok(None) };
    let resizable = !matches!(spec.origin, VmOrigin::Made(Media::Iso(_)));
    if let Some(slot) = diff::first_disk(&actual.settings)
        && let Some(disk) = storage::medium(&actual.settings, &slot)
        && spec.disk.is_some()
        && resizable
    {
        let info = manage.run(&["showmediuminfo", "disk", disk]).await?;
        if let Some(mib) = parse::capacity_mib(&info) {
            actual.settings.insert(diff::DISK_MIB.to_owned(), mib.to_string());
        }
    }
    Ok(Some(actual))
}

/// Returns the VM that nestlab made for `spec`: it has the name, and its settings file lies in the guest's
/// folder. Several VMs may have one name.
async fn find_made(manage: &Manage<'_>, spec: &GuestSpec) -> Result<Option<Actual>> {
    let mut foreign = None;
    for vm in listed(manage).await?.into_iter().filter(|vm| vm.name == spec.vm) {
        let Some(actual) = show(manage, &vm.uuid).await? else { continue };
        let file = actual.settings.get("CfgFile").cloned().unwrap_or_default();
        if Utf8Path::new(&file).starts_with(&spec.directory) {
            return Ok(Some(actual));
        }
        foreign = Some(file);
    }
    match foreign {
        None => Ok(None),
        Some(file) => Err(Error::failed(format!(
            "a VM called {} is there already, and nestlab did not make it",
            spec.vm
        ))
        .on_host(manage.host().name())
        .hint(format!(
            "its settings file is {file}: rename that VM, or give the lab another name"
        ))),
    }
}

/// Returns the VM that has this name or UUID.
async fn find_existing(manage: &Manage<'_>, wanted: &str) -> Result<Actual> {
    let all = listed(manage).await?;
    let uuid = uuid::Uuid::try_parse(wanted).ok().map(|uuid| uuid.to_string());
    let right = |vm: &&Listed| vm.name == wanted || Some(&vm.uuid) == uuid.as_ref();
    let found: Vec<&Listed> = all.iter().filter(right).collect();
    let fail = |message: String, hint: String| {
        Err(Error::new(Kind::HostCannot, message).on_host(manage.host().name()).hint(hint))
    };
    match found.as_slice() {
        [] => {
            let names: Vec<&str> =
                all.iter().filter(|vm| !vm.is_inaccessible()).map(|vm| vm.name.as_str()).collect();
            let hint = match names.as_slice() {
                // Of other users' VMs VirtualBox tells nothing, not even to root.
                [] => "this user has no VM in VirtualBox: run nestlab as the user who has it"
                    .to_owned(),
                names => format!("this user's VMs are: {}", names.join(", ")),
            };
            fail(format!("there is no VM called {wanted}"), hint)
        }
        [vm] => match show(manage, &vm.uuid).await? {
            Some(actual) => Ok(actual),
            None => fail(
                format!("the settings of the VM {wanted} cannot be read"),
                "is its settings file still there, and does this user own it?".to_owned(),
            ),
        },
        several => {
            let uuids: Vec<&str> = several.iter().map(|vm| vm.uuid.as_str()).collect();
            fail(
                format!("{} VMs are called {wanted}", several.len()),
                format!("name the one that is meant by its UUID: {}", uuids.join(", ")),
            )
        }
    }
}

/// Returns the UUID of the VM of `spec` for something that changes nothing; one VM of its name is taken at
/// its word, since looking at one takes VBoxManage several times as long as listing all.
pub(crate) async fn uuid(manage: &Manage<'_>, spec: &GuestSpec) -> Result<Option<String>> {
    let name = name(spec);
    let mut all = listed(manage).await?;
    all.retain(|vm| vm.name == name || vm.uuid.eq_ignore_ascii_case(name));
    match all.as_slice() {
        [vm] => Ok(Some(vm.uuid.clone())),
        _ => Ok(inspect(manage, spec).await?.map(|actual| actual.id)),
    }
}

/// Returns the name, or for an existing VM the name or UUID, of the VM.
fn name(spec: &GuestSpec) -> &str {
    match &spec.origin {
        VmOrigin::Made(_) => &spec.vm,
        VmOrigin::Existing { vm, .. } => vm,
    }
}

/// Returns whether a VM of the name or UUID `vm` runs or is paused; quick, also where VBoxManage is slow.
pub(crate) async fn is_running(manage: &Manage<'_>, vm: &str) -> Result<bool> {
    let running = parse::list_vms(&manage.run(&["list", "runningvms"]).await?);
    Ok(running.iter().any(|one| one.name == vm || one.uuid.eq_ignore_ascii_case(vm)))
}

/// As [`is_running`], for the VM of `spec`.
pub(crate) async fn runs(manage: &Manage<'_>, spec: &GuestSpec) -> Result<bool> {
    is_running(manage, name(spec)).await
}

/// Waits until the VM is off, or crashed, or gone (`None`), for at most `limit` in which its state does not
/// change at all; returns the last state that was seen.
async fn wait_until_off(manage: &Manage<'_>, uuid: &str, limit: Duration) -> Result<Option<Power>> {
    let mut last = None;
    let mut since = Instant::now();
    loop {
        let power = if is_running(manage, uuid).await? {
            Power::Running
        } else {
            match show(manage, uuid).await? {
                Some(actual) => actual.power,
                None => return Ok(None),
            }
        };
        if is_off(&power) || matches!(power, Power::Crashed(_)) {
            return Ok(Some(power));
        }
        if last.as_ref() != Some(&power) {
            since = Instant::now();
            last = Some(power);
        } else if since.elapsed() >= limit {
            return Ok(last);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn is_off(power: &Power) -> bool {
    matches!(power, Power::Off | Power::Saved)
}

/// Stops the VM, which was just seen to be as `actual` says; `settles` is how long VirtualBox may take here
/// for a change of state.
pub(crate) async fn stop(
    manage: &Manage<'_>,
    actual: &Actual,
    how: Stop,
    settles: Duration,
    events: &EventSink,
) -> Result<()> {
    let uuid = actual.id.as_str();
    let mut power = Some(actual.power.clone());
    if matches!(actual.power, Power::Changing(_)) {
        power = wait_until_off(manage, uuid, settles).await?;
    }
    if let (Some(Power::Running), Stop::Graceful(grace) | Stop::Ask(grace)) = (&power, how) {
        events.doing("waiting for it to shut down: its power button was pressed");
        match manage.run(&["controlvm", uuid, "acpipowerbutton"]).await {
            Ok(_) | Err(VBoxManageFailure { fault: Fault::InvalidState, .. }) => {}
            Err(failure) => return Err(failure.into()),
        }
        power = wait_until_off(manage, uuid, grace).await?;
    }
    if power.as_ref().is_none_or(is_off) {
        return Ok(());
    }
    let name = actual.settings.get("name").map_or(uuid, String::as_str);
    if let Stop::Ask(grace) = how {
        return Err(still_on(name, grace).on_host(manage.host().name()));
    }
    events.doing("pulling the plug");
    match manage.run(&["controlvm", uuid, "poweroff"]).await {
        Ok(_) | Err(VBoxManageFailure { fault: Fault::InvalidState, .. }) => {}
        Err(failure) => return Err(failure.into()),
    }
    match wait_until_off(manage, uuid, settles).await? {
        None => Ok(()),
        Some(power) if is_off(&power) => Ok(()),
        Some(_) => {
            Err(Error::failed(format!("VirtualBox does not stop {name}"))
                .on_host(manage.host().name()))
        }
    }
}

/// Says of the settings file `$1` whether it is `whole`, only its `former` version is, which VirtualBox keeps
/// beside it, or it is `broken`. Both end with their last tag, if they are whole.
const SETTINGS: &str = r#"
whole() { [ -f "$1" ] && tail -c 256 -- "$1" | grep -q '</VirtualBox>'; }
if whole "$1"; then echo whole; elif whole "$1-prev"; then echo former; else echo broken; fi
"#;

/// Puts the former version in the place of the settings file `$1`, which is kept.
const RESTORE: &str = r#"
set -e
[ ! -e "$1" ] || mv -f -- "$1" "$1-broken"
cp -p -- "$1-prev" "$1"
"#;

/// Returns what there is of the VM of `spec`, which VirtualBox does not list, or lists as inaccessible.
pub(crate) async fn remains(manage: &Manage<'_>, spec: &GuestSpec) -> Result<Remains> {
    let file = diff::settings_file(spec);
    let script =
        |text: &'static str, name: &str| Command::new("sh").args(["-c", text, name, file.as_str()]);
    let found = manage.host().check(&script(SETTINGS, "nestlab-settings")).await?.text();
    let registered = registered_in(manage, &spec.directory).await?;
    let register = manage.command(["registervm", file.as_str()]);
    Ok(match (found.trim(), registered.as_slice()) {
        ("whole", []) => Remains::Known {
            why: format!("VirtualBox does not list it, and {file} is there"),
            commands: vec![register],
        },
        ("former", registered) => {
            let forget = registered.iter().map(|uuid| manage.command(["unregistervm", uuid]));
            let restore = [script(RESTORE, "nestlab-restore")];
            Remains::Known {
                why: format!("{file} is damaged, and its former version is there"),
                commands: restore.into_iter().chain(forget).chain([register]).collect(),
            }
        }
        ("whole", _) => Remains::Lost(format!(
            "VirtualBox cannot use {file}: it may be of a newer VirtualBox, or may not be read"
        )),
        _ => Remains::Lost(format!("{file}, which says what it is, is missing or damaged")),
    })
}

/// Forgets the VM of `spec`, which is off, and moves all that it has to `kept`.
pub(crate) async fn set_aside(
    manage: &Manage<'_>,
    spec: &GuestSpec,
    kept: &Utf8Path,
) -> Result<()> {
    for uuid in registered_in(manage, &spec.directory).await? {
        if let Some(actual) = show(manage, &uuid).await?
            && !is_off(&actual.power)
        {
            let text = format!("{} runs, and what runs is not moved", spec.vm);
            return Err(Error::failed(text).on_host(manage.host().name()));
        }
        match manage.run(&["unregistervm", &uuid]).await {
            Ok(_) | Err(VBoxManageFailure { fault: Fault::NotFound, .. }) => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    forget_media(manage, &spec.directory).await?;
    manage.host().check(&aside::command(&spec.directory, kept)).await.map(drop)
}

/// Removes the VM that nestlab made for `spec`, with its media and its folder, as far as each is there.
///
/// VirtualBox only forgets; the files go with the folder, so that nothing outside it is ever deleted.
/// (`unregistervm --delete` also fails half-way for a VM with snapshots and a written-through disk.)
pub(crate) async fn remove(
    manage: &Manage<'_>,
    spec: &GuestSpec,
    events: &EventSink,
) -> Result<()> {
    for uuid in registered_in(manage, &spec.directory).await? {
        unregister(manage, &uuid, events).await?;
    }
    forget_media(manage, &spec.directory).await?;
    remove_folder(manage, &spec.directory, events).await
}

/// Stops the VM and has VirtualBox forget it; its files stay.
pub(crate) async fn unregister(manage: &Manage<'_>, uuid: &str, events: &EventSink) -> Result<()> {
    if let Some(actual) = show(manage, uuid).await? {
        stop(manage, &actual, Stop::PowerOff, SETTLES, events).await?;
    }
    events.doing("removing the VM");
    match manage.run(&["unregistervm", uuid]).await {
        Ok(_) | Err(VBoxManageFailure { fault: Fault::NotFound, .. }) => Ok(()),
        Err(failure) => Err(failure.into()),
    }
}

/// Returns the UUIDs of all VMs whose settings file lies, or lay, in `directory`.
async fn registered_in(manage: &Manage<'_>, directory: &Utf8Path) -> Result<Vec<String>> {
    let files = parse::settings_files(&manage.run(&["list", "--long", "vms"]).await?);
    let inside = |file: &str| Utf8Path::new(file).starts_with(directory);
    Ok(files.into_iter().filter(|(_, file)| inside(file)).map(|(uuid, _)| uuid).collect())
}

/// Makes VirtualBox forget the disks in `directory` that no VM has: an interrupted run left them.
pub(crate) async fn forget_media(manage: &Manage<'_>, directory: &Utf8Path) -> Result<()> {
    for path in parse::media(&manage.run(&["list", "hdds"]).await?) {
        if Utf8Path::new(&path).starts_with(directory) {
            match manage.run(&["closemedium", "disk", &path]).await {
                // It is attached: that VM has it.
                Ok(_) | Err(VBoxManageFailure { fault: Fault::InUse | Fault::NotFound, .. }) => {}
                Err(failure) => return Err(failure.into()),
            }
        }
    }
    Ok(())
}

/// Removes from the folder `$1` what nestlab and VirtualBox put there, and the folder, or prints what else is
/// in it. The disks of an appliance have names of their own.
const REMOVE_FOLDER: &str = r#"
[ -d "$1" ] || exit 0
find "$1" -xdev ! -type d \( -name '*.vbox' -o -name '*.vbox-*' -o -name '*.vdi' -o -name '*.vmdk' \
    -o -name '*.nvram' -o -name '*.sav' -o -name 'VBox*.log*' -o -name 'serial.log*' \
    -o -name 'disk.*' -o -name 'import.ova*' -o -name 'cd.iso*' -o -name 'seed*.img*' \) -delete || exit 1
find "$1" -xdev -depth -type d -empty -delete || exit 1
[ ! -d "$1" ] || find "$1" ! -type d
"#;

/// Removes the guest's folder, but for what somebody else put into it.
async fn remove_folder(
    manage: &Manage<'_>,
    directory: &Utf8Path,
    events: &EventSink,
) -> Result<()> {
    let deep = directory.is_absolute() && directory.components().count() > 2;
    if !deep {
        return Err(Error::internal(format!("{directory} is not a guest's folder")));
    }
    let host = manage.host();
    let remove = Command::new("sh").args(["-c", REMOVE_FOLDER, "nestlab-remove"]);
    let left = host.check(&remove.arg(directory.as_str())).await?.text();
    if !left.is_empty() {
        events.notice(Level::Warning, hypervisor::left(host, &left));
    }
    Ok(())
}

/// Returns where the VM's logs lie.
pub(crate) fn log_folder(actual: &Actual) -> Option<Utf8PathBuf> {
    actual.settings.get("LogFldr").map(Utf8PathBuf::from)
}
