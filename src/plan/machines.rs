//! The machines of a lab, to act on: who runs on what, how to get in, and how patient to be.
//!
//! A guest is entered over its host, at any depth; every session and every probe is made once, when it
//! is first needed.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::{Mutex, OnceCell};

use super::blueprint::{Blueprint, GuestLogin, Machine};
use super::l0;
use super::vm_place::L0Address;
use crate::error::{Error, Kind, Result};
use crate::faults;
use crate::guest::readiness::VmView;
use crate::host::ssh::{HostKeyPolicy, Ssh, SshKey, SshTarget, Via};
use crate::host::{Host, HostRef, TimeoutScale};
use crate::hypervisor::{Actual, Drivers, HypervisorRef, Power, Probe};
use crate::lab::Lab;
use crate::preflight::Prober;
use crate::recipe::HypervisorKind;

/// A probe's answer, once it is there.
type ProbeCell = Arc<OnceCell<Arc<Probe>>>;

/// The machines of a lab.
#[derive(Debug)]
pub struct Machines {
    lab: Lab,
    blueprint: Blueprint,
    l0: HostRef,
    /// The machines that were L0 before, once they are asked for.
    former_l0s: Mutex<BTreeMap<L0Address, HostRef>>,
    drivers: Drivers,
    /// By what tells each guest from all others.
    sessions: Mutex<BTreeMap<String, Arc<Ssh>>>,
    /// What each host runs guests with, by the host's name: probed once, since that runs a guest.
    probes: Mutex<BTreeMap<(String, HypervisorKind), ProbeCell>>,
}

/// A guest as seen from the host that runs it, with the host held.
#[derive(Debug, Clone)]
pub struct VmHandle {
    /// The host that runs it.
    pub host: HostRef,
    /// What the journal calls that host.
    pub recorded: String,
    /// What runs it there.
    pub hypervisor: HypervisorRef,
    /// The guest.
    pub machine: Machine,
}

impl VmHandle {
    /// Returns the VM as it is, or `None` if there is none.
    pub async fn inspect(&self) -> Result<Option<Actual>> {
        self.hypervisor.inspect(&*self.host, &self.machine.spec).await
    }

    /// Returns the same as the guest module takes it.
    pub fn view(&self) -> VmView<'_> {
        VmView { host: &*self.host, hypervisor: &*self.hypervisor, spec: &self.machine.spec }
    }
}

impl Machines {
    /// Returns the machines of `blueprint` in `lab`, with `l0` as L0.
    pub fn new(lab: Lab, blueprint: Blueprint, l0: HostRef, drivers: Drivers) -> Self {
        let (sessions, probes, former_l0s) = Default::default();
        Machines { lab, blueprint, l0, former_l0s, drivers, sessions, probes }
    }

    /// Returns the blueprint.
    pub fn blueprint(&self) -> &Blueprint {
        &self.blueprint
    }

    /// Takes another blueprint, before anything is done by it.
    pub(super) fn redraw(&mut self, blueprint: Blueprint) {
        self.blueprint = blueprint;
    }

    /// Returns the lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Returns L0.
    pub fn l0(&self) -> &HostRef {
        &self.l0
    }

    /// Returns the hypervisors' drivers.
    pub fn drivers(&self) -> &Drivers {
        &self.drivers
    }

    /// Returns the driver for `kind`.
    pub fn driver(&self, kind: HypervisorKind) -> HypervisorRef {
        self.drivers.driver(kind)
    }

    /// Returns the host called `name`: L0, or a guest that is up.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] if a machine on the way does not run, [`Kind::Usage`] for a name that the
    /// lab does not have.
    pub async fn host(&self, name: &str) -> Result<HostRef> {
        if name == self.l0.name() {
            return Ok(self.l0.clone());
        }
        Ok(faults::host(self.enter(name).await?))
    }

    /// Returns the machine `place`, which is the lab's L0 or was.
    async fn l0_at(&self, place: &L0Address) -> Result<HostRef> {
        if *place == self.blueprint.l0() {
            return Ok(self.l0.clone());
        }
        let mut known = self.former_l0s.lock().await;
        if let Some(host) = known.get(place) {
            return Ok(host.clone());
        }
        let host = l0::former(place, &self.lab)?;
        known.insert(place.clone(), host.clone());
        Ok(host)
    }

    /// Returns the host that the journal calls `name`: an L0, or a guest that is up.
    ///
    /// # Errors
    /// As [`Machines::host`].
    pub(super) async fn host_in_journal(&self, name: &str) -> Result<HostRef> {
        if name == l0::NAME {
            return self.l0_at(&self.blueprint.l0_in_journal()).await;
        }
        let places = self.blueprint.all().map(|machine| self.blueprint.place(machine).l0);
        match places.into_iter().find(|place| place.to_string() == name) {
            Some(place) => self.l0_at(&place).await,
            None => self.host(name).await,
        }
    }

    /// Returns `guest` as seen from the host that runs it; one that the recipe has before one that it had.
    ///
    /// # Errors
    /// As [`Machines::host`] for the guest's host.
    pub async fn vm(&self, guest: &str) -> Result<VmHandle> {
        self.vm_handle(self.blueprint.known(guest)?).await
    }

    /// Returns `machine` as seen from the host that runs it.
    ///
    /// # Errors
    /// As [`Machines::host`] for the guest's host.
    pub async fn vm_handle(&self, machine: &Machine) -> Result<VmHandle> {
        let host = match self.blueprint.host_of(machine) {
            None => self.l0_at(&self.blueprint.place(machine).l0).await?,
            Some(around) => faults::host(self.session(around).await?),
        };
        let hypervisor = self.driver(machine.outer);
        let recorded = self.blueprint.host_in_journal(machine);
        Ok(VmHandle { host, recorded, hypervisor, machine: machine.clone() })
    }

    /// Returns the SSH session into `guest`, connected when it is first used.
    ///
    /// # Errors
    /// As [`Machines::host`]; [`Kind::Usage`] for a guest that nobody can enter.
    pub async fn enter(&self, guest: &str) -> Result<Arc<Ssh>> {
        self.session(self.blueprint.known(guest)?).await
    }

    fn session<'a>(&'a self, machine: &'a Machine) -> BoxFuture<'a, Result<Arc<Ssh>>> {
        async move {
            let (guest, label) = (machine.name.as_str(), self.blueprint.label(machine));
            if let Some(session) = self.sessions.lock().await.get(&label) {
                return Ok(session.clone());
            }
            let vm = self.vm_handle(machine).await?;
            let login = vm.machine.login.clone().ok_or_else(|| no_login(guest))?;
            let power = vm.inspect().await?.map(|actual| actual.power);
            if power != Some(Power::Running) {
                return Err(not_running(guest, power.as_ref()).on_host(vm.host.name()));
            }
            let spec = &vm.machine.spec;
            let address = vm.hypervisor.endpoint(&*vm.host, spec, login.port).await?;
            let target = SshTarget {
                name: label.clone(),
                user: login.user.clone(),
                key: self.key(&login)?,
                host_key: self.host_key(guest, &login)?,
                via: Via::Through(vm.host.clone(), address),
                patience: self.patience_of(machine).await?,
            };
            let session = Arc::new(Ssh::new(target));
            let mut sessions = self.sessions.lock().await;
            Ok(sessions.entry(label).or_insert(session).clone())
        }
        .boxed()
    }

    /// Forgets the sessions into `guest` and everything in it: the next one asks anew where it is. To
    /// be called when its VM was started or stopped.
    pub async fn forget(&self, guest: &str) {
        let mut sessions = self.sessions.lock().await;
        let mut gone = vec![guest.to_owned()];
        while let Some(name) = gone.pop() {
            sessions.remove(&name);
            let inside = self.blueprint.all().filter(|machine| {
                machine.parent.as_ref().is_some_and(|parent| parent.as_str() == name)
            });
            gone.extend(inside.map(|machine| machine.name.to_string()));
        }
    }

    /// Returns what the hypervisor that runs `guest` is and can do.
    pub async fn probe(&self, guest: &str) -> Result<Arc<Probe>> {
        self.probe_of(self.blueprint.known(guest)?).await
    }

    async fn probe_of(&self, machine: &Machine) -> Result<Arc<Probe>> {
        let host = self.vm_handle(machine).await?.host;
        self.probe_at(&host, machine.outer).await
    }

    /// Returns what the hypervisor `kind` on the host called `host` is and can do.
    pub async fn probe_on(&self, host: &str, kind: HypervisorKind) -> Result<Arc<Probe>> {
        self.probe_at(&self.host(host).await?, kind).await
    }

    async fn probe_at(&self, host: &HostRef, kind: HypervisorKind) -> Result<Arc<Probe>> {
        let key = (host.name().to_owned(), kind);
        let cell = self.probes.lock().await.entry(key).or_default().clone();
        let probe = cell
            .get_or_try_init(|| async { Ok(Arc::new(self.driver(kind).probe(&**host).await?)) });
        probe.await.cloned()
    }

    /// Returns whether `guest` is the first of those that the same hypervisor runs on the same host.
    pub fn is_first_on(&self, guest: &str) -> bool {
        let Ok(machine) = self.blueprint.machine(guest) else { return false };
        let mut beside = self
            .blueprint
            .machines
            .iter()
            .filter(|other| other.parent == machine.parent && other.outer == machine.outer);
        beside.next().is_some_and(|first| first.name == machine.name)
    }

    /// Returns how patient to be with `guest`: as slow as every hypervisor around it together.
    pub async fn patience(&self, guest: &str) -> Result<TimeoutScale> {
        self.patience_of(self.blueprint.known(guest)?).await
    }

    /// Returns how patient to be with `machine`.
    pub fn patience_of<'a>(&'a self, machine: &'a Machine) -> BoxFuture<'a, Result<TimeoutScale>> {
        async move {
            let around = match self.blueprint.host_of(machine) {
                Some(around) => self.patience_of(around).await?,
                None => TimeoutScale::new(self.blueprint.patience),
            };
            match self.probe_of(machine).await {
                Ok(probe) => Ok(around.times(probe.patience.factor())),
                // What can start no guest may have one that runs, and that can be entered.
                Err(error) if error.kind() == Kind::HostCannot => Ok(around),
                Err(error) => Err(error),
            }
        }
        .boxed()
    }

    fn key(&self, login: &GuestLogin) -> Result<SshKey> {
        match &login.key {
            Some(path) => Ok(SshKey::File(path.clone())),
            None => Ok(SshKey::Memory(self.lab.keys().user()?.private().into())),
        }
    }

    fn host_key(&self, guest: &str, login: &GuestLogin) -> Result<HostKeyPolicy> {
        if login.host_key_injected {
            let key = self.lab.keys().host_key(guest)?;
            return Ok(HostKeyPolicy::Pinned(vec![key.public().to_owned()]));
        }
        // It cannot be injected into a VM that existed before: pinned when first seen.
        Ok(HostKeyPolicy::KnownHosts {
            file: self.lab.known_hosts().path().to_owned(),
            accept_new: true,
        })
    }
}

/// The checks ask for what was found already.
#[async_trait]
impl Prober for Machines {
    async fn probe(&self, host: &dyn Host, kind: HypervisorKind) -> Result<Probe> {
        Ok(Probe::clone(&*self.probe_on(host.name(), kind).await?))
    }
}

fn no_login(guest: &str) -> Error {
    Error::new(Kind::Usage, format!("{guest} cannot be entered: its image has no SSH server"))
        .hint(format!("look at its screen instead: nestlab screenshot {guest}"))
        .hint("if you set one up inside, say so in the recipe: ssh = { user = \"user\" }")
}

fn not_running(guest: &str, power: Option<&Power>) -> Error {
    let state = match power {
        None => "does not exist yet",
        Some(Power::Off) => "is off",
        Some(Power::Saved) => "is saved to disk",
        Some(Power::Paused) => "is paused",
        Some(Power::Changing(_)) => "is just changing its state",
        Some(Power::Crashed(_)) => "crashed",
        Some(Power::Running) => "runs",
    };
    Error::new(Kind::Unreachable, format!("{guest} {state}")).hint("nestlab up starts it")
}
