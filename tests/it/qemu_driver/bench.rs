//! One VM on a bench: made in a fresh folder, and ended whatever becomes of the test.

use std::process::Command as Program;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use nestlab::Error;
use nestlab::event::EventSink;
use nestlab::host::{Host, Local, StreamAddress};
use nestlab::hypervisor::qemu::Qemu;
use nestlab::hypervisor::qemu::qmp::Qmp;
use nestlab::hypervisor::{
    Actual, Firmware, Forward, GuestSpec, Hypervisor, Media, Power, Probe, Stop, Subnet, VmOrigin,
};
use nestlab::recipe::{Constraint, Cpus, Mebibytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::boot_sector;

/// A folder with one VM, which is destroyed in the end whatever happens.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) qemu: Qemu,
    pub(crate) host: Local,
    pub(crate) probe: Probe,
    pub(crate) spec: GuestSpec,
}

impl Bench {
    /// Returns a VM, not yet defined, whose disk boots `guest`.
    pub(crate) async fn new(guest: &str) -> Self {
        Bench::at(guest, "vm").await
    }

    /// Returns a VM in the folder `inner` of a fresh one.
    pub(crate) async fn at(guest: &str, inner: &str) -> Self {
        Bench::made(guest, inner, |directory| {
            let (raw, disk) = (directory.join("disk.raw"), directory.join("disk.qcow2"));
            boot_sector::assemble(guest, &raw);
            boot_sector::run(
                Program::new("qemu-img").args(["convert", "-O", "qcow2"]).args([&raw, &disk]),
            );
            std::fs::remove_file(raw).expect("the raw disk was made");
            Media::Disk(disk)
        })
        .await
    }

    /// Returns the VM `name` from what `media` makes or finds for its folder, `inner` of a fresh one.
    pub(crate) async fn made(
        name: &str,
        inner: &str,
        media: impl FnOnce(&Utf8Path) -> Media,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).expect("UTF-8");
        let directory = root.join(inner);
        std::fs::create_dir_all(&directory).expect("the VM's folder");
        let host = Local::new();
        let qemu = Qemu::new();
        let probe = qemu.probe(&host).await.expect("QEMU is installed");
        let spec = GuestSpec {
            vm: format!("nestlab-test-{name}"),
            origin: VmOrigin::Made(media(&directory)),
            directory,
            cpus: Constraint::Exactly(Cpus::ONE),
            memory: Constraint::Exactly(Mebibytes::new(64).expect("some")),
            disk: None,
            firmware: Firmware::Bios,
            firmware_given: false,
            seed: None,
            nested: Some(false),
            subnet: Subnet::new(10, 0, 7),
            forwards: vec![forward("nestlab-ssh", 22), forward("web", 80)],
            networks: Vec::new(),
            gui: false,
            reach_host: false,
        };
        Bench { folder, qemu, host, probe, spec }
    }

    pub(crate) fn host(&self) -> &dyn Host {
        &self.host
    }

    pub(crate) async fn inspect(&self) -> Option<Actual> {
        self.qemu.inspect(&self.host, &self.spec).await.expect("inspects")
    }

    pub(crate) async fn power(&self) -> Power {
        self.inspect().await.expect("is defined").power
    }

    /// Makes the definition as the specification says.
    pub(crate) async fn define(&self) {
        let actual = self.inspect().await;
        let changes = self.qemu.changes(&self.spec, actual.as_ref(), &self.probe);
        self.qemu
            .change(&self.host, &self.spec, &changes, &EventSink::silent())
            .await
            .expect("changes");
        assert_eq!(self.differences().await, [""; 0]);
    }

    /// Returns what differs from the specification.
    pub(crate) async fn differences(&self) -> Vec<String> {
        let actual = self.inspect().await;
        self.qemu
            .changes(&self.spec, actual.as_ref(), &self.probe)
            .into_iter()
            .map(|change| {
                format!(
                    "{}: {} → {}",
                    change.setting,
                    change.actual.unwrap_or_default(),
                    change.wanted
                )
            })
            .collect()
    }

    pub(crate) async fn try_start(&self) -> Result<(), Error> {
        self.qemu.start(&self.host, &self.spec, &self.probe, &EventSink::silent()).await
    }

    /// Defines and starts the VM.
    pub(crate) async fn start(&self) {
        self.define().await;
        self.try_start().await.expect("starts");
        assert_eq!(self.power().await, Power::Running);
    }

    pub(crate) async fn stop(&self, how: Stop) {
        self.qemu.stop(&self.host, &self.spec, how, &EventSink::silent()).await.expect("stops");
        assert_eq!(self.power().await, Power::Off);
    }

    pub(crate) async fn pid(&self) -> u32 {
        self.inspect().await.expect("is defined").id.parse().expect("runs")
    }

    pub(crate) async fn port(&self, guest_port: u16) -> u16 {
        match self.qemu.endpoint(&self.host, &self.spec, guest_port).await.expect("is forwarded") {
            StreamAddress::Tcp(host, port) if host == "127.0.0.1" => port,
            other => panic!("forwarded at {other}"),
        }
    }

    /// Says `text` on the guest's serial port and returns as many bytes as it answers.
    pub(crate) async fn say(&self, text: &str) -> String {
        let console =
            self.qemu.console(self.host(), &self.spec).await.expect("runs").expect("has one");
        let mut stream = self.host.open_stream(&console).await.expect("connects");
        stream.write_all(text.as_bytes()).await.expect("hears");
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await.expect("answers");
        String::from_utf8(answer).expect("is ASCII")
    }

    /// Waits until the guest has said `times` times that it is up.
    pub(crate) async fn up(&self, times: usize) {
        let log = self.qemu.serial_log(&self.spec);
        until("the guest says that it is up", async || {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            said.matches("up\n").count() >= times
        })
        .await;
    }
}

impl Drop for Bench {
    /// Ends the QEMU of a test that failed on its way: a process with this folder's VM among its arguments.
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.spec.directory.join("pid")).unwrap_or_default();
        let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", pid.trim()));
        if arguments.is_ok_and(|line| line.contains(&format!("guest={}\0", self.spec.vm))) {
            let _ = Program::new("kill").args(["-KILL", pid.trim()]).status();
        }
    }
}

pub(crate) fn forward(name: &str, guest_port: u16) -> Forward {
    Forward { name: name.to_owned(), guest_port }
}

/// Waits until `condition` holds. How long that takes depends on the machine alone; nextest ends what
/// never comes, and this says what it was.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    println!("waiting until {what}");
    while !condition().await {
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

pub(crate) fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

pub(crate) const GRACE: Stop = Stop::Graceful(Duration::from_secs(60));

pub(crate) async fn qmp(bench: &Bench) -> Qmp {
    let socket = StreamAddress::Unix(bench.spec.directory.join("run/qmp"));
    let stream = bench.host.open_stream(&socket).await.expect("connects");
    Qmp::connect(stream, Duration::from_secs(60)).await.expect("is QMP")
}
