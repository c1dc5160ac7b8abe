//! Images that are built instead of downloaded: a Debian system, or an appliance small enough for the
//! deepest level; and the seed volume that gives a guest its keys.
//!
//! Packages count only with a signature of Debian's archive keys. An image holds no key and no identity,
//! so that its digest can be shared and compared; what makes a guest itself comes from its [`seed`]. The
//! same inputs (manifest, mirror, what the mirror has, this nestlab) give the same bytes.

mod appliance;
mod bootstrap;
mod context;
mod cpio;
mod debian;
mod elf;
mod fat;
mod grub;
mod libraries;
pub mod mirror;
mod modules;
mod ova;
mod partitions;
mod rootfs;
pub mod seed;
mod tar_index;
mod vmdk;

use camino::Utf8PathBuf;
use sha2::Digest as _;
use tokio_util::sync::CancellationToken;

pub use bootstrap::BuildRecord;
pub use mirror::Mirror;

use self::appliance::Appliance;
use self::context::BuildContext;
use self::debian::Debian;
use super::digest::Sha256;
use super::fetch::{Partial, blocking};
use super::format::ImageFormat;
use super::manifest::{BuildKind, BuildTable, Manifest};
use super::store::{Built, Pins, Store, VerifiedImage};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::host::local::Local;

/// Counts the changes to the builders that their texts (see [`inputs`]) do not show.
const GENERATION: u32 = 2;

/// How to build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// Where packages come from; `None` for the mirror that this machine's own apt uses.
    pub mirror: Option<Mirror>,
    /// The form to write, if the manifest leaves it open; `None` for qcow2.
    pub format: Option<ImageFormat>,
    /// The directory of the lab that the image is for, see [`super::FetchOptions::holder`].
    pub holder: Option<Utf8PathBuf>,
}

/// Returns the image that `manifest` describes, from the store, or built on this machine.
///
/// Two calls at once, in one process or two, build once. The image's [`BuildRecord`] is in its
/// provenance.
///
/// # Errors
/// [`Kind::HostCannot`] if this machine lacks programs (all are named) or knows no mirror,
/// [`Kind::Untrusted`] if the archive's signature does not hold or its validity is over,
/// [`Kind::Network`] if the mirror cannot be reached, [`Kind::Recipe`] for a manifest of a download, a
/// form that cannot be built or a package that is not there, [`Kind::Interrupted`] once `cancel` fires.
pub async fn build(
    manifest: &Manifest,
    store: &Store,
    options: &BuildOptions,
    events: &EventSink,
    cancel: &CancellationToken,
) -> Result<VerifiedImage> {
    let job = BuildJob::new(manifest, options)?;
    if let Some(image) = job.find(store, events).await? {
        return Ok(image);
    }
    store.sweep();
    let place = Partial::open(store, &job.inputs, events, cancel).await?;
    // Whoever held the place before may have finished it.
    if let Some(image) = job.find(store, events).await? {
        place.remove()?;
        return Ok(image);
    }
    let folder = place.work_folder()?;
    let built =
        job.run(&BuildContext { host: &Local::new(), folder: &folder, events, cancel }).await;
    let image = match built {
        Ok((file, record)) => job.adopt(store, file, record).await,
        Err(error) => Err(error),
    };
    // Whatever came of it: what is in the folder has served its purpose.
    if let Err(error) = place.remove() {
        events
            .notice(Level::Warning, format!("what the build left goes with the next one: {error}"));
    }
    image
}

/// Returns the image that `manifest` describes, if it was built before from the same inputs, whatever
/// the mirror has now. May read the whole image once, and then blocks.
///
/// # Errors
/// As [`build`], but for what only building needs.
pub fn find(
    manifest: &Manifest,
    store: &Store,
    options: &BuildOptions,
) -> Result<Option<VerifiedImage>> {
    let job = BuildJob::new(manifest, options)?;
    store.find_built(manifest.name(), &job.inputs)
}

/// One image to build.
struct BuildJob<'a> {
    manifest: &'a Manifest,
    table: &'a BuildTable,
    mirror: Mirror,
    format: ImageFormat,
    inputs: Sha256,
    holder: Option<Utf8PathBuf>,
}

impl<'a> BuildJob<'a> {
    fn new(manifest: &'a Manifest, options: &BuildOptions) -> Result<Self> {
        let table = manifest.build().ok_or_else(|| {
            Error::new(Kind::Recipe, format!("{} is downloaded, not built", manifest.name()))
                .hint(format!("nestlab image fetch {}", manifest.name()))
        })?;
        let format = table.format.or(options.format).unwrap_or(ImageFormat::Qcow2);
        let mirror = match &options.mirror {
            Some(mirror) => mirror.clone(),
            None => Mirror::of_this_host()?,
        };
        let inputs = inputs(manifest, table, &mirror, format)?;
        let holder = options.holder.clone();
        Ok(BuildJob { manifest, table, mirror, format, inputs, holder })
    }

    /// Looks the image up. One that changed after it was built is set aside.
    async fn find(&self, store: &Store, events: &EventSink) -> Result<Option<VerifiedImage>> {
        let (store, name, events) = (store.clone(), self.manifest.name().clone(), events.clone());
        let (inputs, holder) = (self.inputs, self.holder.clone());
        let pins = Pins::default();
        blocking(move || store.find_intact(&name, &inputs, pins, holder.as_deref(), &events)).await
    }

    async fn run(&self, shop: &BuildContext<'_>) -> Result<(Utf8PathBuf, BuildRecord)> {
        match self.table.kind {
            BuildKind::Appliance => {
                let appliance = Appliance {
                    name: self.manifest.name().as_str(),
                    mirror: &self.mirror,
                    table: self.table,
                    format: self.format,
                };
                appliance.build(shop).await
            }
            BuildKind::Debian => {
                let debian = Debian {
                    mirror: &self.mirror,
                    table: self.table,
                    format: self.format,
                    inputs: &self.inputs,
                };
                debian.build(shop).await
            }
        }
    }

    async fn adopt(
        &self,
        store: &Store,
        file: Utf8PathBuf,
        record: BuildRecord,
    ) -> Result<VerifiedImage> {
        let (store, name) = (store.clone(), self.manifest.name().clone());
        let (format, inputs, holder) = (self.format, self.inputs, self.holder.clone());
        let adopt = move || {
            let built = Built {
                file: &file,
                file_name: &format!("{name}.{}", format.as_str()),
                format,
                version: &record.release_date.strftime("%Y%m%d").to_string(),
                inputs,
                record: serde_json::to_value(&record)
                    .map_err(|error| Error::internal("a record has no JSON").with_source(error))?,
            };
            store.adopt_built(&name, &built, holder.as_deref())
        };
        blocking(adopt).await
    }
}

/// Returns a digest of all that decides the image's bytes, but for what the mirror has.
fn inputs(
    manifest: &Manifest,
    table: &BuildTable,
    mirror: &Mirror,
    format: ImageFormat,
) -> Result<Sha256> {
    let mut digest = sha2::Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    part(&GENERATION.to_le_bytes());
    part(manifest.identity().as_bytes());
    part(format.as_str().as_bytes());
    part(mirror.archive().as_bytes());
    part(mirror.security().unwrap_or_default().as_bytes());
    for text in appliance::texts().chain(debian::texts()) {
        part(text.as_bytes());
    }
    for deb in &table.debs {
        part(&fs_err::read(deb)?);
    }
    Ok(Sha256::from_bytes(digest.finalize().into()))
}
