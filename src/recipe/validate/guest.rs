//! One guest's table: what its values mean beside each other.

use std::ops::Range;

use camino::Utf8PathBuf;

use super::{GuestDraft, L0, Validator};
use crate::recipe::keywords::{HypervisorKind, ReadyKind};
use crate::recipe::model::{Guest, GuestSource, ImageRef, SshLogin};
use crate::recipe::tables::{At, GuestTable, SshTable};
use crate::recipe::types::Port;
use crate::recipe::units::{GuestName, Mebibytes, NetworkName};

impl Validator<'_> {
    pub(super) fn guests(&mut self, tables: Vec<At<GuestTable>>) -> Vec<GuestDraft> {
        let mut guests: Vec<GuestDraft> = Vec::new();
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
            if self.names.contains(&name.value) {
                let message = format!("two guests are called `{}`", name.value);
                self.refuse(name.span(), message, "give each guest a name of its own");
            }
            self.names.push(name.value.clone());
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
        span: Range<usize>,
        above: Option<&GuestName>,
    ) -> Option<GuestDraft> {
        self.guest_values(&name, &table);
        let source = self.guest_source(&name, &table);
        let source_span = match (&table.image, &table.vm) {
            (Some(image), _) => image.span(),
            (None, Some(vm)) => vm.span(),
            (None, None) => name.span(),
        };
        let parent = self.guest_parent(&table, above);
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
            hypervisor: table.hypervisor.as_ref().map(|at| at.first()),
            further: table.hypervisor.map(|at| at.further().to_vec()).unwrap_or_default(),
            runs_in: table.runs_in,
            nested: table.nested.map(|at| at.value),
            host_key: table.host_key,
            gui: table.gui.is_some_and(|at| at.value),
            ready: table.ready,
            serial_pattern: table.serial_pattern.map(|at| at.value),
            reach_host: table.reach_host.is_some_and(|at| at.value),
            networks: networks.iter().map(|at| at.value.clone()).collect(),
            ssh,
            packages: table
                .packages
                .map(|at| at.value.into_iter().map(|package| package.value).collect())
                .unwrap_or_default(),
            firmware: table.firmware.map(|at| at.value),
        };
        let parent_span = table.parent.map(|at| at.span());
        Some(GuestDraft { guest, table: span, parent_span, networks })
    }

    /// Returns the guest that runs it, `None` for L0.
    fn guest_parent(&mut self, table: &GuestTable, above: Option<&GuestName>) -> Option<GuestName> {
        let Some(at) = &table.parent else { return above.cloned() };
        if at.value == L0 {
            return None;
        }
        at.value
            .parse()
            .map_err(|m: String| self.refuse(at.span(), m, "name a guest, or `L0`"))
            .ok()
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
            && !table.hypervisor.as_ref().is_some_and(|it| it.contains(HypervisorKind::VirtualBox))
        {
            self.refuse(
                key.span(),
                format!("{} does not run VirtualBox, which alone has a Host Key", **name),
                "add `hypervisor = \"virtualbox\"`, or leave the key out",
            );
        }
        if let (Some(nested), Some(hypervisor)) = (&table.nested, &table.hypervisor)
            && !nested.value
        {
            self.refuse(
                nested.span(),
                format!("{} runs guests with {}, which takes nesting", **name, hypervisor.first()),
                "leave `nested` out, or the hypervisor",
            );
        }
        if let (Some(reach), Some(_)) = (&table.reach_host, &table.vm) {
            self.refuse(
                reach.span(),
                format!("{} exists already, and reaches what its owner lets it reach", **name),
                "leave `reach-host` out, and set it in VirtualBox",
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
}
