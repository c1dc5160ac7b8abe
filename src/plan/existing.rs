//! What there is of a guest already, and how what runs is brought down before it is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::blueprint::{Blueprint, Machine};
use super::context::{GuestRef, LabContext, is_unreachable};
use super::contract::Effect;
use super::machines::{Machines, VmHandle};
use super::orphaned::is_same_vm;
use super::provenance::vm_of;
use super::provision::PROOF;
use super::step::{Context, StepId};
use crate::error::{Error, Kind, Result};
use crate::event::Level;
use crate::hypervisor::{Actual, Power, Remains, Stop};
use crate::lab::{LabState, StepState};

/// How long a guest may take to shut down by itself, on bare metal, before it is changed.
const GRACE: Duration = Duration::from_secs(60);

/// The same for a VM of the user's, whose desktop may ask somebody first.
const GRACE_OF_EXISTING: Duration = Duration::from_secs(90);

/// What there is of a guest.
pub(super) enum ExistingVm {
    /// Its VM.
    There(Actual),
    /// Nothing that it ever ran with.
    Absent,
    /// It ran with a disk that is its own now, and its hypervisor does not know it any more.
    Remains(Remains),
}

/// What a lab was when `up` began.
#[derive(Debug, Clone, Default)]
pub struct LabBefore {
    /// What its journal told.
    pub(super) status: LabState,
    /// The machines as they were recorded last, by guest.
    pub(super) recorded: BTreeMap<String, Machine>,
}

impl LabBefore {
    /// Returns how a lab begins whose journal tells `status`, and that was last built as `before`.
    pub(super) fn of(status: LabState, before: Option<&Blueprint>) -> Self {
        let machines = before.into_iter().flat_map(|before| &before.machines);
        let recorded = machines.map(|machine| (machine.name.to_string(), machine.clone()));
        LabBefore { status, recorded: recorded.collect() }
    }

    /// Returns `machine` as it was recorded, if that is the same VM.
    pub(super) fn recorded(&self, machine: &Machine) -> Option<&Machine> {
        self.recorded.get(machine.name.as_str()).filter(|old| is_same_vm(old, machine))
    }
}

impl LabContext {
    /// Returns the ways out for what is stuck with `guest`.
    pub(super) fn ways_out_of(&self, guest: &str) -> Vec<String> {
        let lab = self.machines.lab().name();
        vec![
            "bring back what is missing, if there is a copy of it, and run the same command again"
                .to_owned(),
            format!(
                "`nestlab destroy {lab} {guest}` removes what is left of {guest}; \
                 the next `up` then makes it anew"
            ),
        ]
    }

    /// Returns whether somebody may rely on the running `guest`: it was up when `up` began, or is the
    /// user's own.
    fn is_relied_on(&self, guest: &str) -> bool {
        let existing = self.machines.blueprint().machine(guest).is_ok_and(Machine::is_existing);
        existing || self.begun.status.ready.contains_key(guest)
    }

    /// Returns whether the lab has guests that `up` could disturb.
    pub fn has_guests(&self) -> bool {
        let existing = self.machines.blueprint().machines.iter().any(Machine::is_existing);
        existing || !self.begun.status.used.is_empty()
    }

    /// Returns the guests inside `guest`, for people.
    pub fn inside(&self, guest: &str) -> String {
        self.machines.all_inside(guest).join(", ")
    }

    /// Returns the names of guests whose disks may be replaced.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a guest that the lab does not have, or that is a VM of the user's.
    pub fn replaceable(&self, guests: &[String]) -> Result<BTreeSet<String>> {
        for guest in guests {
            if self.machines.blueprint().machine(guest)?.is_existing() {
                let text = format!("{guest} is a VM that nestlab did not make: its disk is yours");
                return Err(Error::new(Kind::Usage, text));
            }
        }
        Ok(guests.iter().cloned().collect())
    }

    /// Returns whether `guest` was proven to run guests before `up` began, and was not made anew since.
    pub(super) fn was_a_host(&self, guest: &str) -> Result<bool> {
        let proof = StepId::new(guest, PROOF);
        let good = |known: &LabState| {
            let step = known.steps.get(proof.as_str());
            step.is_some_and(|step| step.state == StepState::Good)
        };
        Ok(good(&self.begun.status) && good(&self.machines.lab().status()?))
    }

    /// Returns whether the user is to agree to `effect` before it comes about.
    pub fn asks_for(&self, effect: &Effect) -> bool {
        match effect {
            Effect::Restart { guest, with } => !with.is_empty() || self.is_relied_on(guest),
            Effect::Replace { .. } => true,
            Effect::InPlace | Effect::Keep { .. } | Effect::Stuck { .. } => false,
        }
    }

    /// Returns an error unless the user agreed to `effect`, a restart, or need not be asked.
    pub(super) fn agreed_to(&self, effect: &Effect) -> Result<()> {
        if self.consent.restart || !self.asks_for(effect) {
            return Ok(());
        }
        Err(Error::new(Kind::Usage, format!("what runs would be disturbed: {effect}"))
            .hint("`nestlab up` with `--allow restart` does it; `nestlab plan` shows why"))
    }
}

impl GuestRef {
    /// Looks for the guest's VM, and for what is left of one that was there once.
    pub(super) async fn find(&self, vm: &VmHandle) -> Result<ExistingVm> {
        let used = self.lab.machines.lab().status()?.is_used(&vm_of(&vm.machine, &vm.recorded));
        match vm.inspect().await {
            Ok(Some(actual)) => return Ok(ExistingVm::There(actual)),
            Ok(None) if !used => return Ok(ExistingVm::Absent),
            Err(error) if error.kind() != Kind::Stuck => return Err(error),
            Err(_) if !used => return Ok(ExistingVm::Absent),
            Ok(None) | Err(_) => {}
        }
        let recorded = self.lab.begun.recorded(&vm.machine).map(|machine| &machine.spec);
        let remains = vm.hypervisor.remains(&*vm.host, &vm.machine.spec, recorded);
        Ok(ExistingVm::Remains(remains.await?))
    }

    /// Returns the effect of powering the guest, which runs, off and on.
    pub(super) async fn restart(&self) -> Result<Effect> {
        let with = self.lab.machines.running_inside(&self.name).await?;
        Ok(Effect::Restart { guest: self.name.clone(), with })
    }

    /// Shuts down what runs inside the guest, the deepest first.
    pub(super) async fn shut_down_inside(&self, context: &Context) -> Result<()> {
        let machines = &self.lab.machines;
        for inside in machines.running_inside(&self.name).await?.iter().rev() {
            context.events.doing(format!("shutting down {inside}, which runs in {}", self.name));
            match self.shut_down(inside, context).await {
                Err(error) if is_unreachable(&error) => {
                    let text = format!("{inside} goes down with {}: {error}", self.name);
                    context.events.notice(Level::Warning, text);
                }
                done => done?,
            }
        }
        Ok(())
    }

    /// Shuts down what runs inside the guest, and then the guest itself.
    pub(super) async fn bring_down(&self, context: &Context) -> Result<()> {
        self.shut_down_inside(context).await?;
        context.events.doing(format!("shutting down {}", self.name));
        self.shut_down(&self.name, context).await
    }

    async fn shut_down(&self, guest: &str, context: &Context) -> Result<()> {
        let machines = &self.lab.machines;
        let vm = machines.vm(guest).await?;
        let existing = vm.machine.is_existing();
        let grace = if existing { GRACE_OF_EXISTING } else { GRACE };
        let grace = Stop::Graceful(machines.patience(guest).await?.limit(grace));
        let (host, spec, events) = (&*vm.host, &vm.machine.spec, &context.events);
        let stopped = context.or_cancelled(vm.hypervisor.stop(host, spec, grace, events)).await;
        match stopped {
            Err(error) if existing && error.kind() == Kind::Failed => {
                if !self.lab.consent.power_off {
                    return Err(error.hint(
                        "`--allow power-off` pulls its plug: what is not saved in it is lost",
                    ));
                }
                events.notice(
                    Level::Warning,
                    format!("{guest} does not shut down; its plug is pulled"),
                );
                vm.hypervisor.stop(host, spec, Stop::PowerOff, events).await?;
            }
            stopped => stopped?,
        }
        context.journal.stopped(guest).await?;
        machines.forget(guest).await;
        Ok(())
    }
}

impl Machines {
    /// Returns the guests that run inside `guest`, at any depth, each after its host. Of a host that does not
    /// answer, those that were up when it last did.
    pub(super) fn running_inside<'a>(
        &'a self,
        guest: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>>> {
        async move {
            let mut running = Vec::new();
            for machine in self.inside(guest) {
                let name = machine.name.as_str();
                let power = async { self.vm(name).await?.inspect().await };
                let runs = match power.await {
                    Ok(actual) => actual.is_some_and(|actual| is_on(&actual.power)),
                    Err(error) if is_unreachable(&error) => {
                        self.lab().status()?.ready.contains_key(name)
                    }
                    // Its definition is damaged, and it may run all the same. With any other failure, as of
                    // a host without a hypervisor, nothing was started there.
                    Err(error) => error.kind() == Kind::Stuck,
                };
                if runs {
                    running.push(name.to_owned());
                    running.extend(self.running_inside(name).await?);
                }
            }
            Ok(running)
        }
        .boxed()
    }

    /// Returns every guest inside `guest`, at any depth, each after its host.
    pub(super) fn all_inside(&self, guest: &str) -> Vec<String> {
        let children = self.inside(guest).map(|machine| machine.name.to_string());
        let deeper = |name: String| {
            let inside = self.all_inside(&name);
            [name].into_iter().chain(inside)
        };
        children.flat_map(deeper).collect()
    }

    fn inside<'a>(&'a self, guest: &'a str) -> impl Iterator<Item = &'a Machine> {
        let machines = self.blueprint().machines.iter();
        machines.filter(move |machine| {
            machine.parent.as_ref().is_some_and(|parent| parent.as_str() == guest)
        })
    }
}

/// Returns whether a VM has something to lose by being powered off.
pub(super) fn is_on(power: &Power) -> bool {
    !matches!(power, Power::Off | Power::Saved | Power::Crashed(_))
}
