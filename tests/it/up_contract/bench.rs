//! A lab of boot-sector guests, made through `nestlab up` from images that are served on loopback.

use std::path::PathBuf;
use std::process::Output;

use camino::Utf8PathBuf;
use serde_json::Value;
use sha2::Digest as _;

use crate::support::bench::Bench as PlanBench;
use crate::support::boot_sector;
use crate::support::lab::processes_naming;

/// The plan's bench, and the recipe of the lab `t1` on it.
pub(super) struct Bench {
    pub(super) nestlab: PlanBench,
}

/// The pattern that a test writes into a guest's disk, in its second half, where no boot sector is.
const MARK: &str = "0x5a";

impl Bench {
    pub(super) fn new() -> Self {
        Bench { nestlab: PlanBench::new() }
    }

    pub(super) fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.nestlab.path(name)).expect("UTF-8")
    }

    /// Publishes the guest `sector` as the image `name` in `version`, and writes its manifest to
    /// `name.toml`; `salt` makes its bytes, and so its digest, its own.
    pub(super) fn image(&self, sector: &str, name: &str, version: &str, salt: u8) {
        let raw = self.path("image.raw");
        boot_sector::assemble(sector, &raw);
        let mut bytes = std::fs::read(&raw).expect("was assembled");
        *bytes.last_mut().expect("a disk") = salt;
        let sha256 = hex::encode(sha2::Sha256::digest(&bytes));
        let path = format!("/{name}-{version}.raw");
        self.nestlab.server.serve(&path, bytes);
        let url = self.nestlab.server.url();
        let manifest = format!(
            "schema = 1\nname = \"{name}\"\nversion = \"{version}\"\narch = \"x86_64\"\nformat = \"raw\"\n\
             urls = [\"{url}{path}\"]\nsha256 = \"{sha256}\"\n\
             [guest]\nready = \"serial\"\nserial-pattern = \"up\"\nseed = \"none\"\nssh = false\n"
        );
        std::fs::write(self.path(&format!("{name}.toml")), manifest).expect("the folder is ours");
    }

    /// Takes the image `name` in `version` off the server.
    pub(super) fn unpublish(&self, name: &str, version: &str) {
        self.nestlab.server.forget(&format!("/{name}-{version}.raw"));
    }

    /// Returns whether anybody asked for the image `name` in `version`.
    pub(super) fn was_asked_for(&self, name: &str, version: &str) -> bool {
        !self.nestlab.server.requests_for(&format!("/{name}-{version}.raw")).is_empty()
    }

    /// Writes the recipe with one guest `g1` from the image `image`.
    pub(super) fn recipe(&self, image: &str, more: &str) {
        self.guests(&format!(
            "[[guest]]\nname = \"g1\"\nimage = \"./{image}.toml\"\ncpus = 1\novercommit = true\n{more}\n"
        ));
    }

    /// Writes the recipe with these guests.
    pub(super) fn guests(&self, guests: &str) {
        let text = format!("schema = 1\nname = \"t1\"\n[host]\nhypervisor = \"qemu\"\n{guests}");
        std::fs::write(self.path("t1.toml"), text).expect("the folder is ours");
    }

    /// Runs `nestlab COMMAND RECIPE args…`.
    pub(super) fn run(&self, command: &str, args: &[&str]) -> Output {
        let recipe = self.path("t1.toml");
        self.nestlab.run(&[&[command, recipe.as_str()], args].concat())
    }

    /// Runs `nestlab up args…`, which is to succeed, and returns what it said.
    pub(super) fn up(&self, args: &[&str]) -> String {
        let output = self.run("up", args);
        assert!(
            output.status.success(),
            "nestlab up {} ended with {}",
            args.join(" "),
            output.status
        );
        said(&output)
    }

    /// Runs `nestlab up args…`, which is to end with `code`, and returns what it said.
    pub(super) fn refused(&self, code: i32, args: &[&str]) -> String {
        let output = self.run("up", args);
        assert_eq!(output.status.code(), Some(code), "nestlab up {}", args.join(" "));
        said(&output)
    }

    /// Runs `nestlab up args…` with the fault; returns whether it ended well.
    pub(super) fn up_with(&self, fault: &str, args: &[&str]) -> bool {
        println!("with {fault}");
        let recipe = self.path("t1.toml");
        let mut up = self.nestlab.command(&[&["up", recipe.as_str()], args].concat());
        let output = up.env("NESTLAB_FAULT", fault).output().expect("nestlab runs");
        println!("{}", said(&output));
        output.status.success()
    }

    /// Runs `nestlab up` at a terminal of its own with `answer` typed, and returns what that showed.
    pub(super) fn up_at_a_terminal(&self, answer: &str) -> String {
        let recipe = self.path("t1.toml");
        let up = self.nestlab.command(&["up", recipe.as_str()]);
        let words = std::iter::once(up.get_program()).chain(up.get_args());
        let words: Vec<_> = words.map(|word| word.to_str().expect("UTF-8")).collect();
        let line = shlex::try_join(words).expect("no NUL");
        let mut script = std::process::Command::new("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        script.envs(up.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let pipe = std::process::Stdio::piped;
        let mut child =
            script.stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().expect("script runs");
        let mut stdin = child.stdin.take().expect("was asked for");
        std::io::Write::write_all(&mut stdin, answer.as_bytes()).expect("is heard");
        let output = child.wait_with_output().expect("ends");
        println!("{}", said(&output));
        said(&output)
    }

    /// Returns what `nestlab plan` answers.
    pub(super) fn plan(&self) -> Value {
        self.nestlab.json(&["plan", self.path("t1.toml").as_str()])
    }

    /// Returns the step `id` of the plan.
    pub(super) fn step(&self, id: &str) -> Value {
        let plan = self.plan();
        let steps = plan["steps"].as_array().unwrap_or_else(|| panic!("no steps in {plan}"));
        let step = steps.iter().find(|step| step["id"] == id);
        step.unwrap_or_else(|| panic!("no step {id} in {plan}")).clone()
    }

    /// Returns the ids of the plan's steps that are to be done.
    pub(super) fn to_do(&self) -> Vec<String> {
        let plan = self.plan();
        let steps = plan["steps"].as_array().unwrap_or_else(|| panic!("no steps in {plan}"));
        let open = steps.iter().filter(|step| step["state"] != "satisfied");
        open.map(|step| step["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// The file `name` in the folder of `g1`.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.nestlab.lab("t1").join("disks/g1").join(name)
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.file("disk.qcow2")
    }

    /// Writes the mark to a disk that no guest runs on, as a guest would.
    pub(super) fn mark(&self, disk: &std::path::Path) {
        self.qemu_io(disk, &format!("write -P {MARK} 512k 4k"));
        assert!(self.is_marked(disk), "the mark can be read");
    }

    /// Returns whether the disk has the mark.
    pub(super) fn is_marked(&self, disk: &std::path::Path) -> bool {
        let output = std::process::Command::new("qemu-io")
            .args(["-U", "-r", "-f", "qcow2", "-c", &format!("read -P {MARK} 512k 4k")])
            .arg(disk)
            .output()
            .expect("qemu-io is there");
        output.status.success() && !said(&output).contains("verification failed")
    }

    fn qemu_io(&self, disk: &std::path::Path, command: &str) {
        let mut io = std::process::Command::new("qemu-io");
        boot_sector::run(io.args(["-f", "qcow2", "-c", command]).arg(disk));
    }

    /// Returns the process id of the guest's QEMU, which runs.
    pub(super) fn pid(&self) -> u32 {
        let text = std::fs::read_to_string(self.file("pid")).expect("it runs");
        text.trim().parse().expect("a process id")
    }

    /// Returns the processes of the lab's guests.
    pub(super) fn processes(&self) -> Vec<String> {
        processes_naming(&self.nestlab.lab("t1").display().to_string())
    }

    /// Returns the kinds of the journal's records.
    pub(super) fn records(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.nestlab.lab("t1").join("journal.jsonl"));
        let kind = |line: &str| -> Option<String> {
            let record: Value = serde_json::from_str(line).ok()?;
            Some(record["record"].as_str()?.to_owned())
        };
        text.expect("the journal is there").lines().filter_map(kind).collect()
    }

    pub(super) fn state(&self) -> String {
        self.nestlab.guest("t1", "g1")["state"].as_str().expect("a state").to_owned()
    }
}

impl Drop for Bench {
    /// Ends what a test left, by the lab's own folder among its arguments.
    fn drop(&mut self) {
        for process in self.processes() {
            let pid = process.split(':').next().unwrap_or_default().to_owned();
            let _ = std::process::Command::new("kill").args(["-KILL", &pid]).status();
        }
    }
}

pub(super) fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(err), String::from_utf8_lossy(out))
}
