//! A nestlab with a state directory of its own, run as a user runs it; and a look at its labs from
//! outside, through OpenSSH's client, which knows nothing of nestlab.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// nestlab with its own state, and the store of images that all tests of a run share.
pub struct Nestlab {
    state: TempDir,
    cache: PathBuf,
    environment: Vec<(&'static str, OsString)>,
}

impl Nestlab {
    /// Makes the state directory.
    pub fn new() -> Self {
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let state = tempfile::Builder::new()
            .prefix("state-")
            .tempdir_in(shared)
            .expect("the target directory can be written");
        Nestlab { state, cache: shared.join("cache"), environment: Vec::new() }
    }

    /// Uses a store of its own instead of the shared one.
    pub fn with_own_store(mut self) -> Self {
        self.cache = self.state.path().join("own-cache");
        self
    }

    /// Sets an environment variable for every command.
    pub fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    pub fn state(&self) -> &Path {
        self.state.path()
    }

    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The folder of the lab called `name`.
    pub fn lab(&self, name: &str) -> PathBuf {
        self.state().join("labs").join(name)
    }

    /// Returns the command `nestlab args…`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nestlab"));
        command
            .arg("--state-dir")
            .arg(self.state())
            .arg("--cache-dir")
            .arg(&self.cache)
            .args(args)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs `nestlab args…`; what it says on stderr is shown, as the transcript of the test.
    pub fn run(&self, args: &[&str]) -> Output {
        println!("$ nestlab {}", args.join(" "));
        let output = self.command(args).output().expect("nestlab runs");
        for text in [&output.stderr, &output.stdout] {
            print!("{}", String::from_utf8_lossy(text));
        }
        output
    }

    /// Runs `nestlab args…`, which is to succeed, and returns what it says on stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "nestlab {} ended with {}", args.join(" "), output.status);
        String::from_utf8(output.stdout).expect("UTF-8 on stdout")
    }

    /// Returns what `nestlab args… --json` answers.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.command(args).arg("--json").output().expect("nestlab runs");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            let (out, err) = (&output.stdout, &output.stderr);
            let (out, err) = (String::from_utf8_lossy(out), String::from_utf8_lossy(err));
            panic!("nestlab {} --json: {error}: {out}{err}", args.join(" "))
        })
    }

    /// Returns the guest `guest` of the lab `lab` as `nestlab status` shows it.
    pub fn guest(&self, lab: &str, guest: &str) -> Value {
        let status = self.json(&["status", lab]);
        let guests = status["labs"][0]["guests"].as_array().expect("guests").clone();
        guests.into_iter().find(|it| it["name"] == guest).expect("the guest is in the lab")
    }

    /// Returns a way into the guest through OpenSSH alone, over the guests between.
    pub fn way_in(&self, lab: &str, path: &[&str]) -> WayIn {
        let addresses = path
            .iter()
            .map(|guest| {
                let seen = self.guest(lab, guest);
                let address = seen["address"].as_str();
                let address = address.unwrap_or_else(|| panic!("no way into {guest}: {seen}"));
                let address = address.to_owned();
                (format!("{guest}.{lab}.nestlab"), address)
            })
            .collect();
        WayIn { directory: self.lab(lab), addresses }
    }
}

/// A way into a guest that uses nothing of nestlab but the lab's keys.
pub struct WayIn {
    directory: PathBuf,
    /// The alias in `known_hosts` and the address, the outermost guest first.
    addresses: Vec<(String, String)>,
}

impl WayIn {
    /// Runs `script` in the innermost guest.
    pub fn run(&self, script: &str) -> Output {
        let (alias, address) = self.addresses.last().expect("a way leads somewhere");
        let mut command = Command::new("ssh");
        command.args(self.options(alias, address));
        if let Some(proxy) = self.proxy() {
            command.arg("-o").arg(format!("ProxyCommand={proxy}"));
        }
        let host = address.rsplit_once(':').expect("an address has a port").0;
        command.arg(format!("root@{host}")).arg(script).output().expect("ssh runs")
    }

    fn options(&self, alias: &str, address: &str) -> Vec<String> {
        let port = address.rsplit_once(':').expect("an address has a port").1;
        let in_lab = |name: &str| self.directory.join(name).display().to_string();
        vec![
            "-F".into(),
            "none".into(),
            "-i".into(),
            in_lab("keys/user"),
            "-o".into(),
            format!("UserKnownHostsFile={}", in_lab("known_hosts")),
            "-o".into(),
            format!("HostKeyAlias={alias}"),
            "-o".into(),
            "StrictHostKeyChecking=yes".into(),
            "-o".into(),
            "BatchMode=yes".into(),
            "-p".into(),
            port.into(),
        ]
    }

    /// The command that leads to the last guest's address through all before it.
    fn proxy(&self) -> Option<String> {
        let mut proxy: Option<String> = None;
        for pair in self.addresses.windows(2) {
            let ((alias, address), (_, next)) = (&pair[0], &pair[1]);
            let mut words = vec!["ssh".to_owned()];
            words.extend(self.options(alias, address));
            if let Some(outer) = &proxy {
                words.extend(["-o".to_owned(), format!("ProxyCommand={outer}")]);
            }
            words.extend(["-W".to_owned(), next.clone(), "root@127.0.0.1".to_owned()]);
            proxy = Some(shlex::try_join(words.iter().map(String::as_str)).expect("no NUL"));
        }
        proxy
    }
}

/// Returns the processes whose command line names `text`.
pub fn processes_naming(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(cmdline) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        if cmdline.contains(text) && entry.file_name() != "self" {
            found.push(format!("{}: {cmdline}", entry.file_name().to_string_lossy()));
        }
    }
    found.retain(|process| !process.starts_with(&format!("{}:", std::process::id())));
    found
}

/// Returns output as text.
pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
