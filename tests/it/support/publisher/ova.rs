//! OVAs for tests: a real VMDK by qemu-img, an OVF like VirtualBox's, and whatever is to be wrong.

use std::process::Command;

use sha2::Digest as _;

/// What goes into an OVA.
#[derive(Clone)]
pub struct Ova {
    pub os_type: &'static str,
    pub machines: usize,
    /// The file that the OVF names.
    pub href: String,
    /// The disk's size as the OVF claims it, in bytes.
    pub capacity: u64,
    pub vmdk: Vec<u8>,
    /// The digest list, if there is one; see [`Ova::list`].
    pub list: Option<String>,
    /// More members: name, content, and whether it is a symbolic link to `/etc/passwd` instead.
    pub more: Vec<(String, Vec<u8>, bool)>,
}

/// The size of the disk in the OVAs, in bytes.
pub const DISK: u64 = 64 << 20;

impl Ova {
    /// A good one: 64-bit, one machine, one disk.
    pub fn new() -> Self {
        Ova {
            os_type: "Debian_64",
            machines: 1,
            href: "disk1.vmdk".to_owned(),
            capacity: DISK,
            vmdk: vmdk(),
            list: None,
            more: Vec::new(),
        }
    }

    /// The OVF.
    pub fn ovf(&self) -> String {
        let machine = format!(
            r#"<VirtualSystem ovf:id="vm"><OperatingSystemSection ovf:id="96"><vbox:OSType>{}</vbox:OSType></OperatingSystemSection></VirtualSystem>"#,
            self.os_type
        );
        format!(
            r#"<?xml version="1.0"?>
<Envelope ovf:version="1.0" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:vbox="http://www.virtualbox.org/ovf/machine">
<References><File ovf:id="file1" ovf:href="{}"/></References>
<DiskSection><Disk ovf:capacity="{}" ovf:diskId="d1" ovf:fileRef="file1"/></DiskSection>
{}
</Envelope>
"#,
            self.href,
            self.capacity,
            machine.repeat(self.machines)
        )
    }

    /// The right digest list.
    pub fn right_list(&self) -> String {
        let line = |name: &str, bytes: &[u8]| {
            format!("SHA256 ({name}) = {}\n", hex::encode(sha2::Sha256::digest(bytes)))
        };
        line("vm.ovf", self.ovf().as_bytes()) + &line("disk1.vmdk", &self.vmdk)
    }

    /// The tar.
    pub fn bytes(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &str, content: &[u8], link: bool| {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            if link {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_link_name_literal("/etc/passwd").expect("short");
            }
            header.set_cksum();
            tar.append(&header, content).expect("writes");
        };
        add("vm.ovf", self.ovf().as_bytes(), false);
        add("disk1.vmdk", &self.vmdk, false);
        for (name, content, link) in &self.more {
            add(name, content, *link);
        }
        if let Some(list) = &self.list {
            add("vm.mf", list.as_bytes(), false);
        }
        tar.into_inner().expect("finishes")
    }
}

/// A stream-optimized VMDK by the real qemu-img.
pub fn vmdk() -> Vec<u8> {
    made(&["-f", "vmdk", "-o", "subformat=streamOptimized"])
}

/// A disk of [`DISK`] bytes by the real qemu-img; a file called `base.qcow2` lies beside it.
pub fn made(options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let create = |options: &[&str], name: &str| {
        let status = Command::new("qemu-img")
            .current_dir(folder.path())
            .args(["create", "-q"])
            .args(options)
            .args([name, &DISK.to_string()])
            .status()
            .expect("qemu-img is there");
        assert!(status.success(), "{options:?}");
    };
    create(&["-f", "qcow2"], "base.qcow2");
    create(options, "disk");
    fs_err::read(folder.path().join("disk")).expect("reads")
}
