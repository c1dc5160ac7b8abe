use std::process::Command as Process;

use super::*;
use crate::image::digest::Sha256;
use crate::image::store::{Built, Store};

struct Place {
    folder: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = Utf8Path::from_path(folder.path()).expect("UTF-8").join("images");
        Place { store: Store::open(&root).expect("opens"), folder }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.folder.path()).expect("UTF-8").join(name)
    }

    fn qemu_img(&self, arguments: &[&str]) {
        let status = Process::new("qemu-img")
            .current_dir(self.folder.path())
            .args(arguments)
            .status()
            .expect("qemu-img is there");
        assert!(status.success(), "{arguments:?}");
    }

    /// A disk with a mark in it.
    fn raw(&self) -> Utf8PathBuf {
        let mut disk = vec![0; 8 << 20];
        disk[5 << 20..(5 << 20) + 4].copy_from_slice(b"mark");
        fs_err::write(self.path("disk.raw"), disk).expect("writes");
        self.path("disk.raw")
    }

    fn adopt(&self, file: &Utf8Path, file_name: &str, format: ImageFormat) -> VerifiedImage {
        let built = Built {
            file,
            file_name,
            format,
            version: "1",
            inputs: Sha256::from_bytes([7; 32]),
            record: serde_json::Value::Null,
        };
        self.store.adopt_built(&"demo".parse().expect("a name"), &built, None).expect("adopts")
    }

    fn same_disk(&self, path: &Utf8Path, format: DiskFormat) {
        self.raw();
        self.qemu_img(&[
            "compare",
            "-q",
            "-f",
            "raw",
            "-F",
            format.as_str(),
            "disk.raw",
            path.as_str(),
        ]);
    }
}

#[tokio::test]
async fn a_disk_is_converted_once_to_every_format() {
    let place = Place::new();
    let raw = place.raw();
    let image = place.adopt(&raw, "disk.raw", ImageFormat::Raw);
    for format in [DiskFormat::Qcow2, DiskFormat::Vdi, DiskFormat::Vmdk] {
        let first = disk(&image, format, &EventSink::silent()).await.expect("converts");
        place.same_disk(&first, format);
        let made = fs_err::metadata(&first).expect("there").modified().expect("a time");
        let again = disk(&image, format, &EventSink::silent()).await.expect("is there");
        assert_eq!(first, again);
        assert_eq!(made, fs_err::metadata(&again).expect("there").modified().expect("a time"));
    }
    let itself = disk(&image, DiskFormat::Raw, &EventSink::silent()).await.expect("is there");
    assert_eq!(itself, image.path());
}

#[tokio::test]
async fn a_derived_disk_that_somebody_wrote_to_is_made_again() {
    let place = Place::new();
    let raw = place.raw();
    let image = place.adopt(&raw, "disk.raw", ImageFormat::Raw);
    let first = disk(&image, DiskFormat::Qcow2, &EventSink::silent()).await.expect("converts");
    fs_err::write(&first, b"QFI\xfb and something else").expect("writes");
    let again = disk(&image, DiskFormat::Qcow2, &EventSink::silent()).await.expect("converts");
    assert_eq!(first, again);
    place.same_disk(&again, DiskFormat::Qcow2);
}

#[tokio::test]
async fn the_disk_inside_an_ova_is_converted_without_unpacking_the_ova() {
    let place = Place::new();
    place.raw();
    let options = "subformat=streamOptimized";
    place.qemu_img(&["convert", "-O", "vmdk", "-o", options, "disk.raw", "d.vmdk"]);
    let size = fs_err::metadata(place.path("d.vmdk")).expect("there").len();
    let ovf = crate::image::ovf::tests::sample("d.vmdk", size, 8 << 20);
    fs_err::write(place.path("demo.ovf"), ovf).expect("writes");
    let made = Process::new("tar")
        .current_dir(place.folder.path())
        .args(["--format=ustar", "-cf", "demo.ova", "demo.ovf", "d.vmdk"])
        .status()
        .expect("tar is there");
    assert!(made.success());
    let image = place.adopt(&place.path("demo.ova"), "demo.ova", ImageFormat::Ova);
    for format in [DiskFormat::Qcow2, DiskFormat::Raw, DiskFormat::Vmdk] {
        let converted = disk(&image, format, &EventSink::silent()).await.expect("converts");
        place.same_disk(&converted, format);
    }
}

#[tokio::test]
async fn a_libvirt_release_gives_its_qcow2_and_others_from_it() {
    let place = Place::new();
    place.raw();
    place.qemu_img(&["convert", "-O", "qcow2", "-o", "extended_l2=on", "disk.raw", "Demo.qcow2"]);
    fs_err::write(place.path("Demo.xml"), "<domain/>").expect("writes");
    let made = Process::new("tar")
        .current_dir(place.folder.path())
        .args(["--sparse", "-cJf", "demo.libvirt.xz", "Demo.qcow2", "Demo.xml"])
        .status()
        .expect("tar is there");
    assert!(made.success());
    let packed = place.path("demo.libvirt.xz");
    let image = place.adopt(&packed, "demo.libvirt.xz", ImageFormat::LibvirtTarXz);
    let qcow2 = disk(&image, DiskFormat::Qcow2, &EventSink::silent()).await.expect("unpacks");
    place.same_disk(&qcow2, DiskFormat::Qcow2);
    let vdi = disk(&image, DiskFormat::Vdi, &EventSink::silent()).await.expect("converts");
    place.same_disk(&vdi, DiskFormat::Vdi);
}

#[tokio::test]
async fn a_cd_has_no_disk_and_says_so() {
    let place = Place::new();
    let raw = place.raw();
    let image = place.adopt(&raw, "cd.iso", ImageFormat::Iso);
    let error = disk(&image, DiskFormat::Raw, &EventSink::silent()).await.expect_err("a CD");
    assert_eq!(error.kind(), Kind::HostCannot);
}

#[tokio::test]
async fn what_a_killed_conversion_left_is_gone_after_the_next() {
    let place = Place::new();
    let raw = place.raw();
    let image = place.adopt(&raw, "disk.raw", ImageFormat::Raw);
    let left = image.derived().join("unfinished-by-a-killed-run");
    fs_err::create_dir_all(&left).expect("makes");
    fs_err::write(left.join("disk"), b"gigabytes").expect("writes");
    let made = disk(&image, DiskFormat::Qcow2, &EventSink::silent()).await.expect("converts");
    let here = image.derived().read_dir_utf8().expect("there");
    let mut here: Vec<_> = here.map(|entry| entry.expect("readable").into_path()).collect();
    here.sort();
    assert_eq!(here, [made.clone(), note(&made)]);
}

#[tokio::test]
async fn what_fails_leaves_nothing_behind() {
    let place = Place::new();
    fs_err::write(place.path("broken"), b"QFI\xfb and nothing else").expect("writes");
    let image = place.adopt(&place.path("broken"), "broken.qcow2", ImageFormat::Qcow2);
    disk(&image, DiskFormat::Vdi, &EventSink::silent()).await.expect_err("it is no disk");
    let left: Vec<_> = image.derived().read_dir_utf8().expect("there").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn qemu_imgs_progress_is_passed_on() {
    use crate::event::{Event, Progress};
    let (sender, heard) = std::sync::mpsc::channel();
    let events = EventSink::new(move |event| sender.send(event).expect("heard")).for_step("x");
    progress(b"    (12.34/100%)\r    (50.01/100%)\r", &events);
    progress(b"nothing", &events);
    let seen: Vec<Event> = heard.try_iter().collect();
    assert!(
        matches!(
            &seen[..],
            [Event::StepProgress { progress: Progress::Items { done: 50, .. }, .. }]
        ),
        "{seen:?}"
    );
}
