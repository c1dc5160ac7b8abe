//! What the actions of a plan work with.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use tokio_util::sync::CancellationToken;

use super::blueprint::Blueprint;
use super::contract::Consent;
use super::existing::LabBefore;
use super::images::Images;
use super::l0::{self, L0Override};
use super::l0_folder::L0Folder;
use super::lock::Lock;
use super::machines::{Machines, VmHandle};
use super::orphaned::Remaining;
use super::provenance::DiskDecision;
use super::step::{Check, Context};
use crate::error::{Error, Kind, Result};
use crate::guest::ExecContext;
use crate::host::{HostRef, TimeoutScale};
use crate::hypervisor::Drivers;
use crate::image::build::mirror::Mirror;
use crate::image::build::{BuildOptions, seed};
use crate::image::{FetchOptions, ImageFormat, Store};
use crate::lab::Lab;
use crate::recipe::budget::{self, Budget, SettledGuest, SettledValues};
use crate::recipe::{HypervisorKind, Recipe, RecipeOrigin};

/// Everything that a plan is about.
#[derive(Debug)]
pub struct LabContext {
    /// What should exist.
    pub recipe: Recipe,
    /// What the recipe leaves out, derived.
    pub budget: Budget,
    /// The manifests of the guests' images.
    pub images: Images,
    /// What the lab is to be exactly, if it is built by a lock.
    pub lock: Option<Lock>,
    /// What the user agreed to; see [`LabContext::with_consent`].
    pub consent: Consent,
    /// The machines as the recipe wants them, whatever disks they have.
    drawn: Blueprint,
    /// What the lab was when this run began.
    pub begun: LabBefore,
    /// Where images are kept.
    pub store: Store,
    /// The machines.
    pub machines: Machines,
}

impl LabContext {
    /// Returns the world of `recipe` built as `lab`, with images in `cache`. Looks at L0 and changes
    /// nothing.
    ///
    /// # Errors
    /// [`Kind::Recipe`] for what no machine could build, [`Kind::HostCannot`] for what this L0 cannot.
    pub async fn open(recipe: Recipe, lab: &Lab, cache: &Utf8Path) -> Result<Self> {
        let images = Images::of(&recipe)?;
        let l0 = l0::of(&recipe, lab)?;
        let before = Blueprint::of(lab)?;
        let ground = L0Folder::of(&recipe, lab, &*l0).await?;
        let room = before.is_none().then_some(&*ground.directory);
        let drivers = Drivers::new();
        let hypervisor = match (recipe.host.hypervisor.kind(), &before) {
            (Some(kind), _) => kind,
            // What was begun with one hypervisor goes on with it.
            (None, Some(begun)) => begun.outermost(),
            (None, None) => l0::settle(&*l0, &drivers).await?,
        };
        let mut resources = l0::resources(&*l0, hypervisor, L0Override::default(), room).await?;
        let virtualbox = HypervisorKind::VirtualBox;
        if hypervisor == virtualbox || recipe.host.further.contains(&virtualbox) {
            resources.host_key = drivers.virtualbox.host_key(&*l0).await?;
        }
        let kept = kept(&recipe, lab, before.as_ref());
        let budget = budget::derive_for(&recipe, &resources, &images.defaults(), &kept)?;
        let begun = LabBefore::of(lab.status()?, before.as_ref());
        let remaining = Remaining::of(&lab.read_journal()?);
        let blueprint = Blueprint::draw_on(&recipe, &budget, &images, lab, &ground)?;
        let blueprint = blueprint.after(before, &remaining);
        let drawn = blueprint.clone();
        let machines = Machines::new(lab.clone(), blueprint, l0, drivers);
        let store = Store::open(&cache.join("images"))?;
        let (lock, consent) = (None, Consent::default());
        let lab =
            LabContext { recipe, budget, images, lock, consent, drawn, begun, store, machines };
        lab.with_consent(Consent::default())
    }

    /// Returns the world in which the user agreed to `consent`: it says which disks stay, and with each all
    /// that follows from the image that it was made from.
    pub fn with_consent(mut self, consent: Consent) -> Result<Self> {
        self.consent = consent;
        let known = self.machines.lab().status()?;
        let mut blueprint = self.drawn.clone();
        for machine in &mut blueprint.machines {
            let recorded = self.begun.recorded(machine).cloned();
            if let Some(recorded) = recorded
                && matches!(self.fate(machine, &known)?, DiskDecision::Kept { .. })
            {
                machine.keep_the_disk_of(recorded);
            }
        }
        self.machines.redraw(blueprint);
        Ok(self)
    }

    pub(super) fn fetch_options(&self) -> FetchOptions {
        let proxy = self.recipe.proxy.as_ref().map(|proxy| proxy.as_url().clone());
        FetchOptions { proxy, holder: self.holder(), ..FetchOptions::default() }
    }

    /// Returns how to build an image whose manifest leaves the form open, as `made`.
    pub(super) fn build_options(&self, made: ImageFormat) -> Result<BuildOptions> {
        let mirror =
            self.recipe.mirror.as_ref().map(|mirror| Mirror::new(mirror.as_url().as_str()));
        let mirror = mirror.transpose().map_err(|error| Error::new(Kind::Recipe, error))?;
        Ok(BuildOptions { mirror, format: Some(made), holder: self.holder() })
    }

    fn holder(&self) -> Option<Utf8PathBuf> {
        Some(self.machines.lab().directory().to_owned())
    }
}

/// Returns what the guests of `lab` were built with, as far as `recipe` still says the same of it.
fn kept(recipe: &Recipe, lab: &Lab, before: Option<&Blueprint>) -> SettledValues {
    let text = lab.recipe().unwrap_or_default();
    let (name, base) = ("the lab's recipe".to_owned(), lab.directory().to_owned());
    // One that cannot be read any more says nothing against what is there.
    let old = Recipe::parse(&text, RecipeOrigin::Text { name, base }).ok();
    let machines = before.into_iter().flat_map(|before| &before.machines);
    let stays = machines.filter(|machine| {
        let guest = recipe.guest(&machine.name);
        guest.is_some_and(|guest| guest.parent == machine.parent)
    });
    let built = stays.map(|machine| {
        let cards = machine.network.cards.iter();
        let address = |card: &seed::Card| Some((card.network.parse().ok()?, card.address));
        let kept = SettledGuest {
            cpus: Some(machine.spec.cpus),
            memory: Some(machine.spec.memory),
            subnet: Some(machine.spec.subnet),
            addresses: cards.filter_map(address).collect(),
        };
        (machine.name.clone(), kept)
    });
    SettledValues::of(built, old.as_ref(), recipe)
}

/// A shared [`LabContext`].
pub(super) type LabContextRef = Arc<LabContext>;

/// One guest of a lab: what most steps are about.
#[derive(Debug, Clone)]
pub(super) struct GuestRef {
    /// The lab.
    pub(super) lab: LabContextRef,
    /// The guest's name.
    pub(super) name: String,
}

/// A guest to work inside of.
pub(super) struct GuestSession {
    host: HostRef,
    patience: TimeoutScale,
    context: Context,
}

impl GuestSession {
    /// Returns the same as the guest module takes it.
    pub(super) fn exec(&self) -> ExecContext<'_> {
        ExecContext {
            host: &*self.host,
            patience: self.patience,
            events: &self.context.events,
            cancel: self.cancel(),
        }
    }

    fn cancel(&self) -> &CancellationToken {
        &self.context.cancel
    }
}

impl GuestRef {
    /// Returns the guest as seen from the host that runs it.
    pub(super) async fn vm(&self) -> Result<VmHandle> {
        self.lab.machines.vm(&self.name).await
    }

    /// Returns the guest to look at from outside: from within where it can be entered, else from its host.
    pub(super) async fn around(&self, vm: &VmHandle, context: &Context) -> Result<GuestSession> {
        let patience = self.lab.machines.patience(&self.name).await?;
        let host = match &vm.machine.login {
            Some(_) => self.lab.machines.host(&self.name).await?,
            None => vm.host.clone(),
        };
        Ok(GuestSession { host, patience, context: context.clone() })
    }

    /// Returns the guest to work inside of.
    pub(super) async fn session(&self, context: &Context) -> Result<GuestSession> {
        let host = self.lab.machines.host(&self.name).await?;
        let patience = self.lab.machines.patience(&self.name).await?;
        Ok(GuestSession { host, patience, context: context.clone() })
    }
}

/// Turns "cannot be reached" into [`Check::Unknown`]: a plan is made before its machines are up.
pub(super) fn unless_unreachable(check: Result<Check>) -> Result<Check> {
    match check {
        Err(error) if is_unreachable(&error) => Ok(Check::Unknown(error.message().to_owned())),
        check => check,
    }
}

/// Returns whether the error says that a machine does not answer now, which is no fault of what was asked.
pub(super) fn is_unreachable(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unreachable | Kind::NotReady)
}

/// Returns the check that says `why` something is needed, if it is.
pub(super) fn needed(why: Option<String>) -> Check {
    why.map_or(Check::Satisfied, Check::Needed)
}
