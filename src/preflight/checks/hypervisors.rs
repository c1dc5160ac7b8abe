//! Which hypervisor will run guests here, and what stands on top of what.

use std::collections::BTreeSet;

use super::not_applicable;
use crate::hypervisor::{Acceleration, Probe};
use crate::preflight::host_report::HostReport;
use crate::preflight::needs::Needs;
use crate::preflight::systems;
use crate::preflight::{Finding, Verdict};
use crate::recipe::HypervisorKind;

pub(super) fn hypervisor(look: &HostReport, needs: &Needs) -> Finding {
    let id = "hypervisor";
    let source = "a probe of each hypervisor";
    let working: Vec<(HypervisorKind, &Probe)> = needs
        .candidates()
        .into_iter()
        .filter_map(|kind| Some((kind, look.probe(kind)?.as_ref().ok()?)))
        .collect();
    let missing = needs
        .candidates()
        .into_iter()
        .find(|kind| needs.requires(*kind) && working.iter().all(|(working, _)| working != kind));
    let Some((kind, probe)) = working.first().filter(|_| missing.is_none()) else {
        let verdict = if needs.recipe.is_some() || needs.hypervisor.is_some() {
            Verdict::Fail
        } else {
            Verdict::Warn
        };
        let wanted = missing.map_or("none", |kind| match kind {
            HypervisorKind::VirtualBox => "VirtualBox cannot run guests here",
            HypervisorKind::Qemu => "QEMU cannot run guests here",
        });
        let package = match missing {
            Some(HypervisorKind::VirtualBox) => "virtualbox",
            _ => "qemu-system-x86 qemu-utils ovmf",
        };
        let why = needs
            .candidates()
            .into_iter()
            .filter(|kind| missing.is_none_or(|missing| missing == *kind))
            .find_map(|kind| Some(look.probe(kind)?.as_ref().err()?.message().to_owned()));
        let remedy = match why {
            Some(why) => format!("{why}. Install it, on Debian and Ubuntu:"),
            None => "Install it, on Debian and Ubuntu:".to_owned(),
        };
        return Finding::new(id, verdict, wanted)
            .from(source)
            .remedy(remedy)
            .command(format!("apt install --no-install-recommends {package}"));
    };
    let how = match probe.acceleration {
        Acceleration::Kvm => "with KVM",
        Acceleration::VirtualBox => "with its driver",
        Acceleration::Tcg => "emulating (TCG)",
    };
    let verdict = match probe.acceleration {
        Acceleration::Tcg => Verdict::Warn,
        _ => Verdict::Ok,
    };
    let finding = Finding::new(id, verdict, format!("{kind} {} {how}", probe.version)).from(source);
    match verdict {
        Verdict::Warn => finding.remedy(
            "it works, ten to thirty times slower; `virtualization` and `kvm-runs-guests` tell what is missing",
        ),
        _ => finding,
    }
}

pub(super) fn mixed(look: &HostReport, needs: &Needs) -> Finding {
    let id = "mixed-hypervisors";
    // Said once, not again at every level.
    if needs.level > 0 {
        return not_applicable(id, "said for L0");
    }
    if needs.mixed.is_empty() {
        return not_applicable(id, "no recipe");
    }
    let (around, _) = systems::tell(look);
    let mut names: BTreeSet<&str> = needs
        .mixed
        .iter()
        .map(|kind| match kind {
            HypervisorKind::VirtualBox => "VirtualBox",
            HypervisorKind::Qemu => "KVM",
        })
        .collect();
    match around.id {
        "bare-metal" | "aws-metal" => {}
        "kvm" | "micro-vm" | "qemu-tcg" | "openstack" | "google" | "digitalocean" | "hetzner" => {
            names.insert("KVM");
        }
        "virtualbox" => {
            names.insert("VirtualBox");
        }
        _ => {
            names.insert(around.name);
        }
    }
    let names: Vec<_> = names.into_iter().collect();
    let source = "the recipe and the system around it";
    if names.len() < 2 {
        return Finding::new(id, Verdict::Ok, format!("{} only", names.join(""))).from(source);
    }
    Finding::new(id, Verdict::Warn, format!("{} in one chain", names.join(" and "))).from(source).remedy(
        "each hypervisor's code is attack surface for what runs inside: with one kind, a break-out needs one kind of bug. Nothing to do if that is what is wanted",
    )
}
