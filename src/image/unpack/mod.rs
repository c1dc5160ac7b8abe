//! From a compressed image to the disk inside it: bounded, with holes kept, and nothing but the disk
//! written anywhere.

pub mod sparse_tar;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use camino::Utf8Path;
use tokio_util::sync::CancellationToken;

use super::format::{Compression, ImageFormat};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;

/// The most bytes that come out where the manifest does not say: more than any image that is published.
const MOST: u64 = 256 << 30;

/// The most memory that decompressing xz may take; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// The size of the pieces in which zeros are looked for: what file systems allocate is no bigger.
const PIECE: usize = 64 * 1024;

/// Where unpacked bytes go. What is never put stays a hole.
pub trait Holes {
    /// Puts `bytes` at the offset `at`.
    fn put(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
}

impl Holes for File {
    fn put(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }
}

/// Limits of one unpacking.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most bytes that the disk's file may have, holes counted.
    pub bytes: u64,
    /// The most bytes that may be written, holes not counted.
    pub written: u64,
}

impl Limits {
    /// Returns the limits for an image whose manifest says `unpacked_size`, with so many bytes free.
    pub fn new(unpacked_size: Option<u64>, free: u64) -> Self {
        Limits { bytes: unpacked_size.unwrap_or(MOST), written: free }
    }
}

/// Unpacks the disk inside the image file `from` into the new file `to`. Blocks.
///
/// # Errors
/// [`Kind::Untrusted`] for what is damaged, bigger than it may be, or holds what does not belong;
/// [`Kind::Interrupted`] once `cancel` fires.
pub(super) fn unpack(
    from: &Utf8Path,
    (format, compression): (ImageFormat, Compression),
    to: &Utf8Path,
    limits: Limits,
    events: &EventSink,
    cancel: &CancellationToken,
) -> Result<()> {
    let source = fs_err::File::open(from)?;
    let total = source.metadata()?.len();
    let watched = Watched { inner: source, done: 0, total, events, cancel };
    let mut disk = File::create_new(to)?;
    let unpacked = match format {
        ImageFormat::LibvirtTarXz => {
            let reader = decompressed(watched, Compression::Xz)?;
            sparse_tar::disk(reader, &mut disk, limits).map(|found| found.size)
        }
        _ => copy(&mut decompressed(watched, compression)?, &mut disk, limits),
    };
    let size = unpacked.map_err(|error| match cancel.is_cancelled() {
        true => Error::new(Kind::Interrupted, "interrupted"),
        false => error.context(from),
    })?;
    disk.set_len(size)?;
    disk.sync_all()?;
    Ok(())
}

/// Returns `reader` with its compression taken off.
fn decompressed<'a>(
    reader: impl Read + 'a,
    compression: Compression,
) -> Result<Box<dyn Read + 'a>> {
    let broken = |error: io::Error| damaged(&error);
    Ok(match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(reader)),
        Compression::Zstd => Box::new(zstd::Decoder::new(reader).map_err(broken)?),
        Compression::Xz => {
            let concatenated = liblzma::stream::CONCATENATED;
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, concatenated)
                .map_err(|error| broken(error.into()))?;
            Box::new(liblzma::read::XzDecoder::new_stream(reader, stream))
        }
    })
}

/// Says that the compressed bytes, or what is in them, cannot be read.
fn damaged(error: &io::Error) -> Error {
    Error::new(Kind::Untrusted, "the file is damaged").with_source(error.to_string())
}

/// Copies all of `reader` to the start of `disk` and returns its size.
fn copy(reader: &mut dyn Read, disk: &mut impl Holes, limits: Limits) -> Result<u64> {
    let mut out = Out { disk, written: 0, limits };
    let mut at = 0;
    let mut piece = vec![0; PIECE];
    loop {
        let count = fill(reader, &mut piece)?;
        if count == 0 {
            return Ok(at);
        }
        out.put(at, &piece[..count])?;
        at += count as u64;
    }
}

/// Reads until `piece` is full or the end is there.
fn fill(reader: &mut dyn Read, piece: &mut [u8]) -> Result<usize> {
    let mut count = 0;
    while count < piece.len() {
        match reader.read(&mut piece[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(damaged(&error)),
        }
    }
    Ok(count)
}

/// The disk under its limits.
struct Out<'a, H> {
    disk: &'a mut H,
    written: u64,
    limits: Limits,
}

impl<H: Holes> Out<'_, H> {
    /// Puts one piece, unless it is all zeros.
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        static ZEROS: [u8; PIECE] = [0; PIECE];
        let end = at.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.limits.bytes) {
            return Err(Error::new(
                Kind::Untrusted,
                format!(
                    "more than the {} bytes that it may have come out of it",
                    self.limits.bytes
                ),
            )
            .hint("if that is right, say so in the manifest with `unpacked-size`"));
        }
        if *bytes == ZEROS[..bytes.len()] {
            return Ok(());
        }
        self.written += bytes.len() as u64;
        if self.written > self.limits.written {
            return Err(Error::new(Kind::HostCannot, "the disk is too full to unpack the image")
                .hint("`nestlab image prune` frees space"));
        }
        self.disk.put(at, bytes)?;
        Ok(())
    }
}

/// The source, telling how far it is and ending when it should.
struct Watched<'a, R> {
    inner: R,
    done: u64,
    total: u64,
    events: &'a EventSink,
    cancel: &'a CancellationToken,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("interrupted"));
        }
        let count = self.inner.read(buffer)?;
        let step = 4 << 20;
        if (self.done + count as u64) / step != self.done / step {
            self.events.bytes(self.done + count as u64, Some(self.total));
        }
        self.done += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
