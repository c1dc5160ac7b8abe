//! The file that arriving bytes are written to.
//!
//! They go past the page cache where the file system has a way: gigabytes that nobody reads soon would cost
//! more of the processor than their download does, and push out what others need. Knows nothing of where
//! bytes come from, nor of when they are safe.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use bytes::{Buf as _, BytesMut};
use camino::Utf8Path;

/// What memory, length and place of a write past the page cache are multiples of: the largest block size
/// of the disks and file systems in use.
pub(super) const ALIGNMENT: usize = 4096;

/// A file that is written from some place on.
pub(super) struct Disk {
    file: File,
    /// The same file past the page cache, while the file system takes that.
    direct: Option<File>,
    at: u64,
}

impl Disk {
    /// Opens the file at `path`, which is made if it is not there, and cuts it after `have` bytes: what is
    /// written follows them.
    pub(super) fn open(path: &Utf8Path, have: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(have == 0).mode(0o600);
        let file = options.open(path)?;
        file.set_len(have)?;
        Ok(Disk { file, direct: direct(path), at: have })
    }

    /// Returns the file, to be read or synced.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Writes the next bytes; past the page cache if they are [`aligned`], as is their place.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let at = self.at;
        self.at += bytes.len() as u64;
        if let Some(direct) = &self.direct
            && is_aligned(bytes, at)
        {
            match direct.write_all_at(bytes, at) {
                // There are file systems that open a file so, and then take no write.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                ended => return ended,
            }
        }
        self.file.write_all_at(bytes, at)
    }
}

/// Returns an empty block that holds `capacity` bytes, and whose memory suits [`Disk::write`].
pub(super) fn aligned(capacity: usize) -> BytesMut {
    let mut block = BytesMut::with_capacity(capacity + ALIGNMENT);
    let before = block.as_ptr().align_offset(ALIGNMENT);
    block.resize(before, 0);
    block.advance(before);
    block
}

fn is_aligned(bytes: &[u8], at: u64) -> bool {
    bytes.as_ptr().align_offset(ALIGNMENT) == 0
        && bytes.len().is_multiple_of(ALIGNMENT)
        && at.is_multiple_of(ALIGNMENT as u64)
}

#[cfg(target_os = "linux")]
fn direct(path: &Utf8Path) -> Option<File> {
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    OpenOptions::new().write(true).custom_flags(flags).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn direct(_path: &Utf8Path) -> Option<File> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks as a download that was resumed at `have` makes them, whose sizes are odd at both ends.
    #[test]
    fn blocks_of_any_size_from_any_place_follow_each_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = Utf8Path::from_path(folder.path()).expect("UTF-8").join("image");
        for have in [0, 1, ALIGNMENT, 3 * ALIGNMENT + 7] {
            let first = ALIGNMENT - have % ALIGNMENT;
            let sizes = [first, ALIGNMENT, 4 * ALIGNMENT, 100, ALIGNMENT, 2];
            let whole: Vec<u8> =
                (0..have + sizes.iter().sum::<usize>()).map(|n| (n % 251) as u8).collect();
            std::fs::write(&path, [&whole[..have], b"of a broken write"].concat()).expect("a file");
            let mut disk = Disk::open(&path, have as u64).expect("it opens");
            let mut at = have;
            for size in sizes {
                let mut block = aligned(size);
                block.extend_from_slice(&whole[at..at + size]);
                assert_eq!(block.as_ptr().align_offset(ALIGNMENT), 0, "it did not move");
                disk.write(&block).expect("it is written");
                at += size;
            }
            assert!(std::fs::read(&path).expect("the file") == whole, "resumed at {have}");
        }
    }
}
