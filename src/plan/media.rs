//! A guest's image: in the store of this machine, and then where the guest's host needs it.

use std::collections::BTreeSet;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::OnceCell;

use super::action::Action;
use super::blueprint::{Machine, MachineImage};
use super::machines::Seat;
use super::step::{Check, Context, StepId};
use super::world::{Spot, WorldRef, is_unreachable, unless_unreachable};
use crate::error::{Error, Kind, Result};
use crate::event::Feed;
use crate::host::{Command, Host};
use crate::image::build::seed::{self, Seed};
use crate::image::{self, DiskFormat, ImageFormat, Manifest, Sha256, VerifiedImage};
use crate::lab::{Resource, Status, StepState, private};
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
    /// Returns whether every guest that is made from the image is there, so that nothing needs it.
    async fn has_served(&self) -> Result<bool> {
        let known = self.world.machines.lab().status()?;
        for guest in &self.guests {
            if !self.is_there(guest, &known).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns whether `guest` has been made. One whose host cannot be asked is there if the host is, and if
    /// it was when the lab was last worked on.
    fn is_there<'a>(
        &'a self,
        guest: &'a GuestName,
        known: &'a Status,
    ) -> BoxFuture<'a, Result<bool>> {
        async move {
            let machines = &self.world.machines;
            let seen = async { machines.seat(guest.as_str()).await?.inspect().await };
            let error = match seen.await {
                Ok(actual) => return Ok(actual.is_some()),
                Err(error) if is_unreachable(&error) => error,
                Err(error) => return Err(error),
            };
            let defined = known.steps.get(StepId::new(guest, "define").as_str());
            match &machines.blueprint().machine(guest.as_str())?.parent {
                None => Err(error),
                Some(_) if defined.is_none_or(|step| step.state != StepState::Good) => Ok(false),
                Some(parent) => self.is_there(parent, known).await,
            }
        }
        .boxed()
    }
}

#[async_trait]
impl Action for Obtain {
    async fn check(&self, _context: &Context) -> Result<Check> {
        let image = match self.world.find_image(&self.manifest, self.made)? {
            Ok(image) => image,
            // What a lock asks for can be judged by the image alone.
            Err(_) if self.world.lock.is_none() && self.has_served().await? => {
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
        if seat.inspect().await?.is_some() {
            return Ok(match &seat.machine.spec.seed {
                Some(seed) if !exists(&*seat.host, seed).await? => {
                    Check::Needed("its networks or their guests changed".to_owned())
                }
                _ => Check::Satisfied,
            });
        }
        let (Some(media), Some(wanted)) = (seat.machine.media(), &seat.machine.image) else {
            return Ok(Check::Satisfied);
        };
        if !exists(&*seat.host, media).await? {
            return Ok(Check::Needed(format!("it is not on {}", seat.host.name())));
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
    async fn check(&self, context: &Context) -> Result<Check> {
        unless_unreachable(self.look(context).await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let seat = self.spot.seat().await?;
        let (Some(media), Some(image)) = (seat.machine.media(), &seat.machine.image) else {
            return Ok(());
        };
        context.ledger.creating(vm_of(&seat)).await?;
        if seat.inspect().await?.is_some() {
            return self.seed(&seat, context).await;
        }
        let directory = &seat.machine.spec.directory;
        let make = Command::new("mkdir").args(["-p", "-m", "0700", "--", directory.as_str()]);
        seat.host.check(&make).await?;
        let source = self.source(image, &context.feed).await?.map_err(|why| {
            Error::failed(format!("{}: {why}", image.name))
                .hint("run the same command again: it is fetched or built anew")
        })?;
        self.hold(image)?;
        context.feed.doing(format!("copying it to {}", seat.host.name()));
        context.or_cancelled(seat.host.put(&source.path, media, 0o600, &context.feed)).await?;
        let digest = self.digest(&source).await?;
        if let Some(why) = mismatch(&*seat.host, media, digest).await? {
            return Err(Error::new(Kind::Untrusted, why)
                .on(seat.host.name())
                .hint("something changed it here or on its way: run the same command again"));
        }
        self.seed(&seat, context).await
    }
}

/// Returns the guest's VM, as the journal knows it.
pub(super) fn vm_of(seat: &Seat) -> Resource {
    let machine = &seat.machine;
    Resource::Vm {
        host: seat.recorded.clone(),
        guest: machine.name.to_string(),
        hypervisor: machine.outer,
        vm: machine.spec.vm.clone(),
        directory: machine.spec.directory.clone(),
    }
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
    /// Returns the image that `machine` was made from, if it is made from one: the newest of its name that
    /// the lab holds.
    ///
    /// # Errors
    /// [`Kind::Usage`] if the lab holds none.
    pub(super) fn image_of(&self, machine: &Machine) -> Result<Option<VerifiedImage>> {
        let manifest = self.images.manifest(&machine.name);
        let (Some(image), Some(manifest)) = (&machine.image, manifest) else { return Ok(None) };
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
    fn find_image(
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
