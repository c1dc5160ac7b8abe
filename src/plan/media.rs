//! A guest's image: in the store of this machine, and then where the guest's host needs it.

use std::collections::BTreeSet;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use tokio::sync::OnceCell;

use super::action::Action;
use super::blueprint::{Machine, MachineImage};
use super::machines::Seat;
use super::step::{Check, Context};
use super::world::{Spot, WorldRef, unless_unreachable};
use crate::error::{Error, Kind, Result};
use crate::event::Feed;
use crate::host::{Command, Host};
use crate::image::build::seed::{self, Seed};
use crate::image::{self, DiskFormat, ImageFormat, Manifest, Sha256, VerifiedImage};
use crate::lab::Resource;

/// Gets an image into the store: downloads and proves it, or builds it.
pub(super) struct Obtain {
    pub(super) world: WorldRef,
    pub(super) manifest: Manifest,
    /// The format that it is made in.
    pub(super) made: ImageFormat,
    /// The forms that guests need it in; made while there is still something else to wait for.
    pub(super) forms: BTreeSet<ImageFormat>,
}

#[async_trait]
impl Action for Obtain {
    async fn check(&self, _context: &Context) -> Result<Check> {
        let Some(image) = self.world.find_image(&self.manifest, self.made)? else {
            return Ok(Check::Needed("it is not in the store".to_owned()));
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
        self.world.store.hold(&image, self.world.machines.lab().name())?;
        for form in &self.forms {
            self.world.in_form(&image, *form, &context.feed).await?;
        }
        Ok(())
    }
}

/// Puts a guest's image and its seed volume into the guest's folder on its host, and proves there that
/// it arrived as it was.
pub(super) struct Place {
    pub(super) spot: Spot,
    pub(super) manifest: Manifest,
    /// The digest of the file in the form that is placed, computed once.
    pub(super) digest: OnceCell<Sha256>,
}

impl Place {
    /// Returns the file to place, in its form, if the image is in the store.
    async fn source(&self, wanted: &MachineImage, feed: &Feed) -> Result<Utf8PathBuf> {
        let world = &self.spot.world;
        let image = world.find_image(&self.manifest, wanted.made)?.ok_or_else(|| {
            Error::failed(format!("{} is not in the store any more", wanted.name))
                .hint("run the same command again: it is fetched or built anew")
        })?;
        world.in_form(&image, wanted.form, feed).await
    }

    async fn digest(&self, file: &Utf8Path) -> Result<Sha256> {
        let file = file.to_owned();
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
        let source = self.source(wanted, &context.feed).await?;
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
        let folder = tempfile::Builder::new().prefix("nestlab-seed-").tempdir()?;
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
        let source = self.source(image, &context.feed).await?;
        context.feed.doing(format!("copying it to {}", seat.host.name()));
        context.or_cancelled(seat.host.put(&source, media, 0o600, &context.feed)).await?;
        let digest = self.digest(&source).await?;
        if let Some(why) = mismatch(&*seat.host, media, digest).await? {
            return Err(Error::new(Kind::Untrusted, why)
                .on(seat.host.name())
                .hint("something changed it on its way: run the same command again"));
        }
        self.seed(&seat, context).await
    }
}

/// Returns the guest's VM, as the journal knows it.
pub(super) fn vm_of(seat: &Seat) -> Resource {
    let machine = &seat.machine;
    Resource::Vm {
        host: seat.host.name().to_owned(),
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
    /// Returns the image of `machine`, if it is made from one that is in the store.
    pub(super) fn image_of(&self, machine: &Machine) -> Result<Option<VerifiedImage>> {
        match (&machine.image, self.images.manifest(&machine.name)) {
            (Some(image), Some(manifest)) => self.find_image(manifest, image.made),
            _ => Ok(None),
        }
    }

    /// Returns `manifest`'s image from the store, if it is there in the format that it is made in.
    fn find_image(&self, manifest: &Manifest, made: ImageFormat) -> Result<Option<VerifiedImage>> {
        match manifest.build() {
            Some(_) => image::build::find(manifest, &self.store, &self.build_options(made)?),
            None => self.store.find(manifest),
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
    ) -> Result<Utf8PathBuf> {
        let format = match form {
            ImageFormat::Qcow2 => DiskFormat::Qcow2,
            ImageFormat::Raw => DiskFormat::Raw,
            ImageFormat::Vdi => DiskFormat::Vdi,
            ImageFormat::Vmdk => DiskFormat::Vmdk,
            ImageFormat::Ova | ImageFormat::Iso | ImageFormat::LibvirtTarXz => {
                image.recheck()?;
                return Ok(image.path());
            }
        };
        image::convert::disk(image, format, feed).await
    }
}
