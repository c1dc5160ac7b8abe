//! KVM inside the guest of a hypervisor, on real programs: QEMU emulates L1, a Debian. It is L0 for another
//! lab, over SSH; then the KVM in it runs a whole Debian, and two small guests on a network of their own.
//!
//! What is asserted is what the innermost guests say, through OpenSSH alone. They start with a BIOS: under
//! UEFI they would stop the emulating QEMU by chance (docs/evidence/uefi-in-emulated-kvm.txt).

use std::path::{Path, PathBuf};

use crate::support::lab::Nestlab;
use serde_json::Value;

const PAIR: &str = include_str!("../../recipes/gateway-and-workstation.toml");
const DEBIAN: &str = include_str!("../../recipes/debian-in-kvm.toml");

/// Two shipped recipes in one, as the lab `kvm`: one L1 serves both.
fn recipe(folder: &Path) -> String {
    let lab = change(DEBIAN, "name = \"debian-in-kvm\"", "name = \"kvm\"");
    // Two of TCG's threads were seen to corrupt what runs in L1 (docs/evidence/two-cpus-in-l1.txt).
    let lab = change(&lab, "name = \"l1\"", "name = \"l1\"\ncpus = 1");
    let gateway = section(PAIR, "[[guest]]                     # L2\nname = \"gateway\"");
    let workstation = section(PAIR, "[[guest]]                     # L2, beside");
    write(folder, "kvm", &[&lab, "\n", gateway, workstation].concat())
}

/// Returns the section of a recipe that begins with `head`.
fn section<'t>(recipe: &'t str, head: &str) -> &'t str {
    let start = recipe.find(head).unwrap_or_else(|| panic!("{head} is not in:\n{recipe}"));
    let rest = &recipe[start..];
    rest.find("\n\n").map_or(rest, |end| &rest[..end + 2])
}

/// Returns `text` with its one `from` changed.
fn change(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from} is once in:\n{text}");
    text.replace(from, to)
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(format!("{name}.toml"));
    std::fs::write(&path, text).expect("the recipe can be written");
    path.display().to_string()
}

#[test]
fn kvm_in_l1_runs_a_debian_and_two_guests_that_reach_each_other() {
    let nestlab = Nestlab::new();
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = recipe(folder.path());

    nestlab.ok(&["up", &recipe, "--until", "l1"]);
    qemu_was_installed_without_recommends(&nestlab);
    another_lab_is_built_on_l1_over_ssh(&nestlab, folder.path());

    // One after another, and the whole system first and alone: each exit from KVM takes an emulated L1 a
    // millisecond, so guests that boot at once take far longer, and idle ones cost their timers' exits.
    nestlab.ok(&["up", &recipe, "--until", "l2"]);
    l2_is_a_whole_debian(&nestlab);
    nestlab.ok(&["up", &recipe, "--until", "gateway"]);
    nestlab.ok(&["up", &recipe]);
    every_level_has_its_own_subnet_and_one_cpu(&nestlab);
    kvm_runs_every_guest_of_l1(&nestlab);
    guests_of_one_network_reach_each_other_by_name(&nestlab);
    the_doctor_looks_into_every_level(&nestlab, &recipe);
    nestlab.ok(&["destroy", "kvm", "--yes"]);
}

fn qemu_was_installed_without_recommends(nestlab: &Nestlab) {
    let history = nestlab.way_in("kvm", &["l1"]).sh("cat /var/log/apt/history.log");
    let mut commands = history.lines().filter_map(|line| line.strip_prefix("Commandline: "));
    let install = commands.find(|command| command.contains("qemu-system-x86"));
    let install = install.unwrap_or_else(|| panic!("no QEMU in:\n{history}"));
    println!("L1: {install}");
    assert!(install.contains("--no-install-recommends"), "{install}");
}

fn every_level_has_its_own_subnet_and_one_cpu(nestlab: &Nestlab) {
    let mut subnets = Vec::new();
    for path in [&["l1"][..], &["l1", "l2"]] {
        let guest = nestlab.way_in("kvm", path);
        let default = guest.sh("ip route show default");
        let gateway = default.split_whitespace().nth(2).expect("via an address").to_owned();
        let (subnet, _) = gateway.rsplit_once('.').expect("an IPv4 address");
        let cpus = guest.sh("nproc");
        println!("{}: {default}; {cpus} CPU", path.join("/"));
        assert_eq!(cpus, "1", "{path:?}");
        assert!(!subnets.contains(&subnet.to_owned()), "{subnet} is there twice: {subnets:?}");
        subnets.push(subnet.to_owned());
    }
}

fn kvm_runs_every_guest_of_l1(nestlab: &Nestlab) {
    let l1 = nestlab.way_in("kvm", &["l1"]);
    for guest in ["l2", "gateway", "workstation"] {
        let pid = format!("$(pgrep -f 'guest=nestlab-kvm-{guest}( |,|$)' | head -n 1)");
        let qemu = l1.sh(&format!("tr '\\0' ' ' <\"/proc/{pid}/cmdline\""));
        assert!(qemu.contains("-accel kvm") && qemu.contains("-cpu host"), "{qemu}");
        // An open VM of KVM's is an anonymous inode of this name.
        let vms = l1.sh(&format!("ls -l \"/proc/{pid}/fd\" | grep -c 'anon_inode:kvm-vm$'"));
        assert_eq!(vms, "1", "{guest} runs in KVM");
        let seen = nestlab.way_in("kvm", &["l1", guest]);
        assert_eq!(seen.sh("hostname"), guest);
        assert_eq!(nestlab.guest("kvm", guest)["state"], "running");
        println!("{guest}: {}, in KVM on L1", seen.sh("uname -sm"));
    }
}

fn l2_is_a_whole_debian(nestlab: &Nestlab) {
    let l2 = nestlab.way_in("kvm", &["l1", "l2"]);
    let system = l2.sh(". /etc/os-release; cat /proc/1/comm; echo \"$ID\"; systemd-detect-virt");
    assert_eq!(system, "systemd\ndebian\nkvm");
    assert_eq!(l2.sh("[ -d /sys/firmware/efi ] || echo bios"), "bios");
}

fn guests_of_one_network_reach_each_other_by_name(nestlab: &Nestlab) {
    for (from, to) in [("gateway", "workstation"), ("workstation", "gateway")] {
        let address = nestlab.guest("kvm", to)["networks"]["inner"].clone();
        let address = address.as_str().and_then(|it| it.strip_suffix("/24")).expect("an address");
        let ping = nestlab.way_in("kvm", &["l1", from]).sh(&format!("ping -c 3 {to}"));
        println!("{from} → {to}: {}", ping.lines().next().unwrap_or_default());
        assert!(ping.contains(&format!("PING {to} ({address})")), "{ping}");
        assert!(ping.contains(" 0% packet loss"), "{ping}");
    }
}

fn the_doctor_looks_into_every_level(nestlab: &Nestlab, recipe: &str) {
    let answer = nestlab.json(&["doctor", recipe]);
    let checks = answer["checks"].as_array().expect("checks");
    for (level, host) in [(0, "L0"), (1, "l1")] {
        let of_host: Vec<&Value> = checks.iter().filter(|check| check["host"] == host).collect();
        assert!(of_host.iter().all(|check| check["level"] == level), "{host}: {of_host:?}");
        let find = |id| of_host.iter().find(|check| check["id"] == id).expect("the check is there");
        println!("{host}: {}; {}", find("system")["found"], find("hypervisor")["found"]);
        let failed: Vec<_> = of_host.iter().filter(|check| check["verdict"] == "fail").collect();
        assert!(failed.is_empty(), "{host}: {failed:?}");
    }
    let of_l1 = |id: &str| checks.iter().find(|it| it["host"] == "l1" && it["id"] == id);
    assert_eq!(of_l1("kvm-runs-guests").expect("it is there")["verdict"], "ok");
}

/// l1 is the runner: entered as a user enters it, by a key in `~/.ssh` and its host key in `known_hosts`.
fn another_lab_is_built_on_l1_over_ssh(nestlab: &Nestlab, folder: &Path) {
    let address = nestlab.guest("kvm", "l1")["address"].clone();
    let port = address.as_str().and_then(|it| it.rsplit_once(':')).expect("a port").1.to_owned();
    let home = home(nestlab, folder, &port);
    let text = format!(
        "schema = 1\nname = \"elsewhere\"\n[host]\nssh = \"root@127.0.0.1:{port}\"\n\
         hypervisor = \"qemu\"\n[[guest]]\nname = \"guest\"\nimage = \"appliance\"\n\
         memory = \"256MiB\"\n"
    );
    let recipe = write(folder, "elsewhere", &text);
    let remote = |args: &[&str]| {
        println!("$ nestlab {}", args.join(" "));
        let mut command = nestlab.command(args);
        let output = command.env("HOME", &home).env_remove("SSH_AUTH_SOCK").output();
        let output = output.expect("nestlab runs");
        let (out, err) = (text_of(&output.stdout), text_of(&output.stderr));
        println!("{err}{out}");
        assert!(output.status.success(), "nestlab {}: {}", args.join(" "), output.status);
        out
    };

    let doctor = remote(&["doctor", &recipe]);
    assert!(doctor.contains("which passes virtualization on"), "it is l1 that is looked at");
    remote(&["up", &recipe]);
    let l1 = nestlab.way_in("kvm", &["l1"]);
    let running = "pgrep -fc 'guest=nestlab-elsewhere-[0-9a-f]*-gues[t]' || true";
    assert_eq!(l1.sh(running), "1", "the guest runs on l1");
    let lab = ["--lab", "elsewhere"];
    let said = remote(&[&["ssh", "guest"], &lab[..], &["--", "hostname"]].concat());
    assert_eq!(said.trim(), "guest");
    let status = remote(&["status", "elsewhere"]);
    assert!(status.contains("up"), "{status}");
    let picture = folder.join("screen.png").display().to_string();
    remote(&[&["screenshot", "guest", &picture], &lab[..]].concat());
    let png = std::fs::read(&picture).expect("a picture was written");
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "{} bytes that are no PNG", png.len());
    let serial = remote(&[&["console", "guest", "--no-follow"], &lab[..]].concat());
    assert!(serial.contains("nestlab: ready guest"), "{serial}");
    let log = remote(&[&["logs", "guest"], &lab[..]].concat());
    assert!(log.contains("start guest"), "{log}");
    remote(&["destroy", "elsewhere", "--yes"]);
    assert_eq!(l1.sh(running), "0", "the guest is gone");
    let files = l1.sh("find /var/lib/nestlab -path '*elsewhere*' 2>/dev/null || true");
    assert_eq!(files, "", "and so are its files");
}

/// Makes a home directory from which `root@127.0.0.1:port` is entered: the lab's key, l1's host key.
fn home(nestlab: &Nestlab, folder: &Path, port: &str) -> PathBuf {
    let ssh = folder.join("home/.ssh");
    std::fs::create_dir_all(&ssh).expect("a home");
    let key = ssh.join("id_ed25519");
    std::fs::copy(nestlab.lab("kvm").join("keys/user"), &key).expect("the lab has a key");
    let known = std::fs::read_to_string(nestlab.lab("kvm").join("known_hosts"));
    let known = known.expect("the lab knows its guests");
    let host_key = known.lines().find_map(|line| line.strip_prefix("l1.kvm.nestlab "));
    let host_key = host_key.expect("l1's host key is known");
    std::fs::write(ssh.join("known_hosts"), format!("[127.0.0.1]:{port} {host_key}\n"))
        .expect("known_hosts can be written");
    folder.join("home")
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
