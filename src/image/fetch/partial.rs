//! A download that is not done: its bytes so far, what they are a part of, and the claim that makes two
//! downloads of one image one. A build holds its place in the same way.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::interrupted;
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::image::digest::Sha256;
use crate::image::store::{DirLock, Store};

/// An unfinished download in the folder that belongs to it, held by this process alone.
pub(in crate::image) struct Partial {
    folder: Utf8PathBuf,
    state: PartialState,
    /// The bytes came in more than one piece.
    stitched: bool,
    _claim: DirLock,
}

/// What the name of a folder begins with that a build works in.
const WORK: &str = "work";

/// Returns what builds work in, or did, in the place `folder`.
pub(in crate::image) fn work_folders(folder: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    let mut found = Vec::new();
    for entry in folder.read_dir_utf8()? {
        let entry = entry?;
        if entry.file_name().starts_with(WORK) {
            found.push(entry.into_path());
        }
    }
    Ok(found)
}

/// What the bytes so far are a part of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartialState {
    /// Where they came from.
    pub(super) url: String,
    /// The server's strong entity tag.
    pub(super) etag: Option<String>,
    /// The server's modification date.
    pub(super) last_modified: Option<String>,
    /// How many bytes the whole has.
    pub(super) total: Option<u64>,
}

impl Partial {
    /// Takes the unfinished download of the image with that identity; waits while another fetch has it.
    pub(in crate::image) async fn open(
        store: &Store,
        identity: &Sha256,
        events: &EventSink,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let folder = store.partial().join(identity.to_string());
        let (locks, why) = (store.locks(), "waiting for another run that gets the same image");
        let claim = tokio::select! {
            claim = DirLock::wait(&locks, &folder, events, why) => claim?,
            () = cancel.cancelled() => return Err(interrupted()),
        };
        let state = match fs_err::read(folder.join("state.json")) {
            // What cannot be read starts anew.
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::NotFound => PartialState::default(),
            Err(error) => return Err(error.into()),
        };
        Ok(Partial { folder, state, stitched: false, _claim: claim })
    }

    /// Makes a folder to build in, of this run alone: a program of a killed run that lives on cannot write
    /// into it. What such a run left is removed, as far as that goes.
    pub(in crate::image) fn work_folder(&self) -> Result<Utf8PathBuf> {
        for left in work_folders(&self.folder)? {
            // One that a program still writes to goes with the next run.
            let _ = fs_err::remove_dir_all(left);
        }
        let folder = tempfile::Builder::new()
            .prefix(WORK)
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(&self.folder)?
            .keep();
        Utf8PathBuf::from_path_buf(folder)
            .map_err(|path| Error::new(Kind::Io, format!("{} is not UTF-8", path.display())))
    }

    /// Returns the file of bytes so far; it need not exist.
    pub(super) fn file(&self) -> Utf8PathBuf {
        self.folder.join("data")
    }

    /// Returns how many bytes there are so far.
    pub(super) fn len(&self) -> Result<u64> {
        match fs_err::symlink_metadata(self.file()) {
            Ok(meta) => Ok(meta.len()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns what the bytes are a part of.
    pub(super) fn state(&self) -> &PartialState {
        &self.state
    }

    /// Returns whether the bytes came in more than one piece.
    pub(super) fn is_stitched(&self) -> bool {
        self.stitched
    }

    /// Notes that the bytes so far go on with a piece from `url`.
    pub(super) fn goes_on(&mut self, url: &str) -> Result<()> {
        self.stitched = true;
        self.write_state(PartialState { url: url.to_owned(), ..self.state.clone() })
    }

    /// Drops the bytes so far and notes what the next ones will be a part of.
    pub(super) fn starts(&mut self, state: PartialState) -> Result<()> {
        self.clear()?;
        self.write_state(state)
    }

    /// Drops the bytes so far.
    pub(super) fn clear(&mut self) -> Result<()> {
        for file in [self.folder.join("state.json"), self.file()] {
            match fs_err::remove_file(file) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        self.stitched = false;
        self.state = PartialState::default();
        Ok(())
    }

    /// Hands the bytes to `take`, which moves them away, and starts anew.
    pub(super) fn give_up<T>(&mut self, take: impl FnOnce(&Utf8Path) -> Result<T>) -> Result<T> {
        let taken = take(&self.file())?;
        self.clear()?;
        Ok(taken)
    }

    /// Removes the folder; whoever waits for it makes a new one.
    pub(in crate::image) fn remove(self) -> Result<()> {
        Ok(fs_err::remove_dir_all(&self.folder)?)
    }

    fn write_state(&mut self, state: PartialState) -> Result<()> {
        let bytes = serde_json::to_vec(&state)
            .map_err(|error| Error::internal("a state cannot be written").with_source(error))?;
        fs_err::write(self.folder.join("state.json"), bytes)?;
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_build_works_in_a_folder_of_its_own_and_what_a_killed_one_left_is_gone() {
        let scratch = tempfile::tempdir().expect("a folder");
        let root = Utf8Path::from_path(scratch.path()).expect("UTF-8").join("images");
        let store = Store::open(&root).expect("opens");
        let (id, cancel) = (Sha256::from_bytes([1; 32]), CancellationToken::new());
        let open =
            async || Partial::open(&store, &id, &EventSink::silent(), &cancel).await.expect("free");
        let first = open().await.work_folder().expect("makes");
        fs_err::write(first.join("tree.tar"), "half").expect("writes");
        let second = open().await.work_folder().expect("makes");
        assert_ne!(first, second, "a program of the first run would write into it");
        assert!(!first.exists() && second.is_dir());
    }
}
