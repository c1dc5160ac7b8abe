//! QEMU's command line, from a definition and from what the probe found. Pure.
//!
//! Paths that belong to the VM are relative to its `run/`, QEMU's working directory.

use serde_json::json;
use uuid::Uuid;

use super::definition::{Definition, Drive};
use super::install::QemuInstall;
use crate::hypervisor::spec::mac;
use crate::hypervisor::{Acceleration, Firmware};

/// The socket on which QEMU listens for QMP.
pub(super) const QMP_SOCKET: &str = "qmp";

/// The socket on which the first serial port can be talked to.
pub(super) const SERIAL_SOCKET: &str = "serial";

/// The file that QEMU removes when it ends itself.
pub(super) const ALIVE: &str = "alive";

/// The node name of the disk, for snapshots.
pub(super) const DISK_NODE: &str = "disk";

/// The node name of the UEFI variables, for snapshots.
pub(super) const VARIABLES_NODE: &str = "efi-variables";

/// Returns the argument vector that runs `definition` on `machine`.
pub(super) fn argv(definition: &Definition, machine: &QemuInstall) -> Vec<String> {
    let mut line = CommandLine(vec![machine.program.to_string()]);
    line.option("-name", format!("guest={}", escaped(&definition.vm)));
    line.option("-uuid", definition.uuid);
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.option("-machine", machine_type(definition, machine));
    line.option("-accel", accelerator(machine.acceleration));
    line.option("-cpu", cpu(machine.acceleration, definition.nested));
    line.option("-smp", format!("{n},sockets=1,cores={n},threads=1", n = definition.cpus));
    line.option("-m", format!("{}M", definition.memory.get()));
    firmware(&mut line, definition, machine);
    drives(&mut line, definition);
    networks(&mut line, definition);
    ports(&mut line);
    display(&mut line, definition, machine);
    line.device("virtio-rng-pci");
    // Tells of a guest's panic; the guest then stays as it is, to be looked at.
    line.device("pvpanic-pci");
    line.option("-action", "panic=pause");
    line.option("-msg", "timestamp=on");
    line.option("-pidfile", ALIVE);
    line.0.extend(machine.confinement.options(confined_user(definition.uuid)));
    line.0
}

/// Returns the user and group id that the VM with `uuid` has for itself where QEMU is confined: one
/// in 1879048192–1895825407, a part of the ids that systemd's "Users, Groups, UIDs and GIDs" lists as
/// used by nobody.
pub(super) fn confined_user(uuid: Uuid) -> u32 {
    let [.., a, b, c] = *uuid.as_bytes();
    0x7000_0000 | u32::from_be_bytes([0, a, b, c])
}

struct CommandLine(Vec<String>);

impl CommandLine {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl ToString) {
        self.0.extend([name.to_owned(), value.to_string()]);
    }

    fn device(&mut self, value: impl ToString) {
        self.option("-device", value);
    }
}

/// Returns the `-accel` value.
pub(super) fn accelerator(acceleration: Acceleration) -> &'static str {
    match acceleration {
        Acceleration::Kvm => "kvm",
        Acceleration::Tcg | Acceleration::VirtualBox => "tcg,thread=multi",
    }
}

/// Returns the `-cpu` value. TCG emulates AMD's SVM with nested paging, and no VMX; a guest that is
/// not to run guests gets neither.
pub(super) fn cpu(acceleration: Acceleration, nested: bool) -> &'static str {
    match (acceleration, nested) {
        (Acceleration::Kvm, true) => "host",
        (Acceleration::Kvm, false) => "host,svm=off,vmx=off",
        (_, true) => "EPYC,+svm,+npt",
        // Five-level paging, which `max` has, only makes emulated page walks longer.
        (_, false) => "max,svm=off,la57=off",
    }
}

fn machine_type(definition: &Definition, machine: &QemuInstall) -> String {
    let mut value = "q35,usb=off,dump-guest-core=off".to_owned();
    if definition.firmware == Firmware::Efi && machine.efi.is_some() {
        value += &format!(",pflash0=efi-code,pflash1={VARIABLES_NODE}");
    }
    value
}

fn firmware(line: &mut CommandLine, definition: &Definition, machine: &QemuInstall) {
    let Some(efi) = machine.efi.as_ref().filter(|_| definition.firmware == Firmware::Efi) else {
        return;
    };
    line.option(
        "-blockdev",
        json!({
            "node-name": "efi-code", "driver": efi.format, "read-only": true,
            "file": { "driver": "file", "filename": efi.code },
        }),
    );
    line.option(
        "-blockdev",
        json!({
            "node-name": VARIABLES_NODE, "driver": "qcow2",
            "file": { "driver": "file", "filename": "../efivars.qcow2" },
        }),
    );
}

fn drives(line: &mut CommandLine, definition: &Definition) {
    match &definition.drive {
        Drive::Disk { path, format } => {
            line.option(
                "-blockdev",
                json!({
                    "node-name": DISK_NODE, "driver": format.name(), "discard": "unmap",
                    "file": { "driver": "file", "filename": path, "discard": "unmap" },
                }),
            );
            line.device(format!(
                "virtio-blk-pci,drive={DISK_NODE},serial=nestlab-disk,bootindex=1"
            ));
        }
        Drive::Cd(path) => {
            line.option("-blockdev", read_only("cd", path.as_str()));
            line.device("ide-cd,drive=cd,bus=ide.0,bootindex=1");
        }
    }
    if let Some(seed) = &definition.seed {
        line.option("-blockdev", read_only("seed", seed.as_str()));
        line.device("virtio-blk-pci,drive=seed,serial=nestlab-seed");
    }
}

fn read_only(node: &str, path: &str) -> serde_json::Value {
    json!({
        "node-name": node, "driver": "raw", "read-only": true,
        "file": { "driver": "file", "filename": path },
    })
}

/// The guest's own NAT network, its forwards on 127.0.0.1 at ports that the kernel chooses, and the
/// networks it shares.
///
/// A shared network is a multicast group on the loopback interface: any number of guests, no
/// privileges, no process that has to run first. It is as private as the host: programs on it can
/// listen.
fn networks(line: &mut CommandLine, definition: &Definition) {
    let forwards = definition
        .forwards
        .iter()
        .map(|forward| format!(",hostfwd=tcp:127.0.0.1:0-:{}", forward.guest_port))
        .collect::<String>();
    line.option("-netdev", format!("user,id=nat,ipv6=off,net={}{forwards}", definition.subnet));
    line.device(card("nat", &mac(definition.uuid, "nat")));
    for (index, network) in definition.networks.iter().enumerate() {
        let (group, port) = multicast(network);
        line.option(
            "-netdev",
            format!("socket,id=shared{index},mcast={group}:{port},localaddr=127.0.0.1"),
        );
        line.device(card(&format!("shared{index}"), &mac(definition.uuid, network)));
    }
}

/// Returns a network card without the ROM that boots from a network: not every host has that file.
fn card(netdev: &str, mac: &str) -> String {
    format!("virtio-net-pci,netdev={netdev},mac={mac},romfile=")
}

/// Returns the multicast group and port of the shared network `name`, the same for every guest in it:
/// a group of the locally scoped 239.255.0.0/16 (RFC 2365), and a port outside of the ephemeral ones.
fn multicast(name: &str) -> (std::net::Ipv4Addr, u16) {
    let bytes = *Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).as_bytes();
    let port = 10_000 + u16::from_be_bytes([bytes[2], bytes[3]]) % 20_000;
    (std::net::Ipv4Addr::new(239, 255, bytes[0], bytes[1]), port)
}

fn ports(line: &mut CommandLine) {
    line.option("-qmp", format!("unix:{QMP_SOCKET},server=on,wait=off"));
    line.option(
        "-chardev",
        format!(
            "socket,id=serial0,path={SERIAL_SOCKET},server=on,wait=off,\
             logfile=../serial.log,logappend=on"
        ),
    );
    line.option("-serial", "chardev:serial0");
}

fn display(line: &mut CommandLine, definition: &Definition, machine: &QemuInstall) {
    match machine.display.as_ref().filter(|_| definition.gui) {
        Some(window) => {
            line.option("-display", window);
            line.device("qemu-xhci");
            line.device("usb-tablet");
        }
        None => line.option("-display", "none"),
    }
    line.device("VGA");
}

/// Returns `text` as a value inside a QEMU option list, where a comma ends a value.
fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::super::install::Efi;
    use super::super::sandbox::{Sandbox, UserOption};
    use super::super::test_support::spec;
    use super::*;
    use crate::hypervisor::{GuestSpec, Media, VmOrigin};

    fn machine(acceleration: Acceleration) -> QemuInstall {
        QemuInstall {
            program: "/usr/bin/qemu-system-x86_64".into(),
            acceleration,
            confinement: Sandbox::Filter,
            efi: Some(Efi {
                code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
                variables: "/usr/share/OVMF/OVMF_VARS_4M.fd".into(),
                format: "raw".to_owned(),
            }),
            display: Some("gtk".to_owned()),
        }
    }

    fn line(spec: &GuestSpec, machine: &QemuInstall) -> String {
        let definition = Definition::of(spec).expect("a disk can be defined");
        // One option a line, with its value if it has one.
        argv(&definition, machine).join(" ").replace(" -", "\n-")
    }

    #[test]
    fn a_plain_guest_on_tcg() {
        insta::assert_snapshot!(line(&spec(), &machine(Acceleration::Tcg)));
    }

    #[test]
    fn a_guest_with_everything_on_kvm() {
        let mut spec = spec();
        spec.nested = Some(true);
        spec.firmware = Firmware::Efi;
        spec.seed = Some("/lab/l1/seed.img".into());
        spec.networks = vec!["demo-lan".to_owned()];
        spec.gui = true;
        let mut machine = machine(Acceleration::Kvm);
        machine.confinement = Sandbox::FilterAndUser(UserOption::RunWith);
        insta::assert_snapshot!(line(&spec, &machine));
    }

    #[test]
    fn guests_of_one_network_share_its_address_and_no_card_address() {
        let mut one = spec();
        one.networks = vec!["demo-lan".to_owned(), "demo-dmz".to_owned()];
        let mut two = one.clone();
        two.vm = "nestlab-demo-other".to_owned();
        let machine = machine(Acceleration::Tcg);
        let options = |spec: &GuestSpec, part: &str| -> Vec<String> {
            let line = line(spec, &machine);
            line.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
        };
        assert_eq!(options(&one, "mcast="), options(&two, "mcast="));
        assert_ne!(options(&one, "mcast=")[0], options(&one, "mcast=")[1]);
        let mut cards = [options(&one, "mac="), options(&two, "mac=")].concat();
        assert_eq!(cards.len(), 6);
        cards.sort();
        cards.dedup();
        assert_eq!(cards.len(), 6, "{cards:?}");
    }

    #[test]
    fn odd_names_and_paths_stay_one_value() {
        let mut spec = spec();
        spec.vm = "a,debug-threads=on".to_owned();
        spec.origin = VmOrigin::Made(Media::Disk("/x/a,b \"c\".qcow2".into()));
        let line = line(&spec, &machine(Acceleration::Tcg));
        assert!(line.contains("-name guest=a,,debug"), "{line}");
        assert!(line.contains(r#""filename":"/x/a,b \"c\".qcow2""#), "{line}");
    }

    #[test]
    fn a_confined_user_is_one_that_nothing_else_is() {
        for uuid in [Uuid::nil(), Uuid::max()] {
            let id = confined_user(uuid);
            assert!((1_879_048_192..=1_895_825_407).contains(&id), "{id}");
        }
    }
}
