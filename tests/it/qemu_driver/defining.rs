//! What a VM is, and what differs.

use std::process::Command as Program;

use camino::Utf8PathBuf;
use nestlab::Kind;
use nestlab::event::EventSink;
use nestlab::hypervisor::{Firmware, Hypervisor, Media, Power, Stop, VmOrigin};
use nestlab::recipe::{Constraint, Mebibytes};

use super::bench::{Bench, GRACE, until};
use crate::support::boot_sector;

#[tokio::test]
async fn a_change_made_by_hand_is_found_and_undone() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    let file = bench.spec.directory.join("guest.json");
    let text = std::fs::read_to_string(&file).expect("is defined");
    let edited = text.replace(r#""cpus": 1"#, r#""cpus": 2"#).replace("64MiB", "96MiB");
    assert_ne!(text, edited);
    std::fs::write(&file, edited).expect("edits");
    assert_eq!(bench.differences().await, ["cpus: 2 → 1", "memory: 96MiB → 64MiB"]);
    bench.up(1).await;
    bench.define().await;
    assert_eq!(bench.power().await, Power::Off, "a change needs the VM off");
}

#[tokio::test]
async fn a_disk_is_grown_and_left_alone_when_it_is_large_enough() {
    let mut bench = Bench::new("obedient").await;
    bench.spec.disk = Mebibytes::new(512);
    bench.define().await;
    assert_eq!(bench.inspect().await.expect("is defined").settings["disk-size"], "536870912");
    bench.spec.disk = Mebibytes::new(100);
    bench.define().await;
    assert_eq!(bench.inspect().await.expect("is defined").settings["disk-size"], "536870912");
    bench.start().await;
    bench.up(1).await;
}

#[tokio::test]
async fn a_disk_that_is_large_enough_at_first_is_not_shrunk() {
    let mut bench = Bench::new("obedient").await;
    boot_sector::run(Program::new("qemu-img").args([
        "resize",
        "-q",
        bench.spec.directory.join("disk.qcow2").as_str(),
        "300M",
    ]));
    bench.spec.disk = Mebibytes::new(100);
    bench.define().await;
    assert_eq!(bench.inspect().await.expect("is defined").settings["disk-size"], "314572800");
}

#[tokio::test]
async fn a_guest_in_a_folder_too_deep_for_a_socket_address_works_like_any_other() {
    let deep = ["a-folder-with-a-long-name"; 8].join("/");
    let bench = Bench::at("obedient", &deep).await;
    assert!(bench.spec.directory.as_str().len() > 200);
    bench.start().await;
    bench.up(1).await;
    bench.port(22).await;
    let png = bench.spec.directory.join("shot.png");
    bench.qemu.screenshot(bench.host(), &bench.spec, &png).await.expect("shoots");
    bench.stop(GRACE).await;
}

#[tokio::test]
async fn a_guest_with_uefi_has_variables_of_its_own() {
    let mut bench = Bench::new("obedient").await;
    bench.spec.firmware = Firmware::Efi;
    bench.spec.memory = Constraint::Exactly(Mebibytes::new(256).expect("some"));
    bench.start().await;
    assert!(bench.spec.directory.join("efivars.qcow2").exists());
    bench.qemu.snapshot(bench.host(), &bench.spec, "efi").await.expect("saves");
    let log = bench.qemu.serial_log(&bench.spec);
    until("the firmware speaks", async || {
        std::fs::read(&log).is_ok_and(|said| said.windows(3).any(|part| part == b"UEF"))
    })
    .await;
    bench.stop(Stop::PowerOff).await;
    bench.qemu.destroy(bench.host(), &bench.spec, &EventSink::silent()).await.expect("destroys");
    assert!(!bench.spec.directory.exists());
}

#[tokio::test]
async fn an_iso_boots_and_is_neither_written_nor_removed() {
    let mut bench = Bench::new("obedient").await;
    let tree = bench.folder.path().join("tree");
    std::fs::create_dir(&tree).expect("a folder");
    let boot = Utf8PathBuf::from_path_buf(tree.join("boot.bin")).expect("UTF-8");
    boot_sector::assemble("obedient", &boot);
    let iso = Utf8PathBuf::from_path_buf(bench.folder.path().join("boot.iso")).expect("UTF-8");
    boot_sector::run(Program::new("xorriso").args([
        "-as",
        "mkisofs",
        "-quiet",
        "-o",
        iso.as_str(),
        "-b",
        "boot.bin",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        tree.to_str().expect("UTF-8"),
    ]));
    bench.spec.origin = VmOrigin::Made(Media::Iso(iso.clone()));
    bench.start().await;
    bench.up(1).await;
    let error = bench.qemu.snapshot(bench.host(), &bench.spec, "x").await.expect_err("no disk");
    assert_eq!(error.kind(), Kind::HostCannot);
    bench.qemu.destroy(bench.host(), &bench.spec, &EventSink::silent()).await.expect("destroys");
    assert!(iso.exists());
}
