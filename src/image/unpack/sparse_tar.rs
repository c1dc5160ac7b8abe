//! The tar inside a `.libvirt.xz`: one sparse qcow2, libvirt XML, and licence texts; nothing else is
//! accepted, and nothing but the qcow2 is written.
//!
//! The `tar` crate reads old GNU sparse members by filling their holes with zeros; a disk of 100 GB is
//! mostly holes, so here they are skipped instead. Headers are still that crate's.

use std::collections::BTreeSet;
use std::io::Read;

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::{Holes, Limits, Out, PIECE, fill};
use crate::error::{Error, Kind, Result};
use crate::image::manifest::is_plain_file_name;

const BLOCK: usize = 512;

/// The longest XML or text that belongs beside the disk.
const LONGEST_TEXT: u64 = 1 << 20;

/// The most members; Kicksecure's has four.
const MEMBERS: usize = 16;

/// The most pieces between holes that a map may list: one per 64 KiB of a disk of 256 GiB.
const PIECES: usize = 4 << 20;

/// How much padding may follow the end of the tar: one record of tar's default size, twice.
const PADDING: usize = 20 * 1024;

/// The disk that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDisk {
    /// Its member's name.
    pub name: String,
    /// Its file's size in bytes, holes counted.
    pub size: u64,
}

/// Finds the one qcow2 in the tar and puts it at the start of `disk`.
///
/// # Errors
/// [`Kind::Untrusted`] with the reason.
pub fn disk(mut reader: impl Read, disk: &mut impl Holes, limits: Limits) -> Result<FoundDisk> {
    let mut out = Out { disk, written: 0, limits };
    let mut names = BTreeSet::new();
    let mut found = None;
    while let Some(member) = next(&mut reader)? {
        if names.len() == MEMBERS || !names.insert(member.name.clone()) {
            return Err(refused(format!("too many members, or `{}` twice", member.name)));
        }
        if member.name.ends_with(".qcow2") {
            if found.is_some() {
                return Err(refused("more than one qcow2 is in it"));
            }
            let size = member.size;
            if size > limits.bytes {
                return Err(refused(format!("its disk claims {size} bytes")));
            }
            pieces(&mut reader, &member, &mut out)?;
            found = Some(FoundDisk { name: member.name, size });
        } else if is_text(&member) {
            skip(&mut reader, member.stored)?;
        } else {
            return Err(refused(format!("`{}` does not belong in it", member.name)));
        }
    }
    ends(&mut reader)?;
    found.ok_or_else(|| refused("no qcow2 is in it"))
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::new(Kind::Untrusted, format!("tar: {why}"))
}

/// A member, up to its data.
struct TarMember {
    name: String,
    /// Its size as a file.
    size: u64,
    /// How many bytes of data follow.
    stored: u64,
    /// Where these belong: offset and length of each piece, in order.
    map: Vec<(u64, u64)>,
}

/// XML for libvirt, or a text such as `KICKSECURE_DISCLAIMER`.
fn is_text(member: &TarMember) -> bool {
    let capitals = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    member.size <= LONGEST_TEXT
        && member.map == [(0, member.size)]
        && (member.name.ends_with(".xml") || member.name.chars().all(capitals))
}

/// Reads the next member's header; `None` at the end of the tar.
fn next(reader: &mut impl Read) -> Result<Option<TarMember>> {
    let bytes = block(reader)?;
    if bytes == [0; BLOCK] {
        return Ok(None);
    }
    let header = Header::from_byte_slice(&bytes);
    if header.cksum().ok() != Some(sum(&bytes)) {
        return Err(refused("a header's checksum is wrong"));
    }
    let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
    if !is_plain_file_name(&name) {
        return Err(refused(format!("`{}` is not a plain file name", name.escape_debug())));
    }
    let number = |value: std::io::Result<u64>| value.map_err(|_| refused("a number is unreadable"));
    let stored = number(header.entry_size())?;
    let (size, map) = match header.entry_type() {
        EntryType::Regular => (stored, vec![(0, stored)]),
        EntryType::GNUSparse => {
            let gnu = header.as_gnu().ok_or_else(|| refused("a sparse member is not GNU's"))?;
            let size = number(gnu.real_size())?;
            (size, sparse_map(reader, gnu, size, stored)?)
        }
        _ => return Err(refused(format!("`{name}` is neither a plain file nor a sparse one"))),
    };
    Ok(Some(TarMember { name, size, stored, map }))
}

/// Reads the map of a sparse member: in the header, and then in blocks of its own.
fn sparse_map(
    reader: &mut impl Read,
    gnu: &tar::GnuHeader,
    size: u64,
    stored: u64,
) -> Result<Vec<(u64, u64)>> {
    let unreadable = |_| refused("a sparse map is unreadable");
    let mut map = Vec::new();
    let mut end = 0_u64;
    let mut add = |entry: &tar::GnuSparseHeader| {
        if entry.is_empty() {
            return Ok(());
        }
        let (at, length) =
            (entry.offset().map_err(unreadable)?, entry.length().map_err(unreadable)?);
        let next = at.checked_add(length).filter(|next| at >= end && *next <= size);
        end =
            next.ok_or_else(|| refused("a sparse map is not in order, or reaches past the end"))?;
        if map.len() == PIECES {
            return Err(refused("a sparse map is absurdly long"));
        }
        map.push((at, length));
        Ok(())
    };
    gnu.sparse.iter().try_for_each(&mut add)?;
    let mut more = gnu.is_extended();
    while more {
        let mut extension = GnuExtSparseHeader::new();
        extension.as_mut_bytes().copy_from_slice(&block(reader)?);
        extension.sparse().iter().try_for_each(&mut add)?;
        more = extension.is_extended();
    }
    if map.iter().map(|(_, length)| length).sum::<u64>() != stored {
        return Err(refused("a sparse map and its data differ in size"));
    }
    Ok(map)
}

/// Copies a member's pieces to where they belong.
fn pieces<H: Holes>(
    reader: &mut impl Read,
    member: &TarMember,
    out: &mut Out<'_, H>,
) -> Result<()> {
    let mut piece = vec![0; PIECE];
    for (start, length) in &member.map {
        let (mut at, mut left) = (*start, *length);
        while left > 0 {
            // Pieces end where the file system's do, so that zeros among the data become holes too.
            let aligned = PIECE - usize::try_from(at % PIECE as u64).unwrap_or(0);
            let wanted = aligned.min(usize::try_from(left).unwrap_or(aligned));
            exactly(reader, &mut piece[..wanted])?;
            out.put(at, &piece[..wanted])?;
            at += wanted as u64;
            left -= wanted as u64;
        }
    }
    padding(reader, member.stored)
}

fn skip(reader: &mut impl Read, stored: u64) -> Result<()> {
    let mut left = stored;
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let wanted = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        exactly(reader, &mut piece[..wanted])?;
        left -= wanted as u64;
    }
    padding(reader, stored)
}

/// Skips what fills a member's last block.
fn padding(reader: &mut impl Read, stored: u64) -> Result<()> {
    let over = usize::try_from(stored % BLOCK as u64).unwrap_or(0);
    if over == 0 { Ok(()) } else { exactly(reader, &mut [0; BLOCK][over..]) }
}

/// Checks that only a little zero padding follows.
fn ends(reader: &mut impl Read) -> Result<()> {
    let mut rest = vec![0; PADDING + 1];
    let count = fill(reader, &mut rest)?;
    if count <= PADDING && rest[..count].iter().all(|byte| *byte == 0) {
        Ok(())
    } else {
        Err(refused("something follows its end"))
    }
}

fn block(reader: &mut impl Read) -> Result<[u8; BLOCK]> {
    let mut bytes = [0; BLOCK];
    exactly(reader, &mut bytes)?;
    Ok(bytes)
}

fn exactly(reader: &mut impl Read, bytes: &mut [u8]) -> Result<()> {
    if fill(reader, bytes)? == bytes.len() { Ok(()) } else { Err(refused("it is cut off")) }
}

/// The sum of a header's bytes, those of the checksum itself counted as spaces (POSIX ustar).
fn sum(header: &[u8; BLOCK]) -> u32 {
    let field = 148..156;
    header
        .iter()
        .enumerate()
        .map(|(at, byte)| if field.contains(&at) { u32::from(b' ') } else { u32::from(*byte) })
        .sum()
}
