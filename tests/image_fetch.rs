//! Fetching from a publisher that behaves, mostly: what is got, kept, resumed, shared and updated.

#[path = "support/publisher.rs"]
mod publisher;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use nestlab::Kind;
use nestlab::event::{Event, Feed, Progress};
use nestlab::image::manifest::Origin;
use nestlab::image::update::{self, Update};
use nestlab::image::{FetchOptions, Manifest, Store, VerifiedImage, fetch};
use publisher::ova::Ova;
use publisher::proxy::Proxy;
use publisher::server::{Answer, Pace, good};
use publisher::signing::{PgpKey, Signing, armored, days_ago};
use publisher::{Publisher, Release};
use tokio_util::sync::CancellationToken;

fn noise(bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    sequoia_openpgp::crypto::random(&mut data).expect("randomness");
    data
}

struct Place {
    folder: tempfile::TempDir,
    publisher: Publisher,
    release: Release,
    store: Store,
    options: FetchOptions,
}

impl Place {
    fn with(bytes: Vec<u8>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Utf8Path::from_path(folder.path()).expect("UTF-8").join("images");
        let publisher = Publisher::start();
        let release = publisher.publish_raw("18.2.1.9", bytes);
        let options = FetchOptions { pause: Duration::from_millis(1), ..FetchOptions::default() };
        let store = Store::open(&root).expect("opens");
        Place { folder, publisher, release, store, options }
    }

    fn new() -> Self {
        Self::with(noise(2_000_000))
    }

    fn manifest(&self) -> Manifest {
        parse(&self.publisher.manifest_toml(&self.release))
    }

    async fn get(&self, manifest: &Manifest) -> nestlab::Result<VerifiedImage> {
        let cancel = CancellationToken::new();
        fetch(manifest, &self.store, &self.options, &Feed::silent(), &cancel).await
    }

    /// Fetches, and checks that what came is what was published.
    async fn arrives(&self) -> VerifiedImage {
        let image = self.get(&self.manifest()).await;
        let image = image.unwrap_or_else(|error| panic!("{}", error.report()));
        self.is_whole(&image);
        image
    }

    fn is_whole(&self, image: &VerifiedImage) {
        let bytes = fs_err::read(image.path()).expect("reads");
        assert!(bytes == self.release.bytes[..], "other bytes");
    }

    /// The first bytes of the ranges that were asked for; `None` for a whole file.
    fn ranges(&self) -> Vec<Option<usize>> {
        let requests = self.publisher.server.requests_for(&self.release.path);
        requests.iter().map(|request| request.range_start()).collect()
    }

    fn answer(&self, answer: impl Fn(Answer, usize) -> Answer + Send + Sync + 'static) {
        let bytes = self.release.bytes.clone();
        self.publisher.server.answer(&self.release.path, move |request| {
            answer(good(request, &bytes), request.earlier)
        });
    }

    /// A second address for the same image, tried first.
    fn manifest_with_mirror(&self, mirror: &str) -> Manifest {
        let text = self.publisher.manifest_toml(&self.release);
        let first = format!("{}{mirror}/{}", self.publisher.server.url(), self.release.file);
        parse(&text.replace("urls = [", &format!("urls = [\"{first}\", ")))
    }

    fn unfinished(&self) -> Vec<Utf8PathBuf> {
        let folders = self.store.root().join("partial").read_dir_utf8().expect("there");
        folders.map(|folder| folder.expect("readable").into_path()).collect()
    }
}

fn parse(text: &str) -> Manifest {
    let parsed = Manifest::parse(text, Origin::Text("test".into()));
    parsed.unwrap_or_else(|error| panic!("{}", error.report()))
}

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
async fn a_connection_that_drops_at_twenty_places_is_resumed_to_the_right_digest() {
    let place = Place::new();
    place.answer(|answer, earlier| match earlier {
        0..20 => answer.pace(Pace::DropAfter(70_001 + earlier * 977)),
        _ => answer,
    });
    place.arrives().await;
    let ranges = place.ranges();
    assert_eq!(ranges.len(), 21);
    assert!(ranges.iter().skip(1).all(Option::is_some), "{ranges:?}");
    assert!(ranges.is_sorted(), "every piece starts after the one before: {ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_after_it_was_interrupted() {
    let place = Place::new();
    place.answer(|answer, earlier| match earlier {
        0 => answer.pace(Pace::SilentAfter(1_200_000)),
        _ => answer,
    });
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let feed = Feed::new(move |event| {
        if let Event::StepProgress { progress: Progress::Bytes { done, .. }, .. } = event
            && done > 1_000_000
        {
            stop.cancel();
        }
    });
    let feed = feed.for_step("image");
    let error = fetch(&place.manifest(), &place.store, &place.options, &feed, &cancel)
        .await
        .expect_err("interrupted");
    assert_eq!(error.kind(), Kind::Interrupted);
    assert_eq!(place.store.list().expect("lists"), []);
    place.arrives().await;
    let ranges = place.ranges();
    assert!(matches!(ranges[..], [None, Some(start)] if start > 1_000_000), "{ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_left_damaged_is_fetched_anew() {
    let place = Place::new();
    place.answer(|answer, earlier| match earlier {
        0..4 => answer.pace(Pace::DropAfter(10_000)),
        _ => answer.pace(Pace::Whole),
    });
    place.get(&place.manifest()).await.expect_err("four drops without progress");
    let data = place.unfinished()[0].join("data");
    let mut bytes = fs_err::read(&data).expect("reads");
    bytes[5] ^= 1;
    fs_err::write(&data, bytes).expect("writes");
    place.arrives().await;
    assert_eq!(place.ranges().last(), Some(&None), "at the end the whole was asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_starts_over_and_corrupts_nothing() {
    let place = Place::new();
    let bytes = place.release.bytes.clone();
    place.publisher.server.answer(&place.release.path, move |request| {
        let answer = Answer::new(200, bytes.clone()).header("etag", "\"x\"");
        if request.earlier < 2 { answer.pace(Pace::DropAfter(900_000)) } else { answer }
    });
    place.arrives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_in_the_middle_starts_over() {
    let place = Place::new();
    let (bytes, before) = (place.release.bytes.clone(), Arc::<[u8]>::from(noise(2_000_000)));
    place.publisher.server.answer(&place.release.path, move |request| match request.earlier {
        0 => good(request, &before).pace(Pace::DropAfter(900_000)),
        _ => good(request, &bytes),
    });
    place.arrives().await;
    assert!(matches!(place.ranges()[..], [None, Some(_)]), "{:?}", place.ranges());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hides_a_change_is_found_out_by_its_tag() {
    let place = Place::new();
    let (bytes, before) = (place.release.bytes.clone(), Arc::<[u8]>::from(noise(2_000_000)));
    place.publisher.server.answer(&place.release.path, move |request| {
        let mut request = request.clone();
        request.headers.remove("if-range");
        match request.earlier {
            0 => good(&request, &before).pace(Pace::DropAfter(900_000)),
            _ => good(&request, &bytes),
        }
    });
    place.arrives().await;
    assert!(matches!(place.ranges()[..], [None, Some(_), None]), "{:?}", place.ranges());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_tag_the_date_allows_to_go_on() {
    let place = Place::new();
    place.answer(|mut answer, earlier| {
        answer.headers.retain(|(name, _)| *name != "etag");
        if earlier == 0 { answer.pace(Pace::DropAfter(900_000)) } else { answer }
    });
    place.arrives().await;
    assert!(matches!(place.ranges()[..], [None, Some(_)]), "{:?}", place.ranges());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_mirror_is_tried_after_an_error_a_stall_and_a_failed_proof() {
    let wrong = Arc::<[u8]>::from(noise(2_000_000));
    for trouble in ["missing", "silent", "tampered"] {
        let mut place = Place::new();
        place.options.stall = Duration::from_secs(2);
        place.options.attempts = 1;
        let manifest = place.manifest_with_mirror("/mirror");
        let path = format!("/mirror/{}", place.release.file);
        for end in [".asc", ".sha512sums", ".sha512sums.asc", ".sha512sums.sig"] {
            let body = place.publisher.server.current(&place.release.beside(end));
            place.publisher.server.serve(&format!("{path}{end}"), body.expect("published"));
        }
        let right = place.release.bytes.clone();
        match trouble {
            "silent" => place
                .publisher
                .server
                .answer(&path, move |request| good(request, &right).pace(Pace::SilentAfter(1000))),
            "tampered" => place.publisher.server.serve(&path, wrong.clone()),
            _ => {}
        }
        let image = place.get(&manifest).await;
        let image = image.unwrap_or_else(|error| panic!("{trouble}: {}", error.report()));
        place.is_whole(&image);
        assert_eq!(place.ranges().len(), 1, "{trouble}: {:?}", place.ranges());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_mirror_goes_on_where_the_first_one_ended() {
    let mut place = Place::new();
    place.options.attempts = 1;
    let manifest = place.manifest_with_mirror("/mirror");
    let path = format!("/mirror/{}", place.release.file);
    for end in [".asc", ".sha512sums", ".sha512sums.asc", ".sha512sums.sig"] {
        let body = place.publisher.server.current(&place.release.beside(end));
        place.publisher.server.serve(&format!("{path}{end}"), body.expect("published"));
    }
    let bytes = place.release.bytes.clone();
    place.publisher.server.answer(&path, move |request| match request.earlier {
        0 => good(request, &bytes).pace(Pace::DropAfter(900_000)),
        _ => Answer::new(404, *b"gone"),
    });
    let image = place.get(&manifest).await.expect("fetches");
    place.is_whole(&image);
    assert!(matches!(place.ranges()[..], [Some(_)]), "{:?}", place.ranges());
}

#[tokio::test(flavor = "multi_thread")]
async fn fetching_one_image_many_times_at_once_downloads_it_once() {
    let place = Arc::new(Place::new());
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let place = place.clone();
            tokio::spawn(async move { place.arrives().await })
        })
        .collect();
    let images = futures::future::join_all(tasks).await;
    let paths: Vec<_> = images.into_iter().map(|image| image.expect("done").path()).collect();
    assert!(paths.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(place.ranges(), [None]);
}

#[test]
fn two_processes_share_one_download() {
    let place = Place::new();
    let manifest = place.folder.path().join("image.toml");
    fs_err::write(&manifest, place.publisher.manifest_toml(&place.release)).expect("writes");
    // The second process is started while the first one's download is under way.
    let (started, go) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (at_server, let_go) = (started.clone(), go.clone());
    place.answer(move |answer, earlier| {
        if earlier == 0 {
            at_server.wait();
            let_go.wait();
        }
        answer
    });
    let spawn = || {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("nestlab"));
        command
            .env_clear()
            .env("HOME", place.folder.path())
            .args(["image", "fetch"])
            .arg(&manifest)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("starts")
    };
    let first = spawn();
    started.wait();
    let second = spawn();
    go.wait();
    let outputs = [first, second].map(|child| child.wait_with_output().expect("ends"));
    for output in &outputs {
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(outputs[0].stdout, outputs[1].stdout);
    assert_eq!(place.ranges(), [None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socks_proxy_is_used_and_looks_the_name_up_itself() {
    let mut place = Place::new();
    let proxy = Proxy::socks5(place.publisher.server.address());
    place.options.proxy =
        Some(format!("socks5h://{}", proxy.address()).parse().expect("an address"));
    // A name that exists nowhere; only the proxy leads it to the publisher.
    let text = place.publisher.manifest_toml(&place.release);
    let text = text.replace(&place.publisher.server.url(), "http://images.invalid");
    let image = place.get(&parse(&text.replace("arch", "allow-http = true\narch"))).await;
    place.is_whole(&image.unwrap_or_else(|error| panic!("{}", error.report())));
    assert!(proxy.asked().iter().all(|name| name == "images.invalid"), "{:?}", proxy.asked());
    assert!(!proxy.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_onion_address_needs_no_https_for_it_is_its_own_key() {
    let mut place = Place::new();
    let proxy = Proxy::socks5(place.publisher.server.address());
    place.options.proxy =
        Some(format!("socks5h://{}", proxy.address()).parse().expect("an address"));
    let text = place.publisher.manifest_toml(&place.release);
    let onion = format!("http://{}.onion", "a".repeat(56));
    let image = place.get(&parse(&text.replace(&place.publisher.server.url(), &onion))).await;
    place.is_whole(&image.unwrap_or_else(|error| panic!("{}", error.report())));
}

#[test]
fn the_proxy_of_the_environment_is_used() {
    let place = Place::new();
    let proxy = Proxy::http(place.publisher.server.address());
    let text = place.publisher.manifest_toml(&place.release);
    let text = text.replace(&place.publisher.server.url(), "http://images.invalid");
    let manifest = place.folder.path().join("image.toml");
    fs_err::write(&manifest, text.replace("arch", "allow-http = true\narch")).expect("writes");
    let output = assert_cmd::Command::cargo_bin("nestlab")
        .expect("built")
        .env_clear()
        .env("HOME", place.folder.path())
        .env("http_proxy", format!("http://{}", proxy.address()))
        .args(["image", "fetch"])
        .arg(&manifest)
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    assert!(proxy.asked().iter().any(|name| name == "images.invalid"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_fit_is_refused_before_it_is_fetched() {
    let place = Place::new();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    place.answer(move |answer, _| {
        count.fetch_add(1, Ordering::SeqCst);
        answer.header("content-length", (1_u64 << 50).to_string()).pace(Pace::SilentAfter(10))
    });
    let error = place.get(&place.manifest()).await.expect_err("a pebibyte");
    assert_eq!(error.kind(), Kind::HostCannot);
    assert!(error.report().contains("MiB are free"), "{}", error.report());
    assert_eq!(sent.load(Ordering::SeqCst), 1, "no second try: it is not the server's fault");
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
    assert!(Manifest::parse(bare, Origin::Text("test".into())).is_err(), "no proof at all");
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
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
async fn an_update_is_written_only_after_the_new_proofs_held() {
    let place = Place::new();
    let path = Utf8Path::from_path(place.folder.path()).expect("UTF-8").join("image.toml");
    let text = place.publisher.manifest_toml(&place.release);
    let text =
        text.replace("arch", &format!("sha256 = \"{}\"\narch", sha256(&place.release.bytes)));
    fs_err::write(&path, &text).expect("writes");
    let newer = place.publisher.publish_raw("18.2.2.0", noise(50_000));
    place.publisher.announce("18.2.2.0");
    let cancel = CancellationToken::new();
    let update = async || -> nestlab::Result<bool> {
        let manifest = Manifest::load(&path)?;
        let found = update::newest(&manifest, &place.options, &cancel).await?;
        let Update::Newer { new, .. } = found else { return Ok(false) };
        let feed = Feed::silent();
        let options = &place.options;
        let (image, text) =
            update::to_version(&manifest, &new, &place.store, options, &feed, &cancel).await?;
        update::write(&manifest, &text)?;
        assert_eq!(place.store.find(&Manifest::load(&path)?)?, Some(image));
        Ok(true)
    };
    let asc = place.publisher.server.current(&newer.beside(".asc")).expect("published");
    place
        .publisher
        .server
        .serve(&newer.beside(".asc"), PgpKey::new().sign(b"x", &Signing::of("x")));
    let error = update().await.expect_err("the new one is not signed by the key");
    assert_eq!(error.kind(), Kind::Untrusted);
    assert_eq!(fs_err::read_to_string(&path).expect("reads"), text, "nothing was written");
    place.publisher.server.serve(&newer.beside(".asc"), asc);
    assert!(update().await.expect("updates"));
    let expected = text
        .replace("18.2.1.9", "18.2.2.0")
        .replace(&sha256(&place.release.bytes), &sha256(&newer.bytes));
    assert_eq!(fs_err::read_to_string(&path).expect("reads"), expected);
    assert!(!update().await.expect("asks"), "it is the newest now");
    place.publisher.announce("18.2.1.9");
    assert_eq!(update().await.expect_err("back").kind(), Kind::Untrusted);
    place.publisher.server.serve("/latest", *b"<html>18.9.9.9</html>");
    assert_eq!(update().await.expect_err("a page").kind(), Kind::Network);
}

#[test]
fn a_file_is_verified_offline_with_what_lies_beside_it() {
    let place = Place::with(noise(100_000));
    let home = Utf8Path::from_path(place.folder.path()).expect("UTF-8");
    let manifest = home.join("image.toml");
    fs_err::write(&manifest, place.publisher.manifest_toml(&place.release)).expect("writes");
    let file = home.join("renamed-by-the-browser.ova");
    fs_err::write(&file, &place.release.bytes).expect("writes");
    for end in [".asc", ".sha512sums", ".sha512sums.asc", ".sha512sums.sig"] {
        let body = place.publisher.server.current(&place.release.beside(end)).expect("published");
        fs_err::write(format!("{file}{end}"), body).expect("writes");
    }
    let key = home.join("key.asc");
    fs_err::write(&key, place.publisher.pgp.file()).expect("writes");
    let before = place.publisher.server.requests().len();
    let verify = |more: &[&str]| {
        let mut command = assert_cmd::Command::cargo_bin("nestlab").expect("built");
        command.env_clear().env("HOME", home).args(["image", "verify"]).arg(&manifest).arg(&file);
        command.args(more).output().expect("runs")
    };
    let missing = verify(&[]);
    assert_eq!(missing.status.code(), Some(2), "no key is there: {missing:?}");
    let good = verify(&["--key", key.as_str()]);
    assert!(good.status.success(), "{good:?}");
    let told = String::from_utf8(good.stdout).expect("UTF-8");
    for part in ["OpenPGP signature by", "signify", &sha256(&place.release.bytes)] {
        assert!(told.contains(part), "{part} is missing in:\n{told}");
    }
    fs_err::write(&file, &place.release.bytes[1..]).expect("writes");
    assert_eq!(verify(&["--key", key.as_str()]).status.code(), Some(4));
    assert_eq!(place.publisher.server.requests().len(), before, "it was offline");
}

#[test]
fn https_needs_a_trusted_certificate_and_never_falls_back_to_http() {
    let home = tempfile::tempdir().expect("a folder");
    let (publisher, certificate) = Publisher::start_tls();
    let release = publisher.publish_raw("18.2.1.9", noise(100_000));
    let manifest = home.path().join("image.toml");
    fs_err::write(&manifest, publisher.manifest_toml(&release)).expect("writes");
    let trusted = home.path().join("certificate.pem");
    fs_err::write(&trusted, certificate).expect("writes");
    let other = home.path().join("other.pem");
    fs_err::write(&other, publisher::server::Server::start_tls().1).expect("writes");
    let fetch = |certificate: &std::path::Path| {
        let mut command = assert_cmd::Command::cargo_bin("nestlab").expect("built");
        command
            .env_clear()
            .env("HOME", home.path())
            .env("SSL_CERT_FILE", certificate)
            .args(["image", "fetch"])
            .arg(&manifest);
        command.output().expect("runs")
    };
    let output = fetch(&other);
    assert_eq!(output.status.code(), Some(5), "the certificate is nobody's: {output:?}");

    let plain = publisher::server::Server::start();
    plain.serve("/image", release.bytes.clone());
    let location = format!("{}/image", plain.url());
    publisher.server.answer(&release.path, move |_| {
        Answer::new(302, *b"").header("location", location.clone())
    });
    let output = fetch(&trusted);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("redirected from HTTPS"), "{told}");
    assert!(plain.requests().is_empty(), "nobody asked over plain HTTP");

    publisher.server.serve(&release.path, release.bytes.clone());
    let output = fetch(&trusted);
    assert!(output.status.success(), "{output:?}");
}
