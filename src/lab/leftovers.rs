//! What labs left behind that nobody works on any more. Finds; removes nothing that is not nestlab's own
//! beyond doubt.

use super::directory::{Lab, Labs, VM_PREFIX};
use super::record::Outcome;
use super::resources::Resource;
use super::status::Run;
use crate::error::Result;

/// A lab whose last run did not end well, and at which nobody is at work.
#[derive(Debug, Clone)]
pub struct Unfinished {
    /// The lab.
    pub lab: Lab,
    /// Its last run; none, if nestlab was ended before it began one.
    pub run: Option<Run>,
    /// What exists because of it.
    pub resources: Vec<Resource>,
}

impl Unfinished {
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

/// Returns the labs whose last run did not end well, and at which nobody is at work. `nestlab up`
/// finishes such a lab and `nestlab destroy` removes it: it is the user's to choose.
pub fn unfinished(labs: &Labs) -> Result<Vec<Unfinished>> {
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
        found.push(Unfinished { resources: lab.resources()?, run, lab });
    }
    Ok(found)
}

/// Returns those of `vms`, the names of the VMs on this machine, that look like a lab's and belong to
/// none that there is: their lab's state directory was deleted, or is another one. Nothing proves
/// that nestlab made them, so they are for the user to remove.
pub fn strays(labs: &Labs, vms: impl IntoIterator<Item = String>) -> Result<Vec<String>> {
    let mut known = Vec::new();
    for name in labs.list()? {
        let ours = labs.open(&name)?.resources()?;
        known.extend(ours.into_iter().filter_map(|resource| match resource {
            Resource::Vm { vm, .. } => Some(vm),
            _ => None,
        }));
    }
    let mut strays: Vec<String> =
        vms.into_iter().filter(|vm| vm.starts_with(VM_PREFIX) && !known.contains(vm)).collect();
    strays.sort();
    Ok(strays)
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::*;
    use crate::hypervisor::HypervisorKind;
    use crate::lab::{Entry, Journal};
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
            let started = Entry::RunStarted {
                command: vec!["nestlab".into(), "up".into()],
                version: "0".into(),
                pid: 1,
                steps: 1,
            };
            let creating = Entry::Creating { step: None, resource: vm };
            let ended = ended.map(|outcome| Entry::RunEnded { outcome });
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

    #[tokio::test]
    async fn a_vm_of_a_lab_that_is_gone_is_a_stray_and_the_users_own_are_not() {
        let bench = Bench::new();
        drop(bench.lab("demo", Some(Outcome::Done)).await);
        let vms = ["nestlab-gone-l1", "nestlab-demo-l1", "Whonix", "my-nestlab-vm"];
        let strays = strays(&bench.labs, vms.map(str::to_owned)).expect("reads");
        assert_eq!(strays, ["nestlab-gone-l1"]);
    }
}
