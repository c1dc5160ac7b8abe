//! Another image for a guest that exists: told, and made only on request; the old disk stays until the new
//! guest is up.

use super::bench::Bench;

/// A lab whose guest runs from `img-a` version 1, and whose recipe then wants `img-b` version 2.
fn differing() -> Bench {
    let bench = Bench::new();
    bench.image("obedient", "img-a", "1", 1);
    bench.recipe("img-a", "memory = \"64MiB\"");
    bench.up(&[]);
    bench.image("obedient", "img-b", "2", 2);
    bench.recipe("img-b", "memory = \"64MiB\"");
    bench
}

/// Marks the disk of the guest, which runs, as its own.
fn mark(bench: &Bench) {
    bench.nestlab.ok(&["down", "t1"]);
    bench.mark(&bench.disk());
}

/// The folders in which former disks are kept.
fn kept(bench: &Bench) -> Vec<std::path::PathBuf> {
    let folder = std::fs::read_dir(bench.file("")).expect("the guest's folder");
    let paths = folder.map(|entry| entry.expect("reads").path());
    paths.filter(|path| path.display().to_string().contains("/replaced-")).collect()
}

/// What `status` says that the guest's image differs by.
fn outdated(bench: &Bench) -> serde_json::Value {
    bench.nestlab.json(&["status", "t1"])["labs"][0]["guests"][0]["outdated"].clone()
}

#[test]
fn another_image_is_told_and_neither_got_nor_claimed_and_the_guest_runs_on() {
    let bench = differing();
    let pid = bench.pid();
    let step = bench.step("g1/place");
    assert_eq!(step["effect"]["kind"], "keep", "{step}");
    assert!(step["why"].as_str().expect("a reason").contains("img-a 1 → img-b 2"), "{step}");
    let told = bench.up(&[]);
    assert!(told.contains("img-a 1 → img-b 2") && told.contains("--replace g1"), "{told}");
    assert!(!told.contains("download and verify img-b"), "{told}");
    assert!(!bench.was_asked_for("img-b", "2"), "it was got for nothing");
    assert_eq!(bench.pid(), pid);
    assert_eq!(outdated(&bench), "img-a 1 → img-b 2");
    assert!(bench.nestlab.ok(&["status", "t1"]).contains("image: img-a 1 → img-b 2"));
    // Nor does the recipe that is kept in the lab make it forget.
    assert_eq!(bench.step("g1/place")["effect"]["kind"], "keep");
}

#[test]
fn a_guest_keeps_its_disk_though_the_recipe_wants_a_cd() {
    let bench = differing();
    let pid = bench.pid();
    let manifest = bench.path("img-b.toml");
    let text = std::fs::read_to_string(&manifest).expect("was written");
    std::fs::write(&manifest, text.replace("\"raw\"", "\"iso\"")).expect("is ours");
    assert_eq!(bench.step("g1/place")["effect"]["kind"], "keep");
    assert_eq!(bench.to_do(), [""; 0]);
    bench.up(&[]);
    assert_eq!(bench.pid(), pid);
}

#[test]
fn at_a_terminal_a_no_keeps_the_disk_and_a_yes_replaces_it() {
    let bench = differing();
    mark(&bench);
    let told = bench.up_at_a_terminal("n\n");
    assert!(told.contains("replace the disk of g1? [y/N]"), "{told}");
    assert!(bench.is_marked(&bench.disk()), "it was replaced");
    bench.up_at_a_terminal("y\n");
    assert!(!bench.is_marked(&bench.disk()), "it has the old disk");
    assert!(kept(&bench).is_empty());
}

#[test]
fn another_version_and_another_digest_are_differences_too() {
    let bench = Bench::new();
    bench.image("obedient", "img", "1", 1);
    bench.recipe("img", "memory = \"64MiB\"");
    bench.up(&[]);
    bench.image("obedient", "img", "1", 9);
    let why = bench.step("g1/place")["why"].to_string();
    assert!(why.contains("img 1: SHA-256"), "{why}");
    bench.image("obedient", "img", "2", 2);
    let why = bench.step("g1/place")["why"].to_string();
    assert!(why.contains("img 1 → 2"), "{why}");
}

#[test]
fn a_lab_of_an_older_nestlab_tells_its_images_by_what_it_holds_in_the_store() {
    let bench = differing();
    let journal = bench.nestlab.lab("t1").join("journal.jsonl");
    let text = std::fs::read_to_string(&journal).expect("is there");
    let older: String = text
        .lines()
        .filter(|line| !line.contains("made-from"))
        .flat_map(|line| [line, "\n"])
        .collect();
    assert_ne!(older, text);
    std::fs::write(&journal, older).expect("is ours");
    let why = bench.step("g1/place")["why"].to_string();
    assert!(why.contains("img-a 1 → img-b 2"), "{why}");
    std::fs::remove_dir_all(bench.nestlab.cache()).expect("is ours");
    let step = bench.step("g1/place");
    assert!(step["why"].as_str().expect("a reason").contains("is not known"), "{step}");
    assert_eq!(step["effect"]["kind"], "keep");
    assert!(!bench.plan()["steps"].to_string().contains("download and verify img-b"));
}

#[test]
fn a_disk_is_replaced_on_request_and_the_old_one_goes_once_the_new_guest_is_up() {
    let bench = differing();
    mark(&bench);
    let step = bench.nestlab.json(&["plan", bench.path("t1.toml").as_str(), "--replace", "g1"]);
    let step =
        step["steps"].as_array().expect("steps").iter().find(|step| step["id"] == "g1/place");
    assert_eq!(step.expect("is there")["effect"]["kind"], "replace");
    bench.up(&["--replace", "g1"]);
    assert!(!bench.is_marked(&bench.disk()), "it has the old disk");
    assert_eq!(bench.state(), "running");
    assert!(kept(&bench).is_empty());
    assert_eq!(bench.to_do(), [""; 0]);
    assert_eq!(bench.step("g1/place")["effect"], serde_json::Value::Null, "nothing differs now");
    assert_eq!(outdated(&bench), serde_json::Value::Null);
    bench.nestlab.ok(&["destroy", "t1", "--yes"]);
    assert!(!bench.nestlab.lab("t1").exists());
}

#[test]
fn an_image_that_cannot_be_got_costs_nothing() {
    let bench = differing();
    let pid = bench.pid();
    bench.unpublish("img-b", "2");
    bench.refused(5, &["--allow", "replace"]);
    assert_eq!(bench.pid(), pid, "it was stopped for nothing");
    assert!(kept(&bench).is_empty());
}

#[test]
fn a_new_guest_that_does_not_come_up_leaves_the_old_disk_where_it_is_said() {
    let bench = differing();
    mark(&bench);
    bench.image("panicking", "img-b", "2", 2);
    let told = bench.refused(6, &["--replace", "g1"]);
    let folder = kept(&bench).pop().expect("the old disk is kept");
    assert!(told.contains(&folder.display().to_string()), "{told}");
    assert!(bench.is_marked(&folder.join("disk.qcow2")));
    // A second try that ends well removes it.
    bench.image("obedient", "img-b", "3", 3);
    bench.up(&["--replace", "g1"]);
    assert!(kept(&bench).is_empty());
}

#[test]
fn a_replacement_that_was_killed_at_any_moment_goes_on_and_loses_nothing() {
    let bench = differing();
    mark(&bench);
    let mut ended = false;
    for point in (3..90).step_by(6) {
        // Once it was begun, a plain `up` goes on with it.
        let begun = bench.records().contains(&"replacing".to_owned());
        let args: &[&str] = if begun { &[] } else { &["--replace", "g1"] };
        ended = bench.up_with(&format!("kill@{point}"), args);
        let records = bench.records();
        let replaced = records.iter().rposition(|record| record == "replaced");
        let is_up = replaced.is_some_and(|at| records[at..].contains(&"ready".to_owned()));
        let kept = kept(&bench).into_iter().map(|folder| folder.join("disk.qcow2"));
        let mut disks = kept.chain([bench.disk()]).filter(|disk| disk.exists());
        assert!(is_up || disks.any(|disk| bench.is_marked(&disk)), "lost at {point}");
        if ended {
            break;
        }
    }
    assert!(ended, "it never came to its end");
    assert!(kept(&bench).is_empty());
    assert!(!bench.is_marked(&bench.disk()), "it has the old disk");
    assert_eq!(bench.to_do(), [""; 0]);
}
