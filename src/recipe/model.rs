//! A recipe that makes sense: a tree of guests under L0, every name resolved.

use camino::{Utf8Path, Utf8PathBuf};

use super::diagnostic::{self, SourceText};
use super::hostkey::HostKey;
use super::keywords::{Firmware, HypervisorChoice, HypervisorKind, ReadyKind};
use super::tables::At;
use super::types::{
    MirrorUrl, PackageName, Pattern, Port, ProxyUrl, SshDestination, UserName, VmName,
};
use super::units::{Cpus, GuestName, ImageName, LabName, Mebibytes, NetworkName};
use super::{read, validate};
use crate::error::{Error, Problem, Result};

/// How deep guests may nest. Nobody has gone this deep; it bounds what a recipe can ask for.
pub const MAX_LEVEL: u32 = 12;

/// Where a recipe's text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipeOrigin {
    /// It is compiled into nestlab.
    Shipped,
    /// The file at this path.
    File(Utf8PathBuf),
    /// Text in memory, such as a lab's copy; paths in it are relative to this folder.
    Text {
        /// What messages call it.
        name: String,
        /// The folder that relative paths start from.
        base: Utf8PathBuf,
    },
}

/// A recipe that makes sense: what should exist.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The recipe's name, the default of its lab's.
    pub name: LabName,
    /// What the lab is for.
    pub description: Option<String>,
    /// The Debian mirror; `None`: the one that L0's apt uses.
    pub mirror: Option<MirrorUrl>,
    /// The proxy for downloads; `None`: the environment's.
    pub proxy: Option<ProxyUrl>,
    /// A factor, at least 1, on every limit of silence.
    pub patience: f64,
    /// L0.
    pub host: RecipeHost,
    pub(super) guests: Vec<Guest>,
    pub(super) source: SourceText,
    pub(super) origin: RecipeOrigin,
}

/// L0 as a recipe wants it.
#[derive(Debug, Clone)]
pub struct RecipeHost {
    /// What runs the outermost guests that do not say what does.
    pub hypervisor: HypervisorChoice,
    /// What else does.
    pub further: Vec<HypervisorKind>,
    /// Another machine as L0.
    pub ssh: Option<SshDestination>,
    /// VirtualBox's Host Key on L0, if the recipe sets it.
    pub host_key: Option<At<HostKey>>,
}

/// A guest as a recipe wants it; what is `None` is left to [`super::budget`].
#[derive(Debug, Clone)]
pub struct Guest {
    /// Its name and where it is given.
    pub name: At<GuestName>,
    /// The guest that runs it; `None`: L0.
    pub parent: Option<GuestName>,
    /// 1 for a guest of L0, else its parent's plus one.
    pub level: u32,
    /// What it is made from.
    pub source: GuestSource,
    pub(super) source_span: std::ops::Range<usize>,
    /// Virtual CPUs.
    pub cpus: Option<At<Cpus>>,
    /// Memory.
    pub memory: Option<At<Mebibytes>>,
    /// The disk's size.
    pub disk: Option<At<Mebibytes>>,
    /// Whether it may have more CPUs than one fewer than its host.
    pub overcommit: bool,
    /// What it runs for its own guests; there if it has any. Of several, the first: it runs guests that
    /// do not say what does.
    pub hypervisor: Option<HypervisorKind>,
    /// What it runs beside that.
    pub further: Vec<HypervisorKind>,
    /// Which of its host's hypervisors runs it, if the recipe says.
    pub runs_in: Option<At<HypervisorKind>>,
    /// Whether it gets nested hardware virtualization, where the recipe says; [`Guest::nests`] tells.
    pub nested: Option<bool>,
    /// VirtualBox's Host Key inside.
    pub host_key: Option<At<HostKey>>,
    /// Whether it starts with a window.
    pub gui: bool,
    /// By which evidence it counts as up.
    pub ready: Option<At<ReadyKind>>,
    /// The line on its serial console that shows it is up.
    pub serial_pattern: Option<Pattern>,
    /// Whether it reaches services on its host's loopback interface.
    pub reach_host: bool,
    /// Networks that it shares with other guests of its host.
    pub networks: Vec<NetworkName>,
    /// How to get into it, where that is not as its image says.
    pub ssh: Option<SshLogin>,
    /// Debian packages to install inside.
    pub packages: Vec<PackageName>,
    /// How it starts its disk.
    pub firmware: Option<Firmware>,
}

impl Guest {
    /// Returns whether it is a VM that existed before.
    pub fn is_existing(&self) -> bool {
        matches!(self.source, GuestSource::Existing { .. })
    }

    /// Returns whether it gets nested hardware virtualization: it runs guests, or the recipe says so.
    pub fn nests(&self) -> bool {
        self.nested.unwrap_or(self.hypervisor.is_some())
    }
}

/// What a guest is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestSource {
    /// An image.
    Image(ImageRef),
    /// A VM that exists already, changed and never removed.
    Existing {
        /// Its name or UUID.
        vm: VmName,
        /// Whether to take a snapshot before its first change.
        snapshot_before: bool,
    },
}

/// Which image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageRef {
    /// A manifest that is compiled into nestlab.
    Shipped(ImageName),
    /// The path of a manifest.
    Manifest(Utf8PathBuf),
}

impl std::fmt::Display for ImageRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ImageRef::Shipped(name) => name.fmt(f),
            ImageRef::Manifest(path) => f.pad(path.as_str()),
        }
    }
}

/// How to get into a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshLogin {
    /// The user.
    pub user: UserName,
    /// The port of its SSH server.
    pub port: Port,
    /// The private key's file; `None`: the lab's own key.
    pub key: Option<Utf8PathBuf>,
}

impl Guest {
    /// Returns every hypervisor that it runs for its own guests.
    pub fn hypervisors(&self) -> impl Iterator<Item = HypervisorKind> {
        self.hypervisor.into_iter().chain(self.further.iter().copied())
    }

    /// Returns whether it runs VirtualBox for its own guests.
    pub fn runs_virtualbox(&self) -> bool {
        self.hypervisors().any(|kind| kind == HypervisorKind::VirtualBox)
    }
}

impl RecipeHost {
    /// Returns every hypervisor that the recipe names for L0; none where that is left to nestlab.
    pub fn hypervisors(&self) -> impl Iterator<Item = HypervisorKind> {
        self.hypervisor.kind().into_iter().chain(self.further.iter().copied())
    }
}

impl Recipe {
    /// Returns the recipe that `text` holds.
    ///
    /// # Errors
    /// [`Kind::Recipe`](crate::Kind) with every problem and its place.
    pub fn parse(text: &str, origin: RecipeOrigin) -> Result<Self> {
        let name = match &origin {
            RecipeOrigin::Shipped => "the shipped recipe",
            RecipeOrigin::File(path) => path.as_str(),
            RecipeOrigin::Text { name, .. } => name,
        };
        let source = SourceText::new(name, text);
        Recipe::of(source, origin)
    }

    pub(super) fn of(source: SourceText, origin: RecipeOrigin) -> Result<Self> {
        read::tables(&source)
            .and_then(|tables| validate::recipe(tables, source, origin))
            .map_err(diagnostic::error)
    }

    /// Returns the guests, each after its parent, otherwise in the order of the file; at least one.
    pub fn guests(&self) -> &[Guest] {
        &self.guests
    }

    /// Returns the guest called `name`.
    pub fn guest(&self, name: &GuestName) -> Option<&Guest> {
        self.guests.iter().find(|guest| guest.name.value == *name)
    }

    /// Returns the guest called `name`.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::Kind) with the guests that there are.
    pub fn find(&self, name: &str) -> Result<&Guest> {
        self.guests.iter().find(|guest| guest.name.as_str() == name).ok_or_else(|| {
            let names: Vec<_> = self.guests.iter().map(|guest| guest.name.as_str()).collect();
            Error::new(
                crate::Kind::Usage,
                format!("{} has no guest `{}`", self.name, name.escape_debug()),
            )
            .hint(format!("its guests are {}", names.join(", ")))
        })
    }

    /// Returns the guests that `parent` runs; `None` stands for L0.
    pub fn children<'a>(
        &'a self,
        parent: Option<&'a GuestName>,
    ) -> impl Iterator<Item = &'a Guest> + 'a {
        self.guests.iter().filter(move |guest| guest.parent.as_ref() == parent)
    }

    /// Returns the guests that stand between `guest` and L0, the nearest first.
    pub fn ancestors<'a>(&'a self, guest: &'a Guest) -> impl Iterator<Item = &'a Guest> + 'a {
        std::iter::successors(self.parent(guest), |guest| self.parent(guest))
    }

    /// Returns the guest that runs `guest`, `None` if that is L0.
    pub fn parent(&self, guest: &Guest) -> Option<&Guest> {
        guest.parent.as_ref().and_then(|name| self.guest(name))
    }

    /// Returns a problem at the place where the recipe says what `guest` is made from.
    pub fn problem_at_source(&self, guest: &Guest, message: impl Into<String>) -> Problem {
        self.source.problem(guest.source_span.clone(), message)
    }

    /// Returns why nobody should rely on the recipe yet, if nobody has run it: what its first line says
    /// after `# untested:`.
    pub fn untested(&self) -> Option<&str> {
        self.source.text().lines().next()?.strip_prefix("# untested:").map(str::trim)
    }

    /// Returns the text, for errors that point into it and for the lab's copy.
    pub fn source(&self) -> &SourceText {
        &self.source
    }

    /// Returns where the text comes from.
    pub fn origin(&self) -> &RecipeOrigin {
        &self.origin
    }
}

impl RecipeOrigin {
    /// Returns the folder that relative paths in the recipe start from; none for a shipped recipe,
    /// which names no files.
    pub(super) fn base(&self) -> Option<&Utf8Path> {
        match self {
            RecipeOrigin::Shipped => None,
            RecipeOrigin::File(path) => Some(path.parent().unwrap_or(Utf8Path::new(""))),
            RecipeOrigin::Text { base, .. } => Some(base),
        }
    }
}
