//! Chains of QEMU and KVM on real input: a whole Debian in KVM in a Debian in QEMU, a third level in that,
//! two guests of one host that reach each other, and the same machine used as an L0 that is elsewhere.
//!
//! One lab carries it all, since what is slow (L1, and L2's boot) serves every question.

#[path = "support/lab.rs"]
mod lab;

use std::path::Path;

use lab::{Nestlab, processes_naming};

/// L1 runs KVM. `inner` is a whole Debian that runs QEMU itself; `gate` and `work` share a network.
const RECIPE: &str = r#"
schema = 1
name = "kvm"

[host]
hypervisor = "qemu"

[[guest]]
name = "l1"
image = "./debian.toml"
cpus = 2
overcommit = true             # L0 may have but two cores: L1 takes them, so that L2 has something to be fewer than
memory = "5GiB"
hypervisor = "qemu"

[[guest]]
name = "inner"
parent = "l1"
image = "./debian.toml"
memory = "1536MiB"
hypervisor = "qemu"

[[guest]]
name = "l3"
parent = "inner"
image = "appliance"
memory = "256MiB"

[[guest]]
name = "gate"
parent = "l1"
image = "appliance"
memory = "256MiB"
networks = ["inside"]

[[guest]]
name = "work"
parent = "l1"
image = "appliance"
memory = "256MiB"
networks = ["inside"]
"#;

/// A Debian with QEMU in it already: what installing it does is the other chain's question, and at the
/// second level it would take longer than everything else here.
fn debian(folder: &Path) {
    let manifest = include_str!("../images/debian-sid.toml");
    let manifest =
        manifest.replacen("name = \"debian-sid\"", "name = \"debian-qemu\"", 1).replacen(
            "[build]\n",
            "[build]\npackages = [\"qemu-system-x86\", \"qemu-utils\", \"ovmf\"]\n",
            1,
        );
    assert!(manifest.contains("\"qemu-utils\""), "images/debian-sid.toml has a [build] table");
    std::fs::write(folder.join("debian.toml"), manifest).expect("the manifest can be written");
}

#[test]
fn kvm_carries_a_whole_debian_a_third_level_and_guests_that_reach_each_other() {
    let nestlab = Nestlab::new();
    let folder = tempfile::tempdir().expect("a folder");
    debian(folder.path());
    let recipe = folder.path().join("kvm.toml");
    std::fs::write(&recipe, RECIPE).expect("the recipe can be written");
    let recipe = recipe.display().to_string();

    nestlab.ok(&["up", &recipe]);
    a_whole_debian_runs_in_kvm(&nestlab);
    the_third_level_answers_for_itself(&nestlab);
    guests_of_one_host_reach_each_other(&nestlab);
    no_level_repeats_the_subnet_of_another(&nestlab);
    a_lab_is_built_on_another_machine(&nestlab, folder.path());

    let state = nestlab.state().display().to_string();
    nestlab.ok(&["destroy", "kvm", "--yes"]);
    assert_eq!(processes_naming(&state), Vec::<String>::new());
}

fn a_whole_debian_runs_in_kvm(nestlab: &Nestlab) {
    let l1 = nestlab.way_in("kvm", &["l1"]);
    let processes = l1.sh("ps -eo args | grep '[q]emu-system-x86_64.*nestlab-kvm-inner'");
    assert!(processes.contains("-accel kvm"), "L1 runs it with KVM: {processes}");
    let inner = nestlab.way_in("kvm", &["l1", "inner"]);
    let facts = inner.sh("nproc; uname -m; hostname; systemd-detect-virt; cat /proc/1/comm");
    println!("L2 (KVM): {}", facts.replace('\n', ", "));
    assert_eq!(facts, "1\nx86_64\ninner\nkvm\nsystemd");
}

fn the_third_level_answers_for_itself(nestlab: &Nestlab) {
    let inner = nestlab.way_in("kvm", &["l1", "inner"]);
    let flags = inner.sh("grep -o -w -m1 -e svm -e vmx /proc/cpuinfo | head -n 1 || true");
    let accelerator = inner.sh("ps -eo args | grep -o '[-]accel [a-z]*' | head -n 1");
    println!("L2 sees {flags:?} and runs L3 with {accelerator}");
    let l3 = nestlab.way_in("kvm", &["l1", "inner", "l3"]);
    let facts = l3.sh("nproc; uname -m; hostname");
    println!("L3: {}", facts.replace('\n', ", "));
    assert_eq!(facts, "1\nx86_64\nl3");
    assert_eq!(nestlab.ok(&["exec", "l3", "--", "hostname"]).trim(), "l3");
}

fn guests_of_one_host_reach_each_other(nestlab: &Nestlab) {
    let address = |guest: &str| {
        let way = nestlab.way_in("kvm", &["l1", guest]);
        way.sh("ip -4 -o addr show dev eth1 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'")
    };
    let (gate, work) = (address("gate"), address("work"));
    assert!(!gate.is_empty() && gate != work, "{gate:?} and {work:?}");
    let ping = nestlab.way_in("kvm", &["l1", "gate"]).sh(&format!("ping -c 3 {work}"));
    println!("gate ({gate}) pings work ({work}):\n{ping}");
    assert!(ping.contains(" 0% packet loss"), "{ping}");
}

fn no_level_repeats_the_subnet_of_another(nestlab: &Nestlab) {
    let subnet = |path: &[&str]| {
        let way = nestlab.way_in("kvm", path);
        let route = way.sh("ip -4 route show default 2>/dev/null || route -n");
        route.split_whitespace().nth(2).expect("a gateway").to_owned()
    };
    let gateways = [subnet(&["l1"]), subnet(&["l1", "inner"]), subnet(&["l1", "inner", "l3"])];
    println!("gateways from L1 inwards: {}", gateways.join(", "));
    let mut different = gateways.to_vec();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 3, "{gateways:?}");
}

/// L1 serves as the runner: it has QEMU, and nestlab enters it as a user enters another machine.
fn a_lab_is_built_on_another_machine(nestlab: &Nestlab, folder: &Path) {
    let home = folder.join("home");
    let ssh = home.join(".ssh");
    std::fs::create_dir_all(&ssh).expect("a home");
    let lab = nestlab.lab("kvm");
    std::fs::copy(lab.join("keys/user"), ssh.join("id_ed25519")).expect("the key");
    let address = nestlab.guest("kvm", "l1")["address"].as_str().expect("an address").to_owned();
    let port = address.rsplit_once(':').expect("a port").1;
    let known = std::fs::read_to_string(lab.join("known_hosts")).expect("known hosts");
    let key =
        known.lines().find_map(|line| line.strip_prefix("l1.kvm.nestlab ")).expect("l1's key");
    std::fs::write(ssh.join("known_hosts"), format!("[127.0.0.1]:{port} {key}\n")).expect("it");
    let recipe = folder.join("elsewhere.toml");
    let text = format!(
        "schema = 1\nname = \"elsewhere\"\n[host]\nhypervisor = \"qemu\"\nssh = \"root@127.0.0.1:{port}\"\n\
         [[guest]]\nname = \"far\"\nimage = \"appliance\"\nmemory = \"256MiB\"\ncpus = 1\n"
    );
    std::fs::write(&recipe, text).expect("the recipe can be written");
    let run = |args: &[&str]| {
        println!("$ nestlab {}", args.join(" "));
        let output = nestlab
            .command(args)
            .env("HOME", &home)
            .env_remove("SSH_AUTH_SOCK")
            .output()
            .expect("nestlab runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        print!("{}{text}", String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "nestlab {}: {}", args.join(" "), output.status);
        text
    };
    run(&["up", &recipe.display().to_string()]);
    assert_eq!(run(&["exec", "far", "--lab", "elsewhere", "--", "hostname"]).trim(), "far");
    let png = folder.join("far.png").display().to_string();
    run(&["screenshot", "far", &png, "--lab", "elsewhere"]);
    assert!(std::fs::read(&png).expect("a picture").starts_with(b"\x89PNG"), "it is a PNG");
    run(&["destroy", "elsewhere", "--yes"]);
    let l1 = nestlab.way_in("kvm", &["l1"]);
    let left = l1.sh("ls -A /var/lib/nestlab/elsewhere 2>/dev/null | wc -l");
    assert_eq!(left, "0", "nothing of it is left on the other machine");
}
