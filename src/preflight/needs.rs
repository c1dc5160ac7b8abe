//! What a host is needed for: the checks judge it by that.

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8PathBuf;

use super::Verdict;
use crate::recipe::budget::ImageDefaults;
use crate::recipe::{Guest, GuestName, HypervisorKind, Recipe};

/// What a host is needed for.
#[derive(Debug, Clone)]
pub struct Needs {
    /// The host's level: 0 for L0.
    pub level: u32,
    /// How far it is.
    pub stage: Stage,
    /// What is to run guests on it; `None` if whatever works is good enough.
    pub hypervisor: Option<HypervisorKind>,
    /// What is to run guests beside that.
    pub further: Vec<HypervisorKind>,
    /// Whether one of its guests gets nested hardware virtualization.
    pub nests: bool,
    /// What runs those guests; `None` if that is not known.
    pub nests_in: Option<BTreeSet<HypervisorKind>>,
    /// Whether it is needed for a recipe at all; without one, nothing fails that only a recipe needs.
    pub recipe: Option<Demand>,
    /// Every hypervisor of the whole chain.
    pub mixed: BTreeSet<HypervisorKind>,
    /// The folder on it where guests' files are kept.
    pub directory: Utf8PathBuf,
    /// The checks that are only to warn where they would fail; see [`FORCEABLE`].
    pub forced: BTreeSet<String>,
    /// Mirrors and image hosts to reach from it; empty if nobody asked.
    pub reach: Vec<Destination>,
}

/// The checks that a user can go on against: that a system is known not to let guests run guests, and, only where it
/// is named, that a guest may take the whole host down.
pub const FORCEABLE: [&str; 2] = ["system", "kvm-and-virtualbox"];

/// How far a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It can be reached; what nestlab installs in it is not there yet, and is not asked for.
    Reached,
    /// It is as it stays.
    Settled,
}

/// What a recipe demands of L0.
#[derive(Debug, Clone)]
pub struct Demand {
    /// The recipe.
    pub recipe: Recipe,
    /// What each guest's image offers.
    pub images: BTreeMap<GuestName, ImageDefaults>,
}

/// A server that must be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Destination {
    /// Its name or address.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl Needs {
    /// Returns the needs of nobody in particular: a look at what the host could carry.
    pub fn nothing(directory: impl Into<Utf8PathBuf>) -> Self {
        Needs {
            level: 0,
            stage: Stage::Settled,
            hypervisor: None,
            further: Vec::new(),
            nests: false,
            nests_in: None,
            recipe: None,
            mixed: BTreeSet::new(),
            directory: directory.into(),
            forced: BTreeSet::new(),
            reach: Vec::new(),
        }
    }

    /// Returns what `recipe` needs L0 for.
    pub fn of_l0(
        recipe: &Recipe,
        images: BTreeMap<GuestName, ImageDefaults>,
        directory: impl Into<Utf8PathBuf>,
    ) -> Self {
        Needs {
            hypervisor: recipe.host.hypervisor.kind(),
            further: recipe.host.further.clone(),
            nests: recipe.children(None).any(Guest::nests),
            nests_in: nests_in(recipe, None, recipe.host.hypervisor.kind()),
            recipe: Some(Demand { recipe: recipe.clone(), images }),
            mixed: kinds(recipe),
            ..Needs::nothing(directory)
        }
    }

    /// Returns what `recipe` needs `guest` for, which can be reached; `None` if it runs no guests.
    pub fn of_guest(recipe: &Recipe, guest: &Guest, stage: Stage) -> Option<Self> {
        Some(Needs {
            level: guest.level,
            stage,
            hypervisor: Some(guest.hypervisor?),
            further: guest.further.clone(),
            nests: recipe.children(Some(&guest.name.value)).any(Guest::nests),
            nests_in: nests_in(recipe, Some(&guest.name.value), guest.hypervisor),
            mixed: kinds(recipe),
            ..Needs::nothing("/")
        })
    }

    /// Returns the hypervisors that may run guests on it.
    pub(super) fn candidates(&self) -> Vec<HypervisorKind> {
        if self.stage == Stage::Reached {
            return Vec::new();
        }
        match self.hypervisor {
            Some(kind) => [kind].iter().chain(&self.further).copied().collect(),
            None => vec![HypervisorKind::VirtualBox, HypervisorKind::Qemu],
        }
    }

    /// Returns whether the host is of no use without `kind`.
    pub(super) fn requires(&self, kind: HypervisorKind) -> bool {
        self.hypervisor == Some(kind) || self.further.contains(&kind)
    }

    /// Returns [`Verdict::Fail`] for the check `id`, unless the user goes on against it.
    pub(super) fn fail(&self, id: &str) -> Verdict {
        if self.forced.contains(id) { Verdict::Warn } else { Verdict::Fail }
    }

    /// Returns whether `kind` is to run a guest that gets nested hardware virtualization.
    pub(super) fn nests_in(&self, kind: HypervisorKind) -> bool {
        self.nests && self.nests_in.as_ref().is_none_or(|kinds| kinds.contains(&kind))
    }

    /// Returns whether others are to run guests on the host, and `kind` is not.
    pub(super) fn excludes(&self, kind: HypervisorKind) -> bool {
        self.hypervisor.is_some() && !self.requires(kind)
    }
}

/// Returns what runs the guests on `parent` that nest, where each that does not say runs in `first`.
fn nests_in(
    recipe: &Recipe,
    parent: Option<&GuestName>,
    first: Option<HypervisorKind>,
) -> Option<BTreeSet<HypervisorKind>> {
    let nesting = recipe.children(parent).filter(|guest| guest.nests());
    nesting.map(|guest| guest.runs_in.as_ref().map(|kind| kind.value).or(first)).collect()
}

fn kinds(recipe: &Recipe) -> BTreeSet<HypervisorKind> {
    let inner = recipe.guests().iter().flat_map(Guest::hypervisors);
    recipe.host.hypervisors().chain(inner).collect()
}
