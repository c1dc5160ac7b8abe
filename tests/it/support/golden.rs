//! A lab as nestlab 0.1.0 left it, with the store that it was made from: `tests/fixtures/state-0.1.0`.
//!
//! The fixture is what that version wrote, with placeholders for the folders; what is big or belongs to one
//! machine is made here: the disk (the boot sector once more), the VM's UUID, empty folders.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use nestlab::plan::Blueprint;
use serde_json::Value;

/// The lab `golden` with its guest `g1`, which is off, and a nestlab that works on it.
pub(crate) struct Golden {
    pub(crate) root: Utf8PathBuf,
    _folder: tempfile::TempDir,
}

impl Golden {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).expect("UTF-8");
        let golden = Golden { root, _folder: folder };
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/state-0.1.0");
        golden.copy(Utf8Path::new(fixture), &golden.root);
        golden.complete();
        golden
    }

    fn copy(&self, from: &Utf8Path, to: &Utf8Path) {
        fs::create_dir_all(to).expect("makes a folder");
        fs::set_permissions(to, fs::Permissions::from_mode(0o700)).expect("closes it");
        for entry in from.read_dir_utf8().expect("is in the repository") {
            let entry = entry.expect("can be read");
            let to = to.join(entry.file_name());
            if entry.file_type().expect("has one").is_dir() {
                self.copy(entry.path(), &to);
                continue;
            }
            let bytes = fs::read(entry.path()).expect("can be read");
            let bytes = match String::from_utf8(bytes) {
                Ok(text) => text
                    .replace("@STATE@", self.state().as_str())
                    .replace("@CACHE@", self.root.join("cache").as_str())
                    .into_bytes(),
                Err(binary) => binary.into_bytes(),
            };
            fs::write(&to, bytes).expect("writes");
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("closes it");
        }
    }

    fn complete(&self) {
        for folder in ["keys", "disks/g1"] {
            fs::create_dir_all(self.lab().join(folder)).expect("makes a folder");
        }
        let images = self.root.join("cache/images");
        let store = images.read_dir_utf8().expect("is there").find_map(|entry| {
            let image = entry.expect("can be read").path().join("boot.raw");
            image.exists().then_some(image)
        });
        let image = store.expect("the image is in the store");
        let file = fs::File::options().write(true).open(&image).expect("opens");
        file.set_len(1 << 20).expect("grows to what it was");
        let disk = self.lab().join("disks/g1/disk.qcow2");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", "qcow2", image.as_str(), disk.as_str()]);
        super::boot_sector::run(&mut convert);
        let machines = fs::read(self.lab().join("machines.json")).expect("is there");
        let blueprint: Blueprint = serde_json::from_slice(&machines).expect("can be read");
        let uuid = blueprint.machines[0].spec.uuid().to_string();
        let definition = self.lab().join("disks/g1/guest.json");
        let text = fs::read_to_string(&definition).expect("is there").replace("@UUID@", &uuid);
        fs::write(definition, text).expect("writes");
    }

    pub(crate) fn state(&self) -> Utf8PathBuf {
        self.root.join("state")
    }

    /// The lab's folder.
    pub(crate) fn lab(&self) -> Utf8PathBuf {
        self.state().join("labs/golden")
    }

    /// A file of the lab.
    pub(crate) fn file(&self, name: &str) -> Utf8PathBuf {
        self.lab().join(name)
    }

    pub(crate) fn recipe(&self) -> String {
        self.root.join("recipe/golden.toml").into_string()
    }

    /// Returns what is in the file `name` of the lab.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Replaces `from` by `to` in the file `name` of the lab, where it must be.
    pub(crate) fn change(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{from} is not in {name}: {text}");
        fs::write(self.file(name), text.replace(from, to)).expect("writes");
    }

    /// Returns the command `around… nestlab args…`, with this state directory and store.
    pub(crate) fn command_in(&self, around: &[&str], args: &[&str]) -> Command {
        self.command_at(&self.state(), around, args)
    }

    /// Returns the same with the state directory at `state`.
    pub(crate) fn command_at(&self, state: &Utf8Path, around: &[&str], args: &[&str]) -> Command {
        let nestlab = env!("CARGO_BIN_EXE_nestlab");
        let argv: Vec<&str> = around.iter().copied().chain([nestlab]).collect();
        let mut command = Command::new(argv[0]);
        command
            .args(&argv[1..])
            .args(["--state-dir", state.as_str()])
            .args(["--cache-dir", self.root.join("cache").as_str()])
            .args(args)
            .env("HOME", &self.root)
            .stdin(Stdio::null());
        command
    }

    /// Runs `nestlab args…` and returns how it ended; what it said is shown.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command_in(&[], args))
    }

    /// Runs `nestlab args…`, which must succeed, and returns what it said on both outputs.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.said);
        ran.said
    }

    /// Returns what `nestlab args… --json` answers.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.command_in(&[], args).arg("--json").output().expect("nestlab runs");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{args:?}: {error}: {}", String::from_utf8_lossy(&output.stderr))
        })
    }

    /// Builds and starts the lab.
    pub(crate) fn up(&self) {
        self.ok(&["up", &self.recipe()]);
        assert_eq!(self.qemus().len(), 1, "the guest runs");
    }

    /// Returns the state of the guest `g1`.
    pub(crate) fn power(&self) -> String {
        let status = self.json(&["status", "golden"]);
        status["labs"][0]["guests"][0]["state"].as_str().expect("a word").to_owned()
    }

    /// Returns the ids of the QEMU processes with files in this folder.
    pub(crate) fn qemus(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments);
            let program = arguments.split('\0').next().unwrap_or_default();
            if program.contains("qemu-system") && arguments.contains(self.root.as_str()) {
                found.extend(entry.file_name().to_str().and_then(|pid| pid.parse::<i32>().ok()));
            }
        }
        found
    }
}

impl Drop for Golden {
    /// Ends the QEMU of a test that failed on its way.
    fn drop(&mut self) {
        for pid in self.qemus() {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }
}

/// How a nestlab ended, and what it said.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
}

impl Ran {
    pub(crate) fn of(mut command: Command) -> Self {
        println!("$ {command:?}");
        let Output { status, stdout, stderr } = command.output().expect("it runs");
        let said = [stderr, stdout].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        print!("{said}");
        Ran { code: status.code(), said }
    }

    /// Sees that it failed with `code`, and said each of `parts`.
    pub(crate) fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.said);
        for part in parts {
            assert!(self.said.contains(part), "{part} is missing in: {}", self.said);
        }
    }
}
