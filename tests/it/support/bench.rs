//! The bench of the plan: the real binary with real recipes, drivers and steps, on this machine as L0, and
//! guests that are up within a second.
//!
//! A guest is a boot sector in the real QEMU. One that can be entered has, on the same wire, this machine's
//! system in namespaces with a real sshd, a real apt and whatever the test puts there
//! (`tests/it/plan_bench/machine/`); it can host guests itself.
//!
//! ```ignore
//! let bench = Bench::new();
//! let recipe = bench.recipe("[[guest]]\nname = \"l1\"\nimage = \"./boot.toml\"\n");
//! bench.ok(&["up", &recipe]);
//! ```

use std::fs::Permissions;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use camino::Utf8Path;
use serde_json::Value;
use sha2::Digest as _;
use tempfile::TempDir;

use super::boot_sector;
use super::debian::{Deb, index};
use super::lab::{Nestlab, processes_naming};
use super::publisher::server::Server;

/// The programs of the bench and where each goes; those that begin with `inside/` are a guest's own.
const MACHINE: &[(&str, &str)] = &[
    ("qemu-system-x86_64", include_str!("../plan_bench/machine/qemu-system-x86_64")),
    ("guest", include_str!("../plan_bench/machine/guest")),
    ("inside/init", include_str!("../plan_bench/machine/inside/init")),
    ("inside/modprobe", include_str!("../plan_bench/machine/inside/modprobe")),
    ("inside/systemctl", include_str!("../plan_bench/machine/inside/systemctl")),
    ("inside/uname", include_str!("../plan_bench/machine/inside/uname")),
    ("inside/sshd_config", include_str!("../plan_bench/machine/inside/sshd_config")),
    // Nestlab's own images make themselves a machine by this one.
    ("inside/seed", include_str!("../../../src/image/build/debian/seed")),
];

/// What every recipe of the bench begins with; guests run in QEMU.
const HEAD: &str = "schema = 1\nname = \"bench\"\n[host]\nhypervisor = \"qemu\"\n";

/// A nestlab with a state directory, a store, a home and a publisher of its own; nothing of it is left when it
/// is dropped.
pub(crate) struct Bench {
    nestlab: Nestlab,
    folder: TempDir,
    pub(crate) server: Server,
}

impl Deref for Bench {
    type Target = Nestlab;

    fn deref(&self) -> &Nestlab {
        &self.nestlab
    }
}

impl Bench {
    /// Makes one with the images `boot` (it says "up" on its serial console) and `host` (it can be entered).
    pub(crate) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "the bench makes namespaces: run it as root");
        let folder = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("the target directory can be written");
        let machine = folder.path().join("machine");
        for (name, text) in MACHINE {
            let path = machine.join(name);
            fs_err::create_dir_all(path.parent().expect("in a folder")).expect("a folder");
            fs_err::write(&path, text).expect("written");
            let executable = Permissions::from_mode(0o755);
            fs_err::set_permissions(&path, executable).expect("set");
        }
        let path = std::env::var("PATH").expect("a PATH");
        let home = folder.path().join("home");
        fs_err::create_dir(&home).expect("a home");
        let nestlab = Nestlab::new()
            .with_own_store()
            .with("PATH", format!("{}:{path}", machine.display()))
            .with("HOME", home)
            .with("SSH_AUTH_SOCK", "");
        let bench = Bench { nestlab, folder, server: Server::start() };
        bench.boot_image("boot", "obedient", "ready = \"serial\"\nserial-pattern = \"^up$\"\n");
        bench.boot_image("host", "obedient", "user = \"root\"\nssh = true\nseed = \"cidata\"\n");
        bench
    }

    /// Returns `path` in the bench's own folder.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Publishes the boot sector `source` of `tests/guests/` as the image `./<name>.toml`, whose guest has
    /// these lines.
    pub(crate) fn boot_image(&self, name: &str, source: &str, guest: &str) {
        let disk = self.path(&format!("{name}.raw"));
        boot_sector::assemble(source, Utf8Path::from_path(&disk).expect("UTF-8"));
        self.image(name, fs_err::read(disk).expect("assembled"), guest);
    }

    /// Publishes `bytes` as the raw image `./<name>.toml`.
    pub(crate) fn image(&self, name: &str, bytes: Vec<u8>, guest: &str) {
        let manifest = format!(
            "schema = 1\nname = \"{name}\"\nversion = \"1\"\narch = \"x86_64\"\nformat = \"raw\"\n\
             urls = [\"{}/{name}.raw\"]\nsha256 = \"{}\"\n[guest]\nmemory = \"32MiB\"\n{guest}",
            self.server.url(),
            hex::encode(sha2::Sha256::digest(&bytes)),
        );
        self.server.serve(&format!("/{name}.raw"), bytes);
        fs_err::write(self.path(&format!("{name}.toml")), manifest).expect("written");
    }

    /// Writes the recipe of the lab `bench` on this machine's QEMU, with these guests, and returns its path.
    pub(crate) fn recipe(&self, guests: &str) -> String {
        self.whole_recipe("lab.toml", &format!("{HEAD}{guests}"))
    }

    /// Writes a recipe and returns its path.
    pub(crate) fn whole_recipe(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs_err::write(&path, text).expect("written");
        path.display().to_string()
    }

    /// Builds these packages into the repository that guests' apt knows.
    pub(crate) fn packages(&self, packages: &[Deb<'_>]) {
        let repository = self.path("machine/repository");
        fs_err::create_dir_all(&repository).expect("a folder");
        for package in packages {
            package.build(&repository);
        }
        index(&repository);
    }

    /// Starts `nestlab args…` with what it says going where `command` is told.
    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        let mut command: Command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("nestlab runs")
    }

    /// Returns how `nestlab args…` ends: its exit code, and what it says on stdout and stderr.
    pub(crate) fn ends(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output = self.run(args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Returns the steps of `plan --json` with what each finds: its id and its state.
    pub(crate) fn plan(&self, recipe: &str) -> Vec<(String, String)> {
        let plan = self.json(&["plan", recipe]);
        let steps = plan["steps"].as_array().expect("steps").clone();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        steps.iter().map(|step| (text(&step["id"]), text(&step["state"]))).collect()
    }

    /// Returns the outcomes that the journal of the lab `bench` has, by step: the last of each.
    pub(crate) fn outcomes(&self) -> std::collections::BTreeMap<String, String> {
        let text = fs_err::read_to_string(self.lab("bench").join("journal.jsonl")).expect("reads");
        let records = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let mut outcomes = std::collections::BTreeMap::new();
        for record in records {
            let how = match record["record"].as_str() {
                Some("satisfied") => "right",
                Some("outcome") => record["outcome"]["how"].as_str().expect("a word"),
                _ => continue,
            };
            outcomes.insert(record["step"].as_str().expect("a step").to_owned(), how.to_owned());
        }
        outcomes
    }

    /// Runs `up` again, which is to find nothing to do, and returns the events.
    pub(crate) fn up_changes_nothing(&self, recipe: &str) {
        let events = self.ok(&["up", recipe, "--json"]);
        let end = events.lines().last().expect("events");
        let end: Value = serde_json::from_str(end).expect("JSON");
        assert_eq!(end["event"], "run-ended", "{events}");
        assert_eq!(end["changed"], 0, "the second run changed something:\n{events}");
    }

    /// Removes the lab `bench` and asserts that nothing of it is left: no process, no file, no wire.
    pub(crate) fn destroy(&self) {
        self.ok(&["destroy", "bench", "--yes"]);
        self.assert_nothing_left();
    }

    /// Asserts that there is no lab: no file in the state directory, no process that names it.
    pub(crate) fn assert_nothing_left(&self) {
        let state = self.state().to_str().expect("UTF-8");
        let mut files = Vec::new();
        list(self.state(), &mut files);
        files.retain(|path| !path.starts_with(self.cache()) && *path != self.state().join("labs"));
        assert!(files.is_empty(), "left over: {files:?}");
        let mut images = Vec::new();
        list(&self.cache().join("images"), &mut images);
        let held: Vec<_> = images.iter().filter(|path| path.ends_with("users/bench")).collect();
        assert!(held.is_empty(), "the lab still holds images: {held:?}");
        // A guest's processes end right after its QEMU.
        let left = || processes_naming(state);
        while left().iter().any(|process| process.contains("/guest ")) {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(left().is_empty(), "left over: {:?}", left());
    }
}

impl Drop for Bench {
    /// Ends the guests of a test that did not come to its end.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.command(&["destroy", "bench", "--yes", "--quiet"]).output();
        }
    }
}

/// Adds all that is in `folder`, if that is there.
fn list(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs_err::read_dir(folder).into_iter().flatten().flatten() {
        into.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), into);
        }
    }
}
