//! The headers of disk images, as far as they say how big the disk is and whether it reaches outside
//! its file: a disk that names a backing file would hand a file of this machine to its guest.

use std::io::{Read, Seek, SeekFrom};

use crate::error::{Error, Kind, Result};

/// A disk image's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// QEMU's copy-on-write disk.
    Qcow2,
    /// The disk's bytes as they are.
    Raw,
    /// VirtualBox's disk.
    Vdi,
    /// VMware's disk, in one file.
    Vmdk,
}

impl DiskFormat {
    /// Returns the name that qemu-img uses, which is also the end of file names.
    pub fn as_str(self) -> &'static str {
        match self {
            DiskFormat::Qcow2 => "qcow2",
            DiskFormat::Raw => "raw",
            DiskFormat::Vdi => "vdi",
            DiskFormat::Vmdk => "vmdk",
        }
    }
}

/// The biggest disk that is believed, 16 TiB.
const BIGGEST: u64 = 16 << 40;

/// The longest VMDK descriptor that is read; real ones have a few hundred bytes.
const DESCRIPTOR: u64 = 64 * 1024;

/// Returns the size in bytes of the disk whose image `reader` holds from its start.
///
/// # Errors
/// [`Kind::Untrusted`] if it is not of that format, refers to other files, or claims to be absurdly big.
pub fn virtual_size<R: Read + Seek>(reader: &mut R, format: DiskFormat) -> Result<u64> {
    let size = match format {
        DiskFormat::Raw => Ok(reader.seek(SeekFrom::End(0))?),
        DiskFormat::Qcow2 => qcow2(reader),
        DiskFormat::Vdi => vdi(reader),
        DiskFormat::Vmdk => vmdk(reader),
    }?;
    if size > BIGGEST {
        return refused(format!("the disk claims to have {size} bytes"));
    }
    Ok(size)
}

fn refused<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::new(Kind::Untrusted, why))
}

fn header<const N: usize, R: Read + Seek>(reader: &mut R, what: &str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.seek(SeekFrom::Start(0))?;
    match reader.read_exact(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => refused(format!("too short to be {what}")),
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// QEMU's docs/interop/qcow2.rst.
fn qcow2<R: Read + Seek>(reader: &mut R) -> Result<u64> {
    let header: [u8; 80] = header(reader, "qcow2")?;
    let version = be32(&header, 4);
    if &header[..4] != b"QFI\xfb" || !matches!(version, 2 | 3) {
        return refused("this is not qcow2");
    }
    if be64(&header, 8) != 0 || be32(&header, 16) != 0 {
        return refused("the qcow2 image names a backing file");
    }
    if be32(&header, 32) != 0 {
        return refused("the qcow2 image is encrypted");
    }
    const EXTERNAL_DATA: u64 = 1 << 2;
    if version == 3 && be64(&header, 72) & EXTERNAL_DATA != 0 {
        return refused("the qcow2 image keeps its data in another file");
    }
    Ok(be64(&header, 24))
}

/// VirtualBox's VDI header 1.1 (VDICore.h).
fn vdi<R: Read + Seek>(reader: &mut R) -> Result<u64> {
    let header: [u8; 0x1c8] = header(reader, "VDI")?;
    if le32(&header, 0x40) != 0xbeda_107f || le32(&header, 0x44) >> 16 != 1 {
        return refused("this is not VDI");
    }
    const DYNAMIC: u32 = 1;
    const FIXED: u32 = 2;
    if !matches!(le32(&header, 0x4c), DYNAMIC | FIXED) || header[0x1a8..0x1b8] != [0; 16] {
        return refused("the VDI image is a difference to another file");
    }
    Ok(le64(&header, 0x170))
}

/// VMware's "Virtual Disk Format 5.0": a hosted sparse extent with its descriptor inside.
fn vmdk<R: Read + Seek>(reader: &mut R) -> Result<u64> {
    const SECTOR: u64 = 512;
    let header: [u8; 512] = header(reader, "VMDK")?;
    if &header[..4] != b"KDMV" || !(1..=3).contains(&le32(&header, 4)) {
        return refused("this is not VMDK in one file");
    }
    let (at, sectors) = (le64(&header, 28), le64(&header, 36));
    let length = sectors.saturating_mul(SECTOR);
    if at == 0 || length == 0 || length > DESCRIPTOR {
        return refused("the VMDK image has no descriptor inside");
    }
    let mut descriptor = Vec::new();
    reader.seek(SeekFrom::Start(at.saturating_mul(SECTOR)))?;
    reader.take(length).read_to_end(&mut descriptor)?;
    vmdk_descriptor(&descriptor)?;
    match le64(&header, 12).checked_mul(SECTOR) {
        Some(size) => Ok(size),
        None => refused("the VMDK image claims an impossible size"),
    }
}

fn vmdk_descriptor(text: &[u8]) -> Result<()> {
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    let text = String::from_utf8_lossy(&text[..end]);
    let mut extents = 0;
    for line in text.lines().map(str::trim) {
        let value = |key: &str| {
            let (name, value) = line.split_once('=')?;
            name.trim().eq_ignore_ascii_case(key).then(|| value.trim().trim_matches('"').to_owned())
        };
        if value("parentCID").is_some_and(|cid| !cid.eq_ignore_ascii_case("ffffffff"))
            || value("parentFileNameHint").is_some()
        {
            return refused("the VMDK image is a difference to another file");
        }
        if ["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| line.starts_with(access)) {
            extents += 1;
            if line.split_whitespace().nth(2) != Some("SPARSE") {
                return refused("the VMDK image keeps its data in another file");
            }
        }
    }
    if extents == 1 { Ok(()) } else { refused(format!("the VMDK image has {extents} extents")) }
}

#[cfg(test)]
mod tests;
