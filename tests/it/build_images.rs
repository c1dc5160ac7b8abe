//! Images are built from the real archive and started in a real QEMU; what they say of themselves comes
//! over OpenSSH's own client and the serial line.

use crate::support::machine::Machine;
use camino::{Utf8Path, Utf8PathBuf};
use nestlab::event::EventSink;
use nestlab::image::build::{self, BuildOptions, BuildRecord};
use nestlab::image::store::Provenance;
use nestlab::image::{ImageFormat, Manifest, Store, VerifiedImage};
use tokio_util::sync::CancellationToken;

/// Builds into `store`, as nestlab itself does.
async fn build(store: &Store, manifest: &Manifest, format: ImageFormat) -> VerifiedImage {
    let options = BuildOptions { format: Some(format), ..BuildOptions::default() };
    let (events, cancel) = (EventSink::silent(), CancellationToken::new());
    build::build(manifest, store, &options, &events, &cancel).await.unwrap()
}

/// The store that the tests share, also from one run to the next.
fn shared() -> Store {
    Store::open(&Utf8Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache/images")).unwrap()
}

/// A store of its own.
fn fresh() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = Store::open(&utf8(folder.path()).join("images")).unwrap();
    (folder, store)
}

fn utf8(path: &std::path::Path) -> Utf8PathBuf {
    Utf8PathBuf::from_path_buf(path.to_owned()).unwrap()
}

fn record(image: &VerifiedImage) -> BuildRecord {
    match image.provenance() {
        Provenance::Built { record } => serde_json::from_value(record.clone()).unwrap(),
        other => panic!("a built image is not {other:?}"),
    }
}

/// A writable disk over an image, bigger than it.
struct Overlay {
    folder: tempfile::TempDir,
}

impl Overlay {
    fn of(image: &VerifiedImage, size: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", image.format().as_str(), "-b"])
            .arg(image.path())
            .arg(folder.path().join("disk.qcow2"))
            .arg(size)
            .status()
            .unwrap();
        assert!(made.success());
        Overlay { folder }
    }

    /// Returns QEMU's option for it.
    fn option(&self, id: &str) -> String {
        let path = utf8(&self.folder.path().join("disk.qcow2"));
        format!("if=none,id={id},format=qcow2,cache=unsafe,file={path}")
    }
}

/// Builds twice, once from nothing; both from the same release.
async fn built_twice(manifest: &Manifest, format: ImageFormat) -> (VerifiedImage, VerifiedImage) {
    let (_folder, store) = fresh();
    let second = build(&store, manifest, format).await;
    let first = build(&shared(), manifest, format).await;
    if first.version() == second.version() {
        return (first, second);
    }
    // The shared one is from an earlier day.
    let (_folder, store) = fresh();
    (build(&store, manifest, format).await, second)
}

#[tokio::test]
async fn an_appliance_built_twice_is_the_same_byte_for_byte() {
    let manifest = Manifest::shipped("appliance").unwrap();
    let (first, second) = built_twice(&manifest, ImageFormat::Ova).await;
    assert_eq!(first.sha256(), second.sha256());
    assert!(record(&first).packages.contains_key("dropbear-bin"), "{:?}", record(&first));
}

#[tokio::test]
async fn what_was_built_is_not_built_again() {
    let manifest = Manifest::shipped("appliance").unwrap();
    let built = build(&shared(), &manifest, ImageFormat::Iso).await;
    let options = BuildOptions { format: Some(ImageFormat::Iso), ..BuildOptions::default() };
    let found = build::find(&manifest, &shared(), &options).unwrap();
    assert_eq!(found, Some(built.clone()));
    assert_eq!(build(&shared(), &manifest, ImageFormat::Iso).await.adopted(), built.adopted());
}

#[tokio::test]
async fn an_appliance_starts_from_its_iso_with_the_names_and_keys_of_its_seed() {
    let manifest = Manifest::shipped("appliance").unwrap();
    let iso = build(&shared(), &manifest, ImageFormat::Iso).await.path();
    let mut machine = Machine::start(
        "deepest",
        &[
            &["-machine", "q35", "-m", "256", "-smp", "2", "-cdrom", iso.as_str()][..],
            &["-device", "virtio-blk-pci,drive=seed", "-device", "virtio-net-pci,netdev=net"],
        ]
        .concat(),
    );
    machine.wait_for_serial("nestlab: ready deepest");
    machine.wait_for_ssh();
    assert_eq!(machine.read(&["hostname"]), "deepest");
    assert_eq!(machine.read(&["uname", "-m"]), "x86_64");
    assert_eq!(machine.read(&["nproc"]), "2");
    assert_eq!(machine.read(&["cut", "-d:", "-f2", "/etc/shadow"]), "*", "a password can log in");
    machine.press_power_button();
}

#[tokio::test]
async fn an_appliance_starts_from_its_ovas_disk_on_a_virtualbox_like_machine() {
    let manifest = Manifest::shipped("appliance").unwrap();
    let ova = build(&shared(), &manifest, ImageFormat::Ova).await.path();
    let folder = tempfile::tempdir().unwrap();
    tar::Archive::new(std::fs::File::open(ova).unwrap()).unpack(folder.path()).unwrap();
    let disk = utf8(&folder.path().join("appliance-disk1.vmdk"));
    let mut machine = Machine::start(
        "l2",
        &[
            &["-machine", "pc", "-m", "512", "-smp", "1", "-cpu", "EPYC,+svm,+npt"][..],
            &["-drive", &format!("if=none,id=disk,format=vmdk,snapshot=on,file={disk}")],
            &["-device", "ahci,id=ahci", "-device", "ide-hd,bus=ahci.0,drive=disk"],
            &["-device", "ide-hd,bus=ahci.1,drive=seed", "-device", "e1000,netdev=net"],
        ]
        .concat(),
    );
    machine.wait_for_ssh();
    assert_eq!(machine.read(&["hostname"]), "l2");
    assert_eq!(machine.read(&["nproc"]), "1");
    assert!(machine.read(&["cat", "/proc/cpuinfo"]).contains(" svm "));
    assert_eq!(machine.read(&["modprobe", "kvm_amd", "&&", "ls", "/dev/kvm"]), "/dev/kvm");
}

#[tokio::test]
async fn a_debian_starts_from_a_pc_bios_with_the_names_and_keys_of_its_seed() {
    a_debian_starts(&[]).await;
}

#[tokio::test]
async fn a_debian_starts_from_uefi_firmware_with_the_names_and_keys_of_its_seed() {
    a_debian_starts(&["-bios", "/usr/share/ovmf/OVMF.fd"]).await;
}

/// Starts a Debian; `firmware` is QEMU's option for it.
async fn a_debian_starts(firmware: &[&str]) {
    let manifest = Manifest::shipped("debian-sid").unwrap();
    let image = build(&shared(), &manifest, ImageFormat::Qcow2).await;
    let disk = Overlay::of(&image, "8G");
    let mut machine = Machine::start(
        "l1",
        &[
            &["-machine", "q35", "-m", "1024", "-smp", "2", "-cpu", "max"][..],
            firmware,
            &["-device", "virtio-rng-pci"],
            &["-drive", &disk.option("disk"), "-device", "virtio-blk-pci,drive=disk"],
            &["-device", "virtio-blk-pci,drive=seed", "-device", "virtio-net-pci,netdev=net"],
        ]
        .concat(),
    );
    machine.wait_for_ssh();
    assert_eq!(machine.read(&["hostname"]), "l1");
    assert_eq!(machine.read(&["getconf", "LONG_BIT"]), "64");
    machine.wait_for_serial("nestlab: ready l1");
    machine.press_power_button();
}
