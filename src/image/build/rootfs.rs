//! A reproducible ext4 file system, made without root rights by mke2fs and dated by debugfs.
//!
//! mke2fs copies the times of change and access of the files that it is given, which no program can set;
//! debugfs sets them in the file system itself.

use camino::Utf8Path;
use jiff::Timestamp;
use uuid::Uuid;

use super::context::{BuildContext, Need};
use crate::error::{Error, Result};
use crate::host::Command;

/// Unpacks the tree and runs mke2fs on it, both as the same (perhaps pretended) root.
const SCRIPT: &str = include_str!("debian/tree.sh");

/// What every kernel and GRUB since Debian 12 reads. Written out, so that the host's mke2fs.conf has no
/// say in it.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,\
                        sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// Bytes of a block.
const BLOCK: u64 = 4096;

/// What it needs.
pub(super) const NEEDS: [Need; 5] = [
    ("tar", "tar"),
    ("find", "findutils"),
    ("mke2fs", "e2fsprogs"),
    ("dumpe2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
];
/// What it needs beside, when a user who is not root runs it.
pub(super) const NEEDS_AS_USER: [Need; 1] = [("fakeroot", "fakeroot")];

/// Returns the texts that decide the file system's bytes.
pub(super) fn texts() -> [&'static str; 2] {
    [SCRIPT, FEATURES]
}

/// An ext4 file system inside a disk image.
pub(super) struct RootFs<'a> {
    /// The disk image; it is there and big enough.
    pub(super) disk: &'a Utf8Path,
    /// Where in it the file system begins, in bytes.
    pub(super) offset: u64,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Its UUID, which also seeds the hashes of its folders.
    pub(super) uuid: Uuid,
    /// The time of everything in it, unless that is older.
    pub(super) date: Timestamp,
}

impl RootFs<'_> {
    /// Fills it with the files of the tar archive `tree`, and over them those of `overlay`.
    pub(super) async fn make(
        &self,
        shop: &BuildContext<'_>,
        tree: &Utf8Path,
        overlay: &Utf8Path,
    ) -> Result<()> {
        let folder = shop.path("root");
        fs_err::create_dir(&folder)?;
        let date = self.date.as_second().to_string();
        let pretended = if shop.host.is_root() { &[][..] } else { &["fakeroot", "--"] };
        let command =
            Command::from_argv(pretended.iter().copied().chain(["sh", "-c", SCRIPT, "sh"]))
                .args([tree.as_str(), overlay.as_str(), folder.as_str(), date.as_str()])
                .args(["mke2fs", "-q", "-F", "-t", "ext4", "-O", FEATURES, "-I", "256"])
                .args([
                    "-b",
                    &BLOCK.to_string(),
                    "-m",
                    "1",
                    "-L",
                    "root",
                    "-U",
                    &self.uuid.to_string(),
                ])
                .args(["-E", &self.extended_options(), "-d", folder.as_str(), self.disk.as_str()])
                .arg((self.size / BLOCK).to_string());
        shop.check(self.dated(command)).await?;
        fs_err::remove_dir_all(&folder)?;
        self.set_dates(shop).await
    }

    fn extended_options(&self) -> String {
        format!(
            "offset={},hash_seed={},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0",
            self.offset, self.uuid
        )
    }

    /// Returns the command with the e2fsprogs' clock stopped at the file system's date, by the name of
    /// old and of new.
    fn dated(&self, command: Command) -> Command {
        let date = self.date.as_second().to_string();
        command.env("E2FSPROGS_FAKE_TIME", &date).env("SOURCE_DATE_EPOCH", date)
    }

    /// Sets the times of every inode that nothing outside can set.
    async fn set_dates(&self, shop: &BuildContext<'_>) -> Result<()> {
        let device = format!("{}?offset={}", self.disk, self.offset);
        let listed = shop.check(Command::new("dumpe2fs").arg(&device)).await?.text();
        let date = self.date.as_second();
        let script: String = used_inodes(&listed)
            .ok_or_else(|| Error::internal("dumpe2fs lists no inodes"))?
            .flat_map(|inode| {
                ["ctime", "atime", "crtime"].map(|field| {
                    format!("sif <{inode}> {field} @{date}\nsif <{inode}> {field}_extra 0\n")
                })
            })
            .collect();
        let path = shop.path("dates");
        fs_err::write(&path, script)?;
        let command = Command::new("debugfs").args(["-w", "-f", path.as_str(), &device]);
        let output = shop.check(self.dated(command)).await?;
        // debugfs exits with 0 whatever its commands did.
        match output.error_text().lines().find(|line| line.starts_with("sif:")) {
            Some(line) => Err(Error::failed(format!("debugfs cannot set dates: {line}"))),
            None => Ok(()),
        }
    }
}

/// Returns the numbers of the inodes that dumpe2fs does not list as free.
fn used_inodes(listed: &str) -> Option<impl Iterator<Item = u32>> {
    let count: u32 =
        listed.lines().find_map(|line| line.strip_prefix("Inode count:"))?.trim().parse().ok()?;
    // Indented under each group: `Free inodes: 12-100, 205`; the sum in the head is not.
    let free: Vec<(u32, u32)> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("  Free inodes: "))
        .flat_map(|ranges| ranges.split(", "))
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        })
        .collect();
    Some((1..=count).filter(move |inode| {
        let at = free.partition_point(|(_, last)| last < inode);
        free.get(at).is_none_or(|(first, _)| inode < first)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inodes_in_use_are_those_that_no_group_lists_as_free() {
        let listed = "Inode count:              20\nFree inodes:              9\n\
                      Group 0: (Blocks 0-1)\n  Free inodes: 4-6, 9\nGroup 1: (Blocks 2-3)\n  \
                      Free inodes: 16-20\n";
        let used: Vec<u32> = used_inodes(listed).unwrap().collect();
        assert_eq!(used, [1, 2, 3, 7, 8, 10, 11, 12, 13, 14, 15]);
        assert!(used_inodes("").is_none());
    }
}
