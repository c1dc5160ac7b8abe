//! GRUB for both kinds of firmware: the program that UEFI starts, and for a PC BIOS the boot sector with the
//! core image that it loads.
//!
//! It is taken from its packages without being installed, so that no kernel upgrade waits for it. What
//! `grub-install` writes into boot sector and core image is written here: their places on the disk.

use jiff::Timestamp;

use super::bootstrap::Packages;
use super::context::BuildContext;
use crate::error::{Error, Result};

/// Where it comes from.
pub(super) const PACKAGES: [&str; 2] = ["grub-efi-amd64-bin", "grub-pc-bin"];

/// The program for UEFI, with all its modules.
const PROGRAM: &str = "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi";
/// The boot sector.
const BOOT: &str = "usr/lib/grub/i386-pc/boot.img";
/// What [`MAKE_CORE`] makes.
const CORE: &str = "core.img";

/// Makes the core image in the tree `$1`; `$config` is its first configuration.
const MAKE_CORE: &str = include_str!("debian/core.sh");

/// Bytes of a sector, for a BIOS.
const SECTOR: usize = 512;

// Places in the boot sector and in the core image's first sector, from GRUB's include/grub/i386/pc/boot.h.
/// The sector (64 bits) that the boot sector loads: the core image's first one.
const KERNEL_SECTOR: usize = 0x5c;
/// A jump over the code that turns a drive number of a buggy BIOS into that of the first hard disk.
const DRIVE_CHECK: usize = 0x66;
/// Where the boot sector's code ends, and what belongs to the disk begins.
const CODE_END: usize = 0x1b8;
/// The only entry of the list of what follows the first sector: its start (64 bits), how many sectors (16
/// bits), the segment to load them to (16 bits).
const BLOCK_LIST: usize = SECTOR - 12;

/// Returns the texts that decide the bytes.
pub(super) fn texts() -> impl Iterator<Item = &'static str> {
    PACKAGES.into_iter().chain([PROGRAM, BOOT, MAKE_CORE])
}

/// The boot loader.
pub(super) struct Grub {
    /// The program for UEFI.
    pub(super) program: Vec<u8>,
    /// The loader for a PC BIOS.
    pub(super) pc: Pc,
}

impl Grub {
    /// Takes it out of `packages`. `config` is what the core image does first; it must hold no single
    /// quote.
    pub(super) async fn unpack(
        packages: &Packages<'_>,
        shop: &BuildContext<'_>,
        date: Timestamp,
        config: &str,
    ) -> Result<Self> {
        let hook = format!("--extract-hook=config='{config}'\n{MAKE_CORE}");
        let packages = Packages { options: &[&hook], ..*packages };
        let (tree, _) = packages.bootstrap(shop, date, "loader.tar").await?;
        let pc = Pc { boot: tree.read(BOOT)?, core: tree.read(CORE)? };
        Ok(Grub { program: tree.read(PROGRAM)?, pc })
    }
}

/// GRUB for a PC BIOS, as its packages bring it.
pub(super) struct Pc {
    boot: Vec<u8>,
    core: Vec<u8>,
}

impl Pc {
    /// Returns the code of the boot sector and the core image, for a core image that begins at `sector` of
    /// the disk.
    ///
    /// # Errors
    /// If they are not what this knows to place.
    pub(super) fn placed_at(&self, sector: u64) -> Result<([u8; CODE_END], Vec<u8>)> {
        let unknown =
            || Error::internal("grub-pc-bin has a boot sector or core image of a new kind");
        let mut boot: [u8; CODE_END] = self
            .boot
            .first_chunk()
            .copied()
            .filter(|_| self.boot.len() == SECTOR)
            .ok_or_else(unknown)?;
        put(&mut boot, KERNEL_SECTOR, &1u64.to_le_bytes(), &sector.to_le_bytes())
            .ok_or_else(unknown)?;
        // A jump of five bytes gives way to two instructions that do nothing.
        put(&mut boot, DRIVE_CHECK, &[0xeb, 0x05], &[0x90, 0x90]).ok_or_else(unknown)?;
        let mut core = self.core.clone();
        put(&mut core, BLOCK_LIST, &2u64.to_le_bytes(), &(sector + 1).to_le_bytes())
            .ok_or_else(unknown)?;
        Ok((boot, core))
    }
}

/// Replaces `old` by `new` at `place` of `bytes`; `None` if something else is there.
fn put(bytes: &mut [u8], place: usize, old: &[u8], new: &[u8]) -> Option<()> {
    let at = bytes.get_mut(place..place + new.len())?;
    (at == old).then(|| at.copy_from_slice(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As GRUB 2.12 has it where it is to be changed.
    fn pc() -> Pc {
        let (mut boot, mut core) = (vec![0; SECTOR], vec![0; 3 * SECTOR]);
        boot[KERNEL_SECTOR] = 1;
        boot[DRIVE_CHECK..][..2].copy_from_slice(&[0xeb, 0x05]);
        core[BLOCK_LIST..SECTOR].copy_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0x20, 0x08]);
        Pc { boot, core }
    }

    #[test]
    fn boot_sector_and_core_image_know_where_on_the_disk_they_are() {
        let (boot, core) = pc().placed_at(0x0102_0304).unwrap();
        assert_eq!(boot[0x5c..0x64], [4, 3, 2, 1, 0, 0, 0, 0]);
        assert_eq!(boot[0x66..0x68], [0x90, 0x90]);
        assert_eq!(core[500..512], [5, 3, 2, 1, 0, 0, 0, 0, 2, 0, 0x20, 0x08]);
        assert_eq!(core.len(), 3 * SECTOR);
    }

    #[test]
    fn a_boot_sector_of_another_kind_is_refused() {
        for spoil in [
            |pc: &mut Pc| pc.boot[KERNEL_SECTOR] = 2,
            |pc: &mut Pc| pc.boot[DRIVE_CHECK] = 0x90,
            |pc: &mut Pc| pc.boot.truncate(CODE_END),
            |pc: &mut Pc| pc.core.truncate(BLOCK_LIST),
        ] {
            let mut pc = pc();
            spoil(&mut pc);
            assert!(pc.placed_at(2048).is_err());
        }
    }
}
