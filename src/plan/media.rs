//! A guest's image: in the store of this machine, and then where the guest's host needs it.

use std::collections::BTreeSet;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use tokio::sync::OnceCell;

use super::action::Action;
use super::blueprint::{Machine, MachineImage};
use super::context::{GuestRef, LabContextRef, needed, unless_unreachable};
use super::contract::Effect;
use super::machines::VmHandle;
use super::provenance::{DiskDecision, disk_image, vm_of};
use super::step::{Check, Context};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::host::{Command, Host};
use crate::hypervisor::{Media, VmOrigin, aside};
use crate::image::build::seed::{self, Seed};
use crate::image::{self, DiskFormat, ImageFormat, Manifest, Sha256, VerifiedImage};
use crate::lab::{Aside, Resource, private};
use crate::recipe::GuestName;

/// Gets an image into the store: downloads and proves it, or builds it.
pub(super) struct Obtain {
    pub(super) lab: LabContextRef,
    pub(super) manifest: Manifest,
    /// The format that it is made in.
    pub(super) made: ImageFormat,
    /// The forms that guests need it in; made while there is still something else to wait for.
    pub(super) forms: BTreeSet<ImageFormat>,
    /// The guests that are made from it.
    pub(super) guests: Vec<GuestName>,
}

impl Obtain {
    /// Returns whether every guest that was to be made from the image was, so that nothing needs it.
    fn has_served(&self) -> Result<bool> {
        let machines = &self.lab.machines;
        let known = machines.lab().status()?;
        for guest in &self.guests {
            let machine = machines.blueprint().machine(guest.as_str())?;
            if self.lab.fate(machine, &known)?.takes_the_image() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[async_trait]
impl Action for Obtain {
    async fn check(&self, _context: &Context) -> Result<Check> {
        let image = match self.lab.find_image(&self.manifest, self.made)? {
            Ok(image) => image,
            // What a lock asks for can be judged by the image alone.
            Err(_) if self.lab.lock.is_none() && self.has_served()? => {
                return Ok(Check::Satisfied);
            }
            Err(why) => return Ok(Check::Needed(why)),
        };
        if let Some(lock) = &self.lab.lock {
            lock.admits(&image)?;
        }
        Ok(Check::Satisfied)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let image = self.lab.obtain_image(&self.manifest, self.made, context).await?;
        if let Some(lock) = &self.lab.lock {
            lock.admits(&image)?;
        }
        self.lab.store.hold(&image, self.lab.machines.lab().directory())?;
        for form in &self.forms {
            self.lab.in_form(&image, *form, &context.events).await?;
        }
        Ok(())
    }
}

/// A file to place.
struct PlacedFile {
    path: Utf8PathBuf,
    /// Its digest, if it is the image's own file; what is derived from an image has another.
    proven: Option<Sha256>,
}

/// Puts a guest's image and its seed volume into the guest's folder on its host, and proves there that
/// it arrived as it was.
pub(super) struct CopyImage {
    pub(super) guest: GuestRef,
    pub(super) manifest: Manifest,
    /// The digest of a file that was derived from the image, computed once.
    pub(super) digest: OnceCell<Sha256>,
}

impl CopyImage {
    /// Returns the file to place, in its form; else why the image is not in the store.
    async fn source(
        &self,
        wanted: &MachineImage,
        events: &EventSink,
    ) -> Result<Result<PlacedFile, String>> {
        let lab = &self.guest.lab;
        Ok(match lab.find_image(&self.manifest, wanted.made)? {
            Ok(image) => Ok(lab.in_form(&image, wanted.form, events).await?),
            Err(why) => Err(why),
        })
    }

    /// Notes that the lab is made from the image, also if another lab got it.
    fn hold(&self, wanted: &MachineImage) -> Result<()> {
        let lab = &self.guest.lab;
        match lab.find_image(&self.manifest, wanted.made)? {
            Ok(image) => lab.store.hold(&image, lab.machines.lab().directory()),
            Err(_) => Ok(()),
        }
    }

    /// Returns the digest that the file must have where it lands.
    async fn digest(&self, source: &PlacedFile) -> Result<Sha256> {
        if let Some(proven) = source.proven {
            return Ok(proven);
        }
        let file = source.path.clone();
        let digest = self.digest.get_or_try_init(|| async {
            tokio::task::spawn_blocking(move || Sha256::of_file(&file))
                .await
                .map_err(|error| Error::internal("hashing broke off").with_source(error))?
        });
        digest.await.copied()
    }

    async fn look(&self, context: &Context) -> Result<Check> {
        let vm = self.guest.vm().await?;
        let (Some(media), Some(wanted)) = (vm.machine.media(), &vm.machine.image) else {
            return Ok(Check::Satisfied);
        };
        match self.fate(&vm).await? {
            DiskDecision::Made => self.look_at_fresh(&vm, media, wanted, context).await,
            DiskDecision::Replaced { why } => {
                let with = self.guest.lab.machines.all_inside(&self.guest.name);
                let effect = Effect::Replace { guest: self.guest.name.clone(), with };
                Ok(Check::Affects { why, effect })
            }
            fate => self.look_at_used(&vm, media, fate).await,
        }
    }

    /// Returns what becomes of the disk. A VM that is defined has one, also if the journal's last words of it
    /// are lost.
    async fn fate(&self, vm: &VmHandle) -> Result<DiskDecision> {
        let (lab, guest) = (&self.guest.lab, &self.guest.name);
        let known = lab.machines.lab().status()?;
        let fate = lab.fate(&vm.machine, &known)?;
        let begun_anew = known.aside.iter().any(|aside| aside.guest == *guest);
        if fate == DiskDecision::Made && !begun_anew && vm.inspect().await?.is_some() {
            return Ok(DiskDecision::Stays);
        }
        Ok(fate)
    }

    async fn look_at_used(
        &self,
        vm: &VmHandle,
        media: &Utf8Path,
        fate: DiskDecision,
    ) -> Result<Check> {
        let guest = &self.guest.name;
        let there = exists(&*vm.host, media).await?;
        match &vm.machine.spec.origin {
            VmOrigin::Made(Media::Disk(_)) if !there => {
                let why = format!("the disk of {guest} is gone: {media} on {}", vm.host.name());
                let hints = self.guest.lab.ways_out_of(guest);
                return Ok(Check::Affects { why, effect: Effect::Stuck { hints } });
            }
            _ if is_iso(vm) && !there && fate == DiskDecision::Stays => {
                return Ok(Check::Needed(format!("it is not on {}", vm.host.name())));
            }
            _ => {}
        }
        if let Some(seed) = &vm.machine.spec.seed
            && !exists(&*vm.host, seed).await?
        {
            return Ok(Check::Needed("its networks or their guests changed".to_owned()));
        }
        Ok(match fate {
            DiskDecision::Kept { why, differs } => {
                let ask = differs.then(|| format!("--replace {guest}"));
                Check::Affects { why, effect: Effect::Keep { guest: guest.clone(), ask } }
            }
            _ => Check::Satisfied,
        })
    }

    async fn look_at_fresh(
        &self,
        vm: &VmHandle,
        media: &Utf8Path,
        wanted: &MachineImage,
        context: &Context,
    ) -> Result<Check> {
        if !exists(&*vm.host, media).await? {
            return Ok(Check::Needed(format!("it is not on {}", vm.host.name())));
        }
        let lab = self.guest.lab.machines.lab();
        if matches!(vm.machine.spec.origin, VmOrigin::Made(Media::Disk(_)))
            && !lab.resources()?.contains(&vm_of(&vm.machine, &vm.recorded))
        {
            let host = vm.host.name();
            let why = format!("there is a disk at {media} on {host} that this lab does not know");
            let hints = self.guest.lab.ways_out_of(&self.guest.name);
            return Ok(Check::Affects { why, effect: Effect::Stuck { hints } });
        }
        if let Some(seed) = &vm.machine.spec.seed
            && !exists(&*vm.host, seed).await?
        {
            return Ok(Check::Needed("its seed volume is missing".to_owned()));
        }
        let source = match self.source(wanted, &context.events).await? {
            Ok(source) => source,
            Err(why) => return Ok(Check::Needed(format!("{}: {why}", wanted.name))),
        };
        Ok(match mismatch(&*vm.host, media, self.digest(&source).await?).await? {
            None => Check::Satisfied,
            Some(why) => Check::Needed(why),
        })
    }

    /// Puts the image to `to` on the guest's host, and proves there that it arrived as it was.
    async fn put(&self, vm: &VmHandle, to: &Utf8Path, context: &Context) -> Result<()> {
        let Some(image) = &vm.machine.image else { return Ok(()) };
        let directory = &vm.machine.spec.directory;
        let make = Command::new("mkdir").args(["-p", "-m", "0700", "--", directory.as_str()]);
        vm.host.check(&make).await?;
        let source = self.source(image, &context.events).await?.map_err(|why| {
            Error::failed(format!("{}: {why}", image.name))
                .hint("run the same command again: it is fetched or built anew")
        })?;
        self.hold(image)?;
        context.events.doing(format!("copying it to {}", vm.host.name()));
        context.or_cancelled(vm.host.put(&source.path, to, 0o600, &context.events)).await?;
        let digest = self.digest(&source).await?;
        if let Some(why) = mismatch(&*vm.host, to, digest).await? {
            return Err(Error::new(Kind::Untrusted, why)
                .on_host(vm.host.name())
                .hint("something changed it here or on its way: run the same command again"));
        }
        Ok(())
    }

    /// Keeps in the journal which image the guest's disk is made from.
    async fn note_image(&self, vm: &VmHandle, context: &Context) -> Result<()> {
        let Some(wanted) = &vm.machine.image else { return Ok(()) };
        match self.guest.lab.find_image(&self.manifest, wanted.made)? {
            Ok(image) => context.journal.made_from(&self.guest.name, disk_image(&image)).await,
            Err(_) => Ok(()),
        }
    }

    /// Puts what the guest has aside, once the image that takes its place is there and proven.
    async fn replace(&self, vm: &VmHandle, media: &Utf8Path, context: &Context) -> Result<()> {
        let (lab, guest) = (&self.guest.lab, &self.guest.name);
        let known = lab.machines.lab().status()?;
        let (host, spec) = (&*vm.host, &vm.machine.spec);
        // The folder and its name are looked at by whoever moves what is beside it.
        let fresh = Utf8PathBuf::from(format!("{media}.new.part"));
        self.put(vm, &fresh, context).await?;
        self.guest.bring_down(context).await?;
        let begun = known.aside.iter().find(|aside| aside.guest == *guest && !aside.moved);
        let run = known.run.as_ref().map_or(0, |run| run.number);
        let kept = match begun {
            Some(begun) => begun.kept.clone(),
            None => spec.directory.join(format!("{}{run}", aside::KEPT)),
        };
        let folder = Resource::Directory { host: vm.recorded.clone(), path: kept.clone() };
        context.journal.creating(folder).await?;
        context.journal.replacing(guest, kept.clone()).await?;
        context.events.doing("moving the disk that it had aside");
        vm.hypervisor.set_aside(host, spec, &kept).await?;
        let gone: Vec<String> = [vec![guest.clone()], lab.machines.all_inside(guest)].concat();
        for inside in lab.machines.lab().resources()? {
            if gone.iter().any(|guest| guest == inside.host()) {
                context.journal.removed(inside).await?;
            }
        }
        context.journal.replaced(guest).await?;
        let text = format!("the disk that {guest} had is kept in {kept} until {guest} is up");
        context.events.notice(Level::Info, text);
        self.note_image(vm, context).await?;
        let take = Command::new("mv").args(["-f", "--", fresh.as_str(), media.as_str()]);
        host.check(&take).await.map(drop)
    }

    async fn seed(&self, vm: &VmHandle, context: &Context) -> Result<()> {
        let Some(to) = &vm.machine.spec.seed else { return Ok(()) };
        let lab = self.guest.lab.machines.lab();
        let host_key = lab.keys().host_key(&self.guest.name)?;
        let odd = |error: ssh_key::Error| Error::internal(format!("a key of the lab: {error}"));
        let user = ssh_key::PublicKey::from_openssh(lab.keys().user()?.public()).map_err(odd)?;
        let content = Seed {
            hostname: vm.machine.name.clone(),
            authorized_keys: vec![user],
            host_key: Some(ssh_key::PrivateKey::from_openssh(host_key.private()).map_err(odd)?),
            network: vm.machine.network.clone(),
        };
        // It has a host key in it, so it is made where only the user can look, and its rest is found again.
        let folder =
            private::scratch(&lab.keys_directory(), &format!(".seed-{}", self.guest.name))?;
        let from = Utf8PathBuf::from_path_buf(folder.path().join("seed.img"))
            .map_err(|path| Error::new(Kind::Io, format!("{} is not UTF-8", path.display())))?;
        seed::write(&from, &content)?;
        // What is left of an earlier one; a VM that runs holds its own open.
        let remove = Command::new("find").args([
            vm.machine.spec.directory.as_str(),
            "-maxdepth",
            "1",
            "-name",
            "seed*.img",
            "-delete",
        ]);
        vm.host.check(&remove).await?;
        vm.host.put(&from, to, 0o600, &context.events).await?;
        let guest = self.guest.name.clone();
        context.journal.creating(Resource::KnownHost { guest }).await?;
        lab.known_hosts().set(&self.guest.name, host_key.public())
    }
}

#[async_trait]
impl Action for CopyImage {
    fn may_disturb(&self) -> bool {
        true
    }

    async fn check(&self, context: &Context) -> Result<Check> {
        unless_unreachable(self.look(context).await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let vm = self.guest.vm().await?;
        let Some(media) = vm.machine.media() else { return Ok(()) };
        context.journal.creating(vm_of(&vm.machine, &vm.recorded)).await?;
        match self.fate(&vm).await? {
            DiskDecision::Made => {
                self.note_image(&vm, context).await?;
                self.put(&vm, media, context).await?;
            }
            DiskDecision::Replaced { .. } => self.replace(&vm, media, context).await?,
            // Nobody writes to a CD: one that is gone may come back.
            DiskDecision::Stays if is_iso(&vm) && !exists(&*vm.host, media).await? => {
                self.put(&vm, media, context).await?;
            }
            DiskDecision::Stays | DiskDecision::Kept { .. } => {}
        }
        self.seed(&vm, context).await
    }
}

/// Removes what a guest had before it was made anew, now that it is up.
pub(super) struct Discard {
    pub(super) guest: GuestRef,
}

impl Discard {
    fn kept(&self) -> Result<Vec<Aside>> {
        let aside = self.guest.lab.machines.lab().status()?.aside;
        Ok(aside.into_iter().filter(|aside| aside.guest == self.guest.name).collect())
    }
}

#[async_trait]
impl Action for Discard {
    async fn check(&self, _context: &Context) -> Result<Check> {
        Ok(needed(self.kept()?.first().map(|aside| format!("it is in {}", aside.kept))))
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let vm = self.guest.vm().await?;
        for aside in self.kept()? {
            let path = aside.kept.clone();
            let remove = Command::new("rm").args(["-rf", "--one-file-system", "--", path.as_str()]);
            vm.host.check(&remove).await?;
            let host = vm.recorded.clone();
            context.journal.removed(Resource::Directory { host, path }).await?;
        }
        Ok(())
    }
}

fn is_iso(vm: &VmHandle) -> bool {
    matches!(vm.machine.spec.origin, VmOrigin::Made(Media::Iso(_)))
}

async fn exists(host: &dyn Host, path: &Utf8Path) -> Result<bool> {
    Ok(host.run(&Command::new("test").args(["-f", path.as_str()])).await?.exit.success())
}

/// Returns how the file at `path` on `host` differs from the wanted digest, or `None` if it does not.
async fn mismatch(host: &dyn Host, path: &Utf8Path, wanted: Sha256) -> Result<Option<String>> {
    let sum = host.check(&Command::new("sha256sum").args(["--", path.as_str()])).await?.text();
    // With an odd path, GNU sha256sum puts a backslash in front of the line.
    let found = sum.trim_start_matches('\\').split_ascii_whitespace().next().unwrap_or_default();
    Ok((found != wanted.to_string())
        .then(|| format!("{path} has SHA-256 {found}, and {wanted} was verified")))
}

impl super::LabContext {
    /// Returns the image that `machine` was made from, if it is made from one: of a lab that an older nestlab
    /// made, the newest of its name that the lab holds.
    ///
    /// # Errors
    /// [`Kind::Usage`] if the lab holds none.
    pub(super) fn image_of(&self, machine: &Machine) -> Result<Option<VerifiedImage>> {
        let manifest = self.images.manifest(&machine.name);
        let (Some(image), Some(manifest)) = (&machine.image, manifest) else { return Ok(None) };
        let known = self.machines.lab().status()?;
        if let Some(made) = known.images.get(machine.name.as_str())
            && let Some(image) = self.store.find_digest(&made.name, &made.sha256)?
        {
            return Ok(Some(image));
        }
        let format = manifest.download().map_or(image.made, |download| download.format);
        let mut held = self.store.held(self.machines.lab().directory())?;
        held.retain(|held| held.name() == manifest.name() && held.format() == format);
        let newest = held.pop();
        newest.map(Some).ok_or_else(|| {
            let what = format!("the image store does not have what {} was made from", machine.name);
            Error::new(Kind::Usage, what).hint("give the --cache-dir that the lab was built with")
        })
    }

    /// Returns `manifest`'s image from the store in the format that it is made in; else why it is to be got.
    pub(super) fn find_image(
        &self,
        manifest: &Manifest,
        made: ImageFormat,
    ) -> Result<Result<VerifiedImage, String>> {
        if let Some(lock) = &self.lock {
            // It may be there still, although a newer one has taken its place.
            let format = manifest.download().map_or(made, |download| download.format);
            let locked = lock.image(manifest.name(), format)?;
            if let Ok(Some(image)) = self.store.find_digest(manifest.name(), &locked.sha256) {
                return Ok(Ok(image));
            }
        }
        let found = match manifest.build() {
            Some(_) => image::build::find(manifest, &self.store, &self.build_options(made)?),
            None => self.store.find(manifest),
        };
        match found {
            Ok(Some(image)) => Ok(Ok(image)),
            Ok(None) => Ok(Err("it is not in the store".to_owned())),
            // Whoever gets it sets this one aside.
            Err(error) if error.kind() == Kind::Untrusted => Ok(Err(error.message().to_owned())),
            Err(error) => Err(error),
        }
    }

    async fn obtain_image(
        &self,
        manifest: &Manifest,
        made: ImageFormat,
        context: &Context,
    ) -> Result<VerifiedImage> {
        let (store, events, cancel) = (&self.store, &context.events, &context.cancel);
        match manifest.build() {
            Some(_) => {
                let options = self.build_options(made)?;
                image::build::build(manifest, store, &options, events, cancel).await
            }
            None => image::fetch(manifest, store, &self.fetch_options(), events, cancel).await,
        }
    }

    /// Returns the file that holds `image` in `form`.
    async fn in_form(
        &self,
        image: &VerifiedImage,
        form: ImageFormat,
        events: &EventSink,
    ) -> Result<PlacedFile> {
        let proven = PlacedFile { path: image.path(), proven: Some(image.sha256()) };
        let format = match form {
            ImageFormat::Qcow2 => DiskFormat::Qcow2,
            ImageFormat::Raw => DiskFormat::Raw,
            ImageFormat::Vdi => DiskFormat::Vdi,
            ImageFormat::Vmdk => DiskFormat::Vmdk,
            ImageFormat::Ova | ImageFormat::Iso | ImageFormat::LibvirtTarXz => return Ok(proven),
        };
        let path = image::convert::disk(image, format, events).await?;
        Ok(if path == proven.path { proven } else { PlacedFile { path, proven: None } })
    }
}
