//! The store against other users of the same machine, and proven again. What only root can set up is done as
//! root alone; the rule itself is tested beside the code, for every user.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::place::{Place, noise, sha256};

/// The user that owns nothing.
const NOBODY: u32 = 65534;

/// An image in a store of root's, and its manifest with the digest pinned.
struct Stage {
    place: Place,
    manifest: PathBuf,
    cache: PathBuf,
    image: PathBuf,
}

impl Stage {
    /// Returns none where this is not root.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let place = Place::with(noise(50_000));
        let folder = place.folder.path();
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).expect("chmod");
        let (manifest, cache) = (folder.join("image.toml"), folder.join("cache"));
        let text = place.publisher.manifest_toml(&place.release);
        let pin = format!("sha256 = \"{}\"\narch", sha256(&place.release.bytes));
        std::fs::write(&manifest, text.replace("arch", &pin)).expect("writes");
        let stage = Stage { place, manifest, cache, image: PathBuf::new() };
        let fetched = stage.fetch();
        assert!(fetched.status.success(), "{fetched:?}");
        let image = String::from_utf8(fetched.stdout).expect("UTF-8");
        Some(Stage { image: image.trim().into(), ..stage })
    }

    fn nestlab(&self) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("nestlab"));
        command.env_clear().env("HOME", self.place.folder.path());
        command.arg("--cache-dir").arg(&self.cache);
        command
    }

    fn fetch(&self) -> Output {
        self.nestlab().args(["image", "fetch"]).arg(&self.manifest).output().expect("runs")
    }

    fn folder(&self) -> &Path {
        self.image.parent().expect("an image lies in a folder")
    }

    /// As another user, puts other bytes in the place of the image, with a note that vouches for them.
    fn forge(&self) {
        let here = self.place.folder.path();
        let as_nobody = |from: &Path, to: &Path| {
            let status = Command::new("cp").uid(NOBODY).gid(NOBODY).arg(from).arg(to).status();
            assert!(status.expect("runs").success(), "the other user can write to {to:?}");
        };
        let (evil, forged) = (here.join("evil"), here.join("forged"));
        std::fs::write(&evil, "EVIL IMAGE!").expect("writes");
        as_nobody(&evil, &self.image);
        let (meta, note) = (self.image.metadata().expect("is there"), self.note());
        let mut note: serde_json::Value = serde_json::from_slice(&note).expect("is JSON");
        note["size"] = meta.size().into();
        note["sha256"] = sha256(b"EVIL IMAGE!").into();
        note["stat"] = serde_json::json!({
            "inode": meta.ino(), "size": meta.size(),
            "modified": [meta.mtime(), meta.mtime_nsec()], "changed": [meta.ctime(), meta.ctime_nsec()],
        });
        std::fs::write(&forged, note.to_string()).expect("writes");
        as_nobody(&forged, &self.folder().join("image.json"));
    }

    fn note(&self) -> Vec<u8> {
        std::fs::read(self.folder().join("image.json")).expect("reads")
    }
}

fn give_away(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).expect("root can");
    if path.is_dir() {
        for entry in path.read_dir().expect("lists") {
            give_away(&entry.expect("is there").path());
        }
    }
}

#[test]
fn a_store_that_belongs_to_another_user_is_refused_whatever_its_notes_say() {
    let Some(stage) = Stage::new() else { return };
    give_away(&stage.cache);
    stage.forge();
    let listed = stage.nestlab().args(["image", "list"]).output().expect("runs");
    for output in [listed, stage.fetch()] {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{told}");
        assert!(told.contains("belongs to user 65534"), "{told}");
        assert!(told.contains("--cache-dir"), "what to do is said: {told}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn an_image_that_belongs_to_another_user_is_set_aside_and_fetched_anew() {
    let Some(stage) = Stage::new() else { return };
    give_away(stage.folder());
    // Only root enters its store; the other user had it open from before.
    for open in [&stage.cache, &stage.cache.join("images")] {
        std::fs::set_permissions(open, std::fs::Permissions::from_mode(0o711)).expect("chmod");
    }
    stage.forge();
    let output = stage.fetch();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("belongs to user 65534") && told.contains("quarantine"), "{told}");
    assert_eq!(std::fs::read(&stage.image).expect("reads"), stage.place.release.bytes[..]);
    assert_eq!(stage.folder().metadata().expect("is there").uid(), 0);
}

/// Runs `nestlab image verify --store` in the place's home; returns the exit code and the answer.
fn verified(place: &Place, more: &[&str]) -> (Option<i32>, serde_json::Value) {
    let output = Command::new(assert_cmd::cargo::cargo_bin("nestlab"))
        .env_clear()
        .env("HOME", place.folder.path())
        .arg("--cache-dir")
        .arg(place.folder.path())
        .args(["--json", "image", "verify", "--store"])
        .args(more)
        .output()
        .expect("runs");
    let told = format!("{output:?}");
    (output.status.code(), serde_json::from_slice(&output.stdout).expect(&told))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_store_is_proven_again_by_the_signatures_that_were_kept() {
    let place = Place::with(noise(50_000));
    place.arrives().await;
    let asked = place.publisher.server.requests().len();
    let (code, answer) = verified(&place, &[]);
    assert_eq!(code, Some(0), "{answer}");
    let proofs = answer["images"][0]["proofs"].to_string();
    for proof in ["OpenPGP signature by", "signed with signify and OpenPGP"] {
        assert!(proofs.contains(proof), "{proof}: {answer}");
    }
    assert_eq!(place.publisher.server.requests().len(), asked, "nobody was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_changed_unseen_fails_and_is_taken_out_only_on_request() {
    let place = Place::with(noise(50_000));
    let image = place.arrives().await;
    // As a disk that forgets: the note is made to say that nothing happened.
    let mut bytes = place.release.bytes.to_vec();
    bytes[1000] ^= 1;
    std::fs::write(image.path(), bytes).expect("writes");
    let note = image.path().with_file_name("image.json");
    let mut noted: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&note).expect("reads")).expect("is JSON");
    let meta = std::fs::metadata(image.path()).expect("is there");
    noted["stat"]["modified"] = serde_json::json!([meta.mtime(), meta.mtime_nsec()]);
    noted["stat"]["changed"] = serde_json::json!([meta.ctime(), meta.ctime_nsec()]);
    std::fs::write(&note, noted.to_string()).expect("writes");
    assert!(place.store.find(&place.manifest()).expect("looks as it did").is_some());

    let (code, answer) = verified(&place, &[]);
    assert_eq!((code, &answer["images"][0]["holds"]), (Some(4), &false.into()), "{answer}");
    assert!(answer["images"][0]["why"].to_string().contains("signature"), "{answer}");
    assert!(image.path().exists(), "nobody asked to have it moved");

    let (code, answer) = verified(&place, &["--quarantine"]);
    assert_eq!(code, Some(4), "{answer}");
    let kept = answer["images"][0]["quarantined"].as_str().expect("it was moved");
    assert!(Path::new(kept).join("untrusted").exists() && !image.path().exists());
    assert_eq!(verified(&place, &[]), (Some(0), serde_json::json!({"schema": 1, "images": []})));
    place.arrives().await;
}

#[test]
fn a_store_that_is_not_trusted_keeps_nobody_from_destroying_a_lab() {
    let scratch = tempfile::tempdir().expect("a folder");
    let root = camino::Utf8Path::from_path(scratch.path()).expect("UTF-8");
    let labs = nestlab::lab::Labs::at(root.join("state"));
    let lab = labs.create(&"demo".parse().expect("a name"), "").expect("makes");
    let cache = root.join("cache");
    std::fs::create_dir(&cache).expect("makes");
    std::fs::set_permissions(&cache, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    let output = Command::new(assert_cmd::cargo::cargo_bin("nestlab"))
        .args(["--state-dir", root.join("state").as_str(), "--cache-dir", cache.as_str()])
        .args(["destroy", "demo", "--yes"])
        .output()
        .expect("runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    assert!(told.contains(&format!("others can write to {cache}")), "{told}");
    assert!(!lab.directory().exists());
}
