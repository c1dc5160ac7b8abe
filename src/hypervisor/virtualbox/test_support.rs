//! Guests for the tests of this module.

use std::collections::BTreeMap;

use semver::Version;

use super::parse::{machine_readable, without_warnings};
use super::transcript::printed;
use crate::host::TimeoutScale;
use crate::hypervisor::{
    Acceleration, Actual, Firmware, Forward, GuestSpec, Media, Nesting, Power, Probe, Subnet,
    VmOrigin,
};
use crate::recipe::{Constraint, Cpus, Mebibytes};

/// Returns a small guest made from an appliance.
pub(super) fn spec() -> GuestSpec {
    GuestSpec {
        vm: "nestlab-demo-l2".into(),
        directory: "/labs/demo/l2".into(),
        origin: VmOrigin::Made(Media::Ova("/labs/demo/l2/appliance.ova".into())),
        cpus: Constraint::Exactly(Cpus::ONE),
        memory: Constraint::Exactly(Mebibytes::new(512).expect("not zero")),
        disk: None,
        firmware: Firmware::Bios,
        firmware_given: false,
        seed: Some("/labs/demo/l2/seed.img".into()),
        nested: Some(false),
        subnet: Subnet::new(10, 0, 3),
        forwards: vec![Forward { name: "nestlab-ssh".into(), guest_port: 22 }],
        networks: Vec::new(),
        gui: false,
        reach_host: false,
    }
}

/// Returns the same guest made from `media`.
pub(super) fn made(media: Media) -> GuestSpec {
    GuestSpec { origin: VmOrigin::Made(media), ..spec() }
}

/// Returns a guest that is the VM `vm`, which exists.
pub(super) fn existing(vm: &str) -> GuestSpec {
    GuestSpec {
        vm: vm.into(),
        origin: VmOrigin::Existing { vm: vm.into(), snapshot_before: true },
        seed: None,
        nested: None,
        ..spec()
    }
}

/// Returns VirtualBox 7.2.22 as probed where guests can nest.
pub(super) fn probe() -> Probe {
    Probe {
        version: Version::new(7, 2, 22),
        version_text: "7.2.22_Debianr175245".into(),
        program: "VBoxManage".into(),
        acceleration: Acceleration::VirtualBox,
        patience: TimeoutScale::NATIVE,
        nesting: Nesting::Claimed,
        details: BTreeMap::new(),
        notes: Vec::new(),
    }
}

/// Returns the recorded VM `recording`, as if it were in this state.
pub(super) fn vm(recording: &str, power: Power) -> Actual {
    let settings = machine_readable(without_warnings(&printed(recording)));
    Actual { id: settings["UUID"].clone(), power, settings }
}
