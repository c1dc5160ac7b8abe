//! A real dropbear on a free port of loopback, in a mount namespace where every program is busybox: what an
//! appliance is to its host, without the virtual machine.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nestlab::host::ssh::{HostKeyPolicy, Ssh, SshKey, SshTarget, Via};
use nestlab::host::{HostRef, TimeoutScale};

use crate::support::sshd::{free_port, keygen, kill};

/// Puts busybox in the place of all programs, gives root a home of its own, and becomes dropbear.
const START: &str = r#"mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/shells" /etc/shells
mount --bind "$1/programs" /usr/bin
exec /usr/sbin/dropbear -F -E -s -r "$1/host" -p "127.0.0.1:$2" -P "$1/pid""#;

/// A running dropbear.
pub(crate) struct Dropbear {
    directory: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Dropbear {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let path = directory.path();
        let programs = path.join("programs");
        std::fs::create_dir(&programs).expect("made");
        std::fs::copy("/usr/bin/busybox", programs.join("busybox")).expect("busybox is installed");
        run(Command::new(programs.join("busybox")).args(["--install", "-s"]).arg(&programs));
        run(Command::new("dropbearkey").args(["-t", "ed25519", "-f"]).arg(path.join("host")));
        keygen(&path.join("user"));
        let home = path.join("home");
        std::fs::create_dir_all(home.join(".ssh")).expect("made");
        std::fs::copy(path.join("user.pub"), home.join(".ssh/authorized_keys")).expect("copied");
        for folder in [path, &home, &home.join(".ssh")] {
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(folder, private).expect("ours");
        }
        let passwd = format!("root:x:0:0:root:{}:/bin/sh\n", home.display());
        std::fs::write(path.join("passwd"), passwd).expect("written");
        std::fs::write(path.join("shells"), "/bin/sh\n").expect("written");
        loop {
            let port = free_port();
            if let Some(child) = spawn(path, port) {
                return Dropbear { directory, port, child };
            }
        }
    }

    pub(crate) fn host(&self) -> HostRef {
        let read = |name| std::fs::read_to_string(self.directory.path().join(name)).expect(name);
        Arc::new(Ssh::new(SshTarget {
            name: "appliance".to_owned(),
            user: "root".to_owned(),
            key: SshKey::Memory(read("user").into()),
            host_key: HostKeyPolicy::Pinned(vec![self.host_key()]),
            via: Via::Tcp { host: "127.0.0.1".to_owned(), port: self.port },
            patience: TimeoutScale::NATIVE,
        }))
    }

    /// Returns a path in its temporary folder.
    pub(crate) fn path(&self, name: &str) -> camino::Utf8PathBuf {
        camino::Utf8PathBuf::from_path_buf(self.directory.path().join(name)).expect("UTF-8")
    }

    fn host_key(&self) -> String {
        let key = self.directory.path().join("host");
        let output = Command::new("dropbearkey").arg("-y").arg("-f").arg(key).output();
        let output = String::from_utf8(output.expect("dropbearkey runs").stdout).expect("UTF-8");
        output.lines().find(|line| line.starts_with("ssh-")).expect("a public key").to_owned()
    }
}

impl Drop for Dropbear {
    fn drop(&mut self) {
        kill(self.child.id());
        // It was ours, and it is gone.
        let _ = self.child.wait();
    }
}

/// Starts dropbear and waits until it answers; `None` if somebody else took the port.
fn spawn(path: &std::path::Path, port: u16) -> Option<Child> {
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    let log = std::fs::File::create(path.join("log")).expect("a log");
    let mut child = unshare
        .args(["--mount", "--", "sh", "-e", "-c", START, "sh"])
        .arg(path)
        .arg(port.to_string())
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("unshare is installed");
    loop {
        let log = std::fs::read_to_string(path.join("log")).unwrap_or_default();
        if log.contains("Address already in use") {
            kill(child.id());
            child.wait().expect("it is our child");
            return None;
        }
        assert!(child.try_wait().expect("our child").is_none(), "dropbear does not start: {log}");
        if std::net::TcpStream::connect(("127.0.0.1", port))
            .is_ok_and(|mut stream| stream.read_exact(&mut [0; 4]).is_ok())
        {
            return Some(child);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn run(command: &mut Command) {
    let output = command.output().expect("it is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
