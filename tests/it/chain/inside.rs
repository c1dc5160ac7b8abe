//! nestlab itself in L1: there L1 is its L0, with VirtualBox, and it builds a guest that gets hardware
//! virtualization of its own. So VirtualBox's part as the outermost hypervisor is proven by a real start.

use std::path::Path;
use std::process::Command;

use sha2::Digest as _;

use super::OFFER;
use crate::support::lab::Nestlab;
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
pub struct Inside<'a> {
    nestlab: &'a Nestlab,
    /// Where the files that go into L1 are written.
    folder: &'a Path,
}

impl<'a> Inside<'a> {
    /// Returns the nestlab in L1 of `nestlab`'s lab; its files are made in `folder`.
    pub fn of(nestlab: &'a Nestlab, folder: &'a Path) -> Self {
        Inside { nestlab, folder }
    }

    /// Asserts that it builds a guest with svm in it, with L1 as its L0, and takes it away again. The guest's
    /// image is `release`.
    pub fn builds_a_guest_that_has_virtualization(&self, publisher: &Publisher, release: &Release) {
        self.move_in(publisher, release);
        self.run(&["up", &format!("{THERE}/inside.toml"), "--no-progress"]);

        let l1 = self.nestlab.way_in("chain", &["l1"]);
        let flags = self.in_the_guest("grep -m 1 ^flags /proc/cpuinfo");
        assert!(flags.split_whitespace().any(|flag| flag == "svm"), "{flags}");
        let cpus: u32 = self.in_the_guest("nproc").parse().expect("a number");
        let around: u32 = l1.sh("nproc").parse().expect("a number");
        println!("nestlab in L1 built a guest with svm and {cpus} of L1's {around} CPUs");
        assert_eq!(cpus, (around - 1).max(1), "one CPU fewer than L1 has, and one at least");
        let settings = l1.sh("VBoxManage showvminfo nestlab-inside-nested --machinereadable");
        for setting in ["nested-hw-virt", "nestedpaging", "ioapic", "acpi"] {
            let on = format!("{setting}=\"on\"");
            assert!(settings.contains(&on), "{on} is missing in {settings}");
        }
        assert!(self.run(&["status"]).contains("up"), "status says so");

        self.run(&["destroy", "inside", "--yes"]);
        let left = l1.sh("VBoxManage list vms");
        assert!(!left.contains("inside"), "its own VM is gone: {left}");
        assert!(left.contains("\"nestlab-chain-l2\""), "another's is still there: {left}");
    }

    /// Puts nestlab, a recipe and a manifest into L1. The image comes from the publisher around L1, and only
    /// its digest makes it trusted.
    fn move_in(&self, publisher: &Publisher, release: &Release) {
        let l1 = self.nestlab.way_in("chain", &["l1"]);
        let route = l1.sh(&format!("mkdir -p {THERE} && ip -4 route show default"));
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
            self.nestlab.ok(&["cp", &from, &format!("l1:{THERE}/{file}")]);
        }
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.folder.join(file), text).expect("the file can be written");
    }

    fn run(&self, args: &[&str]) -> String {
        let program = format!("{THERE}/nestlab");
        let (state, cache) = (format!("{THERE}/state"), format!("{THERE}/cache"));
        let there = ["exec", "l1", "--", &program, "--state-dir", &state, "--cache-dir", &cache];
        self.nestlab.ok(&[&there, args].concat())
    }

    /// Returns what `script` says in the guest that nestlab built in L1.
    fn in_the_guest(&self, script: &str) -> String {
        self.run(&["exec", "nested", "--", "sh", "-c", script]).trim().to_owned()
    }
}
