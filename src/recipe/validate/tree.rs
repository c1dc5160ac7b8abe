//! The tree of guests: who runs whom, and what a guest and its host must agree on.

use super::{GuestDraft, L0, Validator};
use crate::recipe::diagnostic::nearest;
use crate::recipe::keywords::{HypervisorKind, ReadyKind};
use crate::recipe::model::{Guest, GuestSource, MAX_LEVEL, RecipeHost};
use crate::recipe::units::GuestName;

impl Validator<'_> {
    /// Resolves parents into levels, sorts each guest behind its parent, and checks what a guest and
    /// its parent must agree on.
    pub(super) fn tree(&mut self, host: &RecipeHost, guests: &mut Vec<GuestDraft>) {
        for drafted in guests.iter() {
            self.known_parent(drafted);
        }
        if !self.problems.is_empty() {
            return;
        }
        let in_a_circle = sort(guests);
        if !in_a_circle.is_empty() {
            return self.circle(&in_a_circle);
        }
        for drafted in guests.iter() {
            let parent = drafted
                .guest
                .parent
                .as_ref()
                .and_then(|name| guests.iter().find(|above| above.guest.name.value == *name));
            self.on_its_host(host, drafted, parent.map(|parent| &parent.guest));
            self.as_a_host(drafted, guests);
        }
    }

    fn known_parent(&mut self, drafted: &GuestDraft) {
        let guest = &drafted.guest;
        let Some(parent) = &guest.parent else { return };
        let span = drafted.parent_span.clone().unwrap_or(guest.name.span());
        if *parent == guest.name.value {
            self.refuse(span, format!("{parent} cannot be its own parent"), "name another guest");
        } else if !self.names.contains(parent) {
            let names: Vec<&str> = self.names.iter().map(GuestName::as_str).collect();
            let help = match nearest(parent.as_str(), names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the guests are {}; this machine is L0", names.join(", ")),
            };
            self.refuse(span, format!("there is no guest `{parent}`"), &help);
        }
    }

    fn circle(&mut self, waiting: &[GuestDraft]) {
        let names: Vec<_> = waiting.iter().map(|d| d.guest.name.as_str()).collect();
        let message = format!("these guests would have to run each other: {}", names.join(", "));
        let span = waiting
            .iter()
            .find_map(|drafted| drafted.parent_span.clone())
            .unwrap_or_else(|| waiting[0].guest.name.span());
        self.refuse(
            span,
            message,
            "one of them needs `parent = \"L0\"` or a guest outside the circle",
        );
    }

    /// Checks a guest against what runs it.
    fn on_its_host(&mut self, host: &RecipeHost, drafted: &GuestDraft, parent: Option<&Guest>) {
        let guest = &drafted.guest;
        let (there, by): (Vec<_>, _) = match parent {
            None => (host.hypervisors().collect(), L0),
            Some(parent) => (parent.hypervisors().collect(), parent.name.as_str()),
        };
        let chosen = guest.runs_in.as_ref();
        if let Some(at) = chosen
            && !there.contains(&at.value)
        {
            let message =
                format!("{} is to run in {}, which {by} does not have", *guest.name, at.value);
            let both = "[\"virtualbox\", \"qemu\"]";
            self.refuse(
                at.span(),
                message,
                &format!("leave `runs-in` out, or give {by} both: `hypervisor = {both}`"),
            );
        }
        let runs_on = chosen.map(|at| at.value).or(there.first().copied());
        if guest.level > MAX_LEVEL {
            let message = format!("{} would be at level {}", *guest.name, guest.level);
            self.refuse(
                drafted.table.clone(),
                message,
                &format!("{MAX_LEVEL} levels are the most"),
            );
        }
        if runs_on != Some(HypervisorKind::Qemu) {
            return;
        }
        if matches!(guest.source, GuestSource::Existing { .. }) {
            self.refuse(
                guest.name.span(),
                format!(
                    "{} is an existing VM, and QEMU on {by} keeps no list of those",
                    *guest.name
                ),
                "only VirtualBox's VMs can be taken over",
            );
        }
        if let Some(ready) = &guest.ready
            && ready.value == ReadyKind::GuestAdditions
        {
            self.refuse(
                ready.span(),
                format!(
                    "guest additions are VirtualBox's, and {by} runs {} with QEMU",
                    *guest.name
                ),
                "use `ready = \"ssh\"`, `\"serial\"` or `\"screen\"`",
            );
        }
    }

    /// Checks that a guest with guests can run them.
    fn as_a_host(&mut self, drafted: &GuestDraft, guests: &[GuestDraft]) {
        let guest = &drafted.guest;
        let child = guests.iter().find(|d| d.guest.parent.as_ref() == Some(&guest.name.value));
        if let Some(child) = child
            && guest.hypervisor.is_none()
        {
            self.refuse(
                guest.name.span(),
                format!(
                    "{} runs {}, and no hypervisor is named for it",
                    *guest.name, *child.guest.name
                ),
                "add `hypervisor = \"virtualbox\"` or `hypervisor = \"qemu\"`",
            );
        }
    }

    /// A network that one guest alone names connects nothing: most likely it is misspelt, or the other
    /// guest runs elsewhere.
    pub(super) fn networks(&mut self, guests: &[GuestDraft]) {
        for drafted in guests {
            for network in &drafted.networks {
                let others: Vec<_> = guests
                    .iter()
                    .filter(|other| other.guest.name.value != drafted.guest.name.value)
                    .filter(|other| other.guest.networks.contains(&network.value))
                    .collect();
                if others.iter().any(|other| other.guest.parent == drafted.guest.parent) {
                    continue;
                }
                let help = match others.first() {
                    Some(other) => format!(
                        "{} runs on another host; only guests of one host share a network",
                        *other.guest.name
                    ),
                    None => "another guest of the same host must name it too".to_owned(),
                };
                let message = format!("{} is alone on `{}`", *drafted.guest.name, network.value);
                self.refuse(network.span(), message, &help);
            }
        }
    }
}

/// Sorts `guests` so that each stands after its parent, otherwise in the order given, and settles their
/// levels. Takes out and returns those that only each other could run.
fn sort(guests: &mut Vec<GuestDraft>) -> Vec<GuestDraft> {
    let mut waiting = std::mem::take(guests);
    loop {
        let before = waiting.len();
        let mut rest = Vec::new();
        for mut drafted in waiting {
            let above = match &drafted.guest.parent {
                None => Some(0),
                Some(name) => guests
                    .iter()
                    .find(|above| above.guest.name.value == *name)
                    .map(|above| above.guest.level),
            };
            match above {
                Some(level) => {
                    drafted.guest.level = level + 1;
                    guests.push(drafted);
                }
                None => rest.push(drafted),
            }
        }
        if rest.len() == before || rest.is_empty() {
            return rest;
        }
        waiting = rest;
    }
}
