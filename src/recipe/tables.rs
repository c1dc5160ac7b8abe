//! A recipe as it is written: the TOML tables, every value with its place in the file.
//!
//! The doc comments are the descriptions in the JSON Schema, so they speak to whoever writes a recipe. What
//! is optional here may still be required by `validate`, which says so in better words than a parser.

use std::borrow::Cow;
use std::ops::{Deref, Range};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use super::hostkey::HostKey;
use super::keywords::{Firmware, HypervisorChoice, HypervisorKind, ReadyKind};
use super::one_or_many::OneOrMany;
use super::types::{
    MirrorUrl, PackageName, Pattern, Port, ProxyUrl, SshDestination, UserName, VmName,
};
use super::units::{Cpus, GuestName, LabName, Mebibytes, NetworkName};

/// A value and where it stands in the file.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// The value.
    pub value: T,
    span: Range<usize>,
}

impl<T> At<T> {
    /// Returns the bytes of the file that hold the value.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }
}

impl<T> Deref for At<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = toml::Spanned::<T>::deserialize(deserializer)?;
        let span = spanned.span();
        Ok(At { value: spanned.into_inner(), span })
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A nestlab recipe: the chain of machines that should exist.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(title = "nestlab recipe", extend("required" = ["schema", "name", "guest"]))]
pub(crate) struct RecipeTable {
    /// The version of the recipe format: 1.
    #[schemars(extend("const" = 1))]
    pub(crate) schema: Option<At<i64>>,
    /// The recipe's name; also the lab's, unless `--lab` names another.
    pub(crate) name: Option<At<LabName>>,
    /// What the lab is for, in a sentence.
    pub(crate) description: Option<String>,
    /// The Debian mirror that images are built from and guests install from; left out: the one that
    /// this machine's apt uses.
    pub(crate) mirror: Option<At<MirrorUrl>>,
    /// The proxy for downloads: http, https, socks5 or socks5h (Tor).
    pub(crate) proxy: Option<At<ProxyUrl>>,
    /// How long to wait.
    pub(crate) limits: Option<LimitsTable>,
    /// L0, the machine that the lab is built on.
    pub(crate) host: Option<HostTable>,
    /// The virtual machines, outer ones first.
    #[serde(default)]
    pub(crate) guest: Vec<At<GuestTable>>,
}

/// How long to wait.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LimitsTable {
    /// A factor, at least 1, on every limit of silence; 2.0 waits twice as long before a guest counts
    /// as stalled.
    #[schemars(range(min = 1.0, max = 1000.0))]
    pub(crate) patience: Option<At<f64>>,
}

/// L0, the machine that the lab is built on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct HostTable {
    /// What runs the outermost guests; a list, such as ["virtualbox", "qemu"], where guests say with
    /// `runs-in` which of them; left out: the one that is there and can run guests.
    pub(crate) hypervisor: Option<At<OneOrMany<HypervisorChoice>>>,
    /// Another machine as L0, reached over SSH: `user@runner`, `user@runner:2222`.
    pub(crate) ssh: Option<At<SshDestination>>,
    /// VirtualBox's Host Key on L0; left out: as it is there.
    pub(crate) host_key: Option<At<HostKey>>,
}

/// A virtual machine.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(extend("required" = ["name"]))]
pub(crate) struct GuestTable {
    /// Its name, also its host name inside.
    pub(crate) name: Option<At<GuestName>>,
    /// The guest that runs it, or `L0`; left out: the guest above in the file, L0 for the first.
    pub(crate) parent: Option<At<String>>,
    /// What its disk is made from: the name of a shipped image (`nestlab image list`) or the path of a
    /// manifest, relative to the recipe.
    pub(crate) image: Option<At<String>>,
    /// A VM that exists already, by name or UUID, instead of an image; it is changed, and never
    /// deleted.
    pub(crate) vm: Option<At<VmName>>,
    /// Take a snapshot of the existing VM before its first change.
    pub(crate) snapshot_before: Option<At<bool>>,
    /// Virtual CPUs; left out: one fewer than L0's physical cores for an outermost guest, 1 for a
    /// deeper one, an existing VM's own.
    pub(crate) cpus: Option<At<Cpus>>,
    /// Memory, such as "6GiB"; left out: what the image wants, or what its own guests need and a reserve;
    /// an existing VM keeps its own, unless its guests need more.
    pub(crate) memory: Option<At<Mebibytes>>,
    /// The disk's size, such as "40GiB"; left out: the image's own, or room for its own guests.
    pub(crate) disk: Option<At<Mebibytes>>,
    /// Allow more CPUs than one fewer than its host has.
    pub(crate) overcommit: Option<At<bool>>,
    /// What it runs for its own guests; it is installed inside. A list, such as ["virtualbox", "qemu"]:
    /// several side by side.
    pub(crate) hypervisor: Option<At<OneOrMany<HypervisorKind>>>,
    /// Which of its host's hypervisors runs it; left out: the first of them.
    pub(crate) runs_in: Option<At<HypervisorKind>>,
    /// Hardware virtualization inside, also for a guest in which nestlab installs no hypervisor; left out:
    /// on where `hypervisor` is given.
    pub(crate) nested: Option<At<bool>>,
    /// VirtualBox's Host Key inside; left out: one that differs from all levels around it.
    pub(crate) host_key: Option<At<HostKey>>,
    /// Start it with a window.
    pub(crate) gui: Option<At<bool>>,
    /// By which evidence it counts as up; left out: what the image offers.
    pub(crate) ready: Option<At<ReadyKind>>,
    /// The line on its serial console that shows it is up, a regular expression; for `ready =
    /// "serial"`.
    pub(crate) serial_pattern: Option<At<Pattern>>,
    /// Let it reach services on its host's loopback interface, through its gateway; left out: it does not.
    pub(crate) reach_host: Option<At<bool>>,
    /// Networks that it shares with other guests of the same host.
    pub(crate) networks: Option<At<Vec<At<NetworkName>>>>,
    /// How to get into an existing VM, or into an image whose user is not root.
    pub(crate) ssh: Option<At<SshTable>>,
    /// Debian packages to install inside.
    pub(crate) packages: Option<At<Vec<At<PackageName>>>>,
    /// How it starts its disk; left out: what the image wants.
    pub(crate) firmware: Option<At<Firmware>>,
}

/// How to get into a guest.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[schemars(inline, extend("required" = ["user"]))]
pub(crate) struct SshTable {
    /// The user to log in as.
    pub(crate) user: Option<At<UserName>>,
    /// The port of its SSH server; left out: 22.
    pub(crate) port: Option<At<Port>>,
    /// The private key's file, relative to the recipe; left out: the lab's own key.
    pub(crate) key: Option<At<String>>,
}
