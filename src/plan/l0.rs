//! L0: this machine, or another one over SSH; and what it has to give.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};

use super::vm_place::L0Address;
use crate::error::{Error, Kind, Result};
use crate::faults;
use crate::host::facts::{self, Facts};
use crate::host::ssh::{HostKeyPolicy, Ssh, SshKey, SshTarget, Via};
use crate::host::{Host, HostRef, Local, TimeoutScale};
use crate::hypervisor::Drivers;
use crate::lab::Lab;
use crate::recipe::budget::{Ipv4Network, Resources};
use crate::recipe::types::SshDestination;
use crate::recipe::{Cpus, HostKey, HypervisorKind, Mebibytes, Platform, Recipe};

/// What messages call L0.
pub const NAME: &str = "L0";

/// Returns this machine as L0.
pub fn local() -> HostRef {
    faults::host(Arc::new(Local::new()))
}

/// Returns L0 as `recipe` has it, for the lab `lab`.
///
/// # Errors
/// As [`over_ssh`].
pub fn of(recipe: &Recipe, lab: &Lab) -> Result<HostRef> {
    match &recipe.host.ssh {
        None => Ok(local()),
        Some(destination) => over_ssh(destination, NAME, lab),
    }
}

/// Returns the machine `place`, which is L0 of `lab` no more.
///
/// # Errors
/// As [`over_ssh`].
pub(super) fn former(place: &L0Address, lab: &Lab) -> Result<HostRef> {
    match place {
        L0Address::ThisMachine => Ok(faults::host(Arc::new(Local::called("this machine")))),
        L0Address::Ssh(destination) => {
            let parsed = destination.parse().map_err(|error: String| {
                Error::new(Kind::Io, error).context("a former L0 of the lab")
            })?;
            over_ssh(&parsed, destination, lab)
        }
    }
}

/// Returns the machine at `destination`, an L0 that messages call `name`, entered with the user's own agent or key; its host key is
/// judged by the user's `known_hosts`.
///
/// # Errors
/// [`Kind::Usage`] if no user or home directory is known.
pub fn over_ssh(destination: &SshDestination, name: &str, lab: &Lab) -> Result<HostRef> {
    let home = std::env::home_dir().and_then(|home| Utf8PathBuf::from_path_buf(home).ok());
    let user = match &destination.user {
        Some(user) => user.to_string(),
        None => std::env::var("USER").map_err(|_| {
            Error::new(Kind::Usage, format!("no user is known for {}", destination.host))
                .hint("name one in the recipe: ssh = \"user@host\"")
        })?,
    };
    let known = home
        .as_ref()
        .map_or_else(|| lab.known_hosts().path().to_owned(), |home| home.join(".ssh/known_hosts"));
    Ok(Arc::new(Ssh::new(SshTarget {
        name: name.to_owned(),
        user,
        key: own_key(home.as_deref()),
        host_key: HostKeyPolicy::KnownHosts { file: known, accept_new: false },
        via: Via::Tcp { host: destination.host.clone(), port: destination.port.get() },
        patience: TimeoutScale::NATIVE,
    })))
}

/// Returns the user's agent where one runs, else the first of the usual key files.
fn own_key(home: Option<&Utf8Path>) -> SshKey {
    let files = ["id_ed25519", "id_ecdsa", "id_rsa"];
    let file = home.and_then(|home| {
        files.iter().map(|name| home.join(".ssh").join(name)).find(|path| path.is_file())
    });
    match file {
        Some(file) if std::env::var_os("SSH_AUTH_SOCK").is_none_or(|socket| socket.is_empty()) => {
            SshKey::File(file)
        }
        _ => SshKey::Agent,
    }
}

/// What the user says of L0 instead of what it has.
#[derive(Debug, Clone, Copy, Default)]
pub struct L0Override {
    /// Physical cores.
    pub cores: Option<Cpus>,
    /// Memory.
    pub memory: Option<Mebibytes>,
}

/// Returns what L0 has to give, with `hypervisor` running the outermost guests.
///
/// `labs` is where labs are kept there; without it the free disk is left open, as for a lab that was
/// begun: its disks already take what they take. Where `given` describes another machine, neither disk
/// nor networks are this one's.
///
/// # Errors
/// [`Kind::HostCannot`] if it does not tell what it has.
pub async fn resources(
    l0: &dyn Host,
    hypervisor: HypervisorKind,
    given: L0Override,
    labs: Option<&Utf8Path>,
) -> Result<Resources> {
    let facts = Facts::read(l0).await?;
    let elsewhere = given.cores.is_some() || given.memory.is_some();
    let free_disk = match labs.filter(|_| !elsewhere) {
        Some(labs) => Mebibytes::new(facts::free_disk(l0, labs).await? >> 20),
        None => None,
    };
    let network =
        |found: &facts::HostNetwork| Ipv4Network { address: found.address, prefix: found.prefix };
    let networks =
        if elsewhere { Vec::new() } else { facts.networks.iter().map(network).collect() };
    let empty = |what: &str| Error::new(Kind::HostCannot, format!("{NAME} has no {what}"));
    Ok(Resources {
        cores: given.cores.or(Cpus::new(facts.cores)).ok_or_else(|| empty("cores"))?,
        memory: given.memory.or(Mebibytes::new(facts.memory_mib)).ok_or_else(|| empty("memory"))?,
        free_disk,
        networks,
        hypervisor,
        platform: Platform::current(),
        host_key: (hypervisor == HypervisorKind::VirtualBox)
            .then(|| HostKey::default_on(Platform::current())),
    })
}

/// Returns the hypervisor that is there and can run guests: VirtualBox if its driver works, else QEMU.
///
/// # Errors
/// [`Kind::HostCannot`] with what each of them lacks, if none can.
pub async fn settle(l0: &dyn Host, drivers: &Drivers) -> Result<HypervisorKind> {
    let mut refusals = Vec::new();
    for kind in [HypervisorKind::VirtualBox, HypervisorKind::Qemu] {
        match drivers.driver(kind).probe(l0).await {
            Ok(_) => return Ok(kind),
            Err(error) if error.kind() == Kind::HostCannot => {
                refusals.push(format!("{kind}: {}", error.message()));
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(Kind::HostCannot, "no hypervisor is there that can run guests")
        .on_host(l0.name())
        .tail(refusals.join("\n").as_bytes())
        .hint("install QEMU: apt install --no-install-recommends qemu-system-x86 qemu-utils ovmf"))
}
