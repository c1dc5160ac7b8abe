//! KVM inside the guest of a hypervisor, on real programs: QEMU emulates L1, a Debian. It is L0 for another
//! lab, over SSH; then the KVM in it runs a whole Debian, and two small guests on a network of their own.
//!
//! What is asserted is what the innermost guests say, through OpenSSH alone. They start with a BIOS: under
//! UEFI they would stop the emulating QEMU by chance (docs/evidence/uefi-in-emulated-kvm.txt).

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::chain::changed;
use crate::support::emulator::Emulated;
use crate::support::lab::{Nestlab, text_of};

const PAIR: &str = include_str!("../../recipes/gateway-and-workstation.toml");
const DEBIAN: &str = include_str!("../../recipes/debian-in-kvm.toml");

const MANIFEST: &str = include_str!("../../images/debian-stable.toml");

/// Two shipped recipes in one, as the lab `kvm`: one L1 serves both. QEMU is in its image already, built natively,
/// and the same image serves L2; [`full`](crate::full) has apt bring it.
fn recipe(folder: &Path) -> String {
    write(folder, "image", &image_with_qemu());
    let lab = changed(DEBIAN, "name = \"debian-in-kvm\"", "name = \"kvm\"");
    let lab = lab.replace("image = \"debian-stable\"", "image = \"./image.toml\"");
    // Two of TCG's threads were seen to corrupt what runs in L1 (docs/evidence/two-cpus-in-l1.txt).
    let lab = changed(&lab, "name = \"l1\"", "name = \"l1\"\ncpus = 1");
    let gateway = section(PAIR, "[[guest]]                     # L2\nname = \"gateway\"");
    let workstation = section(PAIR, "[[guest]]                     # L2, beside");
    write(folder, "kvm", &[&lab, "\n", gateway, workstation].concat())
}

/// Returns the manifest of the shipped Debian with QEMU in it.
pub(crate) fn image_with_qemu() -> String {
    let manifest = changed(MANIFEST, "name = \"debian-stable\"", "name = \"debian-kvm\"");
    let packages = "packages = [\"qemu-system-x86\", \"qemu-utils\", \"ovmf\"]";
    changed(&manifest, "components = [\"main\"]", &format!("components = [\"main\"]\n{packages}"))
}

/// Returns the section of a recipe that begins with `head`.
fn section<'t>(recipe: &'t str, head: &str) -> &'t str {
    let start = recipe.find(head).unwrap_or_else(|| panic!("{head} is not in:\n{recipe}"));
    let rest = &recipe[start..];
    rest.find("\n\n").map_or(rest, |end| &rest[..end + 2])
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
    let l1 = Emulated::l1_of(&nestlab, "kvm", &recipe);

    l1.ok(&["up", &recipe, "--until", "l1"]);
    another_lab_is_built_on_l1_over_ssh(&nestlab, &l1, folder.path());

    // One after another, and the whole system first and alone: each exit from KVM takes an emulated L1 a
    // millisecond, so guests that boot at once take far longer, and idle ones cost their timers' exits.
    l1.ok(&["up", &recipe, "--until", "l2"]);
    l2_is_a_whole_debian(&l1);
    l1.ok(&["up", &recipe, "--until", "gateway"]);
    l1.ok(&["up", &recipe]);
    every_level_has_its_own_subnet_and_one_cpu(&l1);
    kvm_runs_every_guest_of_l1(&nestlab, &l1);
    guests_of_one_network_reach_each_other_by_name(&nestlab, &l1);
    the_doctor_looks_into_every_level(&nestlab, &recipe);
    l1.ok(&["destroy", "kvm", "--yes"]);
}

fn every_level_has_its_own_subnet_and_one_cpu(l1: &Emulated<'_>) {
    let mut subnets = Vec::new();
    for path in [&["l1"][..], &["l1", "l2"]] {
        let default = l1.sh(path, "ip route show default");
        let gateway = default.split_whitespace().nth(2).expect("via an address").to_owned();
        let (subnet, _) = gateway.rsplit_once('.').expect("an IPv4 address");
        let cpus = l1.sh(path, "nproc");
        println!("{}: {default}; {cpus} CPU", path.join("/"));
        assert_eq!(cpus, "1", "{path:?}");
        assert!(!subnets.contains(&subnet.to_owned()), "{subnet} is there twice: {subnets:?}");
        subnets.push(subnet.to_owned());
    }
}

fn kvm_runs_every_guest_of_l1(nestlab: &Nestlab, l1: &Emulated<'_>) {
    for guest in ["l2", "gateway", "workstation"] {
        let pid = format!("$(pgrep -f 'guest=nestlab-kvm-{guest}( |,|$)' | head -n 1)");
        let qemu = l1.sh(&["l1"], &format!("tr '\\0' ' ' <\"/proc/{pid}/cmdline\""));
        assert!(qemu.contains("-accel kvm") && qemu.contains("-cpu host"), "{qemu}");
        // An open VM of KVM's is an anonymous inode of this name.
        let vms =
            l1.sh(&["l1"], &format!("ls -l \"/proc/{pid}/fd\" | grep -c 'anon_inode:kvm-vm$'"));
        assert_eq!(vms, "1", "{guest} runs in KVM");
        let said = l1.sh(&["l1", guest], "hostname; uname -sm");
        assert_eq!(said.lines().next(), Some(guest), "{said}");
        assert_eq!(nestlab.guest("kvm", guest)["state"], "running");
        println!("{}, in KVM on L1", said.replace('\n', ": "));
    }
}

fn l2_is_a_whole_debian(l1: &Emulated<'_>) {
    let script = ". /etc/os-release; cat /proc/1/comm; echo \"$ID\"; systemd-detect-virt; \
                  [ -d /sys/firmware/efi ] || echo bios";
    assert_eq!(l1.sh(&["l1", "l2"], script), "systemd\ndebian\nkvm\nbios");
}

fn guests_of_one_network_reach_each_other_by_name(nestlab: &Nestlab, l1: &Emulated<'_>) {
    for (from, to) in [("gateway", "workstation"), ("workstation", "gateway")] {
        let address = nestlab.guest("kvm", to)["networks"]["inner"].clone();
        let address = address.as_str().and_then(|it| it.strip_suffix("/24")).expect("an address");
        let ping = l1.sh(&["l1", from], &format!("ping -c 3 {to}"));
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
fn another_lab_is_built_on_l1_over_ssh(nestlab: &Nestlab, l1: &Emulated<'_>, folder: &Path) {
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
    let running = "pgrep -fc 'guest=nestlab-elsewhere-[0-9a-f]*-gues[t]' || true";
    assert_eq!(l1.sh(&["l1"], running), "1", "the guest runs on l1");
    let lab = ["--lab", "elsewhere"];
    let said = remote(&[&["ssh", "guest"], &lab[..], &["--", "hostname"]].concat());
    assert_eq!(said.trim(), "guest");
    let status: Value =
        serde_json::from_str(&remote(&["status", "elsewhere", "--json"])).expect("JSON");
    assert_eq!(status["labs"][0]["guests"][0]["ready"], true, "{status}");
    let picture = folder.join("screen.png").display().to_string();
    remote(&[&["screenshot", "guest", &picture], &lab[..]].concat());
    let png = std::fs::read(&picture).expect("a picture was written");
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "{} bytes that are no PNG", png.len());
    let serial = remote(&[&["console", "guest", "--no-follow"], &lab[..]].concat());
    assert!(serial.contains("nestlab: ready guest"), "{serial}");
    let log = remote(&[&["logs", "guest"], &lab[..]].concat());
    assert!(log.contains("start guest"), "{log}");
    remote(&["destroy", "elsewhere", "--yes"]);
    assert_eq!(l1.sh(&["l1"], running), "0", "the guest is gone");
    let files = l1.sh(&["l1"], "find /var/lib/nestlab -path '*elsewhere*' 2>/dev/null || true");
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
