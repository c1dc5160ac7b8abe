use super::*;
use crate::image::manifest::Origin;

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
        let built = Built {
            file: &self.file(content),
            file_name: "disk.qcow2",
            format: ImageFormat::Qcow2,
            version: "1",
            inputs: Sha256::from_bytes([inputs; 32]),
            record: serde_json::json!({"packages": {}}),
        };
        self.store.adopt_built(&name.parse().expect("a name"), &built).expect("adopts")
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
    let feed = Feed::new(move |event| told.send(event).expect("is listened to"));
    let (name, inputs) = ("demo".parse().expect("a name"), Sha256::from_bytes([1; 32]));
    assert_eq!(place.store.find_intact(&name, &inputs, &feed).expect("sets it aside"), None);
    let quarantined = place.store.quarantined().read_dir_utf8().expect("there").next();
    let quarantined = quarantined.expect("one").expect("readable").into_path();
    assert_eq!(fs_err::read(quarantined.join("untrusted")).expect("kept"), b"dusk");
    let crate::event::Event::Notice { text, .. } = listener.recv().expect("told") else {
        panic!("no notice");
    };
    assert!(text.contains("has changed") && text.contains(quarantined.as_str()), "{text}");
    let again = place.adopt("demo", 1, b"disk");
    assert_eq!(place.store.find_intact(&name, &inputs, &feed).expect("whole"), Some(again));
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
    let lab = "lab".parse().expect("a name");
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
fn an_unfinished_download_is_pruned_unless_somebody_works_on_it() {
    let place = place();
    let unfinished = place.store.partial().join("unfinished");
    fs_err::create_dir(&unfinished).expect("makes");
    fs_err::write(unfinished.join("data"), b"half").expect("writes");
    let claim = Claim::take(&unfinished).expect("opens").expect("nobody has it");
    assert_eq!(place.store.prune(Prune::Unused, false).expect("prunes"), []);
    assert!(unfinished.join("data").exists(), "another run works on it");
    drop(claim);
    let pruned = place.store.prune(Prune::Unused, false).expect("prunes");
    assert_eq!(pruned.iter().map(|one| &one.path).collect::<Vec<_>>(), [&unfinished]);
    assert!(!unfinished.exists());
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
    let manifest = Manifest::parse(&text, Origin::Text("test".into())).expect("valid");
    place.adopt("demo", 1, b"disk");
    assert_eq!(place.store.find(&manifest).expect("whole"), None);
}
