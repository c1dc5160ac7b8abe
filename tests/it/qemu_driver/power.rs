//! Starting, stopping, dying.

use std::os::unix::process::CommandExt;
use std::process::Command as Program;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use nestlab::Kind;
use nestlab::hypervisor::{GuestSpec, Hypervisor, Media, Power, Stop, VmOrigin};
use serde_json::Value;

use super::bench::{Bench, GRACE, alive, qmp, until};
use crate::support::boot_sector;

#[tokio::test]
async fn a_guest_is_defined_and_started_once_and_what_is_as_wanted_stays() {
    let bench = Bench::new("obedient").await;
    assert_eq!(bench.inspect().await, None);
    bench.start().await;
    bench.up(1).await;
    let pid = bench.pid().await;
    bench.define().await;
    bench.try_start().await.expect("is running");
    assert_eq!(bench.pid().await, pid, "it was started anew");
    bench.stop(GRACE).await;
    assert!(!alive(pid));
    bench.stop(GRACE).await;
}

#[tokio::test]
async fn a_guest_that_obeys_its_power_button_shuts_itself_down() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    let mut qmp = qmp(&bench).await;
    qmp.execute("system_powerdown", Value::Null).await.expect("is pressed");
    qmp.closed().await;
    until("it is off", async || bench.power().await == Power::Off).await;
    let why = bench.qemu.down_because(bench.host(), &bench.spec).await.expect("can be asked");
    assert!(why.is_none(), "it shut itself down: {why:?}");
}

#[tokio::test]
async fn the_plug_is_pulled_on_a_guest_that_does_not_hear() {
    let bench = Bench::new("deaf").await;
    bench.start().await;
    bench.up(1).await;
    let pid = bench.pid().await;
    bench.stop(Stop::Graceful(Duration::from_millis(100))).await;
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_power_button_pressed_too_early_is_pressed_again() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    // The firmware is still at work and hears nothing.
    bench.stop(GRACE).await;
    let why = bench.qemu.down_because(bench.host(), &bench.spec).await.expect("can be asked");
    assert!(why.is_none(), "{why:?}");
}

#[tokio::test]
async fn a_paused_guest_is_shut_down_like_any_other() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    qmp(&bench).await.execute("stop", Value::Null).await.expect("pauses");
    assert_eq!(bench.power().await, Power::Paused);
    bench.stop(GRACE).await;
}

#[tokio::test]
async fn a_process_that_got_the_old_process_id_is_neither_taken_for_the_guest_nor_harmed() {
    let bench = Bench::new("obedient").await;
    bench.define().await;
    let mut other = Program::new("sleep").arg("1000").spawn().expect("sleeps");
    std::fs::write(bench.spec.directory.join("pid"), format!("{}\n", other.id())).expect("writes");
    assert_eq!(bench.power().await, Power::Off);
    bench.stop(Stop::PowerOff).await;
    assert!(other.try_wait().expect("a child").is_none(), "it was killed");
    other.kill().expect("ends");
    other.wait().expect("ends");
    bench.start().await;
}

/// Set in the process that starts a guest and is killed then.
const STARTER: &str = "NESTLAB_TEST_STARTER";

#[tokio::test]
async fn a_guest_outlives_the_process_that_started_it() {
    if let Ok(directory) = std::env::var(STARTER) {
        let mut bench = Bench::new("obedient").await;
        let disk = bench.spec.directory.join("disk.qcow2");
        let directory = Utf8PathBuf::from(directory);
        std::fs::rename(disk, directory.join("disk.qcow2")).expect("moves the disk");
        bench.spec = at(&bench.spec, &directory);
        bench.start().await;
        std::fs::write(directory.join("started"), "").expect("tells");
        std::future::pending::<()>().await;
    }
    let mut bench = Bench::new("obedient").await;
    std::fs::remove_file(bench.spec.directory.join("disk.qcow2")).expect("the starter makes one");
    bench.spec = at(&bench.spec, &bench.spec.directory.clone());
    let mut starter = Program::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "qemu_driver::power::a_guest_outlives_the_process_that_started_it"])
        .env(STARTER, &bench.spec.directory)
        .process_group(0)
        .spawn()
        .expect("starts");
    let started = bench.spec.directory.join("started");
    until("the starter has started the guest", async || {
        assert!(starter.try_wait().expect("a child").is_none(), "the starter ended");
        started.exists()
    })
    .await;
    let group = rustix::process::Pid::from_child(&starter);
    for signal in [rustix::process::Signal::HUP, rustix::process::Signal::KILL] {
        rustix::process::kill_process_group(group, signal).expect("is a group");
    }
    starter.wait().expect("ends");
    assert_eq!(bench.power().await, Power::Running);
    bench.up(1).await;
    bench.stop(GRACE).await;
}

/// Returns `spec` with everything in `directory`.
fn at(spec: &GuestSpec, directory: &Utf8Path) -> GuestSpec {
    GuestSpec {
        directory: directory.to_owned(),
        origin: VmOrigin::Made(Media::Disk(directory.join("disk.qcow2"))),
        ..spec.clone()
    }
}

#[tokio::test]
async fn qemu_that_ends_at_once_is_an_error_in_qemus_words() {
    let bench = Bench::new("obedient").await;
    bench.define().await;
    std::fs::write(bench.spec.directory.join("disk.qcow2"), "<html>").expect("writes");
    let error = bench.try_start().await.expect_err("no disk");
    assert_eq!((error.kind(), error.host()), (Kind::Failed, Some("L0")));
    assert!(error.output_tail().is_some_and(|tail| tail.contains("qcow2")), "{error:?}");
}

#[tokio::test]
async fn a_guest_that_panics_has_crashed_and_starts_anew() {
    let bench = Bench::new("panicking").await;
    bench.define().await;
    bench.try_start().await.expect("starts");
    until("it has panicked", async || matches!(bench.power().await, Power::Crashed(_))).await;
    let why = bench.qemu.down_because(bench.host(), &bench.spec).await.expect("can be asked");
    assert!(why.expect("it crashed").message().contains("panicked"));
    let pid = bench.pid().await;
    bench.try_start().await.expect("starts anew");
    assert!(!alive(pid));
    bench.stop(Stop::PowerOff).await;
}

#[tokio::test]
async fn a_qemu_that_is_killed_is_told_from_one_that_ended() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    let pid = bench.pid().await.to_string();
    boot_sector::run(Program::new("kill").args(["-KILL", &pid]));
    until("it is off", async || bench.power().await == Power::Off).await;
    let why = bench.qemu.down_because(bench.host(), &bench.spec).await.expect("can be asked");
    assert!(why.expect("it was killed").message().contains("killed or crashed"));
    bench.start().await;
    bench.stop(Stop::PowerOff).await;
    let why = bench.qemu.down_because(bench.host(), &bench.spec).await.expect("can be asked");
    assert!(why.is_none(), "it was stopped: {why:?}");
}
