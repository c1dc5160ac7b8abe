//! What must change so that a VM is as its spec says: the wanted against the actual, with the exact
//! commands. Pure.

use camino::Utf8PathBuf;

use super::settings::{self, Rule, Settings, WantedSetting};
use super::storage::{self, Invocation, Slot};
use super::tsc;
use super::version::Spelling;
use crate::host::Command;
use crate::hypervisor::{Actual, Change, Forward, GuestSpec, Media, Power, Probe, VmOrigin};
use crate::recipe::Mebibytes;

/// Stands for a port in a command that is not run yet: the one that is free on the guest's host when it
/// is.
pub const FREE_PORT: &str = "{free port}";

/// The snapshot that is taken of an existing VM before its first change, if the recipe asks for it.
pub const SNAPSHOT_BEFORE: &str = "nestlab-before";

/// The setting's name under which [`Actual`] tells the size of the first disk.
pub(crate) const DISK_MIB: &str = "disk-mib";

/// Turns words into commands, as the host's VBoxManage spells them.
struct CommandWriter<'a> {
    program: &'a str,
    spelling: Spelling,
    spec: &'a GuestSpec,
    /// Whether guests should be told to read the host's time stamp counter; see [`tsc`].
    steady_tsc: bool,
}

/// Returns what must change, in order; see [`crate::hypervisor::Hypervisor::changes`].
pub(crate) fn changes(spec: &GuestSpec, actual: Option<&Actual>, probe: &Probe) -> Vec<Change> {
    let spelling = Spelling::of(&probe.version);
    let steady_tsc = probe.details.contains_key(tsc::STEADY);
    let writer = CommandWriter { program: probe.program.as_str(), spelling, spec, steady_tsc };
    match (actual, &spec.origin) {
        (Some(actual), VmOrigin::Made(media)) => {
            let mut changes = writer.settings(actual);
            changes.extend(writer.disks(media, actual));
            changes.extend(writer.forwards(actual));
            changes.extend(writer.clock(actual));
            changes
        }
        (Some(actual), VmOrigin::Existing { snapshot_before, .. }) => {
            let mut changes = writer.settings(actual);
            changes.extend(writer.forwards(actual));
            if *snapshot_before && !changes.is_empty() && !has_snapshot(&actual.settings) {
                changes.insert(0, writer.snapshot(actual));
            }
            changes
        }
        (None, VmOrigin::Made(media)) => vec![writer.creation(media)],
        // Inspecting fails for an existing VM that does not exist.
        (None, VmOrigin::Existing { .. }) => Vec::new(),
    }
}

/// Whether the snapshot from before the first change is there.
fn has_snapshot(vm: &Settings) -> bool {
    vm.iter().any(|(setting, name)| setting.starts_with("SnapshotName") && name == SNAPSHOT_BEFORE)
}

impl CommandWriter<'_> {
    fn manage(&self, args: impl IntoIterator<Item = String>) -> Command {
        Command::new(self.program).args(args)
    }

    fn command(&self, act: Invocation) -> Command {
        match act {
            Invocation::Manage(args) => self.manage(args),
            Invocation::Program(argv) => Command::from_argv(argv),
        }
    }

    fn modify(&self, vm: &str, args: Vec<String>) -> Command {
        self.manage(["modifyvm".to_owned(), vm.to_owned()].into_iter().chain(args))
    }

    /// Returns what `modifyvm` changes.
    fn settings(&self, actual: &Actual) -> Vec<Change> {
        let differs = |wanted: &WantedSetting| {
            let value = actual.settings.get(&wanted.setting);
            value.is_none_or(|value| !settings::same(&wanted.setting, value, &wanted.value))
        };
        settings::wanted(self.spec, Some(&actual.settings), self.spelling)
            .into_iter()
            .filter(differs)
            .map(|wanted| Change {
                actual: actual.settings.get(&wanted.setting).cloned(),
                commands: vec![self.modify(&actual.id, wanted.args)],
                setting: wanted.setting,
                wanted: wanted.value,
                needs_power_off: true,
            })
            .collect()
    }

    fn snapshot(&self, actual: &Actual) -> Change {
        let args = ["snapshot", &actual.id, "take", SNAPSHOT_BEFORE];
        Change {
            setting: "snapshot".to_owned(),
            actual: None,
            wanted: SNAPSHOT_BEFORE.to_owned(),
            commands: vec![self.manage(args.map(str::to_owned))],
            needs_power_off: true,
        }
    }

    /// Returns the forwards that are missing or wrong. A running VM takes them as it runs.
    fn forwards(&self, actual: &Actual) -> Vec<Change> {
        let running = matches!(actual.power, Power::Running | Power::Paused);
        let Some(adapter) = settings::nat_adapter(&actual.settings).or(self.first_adapter()) else {
            return Vec::new();
        };
        let missing = |forward: &&Forward| settings::forwarded(&actual.settings, forward).is_none();
        self.spec
            .forwards
            .iter()
            .filter(missing)
            .map(|forward| {
                let rule = wanted_rule(adapter, forward);
                let old = settings::rules(&actual.settings).find(|old| old.name == rule.name);
                let delete = old.as_ref().map(|old| self.delete_rule(&actual.id, old, running));
                let add = self.add_rule(&actual.id, &rule, running);
                Change {
                    setting: rule.setting(),
                    actual: old.map(|old| old.text),
                    wanted: rule.text,
                    commands: delete.into_iter().chain([add]).collect(),
                    needs_power_off: false,
                }
            })
            .collect()
    }

    /// Returns the adapter that becomes the NAT adapter of a VM that nestlab makes.
    fn first_adapter(&self) -> Option<u32> {
        matches!(self.spec.origin, VmOrigin::Made(_)).then_some(1)
    }

    fn add_rule(&self, vm: &str, rule: &Rule, running: bool) -> Command {
        if running {
            let option = format!("natpf{}", rule.adapter);
            self.manage(["controlvm".to_owned(), vm.to_owned(), option, rule.argument()])
        } else {
            self.modify(vm, vec![self.spelling.nat_pf(rule.adapter), rule.argument()])
        }
    }

    fn delete_rule(&self, vm: &str, rule: &Rule, running: bool) -> Command {
        let name = rule.name.clone();
        if running {
            let option = format!("natpf{}", rule.adapter);
            self.manage(["controlvm".to_owned(), vm.to_owned(), option, "delete".to_owned(), name])
        } else {
            let option = self.spelling.nat_pf(rule.adapter);
            self.modify(vm, vec![option, "delete".to_owned(), name])
        }
    }

    /// Returns what is missing of the disks of a VM that nestlab made.
    fn disks(&self, media: &Media, actual: &Actual) -> Vec<Change> {
        let vm = &actual.settings;
        let sata = storage::sata(vm);
        let mut changes = Vec::new();
        let mut change =
            |setting: String, old: Option<&str>, wanted: String, acts: Vec<Invocation>| {
                changes.push(Change {
                    setting,
                    actual: old.map(str::to_owned),
                    wanted,
                    commands: acts.into_iter().map(|act| self.command(act)).collect(),
                    needs_power_off: true,
                });
            };
        if sata.is_none() && (self.spec.seed.is_some() || !matches!(media, Media::Ova(_))) {
            let acts = vec![storage::add_controller(&actual.id)];
            change(storage::CONTROLLER.to_owned(), None, "AHCI".to_owned(), acts);
        }
        let first = storage::first_slot();
        if let Some((file, acts)) = self.first_medium(media, &actual.id, &first)
            && storage::medium(vm, &first).is_none()
        {
            change(first.setting(), None, file.into_string(), acts);
        }
        if let Some(seed) = &self.spec.seed
            && storage::seed_slot(self.spec, vm).is_none()
        {
            let controller = sata
                .unwrap_or(storage::Controller { name: storage::CONTROLLER.to_owned(), ports: 2 });
            let slot = storage::free_seed_slot(self.spec, &controller, vm);
            let file = storage::seed_file(self.spec, seed);
            let mut acts = storage::from_raw(seed, &file);
            if slot.port >= controller.ports {
                acts.push(storage::set_ports(&actual.id, &controller.name, slot.port + 1));
            }
            acts.push(storage::attach_seed(&actual.id, &slot, &file));
            change(slot.setting(), storage::medium(vm, &slot), file.into_string(), acts);
        }
        changes.extend(self.growth(actual));
        changes
    }

    /// Returns the medium of the first slot and what puts it there; an appliance brings its own.
    fn first_medium(
        &self,
        media: &Media,
        vm: &str,
        slot: &Slot,
    ) -> Option<(Utf8PathBuf, Vec<Invocation>)> {
        match media {
            Media::Ova(_) => None,
            Media::Disk(given) => {
                let file = storage::disk_file(self.spec, given);
                let mut acts = storage::make_disk(self.spec, given);
                acts.push(storage::attach_disk(vm, slot, &file));
                Some((file, acts))
            }
            Media::Iso(iso) => Some((iso.clone(), vec![storage::attach_iso(vm, slot, iso)])),
        }
    }

    /// Returns what makes the first disk as large as the recipe says. A disk with snapshots stays: it
    /// cannot be resized.
    fn growth(&self, actual: &Actual) -> Option<Change> {
        let wanted = self.spec.disk?.get();
        let vm = &actual.settings;
        let old: u64 = vm.get(DISK_MIB)?.parse().ok()?;
        let slot = first_disk(vm)?;
        let file = storage::medium(vm, &slot)?;
        (old < wanted && !vm.contains_key("SnapshotName")).then(|| Change {
            setting: DISK_MIB.to_owned(),
            actual: Some(old.to_string()),
            wanted: wanted.to_string(),
            commands: vec![self.command(storage::grow(file, wanted))],
            needs_power_off: true,
        })
    }

    /// Returns what lets the guest read the host's time stamp counter.
    fn clock(&self, actual: &Actual) -> Option<Change> {
        let mode = actual.settings.get(tsc::MODE);
        let due = self.steady_tsc && tsc::is_free(actual);
        (due && mode.is_none_or(|mode| mode != tsc::OFFSET)).then(|| Change {
            setting: tsc::MODE.to_owned(),
            actual: mode.cloned(),
            wanted: tsc::OFFSET.to_owned(),
            commands: vec![self.manage(tsc::set(&actual.id))],
            needs_power_off: true,
        })
    }

    /// Returns the one change that makes the VM, addressed by its name: nothing else has it, or
    /// inspecting would have failed.
    fn creation(&self, media: &Media) -> Change {
        let spec = self.spec;
        let vm = spec.vm.as_str();
        let mut commands = vec![self.command(storage::remove(&vm_folder(spec)))];
        let all = settings::wanted(spec, None, self.spelling);
        let args = all.into_iter().flat_map(|wanted| wanted.args).collect();
        match media {
            Media::Ova(ova) => {
                commands.push(self.import(ova.as_str()));
                commands.push(self.modify(vm, args));
            }
            Media::Disk(_) | Media::Iso(_) => {
                commands.push(self.create());
                commands.push(self.modify(vm, args));
                commands.push(self.command(storage::add_controller(vm)));
                let first = storage::first_slot();
                let medium = self.first_medium(media, vm, &first);
                let acts = medium.into_iter().flat_map(|(_, acts)| acts);
                commands.extend(acts.map(|act| self.command(act)));
            }
        }
        commands.extend(self.steady_tsc.then(|| self.manage(tsc::set(vm))));
        commands.extend(
            spec.forwards.iter().map(|forward| self.add_rule(vm, &wanted_rule(1, forward), false)),
        );
        Change {
            setting: "vm".to_owned(),
            actual: None,
            wanted: vm.to_owned(),
            commands,
            needs_power_off: false,
        }
    }

    /// The licence is the manifest's business: who writes a recipe with an image accepts it. Disks become
    /// VDIs, which can grow.
    fn import(&self, ova: &str) -> Command {
        let spec = self.spec;
        let args = [
            "import",
            ova,
            "--vsys",
            "0",
            "--eula",
            "accept",
            "--vmname",
            &spec.vm,
            "--basefolder",
            spec.directory.as_str(),
            "--options",
            "importtovdi",
        ];
        let cpus = spec.cpus.known().map(|cpus| ["--cpus".to_owned(), cpus.to_string()]);
        let memory =
            spec.memory.known().map(|memory| ["--memory".to_owned(), memory.get().to_string()]);
        let sizes = cpus.into_iter().chain(memory).flatten();
        self.manage(args.map(str::to_owned).into_iter().chain(sizes))
    }

    fn create(&self) -> Command {
        let spec = self.spec;
        let args = [
            "createvm",
            "--name",
            &spec.vm,
            "--ostype",
            "Debian_64",
            "--register",
            "--basefolder",
            spec.directory.as_str(),
        ];
        self.manage(args.into_iter().chain(self.spelling.x86().iter().copied()).map(str::to_owned))
    }
}

/// Returns a forward as it is wanted, at a port that is chosen when it is made.
fn wanted_rule(adapter: u32, forward: &Forward) -> Rule {
    let text = format!("tcp,127.0.0.1,{FREE_PORT},,{}", forward.guest_port);
    Rule { adapter, name: forward.name.clone(), text }
}

/// Returns the slot of the first disk on the SATA controller.
pub(crate) fn first_disk(vm: &Settings) -> Option<Slot> {
    let controller = storage::sata(vm)?;
    (0..controller.ports)
        .map(|port| Slot { controller: controller.name.clone(), port })
        .find(|slot| vm.contains_key(&slot.uuid_setting()))
}

/// Returns the folder that VirtualBox makes for the VM in the guest's own.
pub(crate) fn vm_folder(spec: &GuestSpec) -> Utf8PathBuf {
    spec.directory.join(file_name(spec))
}

/// Returns the file in that folder in which VirtualBox keeps the VM's settings.
pub(crate) fn settings_file(spec: &GuestSpec) -> Utf8PathBuf {
    vm_folder(spec).join(format!("{}.vbox", file_name(spec)))
}

/// Returns the VM's name as VirtualBox writes it as a file's: with an underscore for what is odd.
fn file_name(spec: &GuestSpec) -> String {
    let plain = |c: char| if c.is_alphanumeric() || " ()-_.&".contains(c) { c } else { '_' };
    let name: String = spec.vm.chars().map(plain).collect();
    name.strip_prefix('.').map_or(name.clone(), |rest| format!("_{rest}"))
}

/// Returns what of `spec` the actual VM does not get, a sentence each.
pub(crate) fn stays(spec: &GuestSpec, actual: &Actual) -> Vec<String> {
    let disk = actual.settings.get(DISK_MIB).and_then(|mib| Mebibytes::new(mib.parse().ok()?));
    let Some((wanted, disk)) = spec.disk.zip(disk).filter(|(wanted, disk)| wanted != disk) else {
        return Vec::new();
    };
    let why = match disk > wanted {
        true => "a disk does not shrink",
        false if actual.settings.contains_key("SnapshotName") => "one with snapshots does not grow",
        false => return Vec::new(),
    };
    vec![format!("its disk stays at {disk}, though the recipe says {wanted}: {why}")]
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{existing, made, probe, spec, vm};
    use super::*;
    use crate::recipe::{Constraint, Cpus};

    fn lines(changes: &[Change]) -> Vec<String> {
        changes
            .iter()
            .flat_map(|change| &change.commands)
            .map(|command| command.argv().join(" "))
            .collect()
    }

    fn settings(changes: &[Change]) -> Vec<&str> {
        changes.iter().map(|change| change.setting.as_str()).collect()
    }

    #[test]
    fn an_appliance_is_imported_with_its_cpus_reduced_and_its_licence_accepted() {
        let changes = changes(&spec(), None, &probe());
        assert_eq!(settings(&changes), ["vm"]);
        let lines = lines(&changes);
        assert_eq!(lines[0], "rm -rf -- /labs/demo/l2/nestlab-demo-l2");
        assert_eq!(
            lines[1],
            "VBoxManage import /labs/demo/l2/appliance.ova --vsys 0 --eula accept --vmname \
             nestlab-demo-l2 --basefolder /labs/demo/l2 --options importtovdi --cpus 1 --memory 512"
        );
        assert!(lines[2].starts_with("VBoxManage modifyvm nestlab-demo-l2 --cpus 1 --memory 512"));
        assert!(lines[3].ends_with(
            "modifyvm nestlab-demo-l2 --nat-pf1 nestlab-ssh,tcp,127.0.0.1,{free port},,22"
        ));
    }

    #[test]
    fn a_vm_from_a_raw_disk_is_created_and_the_disk_converted() {
        let changes = changes(&made(Media::Disk("/labs/demo/l2/l2.raw".into())), None, &probe());
        let lines = lines(&changes);
        assert!(
            lines[1].starts_with("VBoxManage createvm --name nestlab-demo-l2 --ostype Debian_64")
        );
        assert!(lines[1].ends_with("--platform-architecture x86"));
        assert!(lines.contains(
            &"VBoxManage convertfromraw /labs/demo/l2/l2.raw /labs/demo/l2/disk.vdi --format VDI"
                .to_owned()
        ));
        assert!(lines.iter().any(|line| line.contains("storageattach nestlab-demo-l2")
            && line.contains("--medium /labs/demo/l2/disk.vdi")));
    }

    #[test]
    fn only_what_differs_is_changed_and_by_uuid() {
        let mut spec = existing("we\"ird");
        spec.cpus = Constraint::Exactly(Cpus::new(3).expect("not zero"));
        let actual = vm("odd-vm", Power::Off);
        let changes = changes(&spec, Some(&actual), &probe());
        assert_eq!(settings(&changes), ["snapshot", "cpus", "memory", "natpf1/nestlab-ssh"]);
        let cpus = &changes[1];
        assert_eq!((cpus.actual.as_deref(), cpus.wanted.as_str()), (Some("2"), "3"));
        assert_eq!(
            lines(&changes),
            [
                "VBoxManage snapshot 00000000-0000-4000-8000-000000000001 take nestlab-before",
                "VBoxManage modifyvm 00000000-0000-4000-8000-000000000001 --cpus 3",
                "VBoxManage modifyvm 00000000-0000-4000-8000-000000000001 --memory 512",
                "VBoxManage modifyvm 00000000-0000-4000-8000-000000000001 --nat-pf1 \
                 nestlab-ssh,tcp,127.0.0.1,{free port},,22",
            ]
        );
    }

    #[test]
    fn a_snapshot_is_taken_once_and_only_before_a_change() {
        let mut actual = vm("odd-vm", Power::Off);
        actual.settings.insert("SnapshotName-1".into(), SNAPSHOT_BEFORE.into());
        assert!(!settings(&changes(&existing("x"), Some(&actual), &probe())).contains(&"snapshot"));
        let mut done = vm("plain-vm", Power::Off);
        let spec = existing("x");
        for change in changes(&spec, Some(&done), &probe()) {
            done.settings.insert(change.setting, change.wanted.replace(FREE_PORT, "20000"));
        }
        assert_eq!(changes(&spec, Some(&done), &probe()), []);
    }

    #[test]
    fn a_guest_reads_the_tsc_of_a_host_that_is_steady_but_its_session_is_not_ended_for_it() {
        let mut steady = probe();
        steady.details.insert(tsc::STEADY.to_owned(), String::new());
        let spec = spec();
        let made = lines(&changes(&spec, None, &steady));
        let set = "VBoxManage setextradata nestlab-demo-l2 VBoxInternal/TM/TSCMode RealTSCOffset";
        assert!(made.contains(&set.to_owned()), "{made:?}");
        assert!(!lines(&changes(&spec, None, &probe())).contains(&set.to_owned()));

        let mut actual = vm("plain-vm", Power::Off);
        let is_wanted = |actual: &Actual, probe: &Probe| {
            settings(&changes(&spec, Some(actual), probe)).contains(&tsc::MODE)
        };
        assert!(is_wanted(&actual, &steady));
        assert!(!is_wanted(&actual, &probe()));
        actual.power = Power::Running;
        assert!(!is_wanted(&actual, &steady));
        actual.power = Power::Off;
        actual.settings.insert(tsc::MODE.to_owned(), tsc::OFFSET.to_owned());
        assert!(!is_wanted(&actual, &steady));
    }

    #[test]
    fn a_running_vm_gets_a_forward_without_being_stopped() {
        let mut spec = existing("x");
        let mut actual = vm("plain-vm", Power::Running);
        actual.settings.insert("natpf1/nestlab-ssh".into(), "tcp,0.0.0.0,22,,22".into());
        spec.cpus = Constraint::Unchanged;
        spec.memory = Constraint::Unchanged;
        actual.settings.insert("ioapic".into(), "on".into());
        let changes = changes(&spec, Some(&actual), &probe());
        let forward =
            changes.iter().find(|change| change.setting.starts_with("natpf")).expect("one");
        assert!(!forward.needs_power_off);
        let uuid = &actual.id;
        assert_eq!(
            lines(std::slice::from_ref(forward)),
            [
                format!("VBoxManage controlvm {uuid} natpf1 delete nestlab-ssh"),
                format!(
                    "VBoxManage controlvm {uuid} natpf1 nestlab-ssh,tcp,127.0.0.1,{FREE_PORT},,22"
                ),
            ]
        );
    }

    #[test]
    fn a_half_made_vm_gets_just_what_it_lacks() {
        let spec = made(Media::Disk("/labs/demo/l2/l2.vdi".into()));
        let actual = vm("plain-vm", Power::Off);
        let changes = changes(&spec, Some(&actual), &probe());
        let lines = lines(&changes).join("\n");
        for part in
            ["storagectl", "--medium /labs/demo/l2/l2.vdi", "--medium /labs/demo/l2/seed.vdi"]
        {
            assert!(lines.contains(part), "{part} is missing:\n{lines}");
        }
        assert!(
            !lines.contains("createvm") && !lines.contains("convertfromraw /labs/demo/l2/l2.vdi")
        );
    }

    #[test]
    fn a_disk_grows_and_never_shrinks() {
        let mut spec = made(Media::Ova("/x.ova".into()));
        let mut actual = vm("odd-vm", Power::Off);
        actual.settings.retain(|setting, _| !setting.starts_with("Snapshot"));
        actual.settings.insert(DISK_MIB.into(), "64".into());
        let growth = |spec: &GuestSpec, actual: &Actual| {
            lines(&changes(spec, Some(actual), &probe()))
                .into_iter()
                .find(|line| line.contains("modifymedium"))
        };
        spec.disk = crate::recipe::Mebibytes::new(128);
        assert!(growth(&spec, &actual).expect("grows").ends_with("--resize 128"));
        spec.disk = crate::recipe::Mebibytes::new(32);
        assert_eq!(growth(&spec, &actual), None);
        // VirtualBox refuses to resize a disk that has snapshots; the recorded VM has one.
        let mut with_snapshots = vm("odd-vm", Power::Off);
        with_snapshots.settings.insert(DISK_MIB.into(), "64".into());
        spec.disk = crate::recipe::Mebibytes::new(128);
        assert_eq!(growth(&spec, &with_snapshots), None);
    }

    #[test]
    fn a_name_with_odd_characters_cannot_lead_out_of_the_guests_folder() {
        let folder = |name: &str| vm_folder(&GuestSpec { vm: name.into(), ..spec() });
        assert_eq!(folder("../../etc"), "/labs/demo/l2/_._.._etc");
        assert_eq!(folder(".."), "/labs/demo/l2/_.");
        assert_eq!(folder("nestlab-demo-l2"), "/labs/demo/l2/nestlab-demo-l2");
    }
}
