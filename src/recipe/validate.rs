//! Tables → recipe: what each value means beside the others. Every problem is collected; a recipe comes
//! out only if there is none.

use camino::Utf8PathBuf;

use super::diagnostic::{Source, nearest};
use super::model::{At, GuestTable, RecipeTable, SshTable};
use super::read::SCHEMA;
use super::text::Port;
use super::tree::{
    Guest, GuestSource, ImageRef, MAX_LEVEL, Recipe, RecipeHost, RecipeOrigin, SshLogin,
};
use super::units::{GuestName, LabName, Mebibytes, NetworkName};
use super::words::{HypervisorChoice, HypervisorKind, ReadyKind};
use crate::error::Problem;

/// What `parent` names to mean this machine; no guest can be called so, since guests' names are in
/// lower case.
const L0: &str = "L0";

/// Returns the recipe that `tables`, read from `source`, describe.
pub(crate) fn recipe(
    tables: RecipeTable,
    source: Source,
    origin: RecipeOrigin,
) -> Result<Recipe, Vec<Problem>> {
    let mut check = Check { source: &source, origin: &origin, problems: Vec::new() };
    let name = check.head(&tables);
    let patience = check.patience(&tables);
    let mut host = host(&tables);
    let mut guests = check.guests(tables.guest);
    check.tree(&host, &mut guests);
    settle_auto(&mut host, &guests);
    check.networks(&guests);
    let problems = check.problems;
    match name {
        Some(name) if problems.is_empty() => Ok(Recipe {
            name,
            description: tables.description,
            mirror: tables.mirror.map(|at| at.value),
            proxy: tables.proxy.map(|at| at.value),
            patience,
            host,
            guests: guests.into_iter().map(|drafted| drafted.guest).collect(),
            source,
            origin,
        }),
        _ => Err(problems),
    }
}

fn host(tables: &RecipeTable) -> RecipeHost {
    let host = tables.host.as_ref();
    let given = host.and_then(|host| host.hypervisor.as_ref()).map(|at| at.value);
    RecipeHost {
        hypervisor: given.unwrap_or(HypervisorChoice::Auto),
        ssh: host.and_then(|host| host.ssh.as_ref()).map(|at| at.value.clone()),
        host_key: host.and_then(|host| host.host_key.clone()),
    }
}

/// What only VirtualBox can do, right on L0, settles which hypervisor L0 uses.
fn settle_auto(host: &mut RecipeHost, guests: &[Drafted]) {
    let only_virtualbox = guests.iter().map(|drafted| &drafted.guest).any(|guest| {
        let additions = guest.ready.as_ref().is_some_and(|r| r.value == ReadyKind::GuestAdditions);
        guest.level == 1 && (additions || matches!(guest.source, GuestSource::Existing { .. }))
    });
    if host.hypervisor == HypervisorChoice::Auto && (only_virtualbox || host.host_key.is_some()) {
        host.hypervisor = HypervisorChoice::VirtualBox;
    }
}

/// A guest, and what is needed of its table until the tree stands.
struct Drafted {
    guest: Guest,
    /// Where the table begins.
    table: std::ops::Range<usize>,
    /// Where its parent is named.
    parent_span: Option<std::ops::Range<usize>>,
    networks: Vec<At<NetworkName>>,
}

struct Check<'a> {
    source: &'a Source,
    origin: &'a RecipeOrigin,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn refuse(&mut self, span: std::ops::Range<usize>, message: impl Into<String>, help: &str) {
        self.problems.push(self.source.problem(span, message).help(help));
    }

    fn head(&mut self, tables: &RecipeTable) -> Option<LabName> {
        match &tables.schema {
            None => self.refuse(
                0..0,
                "the recipe does not say which schema it has",
                "begin it with `schema = 1`",
            ),
            Some(at) if at.value != SCHEMA => self.refuse(
                at.span(),
                format!("there is no recipe schema {}", at.value),
                "write `schema = 1`",
            ),
            Some(_) => {}
        }
        if tables.name.is_none() {
            self.refuse(0..0, "the recipe has no name", "add `name = \"my-lab\"` at its top");
        }
        if tables.guest.is_empty() {
            let end = self.source.text().len();
            self.refuse(end..end, "the recipe has no guest", "add a `[[guest]]` table");
        }
        tables.name.as_ref().map(|at| at.value.clone())
    }

    fn patience(&mut self, tables: &RecipeTable) -> f64 {
        let given = tables.limits.as_ref().and_then(|limits| limits.patience.as_ref());
        if let Some(at) = given
            && !(1.0..=1000.0).contains(&at.value)
        {
            self.refuse(
                at.span(),
                format!("a patience of {} is not between 1 and 1000", at.value),
                "it is a factor on every limit: 2.0 waits twice as long",
            );
        }
        given.map_or(1.0, |at| at.value)
    }

    fn guests(&mut self, tables: Vec<At<GuestTable>>) -> Vec<Drafted> {
        let mut guests: Vec<Drafted> = Vec::new();
        let mut above = None;
        for at in tables {
            let span = at.span();
            // The table's span begins at its header, whose line says enough.
            let table = span.start..span.end.min(span.start + "[[guest]]".len());
            let Some(name) = at.value.name.clone() else {
                self.refuse(table, "a guest has no name", "add `name = \"l1\"`");
                continue;
            };
            if name.as_str() == "l0" {
                let help = "L0 is the machine that the lab is built on; name the guest `l1`";
                self.refuse(name.span(), "a guest cannot be called `l0`", help);
            }
            if guests.iter().any(|other| other.guest.name.value == name.value) {
                let message = format!("two guests are called `{}`", name.value);
                self.refuse(name.span(), message, "give each guest a name of its own");
            }
            let drafted = self.guest(name.clone(), at.value, table, above.as_ref());
            above = Some(name.value);
            guests.extend(drafted);
        }
        guests
    }

    fn guest(
        &mut self,
        name: At<GuestName>,
        table: GuestTable,
        span: std::ops::Range<usize>,
        above: Option<&GuestName>,
    ) -> Option<Drafted> {
        self.guest_values(&name, &table);
        let source = self.guest_source(&name, &table);
        let source_span = match (&table.image, &table.vm) {
            (Some(image), _) => image.span(),
            (None, Some(vm)) => vm.span(),
            (None, None) => name.span(),
        };
        let parent = match &table.parent {
            None => above.cloned(),
            Some(at) if at.value == L0 => None,
            // What is not a name is no guest's; `tree` says so with the list of guests.
            Some(at) => match at.value.parse() {
                Ok(parent) => Some(parent),
                Err(message) => {
                    self.refuse(at.span(), message, "name a guest, or `L0`");
                    None
                }
            },
        };
        let ssh = table.ssh.as_ref().and_then(|at| self.login(at));
        let networks = self.guest_networks(&table);
        let guest = Guest {
            name,
            parent,
            level: 0,
            source: source?,
            source_span,
            cpus: table.cpus,
            memory: table.memory,
            disk: table.disk,
            overcommit: table.overcommit.is_some_and(|at| at.value),
            hypervisor: table.hypervisor.map(|at| at.value),
            host_key: table.host_key,
            gui: table.gui.is_some_and(|at| at.value),
            ready: table.ready,
            serial_pattern: table.serial_pattern.map(|at| at.value),
            networks: networks.iter().map(|at| at.value.clone()).collect(),
            ssh,
            packages: table
                .packages
                .map(|at| at.value.into_iter().map(|package| package.value).collect())
                .unwrap_or_default(),
            firmware: table.firmware.map(|at| at.value),
        };
        let parent_span = table.parent.map(|at| at.span());
        Some(Drafted { guest, table: span, parent_span, networks })
    }

    /// Checks values of one guest against each other.
    fn guest_values(&mut self, name: &At<GuestName>, table: &GuestTable) {
        if let (Some(pattern), ready) = (&table.serial_pattern, &table.ready)
            && ready.as_ref().is_none_or(|ready| ready.value != ReadyKind::Serial)
        {
            self.refuse(
                pattern.span(),
                format!("{} has a `serial-pattern`, and its readiness is not `serial`", **name),
                "add `ready = \"serial\"`, or leave the pattern out",
            );
        }
        if let Some(key) = &table.host_key
            && table.hypervisor.as_ref().is_none_or(|h| h.value != HypervisorKind::VirtualBox)
        {
            self.refuse(
                key.span(),
                format!("{} does not run VirtualBox, which alone has a Host Key", **name),
                "add `hypervisor = \"virtualbox\"`, or leave the key out",
            );
        }
        if let Some(memory) = &table.memory
            && memory.get() < 64
        {
            self.refuse(
                memory.span(),
                format!("no guest starts with {} of memory", memory.value),
                "the smallest that is known to start is the appliance, with 256MiB",
            );
        }
    }

    fn guest_source(&mut self, name: &At<GuestName>, table: &GuestTable) -> Option<GuestSource> {
        match (&table.image, &table.vm) {
            (Some(image), None) => {
                if let Some(snapshot) = &table.snapshot_before {
                    let message = "`snapshot-before` is for a VM that exists already";
                    self.refuse(snapshot.span(), message, "leave it out, or name the VM: `vm = …`");
                }
                self.image(image).map(GuestSource::Image)
            }
            (None, Some(vm)) => {
                self.existing(name, table);
                let snapshot_before = table.snapshot_before.as_ref().is_some_and(|at| at.value);
                Some(GuestSource::Existing { vm: vm.value.clone(), snapshot_before })
            }
            (Some(_), Some(vm)) => {
                let message = format!("{} has an `image` and a `vm`", **name);
                let help = "an existing VM has its disk already: leave one of the two out";
                self.refuse(vm.span(), message, help);
                None
            }
            (None, None) => {
                let message = format!("{} has neither an `image` nor a `vm`", **name);
                let help = "add `image = \"debian-sid\"`, or `vm = …` for a VM that exists already";
                self.refuse(name.span(), message, help);
                None
            }
        }
    }

    /// Refuses what cannot be changed in a VM that must be given back as it was.
    fn existing(&mut self, name: &At<GuestName>, table: &GuestTable) {
        let disk = table.disk.as_ref().map(At::<Mebibytes>::span);
        let firmware = table.firmware.as_ref().map(At::span);
        for (key, span) in [("disk", disk), ("firmware", firmware)] {
            if let Some(span) = span {
                let message = format!("the `{key}` of {}, an existing VM, is not changed", **name);
                self.refuse(span, message, "it could not be changed back; leave it out");
            }
        }
    }

    fn image(&mut self, image: &At<String>) -> Option<ImageRef> {
        let text = &image.value;
        if !text.contains('/') && !text.ends_with(".toml") {
            return match text.parse() {
                Ok(name) => Some(ImageRef::Shipped(name)),
                Err(message) => {
                    self.refuse(image.span(), message, "a path to a manifest ends in `.toml`");
                    None
                }
            };
        }
        self.path(image).map(ImageRef::Manifest)
    }

    fn path(&mut self, path: &At<String>) -> Option<Utf8PathBuf> {
        if path.is_empty() || path.contains('\0') {
            self.refuse(path.span(), "this is not a path", "name a file");
            return None;
        }
        match self.origin.base() {
            Some(base) => Some(base.join(&path.value)),
            None => {
                let help = "copy it with `nestlab recipe show NAME > lab.toml` and edit that";
                self.refuse(path.span(), "a shipped recipe has no files beside it", help);
                None
            }
        }
    }

    fn login(&mut self, at: &At<SshTable>) -> Option<SshLogin> {
        let table = &at.value;
        let key = table.key.as_ref().map(|key| self.path(key));
        let port = table.port.as_ref().map_or(Port::SSH, |port| port.value);
        let Some(user) = &table.user else {
            self.refuse(at.span(), "`ssh` does not say which user", "add `user = \"user\"`");
            return None;
        };
        let key = match key {
            Some(path) => Some(path?),
            None => None,
        };
        Some(SshLogin { user: user.value.clone(), port, key })
    }

    fn guest_networks(&mut self, table: &GuestTable) -> Vec<At<NetworkName>> {
        let networks = table.networks.as_ref().map(|at| at.value.clone()).unwrap_or_default();
        for (index, network) in networks.iter().enumerate() {
            if networks[..index].iter().any(|earlier| earlier.value == network.value) {
                let message = format!("the network `{}` is named twice", network.value);
                self.refuse(network.span(), message, "name it once");
            }
        }
        networks
    }

    /// Resolves parents into levels, sorts each guest behind its parent, and checks what a guest and
    /// its parent must agree on.
    fn tree(&mut self, host: &RecipeHost, guests: &mut Vec<Drafted>) {
        let names: Vec<String> = guests.iter().map(|g| g.guest.name.to_string()).collect();
        for drafted in guests.iter() {
            self.known_parent(drafted, &names);
        }
        if !self.problems.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(guests);
        while !waiting.is_empty() {
            let before = waiting.len();
            let mut rest = Vec::new();
            for mut drafted in waiting {
                let level = match &drafted.guest.parent {
                    None => Some(0),
                    Some(name) => guests
                        .iter()
                        .find(|above| above.guest.name.value == *name)
                        .map(|above| above.guest.level),
                };
                match level {
                    Some(level) => {
                        drafted.guest.level = level + 1;
                        guests.push(drafted);
                    }
                    None => rest.push(drafted),
                }
            }
            if rest.len() == before {
                return self.cycle(&rest);
            }
            waiting = rest;
        }
        for drafted in guests.iter() {
            let parent = drafted
                .guest
                .parent
                .as_ref()
                .and_then(|name| guests.iter().find(|above| above.guest.name.value == *name));
            self.on_its_host(host, drafted, parent.map(|parent| &parent.guest));
        }
        for drafted in guests.iter() {
            self.as_a_host(drafted, guests);
        }
    }

    fn known_parent(&mut self, drafted: &Drafted, names: &[String]) {
        let guest = &drafted.guest;
        let Some(parent) = &guest.parent else { return };
        let span = drafted.parent_span.clone().unwrap_or(guest.name.span());
        if *parent == guest.name.value {
            self.refuse(span, format!("{parent} cannot be its own parent"), "name another guest");
        } else if !names.iter().any(|name| name == parent.as_str()) {
            let help = match nearest(parent.as_str(), names.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("the guests are {}; this machine is L0", names.join(", ")),
            };
            self.refuse(span, format!("there is no guest `{parent}`"), &help);
        }
    }

    fn cycle(&mut self, waiting: &[Drafted]) {
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
    fn on_its_host(&mut self, host: &RecipeHost, drafted: &Drafted, parent: Option<&Guest>) {
        let guest = &drafted.guest;
        let (runs_on, by) = match parent {
            None => (host.hypervisor.kind(), L0),
            Some(parent) => (parent.hypervisor, parent.name.as_str()),
        };
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
    fn as_a_host(&mut self, drafted: &Drafted, guests: &[Drafted]) {
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
    fn networks(&mut self, guests: &[Drafted]) {
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
