//! Labs whose last run did not end well, and VMs whose lab is gone. Finds; a VM is a lab's only if that is
//! beyond doubt.

use camino::Utf8PathBuf;

use super::directory::{Lab, Labs, VM_PREFIX};
use super::record::Outcome;
use super::resources::Resource;
use super::status::RunRecord;
use crate::error::Result;
use crate::hypervisor::{FoundVm, spec};
use crate::recipe::LabName;

/// A lab whose last run did not end well, and at which nobody is at work.
#[derive(Debug, Clone)]
pub struct UnfinishedLab {
    /// The lab.
    pub lab: Lab,
    /// Its last run; none, if nestlab was ended before it began one.
    pub run: Option<RunRecord>,
    /// What exists because of it.
    pub resources: Vec<Resource>,
}

impl UnfinishedLab {
    /// Returns in words how its last run ended.
    pub fn how(&self) -> String {
        let Some(run) = &self.run else { return "nothing was begun".to_owned() };
        match &run.ended {
            None => format!("ended by force after {:.0}", run.started),
            Some((at, Outcome::Interrupted)) => format!("interrupted at {at:.0}"),
            Some((at, Outcome::Failed { failure } | Outcome::Stuck { failure })) => {
                format!("failed at {at:.0}: {}", crate::event::printable(&failure.message))
            }
            Some((at, Outcome::Done)) => format!("done at {at:.0}"),
        }
    }
}

/// Returns the labs whose last run did not end well, and at which nobody is at work. They are no litter:
/// `nestlab up` finishes such a lab.
pub fn unfinished(labs: &Labs) -> Result<Vec<UnfinishedLab>> {
    let mut found = Vec::new();
    for name in labs.list()? {
        let lab = labs.open(&name)?;
        if lab.holder()?.is_some() {
            continue;
        }
        let run = lab.status()?.run;
        let well = run.as_ref().and_then(|run| run.ended.as_ref());
        if matches!(well, Some((_, Outcome::Done))) {
            continue;
        }
        found.push(UnfinishedLab { resources: lab.resources()?, run, lab });
    }
    Ok(found)
}

/// A VM that a lab of this state directory made, which is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StrayVm {
    /// The lab.
    pub lab: LabName,
    /// The VM.
    pub vm: FoundVm,
}

/// The VMs of a host that look like a lab's and belong to none that there is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StrayVms {
    /// Those that this state directory made beyond doubt: their files lie, or lay, in it.
    pub ours: Vec<StrayVm>,
    /// The names of the others: another state directory's, another user's, or nobody's.
    pub others: Vec<String>,
}

/// Returns what of `vms`, the VMs on this machine, belongs to no lab that there is. What lies in a lab's
/// directory is that lab's, whether or not its journal names it.
pub fn strays(labs: &Labs, vms: impl IntoIterator<Item = FoundVm>) -> Result<StrayVms> {
    let known = labs.list()?;
    let mut strays = StrayVms::default();
    for vm in vms {
        match maker(labs, &vm) {
            Some(lab) if known.contains(&lab) => {}
            Some(lab) => strays.ours.push(StrayVm { lab, vm }),
            None if vm.name.starts_with(VM_PREFIX) => strays.others.push(vm.name),
            None => {}
        }
    }
    strays.ours.sort_by(|one, other| one.vm.name.cmp(&other.vm.name));
    strays.others.sort();
    Ok(strays)
}

/// Returns the lab of this state directory that made `vm`, if that is certain: its settings file lies in a
/// guest's folder, or its UUID is the one that nestlab derives from a guest's folder and the VM's name.
fn maker(labs: &Labs, vm: &FoundVm) -> Option<LabName> {
    if let Some(file) = &vm.file {
        return Some(labs.guest_at(file)?.0);
    }
    let wanted = vm.uuid?;
    let rest = vm.name.strip_prefix(VM_PREFIX)?;
    // Either name may have a hyphen in it.
    rest.match_indices('-').find_map(|(at, _)| {
        let name: LabName = rest[..at].parse().ok()?;
        let folder = labs.planned(&name).guest_directory(&rest[at + 1..]);
        let folders = [Some(folder.clone()), labs.canonical(&folder)].into_iter().flatten();
        let made = |folder: Utf8PathBuf| spec::uuid(&folder, &vm.name) == wanted;
        folders.into_iter().any(made).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::*;
    use crate::hypervisor::HypervisorKind;
    use crate::lab::{Journal, JournalEntry};
    use crate::recipe::LabName;

    struct Bench {
        _scratch: tempfile::TempDir,
        labs: Labs,
    }

    impl Bench {
        fn new() -> Self {
            let scratch = tempfile::tempdir().expect("a temporary directory");
            let state = Utf8Path::from_path(scratch.path()).expect("UTF-8").join("state");
            Bench { labs: Labs::at(state), _scratch: scratch }
        }

        /// Makes a lab whose run ended like that, or by force.
        async fn lab(&self, name: &str, ended: Option<Outcome>) -> Journal {
            let name: LabName = name.parse().expect("a name");
            let lab = self.labs.create(&name, "").expect("makes");
            let journal = lab.lock(["test"]).and_then(|lock| lock.journal()).expect("opens");
            let vm = Resource::Vm {
                host: "L0".into(),
                guest: "l1".into(),
                hypervisor: HypervisorKind::Qemu,
                vm: lab.vm_name("l1"),
                directory: lab.guest_directory("l1"),
            };
            let started = JournalEntry::RunStarted {
                command: vec!["nestlab".into(), "up".into()],
                version: "0".into(),
                pid: 1,
                steps: 1,
            };
            let creating = JournalEntry::Creating { step: None, resource: vm };
            let ended = ended.map(|outcome| JournalEntry::RunEnded { outcome });
            for entry in [started, creating].into_iter().chain(ended) {
                journal.append(entry).await.expect("writes");
            }
            journal
        }
    }

    #[tokio::test]
    async fn a_lab_that_was_killed_is_found_and_one_at_work_or_done_is_not() {
        let bench = Bench::new();
        drop(bench.lab("done", Some(Outcome::Done)).await);
        drop(bench.lab("killed", None).await);
        drop(bench.lab("stopped", Some(Outcome::Interrupted)).await);
        let _at_work = bench.lab("at-work", None).await;
        let found = unfinished(&bench.labs).expect("reads");
        let names: Vec<&str> = found.iter().map(|lab| lab.lab.name().as_str()).collect();
        assert_eq!(names, ["killed", "stopped"]);
        assert!(found[0].how().starts_with("ended by force"), "{}", found[0].how());
        assert_eq!(found[0].resources.len(), 1);
    }

    fn vm(name: &str, folder: &Utf8Path) -> FoundVm {
        let uuid = Some(spec::uuid(folder, name));
        FoundVm { name: name.to_owned(), id: "42".to_owned(), uuid, file: None }
    }

    #[tokio::test]
    async fn a_vm_is_a_stray_only_if_this_state_directory_made_it_and_its_lab_is_gone() {
        let bench = Bench::new();
        drop(bench.lab("demo", Some(Outcome::Done)).await);
        let folder = |lab: &str, guest: &str| {
            bench.labs.planned(&lab.parse().expect("a name")).guest_directory(guest)
        };
        let registered = |name: &str, file: Utf8PathBuf| FoundVm {
            uuid: None,
            file: Some(file),
            ..vm(name, Utf8Path::new("/"))
        };
        let elsewhere = Utf8Path::new("/home/other/.local/state/nestlab/labs/gone/disks/l1");
        let vms = [
            vm("nestlab-demo-l1", &folder("demo", "l1")),
            vm("nestlab-gone-l1", &folder("gone", "l1")),
            vm("nestlab-gone-too-l1", &folder("gone-too", "l1")),
            vm("nestlab-gone-l2", elsewhere),
            registered("nestlab-left-l1", folder("left", "l1").join("x/x.vbox")),
            registered("nestlab-demo-l2", folder("demo", "l2").join("x/x.vbox")),
            registered("nestlab-theirs-l1", elsewhere.join("x/x.vbox")),
            registered("Whonix", "/home/me/VirtualBox VMs/Whonix/Whonix.vbox".into()),
        ];
        let strays = strays(&bench.labs, vms).expect("reads");
        let ours: Vec<_> = strays.ours.iter().map(|stray| stray.vm.name.as_str()).collect();
        assert_eq!(ours, ["nestlab-gone-l1", "nestlab-gone-too-l1", "nestlab-left-l1"]);
        assert_eq!(strays.ours[1].lab.as_str(), "gone-too");
        assert_eq!(strays.others, ["nestlab-gone-l2", "nestlab-theirs-l1"]);
    }
}
