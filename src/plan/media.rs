//! A guest's image: in the store of this machine, and then where the guest's host needs it.

use std::collections::BTreeSet;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use tokio::sync::OnceCell;

use super::action::Action;
use super::blueprint::{Machine, MachineImage};
use super::contract::Effect;
use super::machines::Seat;
use super::provenance::{Fate, disk_image, vm_of};
use super::step::{Check, Context};
use super::world::{Spot, WorldRef, needed, unless_unreachable};
use crate::error::{Error, Kind, Result};
use crate::event::{Feed, Level};
use crate::host::{Command, Host};
use crate::hypervisor::{Media, Origin, aside};
use crate::image::build::seed::{self, Seed};
use crate::image::{self, DiskFormat, ImageFormat, Manifest, Sha256, VerifiedImage};
use crate::lab::{Aside, Resource, private};
use crate::recipe::GuestName;

/// Gets an image into the store: downloads and proves it, or builds it.
pub(super) struct Obtain {
    pub(super) world: WorldRef,
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
        let machines = &self.world.machines;
        let known = machines.lab().status()?;
        for guest in &self.guests {
            let machine = machines.blueprint().machine(guest.as_str())?;
            if self.world.fate(machine, &known)?.takes_the_image() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[async_trait]
impl Action for Obtain {
    async fn check(&self, _context: &Context) -> Result<Check> {
        let image = match self.world.find_image(&self.manifest, self.made)? {
            Ok(image) => image,
            // What a lock asks for can be judged by the image alone.
            Err(_) if self.world.lock.is_none() && self.has_served()? => {
                return Ok(Check::Satisfied);
            }
            Err(why) => return Ok(Check::Needed(why)),
        };
        if let Some(lock) = &self.world.lock {
            lock.admits(&image)?;
        }
        Ok(Check::Satisfied)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let image = self.world.obtain_image(&self.manifest, self.made, context).await?;
        if let Some(lock) = &self.world.lock {
            lock.admits(&image)?;
        }
        self.world.store.hold(&image, self.world.machines.lab().directory())?;
        for form in &self.forms {
            self.world.in_form(&image, *form, &context.feed).await?;
        }
        Ok(())
    }
}

/// A file to place.
struct Source {
    path: Utf8PathBuf,
    /// Its digest, if it is the image's own file; what is derived from an image has another.
    proven: Option<Sha256>,
}

/// Puts a guest's image and its seed volume into the guest's folder on its host, and proves there that
/// it arrived as it was.
pub(super) struct Place {
    pub(super) spot: Spot,
    pub(super) manifest: Manifest,
    /// The digest of a file that was derived from the image, computed once.
    pub(super) digest: OnceCell<Sha256>,
}

impl Place {
    /// Returns the file to place, in its form; else why the image is not in the store.
    async fn source(&self, wanted: &MachineImage, feed: &Feed) -> Result<Result<Source, String>> {
        let world = &self.spot.world;
        Ok(match world.find_image(&self.manifest, wanted.made)? {
            Ok(image) => Ok(world.in_form(&image, wanted.form, feed).await?),
            Err(why) => Err(why),
        })
    }

    /// Notes that the lab is made from the image, also if another lab got it.
    fn hold(&self, wanted: &MachineImage) -> Result<()> {
        let world = &self.spot.world;
        match world.find_image(&self.manifest, wanted.made)? {
            Ok(image) => world.store.hold(&image, world.machines.lab().directory()),
            Err(_) => Ok(()),
        }
    }

    /// Returns the digest that the file must have where it lands.
    async fn digest(&self, source: &Source) -> Result<Sha256> {
        if let Some(proven) = source.proven {
            return Ok(proven);
        }
        let file = source.path.clone();
        let digest = self.digest.get_or_try_init(|| async {
            tokio::task::spawn_blocking(move || Sha256::of_file(&file))
                .await
                .map_err(|error| Error::internal("hashing broke off").because(error))?
        });
        digest.await.copied()
    }

    async fn look(&self, context: &Context) -> Result<Check> {
        let seat = self.spot.seat().await?;
        let (Some(media), Some(wanted)) = (seat.machine.media(), &seat.machine.image) else {
            return Ok(Check::Satisfied);
        };
        match self.fate(&seat).await? {
            Fate::Made => self.look_at_fresh(&seat, media, wanted, context).await,
            Fate::Replaced { why } => {
                let with = self.spot.world.machines.all_inside(&self.spot.guest);
                let effect = Effect::Replace { guest: self.spot.guest.clone(), with };
                Ok(Check::Affects { why, effect })
            }
            fate => self.look_at_used(&seat, media, fate).await,
        }
    }

    /// Returns what becomes of the disk. A VM that is defined has one, also if the journal's last words of it
    /// are lost.
    async fn fate(&self, seat: &Seat) -> Result<Fate> {
        let (world, guest) = (&self.spot.world, &self.spot.guest);
        let known = world.machines.lab().status()?;
        let fate = world.fate(&seat.machine, &known)?;
        let begun_anew = known.aside.iter().any(|aside| aside.guest == *guest);
        if fate == Fate::Made && !begun_anew && seat.inspect().await?.is_some() {
            return Ok(Fate::Stays);
        }
        Ok(fate)
    }

    async fn look_at_used(&self, seat: &Seat, media: &Utf8Path, fate: Fate) -> Result<Check> {
        let guest = &self.spot.guest;
        let there = exists(&*seat.host, media).await?;
        match &seat.machine.spec.origin {
            Origin::Made(Media::Disk(_)) if !there => {
                let why = format!("the disk of {guest} is gone: {media} on {}", seat.host.name());
                let hints = self.spot.world.ways_out_of(guest);
                return Ok(Check::Affects { why, effect: Effect::Stuck { hints } });
            }
            _ if is_iso(seat) && !there && fate == Fate::Stays => {
                return Ok(Check::Needed(format!("it is not on {}", seat.host.name())));
            }
            _ => {}
        }
        if let Some(seed) = &seat.machine.spec.seed
            && !exists(&*seat.host, seed).await?
        {
            return Ok(Check::Needed("its networks or their guests changed".to_owned()));
        }
        Ok(match fate {
            Fate::Kept { why, differs } => {
                let ask = differs.then(|| format!("--replace {guest}"));
                Check::Affects { why, effect: Effect::Keep { guest: guest.clone(), ask } }
            }
            _ => Check::Satisfied,
        })
    }

    async fn look_at_fresh(
        &self,
        seat: &Seat,
        media: &Utf8Path,
        wanted: &MachineImage,
        context: &Context,
    ) -> Result<Check> {
        if !exists(&*seat.host, media).await? {
            return Ok(Check::Needed(format!("it is not on {}", seat.host.name())));
        }
        let lab = self.spot.world.machines.lab();
        if matches!(seat.machine.spec.origin, Origin::Made(Media::Disk(_)))
            && !lab.resources()?.contains(&vm_of(&seat.machine, &seat.recorded))
        {
            let host = seat.host.name();
            let why = format!("there is a disk at {media} on {host} that this lab does not know");
            let hints = self.spot.world.ways_out_of(&self.spot.guest);
            return Ok(Check::Affects { why, effect: Effect::Stuck { hints } });
        }
        if let Some(seed) = &seat.machine.spec.seed
            && !exists(&*seat.host, seed).await?
        {
            return Ok(Check::Needed("its seed volume is missing".to_owned()));
        }
        let source = match self.source(wanted, &context.feed).await? {
            Ok(source) => source,
            Err(why) => return Ok(Check::Needed(format!("{}: {why}", wanted.name))),
        };
        Ok(match mismatch(&*seat.host, media, self.digest(&source).await?).await? {
            None => Check::Satisfied,
            Some(why) => Check::Needed(why),
        })
    }

    /// Puts the image to `to` on the guest's host, and proves there that it arrived as it was.
    async fn put(&self, seat: &Seat, to: &Utf8Path, context: &Context) -> Result<()> {
        let Some(image) = &seat.machine.image else { return Ok(()) };
        let directory = &seat.machine.spec.directory;
        let make = Command::new("mkdir").args(["-p", "-m", "0700", "--", directory.as_str()]);
        seat.host.check(&make).await?;
        let source = self.source(image, &context.feed).await?.map_err(|why| {
            Error::failed(format!("{}: {why}", image.name))
                .hint("run the same command again: it is fetched or built anew")
        })?;
        self.hold(image)?;
        context.feed.doing(format!("copying it to {}", seat.host.name()));
        context.or_cancelled(seat.host.put(&source.path, to, 0o600, &context.feed)).await?;
        let digest = self.digest(&source).await?;
        if let Some(why) = mismatch(&*seat.host, to, digest).await? {
            return Err(Error::new(Kind::Untrusted, why)
                .on(seat.host.name())
                .hint("something changed it here or on its way: run the same command again"));
        }
        Ok(())
    }

    /// Keeps in the journal which image the guest's disk is made from.
    async fn note_image(&self, seat: &Seat, context: &Context) -> Result<()> {
        let Some(wanted) = &seat.machine.image else { return Ok(()) };
        match self.spot.world.find_image(&self.manifest, wanted.made)? {
            Ok(image) => context.ledger.made_from(&self.spot.guest, disk_image(&image)).await,
            Err(_) => Ok(()),
        }
    }

    /// Puts what the guest has aside, once the image that takes its place is there and proven.
    async fn replace(&self, seat: &Seat, media: &Utf8Path, context: &Context) -> Result<()> {
        let (world, guest) = (&self.spot.world, &self.spot.guest);
        let known = world.machines.lab().status()?;
        let (host, spec) = (&*seat.host, &seat.machine.spec);
        // The folder and its name are looked at by whoever moves what is beside it.
        let fresh = Utf8PathBuf::from(format!("{media}.new.part"));
        self.put(seat, &fresh, context).await?;
        self.spot.bring_down(context).await?;
        let begun = known.aside.iter().find(|aside| aside.guest == *guest && !aside.moved);
        let run = known.run.as_ref().map_or(0, |run| run.number);
        let kept = match begun {
            Some(begun) => begun.kept.clone(),
            None => spec.directory.join(format!("{}{run}", aside::KEPT)),
        };
        let folder = Resource::Directory { host: seat.recorded.clone(), path: kept.clone() };
        context.ledger.creating(folder).await?;
        context.ledger.replacing(guest, kept.clone()).await?;
        context.feed.doing("moving the disk that it had aside");
        seat.hypervisor.set_aside(host, spec, &kept).await?;
        let gone: Vec<String> = [vec![guest.clone()], world.machines.all_inside(guest)].concat();
        for inside in world.machines.lab().resources()? {
            if gone.iter().any(|guest| guest == inside.host()) {
                context.ledger.removed(inside).await?;
            }
        }
        context.ledger.replaced(guest).await?;
        let text = format!("the disk that {guest} had is kept in {kept} until {guest} is up");
        context.feed.notice(Level::Info, text);
        self.note_image(seat, context).await?;
        let take = Command::new("mv").args(["-f", "--", fresh.as_str(), media.as_str()]);
        host.check(&take).await.map(drop)
    }

    async fn seed(&self, seat: &Seat, context: &Context) -> Result<()> {
        let Some(to) = &seat.machine.spec.seed else { return Ok(()) };
        let lab = self.spot.world.machines.lab();
        let host_key = lab.keys().host_key(&self.spot.guest)?;
        let odd = |error: ssh_key::Error| Error::internal(format!("a key of the lab: {error}"));
        let user = ssh_key::PublicKey::from_openssh(lab.keys().user()?.public()).map_err(odd)?;
        let content = Seed {
            hostname: seat.machine.name.clone(),
            authorized_keys: vec![user],
            host_key: Some(ssh_key::PrivateKey::from_openssh(host_key.private()).map_err(odd)?),
            network: seat.machine.network.clone(),
        };
        // It has a host key in it, so it is made where only the user can look, and its rest is found again.
        let folder =
            private::scratch(&lab.keys_directory(), &format!(".seed-{}", self.spot.guest))?;
        let from = Utf8PathBuf::from_path_buf(folder.path().join("seed.img"))
            .map_err(|path| Error::new(Kind::Io, format!("{} is not UTF-8", path.display())))?;
        seed::write(&from, &content)?;
        // What is left of an earlier one; a VM that runs holds its own open.
        let remove = Command::new("find").args([
            seat.machine.spec.directory.as_str(),
            "-maxdepth",
            "1",
            "-name",
            "seed*.img",
            "-delete",
        ]);
        seat.host.check(&remove).await?;
        seat.host.put(&from, to, 0o600, &context.feed).await?;
        let guest = self.spot.guest.clone();
        context.ledger.creating(Resource::KnownHost { guest }).await?;
        lab.known_hosts().set(&self.spot.guest, host_key.public())
    }
}

#[async_trait]
impl Action for Place {
    fn may_disturb(&self) -> bool {
        true
    }

    async fn check(&self, context: &Context) -> Result<Check> {
        unless_unreachable(self.look(context).await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let seat = self.spot.seat().await?;
        let Some(media) = seat.machine.media() else { return Ok(()) };
        context.ledger.creating(vm_of(&seat.machine, &seat.recorded)).await?;
        match self.fate(&seat).await? {
            Fate::Made => {
                self.note_image(&seat, context).await?;
                self.put(&seat, media, context).await?;
            }
            Fate::Replaced { .. } => self.replace(&seat, media, context).await?,
            // Nobody writes to a CD: one that is gone may come back.
            Fate::Stays if is_iso(&seat) && !exists(&*seat.host, media).await? => {
                self.put(&seat, media, context).await?;
            }
            Fate::Stays | Fate::Kept { .. } => {}
        }
        self.seed(&seat, context).await
    }
}

/// Removes what a guest had before it was made anew, now that it is up.
pub(super) struct Discard {
    pub(super) spot: Spot,
}

impl Discard {
    fn kept(&self) -> Result<Vec<Aside>> {
        let aside = self.spot.world.machines.lab().status()?.aside;
        Ok(aside.into_iter().filter(|aside| aside.guest == self.spot.guest).collect())
    }
}

#[async_trait]
impl Action for Discard {
    async fn check(&self, _context: &Context) -> Result<Check> {
        Ok(needed(self.kept()?.first().map(|aside| format!("it is in {}", aside.kept))))
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let seat = self.spot.seat().await?;
        for aside in self.kept()? {
            let path = aside.kept.clone();
            let remove = Command::new("rm").args(["-rf", "--one-file-system", "--", path.as_str()]);
            seat.host.check(&remove).await?;
            let host = seat.recorded.clone();
            context.ledger.removed(Resource::Directory { host, path }).await?;
        }
        Ok(())
    }
}

fn is_iso(seat: &Seat) -> bool {
    matches!(seat.machine.spec.origin, Origin::Made(Media::Iso(_)))
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

impl super::World {
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
        let (store, feed, cancel) = (&self.store, &context.feed, &context.cancel);
        match manifest.build() {
            Some(_) => {
                let options = self.build_options(made)?;
                image::build::build(manifest, store, &options, feed, cancel).await
            }
            None => image::fetch(manifest, store, &self.fetch_options(), feed, cancel).await,
        }
    }

    /// Returns the file that holds `image` in `form`.
    async fn in_form(
        &self,
        image: &VerifiedImage,
        form: ImageFormat,
        feed: &Feed,
    ) -> Result<Source> {
        let proven = Source { path: image.path(), proven: Some(image.sha256()) };
        let format = match form {
            ImageFormat::Qcow2 => DiskFormat::Qcow2,
            ImageFormat::Raw => DiskFormat::Raw,
            ImageFormat::Vdi => DiskFormat::Vdi,
            ImageFormat::Vmdk => DiskFormat::Vmdk,
            ImageFormat::Ova | ImageFormat::Iso | ImageFormat::LibvirtTarXz => return Ok(proven),
        };
        let path = image::convert::disk(image, format, feed).await?;
        Ok(if path == proven.path { proven } else { Source { path, proven: None } })
    }
}
