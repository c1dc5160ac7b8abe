//! Whether a guest reaches services on its host's loopback through NAT's gateway. Pure.
//!
//! VirtualBox 7.0 gave each NAT adapter a switch for it. It keeps an `off` for as long as its server runs, which
//! is while the VM does, and forgets it afterwards: 7.2.22 writes only an `on` to the VM's file, and takes what is
//! not there for `on`. So it is set at every start, right before it.

use semver::Version;

use super::settings::{self, Settings};
use crate::hypervisor::{GuestSpec, VmOrigin};

/// The first version that has the switch.
const FIRST: Version = Version::new(7, 0, 0);

/// Returns whether VirtualBox `version` can keep guests from the loopback.
pub(crate) fn closes_loopback(version: &Version) -> bool {
    *version >= FIRST
}

/// Returns the arguments after `modifyvm VM` that make it as `spec` says for the NAT `adapters`; none where there is
/// no switch, and for a VM that existed before, which stays as its owner has it.
pub(super) fn arguments(spec: &GuestSpec, version: &Version, adapters: &[u32]) -> Vec<String> {
    if !closes_loopback(version) || matches!(spec.origin, VmOrigin::Existing { .. }) {
        return Vec::new();
    }
    let value = if spec.reach_host { "on" } else { "off" };
    let option = |adapter: &u32| [format!("--nat-localhostreachable{adapter}"), value.to_owned()];
    adapters.iter().flat_map(option).collect()
}

/// Returns why the guest of the running VM with these settings reaches its host's loopback; `None`
/// if it does not.
pub(super) fn open(version: &Version, vm: &Settings) -> Option<&'static str> {
    let is_open = |adapter: u32| {
        vm.get(&format!("localhostReachable{adapter}")).is_some_and(|value| value == "1")
    };
    if !closes_loopback(version) {
        return Some("VirtualBox can keep it from that from 7.0 on");
    }
    settings::nat_adapters(vm).any(is_open).then_some(
        "VirtualBox has forgotten that it is not to; `nestlab down` and `nestlab up` try it again",
    )
}

#[cfg(test)]
mod tests {
    use super::super::test_support::{existing, spec};
    use super::*;

    fn vm(value: &str) -> Settings {
        let nat = |adapter: u32| {
            [
                (format!("nic{adapter}"), "nat".to_owned()),
                (format!("localhostReachable{adapter}"), value.to_owned()),
            ]
        };
        Settings::from_iter(nat(1).into_iter().chain(nat(3)))
    }

    #[test]
    fn every_nat_adapter_is_closed_unless_the_recipe_opens_it() {
        let new = Version::new(7, 2, 22);
        let closed = arguments(&spec(), &new, &[1, 3]);
        assert_eq!(
            closed,
            ["--nat-localhostreachable1", "off", "--nat-localhostreachable3", "off"]
        );
        let open = GuestSpec { reach_host: true, ..spec() };
        assert_eq!(arguments(&open, &new, &[1]), ["--nat-localhostreachable1", "on"]);
        assert_eq!(arguments(&spec(), &Version::new(6, 1, 50), &[1]), [""; 0]);
        assert_eq!(arguments(&existing("x"), &new, &[1]), [""; 0]);
    }

    #[test]
    fn a_guest_that_is_open_against_its_recipe_is_told() {
        let new = Version::new(7, 2, 22);
        assert!(open(&new, &vm("1")).is_some());
        assert!(open(&new, &vm("0")).is_none());
        assert!(open(&Version::new(6, 1, 50), &vm("0")).is_some());
    }
}
