//! A guest with a guest inside: what happens to the one happens to the other, and in the right order.

use serde_json::Value;

use crate::support::bench::Bench;
use crate::support::debian::Deb;

/// L1, which runs L2 in a QEMU of its own, both up.
struct Nest {
    bench: Bench,
}

impl Nest {
    fn new() -> Self {
        let bench = Bench::new();
        bench.packages(&[
            Deb { name: "qemu-system-x86", ..Deb::default() },
            Deb { name: "qemu-utils", ..Deb::default() },
            Deb { name: "ovmf", ..Deb::default() },
            Deb { files: &[("boot/vmlinuz-7.0.9-bench", "")], ..Deb::default() },
        ]);
        let nest = Nest { bench };
        nest.bench.ok(&["up", &nest.recipe("1GiB")]);
        nest
    }

    fn recipe(&self, memory: &str) -> String {
        self.bench.recipe(&format!(
            "[[guest]]\nname = \"l1\"\nimage = \"./host.toml\"\nmemory = \"{memory}\"\n\
             hypervisor = \"qemu\"\npackages = [\"nl-one\"]\n\
             [[guest]]\nname = \"l2\"\nimage = \"./boot.toml\"\n",
        ))
    }

    fn journal(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.bench.lab("bench").join("journal.jsonl"));
        let text = text.expect("is there");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Returns which guests were stopped and seen to be ready since the journal had `before` records.
    fn since(&self, before: usize) -> Vec<String> {
        let events = self.journal().split_off(before).into_iter().filter_map(|record| {
            let (kind, guest) = (record["record"].as_str()?, record["guest"].as_str()?);
            ["stopped", "ready"].contains(&kind).then(|| format!("{guest} {kind}"))
        });
        events.collect()
    }

    fn step(&self, recipe: &str, id: &str) -> Value {
        let plan = self.bench.json(&["plan", recipe]);
        let steps = plan["steps"].as_array().unwrap_or_else(|| panic!("no steps in {plan}"));
        steps.iter().find(|step| step["id"] == id).expect("the step is there").clone()
    }

    fn is_up(&self, guest: &str) -> bool {
        let seen = self.bench.guest("bench", guest);
        seen["state"] == "running" && seen["ready"] == true
    }
}

#[test]
fn a_host_is_restarted_with_what_runs_in_it_the_deepest_first() {
    let nest = Nest::new();
    let recipe = nest.recipe("1280MiB");
    let effect = &nest.step(&recipe, "l1/define")["effect"];
    assert_eq!(effect["kind"], "restart", "{effect}");
    assert_eq!(effect["with"], serde_json::json!(["l2"]));
    for id in ["l1/start", "l1/ready", "l2/start", "l2/ready"] {
        assert_ne!(nest.step(&recipe, id)["state"], "satisfied", "{id}");
    }
    let (code, out, err) = nest.bench.ends(&["up", &recipe]);
    assert_eq!(code, Some(2), "{out}{err}");
    assert!(err.contains("restart l1, and with it l2"), "{err}");
    assert!(nest.is_up("l1") && nest.is_up("l2"), "something was stopped");

    let before = nest.journal().len();
    nest.bench.ok(&["up", &recipe, "--allow", "restart"]);
    let events = nest.since(before);
    let at = |event: &str| events.iter().position(|it| it == event);
    assert!(at("l2 stopped").expect("l2 was stopped") < at("l1 stopped").expect("so was l1"));
    assert!(at("l1 ready") < at("l2 ready"), "{events:?}");
    assert!(nest.is_up("l1") && nest.is_up("l2"));
    nest.bench.up_changes_nothing(&recipe);
    nest.bench.destroy();
}

#[test]
fn a_new_kernel_of_a_host_in_use_is_a_restart_that_is_asked_for() {
    let nest = Nest::new();
    let recipe = nest.recipe("1GiB");
    nest.bench.ok(&["exec", "l1", "--", "touch", "/boot/vmlinuz-7.1.0-bench"]);
    let step = nest.step(&recipe, "l1/reboot");
    assert_eq!(step["effect"]["kind"], "restart", "{step}");
    assert_eq!(step["effect"]["with"], serde_json::json!(["l2"]));
    assert_ne!(nest.step(&recipe, "l2/start")["state"], "satisfied");
    let (code, out, err) = nest.bench.ends(&["up", &recipe]);
    assert_eq!(code, Some(2), "{out}{err}");
    assert!(nest.is_up("l2"), "l2 was stopped");

    let before = nest.journal().len();
    nest.bench.ok(&["up", &recipe, "--allow", "restart"]);
    assert_eq!(nest.since(before).first().map(String::as_str), Some("l2 stopped"));
    assert_eq!(nest.bench.ok(&["exec", "l1", "--", "uname", "-r"]).trim(), "7.1.0-bench");
    assert!(nest.is_up("l2"));
    nest.bench.destroy();
}

#[test]
fn a_new_kernel_that_comes_with_an_upgrade_waits_until_the_user_agrees_to_the_reboot() {
    let nest = Nest::new();
    let recipe = nest.recipe("1GiB");
    let kernel = &[("boot/vmlinuz-7.1.0-bench", "")];
    nest.bench.packages(&[Deb { version: "2", files: kernel, ..Deb::default() }]);
    // Lists that an earlier run got count for a while.
    nest.bench.ok(&["exec", "l1", "--", "apt-get", "update"]);
    let before = nest.journal().len();
    let (code, out, err) = nest.bench.ends(&["up", &recipe]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(err.contains("7.1.0-bench") && err.contains("--allow restart"), "{err}");
    assert_eq!(nest.since(before), [""; 0], "something was stopped");
    assert_eq!(nest.bench.ok(&["exec", "l1", "--", "uname", "-r"]).trim(), "7.0.9-bench");
    nest.bench.ok(&["up", &recipe, "--allow", "restart"]);
    assert_eq!(nest.bench.ok(&["exec", "l1", "--", "uname", "-r"]).trim(), "7.1.0-bench");
    assert!(nest.is_up("l1") && nest.is_up("l2"));
    nest.bench.destroy();
}

#[test]
fn a_host_that_is_replaced_takes_what_is_in_its_disk_along_and_both_are_made_anew() {
    let nest = Nest::new();
    let recipe = nest.recipe("1GiB");
    nest.bench.ok(&["exec", "l1", "--", "touch", "/root/mine"]);
    let plan = nest.bench.json(&["plan", &recipe, "--replace", "l1"]);
    let steps = plan["steps"].as_array().expect("steps");
    let place = steps.iter().find(|step| step["id"] == "l1/place").expect("is there");
    assert_eq!(place["effect"]["with"], serde_json::json!(["l2"]));
    nest.bench.ok(&["up", &recipe, "--replace", "l1"]);
    assert!(nest.is_up("l1") && nest.is_up("l2"));
    let (code, ..) = nest.bench.ends(&["exec", "l1", "--", "test", "-e", "/root/mine"]);
    assert_eq!(code, Some(1), "it has the old disk");
    nest.bench.up_changes_nothing(&recipe);
    nest.bench.destroy();
}
