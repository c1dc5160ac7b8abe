//! A guest's VM: defined as wanted, running, and up.

use std::time::Duration;

use async_trait::async_trait;

use super::action::Action;
use super::adoption;
use super::context::{GuestRef, unless_unreachable};
use super::contract::{self, Effect};
use super::existing::{ExistingVm, is_on};
use super::machines::VmHandle;
use super::provenance::vm_of;
use super::step::{Check, Context};
use crate::error::{Error, Result};
use crate::event::Level;
use crate::guest::readiness;
use crate::host::Command;
use crate::hypervisor::virtualbox::SavedSettings;
use crate::hypervisor::{Actual, Change, Nesting, Power, Probe, Remains};
use crate::recipe::Readiness;

/// How long one look at a guest that was up may take, on bare metal; waiting for it is not a look.
const ONE_LOOK: Duration = Duration::from_secs(3);

/// Makes the VM what its blueprint says: imports or creates it, and changes what differs.
pub(super) struct Define {
    pub(super) guest: GuestRef,
}

impl Define {
    /// Returns what must change so that the VM, which is `actual`, is as wanted.
    async fn changes(&self, vm: &VmHandle, actual: Option<&Actual>) -> Result<Vec<Change>> {
        let probe = self.guest.lab.machines.probe(&self.guest.name).await?;
        Ok(vm.hypervisor.changes(&vm.machine.spec, actual, &probe))
    }

    /// Returns the VM as it is, after it was made known again if that was needed; `None` if there is
    /// nothing of it, and never was anything that it ran with.
    async fn recover(&self, vm: &VmHandle) -> Result<Option<Actual>> {
        match self.guest.find(vm).await? {
            ExistingVm::There(actual) => return Ok(Some(actual)),
            ExistingVm::Absent => return Ok(None),
            ExistingVm::Remains(Remains::Lost(why)) => return Err(self.lost(&why)),
            ExistingVm::Remains(Remains::Known { commands, .. }) => {
                for command in &commands {
                    vm.host.check(command).await?;
                }
            }
        }
        match vm.inspect().await? {
            Some(actual) => Ok(Some(actual)),
            None => Err(self.lost("it is not there, though it was just made known again")),
        }
    }

    fn lost(&self, why: &str) -> Error {
        let guest = &self.guest.name;
        let why = format!("{guest} has a disk of its own, and cannot be defined: {why}");
        contract::stuck(&why, &self.guest.lab.ways_out_of(guest))
    }

    /// Returns what follows from making `changes` to the VM.
    async fn judge(&self, vm: &VmHandle, actual: &Actual, changes: &[Change]) -> Result<Check> {
        let guest = &self.guest.name;
        if changes.is_empty() {
            let stays = vm.hypervisor.stays(&vm.machine.spec, actual);
            return Ok(match stays.as_slice() {
                [] => Check::Satisfied,
                _ => Check::Affects {
                    why: format!("{guest}: {}", stays.join("; ")),
                    effect: Effect::Keep { guest: guest.clone(), ask: None },
                },
            });
        }
        let why = summary(changes);
        if !restarts(actual, changes) {
            return Ok(Check::Needed(why));
        }
        Ok(Check::Affects { why, effect: self.guest.restart().await? })
    }
}

/// Returns whether `changes` power the VM off.
fn restarts(actual: &Actual, changes: &[Change]) -> bool {
    is_on(&actual.power) && changes.iter().any(|change| change.needs_power_off)
}

#[async_trait]
impl Action for Define {
    fn may_disturb(&self) -> bool {
        true
    }

    async fn check(&self, _context: &Context) -> Result<Check> {
        let look = async {
            let vm = self.guest.vm().await?;
            match self.guest.find(&vm).await? {
                ExistingVm::There(actual) => {
                    if vm.machine.is_existing() {
                        let lab = self.guest.lab.machines.lab();
                        adoption::refuse_anothers(lab, &vm, &actual)?;
                    }
                    let changes = self.changes(&vm, Some(&actual)).await?;
                    self.judge(&vm, &actual, &changes).await
                }
                ExistingVm::Absent => Ok(Check::Needed(summary(&self.changes(&vm, None).await?))),
                ExistingVm::Remains(Remains::Known { why, .. }) => Ok(Check::Needed(why)),
                ExistingVm::Remains(Remains::Lost(why)) => Ok(Check::stuck(&self.lost(&why))),
            }
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let vm = self.guest.vm().await?;
        let machine = &vm.machine;
        self.tell(&vm, context).await?;
        let mut actual = self.recover(&vm).await?;
        let mut changes = self.changes(&vm, actual.as_ref()).await?;
        if actual.as_ref().is_some_and(|actual| restarts(actual, &changes)) {
            self.guest.lab.agreed_to(&self.guest.restart().await?)?;
            self.guest.bring_down(context).await?;
            // What is off is changed by other commands than what runs.
            actual = self.recover(&vm).await?;
            changes = self.changes(&vm, actual.as_ref()).await?;
        }
        if !machine.is_existing() {
            context.journal.creating(vm_of(&vm.machine, &vm.recorded)).await?;
        } else if let Some(actual) = &actual {
            adoption::claim(self.guest.lab.machines.lab(), &vm, actual)?;
            let former =
                serde_json::to_value(SavedSettings::before(actual, &changes)).map_err(|error| {
                    Error::internal("former settings are not JSON").with_source(error)
                })?;
            context.journal.former(&vm.recorded, machine.outer, &actual.id, former).await?;
        }
        vm.hypervisor.change(&*vm.host, &machine.spec, &changes, &context.events).await?;
        self.guest.lab.machines.forget(&self.guest.name).await;
        Ok(())
    }

    async fn commands(&self, _context: &Context) -> Result<Vec<Command>> {
        let machines = &self.guest.lab.machines;
        let seen = async {
            let vm = self.guest.vm().await?;
            let actual = match self.guest.find(&vm).await? {
                ExistingVm::There(actual) => Some(actual),
                ExistingVm::Absent => None,
                ExistingVm::Remains(Remains::Known { commands, .. }) => return Ok(commands),
                ExistingVm::Remains(Remains::Lost(_)) => return Ok(Vec::new()),
            };
            Ok(commands(self.changes(&vm, actual.as_ref()).await?))
        };
        let seen: Result<Vec<Command>> = seen.await;
        if let Ok(commands) = seen {
            return Ok(commands);
        }
        // Its host is not ready yet: what a fresh VM would take, as far as it is known.
        let machine = machines.blueprint().machine(&self.guest.name)?;
        let driver = machines.driver(machine.outer);
        Ok(commands(driver.changes(&machine.spec, None, &Probe::presumed(machine.outer))))
    }
}

fn commands(changes: Vec<Change>) -> Vec<Command> {
    changes.into_iter().flat_map(|change| change.commands).collect()
}

impl Define {
    /// Tells what the user should know of the hypervisor, once for all guests of a host.
    async fn tell(&self, vm: &VmHandle, context: &Context) -> Result<()> {
        let probe = self.guest.lab.machines.probe(&self.guest.name).await?;
        let (kind, host) = (vm.machine.outer, vm.host.name());
        if self.guest.lab.machines.is_first_on(&self.guest.name) {
            for note in &probe.notes {
                context.events.notice(Level::Warning, format!("{kind} on {host}: {note}"));
            }
        }
        if let (true, Nesting::Absent(why)) = (vm.machine.spec.nests(), &probe.nesting) {
            let text = format!("{} will see neither svm nor vmx: {why}", vm.machine.name);
            context.events.notice(Level::Warning, text);
        }
        Ok(())
    }
}

/// Returns the changes in one line: the first few, and how many more.
fn summary(changes: &[Change]) -> String {
    const SHOWN: usize = 4;
    let mut parts: Vec<String> = changes
        .iter()
        .take(SHOWN)
        .map(|change| match &change.actual {
            Some(actual) => format!("{}: {actual} → {}", change.setting, change.wanted),
            None => format!("{}: {}", change.setting, change.wanted),
        })
        .collect();
    if changes.len() > SHOWN {
        parts.push(format!("{} more", changes.len() - SHOWN));
    }
    parts.join(", ")
}

/// Starts the VM.
pub(super) struct StartVm {
    pub(super) guest: GuestRef,
}

#[async_trait]
impl Action for StartVm {
    async fn check(&self, _context: &Context) -> Result<Check> {
        let look = async {
            let power = self.guest.vm().await?.inspect().await?.map(|actual| actual.power);
            Ok(match power {
                Some(Power::Running) => Check::Satisfied,
                Some(Power::Crashed(how)) => Check::Needed(format!("it crashed: {how}")),
                Some(Power::Paused) => Check::Needed("it is paused".to_owned()),
                Some(Power::Saved) => Check::Needed("it is saved to disk".to_owned()),
                Some(Power::Changing(how)) => Check::Needed(format!("it is {how}")),
                Some(Power::Off) | None => Check::Needed("it is off".to_owned()),
            })
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let vm = self.guest.vm().await?;
        let machines = &self.guest.lab.machines;
        let probe = machines.probe(&self.guest.name).await?;
        context.journal.stopped(&self.guest.name).await?;
        machines.forget(&self.guest.name).await;
        let spec = &vm.machine.spec;
        vm.hypervisor.start(&*vm.host, spec, &probe, &context.events).await
    }

    async fn commands(&self, _context: &Context) -> Result<Vec<Command>> {
        let machines = &self.guest.lab.machines;
        let machine = machines.blueprint().machine(&self.guest.name)?;
        let driver = machines.driver(machine.outer);
        Ok(match machines.probe(&self.guest.name).await {
            Ok(probe) => driver.start_commands(&machine.spec, &probe),
            Err(_) => driver.start_commands(&machine.spec, &Probe::presumed(machine.outer)),
        })
    }
}

/// Waits for the evidence that the guest is up.
pub(super) struct Await {
    pub(super) guest: GuestRef,
}

#[async_trait]
impl Action for Await {
    async fn check(&self, context: &Context) -> Result<Check> {
        let look = async {
            let vm = self.guest.vm().await?;
            if vm.inspect().await?.map(|actual| actual.power) != Some(Power::Running) {
                return Ok(Check::Needed("it does not run".to_owned()));
            }
            let seen = self.guest.lab.machines.lab().status()?;
            if !seen.ready.contains_key(&self.guest.name) {
                return Ok(Check::Needed("no evidence was seen since it was started".to_owned()));
            }
            if vm.machine.ready == Readiness::Screen {
                // One look at a screen proves nothing; what was seen since its start does.
                return Ok(Check::Satisfied);
            }
            let exec = self.guest.around(&vm, context).await?;
            let patience = self.guest.lab.machines.patience(&self.guest.name).await?;
            let look = readiness::look(exec.exec(), vm.view(), &vm.machine.ready);
            let seen = tokio::time::timeout(patience.limit(ONE_LOOK), look).await;
            Ok(match seen.unwrap_or(Ok(None))? {
                Some(_) => Check::Satisfied,
                None => Check::Needed(format!("it was up, and shows no {} now", vm.machine.ready)),
            })
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let vm = self.guest.vm().await?;
        let exec = self.guest.around(&vm, context).await?;
        let evidence = readiness::wait(exec.exec(), vm.view(), &vm.machine.ready).await?;
        let address = match &vm.machine.login {
            Some(login) => {
                let spec = &vm.machine.spec;
                let address = vm.hypervisor.endpoint(&*vm.host, spec, login.port).await?;
                Some(address.to_string())
            }
            None => None,
        };
        context.journal.ready(&self.guest.name, &evidence.to_string(), address).await
    }
}
