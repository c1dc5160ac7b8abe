//! A recipe's guests with all their values, as a person reads them.

use std::fmt::Write as _;

use console::style;

use crate::recipe::budget::GuestView;

/// Returns several lines for each guest: what it is, then each value and, if it was derived, why.
pub(crate) fn lines(guests: &[GuestView]) -> String {
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

/// Returns what is shown of a guest: the label, the field's name in [`GuestView`], the value.
fn values(guest: &GuestView) -> Vec<(&'static str, &'static str, String)> {
    let amount = |mib: u64| {
        crate::recipe::Mebibytes::new(mib).map_or_else(|| mib.to_string(), |a| a.to_string())
    };
    let mut values = vec![
        ("cpus", "cpus", guest.cpus.to_string()),
        ("memory", "memory_mib", amount(guest.memory_mib)),
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
        values.push(("nested", "nested", "on".to_owned()));
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
