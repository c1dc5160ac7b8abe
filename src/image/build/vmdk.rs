//! A stream-optimized VMDK, the disk format of an OVA, written from a raw disk. Reproducible, unlike
//! `qemu-img`, which gives every disk a random content id.
//!
//! Format: VMware's "Virtual Disk Format 5.0", sections "Hosted Sparse Extents" and
//! "Stream-Optimized Compressed Sparse Extents".

use std::io::{Read, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// Bytes of a sector, the unit of every address in the format.
const SECTOR: u64 = 512;
/// Bytes that are compressed as one.
const GRAIN: usize = 64 << 10;
/// Entries of a grain table.
const TABLE: usize = 512;
/// Sectors before the first grain: header, descriptor and room.
const OVERHEAD: u64 = 128;
/// Sectors of room for the descriptor.
const DESCRIPTOR_SECTORS: u64 = 20;
/// A header's address of the grain directory: it is in the footer.
const IN_FOOTER: u64 = u64::MAX;

/// What a metadata marker announces.
#[derive(Clone, Copy)]
enum Marker {
    EndOfStream = 0,
    GrainTable = 1,
    GrainDirectory = 2,
    Footer = 3,
}

/// Writes `size` bytes of `disk`, a multiple of 512, to `out` as a stream-optimized VMDK named `name`.
///
/// # Errors
/// Those of reading and writing; `disk` must have `size` bytes.
pub(super) fn write(
    disk: impl Read,
    size: u64,
    name: &str,
    out: impl Write,
) -> std::io::Result<()> {
    let capacity = size.div_ceil(SECTOR);
    let mut out = Sectors { out, at: 0 };
    out.padded(&header(capacity, IN_FOOTER))?;
    out.padded(descriptor(capacity, name).as_bytes())?;
    out.skip_to(OVERHEAD)?;

    let directory = grains(disk, size, &mut out)?;
    let entries: Vec<u8> = directory.iter().flat_map(|table| table.to_le_bytes()).collect();
    out.marker(sectors(entries.len()), Marker::GrainDirectory)?;
    let directory_at = out.at;
    out.padded(&entries)?;
    out.marker(1, Marker::Footer)?;
    out.padded(&header(capacity, directory_at))?;
    out.marker(0, Marker::EndOfStream)?;
    out.out.flush()
}

/// Writes the grains that are not all zeros, and after each [`TABLE`] of them their table. Returns the
/// tables' addresses.
fn grains(
    mut disk: impl Read,
    size: u64,
    out: &mut Sectors<impl Write>,
) -> std::io::Result<Vec<u32>> {
    let mut directory = Vec::new();
    let mut table = Vec::with_capacity(TABLE);
    let mut grain = vec![0; GRAIN];
    let mut at = 0;
    while at < size {
        let length = usize::try_from(size - at).map_or(GRAIN, |rest| rest.min(GRAIN));
        disk.read_exact(&mut grain[..length])?;
        // The last grain is as long as every other.
        grain[length..].fill(0);
        table.push(if grain.iter().all(|byte| *byte == 0) {
            0
        } else {
            out.grain(at / SECTOR, &grain)?
        });
        at += length as u64;
        if table.len() == TABLE || at == size {
            directory.push(out.table(&mut table)?);
        }
    }
    Ok(directory)
}

/// What is written in whole sectors, and at which sector it is.
struct Sectors<W> {
    out: W,
    at: u64,
}

impl<W: Write> Sectors<W> {
    fn padded(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.out.write_all(bytes)?;
        self.at += sectors(bytes.len());
        let rest = bytes.len().next_multiple_of(SECTOR as usize) - bytes.len();
        self.out.write_all(&[0; SECTOR as usize][..rest])
    }

    fn skip_to(&mut self, sector: u64) -> std::io::Result<()> {
        while self.at < sector {
            self.padded(&[0; SECTOR as usize])?;
        }
        Ok(())
    }

    fn marker(&mut self, sectors: u64, marker: Marker) -> std::io::Result<()> {
        let mut bytes = sectors.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(marker as u32).to_le_bytes());
        self.padded(&bytes)
    }

    /// Writes a grain that lies at `sector` of the disk; returns its address.
    fn grain(&mut self, sector: u64, grain: &[u8]) -> std::io::Result<u32> {
        let mut encoder = ZlibEncoder::new(vec![0; 12], Compression::best());
        encoder.write_all(grain)?;
        let mut bytes = encoder.finish()?;
        let size = u32::try_from(bytes.len() - 12).expect("a compressed grain is small");
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&size.to_le_bytes());
        let address = self.address()?;
        self.padded(&bytes)?;
        Ok(address)
    }

    /// Writes the grain table, and empties it; returns its address, or zero if it has no grain.
    fn table(&mut self, table: &mut Vec<u32>) -> std::io::Result<u32> {
        table.resize(TABLE, 0);
        let entries: Vec<u8> = table.drain(..).flat_map(u32::to_le_bytes).collect();
        if entries.iter().all(|byte| *byte == 0) {
            return Ok(0);
        }
        self.marker(sectors(entries.len()), Marker::GrainTable)?;
        let address = self.address()?;
        self.padded(&entries)?;
        Ok(address)
    }

    fn address(&self) -> std::io::Result<u32> {
        u32::try_from(self.at).map_err(|_| std::io::Error::other("a VMDK cannot be over 2 TiB"))
    }
}

fn sectors(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(SECTOR)
}

/// Returns the sparse extent header, which is also the footer.
fn header(capacity: u64, directory_at: u64) -> Vec<u8> {
    // Line ends can be checked, grains are compressed, markers are present.
    const FLAGS: u32 = 1 | 1 << 16 | 1 << 17;
    let mut bytes = b"KDMV".to_vec();
    bytes.extend_from_slice(&3u32.to_le_bytes());
    bytes.extend_from_slice(&FLAGS.to_le_bytes());
    for field in [capacity, GRAIN as u64 / SECTOR, 1, DESCRIPTOR_SECTORS] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&(TABLE as u32).to_le_bytes());
    for field in [0, directory_at, OVERHEAD] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    bytes.extend_from_slice(&[0, b'\n', b' ', b'\r', b'\n']);
    // Compression is deflate.
    bytes.extend_from_slice(&1u16.to_le_bytes());
    bytes
}

fn descriptor(capacity: u64, name: &str) -> String {
    const HEADS: u64 = 255;
    const TRACK: u64 = 63;
    let cylinders = capacity.div_ceil(HEADS * TRACK);
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=4e45534c\nparentCID=ffffffff\n\
         createType=\"streamOptimized\"\n\n# Extent description\n\
         RW {capacity} SPARSE \"{name}\"\n\n# The Disk Data Base\n#DDB\n\n\
         ddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"{HEADS}\"\nddb.geometry.sectors = \"{TRACK}\"\n\
         ddb.adapterType = \"ide\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    fn vmdk(disk: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write(disk, disk.len() as u64, "disk.vmdk", &mut out).unwrap();
        out
    }

    fn qemu_img(args: &[&str]) {
        let output = Command::new("qemu-img").args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Has qemu-img check the disk and turn it back into a raw one.
    fn read_by_qemu_img(vmdk: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (from, to) = (path("disk.vmdk"), path("disk.raw"));
        fs_err::write(&from, vmdk).unwrap();
        qemu_img(&["check", "-f", "vmdk", &from]);
        qemu_img(&["convert", "-f", "vmdk", "-O", "raw", &from, &to]);
        fs_err::read(&to).unwrap()
    }

    #[test]
    fn qemu_img_reads_back_a_disk_of_several_grain_tables() {
        // Data, a hole over more than one grain table, data again, and an end inside a grain.
        let mut disk = vec![0; 80 << 20];
        disk.extend_from_slice(&[7; 512]);
        disk[..5].copy_from_slice(b"start");
        disk[70 << 20] = 1;
        assert!(read_by_qemu_img(&vmdk(&disk)) == disk);
        assert_eq!(vmdk(&disk), vmdk(&disk));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn qemu_img_reads_back_any_disk(
            sectors in 1usize..600,
            marks in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        ) {
            let mut disk = vec![0; sectors * 512];
            for (at, byte) in marks {
                let at = at.index(disk.len());
                disk[at] = byte;
            }
            prop_assert!(read_by_qemu_img(&vmdk(&disk)) == disk);
        }
    }

    #[test]
    fn a_disk_shorter_than_it_should_be_is_an_error() {
        let error = write(&[0; 512][..], 1024, "disk.vmdk", Vec::new()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}
