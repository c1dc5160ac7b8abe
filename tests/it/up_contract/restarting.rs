//! What power-cycles a guest that runs is said before, and needs a yes; what did not change in the recipe is
//! no reason for it.

use std::process::{Command, Stdio};

use super::bench::{Bench, said};

/// A lab whose guest runs.
fn running(memory: &str) -> Bench {
    let bench = Bench::new();
    bench.image("obedient", "img-a", "1", 1);
    bench.recipe("img-a", memory);
    bench.up(&[]);
    bench
}

#[test]
fn a_restart_stands_in_the_plan_with_all_its_steps_and_is_done_only_if_it_is_allowed() {
    let bench = running("memory = \"64MiB\"");
    let pid = bench.pid();
    bench.recipe("img-a", "memory = \"96MiB\"");
    let step = bench.step("g1/define");
    assert_eq!(step["effect"]["kind"], "restart", "{step}");
    assert_eq!((&step["effect"]["guest"], &step["asks"]), (&"g1".into(), &true.into()), "{step}");
    assert_eq!(bench.to_do(), ["g1/define", "g1/start", "g1/ready"]);
    let text = bench.nestlab.ok(&["plan", bench.path("t1.toml").as_str()]);
    assert!(text.contains("restart g1") && text.contains("3 of 5 to do"), "{text}");

    let recipe = std::fs::read_to_string(bench.nestlab.lab("t1").join("recipe.toml"));
    for args in [&[][..], &["--json"], &["--allow", "replace"]] {
        let told = bench.refused(2, args);
        assert!(told.contains("restart g1") && told.contains("--allow restart"), "{told}");
        assert_eq!(bench.pid(), pid, "it was restarted");
    }
    let now = std::fs::read_to_string(bench.nestlab.lab("t1").join("recipe.toml"));
    assert_eq!(now.expect("is there"), recipe.expect("is there"), "the lab took the recipe over");

    let told = bench.up(&["--allow", "restart"]);
    assert!(told.contains("restart g1 (memory: 64MiB → 96MiB)"), "{told}");
    assert_ne!(bench.pid(), pid);
    assert_eq!(bench.to_do(), [""; 0]);
}

#[test]
fn a_guest_that_is_off_is_changed_without_a_question() {
    let bench = running("memory = \"64MiB\"");
    bench.nestlab.ok(&["down", "t1"]);
    bench.recipe("img-a", "memory = \"96MiB\"");
    assert_eq!(bench.step("g1/define")["effect"]["kind"], "in-place");
    bench.up(&[]);
    assert_eq!(bench.to_do(), [""; 0]);
}

#[test]
fn another_network_of_l0_is_no_reason_to_change_a_lab() {
    let bench = running("");
    let pid = bench.pid();
    // As a VPN would: the route takes the addresses that the guest's own network has.
    let recipe = bench.path("t1.toml");
    let inside = |command: &str| {
        let nestlab = bench.nestlab.command(&[command, recipe.as_str(), "--json"]);
        let mut there = Command::new("unshare");
        there.args(["--net", "sh", "-c"]).arg(
            "ip link set lo up && ip route add 10.0.0.0/16 dev lo && ip route show >&2 && exec \"$@\"",
        );
        there.arg("sh").arg(nestlab.get_program()).args(nestlab.get_args());
        there.envs(nestlab.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = there.stdin(Stdio::null()).output().expect("unshare is there");
        println!("{}", said(&output));
        output
    };
    let output = inside("plan");
    assert!(said(&output).contains("10.0.0.0/16"), "the route is not there");
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a plan");
    let steps = plan["steps"].as_array().expect("steps");
    let open: Vec<_> = steps.iter().filter(|step| step["state"] != "satisfied").collect();
    assert!(open.is_empty(), "{open:?}");
    assert!(inside("up").status.success());
    assert_eq!(bench.pid(), pid, "it was restarted");
}

#[test]
fn a_disk_that_is_smaller_in_the_recipe_is_told_and_stays() {
    let bench = running("memory = \"64MiB\"\ndisk = \"64MiB\"");
    bench.recipe("img-a", "memory = \"64MiB\"\ndisk = \"32MiB\"");
    let step = bench.step("g1/define");
    assert_eq!((&step["state"], &step["effect"]["kind"]), (&"satisfied".into(), &"keep".into()));
    let told = bench.up(&[]);
    assert!(told.contains("does not shrink"), "{told}");
}

#[test]
fn a_guest_that_is_no_guest_cannot_be_replaced() {
    let bench = running("memory = \"64MiB\"");
    let told = bench.refused(2, &["--replace", "g2"]);
    assert!(told.contains("its guests are g1"), "{told}");
}
