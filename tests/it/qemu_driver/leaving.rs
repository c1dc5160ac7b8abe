//! What remains.

use nestlab::event::{Event, EventSink};
use nestlab::hypervisor::Hypervisor;

use super::bench::{Bench, alive};

#[tokio::test]
async fn destroy_leaves_nothing_of_the_guest_and_everything_else() {
    let bench = Bench::new("deaf").await;
    bench.start().await;
    bench.up(1).await;
    let pid = bench.pid().await;
    let cut_off = bench.spec.directory.join("disk.qcow2.a1B2c3.part");
    std::fs::write(&cut_off, "what a copy left that was killed").expect("writes");
    let beside = bench.folder.path().join("beside");
    std::fs::write(&beside, "mine").expect("writes");
    bench.qemu.destroy(bench.host(), &bench.spec, &EventSink::silent()).await.expect("destroys");
    assert!(!alive(pid));
    assert!(!bench.spec.directory.exists());
    assert!(beside.exists());
    bench
        .qemu
        .destroy(bench.host(), &bench.spec, &EventSink::silent())
        .await
        .expect("nothing to destroy");
}

#[tokio::test]
async fn a_file_that_nestlab_did_not_make_survives_destroy_and_is_named() {
    let bench = Bench::new("obedient").await;
    bench.define().await;
    let notes = bench.spec.directory.join("my notes");
    std::fs::write(&notes, "mine").expect("writes");
    let (told, heard) = std::sync::mpsc::channel();
    let events = EventSink::new(move |event| {
        if let Event::Notice { text, .. } = event {
            told.send(text).expect("listens");
        }
    });
    bench.qemu.destroy(bench.host(), &bench.spec, &events).await.expect("destroys");
    assert!(heard.recv().expect("a notice").contains("my notes"));
    let left: Vec<_> = std::fs::read_dir(&bench.spec.directory).expect("is there").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
