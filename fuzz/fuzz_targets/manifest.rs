//! An image manifest from anywhere: what is accepted has a proof, and addresses that can be used.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nestlab::image::Manifest;
use nestlab::image::manifest::Origin;

fuzz_target!(|data: &str| {
    let Ok(manifest) = Manifest::parse(data, Origin::Text("fuzz".into())) else { return };
    let _ = manifest.identity();
    let Some(download) = manifest.download() else { return };
    for url in &download.urls {
        let (_, file) = url.image_url(manifest.version()).expect("checked when it was read");
        assert!(!file.contains('/') && !file.starts_with('.'));
    }
    let sums = download.checksums.as_ref();
    assert!(
        download.sha256.is_some()
            || download.sha512.is_some()
            || download.openpgp.is_some()
            || sums.is_some_and(|sums| sums.signify.is_some() || sums.openpgp.is_some())
    );
});
