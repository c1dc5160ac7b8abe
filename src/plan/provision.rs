//! What makes a guest a host: its packages up to date, its kernel, its hypervisor, and the proof.

use async_trait::async_trait;

use super::action::Action;
use super::contract::Effect;
use super::l0;
use super::step::{Check, Context};
use super::world::{Spot, needed, unless_unreachable};
use crate::error::{Error, Kind, Result};
use crate::event::Level;
use crate::guest::apt::{self, Package, Task};
use crate::guest::{hypervisor, kernel, proof, reboot};
use crate::host::{Command, Patience};
use crate::hypervisor::virtualbox::VirtualBox;
use crate::preflight::{self, Needs, Stage};
use crate::recipe::{HostKey, HypervisorKind, Platform};

/// What the step of [`Preflight`] is called.
pub(super) const PREFLIGHT: &str = "preflight";

/// What the step of [`Prove`] is called.
pub(super) const PROOF: &str = "proof";

/// Has apt do a task in the guest.
pub(super) struct Apt {
    pub(super) spot: Spot,
    pub(super) task: Task,
}

#[async_trait]
impl Action for Apt {
    async fn check(&self, context: &Context) -> Result<Check> {
        let look = async {
            let inside = self.spot.inside(context).await?;
            Ok(needed(apt::why(inside.site(), &self.task).await?))
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let inside = self.spot.inside(context).await?;
        let machine = self.spot.world.machines.blueprint().machine(&self.spot.guest)?;
        let stale_allowed = machine.image.as_ref().is_some_and(|image| image.stale_allowed);
        if self.task == Task::Update && stale_allowed {
            apt::accept_stale_release(inside.site()).await?;
        }
        apt::apply(inside.site(), &self.task).await
    }

    async fn commands(&self, _context: &Context) -> Result<Vec<Command>> {
        Ok(vec![self.task.command(Patience::NATIVE)])
    }
}

/// Installs the headers of the kernel that will run after the next boot, so that modules can be built.
pub(super) struct Headers {
    pub(super) spot: Spot,
}

#[async_trait]
impl Action for Headers {
    async fn check(&self, context: &Context) -> Result<Check> {
        let look = async {
            let inside = self.spot.inside(context).await?;
            let kernels = kernel::kernels(inside.site()).await?;
            Ok(needed(kernel::why_headers(inside.site(), &kernels.next).await?))
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let inside = self.spot.inside(context).await?;
        let kernels = kernel::kernels(inside.site()).await?;
        apt::apply(inside.site(), &kernel::headers(&kernels.next)?).await
    }

    async fn commands(&self, context: &Context) -> Result<Vec<Command>> {
        // Which kernel will run is known once the guest is up.
        let seen = async { kernel::kernels(self.spot.inside(context).await?.site()).await };
        let Ok(kernels) = seen.await else { return Ok(Vec::new()) };
        Ok(vec![kernel::headers(&kernels.next)?.command(Patience::NATIVE)])
    }
}

/// Reboots into the newest kernel, if another one runs.
pub(super) struct Reboot {
    pub(super) spot: Spot,
}

impl Reboot {
    /// Returns what else follows from the reboot, if it is one of a host that was in use: a guest that is
    /// being made for the first time, and runs no guests, reboots as a part of that.
    async fn effect(&self) -> Result<Option<Effect>> {
        let effect = self.spot.restart().await?;
        let was_a_host = self.spot.world.was_a_host(&self.spot.guest)?;
        let disturbs = matches!(&effect, Effect::Restart { with, .. } if !with.is_empty());
        Ok((was_a_host || disturbs).then_some(effect))
    }

    fn later(&self, why: &str) -> String {
        let guest = &self.spot.guest;
        format!("{guest} was not rebooted ({why}); `nestlab up --allow restart` reboots it")
    }
}

#[async_trait]
impl Action for Reboot {
    fn may_disturb(&self) -> bool {
        true
    }

    async fn check(&self, context: &Context) -> Result<Check> {
        let look = async {
            let inside = self.spot.inside(context).await?;
            let Some(why) = kernel::kernels(inside.site()).await?.why_reboot() else {
                return Ok(Check::Satisfied);
            };
            Ok(match self.effect().await? {
                // The user was asked before this run installed the kernel, and is not interrupted for it now.
                Some(effect)
                    if context.changes() && self.spot.world.agreed_to(&effect).is_err() =>
                {
                    context.feed.notice(Level::Warning, self.later(&why));
                    Check::Satisfied
                }
                Some(effect) => Check::Affects { why, effect },
                None => Check::Needed(why),
            })
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let seat = self.spot.seat().await?;
        if let Some(effect) = self.effect().await? {
            self.spot.world.agreed_to(&effect)?;
            self.spot.shut_down_inside(context).await?;
        }
        let inside = self.spot.inside(context).await?;
        reboot::reboot(inside.site(), Some(seat.outside())).await.map(drop)
    }
}

/// Installs the hypervisor without what it recommends, and loads its driver.
pub(super) struct Install {
    pub(super) spot: Spot,
    pub(super) kind: HypervisorKind,
}

#[async_trait]
impl Action for Install {
    async fn check(&self, context: &Context) -> Result<Check> {
        let look = async {
            let inside = self.spot.inside(context).await?;
            let why = match apt::why(inside.site(), &hypervisor::task(self.kind)).await? {
                None => hypervisor::why_driver(inside.site(), self.kind).await?,
                why => why,
            };
            Ok(needed(why))
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let inside = self.spot.inside(context).await?;
        let task = hypervisor::task(self.kind);
        if apt::why(inside.site(), &task).await?.is_some() {
            apt::apply(inside.site(), &task).await?;
        }
        hypervisor::load_driver(inside.site(), self.kind).await
    }

    async fn commands(&self, _context: &Context) -> Result<Vec<Command>> {
        Ok(vec![hypervisor::task(self.kind).command(Patience::NATIVE)])
    }
}

/// Looks from inside, as soon as that can be done, whether a guest can become a host: before an hour is
/// spent on making it one.
pub(super) struct Preflight {
    pub(super) spot: Spot,
}

#[async_trait]
impl Action for Preflight {
    async fn check(&self, context: &Context) -> Result<Check> {
        let look = async {
            let Some(needs) = self.spot.needs(Stage::Reached)? else { return Ok(Check::Satisfied) };
            let machines = &self.spot.world.machines;
            let host = machines.host(&self.spot.guest).await?;
            let findings = preflight::run(&*host, &needs, machines).await?;
            preflight::tell(machines.lab(), &findings, &context.feed)?;
            preflight::require(&findings)?;
            Ok(Check::Satisfied)
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, _context: &Context) -> Result<()> {
        Err(went_away(&self.spot))
    }
}

impl Spot {
    /// Returns what the guest is needed for as a host; `None` if it runs no guests.
    fn needs(&self, stage: Stage) -> Result<Option<Needs>> {
        let recipe = &self.world.recipe;
        Ok(Needs::of_guest(recipe, recipe.find(&self.guest)?, stage))
    }

    /// Looks whether the guest, as a host, is one that its own guests take down or break out of.
    ///
    /// # Errors
    /// [`Kind::HostCannot`] with the remedy.
    async fn is_no_danger(&self, context: &Context) -> Result<()> {
        let Some(needs) = self.needs(Stage::Settled)? else { return Ok(()) };
        let machines = &self.world.machines;
        let host = machines.host(&self.guest).await?;
        let findings = preflight::run_again(&*host, &needs, machines).await?;
        preflight::tell(machines.lab(), &findings, &context.feed)?;
        preflight::require(&findings)
    }
}

/// Proves from inside that the guest can run guests. A proof changes nothing: it holds, or the run
/// ends with the remedy.
pub(super) struct Prove {
    pub(super) spot: Spot,
    pub(super) kind: HypervisorKind,
    /// Whether no other hypervisor is installed after it: all of them must get on with each other.
    pub(super) is_last: bool,
}

#[async_trait]
impl Action for Prove {
    async fn check(&self, context: &Context) -> Result<Check> {
        let look = async {
            let inside = self.spot.inside(context).await?;
            proof::prove(inside.site(), self.kind).await?;
            let machines = &self.spot.world.machines;
            machines.probe_on(&self.spot.guest, self.kind).await?;
            if self.is_last {
                self.spot.is_no_danger(context).await?;
            }
            Ok(Check::Satisfied)
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, _context: &Context) -> Result<()> {
        Err(went_away(&self.spot))
    }
}

/// Looks from inside whether a guest that hosts nothing got the virtualization that the recipe wants in it.
pub(super) struct SeeVirtualization {
    pub(super) spot: Spot,
}

#[async_trait]
impl Action for SeeVirtualization {
    async fn check(&self, context: &Context) -> Result<Check> {
        let look = async {
            let outer = self.spot.world.machines.blueprint().machine(&self.spot.guest)?.outer;
            let inside = self.spot.inside(context).await?;
            proof::virtualization(inside.site(), outer).await?;
            Ok(Check::Satisfied)
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, _context: &Context) -> Result<()> {
        Err(went_away(&self.spot))
    }
}

/// Returns why a look, which changes nothing, was to be applied.
fn went_away(spot: &Spot) -> Error {
    Error::new(Kind::Unreachable, "it went away while it was being looked at").on(&spot.guest)
}

/// Gives the VirtualBox of a host its Host Key, so that each level can be left.
pub(super) struct SetHostKey {
    pub(super) spot: Spot,
    pub(super) key: HostKey,
}

#[async_trait]
impl Action for SetHostKey {
    async fn check(&self, _context: &Context) -> Result<Check> {
        let look = async {
            let host = self.spot.world.machines.host(&self.spot.guest).await?;
            let actual = self.virtualbox().host_key(&*host).await?;
            Ok(if actual.as_ref() == Some(&self.key) {
                Check::Satisfied
            } else {
                let actual = actual.map_or("none".to_owned(), |key| key.to_string());
                Check::Needed(format!("{actual} → {}", self.key))
            })
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let host = self.spot.world.machines.host(&self.spot.guest).await?;
        if self.on_l0() {
            let former = self.virtualbox().former_host_key(&*host).await?;
            let vm = former.vm.clone();
            let former = serde_json::to_value(former)
                .map_err(|error| Error::internal("a former setting is not JSON").because(error))?;
            context.ledger.former(host.name(), HypervisorKind::VirtualBox, &vm, former).await?;
        }
        self.virtualbox().set_host_key(&*host, &self.key).await
    }

    async fn commands(&self, _context: &Context) -> Result<Vec<Command>> {
        let platform = if self.on_l0() { Platform::current() } else { Platform::Linux };
        Ok(VirtualBox::host_key_command(&self.key, platform).into_iter().collect())
    }
}

impl SetHostKey {
    /// Whether it is the user's own VirtualBox, which gets its key back in the end.
    fn on_l0(&self) -> bool {
        self.spot.guest == l0::NAME
    }

    fn virtualbox(&self) -> &VirtualBox {
        &self.spot.world.machines.drivers().virtualbox
    }
}

/// Returns the task that installs the recipe's own packages in a guest.
pub(super) fn packages(names: &[String]) -> Result<Task> {
    let packages = names
        .iter()
        .map(|name| name.parse::<Package>().map_err(|error| Error::new(Kind::Recipe, error)));
    Ok(Task::install(packages.collect::<Result<Vec<_>>>()?))
}
