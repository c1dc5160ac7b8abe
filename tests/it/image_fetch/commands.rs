//! `nestlab image` as a user meets it, and the update behind it.

use camino::Utf8Path;
use nestlab::Kind;
use nestlab::event::EventSink;
use nestlab::image::Manifest;
use nestlab::image::update::{self, Update};
use tokio_util::sync::CancellationToken;

use super::place::{Place, noise, sha256};
use crate::support::publisher::signing::{PgpKey, Signing};

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
        let events = EventSink::silent();
        let options = &place.options;
        let (image, text) =
            update::to_version(&manifest, &new, &place.store, options, &events, &cancel).await?;
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
fn the_commands_tell_what_is_there_and_take_it_away() {
    let place = Place::with(noise(50_000));
    let home = Utf8Path::from_path(place.folder.path()).expect("UTF-8");
    let manifest = home.join("image.toml");
    fs_err::write(&manifest, place.publisher.manifest_toml(&place.release)).expect("writes");
    place.publisher.announce("18.2.1.9");
    let answer = |arguments: &[&str]| -> String {
        let mut command = assert_cmd::Command::cargo_bin("nestlab").expect("built");
        command.env_clear().env("HOME", home).arg("image").args(arguments);
        let output = command.output().expect("runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert!(answer(&["list"]).contains("kicksecure-lxqt  "), "what ships is listed");
    assert_eq!(answer(&["show", "kicksecure-cli"]), {
        let shipped = Manifest::shipped("kicksecure-cli").expect("ships");
        shipped.text().to_owned()
    });
    let path = answer(&["fetch", manifest.as_str()]);
    assert!(Utf8Path::new(path.trim_end()).is_file(), "{path}");
    let listed = answer(&["list"]);
    assert!(listed.contains("18.2.1.9") && listed.contains("signed 20"), "{listed}");
    let json: serde_json::Value =
        serde_json::from_str(&answer(&["fetch", manifest.as_str(), "--json"])).expect("JSON");
    assert_eq!(json["schema"], 1);
    assert_eq!(json["image"]["sha256"], sha256(&place.release.bytes));
    assert_eq!(json["image"]["path"], path.trim_end());
    assert!(answer(&["update", manifest.as_str()]).contains("is the newest"));
    assert_eq!(answer(&["prune"]), "nothing to remove\n");
    assert!(answer(&["prune", "--all", "--dry-run"]).starts_with("would remove"));
    assert!(answer(&["prune", "--all"]).starts_with("removed"));
    assert!(!Utf8Path::new(path.trim_end()).exists());
}

#[test]
fn a_plan_says_that_an_image_which_changed_is_to_be_got_anew() {
    let place = Place::with(noise(50_000));
    let home = Utf8Path::from_path(place.folder.path()).expect("UTF-8");
    fs_err::write(home.join("image.toml"), place.publisher.manifest_toml(&place.release))
        .expect("writes");
    let recipe = "schema = 1\nname = \"lab\"\n[host]\nhypervisor = \"qemu\"\n\
                  [[guest]]\nname = \"l1\"\nimage = \"./image.toml\"\nmemory = \"256MiB\"\n";
    fs_err::write(home.join("lab.toml"), recipe).expect("writes");
    let nestlab = |arguments: &[&str]| -> String {
        let mut command = assert_cmd::Command::cargo_bin("nestlab").expect("built");
        command.env_remove("XDG_CACHE_HOME").env_remove("XDG_STATE_HOME").env("HOME", home);
        let output = command.current_dir(home).args(arguments).output().expect("runs");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let image_step = || {
        let answer: serde_json::Value =
            serde_json::from_str(&nestlab(&["plan", "./lab.toml", "--json"])).expect("JSON");
        let steps = answer["steps"].as_array().expect("steps").clone();
        let is_image = |step: &serde_json::Value| {
            step["id"].as_str().is_some_and(|id| id.starts_with("image/"))
        };
        steps.into_iter().find(is_image).expect("there is one")
    };
    assert_eq!(image_step()["why"], "it is not in the store");
    let path = nestlab(&["image", "fetch", "./image.toml"]);
    assert_eq!(image_step()["state"], "satisfied");
    fs_err::write(path.trim_end(), b"something else").expect("writes");
    let step = image_step();
    assert_eq!(step["state"], "needed");
    assert!(step["why"].as_str().expect("says why").contains("has changed"), "{step}");
    assert!(Utf8Path::new(path.trim_end()).exists(), "a plan changes nothing");
}

#[test]
fn an_unknown_image_and_a_shipped_one_to_change_are_refused_with_the_way_out() {
    let home = tempfile::tempdir().expect("a folder");
    let mut command = assert_cmd::Command::cargo_bin("nestlab").expect("built");
    command.env_clear().env("HOME", home.path()).args(["image", "update"]);
    let output = command.arg("no-such-image").output().expect("runs");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("kicksecure-lxqt"), "it lists what there is: {told}");
    let shipped = Manifest::shipped("kicksecure-lxqt").expect("ships");
    let error = update::file_of(&shipped).expect_err("it is compiled in");
    assert!(error.report().contains("nestlab image show kicksecure-lxqt >"), "{}", error.report());
}
