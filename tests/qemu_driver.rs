//! The QEMU driver on the real QEMU, with guests of one boot sector.

#[path = "support/boot_sector.rs"]
mod boot_sector;

use std::collections::BTreeSet;
use std::process::Command as StdCommand;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use nestlab::event::{Event, Feed};
use nestlab::host::{Host, Local, StreamAddress};
use nestlab::hypervisor::qemu::Qemu;
use nestlab::hypervisor::{
    Acceleration, Actual, Firmware, Forward, GuestSpec, Hypervisor, Media, Nesting, Origin, Power,
    Probe, Stop, Subnet,
};
use nestlab::recipe::{Cpus, Mebibytes};
use nestlab::{Error, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A folder with one VM, which is destroyed in the end whatever happens.
struct Bench {
    folder: tempfile::TempDir,
    host: Local,
    probe: Probe,
    spec: GuestSpec,
}

impl Bench {
    /// Returns a VM, not yet defined, whose disk boots `guest`.
    async fn new(guest: &str) -> Self {
        Bench::at(guest, "vm").await
    }

    /// Returns a VM in the folder `inner` of a fresh one.
    async fn at(guest: &str, inner: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).expect("UTF-8");
        let directory = root.join(inner);
        std::fs::create_dir_all(&directory).expect("the VM's folder");
        let disk = directory.join("disk.qcow2");
        let raw = directory.join("disk.raw");
        boot_sector::assemble(guest, &raw);
        boot_sector::run(StdCommand::new("qemu-img").args([
            "convert",
            "-O",
            "qcow2",
            raw.as_str(),
            disk.as_str(),
        ]));
        std::fs::remove_file(raw).expect("the raw disk was made");
        let host = Local::new();
        let probe = Qemu.probe(&host).await.expect("QEMU is installed");
        let spec = GuestSpec {
            vm: format!("nestlab-test-{guest}"),
            directory,
            origin: Origin::Made(Media::Disk(disk)),
            cpus: Cpus::ONE,
            memory: Mebibytes::new(64).expect("some"),
            disk: None,
            firmware: Firmware::Bios,
            seed: None,
            nested: false,
            subnet: Subnet::new(10, 0, 7),
            forwards: vec![forward("nestlab-ssh", 22), forward("web", 80)],
            networks: Vec::new(),
            gui: false,
        };
        Bench { folder, host, probe, spec }
    }

    fn host(&self) -> &dyn Host {
        &self.host
    }

    async fn inspect(&self) -> Option<Actual> {
        Qemu.inspect(&self.host, &self.spec).await.expect("inspects")
    }

    async fn power(&self) -> Power {
        self.inspect().await.expect("is defined").power
    }

    /// Makes the definition as the specification says.
    async fn define(&self) {
        let actual = self.inspect().await;
        let changes = Qemu.changes(&self.spec, actual.as_ref(), &self.probe);
        Qemu.change(&self.host, &self.spec, &changes, &Feed::silent()).await.expect("changes");
        assert_eq!(self.differences().await, [""; 0]);
    }

    /// Returns what differs from the specification.
    async fn differences(&self) -> Vec<String> {
        let actual = self.inspect().await;
        Qemu.changes(&self.spec, actual.as_ref(), &self.probe)
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

    async fn try_start(&self) -> Result<(), Error> {
        Qemu.start(&self.host, &self.spec, &self.probe, &Feed::silent()).await
    }

    /// Defines and starts the VM.
    async fn start(&self) {
        self.define().await;
        self.try_start().await.expect("starts");
        assert_eq!(self.power().await, Power::Running);
    }

    async fn stop(&self, how: Stop) {
        Qemu.stop(&self.host, &self.spec, how, &Feed::silent()).await.expect("stops");
        assert_eq!(self.power().await, Power::Off);
    }

    async fn pid(&self) -> u32 {
        self.inspect().await.expect("is defined").id.parse().expect("runs")
    }

    async fn port(&self, guest_port: u16) -> u16 {
        match Qemu.endpoint(&self.host, &self.spec, guest_port).await.expect("is forwarded") {
            StreamAddress::Tcp(host, port) if host == "127.0.0.1" => port,
            other => panic!("forwarded at {other}"),
        }
    }

    /// Says `text` on the guest's serial port and returns as many bytes as it answers.
    async fn say(&self, text: &str) -> String {
        let console = Qemu.console(self.host(), &self.spec).await.expect("runs").expect("has one");
        let mut stream = self.host.open_stream(&console).await.expect("connects");
        stream.write_all(text.as_bytes()).await.expect("hears");
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).await.expect("answers");
        String::from_utf8(answer).expect("is ASCII")
    }

    /// Waits until the guest has said `times` times that it is up.
    async fn up(&self, times: usize) {
        let log = Qemu.serial_log(&self.spec);
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
            let _ = StdCommand::new("kill").args(["-KILL", pid.trim()]).status();
        }
        let _ = self.folder.path();
    }
}

fn forward(name: &str, guest_port: u16) -> Forward {
    Forward { name: name.to_owned(), guest_port }
}

/// Waits until `condition` holds.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..2400 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("waited in vain until {what}");
}

/// Returns the local addresses, as in /proc/net/tcp, on which something listens at `port`.
fn listeners(port: u16) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            let (address, at) = fields[1].rsplit_once(':').expect("address:port");
            if fields[3] == "0A" && at == format!("{port:04X}") {
                found.insert(address.to_owned());
            }
        }
    }
    found
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

const GRACE: Stop = Stop::Graceful(Duration::from_secs(60));

#[tokio::test]
async fn kvm_is_chosen_exactly_if_a_micro_guest_runs_on_it() {
    let host = Local::new();
    let seen = Qemu.try_guest(&host, Acceleration::Kvm).await.expect("QEMU is installed");
    let probe = Qemu.probe(&host).await.expect("QEMU is installed");
    if probe.acceleration == Acceleration::Kvm {
        assert!(seen.ran(), "{seen:?}");
        return;
    }
    assert_eq!(probe.acceleration, Acceleration::Tcg);
    assert!(probe.patience.factor() >= 20.0, "{:?}", probe.patience);
    assert_eq!(probe.nesting, Nesting::Proven, "TCG emulates SVM");
    let [note] = probe.notes.as_slice() else { panic!("one note: {:?}", probe.notes) };
    assert!(note.contains("emulated (TCG)"), "{note}");
    assert!(!seen.ran() || note.contains("slower"), "{note}: {seen:?}");
    if std::path::Path::new("/dev/kvm").exists() && !seen.ran() {
        assert!(note.contains("micro-guest") || note.contains("group"), "{note}");
    }
}

#[tokio::test]
async fn the_micro_guest_runs_to_its_end_in_emulation_and_tells_what_it_saw() {
    let seen = Qemu.try_guest(&Local::new(), Acceleration::Tcg).await.expect("QEMU is installed");
    assert_eq!(seen.said, ["nestlab real", "long", "vector", "svm", "work", "done"]);
    assert!(seen.ran() && seen.nests());
}

#[tokio::test]
async fn a_guest_is_defined_and_started_once_and_what_is_as_wanted_stays() {
    let bench = Bench::new("obedient").await;
    assert_eq!(bench.inspect().await, None);
    bench.start().await;
    bench.up(1).await;
    let pid = bench.pid().await;
    bench.define().await;
    bench.try_start().await.expect("is running");
    assert_eq!(bench.pid().await, pid, "it was started anew");
    bench.stop(GRACE).await;
    assert!(!alive(pid));
    bench.stop(GRACE).await;
}

#[tokio::test]
async fn a_guest_that_obeys_its_power_button_shuts_itself_down() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    let mut qmp = qmp(&bench).await;
    qmp.execute("system_powerdown", serde_json::Value::Null).await.expect("is pressed");
    qmp.closed().await;
    until("it is off", async || bench.power().await == Power::Off).await;
    let why = Qemu.down_because(bench.host(), &bench.spec).await.expect("can be asked");
    assert!(why.is_none(), "it shut itself down: {why:?}");
}

#[tokio::test]
async fn the_plug_is_pulled_on_a_guest_that_does_not_hear() {
    let bench = Bench::new("deaf").await;
    bench.start().await;
    bench.up(1).await;
    let pid = bench.pid().await;
    bench.stop(Stop::Graceful(Duration::from_millis(100))).await;
    assert!(!alive(pid));
}

#[tokio::test]
async fn a_change_made_by_hand_is_found_and_undone() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    let file = bench.spec.directory.join("guest.json");
    let text = std::fs::read_to_string(&file).expect("is defined");
    let edited = text.replace(r#""cpus": 1"#, r#""cpus": 2"#).replace("64MiB", "96MiB");
    assert_ne!(text, edited);
    std::fs::write(&file, edited).expect("edits");
    assert_eq!(bench.differences().await, ["cpus: 2 → 1", "memory: 96MiB → 64MiB"]);
    bench.up(1).await;
    bench.define().await;
    assert_eq!(bench.power().await, Power::Off, "a change needs the VM off");
}

#[tokio::test]
async fn a_disk_is_grown_and_left_alone_when_it_is_large_enough() {
    let mut bench = Bench::new("obedient").await;
    bench.spec.disk = Mebibytes::new(512);
    bench.define().await;
    assert_eq!(bench.inspect().await.expect("is defined").settings["disk-size"], "536870912");
    bench.spec.disk = Mebibytes::new(100);
    bench.define().await;
    assert_eq!(bench.inspect().await.expect("is defined").settings["disk-size"], "536870912");
    bench.start().await;
    bench.up(1).await;
}

#[tokio::test]
async fn a_disk_that_is_large_enough_at_first_is_not_shrunk() {
    let mut bench = Bench::new("obedient").await;
    boot_sector::run(StdCommand::new("qemu-img").args([
        "resize",
        "-q",
        bench.spec.directory.join("disk.qcow2").as_str(),
        "300M",
    ]));
    bench.spec.disk = Mebibytes::new(100);
    bench.define().await;
    assert_eq!(bench.inspect().await.expect("is defined").settings["disk-size"], "314572800");
}

#[tokio::test]
async fn a_process_that_got_the_old_process_id_is_neither_taken_for_the_guest_nor_harmed() {
    let bench = Bench::new("obedient").await;
    bench.define().await;
    let mut other = StdCommand::new("sleep").arg("1000").spawn().expect("sleeps");
    std::fs::write(bench.spec.directory.join("pid"), format!("{}\n", other.id())).expect("writes");
    assert_eq!(bench.power().await, Power::Off);
    bench.stop(Stop::Now).await;
    assert!(other.try_wait().expect("a child").is_none(), "it was killed");
    other.kill().expect("ends");
    other.wait().expect("ends");
    bench.start().await;
}

#[tokio::test]
async fn a_guest_in_a_folder_too_deep_for_a_socket_address_works_like_any_other() {
    let deep = vec!["a-folder-with-a-long-name"; 8].join("/");
    let bench = Bench::at("obedient", &deep).await;
    assert!(bench.spec.directory.as_str().len() > 200);
    bench.start().await;
    bench.up(1).await;
    bench.port(22).await;
    let png = bench.spec.directory.join("shot.png");
    Qemu.screenshot(bench.host(), &bench.spec, &png).await.expect("shoots");
    bench.stop(GRACE).await;
}

#[tokio::test]
async fn forwards_listen_on_the_loopback_address_alone_at_ports_that_never_collide() {
    let (one, two) = (Bench::new("obedient").await, Bench::new("obedient").await);
    one.start().await;
    two.start().await;
    let mut ports = BTreeSet::new();
    for (bench, guest_port) in [(&one, 22), (&one, 80), (&two, 22), (&two, 80)] {
        let port = bench.port(guest_port).await;
        assert!(ports.insert(port), "{port} is used twice");
        assert_eq!(listeners(port), BTreeSet::from(["0100007F".to_owned()]));
        let address = StreamAddress::Tcp("127.0.0.1".to_owned(), port);
        bench.host.open_stream(&address).await.expect("QEMU accepts");
    }
    let error = Qemu.endpoint(one.host(), &one.spec, 443).await.expect_err("not forwarded");
    assert!(error.message().contains("443"), "{error}");
    one.stop(GRACE).await;
    for port in [22, 80] {
        let error = Qemu.endpoint(one.host(), &one.spec, port).await.expect_err("is off");
        assert_eq!(error.kind(), Kind::Unreachable);
    }
}

#[tokio::test]
async fn destroy_leaves_nothing_of_the_guest_and_everything_else() {
    let bench = Bench::new("deaf").await;
    bench.start().await;
    bench.up(1).await;
    let pid = bench.pid().await;
    let beside = bench.folder.path().join("beside");
    std::fs::write(&beside, "mine").expect("writes");
    Qemu.destroy(bench.host(), &bench.spec, &Feed::silent()).await.expect("destroys");
    assert!(!alive(pid));
    assert!(!bench.spec.directory.exists());
    assert!(beside.exists());
    Qemu.destroy(bench.host(), &bench.spec, &Feed::silent()).await.expect("nothing to destroy");
}

#[tokio::test]
async fn a_file_that_nestlab_did_not_make_survives_destroy_and_is_named() {
    let bench = Bench::new("obedient").await;
    bench.define().await;
    let notes = bench.spec.directory.join("my notes");
    std::fs::write(&notes, "mine").expect("writes");
    let (told, heard) = std::sync::mpsc::channel();
    let feed = Feed::new(move |event| {
        if let Event::Notice { text, .. } = event {
            told.send(text).expect("listens");
        }
    });
    Qemu.destroy(bench.host(), &bench.spec, &feed).await.expect("destroys");
    assert!(heard.recv().expect("a notice").contains("my notes"));
    let left: Vec<_> = std::fs::read_dir(&bench.spec.directory).expect("is there").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// Set in the process that starts a guest and is killed then.
const STARTER: &str = "NESTLAB_TEST_STARTER";

#[tokio::test]
async fn a_guest_outlives_the_process_that_started_it() {
    use std::os::unix::process::CommandExt;
    if let Ok(directory) = std::env::var(STARTER) {
        let mut bench = Bench::new("obedient").await;
        let disk = bench.spec.directory.join("disk.qcow2");
        let directory = Utf8PathBuf::from(directory);
        std::fs::rename(disk, directory.join("disk.qcow2")).expect("moves the disk");
        bench.spec = at(&bench.spec, &directory);
        bench.start().await;
        std::fs::write(directory.join("started"), "").expect("tells");
        std::future::pending::<()>().await;
    }
    let mut bench = Bench::new("obedient").await;
    std::fs::remove_file(bench.spec.directory.join("disk.qcow2")).expect("the starter makes one");
    bench.spec = at(&bench.spec, &bench.spec.directory.clone());
    let mut starter = StdCommand::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "a_guest_outlives_the_process_that_started_it"])
        .env(STARTER, &bench.spec.directory)
        .process_group(0)
        .spawn()
        .expect("starts");
    let started = bench.spec.directory.join("started");
    until("the starter has started the guest", async || started.exists()).await;
    let group = rustix::process::Pid::from_child(&starter);
    for signal in [rustix::process::Signal::HUP, rustix::process::Signal::KILL] {
        rustix::process::kill_process_group(group, signal).expect("is a group");
    }
    starter.wait().expect("ends");
    assert_eq!(bench.power().await, Power::Running);
    bench.up(1).await;
    bench.stop(GRACE).await;
}

/// Returns `spec` with everything in `directory`.
fn at(spec: &GuestSpec, directory: &Utf8Path) -> GuestSpec {
    GuestSpec {
        directory: directory.to_owned(),
        origin: Origin::Made(Media::Disk(directory.join("disk.qcow2"))),
        ..spec.clone()
    }
}

#[tokio::test]
async fn qemu_that_ends_at_once_is_an_error_in_qemus_words() {
    let bench = Bench::new("obedient").await;
    bench.define().await;
    std::fs::write(bench.spec.directory.join("disk.qcow2"), "<html>").expect("writes");
    let error = bench.try_start().await.expect_err("no disk");
    assert_eq!((error.kind(), error.host()), (Kind::Failed, Some("L0")));
    assert!(error.output_tail().is_some_and(|tail| tail.contains("qcow2")), "{error:?}");
}

#[tokio::test]
async fn a_guest_that_panics_has_crashed_and_starts_anew() {
    let bench = Bench::new("panicking").await;
    bench.define().await;
    bench.try_start().await.expect("starts");
    until("it has panicked", async || matches!(bench.power().await, Power::Crashed(_))).await;
    let why = Qemu.down_because(bench.host(), &bench.spec).await.expect("can be asked");
    assert!(why.expect("it crashed").message().contains("panicked"));
    let pid = bench.pid().await;
    bench.try_start().await.expect("starts anew");
    assert!(!alive(pid));
    bench.stop(Stop::Now).await;
}

#[tokio::test]
async fn a_qemu_that_is_killed_is_told_from_one_that_ended() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    let pid = bench.pid().await.to_string();
    boot_sector::run(StdCommand::new("kill").args(["-KILL", &pid]));
    until("it is off", async || bench.power().await == Power::Off).await;
    let why = Qemu.down_because(bench.host(), &bench.spec).await.expect("can be asked");
    assert!(why.expect("it was killed").message().contains("killed or crashed"));
    bench.start().await;
    bench.stop(Stop::Now).await;
    let why = Qemu.down_because(bench.host(), &bench.spec).await.expect("can be asked");
    assert!(why.is_none(), "it was stopped: {why:?}");
}

#[tokio::test]
async fn the_serial_port_is_written_over_all_starts_and_can_be_talked_to() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    assert_eq!(bench.say("abcd").await, ".abc");
    bench.stop(GRACE).await;
    bench.start().await;
    bench.up(2).await;
    let said = std::fs::read_to_string(Qemu.serial_log(&bench.spec)).expect("is written");
    assert_eq!(said, "up\n.abcup\n");
}

#[tokio::test]
async fn the_screen_is_a_png_that_belongs_to_the_user() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    let png = bench.folder.path().join("screen.png");
    let to = Utf8Path::from_path(&png).expect("UTF-8");
    Qemu.screenshot(bench.host(), &bench.spec, to).await.expect("shoots");
    let bytes = std::fs::read(&png).expect("is there");
    assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n");
    let meta = std::fs::metadata(&png).expect("is there");
    assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_snapshot_brings_back_the_running_guest_with_its_memory() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    assert_eq!(bench.say("a").await, ".");
    Qemu.snapshot(bench.host(), &bench.spec, "before").await.expect("saves");
    assert_eq!(bench.say("b").await, "a");
    let error = Qemu.snapshot(bench.host(), &bench.spec, "before").await.expect_err("exists");
    assert!(error.message().contains("already"), "{error}");
    assert_eq!(Qemu.snapshots(bench.host(), &bench.spec).await.expect("lists"), ["before"]);
    let pid = bench.pid().await;
    Qemu.restore(bench.host(), &bench.spec, "before").await.expect("restores");
    assert_eq!((bench.power().await, bench.pid().await), (Power::Running, pid));
    assert_eq!(bench.say("c").await, "a", "it remembers what it heard after the snapshot");
    let error = Qemu.restore(bench.host(), &bench.spec, "never").await.expect_err("is not there");
    assert!(error.message().contains("never"), "{error}");
    bench.stop(GRACE).await;
}

#[tokio::test]
async fn a_snapshot_taken_while_off_is_restored_to_a_guest_that_is_off() {
    let bench = Bench::new("obedient").await;
    bench.define().await;
    Qemu.snapshot(bench.host(), &bench.spec, "clean").await.expect("saves");
    bench.start().await;
    bench.up(1).await;
    Qemu.restore(bench.host(), &bench.spec, "clean").await.expect("restores");
    assert_eq!(bench.power().await, Power::Off);
}

#[tokio::test]
async fn a_guest_with_uefi_has_variables_of_its_own() {
    let mut bench = Bench::new("obedient").await;
    bench.spec.firmware = Firmware::Efi;
    bench.spec.memory = Mebibytes::new(256).expect("some");
    bench.start().await;
    assert!(bench.spec.directory.join("efivars.qcow2").exists());
    Qemu.snapshot(bench.host(), &bench.spec, "efi").await.expect("saves");
    let log = Qemu.serial_log(&bench.spec);
    until("the firmware speaks", async || {
        std::fs::read(&log).is_ok_and(|said| said.windows(3).any(|part| part == b"UEF"))
    })
    .await;
    bench.stop(Stop::Now).await;
    Qemu.destroy(bench.host(), &bench.spec, &Feed::silent()).await.expect("destroys");
    assert!(!bench.spec.directory.exists());
}

#[tokio::test]
async fn an_iso_boots_and_is_neither_written_nor_removed() {
    let mut bench = Bench::new("obedient").await;
    let tree = bench.folder.path().join("tree");
    std::fs::create_dir(&tree).expect("a folder");
    let boot = Utf8PathBuf::from_path_buf(tree.join("boot.bin")).expect("UTF-8");
    boot_sector::assemble("obedient", &boot);
    let iso = Utf8PathBuf::from_path_buf(bench.folder.path().join("boot.iso")).expect("UTF-8");
    boot_sector::run(StdCommand::new("xorriso").args([
        "-as",
        "mkisofs",
        "-quiet",
        "-o",
        iso.as_str(),
        "-b",
        "boot.bin",
        "-no-emul-boot",
        "-boot-load-size",
        "4",
        tree.to_str().expect("UTF-8"),
    ]));
    bench.spec.origin = Origin::Made(Media::Iso(iso.clone()));
    bench.start().await;
    bench.up(1).await;
    let error = Qemu.snapshot(bench.host(), &bench.spec, "x").await.expect_err("no disk");
    assert_eq!(error.kind(), Kind::HostCannot);
    Qemu.destroy(bench.host(), &bench.spec, &Feed::silent()).await.expect("destroys");
    assert!(iso.exists());
}

#[tokio::test]
async fn a_qemu_started_by_root_is_root_no_more() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", bench.pid().await)).expect("runs");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).expect("is told");
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Seccomp:"), ["2"], "the system call filter is on");
    if rustix::process::geteuid().is_root() {
        assert!(field("Uid:").iter().all(|id| id.starts_with("18")), "{:?}", field("Uid:"));
        assert_eq!(field("CapEff:"), ["0000000000000000"]);
        assert_eq!(field("Groups:"), field("Gid:")[..1]);
    }
}

#[tokio::test]
async fn what_the_folder_holds_is_the_users_alone() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new("obedient").await;
    bench.start().await;
    bench.up(1).await;
    for name in ["guest.json", "pid", "qemu.log", "serial.log", "run"] {
        let meta = std::fs::metadata(bench.spec.directory.join(name)).expect(name);
        assert_eq!(meta.permissions().mode() & 0o077, 0, "{name}");
    }
}

#[tokio::test]
async fn qmp_understands_the_real_qemu() {
    let bench = Bench::new("obedient").await;
    bench.start().await;
    let mut qmp = qmp(&bench).await;
    let status = qmp.execute("query-status", serde_json::Value::Null).await.expect("answers");
    assert_eq!(status["status"], "running");
    qmp.execute("stop", serde_json::Value::Null).await.expect("stops");
    assert!(qmp.take_events().iter().any(|event| event.name == "STOP"));
    let error = qmp.execute("no-such-command", serde_json::Value::Null).await.expect_err("unknown");
    assert!(error.message().contains("no-such-command"), "{error}");
    drop(qmp);
    assert_eq!(bench.power().await, Power::Paused);
    bench.try_start().await.expect("goes on");
    assert_eq!(bench.power().await, Power::Running);
}

async fn qmp(bench: &Bench) -> nestlab::hypervisor::qemu::qmp::Qmp {
    let socket = StreamAddress::Unix(bench.spec.directory.join("run/qmp"));
    let stream = bench.host.open_stream(&socket).await.expect("connects");
    nestlab::hypervisor::qemu::qmp::Qmp::connect(stream, Duration::from_secs(60))
        .await
        .expect("is QMP")
}
