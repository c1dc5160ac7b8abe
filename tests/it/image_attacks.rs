//! Attacks and accidents against a publisher on loopback. Each is refused with exit code 4 (not
//! trusted) or 5 (network), for the reason that it should be, and leaves no image in the store.

use std::sync::Arc;
use std::time::Duration;

use crate::support::publisher::ova::Ova;
use crate::support::publisher::server::{Answer, Pace, good};
use crate::support::publisher::signing::{DAY, PgpKey, SignifyKey, Signing, armored, days_ago};
use crate::support::publisher::{Publisher, Release};
use camino::Utf8Path;
use jiff::Timestamp;
use nestlab::event::EventSink;
use nestlab::image::manifest::ManifestOrigin;
use nestlab::image::{FetchOptions, Manifest, Store, fetch};
use sequoia_openpgp::serialize::SerializeInto as _;
use sequoia_openpgp::types::{HashAlgorithm, ReasonForRevocation, SignatureType};
use tokio_util::sync::CancellationToken;

const HOUR: Duration = Duration::from_secs(60 * 60);
const TRUST: u8 = 4;
const NETWORK: u8 = 5;

/// One attack's stage: everything is good until the attack changes it.
struct Stage {
    publisher: Publisher,
    release: Release,
    /// The manifest's text.
    manifest: String,
    options: FetchOptions,
    _folder: tempfile::TempDir,
    store: Store,
}

impl Stage {
    fn new() -> Self {
        let publisher = Publisher::start();
        let release = publisher.publish_raw("18.2.1.9", noise(200_000));
        let manifest = publisher.manifest_toml(&release);
        let folder = tempfile::tempdir().expect("a folder");
        let root = Utf8Path::from_path(folder.path()).expect("UTF-8").join("images");
        let options = FetchOptions {
            stall: Duration::from_secs(30),
            slowest: 1000,
            attempts: 2,
            pause: Duration::from_millis(1),
            ..FetchOptions::default()
        };
        let store = Store::open(&root).expect("opens");
        Stage { publisher, release, manifest, options, _folder: folder, store }
    }

    /// Serves other bytes at the image's address.
    fn bytes(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.release.bytes.to_vec();
        change(&mut bytes);
        self.publisher.server.serve(&self.release.path, bytes);
    }

    /// Serves another file beside the image.
    fn beside(&self, end: &str, body: impl Into<Arc<[u8]>>) {
        self.publisher.server.serve(&self.release.beside(end), body);
    }

    /// Serves a signature over the image, made like a good one but for `change`.
    fn signature(&self, change: impl FnOnce(&mut Signing)) {
        let mut how = Signing::of(&self.release.file);
        change(&mut how);
        self.beside(".asc", self.publisher.pgp.sign(&self.release.bytes, &how));
    }

    /// Publishes anew with another key in the place of the publisher's own; the manifest trusts it.
    fn key(&mut self, key: PgpKey, sign: impl FnOnce(&mut Signing)) {
        self.manifest =
            self.manifest.replace(&self.publisher.pgp.fingerprint(), &key.fingerprint());
        self.publisher.server.serve("/keys/derivative.asc", key.file());
        self.publisher.pgp = key;
        let mut how = Signing::of(&self.release.file);
        sign(&mut how);
        self.publisher.sign(&self.release, &how);
    }

    /// Serves a checksum file with this text, properly signed by both.
    fn sums(&self, text: &str) {
        let name = format!("{}.sha512sums", self.release.file);
        self.beside(".sha512sums", text.as_bytes());
        self.beside(".sha512sums.sig", self.publisher.signify.sign(text.as_bytes()));
        let signature = self.publisher.pgp.sign(text.as_bytes(), &Signing::of(&name));
        self.beside(".sha512sums.asc", signature);
    }

    /// Publishes a properly signed image of another format in the place of the raw one.
    fn image(&mut self, format: &'static str, bytes: Vec<u8>) {
        self.release = self.publisher.publish_raw("18.2.1.9", bytes);
        self.release.format = format;
        self.manifest = self.publisher.manifest_toml(&self.release);
    }

    /// Answers requests for the image so.
    fn answer(&self, answer: impl Fn(Answer, usize) -> Answer + Send + Sync + 'static) {
        let bytes = self.release.bytes.clone();
        self.publisher.server.answer(&self.release.path, move |request| {
            answer(good(request, &bytes), request.earlier)
        });
    }

    async fn fetch(&self) -> nestlab::Result<nestlab::image::VerifiedImage> {
        let manifest = Manifest::parse(&self.manifest, ManifestOrigin::Text("test".into()))?;
        let cancel = CancellationToken::new();
        fetch(&manifest, &self.store, &self.options, &EventSink::silent(), &cancel).await
    }

    /// Counts a server as stalled soon. Which file stalled is in the error: any may on a busy machine.
    fn impatient(&mut self) {
        self.options.stall = Duration::from_secs(2);
    }

    /// The folders of digests in the store: where a trusted image would be.
    fn kept(&self) -> Vec<String> {
        let entries = self.store.root().read_dir_utf8().expect("the store is there");
        let names = entries.map(|entry| entry.expect("readable").file_name().to_owned());
        names.filter(|name| name.len() == 64 || name.starts_with("incoming")).collect()
    }
}

/// A key file with all of these, one after another.
fn keyring(keys: &[&PgpKey]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.cert.to_vec().expect("serializes")).collect()
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    sequoia_openpgp::crypto::random(&mut data).expect("randomness");
    data
}

/// Defines one test for each attack: what it does, the exit code, and a part of the reason.
macro_rules! attacks {
    ($($name:ident($stage:ident) => $code:ident, $part:literal, $attack:block)+) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                #[allow(unused_mut, reason = "not every attack changes the manifest")]
                let mut $stage = Stage::new();
                $attack
                let error = $stage.fetch().await.expect_err("the attack went through");
                let report = error.report();
                assert_eq!(error.kind().exit_code(), $code, "{report}");
                assert!(report.contains($part), "`{}` is missing in:\n{report}", $part);
                assert_eq!($stage.kept(), [""; 0], "something was kept");
                assert_eq!($stage.store.list().expect("lists"), []);
            }
        )+
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signers_clock_may_be_a_little_ahead() {
    let stage = Stage::new();
    stage.signature(|how| how.time = days_ago(0) + HOUR / 12);
    stage.fetch().await.expect("five minutes are no future");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_file_may_hold_the_key_twice() {
    let stage = Stage::new();
    let key = &stage.publisher.pgp;
    stage.publisher.server.serve("/keys/derivative.asc", keyring(&[key, key]));
    stage.fetch().await.expect("both are the key");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_attack_the_image_is_fetched() {
    let stage = Stage::new();
    stage.fetch().await.expect("nothing is wrong");
    assert_eq!(stage.kept().len(), 1);
}

// The bytes.
attacks! {
    a_flipped_bit_at_the_start(stage) => TRUST, "does not match the bytes", {
        stage.bytes(|bytes| bytes[0] ^= 1);
    }
    a_flipped_bit_in_the_middle(stage) => TRUST, "does not match the bytes", {
        stage.bytes(|bytes| bytes[100_000] ^= 0x80);
    }
    a_flipped_bit_at_the_end(stage) => TRUST, "does not match the bytes", {
        stage.bytes(|bytes| *bytes.last_mut().expect("not empty") ^= 1);
    }
    a_truncated_file(stage) => TRUST, "does not match the bytes", {
        stage.bytes(|bytes| bytes.truncate(199_999));
    }
    a_longer_file(stage) => TRUST, "does not match the bytes", {
        stage.bytes(|bytes| bytes.push(0));
    }
    an_empty_file(stage) => TRUST, "does not match the bytes", {
        stage.bytes(Vec::clear);
    }
    another_signed_file_with_all_that_belongs_to_it(stage) => TRUST, "made for another file", {
        let other = stage.publisher.publish_raw("18.1.4.2", noise(100_000));
        stage.publisher.pass_off(&other, &stage.release);
    }
    another_flavors_bytes_under_this_ones_signature(stage) => TRUST, "does not match the bytes", {
        let other = stage.publisher.publish_ova("CLI", "18.2.1.9", noise(100_000));
        stage.publisher.server.serve(&stage.release.path, other.bytes);
    }
    a_wrong_size_pin(stage) => TRUST, "200000 announced, not 200001", {
        stage.manifest = stage.manifest.replace("arch", "size = 200001\narch");
    }
    a_wrong_sha256_pin(stage) => TRUST, "SHA-256 pin", {
        stage.manifest = stage.manifest.replace("arch", &format!("sha256 = \"{}\"\narch", "a".repeat(64)));
    }
    a_wrong_sha512_pin(stage) => TRUST, "SHA-512 pin", {
        stage.manifest = stage.manifest.replace("arch", &format!("sha512 = \"{}\"\narch", "a".repeat(128)));
    }
}

// The OpenPGP signature and its key.
attacks! {
    a_signature_older_than_the_floor(stage) => TRUST, "older than the manifest allows", {
        let tomorrow = Timestamp::now() + Duration::from_secs(24 * 60 * 60);
        let floor = tomorrow.strftime("not-before = %Y-%m-%d").to_string();
        stage.manifest = stage.manifest.replace("not-before = 2020-01-01", &floor);
    }
    an_older_signed_version_than_the_newest_seen(stage) => TRUST, "rollback", {
        let older = stage.publisher.publish_raw("18.1.4.2", noise(1000));
        let mut how = Signing::of(&older.file);
        how.time = days_ago(30);
        stage.publisher.sign(&older, &how);
        stage.fetch().await.expect("the newer one first");
        stage.store.prune(nestlab::image::store::Prune::Unused, false).expect("prunes");
        stage.manifest = stage.publisher.manifest_toml(&older);
    }
    a_signature_from_the_future(stage) => TRUST, "from the future", {
        stage.signature(|how| how.time = days_ago(0) + DAY);
    }
    a_signature_that_is_further_ahead_than_clocks_differ(stage) => TRUST, "from the future", {
        stage.signature(|how| how.time = days_ago(0) + HOUR);
    }
    a_revoked_key_behind_an_older_copy_of_itself(stage) => TRUST, "is revoked", {
        let old = stage.publisher.pgp.clone();
        let revoked = old.clone().revoked(ReasonForRevocation::KeyCompromised, 30);
        stage.publisher.server.serve("/keys/derivative.asc", keyring(&[&old, &revoked]));
    }
    a_revoked_key_in_front_of_an_older_copy_of_itself(stage) => TRUST, "is revoked", {
        let old = stage.publisher.pgp.clone();
        let revoked = old.clone().revoked(ReasonForRevocation::KeyCompromised, 30);
        stage.publisher.server.serve("/keys/derivative.asc", keyring(&[&revoked, &old]));
    }
    an_expired_signature(stage) => TRUST, "has expired", {
        stage.signature(|how| { how.time = days_ago(10); how.lives = Some(DAY); });
    }
    a_signature_by_an_unlisted_key(stage) => TRUST, "no signature in the file is by", {
        let mallory = PgpKey::new();
        stage.beside(".asc", mallory.sign(&stage.release.bytes, &Signing::of(&stage.release.file)));
    }
    another_key_in_the_place_of_the_pinned_one(stage) => TRUST, "does not hold", {
        let mallory = PgpKey::new();
        stage.publisher.server.serve("/keys/derivative.asc", mallory.file());
        stage.beside(".asc", mallory.sign(&stage.release.bytes, &Signing::of(&stage.release.file)));
    }
    an_expired_key(stage) => TRUST, "was not alive", {
        stage.key(PgpKey::expired(), |how| how.time = days_ago(60));
    }
    an_expired_subkey(stage) => TRUST, "was not alive", {
        stage.key(PgpKey::expired_subkey(), |how| how.time = days_ago(60));
    }
    a_compromised_and_revoked_key(stage) => TRUST, "is revoked", {
        stage.key(PgpKey::new().revoked(ReasonForRevocation::KeyCompromised, 30), |_| ());
    }
    a_key_retired_after_it_signed(stage) => TRUST, "is revoked", {
        stage.key(PgpKey::new().revoked(ReasonForRevocation::KeyRetired, 30), |how| how.time = days_ago(60));
    }
    a_revoked_subkey(stage) => TRUST, "is revoked", {
        stage.key(PgpKey::new().revoked_subkey(), |_| ());
    }
    a_primary_key_that_may_only_certify(stage) => TRUST, "may not sign", {
        stage.signature(|how| how.by_primary = true);
    }
    a_subkey_that_is_not_for_signing(stage) => TRUST, "may not sign", {
        stage.key(PgpKey::authentication_subkey(), |_| ());
    }
    a_subkey_without_back_signature(stage) => TRUST, "No binding signature", {
        let other = PgpKey::new();
        stage.key(PgpKey::signing_primary().with_stolen_subkey(&other), |how| how.by_primary = false);
    }
    a_good_signature_beside_a_bad_one_of_the_same_key(stage) => TRUST, "does not match the bytes", {
        let how = Signing::of(&stage.release.file);
        let pgp = &stage.publisher.pgp;
        stage.beside(".asc", armored(&[pgp.packet(&stage.release.bytes, &how), pgp.packet(b"else", &how)]));
    }
    a_good_signature_beside_one_for_another_file(stage) => TRUST, "made for another file", {
        let pgp = &stage.publisher.pgp;
        let bytes = &stage.release.bytes;
        let packets = [Signing::of(&stage.release.file), Signing::of("other.ova")];
        stage.beside(".asc", armored(&packets.map(|how| pgp.packet(bytes, &how))));
    }
    several_signatures_none_by_the_pinned_key(stage) => TRUST, "no signature in the file is by", {
        let how = Signing::of(&stage.release.file);
        let packets = [PgpKey::new(), PgpKey::new()].map(|key| key.packet(&stage.release.bytes, &how));
        stage.beside(".asc", armored(&packets));
    }
    a_clear_signed_message_instead_of_a_detached_signature(stage) => TRUST, "clear-signed", {
        stage.beside(".asc", *b"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nhello\n");
    }
    a_signed_message_instead_of_a_detached_signature(stage) => TRUST, "not only signatures", {
        use sequoia_openpgp::serialize::stream::{LiteralWriter, Message};
        let mut message = Vec::new();
        let mut writer = LiteralWriter::new(Message::new(&mut message)).build().expect("a writer");
        std::io::Write::write_all(&mut writer, b"hello").expect("writes");
        writer.finalize().expect("finishes");
        stage.beside(".asc", message);
    }
    an_empty_signature(stage) => TRUST, "the signature is empty", {
        stage.beside(".asc", *b"");
    }
    a_signature_of_white_space(stage) => TRUST, "the signature is empty", {
        stage.beside(".asc", *b"\n \n");
    }
    a_signature_that_is_garbage(stage) => TRUST, "OpenPGP", {
        stage.beside(".asc", noise(300));
    }
    a_truncated_signature(stage) => TRUST, "OpenPGP", {
        let whole = stage.publisher.pgp.sign(&stage.release.bytes, &Signing::of(&stage.release.file));
        stage.beside(".asc", &whole[..whole.len() / 2]);
    }
    a_missing_signature(stage) => NETWORK, "404", {
        stage.publisher.server.forget(&stage.release.beside(".asc"));
    }
    a_web_page_instead_of_the_key(stage) => TRUST, "OpenPGP", {
        stage.publisher.server.serve("/keys/derivative.asc", *b"<html>login please</html>");
    }
    a_text_signature(stage) => TRUST, "not one over a file", {
        stage.signature(|how| how.kind = SignatureType::Text);
    }
    a_signature_with_sha1(stage) => TRUST, "not trusted", {
        stage.signature(|how| how.hash = HashAlgorithm::SHA1);
    }
    a_signature_without_the_notation(stage) => TRUST, "lacks the notation file@name", {
        stage.signature(|how| how.notations.clear());
    }
    a_signature_with_two_values_of_the_notation(stage) => TRUST, "made for another file", {
        stage.signature(|how| how.notations.push(("file@name".into(), "other.ova".into())));
    }
}

// The checksum file and what vouches for it.
attacks! {
    a_checksum_file_that_names_the_image_twice(stage) => TRUST, "more than once", {
        stage.sums(&stage.release.sums().repeat(2));
    }
    a_checksum_file_that_does_not_name_the_image(stage) => TRUST, "does not name", {
        stage.sums(&stage.release.sums().replace("LXQt", "CLI"));
    }
    an_empty_checksum_file(stage) => TRUST, "does not name", {
        stage.sums("");
    }
    a_checksum_file_with_a_path(stage) => TRUST, "names a path", {
        stage.sums(&stage.release.sums().replace("  ", "  ../"));
    }
    a_signed_checksum_of_other_bytes(stage) => TRUST, "checksum file signed", {
        stage.sums(&format!("{}  {}\n", "a".repeat(128), stage.release.file));
    }
    a_bsd_line_that_lies_about_its_algorithm(stage) => TRUST, "not a checksum", {
        stage.sums(&format!("SHA256 ({}) = {}\n", stage.release.file, "a".repeat(128)));
    }
    a_web_page_instead_of_checksums(stage) => TRUST, "not a checksum", {
        stage.sums("<html>504</html>\n");
    }
    a_checksum_file_changed_after_it_was_signed(stage) => TRUST, "signify: the signature does not match", {
        stage.beside(".sha512sums", format!("{}\n", stage.release.sums()).into_bytes());
    }
    an_older_versions_checksums_with_their_signatures(stage) => TRUST, "checksum", {
        let older = stage.publisher.publish_raw("18.1.4.2", noise(1000));
        for end in [".sha512sums", ".sha512sums.sig", ".sha512sums.asc"] {
            stage.beside(end, stage.publisher.server.current(&older.beside(end)).expect("published"));
        }
    }
    a_signify_signature_with_another_key_number(stage) => TRUST, "another number", {
        let mut key = stage.publisher.signify.clone();
        key.number[0] ^= 1;
        stage.beside(".sha512sums.sig", key.sign(stage.release.sums().as_bytes()));
    }
    a_signify_signature_by_another_key_with_the_same_number(stage) => TRUST, "does not match", {
        let key = SignifyKey { number: stage.publisher.signify.number, ..SignifyKey::new() };
        stage.beside(".sha512sums.sig", key.sign(stage.release.sums().as_bytes()));
    }
    an_empty_signify_signature(stage) => TRUST, "not a signature file", {
        stage.beside(".sha512sums.sig", *b"");
    }
    a_missing_signify_signature(stage) => NETWORK, "404", {
        stage.publisher.server.forget(&stage.release.beside(".sha512sums.sig"));
    }
    a_checksum_signature_made_for_another_file(stage) => TRUST, "made for another file", {
        let made = stage.publisher.pgp.sign(stage.release.sums().as_bytes(), &Signing::of("other"));
        stage.beside(".sha512sums.asc", made);
    }
}

// The way here.
attacks! {
    a_web_page_with_status_200(stage) => NETWORK, "web page", {
        stage.answer(|_, _| Answer::new(200, *b"<html>").header("content-type", "text/html"));
    }
    a_web_page_that_calls_itself_a_file(stage) => NETWORK, "web page", {
        stage.answer(|_, _| Answer::new(200, *b"<!DOCTYPE html><html>blocked</html>"));
    }
    a_file_that_is_not_there(stage) => NETWORK, "404", {
        stage.publisher.server.forget(&stage.release.path);
    }
    a_server_that_always_fails(stage) => NETWORK, "503", {
        stage.answer(|_, _| Answer::new(503, *b"later"));
    }
    a_range_answered_with_another_range(stage) => NETWORK, "it answered the range", {
        stage.answer(|answer, _| match answer.status {
            206 => {
                let mut answer = answer;
                answer.headers.retain(|(name, _)| *name != "content-range");
                answer.header("content-range", "bytes 0-199999/200000")
            }
            _ => answer.pace(Pace::DropAfter(1000)),
        });
    }
    a_part_that_nobody_asked_for(stage) => NETWORK, "a part of what was asked for whole", {
        stage.answer(|_, _| {
            Answer::new(206, noise(10)).header("content-range", "bytes 10-19/20")
        });
    }
    a_file_that_changes_with_every_request(stage) => TRUST, "does not match the bytes", {
        stage.publisher.server.answer(&stage.release.path, |request| {
            good(request, &noise(200_000).into())
        });
    }
    a_redirection_to_plain_http(stage) => NETWORK, "is plain HTTP", {
        stage.answer(|_, _| Answer::new(302, *b"").header("location", "http://example.org/x.ova"));
    }
    a_redirection_to_a_file(stage) => NETWORK, "302", {
        stage.answer(|_, _| Answer::new(302, *b"").header("location", "file:///etc/passwd"));
    }
    a_redirection_in_circles(stage) => NETWORK, "could not be read", {
        let path = stage.release.path.clone();
        stage.answer(move |_, _| Answer::new(302, *b"").header("location", path.clone()));
    }
    plain_http_in_the_manifest(stage) => NETWORK, "is plain HTTP", {
        stage.manifest = stage.manifest.replace("urls = [\"http://127.0.0.1", "urls = [\"http://example.org");
    }
    a_slow_loris(stage) => NETWORK, "AMD64.ova stalled", {
        stage.impatient();
        stage.answer(|answer, _| answer.pace(Pace::Trickle(Duration::from_millis(20))));
    }
    a_slow_loris_with_the_signature(stage) => NETWORK, "AMD64.ova.asc stalled", {
        stage.impatient();
        let body = noise(100_000);
        stage.publisher.server.answer(&stage.release.beside(".asc"), move |_| {
            Answer::new(200, body.clone()).pace(Pace::Trickle(Duration::from_millis(20)))
        });
    }
    a_server_that_falls_silent(stage) => NETWORK, "AMD64.ova stalled", {
        stage.impatient();
        stage.answer(|answer, _| answer.pace(Pace::SilentAfter(1000)));
    }
    a_connection_that_always_drops_at_once(stage) => NETWORK, "could not be read", {
        stage.answer(|answer, _| answer.pace(Pace::DropAfter(0)));
    }
    a_content_length_that_is_too_long(stage) => NETWORK, "fewer bytes than it had", {
        stage.answer(|answer, _| {
            answer.header("content-length", "200001").pace(Pace::DropAfter(200_000))
        });
    }
    a_content_length_that_is_too_short(stage) => TRUST, "does not match the bytes", {
        stage.answer(|answer, _| answer.header("content-length", "150000"));
    }
    a_content_length_beyond_the_pinned_size(stage) => TRUST, "announced, not 200000", {
        stage.manifest = stage.manifest.replace("arch", "size = 200000\narch");
        stage.answer(|answer, _| answer.header("content-length", "99999999999999"));
    }
    a_server_that_does_not_say_how_much_comes(stage) => NETWORK, "how big the file is", {
        stage.answer(|answer, _| answer.header("connection", "close"));
    }
    a_compressed_transfer(stage) => NETWORK, "encoding `gzip`", {
        stage.answer(|answer, _| answer.header("content-encoding", "gzip"));
    }
}

// What is signed, and still must not be given to a hypervisor.
attacks! {
    a_signed_32_bit_ova(stage) => TRUST, "not 64-bit", {
        stage.image("ova", Ova { os_type: "Debian", ..Ova::new() }.bytes());
    }
    a_signed_ova_with_two_machines(stage) => TRUST, "2 machines", {
        stage.image("ova", Ova { machines: 2, ..Ova::new() }.bytes());
    }
    a_signed_ova_that_reaches_outside(stage) => TRUST, "which is not in it", {
        stage.image("ova", Ova { href: "../../etc/shadow".into(), ..Ova::new() }.bytes());
    }
    a_signed_ova_with_a_path_in_it(stage) => TRUST, "not a plain file name", {
        let more = vec![("../../evil".to_owned(), b"x".to_vec(), false)];
        stage.image("ova", Ova { more, ..Ova::new() }.bytes());
    }
    a_signed_ova_with_a_link_in_it(stage) => TRUST, "not a plain file", {
        let more = vec![("evil".to_owned(), Vec::new(), true)];
        stage.image("ova", Ova { more, ..Ova::new() }.bytes());
    }
    a_signed_ova_with_a_wrong_digest_list(stage) => TRUST, "differs from its digest list", {
        let ova = Ova::new();
        let list = ova.right_list().replace("vm.ovf) = ", "vm.ovf) = 00");
        stage.image("ova", Ova { list: Some(list), ..ova }.bytes());
    }
    a_signed_ova_whose_disk_is_bigger_than_it_claims(stage) => TRUST, "more than the", {
        stage.image("ova", Ova { capacity: 1 << 20, ..Ova::new() }.bytes());
    }
    a_signed_file_that_is_no_ova(stage) => NETWORK, "not those of ova", {
        stage.image("ova", noise(100_000));
    }
    a_signed_qcow2_with_a_backing_file(stage) => TRUST, "names a backing file", {
        let options = ["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2"];
        stage.image("qcow2", crate::support::publisher::ova::made(&options));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_whose_proof_failed_are_in_quarantine_with_the_reason() {
    let stage = Stage::new();
    stage.bytes(|bytes| bytes[7] ^= 1);
    let error = stage.fetch().await.expect_err("one bit is wrong");
    let folder = stage.store.root().join("quarantine");
    let mut kept = folder.read_dir_utf8().expect("there").map(|entry| entry.expect("readable"));
    let one = kept.next().expect("one").into_path();
    assert!(kept.next().is_none());
    assert!(error.report().contains(one.as_str()), "{}", error.report());
    let bytes = fs_err::read(one.join("untrusted")).expect("reads");
    assert_eq!(bytes.len(), stage.release.bytes.len());
    let why = fs_err::read_to_string(one.join("why.txt")).expect("reads");
    for part in ["checksum file", "SHA-512", "does not match the bytes"] {
        assert!(why.contains(part) || error.report().contains(part), "{part}: {why}");
    }
}

#[test]
fn the_program_itself_exits_with_4_and_with_5_and_prints_no_path() {
    let stage = Stage::new();
    let home = tempfile::tempdir().expect("a folder");
    let manifest = home.path().join("image.toml");
    fs_err::write(&manifest, &stage.manifest).expect("writes");
    let nestlab = || {
        let mut command = assert_cmd::Command::cargo_bin("nestlab").expect("built");
        command.env_clear().env("HOME", home.path()).args(["image", "fetch"]).arg(&manifest);
        command.output().expect("runs")
    };
    stage.bytes(|bytes| bytes[7] ^= 1);
    let output = nestlab();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(output.stdout.is_empty());
    stage.publisher.server.forget(&stage.release.path);
    let output = nestlab();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(output.stdout.is_empty());
    stage.bytes(|_| ());
    let output = nestlab();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let path = String::from_utf8(output.stdout).expect("a path");
    assert_eq!(fs_err::read(path.trim_end()).expect("the image"), stage.release.bytes[..]);
}
