//! A machine under QEMU's own emulation, started by hand: what an image does is seen by other programs
//! than nestlab's.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use camino::Utf8Path;
use nestlab::image::build::seed::{self, Seed};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How many looks at a machine there are from one press of its power button to the next.
const LOOKS_PER_PRESS: u32 = 50;

/// A running machine; dropping it pulls the plug.
pub(crate) struct Machine {
    qemu: Child,
    monitor: ChildStdin,
    answers: Receiver<String>,
    port: u16,
    folder: tempfile::TempDir,
}

impl Machine {
    /// Starts a machine called `hostname` with a fresh seed on a disk of its own; `hardware` are QEMU's
    /// options for all else. Its network card is to be on the network `net`.
    pub(crate) fn start(hostname: &str, hardware: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let seed = write_keys_and_seed(folder.path(), hostname);
        let serial = folder.path().join("serial");
        let mut qemu = Command::new("qemu-system-x86_64")
            // In turn: with threads of their own, one of two processors can lose its timer
            // (docs/evidence/two-cpus-in-l1.txt).
            .args(["-accel", "tcg,thread=single", "-nodefaults", "-display", "none"])
            .args(["-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"])
            .arg("-drive")
            .arg(format!("if=none,id=seed,format=raw,snapshot=on,file={}", seed.display()))
            .arg("-serial")
            .arg(format!("file:{}", serial.display()))
            .args(["-monitor", "stdio"])
            .args(hardware)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let monitor = qemu.stdin.take().unwrap();
        let output = BufReader::new(qemu.stdout.take().unwrap());
        let (said, answers) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = said.send(line);
            }
        });
        let mut machine = Machine { qemu, monitor, answers, port: 0, folder };
        machine.port = machine.forwarded_port();
        machine
    }

    /// Waits until the machine answers over SSH with the host key of its seed.
    pub(crate) fn wait_for_ssh(&mut self) {
        while !self.ssh(&["true"]).status.success() {
            assert!(self.is_on(), "the machine went off:\n{}", self.serial());
            std::thread::sleep(LOOK);
        }
    }

    /// Runs a command in the machine and returns what it wrote.
    pub(crate) fn read(&self, argv: &[&str]) -> String {
        let output = self.ssh(argv);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{argv:?}: {error}\n{}", self.serial());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Runs a command in the machine with OpenSSH's own client; the only key it takes for the machine's
    /// is the seed's.
    pub(crate) fn ssh(&self, argv: &[&str]) -> Output {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        Command::new("ssh")
            .args(["-F", "none", "-i", &path("id"), "-p", &self.port.to_string()])
            .args(["-o", &format!("UserKnownHostsFile={}", path("known_hosts"))])
            .args(["-o", "HostKeyAlias=machine", "-o", "StrictHostKeyChecking=yes"])
            .args(["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"])
            .args(["-o", "ConnectTimeout=20", "-o", "LogLevel=ERROR"])
            .arg("root@127.0.0.1")
            .args(argv)
            .output()
            .unwrap()
    }

    /// Presses the power button until the machine has turned itself off: a press that comes before its udev
    /// has found the button is lost.
    pub(crate) fn press_power_button(&mut self) {
        for look in 0.. {
            if !self.is_on() {
                return;
            }
            if look % LOOKS_PER_PRESS == 0 {
                self.tell("system_powerdown");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the serial console has said `text`.
    pub(crate) fn wait_for_serial(&mut self, text: &str) {
        while !self.serial().contains(text) {
            assert!(self.is_on(), "the machine went off:\n{}", self.serial());
            std::thread::sleep(LOOK);
        }
    }

    /// Returns what the serial console has said.
    pub(crate) fn serial(&self) -> String {
        let bytes = std::fs::read(self.folder.path().join("serial")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn is_on(&mut self) -> bool {
        self.qemu.try_wait().unwrap().is_none()
    }

    fn tell(&mut self, command: &str) {
        writeln!(self.monitor, "{command}").unwrap();
    }

    /// Asks QEMU which port it has taken.
    fn forwarded_port(&mut self) -> u16 {
        self.tell("info usernet");
        loop {
            let line = self.answers.recv().expect("QEMU answers");
            let mut words = line.split_whitespace();
            if words.next() == Some("TCP[HOST_FORWARD]") {
                return words.nth(2).unwrap().parse().unwrap();
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Off already, or off now.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Writes a key to log in with, the host key to expect, and the seed with both; returns the seed's path.
fn write_keys_and_seed(folder: &Path, hostname: &str) -> PathBuf {
    let key = || PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap();
    let (login, host) = (key(), key());
    login.write_openssh_file(&folder.join("id"), LineEnding::LF).unwrap();
    let known = format!("machine {}\n", host.public_key().to_openssh().unwrap());
    std::fs::write(folder.join("known_hosts"), known).unwrap();
    let path = folder.join("seed.img");
    let seed = Seed {
        hostname: hostname.parse().unwrap(),
        authorized_keys: vec![login.public_key().clone()],
        host_key: Some(host),
        network: seed::SeedNetwork::default(),
    };
    seed::write(Utf8Path::from_path(&path).unwrap(), &seed).unwrap();
    path
}
