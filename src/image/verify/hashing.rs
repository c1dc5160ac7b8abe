//! Every hash that the proofs need, over bytes that pass once; each hash on a thread of its own.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use sequoia_openpgp::crypto::hash::Context;
use sequoia_openpgp::types::HashAlgorithm;

use super::openpgp::Lane;
use crate::error::{Error, Result};
use crate::image::digest::{Sha256, Sha512};

/// How many blocks may wait for a hash: enough that a slow one does not stop the rest at once, few
/// enough that memory stays small.
const WAITING: usize = 8;

/// Hashes under way.
pub struct Hashing {
    lanes: Vec<(Lane, SyncSender<Bytes>, JoinHandle<Context>)>,
    size: u64,
}

/// Hashes that are done: contexts that plain digests and signatures are both finished from.
pub struct Hashed {
    lanes: Vec<(Lane, Context)>,
    size: u64,
}

impl Hashing {
    /// Starts SHA-256, SHA-512 and what `extra` asks for; equal lanes run once.
    pub fn start(extra: impl IntoIterator<Item = Lane>) -> Result<Self> {
        let plain = [HashAlgorithm::SHA256, HashAlgorithm::SHA512].map(Lane::plain);
        let mut wanted: Vec<Lane> = Vec::new();
        for lane in plain.into_iter().chain(extra) {
            if !wanted.contains(&lane) {
                wanted.push(lane);
            }
        }
        let lanes = wanted.into_iter().map(started).collect::<Result<_>>()?;
        Ok(Hashing { lanes, size: 0 })
    }

    /// Hashes the next bytes. Blocks while the slowest hash is behind.
    pub fn update(&mut self, bytes: &Bytes) {
        self.size += bytes.len() as u64;
        for (_, sender, _) in &self.lanes {
            // A hash thread ends before its sender only by a panic, which `finish` reports.
            let _ = sender.send(bytes.clone());
        }
    }

    /// Waits for the hashes.
    ///
    /// # Errors
    /// [`Kind::Internal`](crate::Kind) if a hash thread died.
    pub fn finish(self) -> Result<Hashed> {
        let size = self.size;
        let joined = self.lanes.into_iter().map(|(lane, sender, thread)| {
            drop(sender);
            let context = thread.join().map_err(|_| Error::internal("a hash thread died"))?;
            Ok((lane, context))
        });
        Ok(Hashed { lanes: joined.collect::<Result<_>>()?, size })
    }
}

fn started(lane: Lane) -> Result<(Lane, SyncSender<Bytes>, JoinHandle<Context>)> {
    let mut context = lane.context()?;
    let (sender, receiver): (_, Receiver<Bytes>) = sync_channel(WAITING);
    let thread =
        std::thread::Builder::new().name(format!("hash-{}", lane.algorithm)).spawn(move || {
            for bytes in receiver {
                context.update(&bytes);
            }
            context
        })?;
    Ok((lane, sender, thread))
}

impl Hashed {
    /// Returns how many bytes there were.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns their SHA-256.
    pub fn sha256(&self) -> Result<Sha256> {
        self.digest(HashAlgorithm::SHA256).map(Sha256::from_bytes)
    }

    /// Returns their SHA-512.
    pub fn sha512(&self) -> Result<Sha512> {
        self.digest(HashAlgorithm::SHA512).map(Sha512::from_bytes)
    }

    /// Returns the context that went along in `lane`.
    pub fn context(&self, lane: &Lane) -> Result<Context> {
        self.lanes
            .iter()
            .find(|(known, _)| known == lane)
            .map(|(_, context)| context.clone())
            .ok_or_else(|| Error::internal("a hash that a signature needs was not computed"))
    }

    fn digest<const N: usize>(&self, algorithm: HashAlgorithm) -> Result<[u8; N]> {
        self.context(&Lane::plain(algorithm))?
            .into_digest()
            .ok()
            .and_then(|digest| digest.try_into().ok())
            .ok_or_else(|| Error::internal("a digest has another length than its algorithm's"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::Digest as _;

    #[test]
    fn the_digests_are_those_of_another_implementation() {
        let mut hashing = Hashing::start([]).expect("starts");
        let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for chunk in data.chunks(7_777) {
            hashing.update(&Bytes::copy_from_slice(chunk));
        }
        let hashed = hashing.finish().expect("finishes");
        assert_eq!(hashed.size(), data.len() as u64);
        assert_eq!(hashed.sha256().expect("256").as_bytes()[..], sha2::Sha256::digest(&data)[..]);
        assert_eq!(hashed.sha512().expect("512").as_bytes()[..], sha2::Sha512::digest(&data)[..]);
    }
}
