//! A real sshd on a free port of loopback, with keys and configuration of its own in a temporary folder.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8PathBuf;
use nestlab::host::ssh::{HostKeyPolicy, Ssh, SshKey, SshTarget, Via};
use nestlab::host::{HostRef, StreamAddress, TimeoutScale};

/// A running sshd; dropped, it is ended with everything that it serves.
pub(crate) struct Sshd {
    directory: tempfile::TempDir,
    port: u16,
    options: Vec<String>,
    child: Child,
}

impl Sshd {
    /// Starts one with these lines of sshd_config besides what it needs.
    pub(crate) fn start(options: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder");
        for key in ["host", "user", "stranger"] {
            keygen(&directory.path().join(key));
        }
        let public = std::fs::read(directory.path().join("user.pub")).expect("the public key");
        std::fs::write(directory.path().join("authorized"), public).expect("written");
        if rustix::process::geteuid().is_root() {
            // Where sshd confines the part of it that talks to strangers.
            std::fs::create_dir_all("/run/sshd").expect("/run/sshd");
        }
        let options: Vec<String> = options.iter().map(|line| (*line).to_owned()).collect();
        loop {
            let port = free_port();
            if let Some(child) = spawn(&directory, port, &options) {
                return Sshd { directory, port, options, child };
            }
        }
    }

    /// Starts it again on the same port, after [`Sshd::stop`].
    pub(crate) fn start_again(&mut self) {
        let child = spawn(&self.directory, self.port, &self.options);
        self.child = child.expect("nobody else took the port");
    }

    /// Ends it and all of its sessions.
    pub(crate) fn stop(&mut self) {
        let mut processes = self.descendants(self.child.id(), false);
        processes.push(self.child.id());
        for pid in processes {
            kill(pid);
        }
        self.child.wait().expect("sshd is our child");
    }

    /// Cuts all connections by killing the processes that serve them; what runs in the sessions lives on.
    pub(crate) fn cut(&self) {
        for pid in self.descendants(self.child.id(), true) {
            kill(pid);
        }
    }

    /// Makes it a server with another host key from its next start on.
    pub(crate) fn change_host_key(&self) {
        for name in ["host", "host.pub"] {
            std::fs::remove_file(self.directory.path().join(name)).expect("removed");
        }
        keygen(&self.directory.path().join("host"));
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns a path in its temporary folder.
    pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.directory.path().join(name)).expect("UTF-8")
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect(name)
    }

    /// Returns how to reach it from this machine, with the right keys.
    pub(crate) fn target(&self) -> SshTarget {
        SshTarget {
            name: "guest".to_owned(),
            user: user(),
            key: SshKey::Memory(self.read("user").into()),
            host_key: HostKeyPolicy::Pinned(vec![self.read("host.pub")]),
            via: Via::Tcp { host: "127.0.0.1".to_owned(), port: self.port },
            patience: TimeoutScale::NATIVE,
        }
    }

    /// Returns how to reach it through another host.
    pub(crate) fn target_through(&self, name: &str, parent: HostRef) -> SshTarget {
        let address = StreamAddress::Tcp("127.0.0.1".to_owned(), self.port);
        let via = Via::Through(parent, address);
        SshTarget { name: name.to_owned(), via, ..self.target() }
    }

    /// Returns it as a host.
    pub(crate) fn ssh(&self) -> Arc<Ssh> {
        Arc::new(Ssh::new(self.target()))
    }

    pub(crate) fn host(&self) -> HostRef {
        self.ssh()
    }

    fn descendants(&self, pid: u32, only_sshd: bool) -> Vec<u32> {
        let mut found = Vec::new();
        for child in children(pid) {
            if !only_sshd || command_name(child).starts_with("sshd") {
                found.extend(self.descendants(child, only_sshd));
                found.push(child);
            }
        }
        found
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns the name of the user that runs the tests.
pub(crate) fn user() -> String {
    let output = Command::new("id").arg("-un").output().expect("id runs");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// Returns whether a process exists and has not ended.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

/// Polls `condition` until it holds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Kills one process.
pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().expect("a pid")).expect("not 0");
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Kills a process group that was left to itself.
pub(crate) fn kill_group(leader: u32) {
    let leader = rustix::process::Pid::from_raw(leader.try_into().expect("a pid")).expect("not 0");
    // It may have ended by itself.
    let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
}

pub(crate) fn keygen(path: &std::path::Path) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(path)
        .status()
        .expect("ssh-keygen runs");
    assert!(made.success());
}

/// Returns a free port below those that the kernel gives out (32768 and up): nobody who asks for any port
/// gets it while it is not listened on.
pub(crate) fn free_port() -> u16 {
    loop {
        let [high, low, ..] = *uuid::Uuid::new_v4().as_bytes();
        let port = 15_000 + u16::from_be_bytes([high, low]) % 15_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Starts sshd and waits until it answers; `None` if somebody else took the port.
fn spawn(directory: &tempfile::TempDir, port: u16, options: &[String]) -> Option<Child> {
    let path = |name: &str| directory.path().join(name).display().to_string();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
         StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
         {}\nLogLevel VERBOSE\nSetEnv HOME={}\n",
        path("host"),
        path("authorized"),
        // Before the defaults: the first of two lines counts.
        options.join("\n"),
        // The login shell's start-up files of whoever runs the tests are not part of them.
        directory.path().display()
    );
    std::fs::write(path("config"), config).expect("written");
    let mut child = Command::new("/usr/sbin/sshd")
        .args(["-D", "-f", &path("config"), "-E", &path("log")])
        .stdin(Stdio::null())
        .spawn()
        .expect("sshd is installed");
    loop {
        if child.try_wait().expect("sshd is our child").is_some() {
            let log = std::fs::read_to_string(path("log")).unwrap_or_default();
            assert!(log.contains("Address already in use"), "sshd does not start:\n{log}");
            return None;
        }
        if answers(port) {
            return Some(child);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut start = [0; 4];
    let answered = stream.read_exact(&mut start).is_ok() && &start == b"SSH-";
    // Said so that sshd does not log a scan.
    let _ = stream.write_all(b"SSH-2.0-probe\r\n");
    answered
}

fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn command_name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}
