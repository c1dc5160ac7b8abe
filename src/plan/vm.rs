//! A guest's VM: defined as wanted, running, and up.

use std::time::Duration;

use async_trait::async_trait;

use super::action::Action;
use super::adoption;
use super::contract::{self, Effect};
use super::found::{Found, is_on};
use super::machines::Seat;
use super::provenance::vm_of;
use super::step::{Check, Context};
use super::world::{Spot, unless_unreachable};
use crate::error::{Error, Result};
use crate::event::Level;
use crate::guest::readiness;
use crate::host::Command;
use crate::hypervisor::virtualbox::Former;
use crate::hypervisor::{Actual, Change, Nesting, Power, Probe, Remains};
use crate::recipe::Ready;

/// How long one look at a guest that was up may take, on bare metal; waiting for it is not a look.
const ONE_LOOK: Duration = Duration::from_secs(3);

/// Makes the VM what its blueprint says: imports or creates it, and changes what differs.
pub(super) struct Define {
    pub(super) spot: Spot,
}

impl Define {
    /// Returns what must change so that the VM, which is `actual`, is as wanted.
    async fn changes(&self, seat: &Seat, actual: Option<&Actual>) -> Result<Vec<Change>> {
        let probe = self.spot.world.machines.probe(&self.spot.guest).await?;
        Ok(seat.hypervisor.changes(&seat.machine.spec, actual, &probe))
    }

    /// Returns the VM as it is, after it was made known again if that was needed; `None` if there is
    /// nothing of it, and never was anything that it ran with.
    async fn recover(&self, seat: &Seat) -> Result<Option<Actual>> {
        match self.spot.find(seat).await? {
            Found::There(actual) => return Ok(Some(actual)),
            Found::Absent => return Ok(None),
            Found::Remains(Remains::Lost(why)) => return Err(self.lost(&why)),
            Found::Remains(Remains::Known { commands, .. }) => {
                for command in &commands {
                    seat.host.check(command).await?;
                }
            }
        }
        match seat.inspect().await? {
            Some(actual) => Ok(Some(actual)),
            None => Err(self.lost("it is not there, though it was just made known again")),
        }
    }

    fn lost(&self, why: &str) -> Error {
        let guest = &self.spot.guest;
        let why = format!("{guest} has a disk of its own, and cannot be defined: {why}");
        contract::stuck(&why, &self.spot.world.ways_out_of(guest))
    }

    /// Returns what follows from making `changes` to the VM.
    async fn judge(&self, seat: &Seat, actual: &Actual, changes: &[Change]) -> Result<Check> {
        let guest = &self.spot.guest;
        if changes.is_empty() {
            let stays = seat.hypervisor.stays(&seat.machine.spec, actual);
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
        Ok(Check::Affects { why, effect: self.spot.restart().await? })
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
            let seat = self.spot.seat().await?;
            match self.spot.find(&seat).await? {
                Found::There(actual) => {
                    if seat.machine.is_existing() {
                        let lab = self.spot.world.machines.lab();
                        adoption::refuse_anothers(lab, &seat, &actual)?;
                    }
                    let changes = self.changes(&seat, Some(&actual)).await?;
                    self.judge(&seat, &actual, &changes).await
                }
                Found::Absent => Ok(Check::Needed(summary(&self.changes(&seat, None).await?))),
                Found::Remains(Remains::Known { why, .. }) => Ok(Check::Needed(why)),
                Found::Remains(Remains::Lost(why)) => Ok(Check::stuck(&self.lost(&why))),
            }
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let seat = self.spot.seat().await?;
        let machine = &seat.machine;
        self.tell(&seat, context).await?;
        let mut actual = self.recover(&seat).await?;
        let mut changes = self.changes(&seat, actual.as_ref()).await?;
        if actual.as_ref().is_some_and(|actual| restarts(actual, &changes)) {
            self.spot.world.agreed_to(&self.spot.restart().await?)?;
            self.spot.bring_down(context).await?;
            // What is off is changed by other commands than what runs.
            actual = self.recover(&seat).await?;
            changes = self.changes(&seat, actual.as_ref()).await?;
        }
        if !machine.is_existing() {
            context.ledger.creating(vm_of(&seat.machine, &seat.recorded)).await?;
        } else if let Some(actual) = &actual {
            adoption::claim(self.spot.world.machines.lab(), &seat, actual)?;
            let former = serde_json::to_value(Former::before(actual, &changes))
                .map_err(|error| Error::internal("former settings are not JSON").because(error))?;
            context.ledger.former(&seat.recorded, machine.outer, &actual.id, former).await?;
        }
        seat.hypervisor.change(&*seat.host, &machine.spec, &changes, &context.feed).await?;
        self.spot.world.machines.forget(&self.spot.guest).await;
        Ok(())
    }

    async fn commands(&self, _context: &Context) -> Result<Vec<Command>> {
        let machines = &self.spot.world.machines;
        let seen = async {
            let seat = self.spot.seat().await?;
            let actual = match self.spot.find(&seat).await? {
                Found::There(actual) => Some(actual),
                Found::Absent => None,
                Found::Remains(Remains::Known { commands, .. }) => return Ok(commands),
                Found::Remains(Remains::Lost(_)) => return Ok(Vec::new()),
            };
            Ok(commands(self.changes(&seat, actual.as_ref()).await?))
        };
        let seen: Result<Vec<Command>> = seen.await;
        if let Ok(commands) = seen {
            return Ok(commands);
        }
        // Its host is not ready yet: what a fresh VM would take, as far as it is known.
        let machine = machines.blueprint().machine(&self.spot.guest)?;
        let driver = machines.driver(machine.outer);
        Ok(commands(driver.changes(&machine.spec, None, &Probe::presumed(machine.outer))))
    }
}

fn commands(changes: Vec<Change>) -> Vec<Command> {
    changes.into_iter().flat_map(|change| change.commands).collect()
}

impl Define {
    /// Tells what the user should know of the hypervisor, once for all guests of a host.
    async fn tell(&self, seat: &Seat, context: &Context) -> Result<()> {
        let probe = self.spot.world.machines.probe(&self.spot.guest).await?;
        let (kind, host) = (seat.machine.outer, seat.host.name());
        if self.spot.world.machines.is_first_on(&self.spot.guest) {
            for note in &probe.notes {
                context.feed.notice(Level::Warning, format!("{kind} on {host}: {note}"));
            }
        }
        if let (true, Nesting::Absent(why)) = (seat.machine.spec.nests(), &probe.nesting) {
            let text = format!("{} will see neither svm nor vmx: {why}", seat.machine.name);
            context.feed.notice(Level::Warning, text);
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
pub(super) struct Start {
    pub(super) spot: Spot,
}

#[async_trait]
impl Action for Start {
    async fn check(&self, _context: &Context) -> Result<Check> {
        let look = async {
            let power = self.spot.seat().await?.inspect().await?.map(|actual| actual.power);
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
        let seat = self.spot.seat().await?;
        let machines = &self.spot.world.machines;
        let probe = machines.probe(&self.spot.guest).await?;
        context.ledger.stopped(&self.spot.guest).await?;
        machines.forget(&self.spot.guest).await;
        let spec = &seat.machine.spec;
        seat.hypervisor.start(&*seat.host, spec, &probe, &context.feed).await
    }

    async fn commands(&self, _context: &Context) -> Result<Vec<Command>> {
        let machines = &self.spot.world.machines;
        let machine = machines.blueprint().machine(&self.spot.guest)?;
        let driver = machines.driver(machine.outer);
        Ok(match machines.probe(&self.spot.guest).await {
            Ok(probe) => driver.start_commands(&machine.spec, &probe),
            Err(_) => driver.start_commands(&machine.spec, &Probe::presumed(machine.outer)),
        })
    }
}

/// Waits for the evidence that the guest is up.
pub(super) struct Await {
    pub(super) spot: Spot,
}

#[async_trait]
impl Action for Await {
    async fn check(&self, context: &Context) -> Result<Check> {
        let look = async {
            let seat = self.spot.seat().await?;
            if seat.inspect().await?.map(|actual| actual.power) != Some(Power::Running) {
                return Ok(Check::Needed("it does not run".to_owned()));
            }
            let seen = self.spot.world.machines.lab().status()?;
            if !seen.ready.contains_key(&self.spot.guest) {
                return Ok(Check::Needed("no evidence was seen since it was started".to_owned()));
            }
            if seat.machine.ready == Ready::Screen {
                // One look at a screen proves nothing; what was seen since its start does.
                return Ok(Check::Satisfied);
            }
            let site = self.spot.around(&seat, context).await?;
            let patience = self.spot.world.machines.patience(&self.spot.guest).await?;
            let look = readiness::look(site.site(), seat.outside(), &seat.machine.ready);
            let seen = tokio::time::timeout(patience.limit(ONE_LOOK), look).await;
            Ok(match seen.unwrap_or(Ok(None))? {
                Some(_) => Check::Satisfied,
                None => {
                    Check::Needed(format!("it was up, and shows no {} now", seat.machine.ready))
                }
            })
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let seat = self.spot.seat().await?;
        let site = self.spot.around(&seat, context).await?;
        let evidence = readiness::wait(site.site(), seat.outside(), &seat.machine.ready).await?;
        let address = match &seat.machine.login {
            Some(login) => {
                let spec = &seat.machine.spec;
                let address = seat.hypervisor.endpoint(&*seat.host, spec, login.port).await?;
                Some(address.to_string())
            }
            None => None,
        };
        context.ledger.ready(&self.spot.guest, &evidence.to_string(), address).await
    }
}
