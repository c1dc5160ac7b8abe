//! A recipe's guests with all their values, as a person reads them.

use std::fmt::Write as _;

use console::style;

use crate::plan::{Blueprint, Machine};
use crate::recipe::LabName;
use crate::recipe::budget::{HostKeyBinding, ResolvedView};

/// Returns several lines for each guest: what it is, then each value and, if it was derived, why.
pub(crate) fn lines(guests: &[ResolvedView]) -> String {
    let mut out = String::new();
    for guest in guests {
        let source = match (&guest.image, &guest.vm) {
            (Some(image), _) => format!("image {image}"),
            (None, Some(vm)) => format!("the existing VM {vm}"),
            (None, None) => String::new(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "\n{}  level {}, {} on {}, {source}",
            style(&guest.name).bold(),
            guest.level,
            guest.runs_on,
            guest.parent,
        );
        for (label, field, value) in values(guest) {
            let why = guest.derived.get(field).map(|why| style(why).dim().to_string());
            let line = format!("  {label:<11} {value:<16} {}", why.unwrap_or_default());
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
    out
}

/// Returns in a sentence which guests of the lab its recipe has no more, if there are any.
pub(crate) fn orphaned(blueprint: &Blueprint, lab: &LabName) -> Option<String> {
    let names: Vec<String> =
        blueprint.dropped.iter().map(|machine| orphan(blueprint, machine)).collect();
    let are = match names.as_slice() {
        [] => return None,
        [_] => "is orphaned: it is",
        _ => "are orphaned: they are",
    };
    let names = names.join(", ");
    Some(format!(
        "{names} {are} not in the recipe any more; `nestlab destroy {lab} --orphaned` removes what is left"
    ))
}

/// Returns the name of an orphaned guest, and where it is.
pub(crate) fn orphan(blueprint: &Blueprint, machine: &Machine) -> String {
    let place = blueprint.place(machine);
    let on = match place.inside.last() {
        Some((parent, _)) => parent.to_string(),
        None if place.l0 == blueprint.l0() => "L0".to_owned(),
        None => place.l0.to_string(),
    };
    format!("{} in {} on {on}", machine.name, machine.outer)
}

/// Returns a line for each Host Key: which it is, what it leaves, and why it is this one.
pub(crate) fn keys(host_key_bindings: &[HostKeyBinding]) -> String {
    let mut out = String::new();
    if !host_key_bindings.is_empty() {
        let _ = writeln!(out, "\n{}", style("Host Keys").bold());
    }
    for way in host_key_bindings {
        let leaves = match way.leaves.as_slice() {
            [] => format!("the VMs of {}", way.host),
            guests => guests.join(", "),
        };
        let what = format!("leaves {leaves} ({}'s)", way.host);
        let line = format!("  {:<11} {what:<20} {}", way.key, style(&way.why).dim());
        let _ = writeln!(out, "{line}");
    }
    out
}

/// Returns in a line which key leaves which guest's window, for the person who just built them.
pub(crate) fn keys_in_short(host_key_bindings: &[HostKeyBinding]) -> Option<String> {
    let used: Vec<String> = host_key_bindings
        .iter()
        .filter(|way| !way.leaves.is_empty())
        .map(|way| format!("{} leaves {}", way.key, way.leaves.join(" and ")))
        .collect();
    (!used.is_empty()).then(|| format!("in a window of VirtualBox, {}", used.join("; ")))
}

/// Returns what is shown of a guest: the label, the field's name in [`ResolvedView`], the value.
fn values(guest: &ResolvedView) -> Vec<(&'static str, &'static str, String)> {
    let kept = |field: &str| guest.kept.get(field).cloned();
    let amount = |mib: u64| {
        crate::recipe::Mebibytes::new(mib).map_or_else(|| mib.to_string(), |a| a.to_string())
    };
    let mut values = vec![
        ("cpus", "cpus", kept("cpus").unwrap_or_else(|| guest.cpus.unwrap_or(1).to_string())),
        (
            "memory",
            "memory_mib",
            kept("memory_mib").unwrap_or_else(|| amount(guest.memory_mib.unwrap_or(0))),
        ),
        ("disk", "disk_mib", guest.disk_mib.map_or("as it is".to_owned(), amount)),
        ("subnet", "subnet", guest.subnet.clone()),
    ];
    if !guest.networks.is_empty() {
        let networks = guest.networks.iter().map(|network| match guest.addresses.get(network) {
            Some(address) => format!("{network} {address}"),
            None => network.clone(),
        });
        values.push(("networks", "networks", networks.collect::<Vec<_>>().join(", ")));
    }
    if let Some(hypervisor) = &guest.hypervisor {
        let all = [std::slice::from_ref(hypervisor), &guest.further_hypervisors].concat();
        values.push(("hypervisor", "hypervisor", all.join(", ")));
    }
    if guest.nested || !guest.derived.contains_key("nested") {
        let nested = if guest.nested { "on" } else { "off" };
        values.push(("nested", "nested", nested.to_owned()));
    }
    if let Some(key) = &guest.host_key {
        values.push(("host key", "host_key", key.clone()));
    }
    if let Some(firmware) = &guest.firmware {
        values.push(("firmware", "firmware", firmware.clone()));
    }
    values.push(("ready by", "ready", guest.ready.clone()));
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(host: &str, key: &str, leaves: &[&str]) -> HostKeyBinding {
        HostKeyBinding {
            host: host.to_owned(),
            key: key.to_owned(),
            leaves: leaves.iter().map(|&guest| guest.to_owned()).collect(),
            why: "because".to_owned(),
        }
    }

    #[test]
    fn it_is_told_which_key_leaves_which_level() {
        let ways = [
            way("L0", "Right Ctrl", &["l1"]),
            way("l1", "F12", &["gateway", "workstation"]),
            way("workstation", "F11", &[]),
        ];
        let plan = console::strip_ansi_codes(&keys(&ways)).into_owned();
        let lines: Vec<Vec<&str>> =
            plan.lines().map(|line| line.split_whitespace().collect()).collect();
        let expected: Vec<Vec<&str>> = [
            "",
            "Host Keys",
            "Right Ctrl leaves l1 (L0's) because",
            "F12 leaves gateway, workstation (l1's) because",
            "F11 leaves the VMs of workstation (workstation's) because",
        ]
        .iter()
        .map(|line| line.split_whitespace().collect())
        .collect();
        assert_eq!(lines, expected);
        assert_eq!(
            keys_in_short(&ways).as_deref(),
            Some(
                "in a window of VirtualBox, Right Ctrl leaves l1; F12 leaves gateway and workstation"
            )
        );
    }

    #[test]
    fn no_key_is_told_where_no_virtualbox_is() {
        assert_eq!((keys(&[]), keys_in_short(&[])), (String::new(), None));
    }
}
