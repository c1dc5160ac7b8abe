//! An initial RAM file system: a `newc` cpio archive, compressed. Reproducible: entries in order of
//! their path, numbered from one, owned by root, all with the same time.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// A file in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CpioEntry {
    Folder { mode: u32 },
    File { mode: u32, contents: Vec<u8> },
    Link { to: String },
}

/// The files of an initial RAM file system. Paths are absolute ones there, without a leading slash.
#[derive(Debug, Default)]
pub(super) struct Initrd(BTreeMap<String, CpioEntry>);

impl Initrd {
    /// Adds a file with the permission bits `mode`.
    pub(super) fn file(&mut self, path: &str, mode: u32, contents: impl Into<Vec<u8>>) {
        self.insert(path, CpioEntry::File { mode, contents: contents.into() });
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, to: &str) {
        self.insert(path, CpioEntry::Link { to: to.to_owned() });
    }

    /// Adds a folder with the permission bits `mode`.
    pub(super) fn folder(&mut self, path: &str, mode: u32) {
        self.insert(path, CpioEntry::Folder { mode });
    }

    /// Returns whether something is there.
    pub(super) fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    fn insert(&mut self, path: &str, entry: CpioEntry) {
        for (at, _) in path.match_indices('/') {
            self.0.entry(path[..at].to_owned()).or_insert(CpioEntry::Folder { mode: 0o755 });
        }
        self.0.insert(path.to_owned(), entry);
    }

    /// Returns the archive, compressed with zstd, every entry dated `epoch` (seconds).
    pub(super) fn compressed(&self, epoch: u32) -> Result<Vec<u8>> {
        // The kernel's zstd takes windows up to 8 MiB (lib/decompress_unzstd.c), which is level 19's.
        zstd::bulk::compress(&self.archive(epoch), 19)
            .map_err(|error| Error::internal("zstd failed").with_source(error))
    }

    fn archive(&self, epoch: u32) -> Vec<u8> {
        let mut out = Vec::new();
        for ((path, entry), inode) in self.0.iter().zip(1..) {
            let (mode, contents): (u32, &[u8]) = match entry {
                CpioEntry::Folder { mode } => (0o040_000 | mode, &[]),
                CpioEntry::File { mode, contents } => (0o100_000 | mode, contents),
                CpioEntry::Link { to } => (0o120_777, to.as_bytes()),
            };
            append(&mut out, path, inode, mode, epoch, contents);
        }
        append(&mut out, "TRAILER!!!", 0, 0, 0, &[]);
        out
    }
}

/// Appends one entry as Documentation/driver-api/early-userspace/buffer-format.rst of Linux has it.
fn append(out: &mut Vec<u8>, path: &str, inode: u32, mode: u32, epoch: u32, contents: &[u8]) {
    let size = u32::try_from(contents.len()).expect("a file of an initrd is far under 4 GiB");
    let name = u32::try_from(path.len() + 1).expect("a path is short");
    let links = if mode & 0o040_000 == 0 { 1 } else { 2 };
    let fields = [inode, mode, 0, 0, links, epoch, size, 0, 0, 0, 0, name, 0];
    out.extend_from_slice(b"070701");
    out.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(contents);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Stdio};

    fn initrd() -> Initrd {
        let mut initrd = Initrd::default();
        initrd.file("etc/deep/secret", 0o600, "s");
        initrd.file("init", 0o755, "#!/bin/sh\n");
        initrd.link("bin", "usr/bin");
        initrd.folder("root", 0o700);
        initrd
    }

    #[test]
    fn cpio_unpacks_what_was_put_in() {
        let folder = tempfile::tempdir().unwrap();
        let mut cpio = Command::new("cpio")
            .args(["--extract", "--quiet", "--preserve-modification-time"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&initrd().archive(1_700_000_000)).unwrap();
        assert!(cpio.wait().unwrap().success());

        let path = |name: &str| folder.path().join(name);
        assert_eq!(fs_err::read_to_string(path("etc/deep/secret")).unwrap(), "s");
        assert_eq!(fs_err::read_link(path("bin")).unwrap().to_str(), Some("usr/bin"));
        for (name, mode) in [("etc/deep/secret", 0o600), ("init", 0o755), ("root", 0o700)] {
            let found = fs_err::metadata(path(name)).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode, "{name}");
        }
        let time = fs_err::metadata(path("init")).unwrap().modified().unwrap();
        let seconds = time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(seconds, 1_700_000_000);
    }

    #[test]
    fn the_same_files_give_the_same_bytes_in_whatever_order_they_were_added() {
        let mut other = Initrd::default();
        other.folder("root", 0o700);
        other.link("bin", "usr/bin");
        other.file("init", 0o755, "#!/bin/sh\n");
        other.file("etc/deep/secret", 0o600, "s");
        assert_eq!(initrd().compressed(1).unwrap(), other.compressed(1).unwrap());
        assert_ne!(initrd().compressed(1).unwrap(), other.compressed(2).unwrap());
    }
}
