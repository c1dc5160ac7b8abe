//! `nestlab status`, as a user runs it, of a lab whose guest is a VM that the real VBoxManage knows.

use camino::{Utf8Path, Utf8PathBuf};
use nestlab::lab::Labs;
use nestlab::plan::{Blueprint, Images};
use nestlab::recipe::budget::{self, Resources};
use nestlab::recipe::{Cpus, HypervisorKind, Mebibytes, Platform, Recipe, RecipeOrigin};

use crate::support::virtualbox_native::Bench;

const RECIPE: &str = "schema = 1\nname = \"mine\"\n[[guest]]\nname = \"l1\"\nvm = \"Mine\"\n\
                      cpus = 2\nnested = true\nssh = { user = \"me\" }\n";

/// A lab that was built, with its guest as the recipe says, and nestlab to ask about it.
struct Built {
    bench: Bench,
    folder: tempfile::TempDir,
}

impl Built {
    async fn new() -> Self {
        let mut bench = Bench::existing("Mine", false).await;
        let folder = tempfile::tempdir().unwrap();
        let built = Blueprint::draw(&recipe(), &budget(), &images(), &lab(folder.path())).unwrap();
        let held = lab(folder.path()).lock(["nestlab", "up"]).unwrap();
        built.keep(&held, &held.journal().unwrap()).await.unwrap();
        bench.spec = built.machine("l1").unwrap().spec.clone();
        bench.up().await;
        Built { bench, folder }
    }

    /// Returns what `nestlab status` answers, and how often it ran VBoxManage for that.
    fn status(&self, args: &[&str]) -> (String, usize) {
        let program = Utf8PathBuf::from_path_buf(self.folder.path().join("VBoxManage")).unwrap();
        let log = program.with_extension("log");
        let _ = std::fs::remove_file(&log);
        self.bench.host.program(&program);
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_nestlab"))
            .arg("--state-dir")
            .arg(self.folder.path().join("state"))
            .arg("--cache-dir")
            .arg(self.folder.path().join("cache"))
            .args(["status", "mine"])
            .args(args)
            .env("NESTLAB_VBOXMANAGE", &program)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let runs = std::fs::read_to_string(&log).unwrap();
        (String::from_utf8(output.stdout).unwrap(), runs.lines().count())
    }
}

fn recipe() -> Recipe {
    Recipe::parse(RECIPE, RecipeOrigin::Shipped).unwrap()
}

fn images() -> Images {
    Images::of(&recipe()).unwrap()
}

fn budget() -> budget::Budget {
    let machine = Resources {
        cores: Cpus::new(4).unwrap(),
        memory: Mebibytes::gib(16),
        free_disk: None,
        networks: Vec::new(),
        hypervisor: HypervisorKind::VirtualBox,
        platform: Platform::Linux,
        host_key: None,
    };
    budget::derive(&recipe(), &machine, &images().defaults()).unwrap()
}

fn lab(folder: &std::path::Path) -> nestlab::lab::Lab {
    let state = Utf8Path::from_path(folder).unwrap().join("state");
    Labs::at(&state).create(&"mine".parse().unwrap(), RECIPE).unwrap()
}

#[tokio::test]
async fn status_shows_what_was_changed_by_hand_and_is_quick_when_nothing_was() {
    let built = Built::new().await;
    let (text, runs) = built.status(&[]);
    assert!(text.contains("l1") && text.contains("off") && !text.contains('→'), "{text}");
    // Its version, the list of VMs, and the VM itself.
    assert!(runs <= 3, "VBoxManage ran {runs} times");

    let uuid = built.bench.inspect().await.unwrap().id;
    let by_hand = ["--cpus", "1", "--nested-hw-virt", "off", "--memory", "4096"];
    built.bench.host.vbox(&[&["modifyvm", &uuid][..], &by_hand].concat()).await;
    let (text, _) = built.status(&[]);
    assert!(text.contains("cpus: 1 → 2") && text.contains("nested-hw-virt: off → on"), "{text}");
    assert!(text.contains("`nestlab up` changes it back"), "{text}");
    assert!(!text.contains("memory"), "the recipe leaves it to the VM: {text}");

    let (json, _) = built.status(&["--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let drift = &json["labs"][0]["guests"][0]["drift"];
    let cpus = serde_json::json!({ "setting": "cpus", "actual": "1", "wanted": "2" });
    assert_eq!(drift[0], cpus, "{json}");

    built.bench.up().await;
    assert!(!built.status(&[]).0.contains('→'));
}
