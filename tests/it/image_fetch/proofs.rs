//! What is accepted: every good kind of proof, each enough on its own.

use nestlab::Kind;
use nestlab::image::Manifest;
use nestlab::image::manifest::ManifestOrigin;

use super::place::{Place, noise, parse, sha256};
use crate::support::publisher::ova::Ova;
use crate::support::publisher::signing::{PgpKey, Signing, armored, days_ago};

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_image_is_fetched_once_and_then_found() {
    let place = Place::new();
    let image = place.arrives().await;
    assert_eq!(image.version(), "18.2.1.9");
    assert!(image.signed_at().is_some());
    assert_eq!(place.arrives().await, image);
    assert_eq!(place.ranges(), [None]);
    assert_eq!(place.unfinished(), [""; 0], "nothing unfinished is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_ova_is_fetched() {
    let ova = Ova::new();
    let bytes = Ova { list: Some(ova.right_list()), ..ova }.bytes();
    let mut place = Place::with(Vec::new());
    place.release = place.publisher.publish_ova("LXQt", "18.2.1.9", bytes);
    place.arrives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_good_kind_of_proof_is_accepted() {
    let foreign = PgpKey::new();
    type Change = Box<dyn Fn(&mut Place)>;
    let kinds: Vec<(&str, Change)> = vec![
        (
            "a primary key that signs",
            Box::new(|place| {
                place.publisher.pgp = PgpKey::signing_primary();
                let key = place.publisher.pgp.file();
                place.publisher.server.serve("/keys/derivative.asc", key);
                place.publisher.sign(&place.release, &Signing::of(&place.release.file));
            }),
        ),
        (
            "a foreign signature beside the good one",
            Box::new(move |place| {
                let how = Signing::of(&place.release.file);
                let bytes = &place.release.bytes;
                let both = [foreign.packet(bytes, &how), place.publisher.pgp.packet(bytes, &how)];
                place.publisher.server.serve(&place.release.beside(".asc"), armored(&both));
            }),
        ),
        (
            "a signature that is not armored",
            Box::new(|place| {
                use sequoia_openpgp::serialize::SerializeInto as _;
                let how = Signing::of(&place.release.file);
                let packet = place.publisher.pgp.packet(&place.release.bytes, &how);
                let binary = packet.to_vec().expect("serializes");
                place.publisher.server.serve(&place.release.beside(".asc"), binary);
            }),
        ),
        (
            "a key file with other keys in it",
            Box::new(|place| {
                let mut file = PgpKey::new().file();
                file.extend(place.publisher.pgp.file());
                place.publisher.server.serve("/keys/derivative.asc", file);
            }),
        ),
        (
            "BSD checksums",
            Box::new(|place| {
                let hex = place.release.sums();
                let hex = hex.split(' ').next().expect("a digest");
                let text = format!("SHA512 ({}) = {hex}\n", place.release.file);
                let name = format!("{}.sha512sums", place.release.file);
                let serve = |end: &str, body: Vec<u8>| {
                    place.publisher.server.serve(&place.release.beside(end), body);
                };
                serve(".sha512sums.sig", place.publisher.signify.sign(text.as_bytes()));
                let made = place.publisher.pgp.sign(text.as_bytes(), &Signing::of(&name));
                serve(".sha512sums.asc", made);
                serve(".sha512sums", text.into_bytes());
            }),
        ),
    ];
    for (kind, change) in kinds {
        let mut place = Place::with(noise(1000));
        change(&mut place);
        let image = place.get(&place.manifest()).await;
        place.is_whole(&image.unwrap_or_else(|error| panic!("{kind}: {}", error.report())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_proof_is_enough_on_its_own() {
    let place = Place::with(noise(1000));
    let full = place.publisher.manifest_toml(&place.release);
    let table = |from: &str, to: &str| {
        let start = full.find(from).expect("there");
        full[start..full.find(to).expect("there")].to_owned()
    };
    let (openpgp, sums) = (table("[openpgp]", "[checksums]"), table("[checksums]", "[latest]"));
    let signed_by_openpgp = sums.replace("signify = ", "# ").replace(
        "openpgp = { ",
        &format!(
            "openpgp = {{ fingerprint = \"{}\", key = \"{}/keys/derivative.asc\", ",
            place.publisher.pgp.fingerprint(),
            place.publisher.server.url()
        ),
    );
    let signed_by_signify = sums.replace("openpgp = ", "# ");
    let sha512 = place.release.sums();
    let pins = [
        format!("sha256 = \"{}\"\n", sha256(&place.release.bytes)),
        format!("sha512 = \"{}\"\n", sha512.split(' ').next().expect("a digest")),
    ];
    let bare = &full[..full.find("[openpgp]").expect("there")];
    for proof in [&openpgp, &signed_by_openpgp, &signed_by_signify, &pins[0], &pins[1]] {
        let manifest = parse(&format!("{bare}{proof}"));
        let image = place.get(&manifest).await;
        place.is_whole(&image.unwrap_or_else(|error| panic!("{proof}: {}", error.report())));
        place.store.prune(nestlab::image::store::Prune::Unused, false).expect("prunes");
    }
    assert!(Manifest::parse(bare, ManifestOrigin::Text("test".into())).is_err(), "no proof at all");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_is_accepted_only_when_that_is_said() {
    let mut place = Place::new();
    place.arrives().await;
    let older = place.publisher.publish_raw("18.1.4.2", noise(1000));
    let mut how = Signing::of(&older.file);
    how.time = days_ago(100);
    place.publisher.sign(&older, &how);
    let manifest = parse(&place.publisher.manifest_toml(&older));
    let error = place.get(&manifest).await.expect_err("rollback");
    assert_eq!(error.kind(), Kind::Untrusted);
    assert!(error.report().contains("--accept-older"), "{}", error.report());
    place.options.accept_older = true;
    let image = place.get(&manifest).await.expect("said so");
    assert_eq!(image.version(), "18.1.4.2");
    let newest = place.store.newest_signature(manifest.name()).expect("reads");
    assert!(newest > image.signed_at(), "the memory of the newest one stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_changed_in_the_store_is_set_aside_and_fetched_again() {
    let place = Place::new();
    let image = place.arrives().await;
    fs_err::write(image.path(), b"something else").expect("writes");
    let error = place.store.find(&place.manifest()).expect_err("it is not what was proven");
    assert_eq!(error.kind(), Kind::Untrusted);
    assert_eq!(place.arrives().await.path(), image.path());
    let quarantine = place.store.root().join("quarantine");
    assert_eq!(quarantine.read_dir_utf8().expect("there").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_found_by_the_time_of_a_signed_checksum_file_too() {
    let mut place = Place::new();
    let only_sums = |text: &str, key: &str| {
        let (start, end) = (text.find("[openpgp]"), text.find("[checksums]"));
        let text = text.replace(&text[start.expect("there")..end.expect("there")], "");
        text.replace("openpgp = { ", &format!("openpgp = {{ {key}, "))
    };
    let key = format!(
        "fingerprint = \"{}\", key = \"{}/keys/derivative.asc\"",
        place.publisher.pgp.fingerprint(),
        place.publisher.server.url()
    );
    let newer = parse(&only_sums(&place.publisher.manifest_toml(&place.release), &key));
    let image = place.get(&newer).await.expect("fetches");
    assert!(image.signed_at().is_some());
    let older = place.publisher.publish_raw("18.1.4.2", noise(1000));
    let mut how = Signing::of(&older.file);
    how.time = days_ago(100);
    place.publisher.sign(&older, &how);
    let manifest = parse(&only_sums(&place.publisher.manifest_toml(&older), &key));
    let error = place.get(&manifest).await.expect_err("rollback");
    assert!(error.report().contains("rollback"), "{}", error.report());
    place.options.accept_older = true;
    place.get(&manifest).await.expect("said so");
}
