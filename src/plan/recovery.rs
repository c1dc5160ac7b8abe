//! Labs whose records are damaged: what may be missing in them is looked for in the real world before
//! anything is built on them or removed by them.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};

use super::blueprint::{Blueprint, Machine};
use super::machines::Machines;
use super::{l0, recall};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::host::{Command, Host};
use crate::lab::{Journal, JournalWriter, Lab, RECOVERED, Resource};
use crate::recipe::HypervisorKind;

/// Returns what is to be told of the records of `lab` by every command that reads them.
pub fn warnings(lab: &Lab) -> Vec<String> {
    let journal = lab.read_journal().map(|reading| reading.warnings(&lab.journal_path()));
    let blueprint = Blueprint::find(lab).map(|found| found.and_then(|found| found.lost));
    let mut warnings = journal.unwrap_or_else(|error| vec![error.to_string()]);
    warnings.extend(blueprint.unwrap_or_else(|error| Some(error.to_string())));
    warnings.extend(lab.refusal().map(|refusal| refusal.to_string()));
    warnings
}

/// Makes up for damage of the journal before `blueprint` is built: each VM that the lab may have made counts
/// as made. To be called before the blueprint is kept.
///
/// # Errors
/// [`Kind::Stuck`] if what the damage hides cannot be known, with the way out.
pub async fn before_building(blueprint: &Blueprint, lab: &Lab, journal: &Journal) -> Result<()> {
    if journal.unexamined().is_empty() {
        return Ok(());
    }
    let what = if Blueprint::find(lab)?.is_none_or(|found| found.lost.is_some()) {
        Some("and so are its machines".to_owned())
    } else {
        blueprint.all().find(|machine| machine.is_existing()).map(|machine| {
            format!("and may have had the former settings of the VM {}", machine.spec.vm)
        })
    };
    if let Some(what) = what {
        let path = lab.journal_path();
        return Err(Error::new(Kind::Stuck, format!("the journal {path} is damaged, {what}"))
            .hint(format!(
                "nestlab destroy {} looks for what it made and removes that",
                lab.name()
            )));
    }
    record_all(blueprint, journal).await?;
    journal.examined().await
}

/// Looks for what damage of the journal hides, at every host that answers, and records it, so that it can
/// be removed with the rest.
///
/// # Errors
/// [`Kind::Io`] if the journal cannot be written, and the errors of hosts that answer.
pub async fn find_hidden(machines: &Machines, journal: &Journal, events: &EventSink) -> Result<()> {
    if journal.unexamined().is_empty() {
        return Ok(());
    }
    let blueprint = machines.blueprint();
    record_all(blueprint, journal).await?;
    for existing in blueprint.all().filter(|machine| machine.is_existing()) {
        let vm = &existing.spec.vm;
        let text =
            format!("former settings of {vm} may have been in what is damaged: look at them");
        events.notice(Level::Warning, text);
    }
    let inner = blueprint.all().filter(|machine| machine.hypervisors().next().is_some());
    let hosts = inner.map(|machine| machine.name.as_str());
    for host in [l0::NAME].into_iter().chain(hosts) {
        match machines.host_in_journal(host).await {
            Ok(reached) => find_on(machines, host, &*reached, journal, events).await?,
            // What is in a VM that this lab made goes with the VM.
            Err(error) => {
                events.notice(Level::Warning, format!("{host} was not looked at: {error}"));
            }
        }
    }
    journal.examined().await
}

/// Records that all VMs of `blueprint` that the lab makes may be there.
async fn record_all(blueprint: &Blueprint, journal: &Journal) -> Result<()> {
    let journal = JournalWriter::of_step(journal, RECOVERED);
    for machine in blueprint.all().filter(|machine| !machine.is_existing()) {
        journal.creating(vm(blueprint, machine)).await?;
    }
    Ok(())
}

fn vm(blueprint: &Blueprint, machine: &Machine) -> Resource {
    Resource::Vm {
        host: blueprint.host_in_journal(machine),
        guest: machine.name.to_string(),
        hypervisor: machine.outer,
        vm: machine.spec.vm.clone(),
        directory: machine.spec.directory.clone(),
    }
}

/// Prints what runs the VM in each folder inside `$1`, and the folder's name: QEMU's have a definition of
/// ours, VirtualBox's a settings file.
const FOLDERS: &str = r#"
for dir in "$1"/*/; do
    name=${dir%/}
    name=${name##*/}
    [ ! -e "$dir/guest.json" ] || echo "qemu $name"
    for file in "$dir"*.vbox "$dir"*/*.vbox; do
        [ ! -e "$file" ] || { echo "virtualbox $name"; break; }
    done
done
"#;

/// Records the VMs of this lab on `host`, which the journal calls `name`, that nothing else tells of.
async fn find_on(
    machines: &Machines,
    name: &str,
    host: &dyn Host,
    journal: &Journal,
    events: &EventSink,
) -> Result<()> {
    let folder = folder_on(machines, name);
    let look = Command::new("sh").args(["-c", FOLDERS, "nestlab-folders", folder.as_str()]);
    let mut found: BTreeSet<(String, HypervisorKind)> = BTreeSet::new();
    for line in host.check(&look).await?.text().lines() {
        match line.split_once(' ') {
            Some(("qemu", guest)) => found.insert((guest.to_owned(), HypervisorKind::Qemu)),
            Some((_, guest)) => found.insert((guest.to_owned(), HypervisorKind::VirtualBox)),
            None => false,
        };
    }
    let known: BTreeSet<String> = journal
        .resources()
        .into_iter()
        .filter(|resource| resource.host() == name)
        .filter_map(|resource| resource.carries().map(str::to_owned))
        .collect();
    let journal = JournalWriter::of_step(journal, RECOVERED);
    for (guest, hypervisor) in found.into_iter().filter(|(guest, _)| !known.contains(guest)) {
        let (vm, directory) = (vm_name(machines, name, &guest), folder.join(&guest));
        events.notice(Level::Warning, format!("{vm} is on {name}, and no record tells of it"));
        let host = name.to_owned();
        journal.creating(Resource::Vm { host, guest, hypervisor, vm, directory }).await?;
    }
    Ok(())
}

/// Returns what the VM of `guest` is called on the host that the journal calls `host`.
fn vm_name(machines: &Machines, host: &str, guest: &str) -> String {
    let lab = machines.lab();
    match machines.blueprint().owner.as_ref().filter(|_| host == l0::NAME) {
        Some(owner) => lab.vm_name(&format!("{owner}-{guest}")),
        None => lab.vm_name(guest),
    }
}

/// Returns where the lab's guests lie on the host that the journal calls `host`.
fn folder_on(machines: &Machines, host: &str) -> Utf8PathBuf {
    let blueprint = machines.blueprint();
    let mut there = blueprint
        .all()
        .filter(|machine| blueprint.host_in_journal(machine) == host && !machine.is_existing());
    let beside = there.next().and_then(|machine| machine.spec.directory.parent());
    match beside {
        Some(folder) => folder.to_owned(),
        None if host == l0::NAME && blueprint.l0_ssh.is_none() => machines.lab().disks(),
        None => recall::root_folder(machines.lab()),
    }
}

/// Refuses to have the folder of `lab` removed while a QEMU of this machine still works on disks in it.
///
/// # Errors
/// [`Kind::Stuck`] that names the processes.
pub fn check_nothing_runs(lab: &Lab) -> Result<()> {
    let folder = lab.directory();
    let real = folder.canonicalize_utf8().unwrap_or_else(|_| folder.to_owned());
    let running = processes_in(&[folder, &real])?;
    if running.is_empty() {
        return Ok(());
    }
    let pids = running.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let text = format!("QEMU still works on disks of the lab {}: process {pids}", lab.name());
    Err(Error::new(Kind::Stuck, text)
        .hint(format!("end it (kill {pids}), then run nestlab destroy {} again", lab.name())))
}

/// Returns the ids of the QEMU processes on this machine that name a file in one of `folders`.
fn processes_in(folders: &[&Utf8Path]) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may end while it is looked at.
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if is_qemu_on(&String::from_utf8_lossy(&arguments), folders) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Returns whether `arguments`, each ended by a NUL, are those of a QEMU with a file in one of `folders`.
fn is_qemu_on(arguments: &str, folders: &[&Utf8Path]) -> bool {
    let program = arguments.split('\0').next().map(Utf8Path::new).and_then(Utf8Path::file_name);
    let is_qemu = program.is_some_and(|name| name.starts_with("qemu-system-"));
    is_qemu && folders.iter().any(|folder| arguments.contains(&format!("{folder}/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_is_found_by_the_folder_of_its_disk_and_nothing_else_is() {
        let folder = Utf8Path::new("/state/labs/demo");
        let on = |arguments: &str| is_qemu_on(arguments, &[folder]);
        let disk = r#"{"filename":"/state/labs/demo/disks/l1/disk.qcow2"}"#;
        assert!(on(&format!("/usr/bin/qemu-system-x86_64\0-blockdev\0{disk}\0")));
        for other in [
            "tail\0-f\0/state/labs/demo/disks/l1/serial.log\0",
            "/usr/bin/qemu-system-x86_64\0-hda\0/state/labs/demo-two/disks/l1/disk.qcow2\0",
            "/usr/bin/qemu-system-x86_64\0",
            "",
        ] {
            assert!(!on(other), "{other}");
        }
    }
}
