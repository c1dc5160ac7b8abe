//! What the actions of a plan work with.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use tokio_util::sync::CancellationToken;

use super::blueprint::Blueprint;
use super::dropped::Remaining;
use super::ground::Ground;
use super::images::Images;
use super::l0::{self, Given};
use super::lock::Lock;
use super::machines::{Machines, Seat};
use super::step::{Check, Context};
use crate::error::{Error, Kind, Result};
use crate::guest::Site;
use crate::host::{HostRef, Patience};
use crate::hypervisor::Drivers;
use crate::image::build::BuildOptions;
use crate::image::build::mirror::Mirror;
use crate::image::{FetchOptions, ImageFormat, Store};
use crate::lab::Lab;
use crate::recipe::budget::{self, Budget};
use crate::recipe::{HypervisorKind, Recipe};

/// Everything that a plan is about.
#[derive(Debug)]
pub struct World {
    /// What should exist.
    pub recipe: Recipe,
    /// What the recipe leaves out, derived.
    pub budget: Budget,
    /// The manifests of the guests' images.
    pub images: Images,
    /// What the lab is to be exactly, if it is built by a lock.
    pub lock: Option<Lock>,
    /// Where images are kept.
    pub store: Store,
    /// The machines.
    pub machines: Machines,
}

impl World {
    /// Returns the world of `recipe` built as `lab`, with images in `cache`. Looks at L0 and changes
    /// nothing.
    ///
    /// # Errors
    /// [`Kind::Recipe`] for what no machine could build, [`Kind::HostCannot`] for what this L0 cannot.
    pub async fn open(recipe: Recipe, lab: &Lab, cache: &Utf8Path) -> Result<Self> {
        let images = Images::of(&recipe)?;
        let l0 = l0::of(&recipe, lab)?;
        let before = Blueprint::of(lab)?;
        let ground = Ground::of(&recipe, lab, &*l0).await?;
        let room = before.is_none().then_some(&*ground.directory);
        let drivers = Drivers::new();
        let hypervisor = match (recipe.host.hypervisor.kind(), &before) {
            (Some(kind), _) => kind,
            // What was begun with one hypervisor goes on with it.
            (None, Some(begun)) => begun.outermost(),
            (None, None) => l0::settle(&*l0, &drivers).await?,
        };
        let mut resources = l0::resources(&*l0, hypervisor, Given::default(), room).await?;
        let virtualbox = HypervisorKind::VirtualBox;
        if hypervisor == virtualbox || recipe.host.further.contains(&virtualbox) {
            resources.host_key = drivers.virtualbox.host_key(&*l0).await?;
        }
        let budget = budget::derive(&recipe, &resources, &images.defaults())?;
        let remaining = Remaining::of(&lab.read_journal()?);
        let blueprint = Blueprint::draw_on(&recipe, &budget, &images, lab, &ground)?;
        let blueprint = blueprint.after(before, &remaining);
        let machines = Machines::new(lab.clone(), blueprint, l0, drivers);
        let store = Store::open(&cache.join("images"))?;
        Ok(World { recipe, budget, images, lock: None, store, machines })
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

/// A shared world.
pub(super) type WorldRef = Arc<World>;

/// One guest of a world: what most actions are about.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    /// The world.
    pub(super) world: WorldRef,
    /// The guest's name.
    pub(super) guest: String,
}

/// A guest to work inside of.
pub(super) struct Inside {
    host: HostRef,
    patience: Patience,
    context: Context,
}

impl Inside {
    /// Returns the same as the guest module takes it.
    pub(super) fn site(&self) -> Site<'_> {
        Site {
            host: &*self.host,
            patience: self.patience,
            feed: &self.context.feed,
            cancel: self.cancel(),
        }
    }

    fn cancel(&self) -> &CancellationToken {
        &self.context.cancel
    }
}

impl Spot {
    /// Returns the guest as seen from the host that runs it.
    pub(super) async fn seat(&self) -> Result<Seat> {
        self.world.machines.seat(&self.guest).await
    }

    /// Returns the guest to look at from outside: from within where it can be entered, else from its host.
    pub(super) async fn around(&self, seat: &Seat, context: &Context) -> Result<Inside> {
        let patience = self.world.machines.patience(&self.guest).await?;
        let host = match &seat.machine.login {
            Some(_) => self.world.machines.host(&self.guest).await?,
            None => seat.host.clone(),
        };
        Ok(Inside { host, patience, context: context.clone() })
    }

    /// Returns the guest to work inside of.
    pub(super) async fn inside(&self, context: &Context) -> Result<Inside> {
        let host = self.world.machines.host(&self.guest).await?;
        let patience = self.world.machines.patience(&self.guest).await?;
        Ok(Inside { host, patience, context: context.clone() })
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
