//! What kind of file system a folder lies on.

use camino::Utf8Path;
use rustix::fs::FsWord;

/// File systems that more than one machine may have mounted at once: linux/magic.h and statfs(2). What a
/// virtual machine shares with its host counts, and so does FUSE, behind which anything may be.
const SHARED: [FsWord; 14] = [
    0x6969,      // NFS
    0x517B,      // SMB
    0xFF53_4D42, // CIFS
    0xFE53_4D42, // SMB2
    0x0102_1997, // 9P
    0x6573_5546, // FUSE: sshfs, virtiofs
    0x786F_4256, // vboxsf
    0x00C3_6400, // Ceph
    0x5346_414F, // AFS, OpenAFS
    0x6B41_4653, // AFS, the kernel's
    0x7375_7245, // Coda
    0x0116_1970, // GFS2
    0x7461_636F, // OCFS2
    0x0BD0_0BD0, // Lustre
];

/// Returns whether other machines may have the file system of `path` mounted, too; also if that cannot be
/// found out.
pub(super) fn is_shared(path: &Utf8Path) -> bool {
    // As a number of 32 bits the larger ones may have been taken for negative.
    let kind = rustix::fs::statfs(path.as_std_path()).map(|found| found.f_type & 0xFFFF_FFFF);
    kind.map_or(true, |kind| SHARED.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_in_memory_is_this_machines_own_and_an_unknown_one_is_not_trusted() {
        assert!(!is_shared("/proc".into()));
        assert!(is_shared("/nonexistent/folder".into()));
    }

    #[test]
    fn each_magic_number_fits_into_what_is_compared() {
        for kind in SHARED {
            assert_eq!(kind & 0xFFFF_FFFF, kind);
        }
    }
}
