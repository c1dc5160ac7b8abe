//! What counts as evidence that a guest is up, and what as its end, through the real driver.

use nestlab::event::EventSink;
use nestlab::guest::ExecContext;
use nestlab::guest::readiness::{self, Evidence, VmView};
use nestlab::hypervisor::{Hypervisor as _, Stop};
use nestlab::recipe::Readiness;
use nestlab::{Error, Kind};
use tokio_util::sync::CancellationToken;

use super::bench::Bench;
use crate::support::boot_sector::run;

/// Works on the guest of `bench` as seen from outside.
async fn seen<T>(bench: &Bench, work: impl AsyncFnOnce(ExecContext<'_>, VmView<'_>) -> T) -> T {
    let (events, cancel) = (EventSink::silent(), CancellationToken::new());
    let site = ExecContext {
        host: bench.host(),
        patience: bench.probe.patience,
        events: &events,
        cancel: &cancel,
    };
    let outside = VmView { host: bench.host(), hypervisor: &bench.qemu, spec: &bench.spec };
    work(site, outside).await
}

/// Waits until the guest of `bench` shows this evidence, or has none to show.
async fn wait(bench: &Bench, ready: &Readiness) -> Result<Evidence, Error> {
    seen(bench, async |site, outside| readiness::wait(site, outside, ready).await).await
}

fn says_up() -> Readiness {
    Readiness::Serial { pattern: "^up$".to_owned() }
}

/// Asserts that waiting for `ready` ends with the guest's own trouble, and returns the error's words.
async fn is_stuck(bench: &Bench, ready: &Readiness) -> String {
    let error = wait(bench, ready).await.expect_err("goes no further");
    assert_eq!(error.kind(), Kind::NotReady, "{error:?}");
    error.message().to_owned()
}

#[tokio::test]
async fn what_a_guest_said_before_its_last_start_is_no_evidence() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    wait(&bench, &says_up()).await.expect("it says that it is up");
    bench.stop(Stop::PowerOff).await;
    // The same VM with a disk that says nothing.
    let disk = bench.spec.directory.join("disk.qcow2");
    run(std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&disk)
        .arg("1M"));
    bench.start().await;
    let look = seen(&bench, async |site, outside| {
        readiness::look(site, outside, &says_up()).await.expect("looks")
    });
    assert_eq!(look.await, None);
    assert_eq!(std::fs::read_to_string(bench.qemu.serial_log(&bench.spec)).expect("is there"), "");
    let before = bench.spec.directory.join("serial.log.old");
    assert_eq!(std::fs::read_to_string(before).expect("is kept"), "up\n");
    bench.stop(Stop::PowerOff).await;
}

#[tokio::test]
async fn a_kernel_that_panics_on_its_serial_console_is_not_waited_for() {
    let bench = Bench::new("panicked").await;
    bench.start().await;
    let words = is_stuck(&bench, &says_up()).await;
    assert!(words.starts_with("its kernel panicked") && words.contains("VFS"), "{words}");
    bench.stop(Stop::PowerOff).await;
}

#[tokio::test]
async fn a_prompt_of_grubs_on_the_screen_is_told_and_no_picture_of_a_system() {
    let bench = Bench::new("rescued").await;
    bench.start().await;
    let words = is_stuck(&bench, &Readiness::Screen).await;
    assert!(words.contains("GRUB") && words.contains("grub rescue>"), "{words}");
    bench.stop(Stop::PowerOff).await;
}

#[tokio::test]
async fn a_firmware_that_finds_nothing_to_start_is_told() {
    let bench = Bench::new("obedient").await;
    let disk = bench.spec.directory.join("disk.qcow2");
    run(std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&disk)
        .arg("1M"));
    bench.start().await;
    let words = is_stuck(&bench, &Readiness::Screen).await;
    assert!(words.contains("its firmware finds nothing to start"), "{words}");
    bench.stop(Stop::PowerOff).await;
}
