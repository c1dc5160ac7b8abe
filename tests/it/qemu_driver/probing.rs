//! Whether and how guests run here.

use nestlab::host::Local;
use nestlab::hypervisor::qemu::Qemu;
use nestlab::hypervisor::{Acceleration, Hypervisor, Nesting};

#[tokio::test]
async fn kvm_is_chosen_exactly_if_a_micro_guest_runs_on_it() {
    let (host, qemu) = (Local::new(), Qemu::new());
    let seen = qemu.try_guest(&host, Acceleration::Kvm).await.expect("QEMU is installed");
    let probe = qemu.probe(&host).await.expect("QEMU is installed");
    if probe.acceleration == Acceleration::Kvm {
        assert!(seen.ran(), "{seen:?}");
        return;
    }
    assert_eq!(probe.acceleration, Acceleration::Tcg);
    assert!(probe.patience.factor() >= 20.0, "{:?}", probe.patience);
    assert_eq!(probe.nesting, Nesting::Proven, "TCG emulates SVM");
    let [note] = probe.notes.as_slice() else { panic!("one note: {:?}", probe.notes) };
    assert!(note.contains("emulated (TCG)"), "{note}");
    assert!(!seen.ran() || note.contains("slower"), "{note}: {seen:?}");
    if std::path::Path::new("/dev/kvm").exists() && !seen.ran() {
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
