//! A VirtualBox of its own for each test, in the tree that `scripts/virtualbox-native` makes, and a guest on it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use nestlab::event::EventSink;
use nestlab::host::{Command, Exit, Host, Local, OnOutput, Stream, StreamAddress, TimeoutScale};
use nestlab::hypervisor::virtualbox::VirtualBox;
use nestlab::hypervisor::{
    Acceleration, Actual, Change, Firmware, Forward, GuestSpec, Hypervisor, Media, Nesting, Probe,
    Subnet, VmOrigin,
};
use nestlab::recipe::{Constraint, Cpus, Mebibytes};
use nestlab::{Error, Result};

/// A host whose commands run in the tree, with a VirtualBox of their own: its settings and its server
/// process belong to one test.
#[derive(Debug)]
pub(crate) struct Native {
    local: Local,
    pub(crate) home: Utf8PathBuf,
}

pub(crate) const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/virtualbox-native");

impl Native {
    pub(crate) async fn new() -> Arc<Self> {
        let name = format!("nestlab-{}", uuid::Uuid::new_v4().simple());
        let native = Native { local: Local::new(), home: Utf8Path::new("/var/tmp").join(name) };
        native.sh("mkdir -p \"$1\"", &[native.home.as_str()]).await;
        Arc::new(native)
    }

    /// Runs a constant script with arguments.
    pub(crate) async fn sh(&self, script: &str, args: &[&str]) -> String {
        let command = Command::new("sh").args(["-c", script, "sh"]).args(args.iter().copied());
        (self as &dyn Host).check(&command).await.unwrap().text()
    }

    /// Runs VBoxManage as a user would.
    pub(crate) async fn vbox(&self, args: &[&str]) -> String {
        let command = Command::new("VBoxManage").args(args.iter().copied());
        (self as &dyn Host).check(&command).await.unwrap().text()
    }

    /// Writes a program to `to` that is this VirtualBox's VBoxManage for other processes; it notes each of its
    /// runs in `to` with `.log`.
    pub(crate) fn program(&self, to: &Utf8Path) {
        let (home, id) = (&self.home, self.home.file_name().expect("a name"));
        let text = format!(
            "#!/bin/sh\necho \"$*\" >> {to}.log\n\
             exec {SCRIPT} exec env LC_ALL=C VBOX_USER_HOME={home} VBOX_IPC_SOCKETID={id} VBoxManage \"$@\"\n"
        );
        std::fs::write(to, text).unwrap();
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Waits until this VirtualBox's server has ended, as it does some seconds after its last client: only
    /// a new one reads everything again.
    pub(crate) async fn server_has_ended(&self) {
        const WAIT: &str = "while grep -zqs \"^VBOX_IPC_SOCKETID=$1$\" /proc/[0-9]*/environ; \
                            do sleep 0.2; done";
        let id = self.home.file_name().expect("a name");
        let wait =
            Command::new("env").args(["-u", "VBOX_IPC_SOCKETID", "sh", "-c", WAIT, "sh", id]);
        (self as &dyn Host).check(&wait).await.unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.home.join(name).into_string()
    }

    /// Makes a disk image of 16 MiB that a user has, and returns its path.
    pub(crate) async fn disk(&self, name: &str) -> String {
        let path = self.path(name);
        self.vbox(&["createmedium", "disk", "--filename", &path, "--size", "16"]).await;
        path
    }

    /// Makes a VM that a user has, with a disk, and returns its UUID.
    pub(crate) async fn users_vm(&self, name: &str) -> String {
        let folder = self.path("VirtualBox VMs");
        self.vbox(&[
            "createvm",
            "--name",
            name,
            "--ostype",
            "Debian_64",
            "--register",
            "--basefolder",
            &folder,
        ])
        .await;
        let list = self.vbox(&["list", "vms"]).await;
        let entry = format!("\"{name}\" {{");
        let line = list.lines().rfind(|line| line.starts_with(&entry)).unwrap();
        let uuid = line[entry.len()..].trim_end_matches('}').to_owned();
        self.vbox(&["modifyvm", &uuid, "--cpus", "3", "--memory", "2048", "--nic1", "nat"]).await;
        // A new VM has this off until VirtualBox's server reads it from its file again (7.2.22): it would
        // change by itself whenever the server ends.
        self.vbox(&["modifyvm", &uuid, "--nat-localhostreachable1", "on"]).await;
        let disk = self.disk(&format!("{uuid}.vdi")).await;
        self.vbox(&["storagectl", &uuid, "--name", "Disks", "--add", "sata", "--portcount", "1"])
            .await;
        self.vbox(&[
            "storageattach",
            &uuid,
            "--storagectl",
            "Disks",
            "--port",
            "0",
            "--device",
            "0",
            "--type",
            "hdd",
            "--medium",
            &disk,
        ])
        .await;
        uuid
    }

    /// Exports an appliance with three CPUs and a licence, and returns its path.
    pub(crate) async fn appliance(&self) -> String {
        let uuid = self.users_vm("Appliance").await;
        let path = self.path("appliance.ova");
        self.vbox(&[
            "export",
            &uuid,
            "--output",
            &path,
            "--manifest",
            "--vsys",
            "0",
            "--eula",
            "a licence",
        ])
        .await;
        self.vbox(&["unregistervm", &uuid, "--delete"]).await;
        path
    }

    /// Makes a raw seed volume and returns its path.
    pub(crate) async fn seed(&self, name: &str) -> Utf8PathBuf {
        let path = self.path(name);
        self.sh("truncate -s 1M \"$1\"", &[&path]).await;
        path.into()
    }

    /// Returns what `showvminfo` says of a VM, without what changes by itself.
    pub(crate) async fn settings(&self, vm: &str) -> Vec<String> {
        let text = self.vbox(&["showvminfo", vm, "--machinereadable"]).await;
        let changes =
            |line: &&str| line.starts_with("VMStateChangeTime") || line.contains("Snapshot");
        text.lines().filter(|line| !changes(line)).map(str::to_owned).collect()
    }
}

#[async_trait]
impl Host for Native {
    fn name(&self) -> &str {
        "native"
    }

    async fn run_streaming(&self, command: &Command, on_output: OnOutput<'_>) -> Result<Exit> {
        let mut inner = Command::new(SCRIPT).args(["exec", "env"]);
        let id = self.home.file_name().expect("a name");
        let own = [("VBOX_USER_HOME", self.home.as_str()), ("VBOX_IPC_SOCKETID", id)];
        for (name, value) in own {
            inner = inner.arg(format!("{name}={value}"));
        }
        for (name, value) in command.envs() {
            inner = inner.arg(format!("{name}={value}"));
        }
        inner = inner.args(command.argv().iter().cloned()).stdin(command.input());
        self.local.run_streaming(&inner, on_output).await
    }

    async fn put(&self, _: &Utf8Path, _: &Utf8Path, _: u32, _: &EventSink) -> Result<()> {
        Err(Error::internal("no test copies files"))
    }

    async fn get(&self, _: &Utf8Path, _: &Utf8Path, _: &EventSink) -> Result<()> {
        Err(Error::internal("no test copies files"))
    }

    async fn open_stream(&self, address: &StreamAddress) -> Result<Box<dyn Stream>> {
        self.local.open_stream(address).await
    }

    fn is_root(&self) -> bool {
        true
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let remove = std::process::Command::new(SCRIPT)
            .args(["exec", "rm", "-rf", self.home.as_str()])
            .status();
        let is_gone = remove.is_ok_and(|status| status.success());
        // A second panic would end the program, and nobody would read the first.
        assert!(is_gone || std::thread::panicking(), "{} is left", self.home);
    }
}

/// The driver on a host of its own, and a guest whose folder is in it.
pub(crate) struct Bench {
    pub(crate) host: Arc<Native>,
    pub(crate) driver: VirtualBox,
    pub(crate) spec: GuestSpec,
}

impl Bench {
    pub(crate) async fn new(origin: impl AsyncFnOnce(&Native) -> VmOrigin) -> Self {
        let host = Native::new().await;
        let origin = origin(&host).await;
        let seed = host.seed("seed.img").await;
        let spec = GuestSpec {
            vm: "nestlab-demo-l2".into(),
            directory: host.home.join("lab/l2"),
            origin,
            cpus: Constraint::Exactly(Cpus::ONE),
            memory: Constraint::Exactly(Mebibytes::new(512).unwrap()),
            disk: None,
            firmware: Firmware::Bios,
            firmware_given: false,
            seed: Some(seed),
            nested: Some(false),
            subnet: Subnet::new(10, 0, 3),
            forwards: vec![Forward { name: "nestlab-ssh".into(), guest_port: 22 }],
            networks: Vec::new(),
            gui: false,
            reach_host: false,
        };
        Bench { host, driver: VirtualBox::new(), spec }
    }

    /// A guest made from an appliance that VirtualBox exported.
    pub(crate) async fn appliance() -> Self {
        Bench::new(async |host| VmOrigin::Made(Media::Ova(host.appliance().await.into()))).await
    }

    /// A guest that is a VM that a user has.
    pub(crate) async fn existing(name: &str, snapshot_before: bool) -> Self {
        let mut bench = Bench::new(async |host| VmOrigin::Existing {
            vm: host.users_vm(name).await,
            snapshot_before,
        })
        .await;
        bench.spec.vm = name.to_owned();
        bench.spec.seed = None;
        bench
    }

    pub(crate) fn uuid(&self) -> &str {
        match &self.spec.origin {
            VmOrigin::Existing { vm, .. } => vm,
            VmOrigin::Made(_) => panic!("it has no UUID yet"),
        }
    }

    pub(crate) fn host(&self) -> &dyn Host {
        self.host.as_ref()
    }

    pub(crate) async fn probe(&self) -> Probe {
        let installed = self.driver.installed(self.host()).await.unwrap();
        Probe {
            version: installed.version,
            version_text: installed.version_text,
            program: installed.program,
            acceleration: Acceleration::VirtualBox,
            patience: TimeoutScale::NATIVE,
            nesting: Nesting::Claimed,
            details: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    pub(crate) async fn inspect(&self) -> Option<Actual> {
        self.driver.inspect(self.host(), &self.spec).await.unwrap()
    }

    pub(crate) async fn changes(&self) -> Vec<Change> {
        let actual = self.inspect().await;
        self.driver.changes(&self.spec, actual.as_ref(), &self.probe().await)
    }

    /// Makes it so, and returns the VM as it is then; nothing is left to change.
    pub(crate) async fn up(&self) -> Actual {
        let changes = self.changes().await;
        self.apply(&changes).await.unwrap();
        assert_eq!(self.changes().await, [], "there is something left to change");
        self.inspect().await.unwrap()
    }

    pub(crate) async fn apply(&self, changes: &[Change]) -> Result<()> {
        self.driver.change(self.host(), &self.spec, changes, &EventSink::silent()).await
    }

    pub(crate) async fn destroy(&self) {
        self.driver.destroy(self.host(), &self.spec, &EventSink::silent()).await.unwrap();
    }

    /// Asserts that neither VMs nor disks nor files of the guest are left.
    pub(crate) async fn assert_nothing_left(&self) {
        let vms = self.host.vbox(&["list", "vms"]).await;
        assert!(!vms.contains(&self.spec.vm) && !vms.contains("<inaccessible>"), "{vms}");
        let disks = self.host.vbox(&["list", "hdds"]).await;
        assert!(!disks.contains(self.spec.directory.as_str()), "{disks}");
        let left =
            self.host.sh("test -e \"$1\" || echo gone", &[self.spec.directory.as_str()]).await;
        assert_eq!(left, "gone\n");
    }
}
