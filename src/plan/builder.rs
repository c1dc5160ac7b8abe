//! Draws the graph: which steps a lab takes, and what must come before what.
//!
//! Only real needs are arrows. An image is fetched while its host boots and upgrades; two guests of one
//! host are built at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::OnceCell;

use super::action::{Action, Node, Placed};
use super::blueprint::{Machine, MachineImage};
use super::context::{GuestRef, LabContext};
use super::graph::Plan;
use super::l0;
use super::lock::LockedGuest;
use super::media::{CopyImage, Discard, Obtain};
use super::pin::{AsLocked, Pin};
use super::provenance::DiskDecision;
use super::provision::{
    Apt, Headers, Install, PREFLIGHT, PROOF, Preflight, Prove, Reboot, SeeVirtualization,
    SetHostKey, packages,
};
use super::step::{Step, StepId};
use super::vm::{Await, Define, StartVm};
use crate::error::Result;
use crate::guest::apt::Task;
use crate::guest::hypervisor;
use crate::lab::LabState;
use crate::recipe::{GuestName, ImageName};

/// Returns the plan of `lab`, up to `until` if that is given: that guest, what it stands on, and
/// nothing else.
pub fn plan(lab: Arc<LabContext>, until: Option<&str>) -> Result<Plan> {
    let wanted = wanted(&lab, until)?;
    let known = lab.machines.lab().status()?;
    let mut chain =
        PlanBuilder { lab: lab.clone(), known, steps: Vec::new(), last: BTreeMap::new() };
    chain.images(&wanted)?;
    chain.l0_host_key();
    for machine in &wanted {
        chain.machine(machine)?;
    }
    Plan::new(chain.steps)
}

fn wanted(lab: &LabContext, until: Option<&str>) -> Result<Vec<Machine>> {
    let blueprint = lab.machines.blueprint();
    let Some(until) = until else { return Ok(blueprint.machines.clone()) };
    let mut names = BTreeSet::new();
    let mut next = Some(blueprint.machine(until)?);
    while let Some(machine) = next {
        names.insert(machine.name.clone());
        next = machine.parent.as_ref().map(|p| blueprint.machine(p.as_str())).transpose()?;
    }
    Ok(blueprint.machines.iter().filter(|m| names.contains(&m.name)).cloned().collect())
}

struct PlanBuilder {
    lab: Arc<LabContext>,
    /// What the lab's journal told when the plan was made.
    known: LabState,
    steps: Vec<Arc<dyn Step>>,
    /// The step after which a guest can be used as a host, by guest.
    last: BTreeMap<GuestName, StepId>,
}

impl PlanBuilder {
    fn add(
        &mut self,
        id: StepId,
        guest: Option<&Machine>,
        title: String,
        needs: Vec<StepId>,
        action: impl Action + 'static,
    ) -> StepId {
        let guest = guest.map(|machine| machine.name.to_string());
        let node = Node { id: id.clone(), guest, title, needs };
        self.steps.push(Arc::new(Placed { node, action }));
        id
    }

    fn guest_ref(&self, machine: &Machine) -> GuestRef {
        GuestRef { lab: self.lab.clone(), name: machine.name.to_string() }
    }

    /// One step an image, however many guests are made from it; none for one that no disk is made from.
    fn images(&mut self, wanted: &[Machine]) -> Result<()> {
        let mut images: BTreeMap<StepId, Obtain> = BTreeMap::new();
        for machine in wanted {
            if matches!(self.fate(machine)?, DiskDecision::Kept { .. }) {
                continue;
            }
            let manifest = self.lab.images.manifest(&machine.name);
            let (Some(image), Some(manifest)) = (&machine.image, manifest) else { continue };
            let obtain = images.entry(image_step(image)).or_insert_with(|| Obtain {
                lab: self.lab.clone(),
                manifest: manifest.clone(),
                made: image.made,
                forms: BTreeSet::new(),
                guests: Vec::new(),
            });
            obtain.forms.insert(image.form);
            obtain.guests.push(machine.name.clone());
        }
        let mut forms: BTreeMap<ImageName, usize> = BTreeMap::new();
        for obtain in images.values() {
            *forms.entry(obtain.manifest.name().clone()).or_default() += 1;
        }
        for (id, obtain) in images {
            let manifest = &obtain.manifest;
            let verb = if manifest.build().is_some() { "build" } else { "download and verify" };
            let title = match forms[manifest.name()] {
                1 => format!("{verb} {}", manifest.name()),
                _ => format!("{verb} {} as {}", manifest.name(), obtain.made),
            };
            self.add(id, None, title, Vec::new(), obtain);
        }
        Ok(())
    }

    fn fate(&self, machine: &Machine) -> Result<DiskDecision> {
        self.lab.fate(machine, &self.known)
    }

    /// L0's Host Key, if the recipe sets it: else it is left alone.
    fn l0_host_key(&mut self) {
        let Some(key) = self.lab.machines.blueprint().l0_host_key.clone() else { return };
        let guest = GuestRef { lab: self.lab.clone(), name: l0::NAME.to_owned() };
        let title = format!("set the Host Key on {}", l0::NAME);
        let id = StepId::new(l0::NAME, "host-key");
        self.add(id, None, title, Vec::new(), SetHostKey { guest, key });
    }

    fn machine(&mut self, machine: &Machine) -> Result<()> {
        let mut ready = self.boot(machine)?;
        let aside = self.known.aside.iter().any(|aside| aside.guest == machine.name.as_str());
        if aside || matches!(self.fate(machine)?, DiskDecision::Replaced { .. }) {
            let name = &machine.name;
            let title = format!("remove the disk that {name} had before");
            let action = Discard { guest: self.guest_ref(machine) };
            let id = StepId::new(name, "discard");
            ready = self.add(id, Some(machine), title, vec![ready], action);
        }
        if machine.inner.is_some() {
            let name = &machine.name;
            let (id, title) =
                (StepId::new(name, PREFLIGHT), format!("look whether {name} can become a host"));
            let action = Preflight { guest: self.guest_ref(machine) };
            ready = self.add(id, Some(machine), title, vec![ready], action);
        }
        if machine.inner.is_some() || !machine.packages.is_empty() {
            ready = self.upgrade(machine, ready)?;
        }
        if machine.inner.is_some() {
            ready = self.host(machine, ready);
        } else if machine.spec.nests() && machine.login.is_some() {
            let title = format!("prove that {} has virtualization inside", machine.name);
            let action = SeeVirtualization { guest: self.guest_ref(machine) };
            let id = StepId::new(&machine.name, "virtualization");
            ready = self.add(id, Some(machine), title, vec![ready], action);
        }
        if machine.login.is_some()
            && let Some(locked) = self.locked(machine)?
        {
            let (id, title) = (
                StepId::new(&machine.name, "locked"),
                format!("hold {} to its lock", machine.name),
            );
            let action = AsLocked { guest: self.guest_ref(machine), locked };
            ready = self.add(id, Some(machine), title, vec![ready], action);
        }
        self.last.insert(machine.name.clone(), ready);
        Ok(())
    }

    /// Image to running system.
    fn boot(&mut self, machine: &Machine) -> Result<StepId> {
        let name = &machine.name;
        let on_host: Vec<StepId> =
            machine.parent.iter().map(|parent| self.last[parent].clone()).collect();
        let mut needs = on_host.clone();
        if let (Some(image), Some(manifest)) = (&machine.image, self.lab.images.manifest(name)) {
            let to = machine.parent.as_ref().map_or("L0", |parent| parent.as_str());
            let fate = self.fate(machine)?;
            let title = match &fate {
                DiskDecision::Made | DiskDecision::Stays => format!("put {} on {to}", image.name),
                DiskDecision::Kept { .. } => format!("keep the disk of {name}"),
                DiskDecision::Replaced { .. } => format!("replace the disk of {name}"),
            };
            if !matches!(fate, DiskDecision::Kept { .. }) {
                needs.push(image_step(image));
            }
            let id = StepId::new(name, "place");
            let action = CopyImage {
                guest: self.guest_ref(machine),
                manifest: manifest.clone(),
                digest: OnceCell::new(),
            };
            needs = vec![self.add(id, Some(machine), title, needs, action)];
        }
        let guest = self.guest_ref(machine);
        let title = format!("define {name} in {}", machine.outer);
        let id = StepId::new(name, "define");
        let defined = self.add(id, Some(machine), title, needs, Define { guest: guest.clone() });
        let (id, title) = (StepId::new(name, "start"), format!("start {name}"));
        let started =
            self.add(id, Some(machine), title, vec![defined], StartVm { guest: guest.clone() });
        let title = format!("wait until {name} is up ({})", machine.ready);
        let id = StepId::new(name, "ready");
        Ok(self.add(id, Some(machine), title, vec![started], Await { guest }))
    }

    /// What the guest is to be exactly, if the lab is built by a lock.
    fn locked(&self, machine: &Machine) -> Result<Option<LockedGuest>> {
        let lock = self.lab.lock.as_ref();
        lock.map(|lock| lock.guest(machine.name.as_str()).cloned()).transpose()
    }

    /// Up-to-date packages, and the recipe's own.
    fn upgrade(&mut self, machine: &Machine, ready: StepId) -> Result<StepId> {
        let mut last = ready;
        last = self.apt(machine, ("update", Task::Update), last);
        match self.locked(machine)? {
            None => last = self.apt(machine, ("upgrade", Task::FullUpgrade), last),
            Some(locked) => {
                let title = format!("bring {} to its locked packages", machine.name);
                let removes = machine.image.is_some();
                let action = Pin { guest: self.guest_ref(machine), locked, removes };
                let id = StepId::new(&machine.name, "pin");
                last = self.add(id, Some(machine), title, vec![last], action);
            }
        }
        if !machine.packages.is_empty() {
            last = self.apt(machine, ("packages", packages(&machine.packages)?), last);
        }
        Ok(last)
    }

    fn apt(&mut self, machine: &Machine, (what, task): (&str, Task), after: StepId) -> StepId {
        let title = format!("{} in {}", task.title(), machine.name);
        let action = Apt { guest: self.guest_ref(machine), task };
        self.add(StepId::new(&machine.name, what), Some(machine), title, vec![after], action)
    }

    /// A system that runs guests.
    fn host(&mut self, machine: &Machine, upgraded: StepId) -> StepId {
        let name = &machine.name;
        let guest = self.guest_ref(machine);
        let mut last = upgraded;
        if machine.hypervisors().any(hypervisor::builds_modules) {
            let (id, title) =
                (StepId::new(name, "headers"), format!("install kernel headers in {name}"));
            let action = Headers { guest: guest.clone() };
            last = self.add(id, Some(machine), title, vec![last], action);
        }
        let (id, title) = (StepId::new(name, "reboot"), format!("run the newest kernel in {name}"));
        last = self.add(id, Some(machine), title, vec![last], Reboot { guest: guest.clone() });
        for kind in machine.hypervisors() {
            let first = machine.inner == Some(kind);
            let id = |what: &str| match first {
                true => StepId::new(name, what),
                false => StepId::new(name, &format!("{what}-{kind}")),
            };
            let title = format!("install {kind} in {name}");
            let action = Install { guest: guest.clone(), kind };
            last = self.add(id("hypervisor"), Some(machine), title, vec![last], action);
            let title = match first {
                true => format!("prove that {name} can run guests"),
                false => format!("prove that {name} can run guests with {kind} too"),
            };
            let is_last = machine.hypervisors().last() == Some(kind);
            let action = Prove { guest: guest.clone(), kind, is_last };
            last = self.add(id(PROOF), Some(machine), title, vec![last], action);
        }
        if let Some(key) = machine.host_key.clone() {
            let (id, title) =
                (StepId::new(name, "host-key"), format!("set the Host Key in {name}"));
            last = self.add(id, Some(machine), title, vec![last], SetHostKey { guest, key });
        }
        last
    }
}

fn image_step(image: &MachineImage) -> StepId {
    StepId::new("image", &format!("{}.{}", image.name, image.made))
}
