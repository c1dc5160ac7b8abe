//! The layout of a Debian disk: a partition table, one partition for each kind of firmware to start from, and
//! the root partition, which is the last so that it can grow.

use std::collections::BTreeMap;
use std::io::{Seek as _, SeekFrom, Write as _};

use camino::Utf8Path;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::partition_types::{BIOS, EFI, LINUX_ROOT_X64, Type};
use uuid::Uuid;

use super::fat::Volume;
use super::grub::Pc;
use crate::error::{Error, Result};

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// Where the partition for GRUB's core image begins, and its size, in bytes.
const BIOS_BOOT: (u64, u64) = (MIB, MIB);

/// The same of UEFI's partition. 33 MiB make a FAT16 that every firmware reads.
const ESP: (u64, u64) = (BIOS_BOOT.0 + BIOS_BOOT.1, 33 * MIB);

/// Where the root partition begins, in bytes.
pub(super) const ROOT_OFFSET: u64 = ESP.0 + ESP.1;

/// Makes the disk image at `path`, with a root partition of `root_size` bytes (whole MiB), still empty. A PC
/// BIOS starts `pc`; the files `efi` are in UEFI's partition. `id` makes the identifiers of the disk and its
/// parts.
pub(super) fn make(
    path: &Utf8Path,
    root_size: u64,
    pc: &Pc,
    efi: &[(&str, &[u8])],
    id: impl Fn(&str) -> Uuid,
) -> Result<()> {
    // A MiB at the end holds the second partition table.
    let size = ROOT_OFFSET + root_size + MIB;
    let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(path)?;
    file.set_len(size)?;

    let unwritable = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal("the partition table cannot be written").with_source(error)
    };
    let last = u32::try_from(size / SECTOR - 1).unwrap_or(u32::MAX);
    let (code, core) = pc.placed_at(BIOS_BOOT.0 / SECTOR)?;
    let mut first = ProtectiveMBR::with_lb_size(last);
    first.set_bootcode(code);
    first.overwrite_lba0(&mut file).map_err(|error| unwritable(error.into()))?;
    let mut table = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(&mut file, Some(id("disk")))
        .map_err(|error| unwritable(error.into()))?;
    let partitions = BTreeMap::from([
        (1, partition("BIOS", BIOS, id("bios boot"), BIOS_BOOT.0, BIOS_BOOT.1)),
        (2, partition("EFI", EFI, id("esp"), ESP.0, ESP.1)),
        (3, partition("root", LINUX_ROOT_X64, id("root partition"), ROOT_OFFSET, root_size)),
    ]);
    table.update_partitions(partitions).map_err(|error| unwritable(error.into()))?;
    table.write().map_err(|error| unwritable(error.into()))?;

    let [a, b, c, d, ..] = *id("esp volume").as_bytes();
    let serial = u32::from_be_bytes([a, b, c, d]);
    let size = usize::try_from(ESP.1).expect("33 MiB fit into memory");
    let volume = Volume { label: "EFI", serial, size }.with_files(efi)?;
    if core.len() as u64 > BIOS_BOOT.1 {
        return Err(Error::internal(format!("GRUB's core image has {} bytes", core.len())));
    }
    file.seek(SeekFrom::Start(BIOS_BOOT.0))?;
    file.write_all(&core)?;
    file.seek(SeekFrom::Start(ESP.0))?;
    file.write_all(&volume)?;
    file.sync_all()?;
    Ok(())
}

fn partition(name: &str, kind: Type, id: Uuid, offset: u64, size: u64) -> Partition {
    Partition {
        part_type_guid: kind,
        part_guid: id,
        first_lba: offset / SECTOR,
        last_lba: (offset + size) / SECTOR - 1,
        flags: 0,
        name: name.to_owned(),
    }
}
