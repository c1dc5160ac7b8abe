//! A disk that a guest was started with stays, whatever became of its definition.

use super::bench::{Bench, said};

/// A lab whose guest is off and has written to its disk.
fn used() -> Bench {
    let bench = Bench::new();
    bench.image("obedient", "img-a", "1", 1);
    bench.recipe("img-a", "memory = \"64MiB\"");
    bench.up(&[]);
    bench.nestlab.ok(&["down", "t1"]);
    bench.mark(&bench.disk());
    bench
}

#[test]
fn a_guest_whose_definition_is_missing_gets_it_back_and_keeps_its_disk() {
    let bench = used();
    std::fs::remove_file(bench.file("guest.json")).expect("was defined");
    let step = bench.step("g1/define");
    assert_eq!(step["state"], "needed", "{step}");
    assert!(!bench.to_do().contains(&"g1/place".to_owned()), "its disk is not put anew");
    bench.up(&[]);
    assert!(bench.is_marked(&bench.disk()), "its disk was put over");
    assert_eq!(bench.state(), "running");
}

#[test]
fn a_guest_whose_definition_is_damaged_gets_it_back_and_keeps_its_disk() {
    let bench = used();
    std::fs::write(bench.file("guest.json"), "{\"schema\":1,").expect("was defined");
    bench.up(&[]);
    assert!(bench.is_marked(&bench.disk()), "its disk was put over");
    assert_eq!(bench.state(), "running");
}

#[test]
fn a_running_guest_whose_definition_is_missing_goes_on_running() {
    let bench = Bench::new();
    bench.image("obedient", "img-a", "1", 1);
    bench.recipe("img-a", "memory = \"64MiB\"");
    bench.up(&[]);
    let pid = bench.pid();
    std::fs::remove_file(bench.file("guest.json")).expect("was defined");
    bench.up(&[]);
    assert_eq!(bench.pid(), pid, "it was started anew");
    assert_eq!(bench.to_do(), [""; 0]);
}

#[test]
fn a_guest_whose_disk_is_gone_is_stuck_and_says_the_way_out() {
    let bench = used();
    std::fs::remove_file(bench.disk()).expect("was there");
    let step = bench.step("g1/place");
    assert_eq!((&step["state"], &step["effect"]["kind"]), (&"stuck".into(), &"stuck".into()));
    let told = bench.refused(1, &[]);
    assert!(told.contains("nestlab destroy t1 g1"), "{told}");
    assert!(!bench.disk().exists(), "another disk was put in its place");
}

#[test]
fn a_guest_keeps_its_disk_though_its_definition_and_its_labs_machines_are_gone() {
    let bench = used();
    std::fs::remove_file(bench.file("guest.json")).expect("was defined");
    std::fs::remove_file(bench.nestlab.lab("t1").join("machines.json")).expect("was kept");
    let output = bench.run("up", &[]);
    let told = said(&output);
    assert!(output.status.success() || told.contains("nestlab destroy t1"), "{told}");
    assert!(bench.is_marked(&bench.disk()), "its disk was put over");
}

#[test]
fn a_lab_with_a_damaged_definition_can_be_destroyed_while_its_guest_runs() {
    let bench = Bench::new();
    bench.image("deaf", "img-a", "1", 1);
    bench.recipe("img-a", "memory = \"64MiB\"");
    bench.up(&[]);
    std::fs::write(bench.file("guest.json"), "{").expect("was defined");
    let output = bench.nestlab.run(&["destroy", "t1", "--yes"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(bench.processes(), [""; 0], "its QEMU still runs");
    assert!(!bench.nestlab.lab("t1").exists(), "its folder is left");
}

#[test]
fn a_definition_that_a_newer_nestlab_wrote_is_left_alone() {
    let bench = used();
    let text = std::fs::read_to_string(bench.file("guest.json")).expect("was defined");
    let newer = text.replacen("\"schema\": 1", "\"schema\": 999", 1);
    assert_ne!(newer, text);
    std::fs::write(bench.file("guest.json"), &newer).expect("is ours");
    let told = bench.refused(1, &[]);
    assert!(told.contains("newer"), "{told}");
    assert_eq!(std::fs::read_to_string(bench.file("guest.json")).expect("is there"), newer);
    assert!(bench.is_marked(&bench.disk()));
}

#[test]
fn a_disk_that_the_journal_does_not_know_is_not_put_over() {
    let bench = used();
    std::fs::remove_file(bench.file("guest.json")).expect("was defined");
    std::fs::write(bench.nestlab.lab("t1").join("journal.jsonl"), "").expect("is ours");
    bench.refused(1, &[]);
    assert!(bench.is_marked(&bench.disk()), "its disk was put over");
}
