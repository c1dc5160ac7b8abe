//! The VirtualBox driver against the real VBoxManage: Debian sid's, in a tree that
//! `scripts/virtualbox-native` makes. Everything is real but the starting of VMs, which takes a kernel
//! driver.

mod status;

use crate::support::virtualbox_native::Bench;
use nestlab::Kind;
use nestlab::event::EventSink;
use nestlab::guest::ExecContext;
use nestlab::guest::readiness::{self, Evidence, VmView};
use nestlab::host::StreamAddress;
use nestlab::host::TimeoutScale;
use nestlab::hypervisor::virtualbox::{SNAPSHOT_BEFORE, SavedSettings, VirtualBox};
use nestlab::hypervisor::{
    Actual, Change, Firmware, GuestSpec, Hypervisor, Media, Power, Stop, VmOrigin,
};
use nestlab::recipe::{Constraint, Cpus, Mebibytes, Readiness};
use tokio_util::sync::CancellationToken;

fn names(changes: &[Change]) -> Vec<&str> {
    changes.iter().map(|change| change.setting.as_str()).collect()
}

fn value<'a>(actual: &'a Actual, setting: &str) -> &'a str {
    actual.settings.get(setting).unwrap_or_else(|| panic!("{setting} is missing"))
}

#[tokio::test]
async fn an_appliance_that_virtualbox_exported_becomes_a_guest_and_goes_without_a_trace() {
    let mut bench = Bench::appliance().await;
    bench.spec.nested = Some(true);
    bench.spec.disk = Mebibytes::new(64);
    assert_eq!(bench.inspect().await, None);
    let actual = bench.up().await;

    assert_eq!(actual.power, Power::Off);
    for (setting, expected) in [
        ("cpus", "1"),
        ("memory", "512"),
        ("nested-hw-virt", "on"),
        ("nestedpaging", "on"),
        ("ioapic", "on"),
        ("acpi", "on"),
        ("graphicscontroller", "vmsvga"),
        ("natnet1", "10.0.3.0/24"),
        ("uart1", "0x03f8,4"),
        ("disk-mib", "64"),
    ] {
        assert_eq!(value(&actual, setting), expected, "{setting}");
    }
    let serial = bench.driver.serial_log(&bench.spec);
    assert_eq!(value(&actual, "uartmode1"), format!("file,{serial}"));
    assert!(value(&actual, "Disks-0-0").ends_with(".vdi"));
    assert!(value(&actual, "Disks-1-0").ends_with("/lab/l2/seed.vdi"));

    let endpoint = bench.driver.endpoint(bench.host(), &bench.spec, 22).await.unwrap();
    let StreamAddress::Tcp(address, port) = endpoint else { panic!("{endpoint}") };
    assert!(address == "127.0.0.1" && port >= 1024, "{address}:{port}");
    let absent = bench.driver.endpoint(bench.host(), &bench.spec, 80).await.unwrap_err();
    assert!(absent.message().contains("port 80"), "{absent:?}");

    bench.destroy().await;
    bench.assert_nothing_left().await;
    bench.destroy().await;
}

#[tokio::test]
async fn drift_made_by_hand_is_shown_and_only_that_is_changed() {
    let bench = Bench::appliance().await;
    let uuid = bench.up().await.id;
    bench
        .host
        .vbox(&["modifyvm", &uuid, "--cpus", "2", "--nat-pf1", "delete", "nestlab-ssh"])
        .await;
    let changes = bench.changes().await;
    assert_eq!(names(&changes), ["cpus", "natpf1/nestlab-ssh"]);
    assert_eq!((changes[0].actual.as_deref(), changes[0].wanted.as_str()), (Some("2"), "1"));
    assert_eq!(changes[0].commands[0].argv(), ["VBoxManage", "modifyvm", &uuid, "--cpus", "1"]);
    bench.up().await;
}

#[tokio::test]
async fn a_raw_disk_becomes_a_guest_with_uefi() {
    let mut bench = Bench::new(async |host| {
        let raw = host.path("l2.raw");
        host.sh("truncate -s 8M \"$1\"", &[&raw]).await;
        VmOrigin::Made(Media::Disk(raw.into()))
    })
    .await;
    bench.spec.firmware = Firmware::Efi;
    bench.spec.disk = Mebibytes::new(32);
    bench.spec.networks = vec!["nestlab-demo-lan".into()];
    let actual = bench.up().await;
    assert_eq!(value(&actual, "firmware"), "EFI64");
    assert_eq!(value(&actual, "disk-mib"), "32");
    assert_eq!(value(&actual, "nic2"), "intnet");
    assert_eq!(value(&actual, "intnet2"), "nestlab-demo-lan");
    assert!(value(&actual, "SATA-0-0").ends_with("/lab/l2/disk.vdi"));
    assert!(value(&actual, "SATA-1-0").ends_with("/lab/l2/seed.vdi"));
    bench.destroy().await;
    bench.assert_nothing_left().await;
}

#[tokio::test]
async fn an_iso_is_put_into_a_drive_and_survives_the_guest() {
    let bench = Bench::new(async |host| {
        let iso = host.path("l2.iso");
        host.sh("truncate -s 1M \"$1\"", &[&iso]).await;
        VmOrigin::Made(Media::Iso(iso.into()))
    })
    .await;
    let actual = bench.up().await;
    assert!(value(&actual, "SATA-0-0").ends_with("/l2.iso"));
    assert_eq!(value(&actual, "boot1"), "dvd");
    bench.destroy().await;
    bench.assert_nothing_left().await;
    bench.host.sh("test -e \"$1\"", &[&bench.host.path("l2.iso")]).await;
}

#[tokio::test]
async fn two_guests_from_copies_of_one_disk_stand_side_by_side() {
    let mut first = Bench::new(async |host| {
        let disk = host.disk("image.vdi").await;
        host.vbox(&["closemedium", "disk", &disk]).await;
        let copies = [host.path("a.vdi"), host.path("b.vdi")];
        host.sh("cp \"$1\" \"$2\" && cp \"$1\" \"$3\"", &[&disk, &copies[0], &copies[1]]).await;
        VmOrigin::Made(Media::Disk(copies[0].clone().into()))
    })
    .await;
    first.spec.seed = None;
    let second = Bench {
        host: first.host.clone(),
        driver: VirtualBox::new(),
        spec: GuestSpec {
            vm: "nestlab-demo-l2b".into(),
            directory: first.host.home.join("lab/l2b"),
            origin: VmOrigin::Made(Media::Disk(first.host.path("b.vdi").into())),
            ..first.spec.clone()
        },
    };
    let (one, two) = (first.up().await, second.up().await);
    assert_ne!(value(&one, "SATA-ImageUUID-0-0"), value(&two, "SATA-ImageUUID-0-0"));
}

#[tokio::test]
async fn what_an_interrupted_run_left_is_finished() {
    let bench = Bench::new(async |host| {
        let raw = host.path("l2.raw");
        host.sh("truncate -s 8M \"$1\"", &[&raw]).await;
        VmOrigin::Made(Media::Disk(raw.into()))
    })
    .await;
    // Killed after the VM was created, with one disk converted and known, the other half converted.
    let creation = bench.changes().await.remove(0);
    let directory = bench.spec.directory.as_str();
    for command in &creation.commands[..2] {
        bench.host().check(command).await.unwrap();
    }
    let disk = format!("{directory}/disk.vdi");
    bench.host.vbox(&["createmedium", "disk", "--filename", &disk, "--size", "8"]).await;
    bench.host.sh("echo half > \"$1/seed.vdi\"", &[directory]).await;

    assert!(!names(&bench.changes().await).contains(&"vm"), "it is there already");
    bench.up().await;
    bench.destroy().await;
    bench.assert_nothing_left().await;
}

#[tokio::test]
async fn an_import_that_was_killed_is_done_again() {
    let bench = Bench::appliance().await;
    let folder = bench.spec.directory.join(&bench.spec.vm);
    bench.host.sh("mkdir -p \"$1\" && echo half > \"$1/x-disk001.vdi\"", &[folder.as_str()]).await;
    bench.up().await;
}

#[tokio::test]
async fn a_vm_of_the_same_name_that_nestlab_did_not_make_is_left_alone() {
    let bench = Bench::appliance().await;
    let uuid = bench.host.users_vm(&bench.spec.vm).await;
    let before = bench.host.settings(&uuid).await;
    let error = bench.driver.inspect(bench.host(), &bench.spec).await.unwrap_err();
    assert!(error.report().contains("nestlab did not make it"), "{error:?}");
    bench.destroy().await;
    assert_eq!(bench.host.settings(&uuid).await, before);
}

#[tokio::test]
async fn a_guest_whose_settings_file_was_deleted_is_removed() {
    let bench = Bench::appliance().await;
    let file = value(&bench.up().await, "CfgFile").to_owned();
    bench.host.sh("rm \"$1\"", &[&file]).await;
    bench.host.server_has_ended().await;
    assert!(bench.host.vbox(&["list", "vms"]).await.contains("<inaccessible>"));
    bench.destroy().await;
    bench.assert_nothing_left().await;
}

#[tokio::test]
async fn a_vm_of_the_users_is_adopted_with_a_snapshot_and_given_back_as_it_was() {
    let mut bench = Bench::existing("My \"own\" VM", true).await;
    bench.spec.nested = Some(true);
    bench.spec.cpus = Constraint::Exactly(Cpus::new(2).unwrap());
    bench.spec.networks = vec!["nestlab-demo-lan".into()];
    let before = bench.host.settings(bench.uuid()).await;

    let actual = bench.inspect().await.unwrap();
    let changes = bench.changes().await;
    assert_eq!(
        names(&changes),
        ["snapshot", "cpus", "memory", "nested-hw-virt", "nic2", "intnet2", "natpf1/nestlab-ssh",]
    );
    let former = SavedSettings::before(&actual, &changes);
    bench.apply(&changes).await.unwrap();
    assert_eq!(bench.changes().await, []);
    let adopted = bench.inspect().await.unwrap();
    assert_eq!(value(&adopted, "cpus"), "2");
    assert_eq!(value(&adopted, "SnapshotName"), SNAPSHOT_BEFORE);

    // What nestlab leaves behind after `destroy`: the VM, as it was.
    bench.destroy().await;
    let kept = serde_json::to_string(&former).unwrap();
    let former: SavedSettings = serde_json::from_str(&kept).unwrap();
    let events = EventSink::silent();
    bench.driver.restore_former(bench.host(), &former, &events).await.unwrap();
    let after = bench.host.settings(bench.uuid()).await;
    let disk = |line: &&String| !line.starts_with("\"Disks-");
    assert_eq!(
        after.iter().filter(disk).collect::<Vec<_>>(),
        before.iter().filter(disk).collect::<Vec<_>>()
    );
    bench.driver.restore_former(bench.host(), &former, &events).await.unwrap();

    // A VM that its user has removed meanwhile is no reason to fail.
    bench.host.vbox(&["unregistervm", bench.uuid()]).await;
    bench.driver.restore_former(bench.host(), &former, &events).await.unwrap();
}

#[tokio::test]
async fn a_vm_is_found_by_name_and_a_clone_of_the_same_name_only_by_its_uuid() {
    let bench = Bench::existing("Workstation", false).await;
    let by_name = |name: &str| GuestSpec {
        origin: VmOrigin::Existing { vm: name.to_owned(), snapshot_before: false },
        ..bench.spec.clone()
    };
    let found = bench.driver.inspect(bench.host(), &by_name("Workstation")).await.unwrap();
    assert_eq!(found.unwrap().id, bench.uuid());

    let missing = bench.driver.inspect(bench.host(), &by_name("Workstatoin")).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::HostCannot);
    assert!(missing.report().contains("this user's VMs are: Workstation"), "{missing:?}");

    let clones = bench.host.path("clones");
    bench
        .host
        .vbox(&[
            "clonevm",
            bench.uuid(),
            "--name",
            "Workstation",
            "--register",
            "--basefolder",
            &clones,
        ])
        .await;
    let error = bench.driver.inspect(bench.host(), &by_name("Workstation")).await.unwrap_err();
    assert!(error.report().contains("2 VMs are called Workstation"), "{error:?}");
    assert!(error.report().contains(bench.uuid()), "{error:?}");
    bench.up().await;
}

#[tokio::test]
async fn a_vm_without_a_nat_adapter_keeps_its_network_and_says_so() {
    let bench = Bench::existing("Whonix-Workstation", false).await;
    bench.host.vbox(&["modifyvm", bench.uuid(), "--nic1", "intnet", "--intnet1", "Whonix"]).await;
    let actual = bench.up().await;
    assert_eq!(value(&actual, "nic1"), "intnet");
    let error = bench.driver.endpoint(bench.host(), &bench.spec, 22).await.unwrap_err();
    assert!(error.report().contains("has no NAT adapter"), "{error:?}");
}

#[tokio::test]
async fn snapshots_are_taken_by_name_and_lead_back() {
    let bench = Bench::appliance().await;
    let uuid = bench.up().await.id;
    let (driver, host, spec) = (&bench.driver, bench.host(), &bench.spec);
    driver.snapshot(host, spec, "fresh \"1\"").await.unwrap();
    assert_eq!(bench.changes().await, [], "a snapshot is not drift");
    let twice = driver.snapshot(host, spec, "fresh \"1\"").await.unwrap_err();
    assert!(twice.message().contains("already"), "{twice:?}");
    bench.host.vbox(&["modifyvm", &uuid, "--memory", "1024"]).await;
    driver.restore(host, spec, "fresh \"1\"").await.unwrap();
    assert_eq!(value(&bench.inspect().await.unwrap(), "memory"), "512");
    assert!(driver.restore(host, spec, "none").await.is_err());
    bench.destroy().await;
    bench.assert_nothing_left().await;
}

#[tokio::test]
async fn the_host_key_is_read_set_and_in_force() {
    let bench = Bench::existing("x", false).await;
    let key = async || bench.driver.host_key(bench.host()).await.unwrap().unwrap().to_string();
    assert_eq!(key().await, "Right Ctrl");
    let wanted = "Left Ctrl + Left Alt".parse().unwrap();
    bench.driver.set_host_key(bench.host(), &wanted).await.unwrap();
    assert_eq!(key().await, wanted.to_string());
    let raw = bench.host.vbox(&["getextradata", "global", "GUI/Input/HostKeyCombination"]).await;
    assert!(raw.contains("Value: ") && raw.contains("65507"), "{raw}");
}

#[tokio::test]
async fn a_host_key_that_was_set_or_not_set_before_comes_back() {
    let bench = Bench::existing("x", false).await;
    let raw =
        async || bench.host.vbox(&["getextradata", "global", "GUI/Input/HostKeyCombination"]).await;
    for before in [None, Some("65481")] {
        if let Some(codes) = before {
            let set = ["setextradata", "global", "GUI/Input/HostKeyCombination", codes];
            bench.host.vbox(&set).await;
        }
        let was = raw().await;
        let former = bench.driver.former_host_key(bench.host()).await.unwrap();
        bench.driver.set_host_key(bench.host(), &"F9".parse().unwrap()).await.unwrap();
        assert_ne!(raw().await, was);
        let kept = serde_json::to_string(&former).unwrap();
        let former: SavedSettings = serde_json::from_str(&kept).unwrap();
        bench.driver.restore_former(bench.host(), &former, &EventSink::silent()).await.unwrap();
        assert_eq!(raw().await, was, "{before:?}");
    }
}

#[tokio::test]
async fn a_vm_of_the_users_keeps_its_cpus_and_memory_within_what_its_guests_demand() {
    let mut bench = Bench::existing("Mine", false).await;
    let sizes = async |bench: &Bench| {
        let actual = bench.up().await;
        (value(&actual, "cpus").to_owned(), value(&actual, "memory").to_owned())
    };
    let (cpus, memory) = (|count| Cpus::new(count).unwrap(), |mib| Mebibytes::new(mib).unwrap());
    (bench.spec.cpus, bench.spec.memory) = (Constraint::Unchanged, Constraint::Unchanged);
    assert_eq!(sizes(&bench).await, ("3".into(), "2048".into()));
    bench.spec.cpus = Constraint::AtMost { most: cpus(4) };
    bench.spec.memory = Constraint::AtLeast { least: memory(1024) };
    assert_eq!(sizes(&bench).await, ("3".into(), "2048".into()));
    bench.spec.cpus = Constraint::AtMost { most: cpus(2) };
    bench.spec.memory = Constraint::AtLeast { least: memory(3072) };
    assert_eq!(sizes(&bench).await, ("2".into(), "3072".into()));
}

#[tokio::test]
async fn without_the_kernel_driver_a_start_is_refused_with_the_headers_to_install() {
    let bench = Bench::appliance().await;
    bench.up().await;
    let probe = bench.probe().await;
    let start = bench.driver.start(bench.host(), &bench.spec, &probe, &EventSink::silent()).await;
    let error = start.unwrap_err();
    assert_eq!(error.kind(), Kind::HostCannot);
    assert!(error.report().contains("linux-headers-"), "{error:?}");
    assert!(error.report().contains("startvm"), "{error:?}");

    let refused = bench.driver.probe(bench.host()).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::HostCannot);
    assert!(refused.report().contains("kernel driver is not loaded"), "{refused:?}");
}

#[tokio::test]
async fn what_is_off_can_be_stopped_and_shows_neither_screen_nor_properties() {
    let bench = Bench::appliance().await;
    let (driver, host, spec) = (&bench.driver, bench.host(), &bench.spec);
    driver.stop(host, spec, Stop::PowerOff, &EventSink::silent()).await.unwrap();
    bench.up().await;
    driver.stop(host, spec, Stop::PowerOff, &EventSink::silent()).await.unwrap();
    let to = bench.host.home.join("screen.png");
    assert!(driver.screenshot(host, spec, &to).await.is_err());
    let property = "/VirtualBox/GuestInfo/OS/Product";
    assert_eq!(driver.guest_property(host, spec, property).await.unwrap(), None);
    let uuid = bench.inspect().await.unwrap().id;
    bench.host.vbox(&["guestproperty", "set", &uuid, property, "Linux"]).await;
    let value = driver.guest_property(host, spec, property).await.unwrap();
    assert_eq!(value.as_deref(), Some("Linux"));
    assert!(driver.down_because(host, spec).await.unwrap().is_none());
    let log_files = driver.log_files(host, spec).await.unwrap();
    let names: Vec<_> = log_files.iter().map(|trace| trace.name.as_str()).collect();
    assert_eq!(names, ["serial", "VBox.log", "VBoxHardening.log"]);
}

#[tokio::test]
async fn a_disk_that_virtualbox_cannot_read_is_refused_with_its_reason() {
    let bench = Bench::new(async |host| {
        let disk = host.path("l2.qcow2");
        host.sh("echo 'not a disk' > \"$1\"", &[&disk]).await;
        VmOrigin::Made(Media::Disk(disk.into()))
    })
    .await;
    let changes = bench.changes().await;
    let error = bench.apply(&changes).await.unwrap_err();
    assert!(error.report().contains("clonemedium"), "{error:?}");
    assert!(error.report().contains("l2.qcow2"), "{error:?}");
    bench.destroy().await;
    bench.assert_nothing_left().await;
}

/// Returns what the guest additions of the guest of `bench` prove of it now.
async fn additions(bench: &Bench) -> Option<Evidence> {
    let (events, cancel) = (EventSink::silent(), CancellationToken::new());
    let site = ExecContext {
        host: bench.host(),
        patience: TimeoutScale::NATIVE,
        events: &events,
        cancel: &cancel,
    };
    let outside = VmView { host: bench.host(), hypervisor: &bench.driver, spec: &bench.spec };
    readiness::look(site, outside, &Readiness::GuestAdditions).await.unwrap()
}

/// Starts the VM of `bench`: everything is done, and then there is no driver to run it.
async fn starts_in_vain(bench: &Bench) {
    let (probe, events) = (bench.probe().await, EventSink::silent());
    let start = bench.driver.start(bench.host(), &bench.spec, &probe, &events);
    start.await.expect_err("there is no driver");
}

#[tokio::test]
async fn what_guest_additions_told_before_a_start_is_no_evidence() {
    let bench = Bench::appliance().await;
    let uuid = bench.up().await.id;
    assert_eq!(additions(&bench).await, None);
    let set = async |name: &str, value: &str| {
        let name = format!("/VirtualBox/GuestInfo/OS/{name}");
        bench.host.vbox(&["guestproperty", "set", &uuid, &name, value]).await;
    };
    // Other properties are no evidence.
    set("ServicePack", "1").await;
    assert_eq!(additions(&bench).await, None);
    set("Product", "Linux").await;
    set("Release", "6.12").await;
    let told = Evidence::GuestAdditions { product: "Linux".into(), release: "6.12".into() };
    assert_eq!(additions(&bench).await, Some(told));
    starts_in_vain(&bench).await;
    assert_eq!(additions(&bench).await, None);
}

#[tokio::test]
async fn a_guest_is_kept_from_its_hosts_loopback_at_every_start() {
    let mut bench = Bench::appliance().await;
    let uuid = bench.up().await.id;
    for (reach_host, shown) in [(false, "0"), (true, "1"), (false, "0")] {
        bench.spec.reach_host = reach_host;
        starts_in_vain(&bench).await;
        let settings = bench.host.vbox(&["showvminfo", &uuid, "--machinereadable"]).await;
        let wanted = format!("localhostReachable=\"{shown}\"");
        assert!(settings.contains(&wanted), "{wanted} is not in {settings}");
    }
}
