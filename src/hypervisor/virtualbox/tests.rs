//! The driver where VMs run, crash and refuse to start, on scripted answers. Where none runs, it is tested
//! on the real VBoxManage: tests/virtualbox_native.rs.

use std::time::Duration;

use super::test_support::{existing, probe, spec};
use super::transcript::printed;
use super::*;
use crate::Kind;
use crate::event::EventSink;
use crate::host::scripted::Scripted;
use crate::hypervisor::{Hypervisor, Stop};

const UUID: &str = "00000000-0000-4000-8000-000000000009";
const LOGS: [&str; 6] = [
    "tail",
    "-q",
    "-n",
    "4000",
    "/labs/demo/l2/vm/Logs/VBoxHardening.log",
    "/labs/demo/l2/vm/Logs/VBox.log",
];

/// A host on which VirtualBox is installed.
fn host() -> Scripted {
    Scripted::new("l1").always(["VBoxManage", "--version"]).prints(printed("version"))
}

fn vbox(args: &[&str]) -> Vec<String> {
    ["VBoxManage"].iter().chain(args).map(|arg| (*arg).to_owned()).collect()
}

fn listed() -> String {
    format!("\"nestlab-demo-l2\" {{{UUID}}}\n")
}

/// What `showvminfo` says of the guest's VM in this state.
fn shown(state: &str) -> String {
    format!(
        "name=\"nestlab-demo-l2\"\nUUID=\"{UUID}\"\nCfgFile=\"/labs/demo/l2/vm/vm.vbox\"\n\
         LogFldr=\"/labs/demo/l2/vm/Logs\"\ncpus=1\nVMState=\"{state}\"\nnic1=\"nat\"\n\
         Forwarding(0)=\"nestlab-ssh,tcp,127.0.0.1,20022,,22\"\n"
    )
}

/// Adds the scene in which the VM is looked up and is in this state.
trait Scenes {
    fn looked_up(self, state: &str) -> Scripted;
    fn running(self, runs: bool) -> Scripted;
    fn shown(self, state: &str) -> Scripted;
    fn forgotten(self) -> Scripted;
}

impl Scenes for Scripted {
    fn looked_up(self, state: &str) -> Scripted {
        self.expect(vbox(&["list", "vms"])).prints(listed()).shown(state)
    }

    fn running(self, runs: bool) -> Scripted {
        let list = if runs { listed() } else { String::new() };
        self.expect(vbox(&["list", "runningvms"])).prints(list)
    }

    fn shown(self, state: &str) -> Scripted {
        self.expect(vbox(&["showvminfo", UUID, "--machinereadable"])).prints(shown(state))
    }

    /// What the last run said is forgotten, and the host's loopback is closed.
    fn forgotten(self) -> Scripted {
        self.expect(remove_serial_log())
            .prints("")
            .expect(vbox(&["guestproperty", "delete", UUID, "/VirtualBox/GuestInfo/OS/Product"]))
            .prints("")
            .expect(vbox(&["guestproperty", "delete", UUID, "/VirtualBox/GuestInfo/OS/Release"]))
            .prints("")
            .expect(vbox(&["modifyvm", UUID, "--nat-localhostreachable1", "off"]))
            .prints("")
    }
}

fn remove_serial_log() -> [&'static str; 4] {
    ["rm", "-rf", "--", "/labs/demo/l2/serial.log"]
}

#[tokio::test]
async fn a_vm_that_is_off_is_started_without_a_window_and_seen_to_run() {
    let host = host()
        .looked_up("poweroff")
        .expect(["cat", "/proc/net/tcp", "/proc/net/tcp6"])
        .prints("")
        .forgotten()
        .expect(vbox(&["startvm", UUID, "--type", "headless"]))
        .prints("VM has been successfully started.\n")
        .running(true)
        .shown("running");
    let driver = VirtualBox::new();
    driver.start(&host, &spec(), &probe(), &EventSink::silent()).await.unwrap();
}

#[tokio::test]
async fn a_port_that_was_taken_meanwhile_is_moved_before_the_start() {
    // 20022 is 4E36.
    let taken = "0: 0100007F:4E36 00000000:0000 0A 0\n";
    let host = host()
        .looked_up("poweroff")
        .always(["cat", "/proc/net/tcp", "/proc/net/tcp6"])
        .prints(taken)
        .expect_with(["modifyvm", UUID, "--nat-pf1", "delete", "nestlab-ssh", "--nat-pf1"])
        .prints("")
        .forgotten()
        .expect(vbox(&["startvm", UUID, "--type", "headless"]))
        .prints("")
        .running(true)
        .shown("running");
    let driver = VirtualBox::new();
    driver.start(&host, &spec(), &probe(), &EventSink::silent()).await.unwrap();
    let moved = host.seen().iter().any(|command| {
        command.argv().last().is_some_and(|rule| {
            rule.starts_with("nestlab-ssh,tcp,127.0.0.1,") && !rule.contains(",20022,")
        })
    });
    assert!(moved, "{:?}", host.seen());
}

#[tokio::test]
async fn kvm_in_the_way_is_answered_with_the_remedy_of_this_kernel() {
    let refused = "VBoxManage: error: AMD-V is being used by another hypervisor (VERR_SVM_IN_USE).\n\
        VBoxManage: error: VirtualBox can't operate in VMX root mode. Please disable the KVM kernel \
        extension, recompile your kernel and reboot\n\
        VBoxManage: error: Details: code NS_ERROR_FAILURE (0x80004005), component ConsoleWrap\n";
    let host = host()
        .looked_up("poweroff")
        .expect(["cat", "/proc/net/tcp", "/proc/net/tcp6"])
        .prints("")
        .forgotten()
        .expect(vbox(&["startvm", UUID, "--type", "headless"]))
        .fails(1, refused)
        .expect(LOGS)
        .fails(1, "")
        .expect_with(["sh", "-c"])
        .prints("system Linux\nkernel 6.12.38-amd64\ndriver present\nflags : svm\nkvm kvm_amd\n");
    let driver = VirtualBox::new();
    let error = driver.start(&host, &spec(), &probe(), &EventSink::silent()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::HostCannot);
    assert!(error.report().contains("kvm.enable_virt_at_load=0"), "{error:?}");
    assert!(error.report().contains("VERR_SVM_IN_USE"), "{error:?}");
}

#[tokio::test]
async fn a_vm_that_ends_at_once_is_not_taken_for_started() {
    let host = host()
        .looked_up("poweroff")
        .expect(["cat", "/proc/net/tcp", "/proc/net/tcp6"])
        .prints("")
        .forgotten()
        .expect(vbox(&["startvm", UUID, "--type", "headless"]))
        .prints("VM has been successfully started.\n")
        .running(false)
        .shown("aborted")
        .expect(LOGS)
        .prints("00:00:01.5 Power up failed (vrc=VERR_NO_MEMORY, hrc=NS_ERROR_FAILURE)\n");
    let driver = VirtualBox::new();
    let error = driver.start(&host, &spec(), &probe(), &EventSink::silent()).await.unwrap_err();
    assert!(error.message().contains("has ended"), "{error:?}");
    assert!(error.report().contains("VERR_NO_MEMORY"), "{error:?}");
}

#[tokio::test]
async fn a_guru_meditation_is_an_outcome_with_its_code_and_log() {
    let log = "00:01:02.5 !!         VCPU0: Guru Meditation 1155 (VINF_EM_TRIPLE_FAULT)\n";
    let host = host().running(false).looked_up("gurumeditation").expect(LOGS).prints(log);
    let error = VirtualBox::new().down_because(&host, &spec()).await.unwrap().unwrap();
    assert_eq!(
        error.message(),
        "VirtualBox gave up on nestlab-demo-l2: Guru Meditation 1155 (VINF_EM_TRIPLE_FAULT)"
    );
    assert!(error.report().contains("/labs/demo/l2/vm/Logs/VBox.log"), "{error:?}");
}

#[tokio::test]
async fn a_vm_that_runs_or_was_stopped_is_not_down_for_a_reason() {
    let running = host().running(true);
    assert!(VirtualBox::new().down_because(&running, &spec()).await.unwrap().is_none());
    let stopped = host().running(false).looked_up("poweroff");
    assert!(VirtualBox::new().down_because(&stopped, &spec()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_guest_that_ignores_its_power_button_loses_its_power() {
    let host = host()
        .looked_up("running")
        .expect(vbox(&["controlvm", UUID, "acpipowerbutton"]))
        .prints("")
        .running(true)
        .running(true)
        .expect(vbox(&["controlvm", UUID, "poweroff"]))
        .prints("")
        .running(false)
        .shown("poweroff");
    let how = Stop::Graceful(Duration::from_millis(1));
    VirtualBox::new().stop(&host, &spec(), how, &EventSink::silent()).await.unwrap();
}

#[tokio::test]
async fn a_vm_of_the_users_is_asked_to_shut_down_and_never_cut_off() {
    let host = host()
        .looked_up("running")
        .expect(vbox(&["controlvm", UUID, "acpipowerbutton"]))
        .prints("")
        .running(true)
        .running(true);
    let (spec, how) = (existing("nestlab-demo-l2"), Stop::Graceful(Duration::from_millis(1)));
    let error = VirtualBox::new().stop(&host, &spec, how, &EventSink::silent()).await.unwrap_err();
    assert!(error.message().contains("still on"), "{error:?}");
    let seen = host.seen();
    assert!(!seen.iter().any(|command| command.argv().contains(&"poweroff".to_owned())));
}

#[tokio::test]
async fn a_vm_that_vanishes_while_it_is_changed_is_not_made_again() {
    let command = crate::host::Command::new("VBoxManage").args(["modifyvm", UUID, "--cpus", "1"]);
    let change = crate::hypervisor::Change {
        setting: "cpus".into(),
        actual: Some("2".into()),
        wanted: "1".into(),
        commands: vec![command],
        needs_power_off: true,
    };
    let host = host()
        .looked_up("poweroff")
        .expect(vbox(&["modifyvm", UUID, "--cpus", "1"]))
        .prints("")
        .expect(vbox(&["list", "vms"]))
        .prints(format!("\"<inaccessible>\" {{{UUID}}}\n"));
    let changed = VirtualBox::new().change(&host, &spec(), &[change], &EventSink::silent()).await;
    let error = changed.unwrap_err();
    assert!(error.message().contains("does not list"), "{error:?}");
    assert!(!host.seen().iter().any(|command| command.argv()[0] == "rm"));
}

#[tokio::test]
async fn a_guest_that_shuts_down_keeps_its_power_until_it_has() {
    let host = host()
        .looked_up("running")
        .expect(vbox(&["controlvm", UUID, "acpipowerbutton"]))
        .prints("")
        .running(true)
        .running(false)
        .shown("poweroff");
    let how = Stop::Graceful(Duration::from_secs(60));
    VirtualBox::new().stop(&host, &spec(), how, &EventSink::silent()).await.unwrap();
}

#[tokio::test]
async fn a_crashed_vm_is_powered_off_and_started_anew() {
    let host = host()
        .looked_up("gurumeditation")
        .expect(vbox(&["controlvm", UUID, "poweroff"]))
        .prints("")
        .running(false)
        .shown("poweroff")
        .looked_up("poweroff")
        .expect(["cat", "/proc/net/tcp", "/proc/net/tcp6"])
        .prints("")
        .forgotten()
        .expect(vbox(&["startvm", UUID, "--type", "headless"]))
        .prints("")
        .running(true)
        .shown("running");
    VirtualBox::new().start(&host, &spec(), &probe(), &EventSink::silent()).await.unwrap();
}

#[tokio::test]
async fn a_saved_session_is_never_lost_for_a_setting() {
    let spec = existing("nestlab-demo-l2");
    let host = host().looked_up("saved");
    let driver = VirtualBox::new();
    let actual = crate::hypervisor::Actual {
        id: UUID.into(),
        power: crate::hypervisor::Power::Saved,
        settings: [("cpus".to_owned(), "4".to_owned())].into(),
    };
    let changes = driver.changes(&spec, Some(&actual), &probe());
    let error = driver.change(&host, &spec, &changes, &EventSink::silent()).await.unwrap_err();
    assert!(error.message().contains("is saved"), "{error:?}");
    assert!(error.report().contains("discardstate"), "{error:?}");
}

#[tokio::test]
async fn a_host_without_the_driver_is_refused_and_one_with_it_is_measured() {
    let without = host()
        .expect_with(["sh", "-c"])
        .prints("system Linux\nkernel 7.2.13-amd64\nsecure-boot SecureBoot enabled\n");
    let error = VirtualBox::new().probe(&without).await.unwrap_err();
    assert_eq!(error.kind(), Kind::HostCannot);
    assert!(error.report().contains("mokutil --import"), "{error:?}");

    let blind = host()
        .expect_with(["sh", "-c"])
        .prints("system Linux\nkernel 7.2.13-amd64\ndriver present\n")
        .expect(vbox(&["list", "hostinfo"]))
        .prints(printed("hostinfo"));
    let error = VirtualBox::new().probe(&blind).await.unwrap_err();
    assert!(error.message().contains("64-bit guests"), "{error:?}");

    let with = host()
        .expect_with(["sh", "-c"])
        .prints(
            "system Linux\nkernel 6.12.0-amd64\ndriver present\nflags : svm npt hypervisor\n\
             kvm kvm_amd\ncounted 10.00 10.50\n",
        )
        .expect(vbox(&["list", "hostinfo"]))
        .prints("Processor supports nested HW virtualization: no\n");
    let probe = VirtualBox::new().probe(&with).await.unwrap();
    assert!(matches!(probe.nesting, crate::hypervisor::Nesting::Absent(_)), "{probe:?}");
    assert!(probe.patience.factor() > 10.0, "{probe:?}");
    assert!(probe.notes[0].contains("since Linux 6.12"), "{probe:?}");
}
