//! VMs of VirtualBox through the plan: the real VBoxManage decides about everything but power.

use crate::support::bench::Bench;
use crate::support::virtualbox_native::Native;

const HEAD: &str = "schema = 1\nname = \"bench\"\n[host]\nhypervisor = \"virtualbox\"\n";

#[tokio::test]
async fn a_vm_that_the_user_has_is_taken_over_and_given_back_as_it_was() {
    let native = Native::new().await;
    let uuid = native.users_vm("My Debian").await;
    let bench = Bench::in_virtualbox(&native);
    let recipe = bench.whole_recipe(
        "lab.toml",
        &format!(
            "{HEAD}host-key = \"Right Alt\"\n[[guest]]\nname = \"l1\"\nvm = \"My Debian\"\nsnapshot-before = true\n\
             cpus = 1\nmemory = \"512MiB\"\nready = \"guest-additions\"\n"
        ),
    );
    let before = settings(&native, &uuid).await;
    let host_key = native.vbox(&["getextradata", "global", "GUI/Input/HostKeyCombination"]).await;

    // Whatever system the tests run on.
    bench.ok(&["up", &recipe, "--force"]);
    let lab = native.settings(&uuid).await;
    assert!(
        lab.contains(&"cpus=1".to_owned()) && lab.contains(&"memory=512".to_owned()),
        "{lab:?}"
    );
    let snapshots = native.vbox(&["snapshot", &uuid, "list"]).await;
    assert!(snapshots.contains("nestlab-before"), "{snapshots}");
    let evidence = bench.guest("bench", "l1")["evidence"].clone();
    assert_eq!(evidence, "its guest additions report Linux 7.0.9-bench");
    let key = native.vbox(&["getextradata", "global", "GUI/Input/HostKeyCombination"]).await;
    assert_ne!(key, host_key, "the recipe's Host Key was not set");
    bench.up_changes_nothing(&recipe);

    bench.ok(&["down", "bench"]);
    bench.ok(&["destroy", "bench", "--yes"]);
    assert_eq!(settings(&native, &uuid).await, before, "the VM is not as it was");
    assert_eq!(
        native.vbox(&["getextradata", "global", "GUI/Input/HostKeyCombination"]).await,
        host_key
    );
    bench.assert_nothing_left();
}

#[tokio::test]
async fn a_vm_made_from_an_image_is_brought_up_stopped_started_and_removed() {
    let native = Native::new().await;
    let bench = Bench::in_virtualbox(&native);
    let recipe = bench.whole_recipe(
        "lab.toml",
        &format!("{HEAD}[[guest]]\nname = \"l1\"\nimage = \"./boot.toml\"\n"),
    );
    bench.ok(&["up", &recipe, "--force"]);
    assert_eq!(bench.guest("bench", "l1")["evidence"], "its serial console says \"up\"");
    bench.up_changes_nothing(&recipe);
    bench.ok(&["down", "bench"]);
    assert_eq!(bench.guest("bench", "l1")["state"], "off");
    bench.ok(&["up", &recipe]);
    assert_eq!(bench.guest("bench", "l1")["state"], "running");
    bench.destroy();
    let vms = native.vbox(&["list", "vms"]).await;
    assert!(!vms.contains('{'), "{vms}");
    let disks = native.vbox(&["list", "hdds"]).await;
    assert!(!disks.contains("UUID:"), "{disks}");
}

/// Returns the settings of a VM without its disks: the snapshot before the first change stays, and the VM writes
/// to a disk on top of it.
async fn settings(native: &Native, uuid: &str) -> Vec<String> {
    let mut settings = native.settings(uuid).await;
    settings.retain(|line| !line.starts_with("\"Disks-"));
    settings
}
