//! A VM that VirtualBox lost or cannot read, on the real VBoxManage.

use nestlab::event::EventSink;
use nestlab::hypervisor::{Hypervisor as _, Remains};

use crate::support::virtualbox_native::Bench;

/// The VM's settings file.
const FILE: &str = "lab/l2/nestlab-demo-l2/nestlab-demo-l2.vbox";

/// The digests of the disks in the guest's folder.
async fn disks(bench: &Bench) -> String {
    let list = "find \"$1\" -name '*.vdi' ! -name 'seed*' -exec sha256sum {} + | sort";
    bench.host.sh(list, &[bench.spec.directory.as_str()]).await
}

async fn remains(bench: &Bench) -> Remains {
    assert_eq!(bench.inspect().await, None, "it is there");
    bench.driver.remains(bench.host(), &bench.spec, None).await.unwrap()
}

/// Makes the VM known again, with the disk that it had.
async fn comes_back(bench: &Bench, before: &str) {
    let Remains::Known { commands, .. } = remains(bench).await else {
        panic!("it could be registered again");
    };
    for command in &commands {
        bench.host().check(command).await.unwrap();
    }
    bench.up().await;
    assert_eq!(disks(bench).await, before);
    bench.destroy().await;
    bench.assert_nothing_left().await;
}

#[tokio::test]
async fn a_vm_that_is_not_registered_any_more_is_registered_again_with_its_disk() {
    let bench = Bench::appliance().await;
    let actual = bench.up().await;
    let before = disks(&bench).await;
    bench.host.vbox(&["unregistervm", &actual.id]).await;
    comes_back(&bench, &before).await;
}

#[tokio::test]
async fn a_vm_whose_settings_were_cut_off_comes_back_by_their_former_version() {
    let bench = Bench::appliance().await;
    bench.up().await;
    let before = disks(&bench).await;
    bench.host.server_has_ended().await;
    bench.host.sh("truncate -s 100 \"$1\"", &[&bench.host.path(FILE)]).await;
    let list = bench.host.vbox(&["list", "vms"]).await;
    assert!(list.contains("<inaccessible>"), "{list}");
    comes_back(&bench, &before).await;
}

#[tokio::test]
async fn a_vm_of_a_virtualbox_whose_own_settings_were_lost_comes_back() {
    let bench = Bench::appliance().await;
    bench.up().await;
    let before = disks(&bench).await;
    bench.host.server_has_ended().await;
    bench.host.sh("rm \"$1\"/VirtualBox.xml*", &[bench.host.home.as_str()]).await;
    comes_back(&bench, &before).await;
}

#[tokio::test]
async fn a_vm_without_any_settings_is_lost_and_its_disk_is_not_touched() {
    let bench = Bench::appliance().await;
    bench.up().await;
    let before = disks(&bench).await;
    bench.host.server_has_ended().await;
    bench.host.sh("rm \"$1\" \"$1-prev\"", &[&bench.host.path(FILE)]).await;
    assert!(matches!(remains(&bench).await, Remains::Lost(_)));
    assert_eq!(disks(&bench).await, before);
    bench.destroy().await;
}

#[tokio::test]
async fn what_a_guest_had_is_moved_aside_and_another_is_made_in_its_place() {
    let bench = Bench::appliance().await;
    bench.up().await;
    let before = disks(&bench).await;
    let kept = bench.spec.directory.join("replaced-2");
    for _ in 0..2 {
        bench.driver.set_aside(bench.host(), &bench.spec, &kept).await.unwrap();
    }
    assert_eq!(bench.inspect().await, None);
    let moved = disks(&bench).await;
    assert!(moved.contains("/replaced-2/") && moved.lines().count() == before.lines().count());
    bench.up().await;
    let both = disks(&bench).await;
    assert!(moved.lines().all(|line| both.contains(line)), "{both}");
    bench.host.sh("rm -r \"$1\"", &[kept.as_str()]).await;
    bench.driver.destroy(bench.host(), &bench.spec, &EventSink::silent()).await.unwrap();
    bench.assert_nothing_left().await;
}
