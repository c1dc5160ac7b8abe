//! What a VM is, as its `guest.json` says: QEMU itself keeps no registry.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::folder::Folder;
use super::scripts;
use crate::error::{Error, Kind, Result};
use crate::host::Command;
use crate::hypervisor::{Actual, Change, Firmware, Forward, GuestSpec, Media, Subnet, VmOrigin};
use crate::recipe::{Cpus, Mebibytes};

/// The version of `guest.json` that is written; newer ones are refused.
const SCHEMA: u32 = 1;

/// The setting that `changes` compares by size instead of text.
pub(super) const DISK_SIZE: &str = "disk-size";

/// A VM as it is defined; the whole command line follows from it and from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Definition {
    schema: u32,
    /// Its name.
    pub(super) vm: String,
    /// What tells its process from all others; the same as long as its name and folder are.
    pub(super) uuid: Uuid,
    /// Virtual CPUs.
    pub(super) cpus: Cpus,
    /// Memory.
    pub(super) memory: Mebibytes,
    /// How it starts.
    pub(super) firmware: Firmware,
    /// What it starts from.
    pub(super) drive: Drive,
    /// The CIDATA volume.
    pub(super) seed: Option<Utf8PathBuf>,
    /// Whether it gets hardware virtualization of its own.
    pub(super) nested: bool,
    /// Its NAT network.
    pub(super) subnet: Subnet,
    /// Its forwarded ports.
    pub(super) forwards: Vec<Forward>,
    /// Networks shared with other guests of its host.
    pub(super) networks: Vec<String>,
    /// Whether it has a window.
    pub(super) gui: bool,
    /// Whether it reaches services on its host's loopback.
    #[serde(default)]
    pub(super) reach_host: bool,
}

/// What a VM starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Drive {
    /// A disk of its own.
    Disk {
        /// The image file.
        path: Utf8PathBuf,
        /// Its format, as QEMU calls it.
        format: QemuDiskFormat,
    },
    /// A read-only CD.
    Cd(Utf8PathBuf),
}

/// The format of a disk image. It is told by the file's name and never by its content: what a guest
/// writes to the start of a raw disk must not make it something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum QemuDiskFormat {
    /// QEMU's own.
    Qcow2,
    /// The disk's bytes.
    Raw,
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
}

impl QemuDiskFormat {
    fn of(path: &Utf8Path) -> Self {
        match path.extension().map(str::to_ascii_lowercase).as_deref() {
            Some("qcow2") => QemuDiskFormat::Qcow2,
            Some("vmdk") => QemuDiskFormat::Vmdk,
            Some("vdi") => QemuDiskFormat::Vdi,
            _ => QemuDiskFormat::Raw,
        }
    }

    /// Returns QEMU's name of it.
    pub(super) fn name(self) -> &'static str {
        match self {
            QemuDiskFormat::Qcow2 => "qcow2",
            QemuDiskFormat::Raw => "raw",
            QemuDiskFormat::Vmdk => "vmdk",
            QemuDiskFormat::Vdi => "vdi",
        }
    }
}

impl Definition {
    /// Has the VM's files in `folder`, the definition's own, which may have been moved since it was written:
    /// those that lay in a folder of that name. A CD may lie elsewhere.
    pub(super) fn move_into(&mut self, folder: &Utf8Path) {
        let (Drive::Disk { path: media, .. } | Drive::Cd(media)) = &mut self.drive;
        for path in [media].into_iter().chain(&mut self.seed) {
            let was_beside = path.parent().and_then(Utf8Path::file_name) == folder.file_name();
            if let Some(name) = path.file_name().filter(|_| was_beside) {
                *path = folder.join(name);
            }
        }
    }

    /// Returns the definition that `spec` asks for.
    ///
    /// # Errors
    /// [`Kind::HostCannot`] for a VM that is to exist already, [`Kind::Internal`] for an OVA, which
    /// has to be converted first.
    pub(super) fn of(spec: &GuestSpec) -> Result<Self> {
        let drive = match &spec.origin {
            VmOrigin::Made(Media::Disk(path)) => {
                Drive::Disk { path: path.clone(), format: QemuDiskFormat::of(path) }
            }
            VmOrigin::Made(Media::Iso(path)) => Drive::Cd(path.clone()),
            VmOrigin::Made(Media::Ova(path)) => {
                return Err(Error::internal(format!("{path} was not unpacked before QEMU got it")));
            }
            VmOrigin::Existing { vm, .. } => {
                return Err(Error::new(
                    Kind::HostCannot,
                    format!("QEMU keeps no list of VMs, so there is no `{vm}` to take over"),
                )
                .hint("`vm = …` works on hosts with VirtualBox; give the guest an `image` here"));
            }
        };
        let unsettled = |what: &str| Error::internal(format!("{} has no {what}", spec.vm));
        Ok(Definition {
            schema: SCHEMA,
            vm: spec.vm.clone(),
            uuid: spec.uuid(),
            cpus: spec.cpus.known().ok_or_else(|| unsettled("CPUs"))?,
            memory: spec.memory.known().ok_or_else(|| unsettled("memory"))?,
            firmware: spec.firmware,
            drive,
            seed: spec.seed.clone(),
            nested: spec.nests(),
            subnet: spec.subnet,
            forwards: spec.forwards.clone(),
            networks: spec.networks.clone(),
            gui: spec.gui,
            reach_host: spec.reach_host,
        })
    }

    /// Returns the definition that `spec` asks for, of a VM that starts with `firmware` now.
    ///
    /// # Errors
    /// As [`Definition::of`].
    pub(super) fn after(spec: &GuestSpec, firmware: Option<Firmware>) -> Result<Self> {
        Ok(Definition { firmware: spec.firmware_after(firmware), ..Definition::of(spec)? })
    }

    /// Returns the definition in a `guest.json`.
    ///
    /// # Errors
    /// [`Kind::Io`] if a newer nestlab wrote it, [`Kind::Stuck`] if it is damaged.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct DefinitionSchema {
            schema: u32,
        }
        let format = serde_json::from_slice::<DefinitionSchema>(bytes);
        if let Some(newer) = format.ok().filter(|format| format.schema > SCHEMA) {
            let text =
                format!("this guest.json was written by a newer nestlab (schema {})", newer.schema);
            return Err(Error::new(Kind::Io, text).hint("use that version for this lab"));
        }
        serde_json::from_slice(bytes).map_err(|error| {
            Error::new(Kind::Stuck, format!("this guest.json is damaged: {error}"))
                .hint("`nestlab up` makes it again from what the lab has written down")
        })
    }

    /// Returns the command that writes it, whole or not at all.
    pub(super) fn write(&self, folder: Folder<'_>) -> Command {
        let mut json =
            serde_json::to_vec_pretty(self).expect("a definition has only text, numbers and lists");
        json.push(b'\n');
        scripts::write_file(&folder.definition()).stdin(json)
    }

    /// Returns the settings by name, for the diff and for people.
    pub(super) fn settings(&self) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::from([
            ("vm".to_owned(), self.vm.clone()),
            ("cpus".to_owned(), self.cpus.to_string()),
            ("memory".to_owned(), self.memory.to_string()),
            ("firmware".to_owned(), self.firmware.to_string()),
            ("nested".to_owned(), on(self.nested)),
            ("subnet".to_owned(), self.subnet.to_string()),
            ("gui".to_owned(), on(self.gui)),
            ("reach-host".to_owned(), on(self.reach_host)),
        ]);
        match &self.drive {
            Drive::Disk { path, .. } => settings.insert("disk".to_owned(), path.to_string()),
            Drive::Cd(path) => settings.insert("cd".to_owned(), path.to_string()),
        };
        if let Some(seed) = &self.seed {
            settings.insert("seed".to_owned(), seed.to_string());
        }
        for forward in &self.forwards {
            settings.insert(format!("forward {}", forward.name), forward.guest_port.to_string());
        }
        for network in &self.networks {
            settings.insert(format!("network {network}"), on(true));
        }
        settings
    }
}

/// Returns the files of `spec` that are this VM's alone besides those that the driver makes: its disk,
/// and what else of its media lies in its folder.
pub(super) fn own_files(spec: &GuestSpec) -> Vec<Utf8PathBuf> {
    let (disk, cd) = match &spec.origin {
        VmOrigin::Made(Media::Disk(path)) => (Some(path), None),
        VmOrigin::Made(Media::Iso(path) | Media::Ova(path)) => (None, Some(path)),
        VmOrigin::Existing { .. } => (None, None),
    };
    let inside = |path: &&Utf8PathBuf| path.starts_with(&spec.directory);
    disk.into_iter()
        .chain(cd.filter(inside))
        .chain(spec.seed.as_ref().filter(inside))
        .cloned()
        .collect()
}

/// Returns the settings of an actual VM whose disk has `disk_bytes`.
pub(super) fn actual_settings(
    definition: &Definition,
    disk_bytes: Option<u64>,
) -> BTreeMap<String, String> {
    let mut settings = definition.settings();
    if let Some(bytes) = disk_bytes {
        settings.insert(DISK_SIZE.to_owned(), bytes.to_string());
    }
    settings
}

/// Returns what must change so that the VM is as `spec` says: one change a setting, the commands at
/// the last one they serve.
pub(super) fn changes(spec: &GuestSpec, actual: Option<&Actual>) -> Vec<Change> {
    let nothing = BTreeMap::new();
    let found = actual.map_or(&nothing, |actual| &actual.settings);
    let firmware = found.get("firmware").and_then(|word| word.parse().ok());
    let Ok(wanted) = Definition::after(spec, firmware) else {
        // `Qemu::change` gives the reason as an error.
        return vec![change("media", None, "a disk image or an ISO".to_owned())];
    };
    let mut changes = difference(&wanted.settings(), found);
    if let Some(last) = changes.last_mut() {
        last.commands.push(wanted.write(Folder(&spec.directory)));
    }
    changes.extend(grow(spec, &wanted, found.get(DISK_SIZE)));
    changes
}

fn difference(wanted: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Vec<Change> {
    let set = wanted
        .iter()
        .filter(|(name, value)| found.get(*name) != Some(value))
        .map(|(name, value)| change(name, found.get(name).cloned(), value.clone()));
    let removed = found
        .iter()
        .filter(|(name, _)| *name != DISK_SIZE && !wanted.contains_key(*name))
        .map(|(name, value)| change(name, Some(value.clone()), "none".to_owned()));
    set.chain(removed).collect()
}

/// Returns the change that grows the disk, if it is smaller than wanted or of unknown size.
fn grow(spec: &GuestSpec, wanted: &Definition, found: Option<&String>) -> Option<Change> {
    let size = spec.disk?;
    let Drive::Disk { path, format } = &wanted.drive else { return None };
    let bytes: Option<u64> = found.and_then(|text| text.parse().ok());
    if bytes.is_some_and(|bytes| bytes >= size.bytes()) {
        return None;
    }
    let mut change = change(DISK_SIZE, bytes.map(shown), format!("at least {size}"));
    change.commands.push(scripts::grow_disk(path, *format, size));
    Some(change)
}

/// Returns what of `spec` the actual VM does not get: a disk does not shrink.
pub(super) fn stays(spec: &GuestSpec, actual: &Actual) -> Vec<String> {
    let bytes = actual.settings.get(DISK_SIZE).and_then(|text| text.parse().ok());
    let smaller = spec.disk.zip(bytes).filter(|(wanted, bytes)| *bytes > wanted.bytes());
    let told = smaller.map(|(wanted, bytes)| {
        format!(
            "its disk stays at {}, though the recipe says {wanted}: a disk does not shrink",
            shown(bytes)
        )
    });
    told.into_iter().collect()
}

fn change(setting: &str, actual: Option<String>, wanted: String) -> Change {
    Change {
        setting: setting.to_owned(),
        actual,
        wanted,
        commands: Vec::new(),
        needs_power_off: true,
    }
}

fn shown(bytes: u64) -> String {
    match Mebibytes::new(bytes >> 20) {
        Some(amount) if amount.bytes() == bytes => amount.to_string(),
        _ => format!("{bytes} bytes"),
    }
}

fn on(value: bool) -> String {
    if value { "on" } else { "off" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::test_support::spec;
    use super::*;
    use crate::hypervisor::Power;
    use crate::recipe::Constraint;

    fn actual(spec: &GuestSpec, disk_bytes: Option<u64>) -> Actual {
        let definition = Definition::of(spec).expect("a disk can be defined");
        Actual {
            id: String::new(),
            power: Power::Off,
            settings: actual_settings(&definition, disk_bytes),
        }
    }

    fn told(changes: &[Change]) -> Vec<String> {
        changes
            .iter()
            .map(|change| {
                let actual = change.actual.as_deref().unwrap_or("-");
                format!("{}: {actual} → {}", change.setting, change.wanted)
            })
            .collect()
    }

    #[test]
    fn a_vm_that_is_as_wanted_needs_no_change() {
        let spec = spec();
        assert_eq!(changes(&spec, Some(&actual(&spec, None))), []);
    }

    #[test]
    fn every_setting_that_differs_is_told_and_written_once() {
        let before = spec();
        let mut after = before.clone();
        after.cpus = Constraint::Exactly(Cpus::new(2).expect("two"));
        after.memory = Constraint::Exactly(Mebibytes::gib(3));
        after.nested = Some(true);
        after.firmware = Firmware::Efi;
        after.subnet = Subnet::new(10, 0, 9);
        after.seed = Some("/lab/l1/seed.img".into());
        after.networks = vec!["demo-lan".to_owned()];
        after.forwards = vec![Forward { name: "web".to_owned(), guest_port: 80 }];
        after.gui = true;
        after.reach_host = true;
        let changes = changes(&after, Some(&actual(&before, None)));
        assert_eq!(
            told(&changes),
            [
                "cpus: 1 → 2",
                "firmware: bios → efi",
                "forward web: - → 80",
                "gui: off → on",
                "memory: 2GiB → 3GiB",
                "nested: off → on",
                "network demo-lan: - → on",
                "reach-host: off → on",
                "seed: - → /lab/l1/seed.img",
                "subnet: 10.0.2.0/24 → 10.0.9.0/24",
                "forward nestlab-ssh: 22 → none",
            ]
        );
        let commands: Vec<_> = changes.iter().flat_map(|change| &change.commands).collect();
        assert_eq!(commands.len(), 1);
        let written = Definition::parse(commands[0].input()).expect("reads what it wrote");
        assert_eq!(written, Definition::of(&after).expect("a disk can be defined"));
    }

    #[test]
    fn a_vm_that_was_made_for_uefi_keeps_it_unless_the_recipe_says_otherwise() {
        let mut spec = spec();
        let mut made = spec.clone();
        made.firmware = Firmware::Efi;
        let made = actual(&made, None);
        assert_eq!(changes(&spec, Some(&made)), []);
        spec.cpus = Constraint::Exactly(Cpus::new(2).expect("two"));
        let written = |changes: &[Change]| {
            Definition::parse(changes[0].commands[0].input()).expect("reads what it wrote").firmware
        };
        assert_eq!(written(&changes(&spec, Some(&made))), Firmware::Efi);
        spec.cpus = Constraint::Exactly(Cpus::ONE);
        spec.firmware_given = true;
        let changes = changes(&spec, Some(&made));
        assert_eq!(told(&changes), ["firmware: efi → bios"]);
        assert_eq!(written(&changes), Firmware::Bios);
    }

    #[test]
    fn a_disk_grows_and_never_shrinks() {
        let mut spec = spec();
        spec.disk = Some(Mebibytes::gib(20));
        let small = changes(&spec, Some(&actual(&spec, Some(3 << 30))));
        assert_eq!(told(&small), ["disk-size: 3GiB → at least 20GiB"]);
        assert_eq!(
            small[0].commands[0].argv(),
            ["qemu-img", "resize", "-q", "-f", "qcow2", "--", "/lab/l1/disk.qcow2", "21474836480"]
        );
        let large = actual(&spec, Some(40 << 30));
        assert_eq!(changes(&spec, Some(&large)), []);
        let told = stays(&spec, &large);
        assert!(told[0].contains("40GiB") && told[0].contains("20GiB"), "{told:?}");
        assert_eq!(stays(&spec, &actual(&spec, Some(20 << 30))), [""; 0]);
    }

    #[test]
    fn what_qemu_cannot_define_is_an_error_of_its_own() {
        let mut spec = spec();
        spec.origin = VmOrigin::Made(Media::Ova("/lab/x.ova".into()));
        let error = Definition::of(&spec).expect_err("an OVA");
        assert_eq!(error.kind(), Kind::Internal);
        spec.origin = VmOrigin::Existing { vm: "mine".to_owned(), snapshot_before: false };
        let error = Definition::of(&spec).expect_err("an existing VM");
        assert_eq!(error.kind(), Kind::HostCannot);
        assert!(!changes(&spec, None).is_empty());
    }

    #[test]
    fn a_vm_of_before_there_was_a_loopback_to_close_is_not_stopped_for_it() {
        let definition = Definition::of(&spec()).expect("a disk can be defined");
        let mut json = serde_json::to_value(&definition).expect("JSON");
        json.as_object_mut().expect("a table").remove("reach_host").expect("is written");
        let before = Definition::parse(json.to_string().as_bytes()).expect("is read");
        assert_eq!(before, definition);
    }

    #[test]
    fn a_definition_from_the_future_is_refused() {
        let mut json: serde_json::Value = serde_json::from_slice(
            Definition::of(&spec()).expect("defined").write(Folder("/x".into())).input(),
        )
        .expect("JSON");
        json["schema"] = 2.into();
        let error = Definition::parse(json.to_string().as_bytes()).expect_err("newer");
        assert!(error.message().contains("newer"), "{error}");
        assert_eq!(error.kind(), Kind::Io);
        // Also if it has what this one does not know.
        let error = Definition::parse(br#"{"schema":2,"disks":[]}"#).expect_err("newer");
        assert_eq!(error.kind(), Kind::Io);
        for damaged in [&b""[..], b"{", br#"{"schema":1}"#] {
            assert_eq!(Definition::parse(damaged).expect_err("damaged").kind(), Kind::Stuck);
        }
    }

    #[test]
    fn a_disks_format_is_never_told_by_what_the_guest_wrote() {
        assert_eq!(QemuDiskFormat::of("/x/disk.img".into()), QemuDiskFormat::Raw);
        assert_eq!(QemuDiskFormat::of("/x/disk".into()), QemuDiskFormat::Raw);
        assert_eq!(QemuDiskFormat::of("/x/disk.QCOW2".into()), QemuDiskFormat::Qcow2);
    }
}
