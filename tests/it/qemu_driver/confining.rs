//! What a QEMU may do, and who may look.

use std::os::unix::fs::PermissionsExt;
use std::process::Command as Program;

use nestlab::hypervisor::{Hypervisor, Power, Stop};

use super::bench::Bench;
use crate::support::boot_sector;

#[tokio::test]
async fn a_qemu_started_by_root_is_root_no_more() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", bench.pid().await)).expect("runs");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("is told");
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Seccomp:"), ["2"], "the system call filter is on");
    if rustix::process::geteuid().is_root() {
        assert!(field("Uid:").iter().all(|id| id.starts_with("18")), "{:?}", field("Uid:"));
        assert_eq!(field("CapEff:"), ["0000000000000000"]);
        assert_eq!(field("Groups:"), field("Gid:")[..1]);
    }
}

#[tokio::test]
async fn what_the_folder_holds_is_the_users_alone() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    for name in ["guest.json", "pid", "qemu.log", "serial.log", "run"] {
        let meta = std::fs::metadata(bench.spec.directory.join(name)).expect(name);
        assert_eq!(meta.permissions().mode() & 0o077, 0, "{name}");
    }
}

#[tokio::test]
async fn a_disk_that_names_a_file_of_its_host_is_not_started() {
    let bench = Bench::new("obedient").await;
    bench.define().await;
    let secret = bench.folder.path().join("secret");
    std::fs::write(&secret, vec![7; 1 << 20]).expect("writes");
    let disk = bench.spec.directory.join("disk.qcow2");
    boot_sector::run(
        Program::new("qemu-img")
            .args(["rebase", "-u", "-F", "raw", "-b"])
            .args([&secret])
            .arg(disk),
    );
    let error = bench.try_start().await.expect_err("refused");
    assert!(error.message().contains("secret"), "{error}");
    assert_eq!(bench.power().await, Power::Off);
}

#[tokio::test]
async fn a_link_that_a_broken_qemu_left_is_not_followed() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    bench.stop(Stop::PowerOff).await;
    let mine = bench.folder.path().join("mine");
    std::fs::write(&mine, "mine").expect("writes");
    for name in ["alive", "qmp", "serial", "screen.png"] {
        let link = bench.spec.directory.join("run").join(name);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&mine, link).expect("links");
    }
    bench.start().await;
    if rustix::process::geteuid().is_root() {
        // Else QEMU is the user, and needs no links.
        let screen = bench.spec.directory.join("run/screen.png");
        std::os::unix::fs::symlink(&mine, screen).expect("links");
        let to = bench.spec.directory.join("shot.png");
        let shot = bench.qemu.screenshot(bench.host(), &bench.spec, &to).await;
        assert!(shot.is_err(), "a link is no screen");
        assert!(!to.exists());
    }
    assert_eq!(std::fs::read_to_string(&mine).expect("is there"), "mine");
}
