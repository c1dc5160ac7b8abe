//! Undisturbed labs: up, up again, down, up, destroy.

use crate::support::bench::Bench;
use crate::support::debian::Deb;
use crate::support::lab::text_of;

#[test]
fn a_boot_sector_is_brought_up_stopped_started_and_removed() {
    let bench = Bench::new();
    let recipe = bench.recipe("[[guest]]\nname = \"l1\"\nimage = \"./boot.toml\"\n");
    assert!(bench.plan(&recipe).iter().all(|(_, state)| state == "needed" || state == "unknown"));
    bench.assert_nothing_left();

    bench.ok(&["up", &recipe]);
    let guest = bench.guest("bench", "l1");
    assert_eq!((&guest["state"], &guest["ready"]), (&"running".into(), &true.into()), "{guest}");
    assert_eq!(guest["evidence"], "its serial console says \"up\"");
    let steps = ["image/boot.raw", "l1/place", "l1/define", "l1/start", "l1/ready"];
    let outcomes = bench.outcomes();
    assert_eq!(outcomes.len(), steps.len(), "{outcomes:?}");
    assert!(steps.iter().all(|step| outcomes[*step] == "done"), "{outcomes:?}");
    assert!(bench.plan(&recipe).iter().all(|(_, state)| state == "satisfied"));
    bench.up_changes_nothing(&recipe);

    bench.ok(&["down", "bench"]);
    let guest = bench.guest("bench", "l1");
    assert_eq!((&guest["state"], &guest["ready"]), (&"off".into(), &false.into()), "{guest}");
    bench.ok(&["up", &recipe]);
    assert_eq!(bench.guest("bench", "l1")["state"], "running");
    bench.destroy();
}

/// L1, entered over SSH, is provisioned by a real apt and runs L2 in its own QEMU.
#[test]
fn a_guest_in_a_guest_is_brought_up_stopped_started_and_removed() {
    let bench = Bench::new();
    let recipe = nested(&bench);
    bench.ok(&["up", &recipe]);
    for step in ["l1/update", "l1/packages", "l1/reboot", "l1/hypervisor", "l2/place", "l2/ready"] {
        assert_eq!(bench.outcomes()[step], "done", "{step}");
    }
    assert_eq!(bench.guest("bench", "l2")["state"], "running");
    let inside = bench.way_in("bench", &["l1"]).run("uname -r; hostname");
    assert_eq!(text_of(&inside.stdout), "7.0.9-bench\nl1\n", "{}", text_of(&inside.stderr));
    bench.up_changes_nothing(&recipe);

    bench.ok(&["down", "bench"]);
    assert_eq!(bench.guest("bench", "l1")["state"], "off");
    bench.ok(&["up", &recipe]);
    assert_eq!(bench.guest("bench", "l2")["state"], "running");
    bench.destroy();
}

/// A lab of two levels: a host with a package and a kernel to install, and a boot sector in it.
pub(super) fn nested(bench: &Bench) -> String {
    bench.packages(&[
        Deb { name: "qemu-system-x86", ..Deb::default() },
        Deb { name: "qemu-utils", ..Deb::default() },
        Deb { name: "ovmf", ..Deb::default() },
        Deb { files: &[("boot/vmlinuz-7.0.9-bench", "")], ..Deb::default() },
    ]);
    bench.recipe(
        "[[guest]]\nname = \"l1\"\nimage = \"./host.toml\"\nmemory = \"1GiB\"\n\
         hypervisor = \"qemu\"\npackages = [\"nl-one\"]\n\
         [[guest]]\nname = \"l2\"\nimage = \"./boot.toml\"\n",
    )
}
