//! From a manifest to an image in the store: its mirrors one after another, every proof, nothing
//! believed before its time.

mod client;
mod disk;
mod download;
mod partial;
mod sink;

use std::time::Duration;

use backon::BackoffBuilder as _;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use url::Url;

pub(super) use client::{Client, SMALL};
use download::{Attempt, FetchError};
pub(super) use partial::{Partial, work_folders};

use super::manifest::{Download, Location, Manifest, OpenPgp, Placeholders};
use super::store::{Pins, Store, VerifiedImage};
use super::structure;
use super::verify::{Expectations, Proven, SignatureFiles, Times};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};

/// How to fetch.
#[derive(Debug, Clone)]
pub struct FetchOptions {
    /// The proxy for every address but loopback, such as `socks5h://127.0.0.1:9050`; without one the
    /// environment's (`https_proxy`, `all_proxy`, `no_proxy` …) is used.
    pub proxy: Option<Url>,
    /// How long a server may say next to nothing, [`FetchOptions::slowest`], before it counts as
    /// stalled. There is no limit on the whole.
    pub stall: Duration,
    /// The slowest speed that still counts as progress, in bytes per second.
    pub slowest: u64,
    /// How often one mirror is tried without any progress in between.
    pub attempts: usize,
    /// The pause after the first failed try; it doubles with each one, up to half a minute.
    pub pause: Duration,
    /// Accept a signature older than the newest one that the store has seen for this name.
    pub accept_older: bool,
    /// The directory of the lab that the image is for: it is held for that lab as soon as it is in the
    /// store, see [`Store::hold`].
    pub holder: Option<Utf8PathBuf>,
}

impl Default for FetchOptions {
    fn default() -> Self {
        FetchOptions {
            proxy: None,
            stall: Duration::from_secs(60),
            slowest: 512,
            attempts: 4,
            pause: Duration::from_millis(500),
            accept_older: false,
            holder: None,
        }
    }
}

/// Returns the image that `manifest` describes, from the store, or downloaded and proven.
///
/// An interrupted download goes on where it was. Two calls at once, in one process or two, download
/// once. A download whose proofs do not hold is moved to the store's quarantine.
///
/// # Errors
/// [`Kind::Untrusted`] if a proof did not hold on any mirror, [`Kind::Network`] if none could be
/// reached, [`Kind::HostCannot`] if the disk is too small, [`Kind::Interrupted`] once `cancel` fires,
/// [`Kind::Recipe`] for a manifest of an image that is built.
pub async fn fetch(
    manifest: &Manifest,
    store: &Store,
    options: &FetchOptions,
    events: &EventSink,
    cancel: &CancellationToken,
) -> Result<VerifiedImage> {
    if let Some(image) = find(store, manifest, options, events).await? {
        return Ok(image);
    }
    let download = manifest.download().ok_or_else(|| {
        Error::new(Kind::Recipe, format!("{} is built, not downloaded", manifest.name()))
            .hint(format!("nestlab image build {}", manifest.name()))
    })?;
    store.sweep();
    let partial = Partial::open(store, &manifest.identity(), events, cancel).await?;
    // Whoever held the partial download before may have finished it.
    if let Some(image) = find(store, manifest, options, events).await? {
        partial.remove()?;
        return Ok(image);
    }
    let client = Client::new(download.allow_http, options)?;
    let job = DownloadJob { manifest, download, store, options, client, events, cancel };
    job.try_mirrors(partial).await
}

/// Looks an image up on a thread that may block. One that changed after it was proven is set aside.
async fn find(
    store: &Store,
    manifest: &Manifest,
    options: &FetchOptions,
    events: &EventSink,
) -> Result<Option<VerifiedImage>> {
    let (store, name, events) = (store.clone(), manifest.name().clone(), events.clone());
    let (identity, pins) = (manifest.identity(), Pins::of(manifest));
    let holder = options.holder.clone();
    blocking(move || store.find_intact(&name, &identity, pins, holder.as_deref(), &events)).await
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("a worker thread died").with_source(error))?
}

/// Returns the error that says that the run is to end.
fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted").hint("the same command again goes on from here")
}

/// One image's download.
struct DownloadJob<'a> {
    manifest: &'a Manifest,
    download: &'a Download,
    store: &'a Store,
    options: &'a FetchOptions,
    client: Client,
    events: &'a EventSink,
    cancel: &'a CancellationToken,
}

impl DownloadJob<'_> {
    async fn try_mirrors(&self, mut partial: Partial) -> Result<VerifiedImage> {
        let mut failures: Vec<Error> = Vec::new();
        for template in &self.download.urls {
            let (url, file) = template.image_url(self.manifest.version())?;
            match self.try_mirror(&url, &file, &mut partial).await {
                Ok(proof) => return self.adopt(partial, &url, file, proof).await,
                Err(FetchError::Stop(error)) => return Err(error),
                Err(FetchError::Retry(error) | FetchError::NextMirror(error)) => {
                    let error = match error.message().contains(url.as_str()) {
                        true => error,
                        false => error.context(&url),
                    };
                    self.events.notice(Level::Warning, error.message());
                    failures.push(error);
                }
            }
        }
        Err(self.no_mirror(failures))
    }

    /// Returns the failure that matters most: a proof that did not hold, else the first one.
    fn no_mirror(&self, failures: Vec<Error>) -> Error {
        let name = self.manifest.name();
        let others = failures.len().saturating_sub(1);
        let untrusted = failures.iter().position(|error| error.kind() == Kind::Untrusted);
        let main = failures.into_iter().nth(untrusted.unwrap_or(0));
        let error = main.unwrap_or_else(|| Error::internal("a manifest without addresses"));
        let error = error.context(format!("image {name}"));
        match others {
            0 => error,
            _ => error.hint(format!("{others} more of its addresses failed too; see above")),
        }
    }

    async fn try_mirror(
        &self,
        url: &Url,
        file: &str,
        partial: &mut Partial,
    ) -> Result<(Proven, SignatureFiles), FetchError> {
        let version = self.manifest.version().map_or("", |version| version.as_str());
        let names = Placeholders { version, url: url.as_str(), file };
        let evidence = self.evidence(names).await?;
        let times = Times {
            now: Timestamp::now(),
            newest_seen: match self.options.accept_older {
                true => None,
                false => {
                    self.store.newest_signature(self.manifest.name()).map_err(FetchError::Stop)?
                }
            },
        };
        let expectations = Expectations::new(self.download, names, &evidence, times)
            .map_err(FetchError::NextMirror)?;
        let mut again = true;
        loop {
            let attempt = Attempt { job: self, url, expectations: &expectations };
            let hashed = self.resumed(&attempt, partial).await?;
            match expectations.judge(&hashed) {
                Ok(proven) => return Ok((proven, evidence)),
                // Pieces that were put together may not belong together; whole bytes are judged.
                Err(_) if partial.is_stitched() && again => {
                    again = false;
                    partial.clear().map_err(FetchError::Stop)?;
                }
                Err(error) => {
                    return Err(FetchError::NextMirror(self.quarantined(partial, error)?));
                }
            }
        }
    }

    /// Tries one mirror again for as long as it makes progress.
    async fn resumed(
        &self,
        attempt: &Attempt<'_>,
        partial: &mut Partial,
    ) -> Result<super::verify::Hashed, FetchError> {
        let mut pauses = self.pauses();
        loop {
            let before = partial.len().map_err(FetchError::Stop)?;
            let error = match attempt.run(partial).await {
                Err(FetchError::Retry(error)) => error,
                done => return done,
            };
            if partial.len().map_err(FetchError::Stop)? >= before + download::PROGRESS {
                pauses = self.pauses();
            }
            let Some(pause) = pauses.next() else { return Err(FetchError::NextMirror(error)) };
            self.events.notice(Level::Info, format!("{}: {error}; trying again", attempt.url));
            self.pause(pause).await?;
        }
    }

    /// Gets the small files, trying again a few times.
    async fn evidence(&self, names: Placeholders<'_>) -> Result<SignatureFiles, FetchError> {
        let mut pauses = self.pauses();
        loop {
            match self.evidence_once(names).await {
                Err(FetchError::Retry(error)) => match pauses.next() {
                    Some(pause) => self.pause(pause).await?,
                    None => return Err(FetchError::NextMirror(error)),
                },
                done => return done,
            }
        }
    }

    fn pauses(&self) -> impl Iterator<Item = Duration> + use<> {
        backon::ExponentialBuilder::default()
            .with_min_delay(self.options.pause)
            .with_max_delay(Duration::from_secs(30))
            .with_max_times(self.options.attempts.saturating_sub(1))
            .build()
    }

    async fn pause(&self, pause: Duration) -> Result<(), FetchError> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.cancel.cancelled() => Err(FetchError::Stop(interrupted())),
        }
    }

    /// Gets the small files that the manifest's proofs are made of.
    async fn evidence_once(&self, names: Placeholders<'_>) -> Result<SignatureFiles, FetchError> {
        let mut evidence = SignatureFiles::default();
        if let Some(OpenPgp { key, signature, .. }) = &self.download.openpgp {
            evidence.signature = Some(self.small(signature, names).await?);
            evidence.key = Some(self.small(key, names).await?);
        }
        if let Some(checksums) = &self.download.checksums {
            evidence.checksums = Some(self.small(&checksums.location, names).await?);
            if let Some(signify) = &checksums.signify {
                evidence.checksums_signify = Some(self.small(&signify.signature, names).await?);
            }
            if let Some(openpgp) = &checksums.openpgp {
                evidence.checksums_signature = Some(self.small(&openpgp.signature, names).await?);
                let same = self.download.openpgp.as_ref().is_some_and(|o| o.key == openpgp.key);
                evidence.checksums_key = match same {
                    true => evidence.key.clone(),
                    false => Some(self.small(&openpgp.key, names).await?),
                };
            }
        }
        Ok(evidence)
    }

    async fn small(
        &self,
        location: &Location,
        names: Placeholders<'_>,
    ) -> Result<Vec<u8>, FetchError> {
        match location {
            Location::Path(path) => super::small_file(path).map_err(FetchError::Stop),
            Location::Url(template) => {
                let url = template.expand(names);
                self.events.doing(format!("fetching {url}"));
                self.client.small(&url, self.cancel).await
            }
        }
    }

    fn quarantined(&self, partial: &mut Partial, error: Error) -> Result<Error, FetchError> {
        let kept = partial
            .give_up(|file| self.store.quarantine(self.manifest.name(), file, &error))
            .map_err(FetchError::Stop)?;
        Ok(error.hint(format!("the bytes were moved to {kept}")))
    }

    /// Looks into the proven file for what no hypervisor should be given, and takes it into the store.
    async fn adopt(
        &self,
        partial: Partial,
        url: &Url,
        file: String,
        (proven, evidence): (Proven, SignatureFiles),
    ) -> Result<VerifiedImage> {
        self.events.doing(format!("looking into {file}"));
        let form = (self.download.format, self.download.compression);
        let (store, manifest, url) = (self.store.clone(), self.manifest.clone(), url.to_string());
        let holder = self.options.holder.clone();
        blocking(move || {
            let path = partial.file();
            if let Err(error) = structure::check(&path, form.0, form.1) {
                let kept = store.quarantine(manifest.name(), &path, &error)?;
                return Err(error.hint(format!("the bytes were moved to {kept}")));
            }
            let (proof, holder) = ((&proven, &evidence), holder.as_deref());
            let image = store.adopt_proven(&manifest, &path, &file, &url, proof, holder)?;
            partial.remove()?;
            Ok(image)
        })
        .await
    }
}

/// Returns how many bytes are free for us on the file system of `path`.
pub(super) fn free_space(path: &Utf8Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path.as_std_path()).map_err(std::io::Error::from)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
