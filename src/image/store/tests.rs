use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;
use crate::image::manifest::ManifestOrigin;

struct Place {
    folder: tempfile::TempDir,
    store: Store,
}

fn place() -> Place {
    let folder = tempfile::tempdir().expect("a folder");
    let root = Utf8Path::from_path(folder.path()).expect("UTF-8").join("images");
    let store = Store::open(&root).expect("opens");
    Place { folder, store }
}

impl Place {
    fn file(&self, content: &[u8]) -> Utf8PathBuf {
        let path = Utf8Path::from_path(self.folder.path()).expect("UTF-8").join("made");
        fs_err::write(&path, content).expect("writes");
        path
    }

    fn adopt(&self, name: &str, inputs: u8, content: &[u8]) -> VerifiedImage {
        self.adopt_for(name, inputs, content, None)
    }

    fn adopt_for(
        &self,
        name: &str,
        inputs: u8,
        content: &[u8],
        holder: Option<&Utf8Path>,
    ) -> VerifiedImage {
        let built = Built {
            file: &self.file(content),
            file_name: "disk.qcow2",
            format: ImageFormat::Qcow2,
            version: "1",
            inputs: Sha256::from_bytes([inputs; 32]),
            record: serde_json::json!({"packages": {}}),
        };
        self.store.adopt_built(&name.parse().expect("a name"), &built, holder).expect("adopts")
    }

    /// The directory of a lab of some state directory.
    fn lab(&self, state: &str, name: &str) -> Utf8PathBuf {
        let root = Utf8Path::from_path(self.folder.path()).expect("UTF-8");
        let lab = root.join(state).join(name);
        fs_err::create_dir_all(&lab).expect("makes");
        lab
    }

    fn find(&self, name: &str, inputs: u8) -> Result<Option<VerifiedImage>> {
        let inputs = Sha256::from_bytes([inputs; 32]);
        self.store.find_built(&name.parse().expect("a name"), &inputs)
    }
}

#[test]
fn an_adopted_image_is_found_by_its_inputs_and_no_others() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    assert_eq!(fs_err::read(image.path()).expect("reads"), b"disk");
    assert_eq!(image.size(), 4);
    assert!(image.path().as_str().contains(&image.sha256().to_string()));
    assert_eq!(place.find("demo", 1).expect("whole"), Some(image));
    assert_eq!(place.find("demo", 2).expect("whole"), None);
    assert_eq!(place.find("other", 1).expect("whole"), None);
}

#[test]
fn the_same_bytes_are_kept_once() {
    let place = place();
    let one = place.adopt("one", 1, b"disk");
    let two = place.adopt("two", 2, b"disk");
    assert_eq!(one.path(), two.path());
    assert_eq!(place.store.list().expect("lists").len(), 2);
}

#[test]
fn a_proven_file_takes_the_place_of_one_that_has_changed() {
    let place = place();
    let one = place.adopt("one", 1, b"disk");
    fs_err::write(one.path(), b"dusk").expect("writes");
    let two = place.adopt("two", 2, b"disk");
    assert_eq!(fs_err::read(two.path()).expect("reads"), b"disk");
    assert_eq!(place.find("one", 1).expect("whole").map(|image| image.path()), Some(two.path()));
}

#[test]
fn an_image_that_changed_after_its_proof_is_refused() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    fs_err::write(image.path(), b"disk").expect("writes the same again");
    assert!(place.find("demo", 1).expect("reads it again").is_some());
    fs_err::write(image.path(), b"dusk").expect("writes");
    let error = place.find("demo", 1).expect_err("it is another file");
    assert_eq!(error.kind(), Kind::Untrusted);
}

#[test]
fn an_image_that_changed_is_set_aside_where_it_can_be_got_anew() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    fs_err::write(image.path(), b"dusk").expect("writes");
    let (told, listener) = std::sync::mpsc::channel();
    let events = EventSink::new(move |event| told.send(event).expect("is listened to"));
    let (name, inputs) = ("demo".parse().expect("a name"), Sha256::from_bytes([1; 32]));
    assert_eq!(
        place
            .store
            .find_intact(&name, &inputs, Pins::default(), None, &events)
            .expect("sets it aside"),
        None
    );
    let quarantined = place.store.quarantined().read_dir_utf8().expect("there").next();
    let quarantined = quarantined.expect("one").expect("readable").into_path();
    assert_eq!(fs_err::read(quarantined.join("untrusted")).expect("kept"), b"dusk");
    let crate::event::Event::Notice { text, .. } = listener.recv().expect("told") else {
        panic!("no notice");
    };
    assert!(text.contains("has changed") && text.contains(quarantined.as_str()), "{text}");
    let again = place.adopt("demo", 1, b"disk");
    assert_eq!(
        place.store.find_intact(&name, &inputs, Pins::default(), None, &events).expect("whole"),
        Some(again)
    );
}

#[test]
fn an_image_whose_file_somebody_removed_is_not_there() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    fs_err::remove_file(image.path()).expect("removes");
    assert_eq!(place.find("demo", 1).expect("nothing is wrong"), None);
    assert_eq!(place.store.list().expect("lists"), []);
    let again = place.adopt("demo", 1, b"disk");
    assert_eq!(place.find("demo", 1).expect("whole"), Some(again));
}

#[test]
fn a_store_that_others_can_write_to_is_refused() {
    let place = place();
    fs_err::set_permissions(place.store.root(), Permissions::from_mode(0o777)).expect("chmod");
    let error = Store::open(place.store.root()).expect_err("open to all");
    assert!(error.report().contains("chmod go-w"), "{}", error.report());
}

#[test]
fn a_store_below_a_folder_that_others_can_write_to_is_refused() {
    let place = place();
    let above = Utf8Path::from_path(place.folder.path()).expect("UTF-8");
    fs_err::set_permissions(above, Permissions::from_mode(0o777)).expect("chmod");
    let error = Store::open(place.store.root()).expect_err("anybody could swap it");
    assert_eq!(error.kind(), Kind::Untrusted);
    assert!(error.report().contains(&format!("chmod go-w {above}")), "{}", error.report());
    fs_err::set_permissions(above, Permissions::from_mode(0o1777)).expect("chmod");
    Store::open(place.store.root()).expect("only its owner can swap what is in a sticky folder");
}

/// Puts other bytes in the place of an image, with a note that says how they look and that they are right.
fn forge(image: &VerifiedImage, bytes: &[u8]) {
    fs_err::write(image.path(), bytes).expect("writes");
    let (size, sha256, sha512) =
        crate::image::digest::size_and_digests(&image.path()).expect("reads");
    let stat = Stat::of(&image.path()).expect("is there");
    let content = Content { size, sha256, sha512, stat, ..image.content.clone() };
    record::write(&image.folder.join(Content::FILE), &content).expect("writes");
}

#[test]
fn an_image_whose_note_vouches_for_other_bytes_than_its_folder_is_named_after_is_refused() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    forge(&image, b"evil");
    let error = place.find("demo", 1).expect_err("it is another file");
    assert_eq!(error.kind(), Kind::Untrusted);
    assert_eq!(place.store.list().expect("lists"), [], "nobody is told that it is proven");
    let (name, inputs) = ("demo".parse().expect("a name"), Sha256::from_bytes([1; 32]));
    let found = place
        .store
        .find_intact(&name, &inputs, Pins::default(), None, &EventSink::silent())
        .expect("sets it aside");
    assert_eq!(found, None);
    let again = place.adopt("demo", 1, b"disk");
    assert_eq!(place.find("demo", 1).expect("whole"), Some(again));
}

#[test]
fn a_note_that_names_a_file_elsewhere_is_refused_and_that_file_stays() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    let mine = Utf8Path::from_path(place.folder.path()).expect("UTF-8").join("mine");
    fs_err::write(&mine, b"disk").expect("writes");
    let stat = Stat::of(&mine).expect("is there");
    let content = Content { file: "../../mine".into(), stat, ..image.content.clone() };
    record::write(&image.folder.join(Content::FILE), &content).expect("writes");
    assert_eq!(place.find("demo", 1).expect_err("is elsewhere").kind(), Kind::Untrusted);
    let (name, inputs) = ("demo".parse().expect("a name"), Sha256::from_bytes([1; 32]));
    let found = place
        .store
        .find_intact(&name, &inputs, Pins::default(), None, &EventSink::silent())
        .expect("sets it aside");
    assert_eq!(found, None);
    assert_eq!(fs_err::read(mine).expect("nobody moved it"), b"disk");
}

#[test]
fn everything_in_the_store_is_its_owners_alone() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    let mode = |path: &Utf8Path| fs_err::metadata(path).expect("there").mode() & 0o777;
    assert_eq!(mode(place.store.root()), 0o700);
    assert_eq!(mode(&image.folder), 0o700);
    assert_eq!(mode(&image.path()), 0o600);
    assert_eq!(mode(&image.folder.join(Content::FILE)), 0o600);
}

#[test]
fn an_interrupted_move_is_never_found_and_is_pruned() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    fs_err::remove_file(image.folder.join(Content::FILE)).expect("as if interrupted");
    assert_eq!(place.find("demo", 1).expect("whole"), None);
    let again = place.adopt("demo", 1, b"disk");
    assert_eq!(place.find("demo", 1).expect("whole"), Some(again));
    fs_err::create_dir(place.store.root().join("incoming-x")).expect("makes");
    let pruned = place.store.prune(Prune::Superseded, false).expect("prunes");
    assert_eq!(pruned.len(), 1);
    assert!(!place.store.root().join("incoming-x").exists());
}

#[test]
fn pruning_keeps_the_newest_and_what_a_lab_holds() {
    let place = place();
    let (old, held, new) =
        (place.adopt("demo", 1, b"a"), place.adopt("demo", 2, b"b"), place.adopt("demo", 3, b"c"));
    let lab = place.lab("state", "lab");
    place.store.hold(&held, &lab).expect("holds");
    let told = place.store.prune(Prune::Superseded, true).expect("tells");
    assert_eq!(told.iter().map(|one| &one.path).collect::<Vec<_>>(), [&old.folder]);
    assert!(old.path().exists(), "a dry run changed something");
    place.store.prune(Prune::Superseded, false).expect("prunes");
    assert!(!old.path().exists() && held.path().exists() && new.path().exists());
    place.store.prune(Prune::Unused, false).expect("prunes");
    assert!(held.path().exists() && !new.path().exists());
    assert_eq!(place.store.held(&lab).expect("lists"), [held]);
    place.store.release(&lab).expect("releases");
    place.store.prune(Prune::Unused, false).expect("prunes");
    assert_eq!(place.store.list().expect("lists"), []);
}

#[test]
fn a_lab_lets_go_of_its_own_images_and_not_of_those_of_a_namesake_elsewhere() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    let (mine, other) = (place.lab("state", "x"), place.lab("other", "x"));
    for lab in [&mine, &other] {
        place.store.hold(&image, lab).expect("holds");
    }
    place.store.release(&mine).expect("releases");
    assert_eq!(place.store.held(&mine).expect("lists"), []);
    assert_eq!(place.store.held(&other).expect("lists"), [image]);
    assert_eq!(place.store.prune(Prune::Unused, false).expect("prunes"), []);
}

#[test]
fn a_lab_is_the_same_one_whichever_way_leads_to_it() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    let lab = place.lab("state", "x");
    let link = Utf8Path::from_path(place.folder.path()).expect("UTF-8").join("link");
    std::os::unix::fs::symlink(lab.parent().expect("has one"), &link).expect("links");
    place.store.hold(&image, &link.join("x")).expect("holds");
    assert_eq!(place.store.held(&lab).expect("lists"), [image]);
    place.store.release(&link.join("x")).expect("releases");
    assert_eq!(place.store.held(&lab).expect("lists"), []);
}

#[test]
fn what_an_earlier_version_noted_by_a_labs_name_alone_is_held_until_that_lab_lets_go() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    fs_err::create_dir(image.folder.join(USERS)).expect("makes");
    fs_err::write(image.folder.join(USERS).join("x"), b"").expect("writes");
    let (lab, other) = (place.lab("state", "x"), place.lab("state", "y"));
    place.store.release(&other).expect("releases");
    assert_eq!(place.store.prune(Prune::Unused, false).expect("prunes"), []);
    assert_eq!(place.store.held(&lab).expect("lists"), [image]);
    place.store.release(&lab).expect("releases");
    assert_eq!(place.store.prune(Prune::Unused, false).expect("prunes").len(), 1);
}

#[test]
fn an_image_is_held_from_the_moment_it_is_in_the_store() {
    const ROUNDS: u8 = 50;
    let place = place();
    let lab = place.lab("state", "x");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                place.store.prune(Prune::Unused, false).expect("prunes");
            }
        });
        for round in 0..ROUNDS {
            let image = place.adopt_for("demo", round, &[round], Some(&lab));
            assert!(image.path().exists(), "pruned in round {round}");
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    assert_eq!(place.store.held(&lab).expect("lists").len(), usize::from(ROUNDS));
}

#[test]
fn an_image_that_was_pruned_since_it_was_found_is_not_held_but_said_to_be_gone() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    place.store.prune(Prune::Unused, false).expect("prunes");
    let error = place.store.hold(&image, &place.lab("state", "x")).expect_err("is gone");
    assert!(error.hints()[0].contains("again"), "{error:?}");
    assert!(!image.folder.exists(), "nothing of it comes back");
}

#[test]
fn who_needs_an_image_is_still_known_when_it_was_set_aside_and_got_anew() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    let lab = place.lab("state", "x");
    place.store.hold(&image, &lab).expect("holds");
    fs_err::write(image.path(), b"dusk").expect("writes");
    let (name, inputs) = ("demo".parse().expect("a name"), Sha256::from_bytes([1; 32]));
    let found =
        place.store.find_intact(&name, &inputs, Pins::default(), None, &EventSink::silent());
    assert_eq!(found.expect("sets it aside"), None);
    place.store.prune(Prune::Unused, false).expect("prunes");
    let again = place.adopt("demo", 1, b"disk");
    assert_eq!(place.store.held(&lab).expect("lists"), [again]);
}

#[test]
fn an_unfinished_download_is_pruned_unless_somebody_works_on_it() {
    let place = place();
    let unfinished = place.store.partial().join("unfinished");
    fs_err::create_dir(&unfinished).expect("makes");
    fs_err::write(unfinished.join("data"), b"half").expect("writes");
    let claim =
        DirLock::take(&place.store.locks(), &unfinished).expect("opens").expect("nobody has it");
    assert_eq!(place.store.prune(Prune::Unused, false).expect("prunes"), []);
    assert!(unfinished.join("data").exists(), "another run works on it");
    drop(claim);
    let pruned = place.store.prune(Prune::Unused, false).expect("prunes");
    assert_eq!(pruned.iter().map(|one| &one.path).collect::<Vec<_>>(), [&unfinished]);
    assert!(!unfinished.exists());
}

/// Makes a folder with something in it.
fn left(folder: Utf8PathBuf) -> Utf8PathBuf {
    fs_err::create_dir_all(&folder).expect("makes");
    fs_err::write(folder.join("disk"), b"gigabytes").expect("writes");
    folder
}

#[test]
fn what_killed_runs_left_is_swept_unless_somebody_works_on_it_or_can_go_on_with_it() {
    let place = place();
    let (image, busy) = (place.adopt("demo", 1, b"a"), place.adopt("demo", 2, b"b"));
    let partial = |name: &str| place.store.partial().join(name);
    let litter = [
        left(place.store.root().join("incoming-x")),
        left(image.derived().join("unfinished-x")),
        left(partial("built").join("work-x")),
        left(partial("earlier").join("work")),
    ];
    let kept = [left(busy.derived().join("unfinished-x")), left(partial("download"))];
    let claim = DirLock::take(&place.store.locks(), &busy.derived()).expect("opens");
    place.store.sweep();
    assert!(litter.iter().all(|folder| !folder.exists()), "{litter:?}");
    assert!(kept.iter().all(|folder| folder.exists()), "{kept:?}");
    assert!(!partial("built").exists(), "nothing of it is left to go on with");
    drop(claim.expect("nobody has it"));
    place.store.sweep();
    assert!(!kept[0].exists());
}

#[test]
fn an_image_that_is_being_converted_is_not_pruned_and_what_a_killed_conversion_left_is() {
    let place = place();
    let image = place.adopt("demo", 1, b"disk");
    let unfinished = left(image.derived().join("unfinished-x"));
    let claim = DirLock::take(&place.store.locks(), &image.derived()).expect("opens");
    assert_eq!(place.store.prune(Prune::Unused, false).expect("prunes"), []);
    drop(claim.expect("nobody has it"));
    let pruned = place.store.prune(Prune::Superseded, false).expect("prunes");
    assert_eq!(pruned.iter().map(|one| &one.path).collect::<Vec<_>>(), [&unfinished]);
    assert!(!unfinished.exists() && image.path().exists());
}

#[test]
fn the_quarantine_keeps_the_last_of_each_image_and_no_more() {
    let place = place();
    for (name, inputs, bytes) in
        [("demo", 1, b"dusk"), ("demo-two", 2, b"dawn"), ("demo", 1, b"noon")]
    {
        let image = place.adopt(name, inputs, &[inputs; 4]);
        fs_err::write(image.path(), bytes).expect("writes");
        let (name, key) = (name.parse().expect("a name"), Sha256::from_bytes([inputs; 32]));
        let found =
            place.store.find_intact(&name, &key, Pins::default(), None, &EventSink::silent());
        assert_eq!(found.expect("sets it aside"), None);
    }
    let kept = place.store.quarantined().read_dir_utf8().expect("there");
    let mut kept: Vec<Vec<u8>> = kept
        .map(|folder| fs_err::read(folder.expect("readable").path().join("untrusted")))
        .collect::<Result<_, _>>()
        .expect("kept");
    kept.sort();
    assert_eq!(kept, [b"dawn", b"noon"]);
}

#[test]
fn a_damaged_note_is_an_error_and_not_forgetfulness() {
    let place = place();
    place.adopt("demo", 1, b"disk");
    let note = place.store.note(&"demo".parse().expect("a name"));
    fs_err::write(&note, b"{").expect("writes");
    let error = place.find("demo", 1).expect_err("damaged");
    assert!(error.message().contains("damaged"), "{error}");
}

#[test]
fn a_manifest_finds_only_what_was_adopted_for_its_own_identity() {
    let place = place();
    let text = format!(
        "schema = 1\nname = \"demo\"\nversion = \"1\"\narch = \"x86_64\"\nformat = \"raw\"\n\
         urls = [\"https://example.org/a.raw\"]\nsha256 = \"{}\"\n",
        "0".repeat(64)
    );
    let manifest = Manifest::parse(&text, ManifestOrigin::Text("test".into())).expect("valid");
    place.adopt("demo", 1, b"disk");
    assert_eq!(place.store.find(&manifest).expect("whole"), None);
}
