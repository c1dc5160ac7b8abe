//! A VM's disks: which controller and slot, and the commands that fill it. Pure.

use camino::{Utf8Path, Utf8PathBuf};

use super::settings::Settings;
use crate::hypervisor::{GuestSpec, Media, VmOrigin};

/// The controller that nestlab adds.
pub(crate) const CONTROLLER: &str = "SATA";

/// A place for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) controller: String,
    pub(crate) port: u32,
}

impl Slot {
    /// Returns the slot's name among the settings.
    pub(crate) fn setting(&self) -> String {
        format!("{}-{}-0", self.controller, self.port)
    }

    /// Returns the name under which the settings have the UUID of the medium in it.
    pub(crate) fn uuid_setting(&self) -> String {
        format!("{}-ImageUUID-{}-0", self.controller, self.port)
    }
}

/// Returns the slot of the disk that nestlab attached first.
pub(crate) fn first_slot() -> Slot {
    Slot { controller: CONTROLLER.to_owned(), port: 0 }
}

/// A SATA controller that a VM has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Controller {
    pub(crate) name: String,
    pub(crate) ports: u32,
}

/// Returns the VM's SATA controller; PIIX3, which VirtualBox emulates unless told otherwise, has at most
/// one.
pub(crate) fn sata(settings: &Settings) -> Option<Controller> {
    let number = settings.iter().find_map(|(setting, value)| {
        let number = setting.strip_prefix("storagecontrollertype")?;
        (value == "IntelAhci").then_some(number)
    })?;
    let ports = settings.get(&format!("storagecontrollerportcount{number}"));
    Some(Controller {
        name: settings.get(&format!("storagecontrollername{number}"))?.clone(),
        ports: ports.and_then(|ports| ports.parse().ok()).unwrap_or(0),
    })
}

/// Returns the medium in a slot.
pub(crate) fn medium<'a>(settings: &'a Settings, slot: &Slot) -> Option<&'a str> {
    settings
        .get(&slot.setting())
        .map(String::as_str)
        .filter(|path| !path.is_empty() && *path != "none")
}

/// Returns where the disk of a guest lies that VirtualBox keeps: the given one, or the VDI made from it.
pub(crate) fn disk_file(spec: &GuestSpec, given: &Utf8Path) -> Utf8PathBuf {
    match kind(given) {
        DiskKind::Native => given.to_owned(),
        DiskKind::Raw | DiskKind::Readable => spec.directory.join("disk.vdi"),
    }
}

/// Returns the file that is attached as `seed`: VirtualBox takes no raw disk image, and the name follows
/// the seed's, so that another seed is another file.
pub(crate) fn seed_file(spec: &GuestSpec, seed: &Utf8Path) -> Utf8PathBuf {
    spec.directory.join(format!("{}.vdi", seed.file_stem().unwrap_or("seed")))
}

/// What VirtualBox can do with a disk image, by its file's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DiskKind {
    /// Attach it as it is.
    Native,
    /// Convert it; nothing says what it is but the absence of another format.
    Raw,
    /// Read it, so that a copy can be made (qcow2; without extended L2 entries).
    Readable,
}

fn kind(disk: &Utf8Path) -> DiskKind {
    match disk.extension().unwrap_or_default().to_ascii_lowercase().as_str() {
        "vdi" | "vmdk" | "vhd" => DiskKind::Native,
        "qcow2" | "qcow" | "qed" | "vhdx" => DiskKind::Readable,
        _ => DiskKind::Raw,
    }
}

/// A command by its words; the first says whether VBoxManage runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Invocation {
    /// VBoxManage with these arguments.
    Manage(Vec<String>),
    /// Another program of the host.
    Program(Vec<String>),
}

fn manage<const N: usize>(args: [&str; N]) -> Invocation {
    Invocation::Manage(args.map(str::to_owned).to_vec())
}

/// Returns what removes files and folders of nestlab's own, there or not.
pub(crate) fn remove(path: &Utf8Path) -> Invocation {
    Invocation::Program(["rm", "-rf", "--", path.as_str()].map(str::to_owned).to_vec())
}

/// Returns what makes the file that is attached as the guest's disk.
pub(crate) fn make_disk(spec: &GuestSpec, given: &Utf8Path) -> Vec<Invocation> {
    let file = disk_file(spec, given);
    match kind(given) {
        DiskKind::Native => Vec::new(),
        DiskKind::Raw => from_raw(given, &file),
        DiskKind::Readable => vec![
            remove(&file),
            manage(["clonemedium", "disk", given.as_str(), file.as_str(), "--format", "VDI"]),
            // The original was registered by being read.
            manage(["closemedium", "disk", given.as_str()]),
        ],
    }
}

/// Returns what makes a VDI from a raw image; what an interrupted conversion left is in its way.
pub(crate) fn from_raw(raw: &Utf8Path, vdi: &Utf8Path) -> Vec<Invocation> {
    vec![remove(vdi), manage(["convertfromraw", raw.as_str(), vdi.as_str(), "--format", "VDI"])]
}

/// Returns what adds nestlab's SATA controller to `vm`.
pub(crate) fn add_controller(vm: &str) -> Invocation {
    manage([
        "storagectl",
        vm,
        "--name",
        CONTROLLER,
        "--add",
        "sata",
        "--controller",
        "IntelAhci",
        "--portcount",
        "2",
        "--bootable",
        "on",
    ])
}

/// Returns what gives `controller` of `vm` this many ports.
pub(crate) fn set_ports(vm: &str, controller: &str, ports: u32) -> Invocation {
    manage(["storagectl", vm, "--name", controller, "--portcount", &ports.to_string()])
}

/// Returns what attaches the guest's disk. It gets a UUID of its own: two guests' disks may be copies of
/// one image, and VirtualBox refuses to know two media of one UUID.
pub(crate) fn attach_disk(vm: &str, slot: &Slot, file: &Utf8Path) -> Invocation {
    attach(vm, slot, "hdd", file, ["--setuuid", ""])
}

/// Returns what attaches the seed. It is written through: snapshots leave it, and its path, alone.
/// VirtualBox has no read-only hard disks; the file is this VM's own copy.
pub(crate) fn attach_seed(vm: &str, slot: &Slot, file: &Utf8Path) -> Invocation {
    attach(vm, slot, "hdd", file, ["--mtype", "writethrough"])
}

/// Returns what puts an ISO into the drive at `slot`.
pub(crate) fn attach_iso(vm: &str, slot: &Slot, iso: &Utf8Path) -> Invocation {
    attach(vm, slot, "dvddrive", iso, [])
}

fn attach<const N: usize>(
    vm: &str,
    slot: &Slot,
    kind: &str,
    medium: &Utf8Path,
    options: [&str; N],
) -> Invocation {
    let port = slot.port.to_string();
    let place = ["--storagectl", &slot.controller, "--port", &port, "--device", "0"];
    let what = ["--type", kind, "--medium", medium.as_str()];
    let words = ["storageattach", vm].into_iter().chain(place).chain(what).chain(options);
    Invocation::Manage(words.map(str::to_owned).collect())
}

/// Returns what grows the disk in `file`. By its path: VirtualBox does not find a medium by a UUID that it
/// was given while it was attached.
pub(crate) fn grow(file: &str, mib: u64) -> Invocation {
    manage(["modifymedium", "disk", file, "--resize", &mib.to_string()])
}

/// Returns the slot in which the seed is; `None` if it is in none.
pub(crate) fn seed_slot(spec: &GuestSpec, settings: &Settings) -> Option<Slot> {
    let file = seed_file(spec, spec.seed.as_deref()?);
    let controller = sata(settings)?;
    (0..controller.ports)
        .map(|port| Slot { controller: controller.name.clone(), port })
        .find(|slot| medium(settings, slot) == Some(file.as_str()))
}

/// Returns the slot into which the seed goes: where an earlier one is; of an imported appliance else the
/// first free one, which may be one more than its controller has; else the second, whatever is in it.
pub(crate) fn free_seed_slot(
    spec: &GuestSpec,
    controller: &Controller,
    settings: &Settings,
) -> Slot {
    let slot = |port| Slot { controller: controller.name.clone(), port };
    if !matches!(spec.origin, VmOrigin::Made(Media::Ova(_))) {
        return slot(1);
    }
    let used = |port: &u32| medium(settings, &slot(*port)).is_some();
    let earlier = |port: &u32| {
        medium(settings, &slot(*port)).map(Utf8Path::new).is_some_and(|file| {
            file.parent() == Some(&spec.directory)
                && file.file_name().is_some_and(|name| name.starts_with("seed"))
        })
    };
    let mut ports = 0..controller.ports;
    slot(
        ports
            .clone()
            .find(earlier)
            .or_else(|| ports.find(|port| !used(port)))
            .unwrap_or(controller.ports),
    )
}

#[cfg(test)]
mod tests {
    use super::super::parse::{machine_readable, without_warnings};
    use super::super::test_support::{made, spec};
    use super::super::transcript::printed;
    use super::*;

    #[test]
    fn the_recorded_vms_controller_and_free_slot_are_found_whatever_its_name() {
        let settings = machine_readable(without_warnings(&printed("odd-vm")));
        let controller = sata(&settings).expect("it has one");
        assert_eq!(controller, Controller { name: "SATA \"1\"".into(), ports: 2 });
        let slot = free_seed_slot(&spec(), &controller, &settings);
        assert_eq!(slot.setting(), "SATA \"1\"-1-0");
        assert_eq!(medium(&settings, &slot), None);
        assert_eq!(seed_slot(&spec(), &settings), None);
        assert_eq!(sata(&machine_readable(without_warnings(&printed("plain-vm")))), None);
    }

    #[test]
    fn a_full_controller_gets_one_port_more() {
        let controller = Controller { name: "S".into(), ports: 1 };
        let settings = Settings::from([("S-0-0".to_owned(), "/x.vdi".to_owned())]);
        assert_eq!(free_seed_slot(&spec(), &controller, &settings).port, 1);
        let disk = made(Media::Disk("/d.vdi".into()));
        assert_eq!(free_seed_slot(&disk, &controller, &settings).port, 1);
    }

    #[test]
    fn another_seed_takes_the_place_of_the_earlier_one() {
        let controller = Controller { name: "S".into(), ports: 3 };
        let settings = Settings::from([
            ("S-0-0".to_owned(), "/labs/demo/l2/nestlab-demo-l2/disk.vdi".to_owned()),
            ("S-2-0".to_owned(), "/labs/demo/l2/seed-1.vdi".to_owned()),
        ]);
        assert_eq!(free_seed_slot(&spec(), &controller, &settings).port, 2);
    }

    #[test]
    fn only_what_virtualbox_cannot_attach_is_converted() {
        let spec = spec();
        let first_word = |path: &str| {
            make_disk(&spec, path.into()).iter().find_map(|act| match act {
                Invocation::Manage(words) => Some(words[0].clone()),
                Invocation::Program(_) => None,
            })
        };
        assert_eq!(first_word("/d/a.vdi"), None);
        assert_eq!(first_word("/d/a.VMDK"), None);
        assert_eq!(first_word("/d/a.qcow2").as_deref(), Some("clonemedium"));
        assert_eq!(first_word("/d/a.raw").as_deref(), Some("convertfromraw"));
        assert_eq!(first_word("/d/a").as_deref(), Some("convertfromraw"));
        assert_eq!(disk_file(&spec, "/d/a.vdi".into()), "/d/a.vdi");
        assert_eq!(disk_file(&spec, "/d/a.raw".into()), "/labs/demo/l2/disk.vdi");
    }

    #[test]
    fn another_seed_is_another_file() {
        let spec = spec();
        assert_eq!(seed_file(&spec, "/x/seed-1.img".into()), "/labs/demo/l2/seed-1.vdi");
        assert_ne!(seed_file(&spec, "/seed-1.img".into()), seed_file(&spec, "/seed-2.img".into()));
    }
}
