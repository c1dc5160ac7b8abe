//! What is on disk from before: a lab of nestlab 0.1.0, one of a version that does not exist yet, and records
//! that were damaged. Read, refused or made up for; never cut, never overwritten.

use std::fs;
use std::io::Write as _;

use crate::support::golden::{Golden, Ran};

const NEWER: [&str; 3] = [
    r#"{"schema":2,"at":"2030-01-01T00:00:00Z","run":9,"record":"creating","resource":{"kind":"wormhole"}}"#,
    r#"{"schema":1,"at":"2030-01-01T00:00:00Z","run":9,"record":"teleported","guest":"g1"}"#,
    r#"{"schema":1,"at":"2030-01-01T00:00:00Z","run":9,"record":"creating","resource":{"kind":"vm","host":"L0","guest":"g9","hypervisor":"bhyve","vm":"x","directory":"/x"}}"#,
];

/// Adds `line` to the journal.
fn append(golden: &Golden, line: &str) {
    let journal = fs::File::options().append(true).open(golden.file("journal.jsonl"));
    writeln!(journal.expect("opens"), "{line}").expect("writes");
}

/// Makes garbage of the line that says that the VM is about to be made; returns its number.
fn break_creating(golden: &Golden) -> String {
    let journal = golden.read("journal.jsonl");
    let (number, line) = (1..)
        .zip(journal.lines())
        .find(|(_, line)| line.contains(r#""record":"creating""#))
        .expect("the VM was recorded");
    golden.change("journal.jsonl", line, &line.replace("record", "rec\u{0}rd"));
    number.to_string()
}

/// Returns the steps of `nestlab plan` that are not satisfied.
fn to_do(golden: &Golden) -> Vec<String> {
    let plan = golden.json(&["plan", &golden.recipe()]);
    let steps = plan["steps"].as_array().expect("steps").iter();
    let open = steps.filter(|step| step["state"] != "satisfied");
    open.map(|step| step["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn a_lab_of_the_first_version_is_looked_at_started_and_destroyed() {
    let golden = Golden::new();
    let (journal, machines) = (golden.read("journal.jsonl"), golden.read("machines.json"));
    assert_eq!(golden.power(), "off");
    assert!(golden.ok(&["logs"]).contains("g1"), "its log is shown");
    assert_eq!(
        to_do(&golden),
        ["g1/start", "g1/ready"],
        "its disk and its VM are as they should be"
    );
    assert_eq!(golden.read("journal.jsonl"), journal, "who looks writes nothing");
    golden.up();
    assert!(golden.read("journal.jsonl").starts_with(&journal), "the old records stay");
    assert!(golden.read("machines.json").len() >= machines.len());
    golden.ok(&["destroy", "golden", "--yes"]);
    assert_eq!((golden.qemus(), golden.lab().exists()), (vec![], false));
}

#[test]
fn what_a_newer_version_wrote_is_shown_and_by_no_command_changed() {
    for line in NEWER {
        let golden = Golden::new();
        append(&golden, line);
        let files = ["journal.jsonl", "machines.json", "recipe.toml"];
        let before = files.map(|file| golden.read(file));
        let recipe = golden.recipe();
        for command in [
            &["up", &recipe][..],
            &["down"],
            &["destroy", "--yes"],
            &["destroy", "golden", "--yes"],
        ] {
            golden.run(command).refused(1, &["newer nestlab", "use that version"]);
            assert_eq!(files.map(|file| golden.read(file)), before, "{command:?}");
        }
        let shown = golden.ok(&["status"]);
        assert!(shown.contains("off") && shown.contains("newer nestlab wrote line 18"), "{shown}");
        assert!(golden.file("disks/g1/disk.qcow2").exists());
        // Where no newer one ever was, the way out that is told is one.
        let refused = golden.run(&["destroy", "--yes"]).said;
        let (_, hint) = refused.split_once("(sed ").expect("a way out is told");
        let (mark, _) = hint.split_once(')').expect("the command ends");
        let sed = std::process::Command::new("sh").args(["-c", &format!("sed {mark}")]).status();
        assert!(sed.expect("sh runs").success());
        golden.ok(&["destroy", "--yes"]);
        assert!(!golden.lab().exists());
    }
}

#[test]
fn machines_of_a_newer_version_are_refused_and_hide_no_other_lab() {
    let golden = Golden::new();
    fs::write(golden.file("machines.json"), r#"{"schema":2,"fleet":{}}"#).expect("writes");
    let other = golden.state().join("labs/other");
    fs::create_dir(&other).expect("makes");
    fs::write(other.join("recipe.toml"), "").expect("writes");
    let recipe = golden.recipe();
    for command in [&["up", &recipe][..], &["down", "golden"], &["destroy", "golden", "--yes"]] {
        golden.run(command).refused(1, &["newer nestlab", "use that version"]);
        assert_eq!(golden.read("machines.json"), r#"{"schema":2,"fleet":{}}"#);
    }
    let shown = golden.ok(&["status"]);
    assert!(shown.contains("golden") && shown.contains("other"), "{shown}");
    assert!(shown.contains("machines.json was written by a newer nestlab"), "{shown}");
}

#[test]
fn damage_is_told_by_every_command_and_destroy_still_finds_what_runs() {
    let golden = Golden::new();
    golden.up();
    let mut line = break_creating(&golden);
    let damaged = golden.read("journal.jsonl");
    for command in [&["status"][..], &["plan", &golden.recipe()], &["down"], &["destroy", "--yes"]]
    {
        if command[0] == "destroy" {
            assert!(golden.read("journal.jsonl").starts_with(&damaged), "the damage was touched");
            golden.ok(&["up", &golden.recipe()]);
            // What was made up for is lost again.
            line = break_creating(&golden);
        }
        let said = golden.ok(command);
        let told = said.lines().find(|line| line.contains("journal.jsonl is damaged: line"));
        let told = told.unwrap_or_else(|| panic!("{command:?}: {said}"));
        assert!(
            told.ends_with(&format!("{line} is no record"))
                || told.ends_with(&format!("{line} are no record")),
            "{command:?}: {said}"
        );
    }
    assert_eq!((golden.qemus(), golden.lab().exists()), (vec![], false));
}

#[test]
fn a_guest_that_neither_journal_nor_machines_tell_of_is_found_by_its_folder() {
    let golden = Golden::new();
    golden.up();
    break_creating(&golden);
    fs::write(golden.file("machines.json"), "{").expect("writes");
    let journal: String = golden
        .read("journal.jsonl")
        .lines()
        .filter(|line| !line.contains(r#""record":"blueprint""#))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(golden.file("journal.jsonl"), journal).expect("writes");
    let recipe = golden.recipe();
    let refused = golden.run(&["up", &recipe]);
    refused.refused(1, &["is damaged, and so are its machines", "nestlab destroy golden"]);
    assert_eq!(golden.qemus().len(), 1, "a refusal ends nothing");
    let said = golden.ok(&["destroy", "golden", "--yes"]);
    assert!(said.contains("nestlab-golden-g1 is on L0, and no record tells of it"), "{said}");
    assert_eq!((golden.qemus(), golden.lab().exists()), (vec![], false));
}

#[test]
fn a_vm_whose_definition_is_gone_ends_with_its_lab() {
    let golden = Golden::new();
    golden.up();
    fs::remove_file(golden.file("disks/g1/guest.json")).expect("is there");
    golden.ok(&["destroy", "golden", "--yes"]);
    assert_eq!((golden.qemus(), golden.lab().exists()), (vec![], false));
}

#[test]
fn a_lab_is_not_removed_while_a_qemu_works_on_its_disks() {
    let golden = Golden::new();
    golden.up();
    // Neither its definition nor its process id is there to find it by.
    for file in ["guest.json", "pid"] {
        fs::remove_file(golden.file(&format!("disks/g1/{file}"))).expect("is there");
    }
    let pid = golden.qemus()[0].to_string();
    let refused = golden.run(&["destroy", "golden", "--yes"]);
    refused.refused(1, &["QEMU still works on disks of the lab golden", &format!("kill {pid}")]);
    assert!(golden.file("journal.jsonl").exists());
    assert!(std::process::Command::new("kill").arg(&pid).status().expect("runs").success());
    while !golden.qemus().is_empty() {
        std::thread::yield_now();
    }
    golden.ok(&["destroy", "golden", "--yes"]);
    assert!(!golden.lab().exists());
}

#[test]
fn machines_that_are_lost_are_told_by_the_journal() {
    for lose in [
        |golden: &Golden| {
            fs::write(golden.file("machines.json"), "{\"schema\":1,").expect("writes")
        },
        |golden: &Golden| fs::remove_file(golden.file("machines.json")).expect("is there"),
    ] {
        let golden = Golden::new();
        let machines = golden.read("machines.json");
        lose(&golden);
        // The journal of 0.1.0 has the VM's name and folder, and no more.
        let shown = golden.ok(&["status"]);
        assert!(
            shown.contains("off") && shown.contains("the journal tells what was in it"),
            "{shown}"
        );
        golden.ok(&["down"]);
        golden.up();
        let again = golden.read("machines.json");
        assert_eq!(again.contains("nestlab-golden-g1"), machines.contains("nestlab-golden-g1"));
        let aside = golden.file("machines.json.damaged");
        assert!(
            fs::read_to_string(aside).is_ok_and(|text| text == "{\"schema\":1,")
                || !golden.file("machines.json.damaged").exists()
        );
        // Today's has all of it.
        lose(&golden);
        assert_eq!(golden.power(), "running");
        let unchanged = golden.ok(&["up", &golden.recipe()]);
        assert!(unchanged.contains("nothing to do"), "{unchanged}");
        assert_eq!(golden.read("machines.json"), again);
        lose(&golden);
        golden.ok(&["destroy", "golden", "--yes"]);
        assert_eq!((golden.qemus(), golden.lab().exists()), (vec![], false));
    }
}

#[test]
fn machines_that_would_not_change_are_not_written() {
    use std::os::unix::fs::MetadataExt as _;
    let golden = Golden::new();
    golden.up();
    let inode = || fs::metadata(golden.file("machines.json")).expect("is there").ino();
    let before = inode();
    let recorded = golden.read("journal.jsonl").matches(r#""record":"blueprint""#).count();
    golden.ok(&["up", &golden.recipe()]);
    let again = golden.read("journal.jsonl").matches(r#""record":"blueprint""#).count();
    assert_eq!((inode(), again, recorded), (before, 1, 1));
}

/// What gives a program a PID namespace of its own.
fn elsewhere() -> Vec<&'static str> {
    let mut unshare = vec!["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    if !rustix::process::geteuid().is_root() {
        unshare.extend(["--user", "--map-root-user"]);
    }
    unshare
}

#[test]
fn a_lab_of_another_container_can_be_looked_at_and_not_acted_on() {
    let golden = Golden::new();
    golden.up();
    let there = |args: &[&str]| Ran::of(golden.command_in(&elsewhere(), args));
    let recipe = golden.recipe();
    let journal = golden.read("journal.jsonl");
    for command in [&["destroy", "--yes"][..], &["down"], &["up", &recipe]] {
        there(command).refused(3, &["may run in another container", "nestlab status golden"]);
        assert_eq!(golden.qemus().len(), 1, "{command:?}");
        assert_eq!(golden.read("journal.jsonl"), journal, "{command:?}");
    }
    there(&["gc", "--yes"]);
    assert!(golden.lab().exists());
    for command in [&["status"][..], &["plan", &recipe]] {
        let looked = there(command);
        assert_eq!(looked.code, Some(0), "{}", looked.said);
        assert!(looked.said.contains("may run in another container"), "{}", looked.said);
    }
    assert_eq!(there(&["logs"]).code, Some(0));
    assert_eq!(golden.power(), "running", "at home all is as before");
    golden.ok(&["down"]);
    assert_eq!(there(&["destroy", "--yes"]).code, Some(0), "what is off is off everywhere");
    assert!(!golden.lab().exists());
}

#[test]
fn a_copy_of_a_lab_ends_nothing_of_the_lab_and_a_moved_one_is_the_lab() {
    let golden = Golden::new();
    golden.up();
    let copy = golden.lab().with_file_name("backup");
    let cp = std::process::Command::new("cp").arg("-a").args([golden.lab(), copy.clone()]).status();
    assert!(cp.expect("cp runs").success());
    for command in [&["destroy", "backup", "--yes"][..], &["down", "backup"]] {
        let way_out = format!("rm -r {copy}");
        golden.run(command).refused(2, &["is a copy of the one in", &way_out]);
        assert_eq!(golden.qemus().len(), 1, "{command:?}");
    }
    let shown = golden.ok(&["status", "backup"]);
    assert!(shown.contains("is a copy of"), "{shown}");
    fs::remove_dir_all(&copy).expect("the way out");

    let moved = golden.root.join("moved");
    fs::rename(golden.state(), &moved).expect("moves");
    let there = |args: &[&str]| Ran::of(golden.command_at(&moved, &[], args));
    let shown = there(&["status"]);
    assert!(shown.said.contains("g1 ") && shown.said.contains("up"), "{}", shown.said);
    assert!(!shown.said.contains("unknown"), "{}", shown.said);
    assert_eq!(there(&["destroy", "golden", "--yes"]).code, Some(0));
    assert_eq!((golden.qemus(), moved.join("labs/golden").exists()), (vec![], false));
}
