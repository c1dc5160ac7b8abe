//! Whether and how guests run here.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use camino::Utf8Path;
use nestlab::host::Local;
use nestlab::hypervisor::qemu::Qemu;
use nestlab::hypervisor::{Acceleration, Hypervisor, Nesting};

use crate::support::boot_sector;

/// Returns whether a boot sector says "up" under QEMU, started by hand with this accelerator.
fn boots_with(accelerator: &str) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = folder.path().join("disk.raw");
    boot_sector::assemble("deaf", Utf8Path::from_path(&disk).expect("UTF-8"));
    let mut qemu = Command::new("timeout")
        // KVM that fails can leave QEMU as it is, with nothing to hear.
        .args([
            "20",
            "qemu-system-x86_64",
            "-accel",
            accelerator,
            "-nodefaults",
            "-display",
            "none",
        ])
        .arg("-drive")
        .arg(format!("if=virtio,format=raw,file={}", disk.display()))
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("QEMU is installed");
    let mut said = String::new();
    BufReader::new(qemu.stdout.take().expect("piped")).read_line(&mut said).expect("reads");
    let pid = rustix::process::Pid::from_child(&qemu);
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    qemu.wait().expect("our child");
    said.contains("up")
}

#[tokio::test]
async fn kvm_is_chosen_exactly_if_a_guest_runs_on_it_and_is_not_slower_than_emulation() {
    let runs_on_kvm = Path::new("/dev/kvm").exists() && boots_with("kvm");
    let probe = Qemu::new().probe(&Local::new()).await.expect("QEMU is installed");
    if probe.acceleration == Acceleration::Kvm {
        assert!(runs_on_kvm, "no boot sector runs on KVM, and it was chosen: {probe:?}");
        return;
    }
    assert_eq!(probe.acceleration, Acceleration::Tcg);
    assert!(boots_with("tcg"));
    assert!(probe.patience.factor() >= 20.0, "{:?}", probe.patience);
    assert_eq!(probe.nesting, Nesting::Proven, "TCG emulates SVM");
    let [note] = probe.notes.as_slice() else { panic!("one note: {:?}", probe.notes) };
    assert!(note.contains("emulated (TCG)"), "{note}");
    assert!(!runs_on_kvm || note.contains("slower"), "a guest runs on KVM: {note}");
    if Path::new("/dev/kvm").exists() && !runs_on_kvm {
        assert!(note.contains("micro-guest") || note.contains("group"), "{note}");
    }
}

#[tokio::test]
async fn the_micro_guest_runs_to_its_end_in_emulation_and_tells_what_it_saw() {
    let seen =
        Qemu::new().try_guest(&Local::new(), Acceleration::Tcg).await.expect("QEMU is installed");
    assert_eq!(seen.said, ["nestlab real", "long", "vector", "svm", "work", "done"]);
    assert!(seen.ran() && seen.nests());
}
