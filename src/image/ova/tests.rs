use std::io::Cursor;
use std::process::Command;

use sha2::Digest as _;

use super::*;
use crate::image::ovf::tests::sample;

/// A VMDK of 1 GiB as the real qemu-img writes it for OVAs.
fn vmdk() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("d.vmdk");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized"])
        .arg(&path)
        .arg("1G")
        .status()
        .expect("qemu-img is there");
    assert!(made.success());
    fs_err::read(path).expect("reads")
}

/// A tar of these members, each with its type.
fn tar_of(members: &[(&str, &[u8], tar::EntryType)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content, kind) in members {
        let mut header = tar::Header::new_ustar();
        // Written past the library's own check of names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(content.len() as u64);
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        if !kind.is_file() {
            header.set_link_name_literal("/etc/passwd").expect("short");
        }
        header.set_cksum();
        builder.append(&header, *content).expect("writes");
    }
    builder.into_inner().expect("finishes")
}

struct Parts {
    ovf: String,
    vmdk: Vec<u8>,
}

impl Parts {
    fn new() -> Self {
        let vmdk = vmdk();
        Parts { ovf: sample("d.vmdk", vmdk.len() as u64, 1 << 30), vmdk }
    }

    fn list(&self) -> String {
        let digest = |bytes: &[u8]| hex::encode(sha2::Sha256::digest(bytes));
        format!(
            "SHA256 (demo.ovf) = {}\nSHA256(d.vmdk)= {}\n",
            digest(self.ovf.as_bytes()),
            digest(&self.vmdk)
        )
    }

    fn with(&self, more: &[(&str, &[u8], tar::EntryType)]) -> Vec<u8> {
        let file = tar::EntryType::Regular;
        let mut members =
            vec![("demo.ovf", self.ovf.as_bytes(), file), ("d.vmdk", &self.vmdk[..], file)];
        members.extend_from_slice(more);
        tar_of(&members)
    }
}

fn judged(bytes: &[u8]) -> Result<Ova> {
    inspect(&mut Cursor::new(bytes))
}

#[test]
fn a_whole_ova_is_read_and_its_disk_found() {
    let parts = Parts::new();
    let list = parts.list();
    for more in [&[][..], &[("demo.mf", list.as_bytes(), tar::EntryType::Regular)]] {
        let bytes = parts.with(more);
        let ova = judged(&bytes).expect("whole");
        let disk = ova.disk().expect("one disk");
        let start = usize::try_from(disk.offset).expect("small");
        assert_eq!(&bytes[start..start + parts.vmdk.len()], &parts.vmdk[..]);
    }
}

#[test]
fn an_ova_that_does_not_hold_together_is_refused() {
    let file = tar::EntryType::Regular;
    let parts = Parts::new();
    let list = parts.list();
    let with = |more: &[(&str, &[u8], tar::EntryType)]| parts.with(more);
    let other_ovf = |ovf: String| Parts { ovf, vmdk: parts.vmdk.clone() }.with(&[]);
    let size = parts.vmdk.len() as u64;
    let whole = with(&[]);
    let short_list = list.lines().next().expect("a line").to_owned();
    let wrong_list = list.replacen("= ", "= 00", 1);
    let mut flipped = with(&[("demo.mf", list.as_bytes(), file)]);
    let at = flipped.len() / 2;
    flipped[at] ^= 1;
    let mut far = Parts { ovf: parts.ovf.clone(), vmdk: parts.vmdk.clone() };
    // Where the VMDK says that its descriptor is.
    far.vmdk[28..36].copy_from_slice(&u64::MAX.to_le_bytes());
    for (bytes, part) in [
        (with(&[("../evil", b"x", file)]), "not a plain file name"),
        (with(&[("/etc/cron.d/evil", b"x", file)]), "not a plain file name"),
        (with(&[("evil", b"", tar::EntryType::Symlink)]), "not a plain file"),
        (with(&[("evil", b"", tar::EntryType::Link)]), "not a plain file"),
        (with(&[("evil", b"", tar::EntryType::Char)]), "not a plain file"),
        (with(&[("extra.bin", b"x", file)]), "does not belong"),
        (with(&[("d.vmdk", b"x", file)]), "twice"),
        (with(&[("two.ovf", b"x", file)]), "more than one .ovf"),
        (with(&[("demo.mf", b"nonsense", file)]), "cannot be read"),
        (with(&[("demo.mf", short_list.as_bytes(), file)]), "leaves out"),
        (with(&[("demo.mf", wrong_list.as_bytes(), file)]), "differs from its digest list"),
        (with(&[("demo.mf", b"SHA256(gone)= 00\n", file)]), "names `gone`"),
        (flipped, "`d.vmdk` differs from its digest list"),
        (far.with(&[]), "0 extents"),
        (tar_of(&[("d.vmdk", &parts.vmdk, file)]), "no OVF descriptor"),
        (other_ovf(sample("e.vmdk", size, 1 << 30)), "which is not in it"),
        (other_ovf(sample("../../etc/shadow", size, 1 << 30)), "which is not in it"),
        (other_ovf(sample("http://example.org/d.vmdk", size, 1 << 30)), "which is not in it"),
        (other_ovf(sample("d.vmdk", size + 1, 1 << 30)), "another size"),
        (other_ovf(sample("d.vmdk", size, 1 << 29)), "more than the"),
        (other_ovf(sample("d.vmdk", size, 1 << 30).replace("Debian_64", "Debian")), "not 64-bit"),
        (whole[..whole.len() / 2].to_vec(), "`d.vmdk` is cut off"),
        (b"not a tar at all".repeat(100), "the tar is damaged"),
    ] {
        let error = judged(&bytes).expect_err(part);
        assert_eq!(error.kind(), Kind::Untrusted, "{part}");
        assert!(error.message().contains(part), "{part}: {error}");
    }
}
