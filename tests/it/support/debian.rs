//! A small real Debian to run apt in: a tree of its own, mounts of its own, processes of its own, all in
//! namespaces that end with the test.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use nestlab::Result;
use nestlab::event::EventSink;
use nestlab::host::{Command, Exit, Host, Local, OnOutput, Stream, StreamAddress};

/// Unpacks the tree "$2" into a file system of the size "$3" at "$1", with "$4" bound to /srv, and stays until
/// standard input ends.
const SET_UP: &str = r#"
set -eu
mount -t tmpfs -o "size=$3,mode=0755" debian "$1"
tar -C "$1" -xf "$2"
cd "$1"
mount --rbind "$4" srv
mount -t proc proc proc
mount -t tmpfs -o size=1M,mode=0755 dev dev
for node in null zero full random urandom tty; do
    : >"dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
rm -f etc/apt/sources.list etc/apt/sources.list.d/* etc/apt/apt.conf.d/*mmdebstrap*
echo ready
exec chroot . cat
"#;

/// A running Debian, called `l1`. Nothing of it is left when it is dropped.
#[derive(Debug)]
pub(crate) struct Debian {
    outer: Child,
    /// The process whose namespaces and root it is.
    init: String,
    local: Local,
    shared: tempfile::TempDir,
    _root: tempfile::TempDir,
}

impl Debian {
    /// Starts one with a disk of `size`, as tmpfs takes it: `1G`.
    pub(crate) fn start(size: &str) -> Debian {
        let tree = tree();
        let (root, shared) = (tempdir(), tempdir());
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
        if !rustix::process::geteuid().is_root() {
            unshare.args(["--user", "--map-root-user", "--map-auto"]);
        }
        let mut outer = unshare
            .args(["sh", "-c", SET_UP, "set-up"])
            .args([root.path(), &tree, Path::new(size), shared.path()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare runs");
        let mut said = String::new();
        let output = outer.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut said).expect("reads");
        assert_eq!(said, "ready\n", "the Debian did not start");
        let children = format!("/proc/{0}/task/{0}/children", outer.id());
        let init = fs_err::read_to_string(children).expect("unshare has a child").trim().to_owned();
        Debian { outer, init, local: Local::new(), shared, _root: root }
    }

    /// Returns the folder that it sees as `/srv`.
    pub(crate) fn srv(&self) -> &Path {
        self.shared.path()
    }

    /// Returns `argv` as this machine runs it inside.
    pub(crate) fn enter(&self, command: &Command) -> Command {
        let mut argv: Vec<String> = ["nsenter", "--target", &self.init].map(str::to_owned).into();
        if !rustix::process::geteuid().is_root() {
            argv.extend(["--user", "--preserve-credentials"].map(str::to_owned));
        }
        argv.extend(["--mount", "--pid", "--root", "--wd", "--", "env", "-i"].map(str::to_owned));
        argv.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        argv.push("HOME=/root".to_owned());
        argv.extend(command.envs().iter().map(|(name, value)| format!("{name}={value}")));
        argv.extend(command.argv().iter().cloned());
        let mut entered = Command::from_argv(argv).stdin(command.input());
        if let Some(limit) = command.silence_limit() {
            entered = entered.silence(limit);
        }
        entered
    }

    /// Runs a constant shell script inside with `args`, and returns what it printed.
    pub(crate) async fn sh(&self, script: &str, args: &[&str]) -> String {
        let command = Command::new("sh").args(["-c", script, "sh"]).args(args.iter().copied());
        let host: &dyn Host = self;
        host.check(&command).await.expect("the script succeeds").text()
    }
}

impl Drop for Debian {
    /// Ends its first process, and with it all others and the mounts.
    fn drop(&mut self) {
        drop(self.outer.stdin.take());
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

#[async_trait]
impl Host for Debian {
    fn name(&self) -> &str {
        "l1"
    }

    async fn run_streaming(&self, command: &Command, on_output: OnOutput<'_>) -> Result<Exit> {
        self.local.run_streaming(&self.enter(command), on_output).await
    }

    async fn put(
        &self,
        from: &Utf8Path,
        to: &Utf8Path,
        mode: u32,
        events: &EventSink,
    ) -> Result<()> {
        self.local.put(from, &self.inside(to), mode, events).await
    }

    async fn get(&self, from: &Utf8Path, to: &Utf8Path, events: &EventSink) -> Result<()> {
        self.local.get(&self.inside(from), to, events).await
    }

    async fn open_stream(&self, address: &StreamAddress) -> Result<Box<dyn Stream>> {
        self.local.open_stream(address).await
    }

    fn is_root(&self) -> bool {
        true
    }
}

impl Debian {
    fn inside(&self, path: &Utf8Path) -> Utf8PathBuf {
        Utf8PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }
}

fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Returns the tree, made once from the mirror that this machine's apt uses and kept with the build.
fn tree() -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let tree = cache.join("debian-sid-apt.tar");
    fs_err::create_dir_all(cache).expect("a folder for the cache");
    let lock = fs_err::File::create(cache.join("debian-sid-apt.lock")).expect("a lock file");
    lock.file().lock().expect("locks");
    if !tree.exists() {
        let new = cache.join("debian-sid-apt.new.tar");
        let mirror = nestlab::image::build::mirror::Mirror::of_this_host().expect("a mirror");
        let output = std::process::Command::new("mmdebstrap")
            // A mirror that is behind is good enough here; its signatures are checked all the same.
            .args(["--aptopt=Acquire::Check-Valid-Until \"false\"", "--variant=apt", "sid"])
            .args([new.as_os_str(), mirror.archive().as_ref()])
            .output()
            .expect("mmdebstrap runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && new.exists(), "mmdebstrap: {said}");
        fs_err::rename(&new, &tree).expect("renames");
    }
    tree
}

/// A package for a repository.
pub(crate) struct Deb<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: &'a str,
    /// More lines of its control file.
    pub(crate) control: &'a str,
    /// Files: path below the root, and contents.
    pub(crate) files: &'a [(&'a str, &'a str)],
    /// Maintainer scripts and other files of DEBIAN/: name and contents.
    pub(crate) scripts: &'a [(&'a str, &'a str)],
}

impl Default for Deb<'_> {
    fn default() -> Self {
        Deb { name: "nl-one", version: "1", control: "", files: &[], scripts: &[] }
    }
}

impl Deb<'_> {
    /// Builds it into the folder `repository`.
    pub(crate) fn build(&self, repository: &Path) {
        let tree = tempdir();
        let debian = tree.path().join("DEBIAN");
        fs_err::create_dir_all(&debian).expect("creates");
        let control = format!(
            "Package: {}\nVersion: {}\nArchitecture: all\nMaintainer: Nestlab <test@localhost>\n{}Description: for a test\n",
            self.name, self.version, self.control
        );
        fs_err::write(debian.join("control"), control).expect("writes");
        for (name, text) in self.scripts {
            write_script(&debian.join(name), text);
        }
        for (path, text) in self.files {
            let path = tree.path().join(path);
            fs_err::create_dir_all(path.parent().expect("in a folder")).expect("creates");
            fs_err::write(path, text).expect("writes");
        }
        fs_err::create_dir_all(repository).expect("creates");
        let deb = repository.join(format!("{}_{}_all.deb", self.name, self.version));
        let output = std::process::Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Znone", "--build"])
            .args([tree.path(), deb.as_path()])
            .output()
            .expect("dpkg-deb runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn write_script(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let executable = text.starts_with("#!");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(if executable { 0o755 } else { 0o644 })
        .open(path)
        .expect("creates");
    file.write_all(text.as_bytes()).expect("writes");
}

/// Writes the `Packages` list of the packages in the folder `repository`.
pub(crate) fn index(repository: &Path) {
    let output = std::process::Command::new("apt-ftparchive")
        .args(["packages", "."])
        .current_dir(repository)
        .output()
        .expect("apt-ftparchive runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs_err::write(repository.join("Packages"), output.stdout).expect("writes");
}
