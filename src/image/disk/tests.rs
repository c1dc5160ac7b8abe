use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use super::*;

/// Has the real qemu-img make a disk.
fn make(folder: &Path, name: &str, options: &[&str]) -> Vec<u8> {
    let status = Command::new("qemu-img")
        .current_dir(folder)
        .args(["create", "-q"])
        .args(options)
        .arg(name)
        .arg("1G")
        .status()
        .expect("qemu-img is there");
    assert!(status.success(), "{options:?}");
    fs_err::read(folder.join(name)).expect("reads")
}

fn judged(bytes: &[u8], format: DiskFormat) -> Result<u64> {
    virtual_size(&mut Cursor::new(bytes), format)
}

#[test]
fn disks_of_the_real_qemu_img_have_the_size_they_were_made_with() {
    let folder = tempfile::tempdir().expect("a folder");
    for (format, options) in [
        (DiskFormat::Qcow2, &["-f", "qcow2"][..]),
        (DiskFormat::Qcow2, &["-f", "qcow2", "-o", "extended_l2=on"]),
        (DiskFormat::Qcow2, &["-f", "qcow2", "-o", "compat=0.10"]),
        (DiskFormat::Vdi, &["-f", "vdi"]),
        (DiskFormat::Vmdk, &["-f", "vmdk"]),
        (DiskFormat::Vmdk, &["-f", "vmdk", "-o", "subformat=streamOptimized"]),
    ] {
        let bytes = make(folder.path(), "disk", options);
        assert_eq!(judged(&bytes, format).expect("a plain disk"), 1 << 30, "{options:?}");
        for other in [DiskFormat::Qcow2, DiskFormat::Vdi, DiskFormat::Vmdk] {
            assert_eq!(judged(&bytes, other).is_ok(), other == format, "{options:?} as {other:?}");
        }
        assert!(judged(&bytes[..40], format).is_err(), "{options:?} cut off");
    }
}

#[test]
fn a_disk_that_reaches_outside_its_file_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    make(folder.path(), "base.qcow2", &["-f", "qcow2"]);
    make(folder.path(), "base.vmdk", &["-f", "vmdk"]);
    for (format, name, options) in [
        (DiskFormat::Qcow2, "a.qcow2", &["-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2"][..]),
        (DiskFormat::Qcow2, "b.qcow2", &["-f", "qcow2", "-o", "data_file=outside.raw"]),
        (DiskFormat::Vmdk, "c.vmdk", &["-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk"]),
        (DiskFormat::Vmdk, "d.vmdk", &["-f", "vmdk", "-o", "subformat=monolithicFlat"]),
        (DiskFormat::Vmdk, "e.vmdk", &["-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"]),
    ] {
        let error = judged(&make(folder.path(), name, options), format).expect_err(name);
        assert_eq!(error.kind(), Kind::Untrusted, "{name}");
    }
    let mut difference = make(folder.path(), "f.vdi", &["-f", "vdi"]);
    difference[0x1a8] = 1;
    assert!(judged(&difference, DiskFormat::Vdi).is_err());
}

#[test]
fn an_absurd_size_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bytes = make(folder.path(), "disk", &["-f", "qcow2"]);
    bytes[24] = 0x7f;
    assert!(judged(&bytes, DiskFormat::Qcow2).is_err());
}
