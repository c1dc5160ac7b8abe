//! nestlab itself in L1: there L1 is its L0, with VirtualBox, and it builds a guest that gets hardware
//! virtualization of its own. So VirtualBox's part as the outermost hypervisor is proven by a real start.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sha2::Digest as _;

use super::OFFER;
use crate::support::emulator::Emulated;
use crate::support::publisher::{Publisher, Release};

/// Where nestlab and its files lie in L1.
const THERE: &str = "/root/inside";

const RECIPE: &str = r#"
schema = 1
name = "inside"

[host]
hypervisor = "virtualbox"

[[guest]]
name = "nested"
image = "./nested.toml"
nested = true
"#;

/// nestlab in L1 of the lab `chain`, run from outside through `nestlab exec`.
pub(super) struct GuestSession<'a> {
    l1: &'a Emulated<'a>,
    /// Where the files that go into L1 are written.
    folder: &'a Path,
}

impl<'a> GuestSession<'a> {
    /// Returns the nestlab in `l1`; its files are made in `folder`.
    pub(super) fn of(l1: &'a Emulated<'a>, folder: &'a Path) -> Self {
        GuestSession { l1, folder }
    }

    /// Asserts that it builds a guest with svm in it, with L1 as its L0, and takes it away again. The guest's
    /// image is `release`.
    pub(super) fn builds_a_guest_that_has_virtualization(
        &self,
        publisher: &Publisher,
        release: &Release,
    ) {
        self.move_in(publisher, release);
        // L1's KVM is there for the guests beside, and the guest only shows its svm, it does not use it.
        let recipe = format!("{THERE}/inside.toml");
        self.run(&["up", &recipe, "--no-progress", "--force=kvm-and-virtualbox"]);

        let flags = self.in_the_guest("grep -m 1 ^flags /proc/cpuinfo");
        assert!(flags.split_whitespace().any(|flag| flag == "svm"), "{flags}");
        let cpus: u32 = self.in_the_guest("nproc").parse().expect("a number");
        let around: u32 = self.sh("nproc").parse().expect("a number");
        println!("nestlab in L1 built a guest with svm and {cpus} of L1's {around} CPUs");
        assert_eq!(cpus, (around - 1).max(1), "one CPU fewer than L1 has, and one at least");
        let settings = self.sh("VBoxManage showvminfo nestlab-inside-nested --machinereadable");
        for setting in ["nested-hw-virt", "nestedpaging", "ioapic", "acpi"] {
            let on = format!("{setting}=\"on\"");
            assert!(settings.contains(&on), "{on} is missing in {settings}");
        }
        let status: Value = serde_json::from_str(&self.run(&["status", "--json"])).expect("JSON");
        assert_eq!(status["labs"][0]["guests"][0]["ready"], true, "{status}");

        self.run(&["destroy", "inside", "--yes"]);
        let left = self.sh("VBoxManage list vms");
        assert!(!left.contains("inside"), "its own VM is gone: {left}");
        assert!(left.contains("\"nestlab-chain-l2\""), "another's is still there: {left}");
    }

    /// Puts nestlab, a recipe and a manifest into L1. The image comes from the publisher around L1, and only
    /// its digest makes it trusted.
    fn move_in(&self, publisher: &Publisher, release: &Release) {
        let route = self.sh(&format!("mkdir -p {THERE} && ip -4 route show default"));
        let around = route.split_whitespace().nth(2).expect("default via ADDRESS");
        let port = publisher.server.address().port();
        let manifest = format!(
            "schema = 1\nname = \"nested\"\narch = \"x86_64\"\nformat = \"ova\"\n\
             urls = [\"http://{around}:{port}{}\"]\nallow-http = true\nsha256 = \"{}\"\n{OFFER}",
            release.path,
            hex::encode(sha2::Sha256::digest(&release.bytes))
        );
        self.write("nested.toml", &manifest);
        self.write("inside.toml", RECIPE);
        let strip = Command::new("strip")
            .args(["-o", "nestlab", env!("CARGO_BIN_EXE_nestlab")])
            .current_dir(self.folder)
            .status();
        assert!(strip.expect("binutils are there").success(), "strip");
        for file in ["nestlab", "nested.toml", "inside.toml"] {
            let from = self.folder.join(file).display().to_string();
            self.l1.ok(&["cp", &from, &format!("l1:{THERE}/{file}")]);
        }
    }

    fn sh(&self, script: &str) -> String {
        self.l1.sh(&["l1"], script)
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.folder.join(file), text).expect("the file can be written");
    }

    fn run(&self, args: &[&str]) -> String {
        let program = format!("{THERE}/nestlab");
        let (state, cache) = (format!("{THERE}/state"), format!("{THERE}/cache"));
        let there = ["exec", "l1", "--", &program, "--state-dir", &state, "--cache-dir", &cache];
        self.l1.ok(&[&there, args].concat())
    }

    /// Returns what `script` says in the guest that nestlab built in L1.
    fn in_the_guest(&self, script: &str) -> String {
        self.run(&["exec", "nested", "--", "sh", "-c", script]).trim().to_owned()
    }
}
