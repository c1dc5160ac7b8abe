//! The machines of a lab, settled: what the recipe, the budget and the images come to.
//!
//! A lab keeps the blueprint that was last applied, so that whatever only acts on the lab (`ssh`,
//! `status`, `down`, `destroy`) needs neither the recipe's images nor the resources that it was once
//! derived from.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::images::Images;
use super::l0_folder::L0Folder;
use super::recall;
use super::source::RecipeSource;
use super::vm_place::{L0Address, VmPlace};
use crate::error::{Error, Kind, Result};
use crate::hypervisor::{Forward, GuestSpec, Media, VmOrigin};
use crate::image::build::seed;
use crate::image::manifest::{BuildKind, ImageSource, SeedKind};
use crate::image::{ImageFormat, Manifest, Sha256};
use crate::lab::private::Writing;
use crate::lab::{Journal, JournalEntry, Lab, LabLock};
use crate::recipe::budget::{Budget, GuestBudget};
use crate::recipe::{
    Firmware, Guest, GuestName, GuestSource, HostKey, HypervisorKind, ImageName, LabName,
    Readiness, Recipe,
};

/// The blueprint format's number.
const SCHEMA: u32 = 1;

/// The file of a lab that keeps its blueprint.
const FILE: &str = "machines.json";

/// The forward that leads to a guest's SSH server.
const SSH_FORWARD: &str = "nestlab-ssh";

/// Where a lab's files lie on a machine that nestlab enters as root.
pub(super) const ROOT_DIRECTORY: &str = "/var/lib/nestlab";

/// Every machine of a lab.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Blueprint {
    schema: u32,
    /// L0, if that is another machine: `user@host[:port]`.
    pub l0_ssh: Option<String>,
    /// A factor on every limit of silence.
    pub patience: f64,
    /// What to set L0's Host Key to, if the recipe says so.
    pub l0_host_key: Option<HostKey>,
    /// The guests, each after its parent.
    pub machines: Vec<Machine>,
    /// Guests that the recipe had once, or had elsewhere, whose VMs are still there.
    #[serde(default)]
    pub dropped: Vec<Machine>,
    /// The machine that the journal calls `L0`, if that is not the lab's L0 any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_l0: Option<L0Address>,
    /// The folder of the lab's files on an L0 that is another machine; left out: where older nestlabs had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l0_folder: Option<Utf8PathBuf>,
    /// What tells this user's VMs from another's on an L0 that is another machine; older nestlabs had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The recipe that the lab was last built by; older nestlabs did not write it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<RecipeSource>,
    /// Whether only names, hosts and folders are known, as of a lab whose `machines.json` was lost: enough
    /// to look for its VMs, stop and remove them. All other values mean nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recalled: bool,
}

/// A lab's blueprint as it was found.
#[derive(Debug)]
pub struct StoredBlueprint {
    /// The blueprint.
    pub blueprint: Blueprint,
    /// Why it is not the one of `machines.json`, which is lost, but what the journal tells.
    pub lost: Option<String>,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: GuestName,
    /// The guest that runs it; `None`: L0.
    pub parent: Option<GuestName>,
    /// What runs it there.
    pub outer: HypervisorKind,
    /// Its VM.
    pub spec: GuestSpec,
    /// The image that its disk is made from; `None`: the VM existed before.
    pub image: Option<MachineImage>,
    /// How to get in; `None`: nobody can.
    pub login: Option<GuestLogin>,
    /// By which evidence it counts as up.
    pub ready: Readiness,
    /// What it runs for its own guests; of several, the first.
    pub inner: Option<HypervisorKind>,
    /// What it runs beside that.
    #[serde(default)]
    pub further: Vec<HypervisorKind>,
    /// The Host Key of the VirtualBox inside.
    pub host_key: Option<HostKey>,
    /// Debian packages to install inside.
    pub packages: Vec<String>,
    /// Its place in the networks that it shares with guests beside it.
    #[serde(default)]
    pub network: seed::SeedNetwork,
    /// Where its VM is, if the recipe has it no more, or not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<VmPlace>,
}

/// The image of a machine, and in which form it is given to the hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineImage {
    /// The manifest's name.
    pub name: ImageName,
    /// The version that the manifest names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The digest that the manifest pins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// The format of its file in the store.
    pub made: ImageFormat,
    /// The form: an OVA or ISO as it is, or a disk to write to.
    pub form: ImageFormat,
    /// Whether its package sources are allowed to be past their time.
    pub stale_allowed: bool,
}

/// How to get into a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestLogin {
    /// The user.
    pub user: String,
    /// The port of its SSH server.
    pub port: u16,
    /// The user's own private key; `None`: the lab's.
    pub key: Option<Utf8PathBuf>,
    /// Whether its host key is the one that the lab injected; else it is pinned when first seen.
    pub host_key_injected: bool,
}

impl Blueprint {
    /// Returns the blueprint of `recipe` with the values of `budget`, for the lab `lab`.
    pub fn draw(recipe: &Recipe, budget: &Budget, images: &Images, lab: &Lab) -> Result<Self> {
        Blueprint::draw_on(recipe, budget, images, lab, &L0Folder::here(lab))
    }

    /// The same, with L0's part of the lab at `ground`.
    pub(super) fn draw_on(
        recipe: &Recipe,
        budget: &Budget,
        images: &Images,
        lab: &Lab,
        ground: &L0Folder,
    ) -> Result<Self> {
        let mut machines: Vec<Machine> = Vec::new();
        let mut directories = BTreeMap::new();
        for (guest, values) in recipe.guests().iter().zip(&budget.guests) {
            let login = login(guest, images.manifest(&values.name));
            let on = match &guest.parent {
                None => ground.directory.clone(),
                Some(parent) => Utf8PathBuf::clone(&directories[parent]),
            };
            let inside =
                remote_directory(login.as_ref().map(|login| login.user.as_str()), lab.name());
            directories.insert(values.name.clone(), inside);
            let manifest = images.manifest(&values.name);
            let owner = ground.owner.as_deref().filter(|_| guest.parent.is_none());
            let draft =
                GuestResolver { recipe, budget, guest, values, manifest, lab: lab.name(), owner };
            machines.push(draft.machine(&on, login));
        }
        Ok(Blueprint {
            schema: SCHEMA,
            l0_ssh: recipe.host.ssh.as_ref().map(ToString::to_string),
            patience: recipe.patience,
            l0_host_key: recipe.host.host_key.as_ref().map(|key| key.value.clone()),
            machines,
            dropped: Vec::new(),
            first_l0: None,
            l0_folder: ground.owner.as_ref().map(|_| ground.directory.clone()),
            owner: ground.owner.clone(),
            recipe: RecipeSource::of(recipe),
            recalled: false,
        })
    }

    /// Returns the blueprint of `machines` of which no more than names, hosts and folders is known.
    pub(super) fn recalled(
        lab: &Lab,
        l0_ssh: Option<String>,
        patience: f64,
        machines: Vec<Machine>,
    ) -> Self {
        let mut outermost = machines.iter().filter(|machine| {
            machine.parent.is_none() && machine.place.is_none() && !machine.is_existing()
        });
        let folder = outermost.next().and_then(|machine| machine.spec.directory.parent());
        let l0_folder = folder.filter(|_| l0_ssh.is_some()).map(Utf8Path::to_owned);
        let owner = l0_folder.as_ref().and_then(|folder| {
            let owner = folder.file_name()?.strip_prefix(lab.name().as_str())?;
            owner.strip_prefix('-').map(str::to_owned)
        });
        Blueprint {
            schema: SCHEMA,
            l0_ssh,
            patience,
            l0_host_key: None,
            machines,
            dropped: Vec::new(),
            first_l0: None,
            l0_folder,
            owner,
            recipe: None,
            recalled: true,
        }
    }

    /// Returns the machine called `name`.
    ///
    /// # Errors
    /// [`Kind::Usage`] with the machines that there are.
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        self.machines.iter().find(|machine| machine.name.as_str() == name).ok_or_else(|| {
            let mut names: Vec<_> = self.all().map(|machine| machine.name.as_str()).collect();
            let mut seen = std::collections::BTreeSet::new();
            names.retain(|name| seen.insert(*name));
            Error::new(Kind::Usage, format!("the lab has no guest `{}`", name.escape_debug()))
                .hint(format!("its guests are {}", names.join(", ")))
        })
    }

    /// Returns the level of `machine`: 1 for a guest of L0.
    pub fn level(&self, machine: &Machine) -> u32 {
        let around = self.place(machine).inside.len();
        u32::try_from(around).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// Returns what runs the outermost guests.
    pub fn outermost(&self) -> HypervisorKind {
        // A recipe has at least one guest, and the first stands on L0.
        self.machines.first().map_or(HypervisorKind::Qemu, |machine| machine.outer)
    }

    /// Keeps the blueprint in the lab, as applied: first in the journal, from which it is made anew if the
    /// file is lost. Writes nothing that is there already; a file that cannot be read is kept beside.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub async fn keep(&self, lock: &LabLock, journal: &Journal) -> Result<()> {
        let broken = |error| Error::internal("a blueprint is not JSON").with_source(error);
        if recall::recorded(&journal.records()).as_ref() != Some(self) {
            let blueprint = serde_json::to_value(self).map_err(broken)?;
            journal.append(JournalEntry::Blueprint { blueprint }).await?;
        }
        let text = serde_json::to_vec_pretty(self).map_err(broken)?;
        let path = path(lock.lab());
        match fs_err::read(&path) {
            Ok(kept) if kept == text => return Ok(()),
            Ok(kept) if serde_json::from_slice::<Blueprint>(&kept).is_err() => put_aside(&path)?,
            _ => {}
        }
        Writing::into_directory(lock.lab().directory())?.write(FILE, &text)
    }

    /// Returns the blueprint that `lab` was last built by; `None` if none was begun.
    ///
    /// # Errors
    /// As [`Blueprint::find`].
    pub fn of(lab: &Lab) -> Result<Option<Self>> {
        Ok(Blueprint::find(lab)?.map(|found| found.blueprint))
    }

    /// Returns the blueprint that `lab` was last built by, from the journal if its own file is lost; `None`
    /// if none was begun.
    ///
    /// # Errors
    /// [`Kind::Io`] if it was written by a newer nestlab.
    pub fn find(lab: &Lab) -> Result<Option<StoredBlueprint>> {
        let path = path(lab);
        let lost = match fs_err::read(&path) {
            Ok(text) if is_newer(&text) => {
                return Err(Error::new(Kind::Io, format!("{path} was written by a newer nestlab"))
                    .hint("use that version for this lab"));
            }
            Ok(text) => match serde_json::from_slice::<Blueprint>(&text) {
                Ok(blueprint) => {
                    return Ok(Some(StoredBlueprint {
                        blueprint: blueprint.in_folder_of(lab),
                        lost: None,
                    }));
                }
                Err(error) => format!("{path} is damaged ({error})"),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                format!("{path} is gone")
            }
            Err(error) => return Err(error.into()),
        };
        let found = recall::blueprint(lab)?;
        Ok(found.map(|blueprint| StoredBlueprint {
            blueprint: blueprint.in_folder_of(lab),
            lost: Some(format!("{lost}: the journal tells what was in it")),
        }))
    }

    /// Returns the blueprint with the files on this machine in the lab's folder, which was perhaps moved.
    fn in_folder_of(mut self, lab: &Lab) -> Self {
        let here = self.l0_ssh.is_none();
        let outermost = |machine: &&mut Machine| {
            let there = machine.place.as_ref();
            machine.parent.is_none()
                && there.map_or(here, |place| place.l0 == L0Address::ThisMachine)
        };
        for machine in self.machines.iter_mut().chain(&mut self.dropped).filter(outermost) {
            let disks = machine.spec.directory.parent().map(Utf8Path::to_owned);
            let Some(disks) = disks.filter(|disks| disks.file_name() == Some(DISKS)) else {
                continue;
            };
            if !is_same(&disks, &lab.disks()) {
                machine.spec.move_files(&disks, &lab.disks());
            }
        }
        self
    }
}

/// The name of the folder of a lab's guests on this machine.
const DISKS: &str = "disks";

/// Returns whether both are the same folder, by whatever names.
fn is_same(one: &Utf8Path, other: &Utf8Path) -> bool {
    let real = |path: &Utf8Path| path.canonicalize_utf8().ok();
    one == other || real(one).is_some_and(|one| real(other) == Some(one))
}

/// Returns whether a newer nestlab wrote the blueprint `text`; what else stands in it may be anything.
fn is_newer(text: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct BlueprintSchema {
        schema: u32,
    }
    serde_json::from_slice::<BlueprintSchema>(text).is_ok_and(|format| format.schema > SCHEMA)
}

/// Renames the damaged file at `path`, so that whoever looks into the damage has it.
fn put_aside(path: &Utf8Path) -> Result<()> {
    let names = (1..).map(|number| match number {
        1 => format!("{path}.damaged"),
        number => format!("{path}.damaged-{number}"),
    });
    let free = names.map(Utf8PathBuf::from).find(|name| !name.exists());
    Ok(fs_err::rename(path, free.expect("the numbers do not end"))?)
}

impl Machine {
    /// Returns whether the VM existed before nestlab.
    pub fn is_existing(&self) -> bool {
        matches!(self.spec.origin, VmOrigin::Existing { .. })
    }

    /// Takes over from `recorded`, the same machine, what belongs to the disk that it has: another image may be
    /// no disk at all, start otherwise, or let nobody in by the lab's key.
    pub(super) fn keep_the_disk_of(&mut self, recorded: Machine) {
        self.spec.origin = recorded.spec.origin;
        if !self.spec.firmware_given {
            self.spec.firmware = recorded.spec.firmware;
        }
        if self.spec.seed.is_some() != recorded.spec.seed.is_some() {
            self.spec.seed = recorded.spec.seed;
            self.spec.forwards = recorded.spec.forwards;
            self.login = recorded.login;
            self.ready = recorded.ready;
        }
    }

    /// Returns every hypervisor that it runs for its own guests.
    pub fn hypervisors(&self) -> impl Iterator<Item = HypervisorKind> {
        self.inner.into_iter().chain(self.further.iter().copied())
    }

    /// Returns the file on its host that the image is put to, unless the VM existed before.
    pub fn media(&self) -> Option<&Utf8Path> {
        match &self.spec.origin {
            VmOrigin::Made(Media::Ova(path) | Media::Disk(path) | Media::Iso(path)) => Some(path),
            VmOrigin::Existing { .. } => None,
        }
    }
}

fn path(lab: &Lab) -> Utf8PathBuf {
    lab.directory().join(FILE)
}

/// Where the lab's files lie on a machine that is entered as `user`; an absolute path, since commands
/// there start in no particular folder.
pub(super) fn remote_directory(user: Option<&str>, lab: &LabName) -> Utf8PathBuf {
    match user {
        None | Some("root") => Utf8PathBuf::from(ROOT_DIRECTORY).join(lab.as_str()),
        Some(user) => {
            Utf8PathBuf::from("/home").join(user).join(".local/state/nestlab").join(lab.as_str())
        }
    }
}

fn login(guest: &Guest, manifest: Option<&Manifest>) -> Option<GuestLogin> {
    let injected = manifest.is_some_and(|manifest| manifest.guest().seed == SeedKind::CiData);
    if let Some(ssh) = &guest.ssh {
        return Some(GuestLogin {
            user: ssh.user.to_string(),
            port: ssh.port.get(),
            key: ssh.key.clone(),
            host_key_injected: injected,
        });
    }
    let offer = manifest.map(Manifest::guest).filter(|offer| offer.ssh)?;
    Some(GuestLogin {
        user: offer.user.clone().unwrap_or_else(|| "root".to_owned()),
        port: 22,
        key: None,
        host_key_injected: injected,
    })
}

/// Returns the form in which an image of `format` is given to `hypervisor`.
fn form(hypervisor: HypervisorKind, format: ImageFormat) -> ImageFormat {
    match (hypervisor, format) {
        (_, ImageFormat::Iso) => ImageFormat::Iso,
        (HypervisorKind::VirtualBox, ImageFormat::Ova) => ImageFormat::Ova,
        (HypervisorKind::VirtualBox, _) => ImageFormat::Vdi,
        (HypervisorKind::Qemu, _) => ImageFormat::Qcow2,
    }
}

/// Returns the format of the file that fetching `manifest` leaves in the store, or building it for
/// `hypervisor`.
fn made(hypervisor: HypervisorKind, manifest: &Manifest) -> ImageFormat {
    match manifest.source() {
        ImageSource::Download(download) => download.format,
        ImageSource::Build(build) => build.format.unwrap_or(match (build.kind, hypervisor) {
            (BuildKind::Appliance, HypervisorKind::VirtualBox) => ImageFormat::Ova,
            (BuildKind::Appliance, HypervisorKind::Qemu) | (BuildKind::Debian, _) => {
                ImageFormat::Qcow2
            }
        }),
    }
}

/// What a machine is made of.
pub(super) struct GuestResolver<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) budget: &'a Budget,
    pub(super) guest: &'a Guest,
    pub(super) values: &'a GuestBudget,
    manifest: Option<&'a Manifest>,
    lab: &'a LabName,
    /// What tells this user's guests from another's on their host.
    owner: Option<&'a str>,
}

impl GuestResolver<'_> {
    /// Returns what the names of the lab's things on the guest's host begin with.
    pub(super) fn prefix(&self) -> String {
        match self.owner {
            None => format!("nestlab-{}", self.lab),
            Some(owner) => format!("nestlab-{}-{owner}", self.lab),
        }
    }

    fn machine(&self, on: &Utf8Path, login: Option<GuestLogin>) -> Machine {
        let values = self.values;
        let image = self.manifest.map(|manifest| MachineImage {
            name: manifest.name().clone(),
            version: manifest.version().map(ToString::to_string),
            sha256: manifest.download().and_then(|download| download.sha256),
            made: made(values.runs_on, manifest),
            form: form(values.runs_on, made(values.runs_on, manifest)),
            stale_allowed: manifest.build().is_some_and(|build| build.allow_stale.is_some()),
        });
        let directory = on.join(values.name.as_str());
        let mut spec = self.spec(&directory, image.as_ref(), login.as_ref());
        let network = self.network(&spec);
        if login.as_ref().is_some_and(|login| login.host_key_injected) {
            spec.seed = Some(directory.join(network.file_name()));
        }
        Machine {
            name: values.name.clone(),
            parent: self.guest.parent.clone(),
            outer: values.runs_on,
            spec,
            image,
            login,
            ready: values.ready.value.clone(),
            inner: values.hypervisor,
            further: values.further.clone(),
            host_key: values.host_key.as_ref().map(|key| key.value.clone()),
            packages: self.guest.packages.iter().map(ToString::to_string).collect(),
            network,
            place: None,
        }
    }

    fn spec(
        &self,
        directory: &Utf8Path,
        image: Option<&MachineImage>,
        login: Option<&GuestLogin>,
    ) -> GuestSpec {
        let values = self.values;
        GuestSpec {
            vm: match &self.guest.source {
                GuestSource::Existing { vm, .. } => vm.to_string(),
                GuestSource::Image(_) => format!("{}-{}", self.prefix(), values.name),
            },
            directory: directory.to_owned(),
            origin: self.origin(directory, image),
            cpus: values.cpus.value,
            memory: values.memory.value,
            disk: values.disk.value,
            firmware: values.firmware.value.unwrap_or(Firmware::Bios),
            firmware_given: values.firmware.given,
            seed: None,
            nested: match (values.nested.value, values.nested.given || !self.guest.is_existing()) {
                (true, _) => Some(true),
                (false, true) => Some(false),
                (false, false) => None,
            },
            subnet: values.subnet.value,
            forwards: login
                .map(|login| Forward { name: SSH_FORWARD.to_owned(), guest_port: login.port })
                .into_iter()
                .collect(),
            networks: self.guest.networks.iter().map(|network| self.name_of(network)).collect(),
            gui: self.guest.gui,
            reach_host: self.guest.reach_host,
        }
    }

    fn origin(&self, directory: &Utf8Path, image: Option<&MachineImage>) -> VmOrigin {
        match (&self.guest.source, image.map(|image| image.form)) {
            (GuestSource::Existing { vm, snapshot_before }, _) => {
                VmOrigin::Existing { vm: vm.to_string(), snapshot_before: *snapshot_before }
            }
            (_, Some(ImageFormat::Ova)) => VmOrigin::Made(Media::Ova(directory.join("import.ova"))),
            (_, Some(ImageFormat::Iso)) => VmOrigin::Made(Media::Iso(directory.join("cd.iso"))),
            (_, Some(form)) => VmOrigin::Made(Media::Disk(directory.join(format!("disk.{form}")))),
            (GuestSource::Image(_), None) => {
                unreachable!("every guest that is made from an image has a manifest")
            }
        }
    }
}
