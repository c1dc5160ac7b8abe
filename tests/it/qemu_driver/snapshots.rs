//! Snapshots.

use nestlab::hypervisor::{Hypervisor, Power};

use super::bench::{Bench, GRACE};

#[tokio::test]
async fn a_snapshot_brings_back_the_running_guest_with_its_memory() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    assert_eq!(bench.say("a").await, ".");
    bench.qemu.snapshot(bench.host(), &bench.spec, "before").await.expect("saves");
    assert_eq!(bench.say("b").await, "a");
    let error = bench.qemu.snapshot(bench.host(), &bench.spec, "before").await.expect_err("exists");
    assert!(error.message().contains("already"), "{error}");
    assert_eq!(bench.qemu.snapshots(bench.host(), &bench.spec).await.expect("lists"), ["before"]);
    let pid = bench.pid().await;
    bench.qemu.restore(bench.host(), &bench.spec, "before").await.expect("restores");
    assert_eq!((bench.power().await, bench.pid().await), (Power::Running, pid));
    assert_eq!(bench.say("c").await, "a", "it remembers what it heard after the snapshot");
    let error =
        bench.qemu.restore(bench.host(), &bench.spec, "never").await.expect_err("is not there");
    assert!(error.message().contains("never"), "{error}");
    bench.stop(GRACE).await;
}

#[tokio::test]
async fn a_snapshot_taken_while_off_is_restored_to_a_guest_that_is_off() {
    let bench = Bench::new("obedient").await;
    bench.define().await;
    bench.qemu.snapshot(bench.host(), &bench.spec, "clean").await.expect("saves");
    bench.start().await;
    bench.up(1).await;
    bench.qemu.restore(bench.host(), &bench.spec, "clean").await.expect("restores");
    assert_eq!(bench.power().await, Power::Off);
}
