//! Files of which the oldest make room for new ones: logs and bundles.
//!
//! Each has a number in its name, one more than the last one's. When it was made is in the name too, for
//! people; a clock that is set back makes nothing older than it is.

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::Result;

/// The files of one kind in a folder.
#[derive(Debug)]
pub struct Numbered<'a> {
    /// The folder.
    pub directory: &'a Utf8Path,
    /// What their names begin with, in front of the number.
    pub beginning: &'a str,
    /// What their names end with.
    pub ending: &'a str,
}

impl Numbered<'_> {
    /// Returns the files, oldest first.
    ///
    /// # Errors
    /// [`Kind::Io`](crate::Kind) if the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Utf8PathBuf>> {
        let mut files = Vec::new();
        for entry in fs_err::read_dir(self.directory)? {
            let path = Utf8PathBuf::from_path_buf(entry?.path());
            files.extend(path.ok().filter(|path| path.as_str().ends_with(self.ending)));
        }
        // Earlier versions gave no number: what has none comes first, by the time in its name.
        files.sort_by_cached_key(|path| (self.number(path), path.clone()));
        Ok(files)
    }

    /// Removes the oldest until there are less than `kept`, and returns the path of a new one, made now.
    ///
    /// # Errors
    /// [`Kind::Io`](crate::Kind) if one cannot be removed.
    pub fn next(&self, kept: usize, rest: &str) -> Result<Utf8PathBuf> {
        let mut files = self.list()?;
        let newest = files.last().and_then(|path| self.number(path)).unwrap_or(0);
        files.truncate((files.len() + 1).saturating_sub(kept));
        for old in files {
            fs_err::remove_file(old)?;
        }
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%.6fZ");
        let (beginning, number, ending) = (self.beginning, newest + 1, self.ending);
        Ok(self.directory.join(format!("{beginning}{number:06}-{time}{rest}{ending}")))
    }

    fn number(&self, path: &Utf8Path) -> Option<u64> {
        let (number, _) = path.file_name()?.strip_prefix(self.beginning)?.split_once('-')?;
        number.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stays_however_the_clock_is_set_and_what_has_no_number_goes_first() {
        let scratch = tempfile::tempdir().expect("a folder");
        let directory = Utf8Path::from_path(scratch.path()).expect("UTF-8");
        let names = [
            "x-20300101T000000.000000Z-up.log",
            "x-20310101T000000.000000Z-up.log",
            "x-000009-20990101T000000.000000Z-up.log",
            "x-000010-19990101T000000.000000Z-up.log",
            "x-1000000-19980101T000000.000000Z-up.log",
        ];
        for name in names {
            std::fs::write(directory.join(name), "").expect("writes");
        }
        std::fs::write(directory.join("x-000001-other.txt"), "").expect("writes");
        let files = Numbered { directory, beginning: "x-", ending: ".log" };
        assert_eq!(files.list().expect("lists"), names.map(|name| directory.join(name)));
        let next = files.next(3, "-up").expect("makes room");
        assert!(next.as_str().contains("/x-1000001-"), "{next}");
        assert_eq!(files.list().expect("lists"), [3, 4].map(|at| directory.join(names[at])));
        assert!(directory.join("x-000001-other.txt").exists());
    }
}
