//! A user with labs of boot-sector guests, which take no image that would have to be built.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use nestlab::lab::{Lab, Labs};
use serde_json::Value;

use crate::support::boot_sector;
use crate::support::publisher::server::Server;
use crate::support::sshd::{self, Sshd};

/// A home directory with recipes, a state directory and an image store.
pub(crate) struct User {
    folder: tempfile::TempDir,
    server: Server,
}

impl User {
    /// Makes one, and publishes the boot sector `obedient` as the image `./boot.toml`.
    pub(crate) fn new() -> Self {
        let user = User { folder: tempfile::tempdir().expect("a folder"), server: Server::start() };
        let (raw, disk) = (user.path("boot.raw"), user.path("boot.qcow2"));
        boot_sector::assemble("obedient", &raw);
        let convert = ["convert", "-O", "qcow2", raw.as_str(), disk.as_str()];
        boot_sector::run(Command::new("qemu-img").args(convert));
        let bytes = std::fs::read(&disk).expect("the disk was made");
        let digest = nestlab::image::Sha256::of_file(&disk).expect("can be read");
        user.server.serve("/boot.qcow2", bytes);
        let url = user.server.url();
        user.write(
            "boot.toml",
            &format!(
                "schema = 1\nname = \"boot\"\nversion = \"1\"\narch = \"x86_64\"\nformat = \"qcow2\"\n\
                 urls = [\"{url}/boot.qcow2\"]\nsha256 = \"{digest}\"\n\
                 [guest]\nready = \"serial\"\nserial-pattern = \"^up$\"\nmemory = \"64MiB\"\n"
            ),
        );
        user
    }

    pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.folder.path()).expect("UTF-8").join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Utf8PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
        std::fs::write(&path, text).expect("writes");
        path
    }

    /// Writes to `file` the recipe of the lab `lab` with these guests of L0.
    pub(crate) fn recipe(&self, file: &str, lab: &str, guests: &[&str]) -> Utf8PathBuf {
        self.recipe_on(file, lab, "", guests)
    }

    /// The same, with these further lines of `[host]`.
    pub(crate) fn recipe_on(
        &self,
        file: &str,
        lab: &str,
        host: &str,
        guests: &[&str],
    ) -> Utf8PathBuf {
        let image = self.path("boot.toml");
        let guests = guests.iter().map(|name| {
            format!(
                "[[guest]]\nname = \"{name}\"\nparent = \"L0\"\nimage = \"{image}\"\ncpus = 1\n"
            )
        });
        let guests: String = guests.collect();
        let text = format!(
            "schema = 1\nname = \"{lab}\"\n[host]\nhypervisor = \"qemu\"\n{host}\n{guests}"
        );
        self.write(file, &text)
    }

    pub(crate) fn labs(&self) -> Labs {
        Labs::at(self.path("state"))
    }

    pub(crate) fn lab(&self, name: &str) -> Lab {
        self.labs().planned(&name.parse().expect("a name"))
    }

    /// Returns the command `nestlab args…`.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nestlab"));
        command
            .args(["--state-dir", self.path("state").as_str()])
            .args(["--cache-dir", self.path("cache").as_str()])
            .args(args)
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null());
        command
    }

    /// Runs `nestlab args…`, and shows what it says.
    pub(crate) fn run(&self, args: &[&str]) -> Said {
        println!("$ nestlab {}", args.join(" "));
        Said::of(self.command(args).output().expect("nestlab runs"))
    }

    /// Runs `nestlab args…`, which is to succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> Said {
        let said = self.run(args);
        assert_eq!(said.code, 0, "nestlab {}", args.join(" "));
        said
    }

    /// Returns what `nestlab args… --json` answers.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let said = self.run(&[args, &["--json"]].concat());
        serde_json::from_str(&said.out).expect("one JSON object")
    }

    /// Returns the guest `guest` as `nestlab status` shows it, if it does.
    pub(crate) fn guest(&self, lab: &str, guest: &str) -> Option<Value> {
        let status = self.json(&["status", lab]);
        let guests = status["labs"][0]["guests"].as_array().expect("guests").clone();
        guests.into_iter().find(|it| it["name"] == guest)
    }

    /// Returns the names of the VMs that run in this user's folder.
    pub(crate) fn running(&self) -> Vec<String> {
        let mut names: Vec<String> = self.qemus().into_iter().map(|(_, name)| name).collect();
        names.sort();
        names
    }

    /// Returns the process id of the VM `name`, which runs.
    pub(crate) fn pid(&self, name: &str) -> u32 {
        self.qemus().into_iter().find(|(_, it)| it == name).expect("it runs").0
    }

    /// Lets the user in at `sshd`, by a key in `~/.ssh` and its host key in `known_hosts`.
    pub(crate) fn may_enter(&self, sshd: &Sshd) {
        self.write(".ssh/id_ed25519", &sshd.read("user"));
        let known = format!("[127.0.0.1]:{} {}", sshd.port(), sshd.read("host.pub"));
        self.write(".ssh/known_hosts", &known);
        let closed = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(self.path(".ssh/id_ed25519"), closed).expect("chmod");
    }

    /// Returns the QEMUs that were started in this user's folder, also if that is gone: process id and name.
    fn qemus(&self) -> Vec<(u32, String)> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            let Ok(cwd) = std::fs::read_link(entry.path().join("cwd")) else { continue };
            let Ok(arguments) = std::fs::read(entry.path().join("cmdline")) else { continue };
            let here =
                cwd.as_os_str().as_bytes().starts_with(self.folder.path().as_os_str().as_bytes());
            let arguments = String::from_utf8_lossy(&arguments).into_owned();
            let name = arguments.split('\0').find_map(|argument| argument.strip_prefix("guest="));
            if let Some(name) = name.filter(|_| here) {
                found.push((pid, name.split(',').next().unwrap_or_default().to_owned()));
            }
        }
        found
    }
}

impl Drop for User {
    /// Ends what a test that failed has left running.
    fn drop(&mut self) {
        for (pid, _) in self.qemus() {
            sshd::kill(pid);
        }
    }
}

/// What a run of nestlab said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let (out, err) = (text(output.stdout), text(output.stderr));
        println!("{err}{out}");
        Said { code: output.status.code().expect("no signal"), out, err }
    }
}
