//! A publisher and a store, each of its own for every test.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use nestlab::event::EventSink;
use nestlab::image::manifest::ManifestOrigin;
use nestlab::image::{FetchOptions, Manifest, Store, VerifiedImage, fetch};
use tokio_util::sync::CancellationToken;

use crate::support::publisher::server::{Answer, good};
use crate::support::publisher::{Publisher, Release};

pub fn noise(bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    sequoia_openpgp::crypto::random(&mut data).expect("randomness");
    data
}

pub struct Place {
    pub folder: tempfile::TempDir,
    pub publisher: Publisher,
    pub release: Release,
    pub store: Store,
    pub options: FetchOptions,
}

impl Place {
    pub fn with(bytes: Vec<u8>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Utf8Path::from_path(folder.path()).expect("UTF-8").join("images");
        let publisher = Publisher::start();
        let release = publisher.publish_raw("18.2.1.9", bytes);
        let options = FetchOptions { pause: Duration::from_millis(1), ..FetchOptions::default() };
        let store = Store::open(&root).expect("opens");
        Place { folder, publisher, release, store, options }
    }

    pub fn new() -> Self {
        Self::with(noise(2_000_000))
    }

    pub fn manifest(&self) -> Manifest {
        parse(&self.publisher.manifest_toml(&self.release))
    }

    pub async fn get(&self, manifest: &Manifest) -> nestlab::Result<VerifiedImage> {
        let cancel = CancellationToken::new();
        fetch(manifest, &self.store, &self.options, &EventSink::silent(), &cancel).await
    }

    /// Fetches, and checks that what came is what was published.
    pub async fn arrives(&self) -> VerifiedImage {
        let image = self.get(&self.manifest()).await;
        let image = image.unwrap_or_else(|error| panic!("{}", error.report()));
        self.is_whole(&image);
        image
    }

    pub fn is_whole(&self, image: &VerifiedImage) {
        let bytes = fs_err::read(image.path()).expect("reads");
        assert!(bytes == self.release.bytes[..], "other bytes");
    }

    /// The first bytes of the ranges that were asked for; `None` for a whole file.
    pub fn ranges(&self) -> Vec<Option<usize>> {
        let requests = self.publisher.server.requests_for(&self.release.path);
        requests.iter().map(|request| request.range_start()).collect()
    }

    pub fn answer(&self, answer: impl Fn(Answer, usize) -> Answer + Send + Sync + 'static) {
        let bytes = self.release.bytes.clone();
        self.publisher.server.answer(&self.release.path, move |request| {
            answer(good(request, &bytes), request.earlier)
        });
    }

    /// A second address for the same image, tried first.
    pub fn manifest_with_mirror(&self, mirror: &str) -> Manifest {
        let text = self.publisher.manifest_toml(&self.release);
        let first = format!("{}{mirror}/{}", self.publisher.server.url(), self.release.file);
        parse(&text.replace("urls = [", &format!("urls = [\"{first}\", ")))
    }

    pub fn unfinished(&self) -> Vec<Utf8PathBuf> {
        let folders = self.store.root().join("partial").read_dir_utf8().expect("there");
        folders.map(|folder| folder.expect("readable").into_path()).collect()
    }
}

pub fn parse(text: &str) -> Manifest {
    let parsed = Manifest::parse(text, ManifestOrigin::Text("test".into()));
    parsed.unwrap_or_else(|error| panic!("{}", error.report()))
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}
