//! A guest for the tests of the pure parts.

use crate::hypervisor::{Firmware, Forward, GuestSpec, Media, Subnet, VmOrigin};
use crate::recipe::{Constraint, Cpus, Mebibytes};

/// Returns a guest with a disk and a forwarded SSH port.
pub(super) fn spec() -> GuestSpec {
    GuestSpec {
        vm: "nestlab-demo-l1".to_owned(),
        directory: "/lab/l1".into(),
        origin: VmOrigin::Made(Media::Disk("/lab/l1/disk.qcow2".into())),
        cpus: Constraint::Exactly(Cpus::ONE),
        memory: Constraint::Exactly(Mebibytes::gib(2)),
        disk: None,
        firmware: Firmware::Bios,
        firmware_given: false,
        seed: None,
        nested: Some(false),
        subnet: Subnet::new(10, 0, 2),
        forwards: vec![Forward { name: "nestlab-ssh".to_owned(), guest_port: 22 }],
        networks: Vec::new(),
        gui: false,
        reach_host: false,
    }
}
