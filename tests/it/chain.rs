//! The main job on real input: real QEMU, a real Debian in it, real apt, the real VirtualBox in that, and
//! a real guest of that VirtualBox that answers. Nothing here is simulated but the publisher of the OVA,
//! which stands on loopback under the URL layout of Kicksecure's, with a key made for the run.
//!
//! VirtualBox is in L1's image already, built natively; that apt and DKMS bring it into a running L1 is shown by
//! [`full`](crate::full), which takes three times as long.

mod inside;

use std::net::TcpStream;
use std::path::Path;

use inside::GuestSession;

use crate::support::emulator::Emulated;
use crate::support::lab::{Nestlab, processes_naming};
use crate::support::outdated::Outdated;
use crate::support::publisher::{Publisher, Release};

/// What L2's own appliance says about itself to nestlab; the rest is the publisher's manifest.
const OFFER: &str = r#"
[guest]
user = "root"
ssh = true
ready = "ssh"
memory = "512MiB"
firmware = "bios"
seed = "cidata"
"#;

/// The name of the lab.
pub(crate) const LAB: &str = "chain";

/// The recipe of the chain, its manifests beside it.
const RECIPE: &str = r#"
schema = 1
name = "chain"

[host]
hypervisor = "qemu"

[[guest]]
name = "l1"
image = "./l1.toml"
cpus = 1                      # with two, TCG's threads were seen to corrupt L2 (docs/evidence)
memory = "5GiB"
hypervisor = "virtualbox"
reach-host = true             # the nestlab in it downloads from this test

[[guest]]
name = "l2"
image = "./l2.toml"
"#;

/// What L1's image is built with.
pub(crate) struct L1<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// The packages that it has from the start.
    pub(crate) packages: &'a [&'a str],
    /// Files of packages that are older than the archive's.
    pub(crate) debs: &'a [std::path::PathBuf],
}

impl L1<'_> {
    /// Returns its manifest: the shipped one, changed.
    fn manifest(&self) -> String {
        let shipped = include_str!("../../images/debian-sid.toml");
        let own = format!("packages = {:?}", self.packages);
        let text = changed(shipped, "packages = [\"dkms\", \"linux-headers-amd64\"]", &own);
        let text = changed(&text, "[build]\n", &format!("[build]\ndebs = {:?}\n", self.debs));
        changed(&text, "name = \"debian-sid\"", &format!("name = {:?}", self.name))
    }
}

/// Returns `text` with its one `from` changed.
pub(crate) fn changed(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from} is once in:\n{text}");
    text.replace(from, to)
}

/// A 64-bit appliance as an OVA, built from the Debian archive.
pub(crate) fn appliance(nestlab: &Nestlab) -> Vec<u8> {
    let path = nestlab.ok(&["image", "build", "appliance", "--format", "ova"]);
    std::fs::read(path.trim()).expect("the store can be read")
}

/// Writes the chain's recipe and its manifests into `folder`, and returns its path.
pub(crate) fn recipe(folder: &Path, l1: &L1<'_>, publisher: &Publisher, l2: &Release) -> String {
    std::fs::write(folder.join("l1.toml"), l1.manifest()).expect("the manifest can be written");
    let manifest = publisher.manifest_toml(l2);
    let manifest = manifest.split("\n[guest]").next().expect("a text has a first part");
    std::fs::write(folder.join("l2.toml"), format!("{manifest}\n{OFFER}")).expect("the manifest");
    let path = folder.join("chain.toml");
    std::fs::write(&path, RECIPE).expect("the recipe can be written");
    path.display().to_string()
}

/// The chain's recipe with VirtualBox in L1's image, and one package that is outdated.
fn prepared(folder: &Path, publisher: &Publisher, l2: &Release) -> String {
    let debs = [Outdated::in_folder(folder).hostname()];
    let packages = &["dkms", "linux-headers-amd64", "virtualbox"];
    recipe(folder, &L1 { name: "debian-prepared", packages, debs: &debs }, publisher, l2)
}

#[test]
fn one_command_builds_a_guest_in_virtualbox_in_debian_in_qemu_and_another_takes_it_away() {
    let nestlab = Nestlab::new();
    let folder = tempfile::tempdir().expect("a folder");
    let publisher = Publisher::start();
    let release = publisher.publish_ova("LXQt", "18.2.1.9", appliance(&nestlab));
    let recipe = prepared(folder.path(), &publisher, &release);
    let l1 = Emulated::l1_of(&nestlab, LAB, &recipe);

    nestlab.ok(&["plan", &recipe]);
    l1.ok(&["up", &recipe]);

    l1_was_upgraded_and_left_as_it_was_prepared(&l1);
    l2_runs_on_hardware_virtualization(&l1);
    l2_answers_for_itself(&l1);
    let there = GuestSession::of(&l1, folder.path());
    there.builds_a_guest_that_has_virtualization(&publisher, &release);
    a_second_up_changes_nothing(&l1, &recipe);
    destroy_leaves_nothing(&nestlab);
}

/// Returns the commands of apt's history in L1.
pub(crate) fn apt_history(l1: &Emulated<'_>) -> Vec<String> {
    let history = l1.sh(&["l1"], "cat /var/log/apt/history.log");
    let lines = history.lines().filter_map(|line| line.strip_prefix("Commandline: "));
    let commands: Vec<_> = lines.map(str::to_owned).collect();
    println!("L1's apt history:\n  {}", commands.join("\n  "));
    commands
}

/// Asserts that the VirtualBox that answers in L1 is the packaged one.
pub(crate) fn l1s_virtualbox_is_its_package(l1: &Emulated<'_>) {
    let package = l1.sh(&["l1"], "dpkg-query -W -f '${Version}' virtualbox");
    let version = l1.sh(&["l1"], "VBoxManage --version");
    println!("VirtualBox in L1: {version}, of the package {package}");
    let upstream = package.split(['-', '+']).next().expect("a text has a first part");
    assert!(version.starts_with(upstream), "{version} is not of {package}");
}

fn l1_was_upgraded_and_left_as_it_was_prepared(l1: &Emulated<'_>) {
    let commands = apt_history(l1);
    assert!(commands.iter().any(|command| command.contains("full-upgrade")), "{commands:?}");
    assert!(!commands.iter().any(|command| command.ends_with(" virtualbox")), "{commands:?}");
    let hostname = l1.sh(&["l1"], "dpkg-query -W -f '${Version}' hostname");
    assert_ne!(hostname, "0~nestlab1", "the outdated package was upgraded");
    l1s_virtualbox_is_its_package(l1);
}

pub(crate) fn l2_runs_on_hardware_virtualization(l1: &Emulated<'_>) {
    let log = l1.sh(&["l1"], "cat /var/lib/nestlab/chain*/l2/*/Logs/VBox.log");
    let paging = log.lines().find(|line| line.contains("HM:") && line.contains("nested paging"));
    let paging = paging.expect("VBox.log tells how the guest is executed");
    println!("VBox.log: {paging}");
    let tsc = log.lines().find(|line| line.contains("enmTSCMode=")).expect("VBox.log tells that");
    let clock = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
    println!("VBox.log: {tsc}; L1 runs by {}", l1.sh(&["l1"], clock));
    let serial = l1.sh(&["l1"], "cat /var/lib/nestlab/chain*/l2/serial.log");
    let ready = serial.lines().find(|line| line.contains("nestlab: ready l2"));
    println!("serial.log: {}", ready.expect("L2's serial console says that it is up"));
}

pub(crate) fn l2_answers_for_itself(l1: &Emulated<'_>) {
    let said = l1.sh(&["l1", "l2"], "nproc; uname -m; hostname");
    println!("L2: {}", said.replace('\n', ", "));
    assert_eq!(said, "1\nx86_64\nl2");
    let ours = l1.ok(&["ssh", "l2", "--", "nproc"]);
    assert_eq!(ours.trim(), "1", "nestlab ssh runs the same command");
}

pub(crate) fn a_second_up_changes_nothing(l1: &Emulated<'_>, recipe: &str) {
    let events = l1.ok(&["up", recipe, "--json"]);
    let ended: Vec<serde_json::Value> = events
        .lines()
        .map(|line| serde_json::from_str(line).expect("an event a line"))
        .filter(|event: &serde_json::Value| event["event"] == "run-ended")
        .collect();
    assert_eq!(ended.len(), 1, "{events}");
    println!("second up: {} changed, {} satisfied", ended[0]["changed"], ended[0]["satisfied"]);
    assert_eq!(ended[0]["changed"], 0, "{events}");
    assert!(ended[0]["satisfied"].as_u64() > Some(10), "{events}");
}

pub(crate) fn destroy_leaves_nothing(nestlab: &Nestlab) {
    let address = nestlab.guest(LAB, "l1")["address"].as_str().expect("an address").to_owned();
    TcpStream::connect(&address).expect("L1's port is open before");
    let state = nestlab.state().display().to_string();
    assert!(!processes_naming(&state).is_empty(), "L1 is a process");
    nestlab.ok(&["destroy", LAB, "--yes"]);
    assert_eq!(processes_naming(&state), Vec::<String>::new());
    TcpStream::connect(&address).expect_err("L1's port is closed after");
    assert!(!nestlab.lab(LAB).exists(), "the lab's directory is gone");
    let labs = nestlab.json(&["status"]);
    assert_eq!(labs["labs"], serde_json::json!([]));
}

#[test]
fn a_tampered_ova_ends_the_run_with_exit_code_4_before_anything_is_made_in_l1() {
    let nestlab = Nestlab::new();
    let folder = tempfile::tempdir().expect("a folder");
    let publisher = Publisher::start();
    let ova = appliance(&nestlab);
    let release = publisher.publish_ova("CLI", "18.2.1.9", ova.clone());
    let mut tampered = ova;
    let middle = tampered.len() / 2;
    tampered[middle] ^= 1;
    publisher.server.serve(&release.path, tampered);
    let recipe = prepared(folder.path(), &publisher, &release);

    let output = nestlab.run(&["up", &recipe]);
    assert_eq!(output.status.code(), Some(4), "an image that is not trusted");
    let journal = std::fs::read_to_string(nestlab.lab(LAB).join("journal.jsonl")).expect("it");
    let made = journal.lines().filter(|line| line.contains("\"host\":\"l1\""));
    assert_eq!(made.count(), 0, "nothing was made on L1:\n{journal}");
    let kept = nestlab.json(&["image", "list"]);
    let kept = kept["images"].as_array().expect("images").iter();
    let names: Vec<_> = kept.map(|image| image["name"].as_str().unwrap_or_default()).collect();
    assert!(!names.contains(&release.name.as_str()), "it is not in the store: {names:?}");
    nestlab.ok(&["destroy", LAB, "--yes"]);
    assert_eq!(processes_naming(&nestlab.state().display().to_string()), Vec::<String>::new());
}
