//! Fetching from a publisher that behaves: what is got, kept, resumed and shared.

#[path = "support/publisher.rs"]
mod publisher;

use camino::Utf8Path;
use nestlab::event::Feed;
use nestlab::image::manifest::Origin;
use nestlab::image::{FetchOptions, Manifest, Store, VerifiedImage, fetch};
use publisher::{Publisher, Release};
use tokio_util::sync::CancellationToken;

fn noise(bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    sequoia_openpgp::crypto::random(&mut data).expect("randomness");
    data
}

struct Place {
    _folder: tempfile::TempDir,
    store: Store,
}

fn place() -> Place {
    let folder = tempfile::tempdir().expect("a folder");
    let root = Utf8Path::from_path(folder.path()).expect("UTF-8").join("images");
    Place { store: Store::open(&root).expect("opens"), _folder: folder }
}

fn options() -> FetchOptions {
    FetchOptions { pause: std::time::Duration::from_millis(1), ..FetchOptions::default() }
}

fn manifest(text: &str) -> Manifest {
    Manifest::parse(text, Origin::Text("test".into())).expect("a manifest")
}

/// A manifest for raw bytes: what is fetched need not be a disk.
fn raw(publisher: &Publisher, release: &Release) -> Manifest {
    manifest(&publisher.manifest_toml(release).replace("\"ova\"", "\"raw\""))
}

async fn get(manifest: &Manifest, store: &Store) -> nestlab::Result<VerifiedImage> {
    let cancel = CancellationToken::new();
    fetch(manifest, store, &options(), &Feed::silent(), &cancel).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_image_is_fetched_once_and_then_found() {
    let (publisher, place) = (Publisher::start(), place());
    let bytes = noise(3_000_000);
    let release = publisher.publish_ova("LXQt", "18.2.1.9", bytes.clone());
    let manifest = raw(&publisher, &release);
    let image = get(&manifest, &place.store).await.expect("fetches");
    assert_eq!(fs_err::read(image.path()).expect("reads"), bytes);
    assert_eq!(image.version(), "18.2.1.9");
    assert!(image.signed_at().is_some());
    let again = get(&manifest, &place.store).await.expect("finds");
    assert_eq!(again, image);
    assert_eq!(publisher.server.requests_for(&release.path).len(), 1);
}
