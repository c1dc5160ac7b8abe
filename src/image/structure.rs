//! What must hold of an image's inside, whoever signed it: nothing that reaches outside its file, or
//! that no nested lab could run.

use camino::Utf8Path;

use super::disk::{DiskFormat, virtual_size};
use super::format::{Compression, ImageFormat};
use super::ova;
use crate::error::Result;

/// Looks into the proven file `path`. What is compressed is looked into when it is unpacked.
///
/// # Errors
/// [`Kind::Untrusted`](crate::Kind) with the reason.
pub(super) fn check(path: &Utf8Path, format: ImageFormat, compression: Compression) -> Result<()> {
    if compression != Compression::None {
        return Ok(());
    }
    let mut file = fs_err::File::open(path)?;
    let disk = match format {
        ImageFormat::Ova => return ova::inspect(&mut file).map(|_| ()),
        ImageFormat::Qcow2 => DiskFormat::Qcow2,
        ImageFormat::Vmdk => DiskFormat::Vmdk,
        ImageFormat::Vdi => DiskFormat::Vdi,
        ImageFormat::Raw | ImageFormat::Iso | ImageFormat::LibvirtTarXz => return Ok(()),
    };
    virtual_size(&mut file, disk).map(|_| ())
}
