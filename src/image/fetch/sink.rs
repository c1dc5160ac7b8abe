//! Where arriving bytes go: into the hashes and the file, on a thread that may block.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::mpsc::{SyncSender, sync_channel};

use bytes::{Bytes, BytesMut};
use camino::Utf8PathBuf;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::disk::{Disk, aligned};
use crate::error::{Error, Kind, Result};
use crate::image::format::{Compression, HEAD, ImageFormat, looks_wrong};
use crate::image::verify::{Hashed, Hashing};

/// The size of the blocks that go to hashes and disk.
const BLOCK: usize = 512 * 1024;

/// How many blocks may wait for the disk.
const WAITING: usize = 8;

/// After how many bytes the disk is asked to have them: the last sync is then short, and a disk that is
/// written through the page cache works while the network does.
const SYNC_EVERY: u64 = 256 << 20;

/// A thread that writes and hashes.
pub(super) struct HashingWriter {
    /// What came since the last whole block.
    block: BytesMut,
    /// How many bytes it still takes.
    left: usize,
    sender: mpsc::Sender<Bytes>,
    thread: JoinHandle<Result<Hashed>>,
}

/// What a sink starts from.
pub(super) struct ResumePoint {
    pub(super) file: Utf8PathBuf,
    /// Bytes that the file has already; they are read and hashed first.
    pub(super) have: u64,
    pub(super) hashing: Hashing,
    pub(super) form: (ImageFormat, Compression),
}

impl HashingWriter {
    /// Starts the thread.
    pub(super) fn start(start: ResumePoint) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        // The first block ends where a whole one would, and so all that follow lie where the disk likes it.
        let left = BLOCK - (start.have % BLOCK as u64) as usize;
        let thread = tokio::task::spawn_blocking(move || run(start, receiver));
        HashingWriter { block: aligned(BLOCK), left, sender, thread }
    }

    /// Takes the next bytes; `false` if the thread has ended, and [`HashingWriter::finish`] says why.
    pub(super) async fn take(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let (fits, rest) = bytes.split_at(bytes.len().min(self.left));
            self.block.extend_from_slice(fits);
            self.left -= fits.len();
            bytes = rest;
            if self.left == 0 {
                let whole = std::mem::replace(&mut self.block, aligned(BLOCK));
                self.left = BLOCK;
                if self.sender.send(whole.freeze()).await.is_err() {
                    return false;
                }
            }
        }
        true
    }

    /// Waits until everything is hashed and written.
    pub(super) async fn finish(self) -> Result<Hashed> {
        // If it has ended already, it says so.
        let _ = self.sender.send(self.block.freeze()).await;
        drop(self.sender);
        self.thread.await.map_err(|error| Error::internal("the writer died").with_source(error))?
    }
}

fn run(start: ResumePoint, mut receiver: mpsc::Receiver<Bytes>) -> Result<Hashed> {
    let ResumePoint { file: path, have, mut hashing, form } = start;
    let mut disk = Disk::open(&path, have)?;
    let mut head = Head::new(form);
    reread(disk.file(), have, &mut hashing, &mut head)?;
    let syncing = Syncing::start(disk.file())?;
    let mut unsynced = 0;
    while let Some(block) = receiver.blocking_recv() {
        head.see(&block)?;
        hashing.update(&block);
        disk.write(&block).map_err(|error| full(error, &path))?;
        unsynced += block.len() as u64;
        if unsynced >= SYNC_EVERY {
            syncing.due();
            unsynced = 0;
        }
    }
    head.end()?;
    let hashed = hashing.finish();
    syncing.finish().map_err(|error| full(error, &path))?;
    hashed
}

/// A thread that waits for the disk, so that hashes and network do not.
struct Syncing {
    due: SyncSender<()>,
    thread: std::thread::JoinHandle<std::io::Result<()>>,
}

impl Syncing {
    fn start(file: &File) -> Result<Self> {
        let file = file.try_clone()?;
        let (due, asked) = sync_channel(1);
        let work = move || asked.iter().try_for_each(|()| file.sync_data());
        let thread = std::thread::Builder::new().name("sync".to_owned()).spawn(work)?;
        Ok(Syncing { due, thread })
    }

    /// What was written so far is to reach the disk.
    fn due(&self) {
        // If it has been asked already and not begun, that sync serves this too; why it ended is said by
        // `finish`.
        let _ = self.due.try_send(());
    }

    /// Waits for the disk.
    fn finish(self) -> std::io::Result<()> {
        drop(self.due);
        self.thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the sync thread died")))
    }
}

/// Hashes what an earlier run left.
fn reread(mut file: &File, have: u64, hashing: &mut Hashing, head: &mut Head) -> Result<()> {
    file.seek(SeekFrom::Start(0))?;
    let mut left = have;
    while left > 0 {
        let mut block = vec![0; BLOCK.min(usize::try_from(left).unwrap_or(BLOCK))];
        file.read_exact(&mut block)?;
        left -= block.len() as u64;
        head.see(&block)?;
        hashing.update(&Bytes::from(block));
    }
    Ok(())
}

fn full(error: std::io::Error, path: &Utf8PathBuf) -> Error {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Error::new(Kind::HostCannot, format!("the disk is full: {path}"))
                .with_source(error)
                .hint("`nestlab image prune` frees space")
        }
        _ => Error::from(error),
    }
}

/// The file's first bytes, until they have been judged.
struct Head {
    form: (ImageFormat, Compression),
    seen: Option<Vec<u8>>,
}

impl Head {
    fn new(form: (ImageFormat, Compression)) -> Self {
        Head { form, seen: Some(Vec::new()) }
    }

    fn see(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(seen) = &mut self.seen {
            seen.extend_from_slice(&bytes[..bytes.len().min(HEAD)]);
            if seen.len() >= HEAD {
                return self.end();
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let Some(seen) = self.seen.take() else { return Ok(()) };
        match looks_wrong(&seen, self.form.0, self.form.1) {
            Some(why) => Err(Error::new(Kind::Network, format!("this is no image: {why}"))),
            None => Ok(()),
        }
    }
}
