//! A reproducible FAT volume: the same files give the same bytes.
//!
//! Reproducible because every entry is dated with FAT's own epoch, and the serial number comes from the
//! caller.

use std::io::{Cursor, Write as _};

use fatfs::{Date, DateTime, Dir, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};

use crate::error::{Error, Result};

/// What a volume is made of.
pub(super) struct Volume<'a> {
    /// At most 11 upper-case letters and digits.
    pub(super) label: &'a str,
    /// The volume's serial number.
    pub(super) serial: u32,
    /// Its size in bytes, a multiple of 512; FAT12, 16 or 32 is chosen from it.
    pub(super) size: usize,
}

impl Volume<'_> {
    /// Returns the volume's bytes, with `files` (path, contents) in the order given; folders on the
    /// way are made. A file that does not fit is an error.
    pub(super) fn with_files(&self, files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.size];
        self.fill(&mut bytes, files).map_err(|error| {
            Error::failed(format!("the FAT volume {} cannot be written", self.label))
                .with_source(error)
        })?;
        Ok(bytes)
    }

    fn fill(&self, bytes: &mut [u8], files: &[(&str, &[u8])]) -> std::io::Result<()> {
        let mut label = [b' '; 11];
        label[..self.label.len()].copy_from_slice(self.label.as_bytes());
        let options = FormatVolumeOptions::new().volume_label(label).volume_id(self.serial);
        fatfs::format_volume(Cursor::new(&mut *bytes), options)?;

        let options = FsOptions::new().time_provider(&Epoch);
        let volume = FileSystem::new(Cursor::new(bytes), options)?;
        for (path, contents) in files {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            let mut file = folder_at(volume.root_dir(), folder)?.create_file(name)?;
            file.truncate()?;
            file.write_all(contents)?;
        }
        volume.unmount()
    }
}

/// A clock that stands still at the first moment that FAT can express.
#[derive(Debug)]
struct Epoch;

impl TimeProvider for Epoch {
    fn get_current_date(&self) -> Date {
        Date { year: 1980, month: 1, day: 1 }
    }

    fn get_current_date_time(&self) -> DateTime {
        let time = Time { hour: 0, min: 0, sec: 0, millis: 0 };
        DateTime { date: self.get_current_date(), time }
    }
}

/// Returns the folder at `path` under `root`, made if need be.
fn folder_at<'v, T: fatfs::ReadWriteSeek>(
    root: Dir<'v, T>,
    path: &str,
) -> std::io::Result<Dir<'v, T>> {
    path.split('/').filter(|part| !part.is_empty()).try_fold(root, |dir, part| dir.create_dir(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    const VOLUME: Volume<'static> = Volume { label: "TEST", serial: 7, size: 1 << 20 };

    #[test]
    fn what_was_written_reads_back_by_its_long_name() {
        let files: [(&str, &[u8]); 2] = [("EFI/BOOT/a long name.cfg", b"x"), ("top", b"yy")];
        let mut bytes = VOLUME.with_files(&files).unwrap();
        let volume = FileSystem::new(Cursor::new(&mut bytes[..]), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label(), "TEST");
        for (path, contents) in files {
            let mut read = Vec::new();
            volume.root_dir().open_file(path).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, contents);
        }
    }

    #[test]
    fn a_file_that_does_not_fit_is_an_error() {
        let big = vec![1; 2 << 20];
        let error = VOLUME.with_files(&[("big", &big)]).unwrap_err();
        assert!(error.message().contains("TEST"), "{error:?}");
    }
}
