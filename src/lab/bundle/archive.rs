//! The archive that a bundle is: a tar of one folder, compressed with gzip, which everything opens.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::error::{Error, Kind, Result};
use crate::lab::private;

/// An archive that is being written; it is removed again if it is not finished.
pub(super) struct Archive {
    tar: Option<tar::Builder<GzEncoder<File>>>,
    path: Utf8PathBuf,
    folder: String,
    files: Vec<String>,
}

impl Archive {
    /// Makes the archive at `path`, with everything in the folder `folder`.
    pub(super) fn create(path: &Utf8Path, folder: &str) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(private::FILE_MODE)
            .open(path)
            .map_err(|error| failed(path, error))?;
        let tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let (path, folder) = (path.to_owned(), folder.to_owned());
        Ok(Archive { tar: Some(tar), path, folder, files: Vec::new() })
    }

    /// Adds a file.
    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(private::FILE_MODE);
        header.set_mtime(u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default());
        let tar = self.tar.as_mut().expect("it is not finished");
        tar.append_data(&mut header, format!("{}/{name}", self.folder), bytes)
            .map_err(|error| failed(&self.path, error))?;
        self.files.push(name.to_owned());
        Ok(())
    }

    /// Completes the archive; returns where it lies and the names in it.
    pub(super) fn finish(mut self) -> Result<(Utf8PathBuf, Vec<String>)> {
        let tar = self.tar.take().expect("it is not finished");
        let done = tar.into_inner().and_then(GzEncoder::finish).and_then(|file| file.sync_all());
        if let Err(error) = done {
            // What is not whole is of no use.
            let _ = std::fs::remove_file(&self.path);
            return Err(failed(&self.path, error));
        }
        Ok((self.path.clone(), std::mem::take(&mut self.files)))
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if self.tar.is_some() {
            // What is not whole is of no use; if it cannot be removed now, it makes room later.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn failed(path: &Utf8Path, error: std::io::Error) -> Error {
    Error::new(Kind::Io, format!("{path} cannot be written")).with_source(error)
}
