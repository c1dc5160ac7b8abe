//! An OVA around a disk: an OVF description, a manifest of digests and a stream-optimized VMDK in one tar
//! archive, as DMTF's DSP0243 ("Open Virtualization Format") has it.

use std::io::{BufReader, Read, Seek as _, SeekFrom};

use camino::Utf8Path;
use fs_err::File;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::vmdk;
use crate::error::Result;

/// The description; names and sizes are put in for the words in braces.
///
/// Three processors, as Kicksecure's own OVA asks for, so that nestlab's reduction is seen to work.
pub(super) const OVF: &str = include_str!("appliance/appliance.ovf");

/// Writes the OVA of the machine `name` with `disk` to `to`; everything in it is dated `date`.
pub(super) fn write(name: &str, disk: File, date: Timestamp, to: &Utf8Path) -> Result<()> {
    let capacity = disk.metadata()?.len();
    let file_name = |ending: &str| format!("{name}{ending}");
    let disk_name = file_name("-disk1.vmdk");
    let mut vmdk = tempfile::tempfile_in(to.parent().unwrap_or(Utf8Path::new(".")))?;
    vmdk::write(BufReader::new(disk), capacity, &disk_name, std::io::BufWriter::new(&vmdk))?;
    let size = vmdk.seek(SeekFrom::End(0))?;
    let ovf = description(name, &disk_name, size, capacity);
    let manifest = format!(
        "SHA256({})= {}\nSHA256({disk_name})= {}\n",
        file_name(".ovf"),
        hex::encode(Sha256::digest(&ovf)),
        digest(&mut vmdk)?,
    );

    let mut archive = tar::Builder::new(File::create(to)?);
    // The description comes first, so that a reader of a stream knows what follows.
    append(&mut archive, &file_name(".ovf"), ovf.len() as u64, ovf.as_bytes(), date)?;
    append(&mut archive, &file_name(".mf"), manifest.len() as u64, manifest.as_bytes(), date)?;
    append(&mut archive, &disk_name, size, &vmdk, date)?;
    archive.into_inner()?.sync_all()?;
    Ok(())
}

/// Returns the OVF text. `name` is an image's name: nothing in it means anything to XML.
fn description(name: &str, disk_name: &str, size: u64, capacity: u64) -> String {
    OVF.replace("{name}", name)
        .replace("{disk}", disk_name)
        .replace("{size}", &size.to_string())
        .replace("{capacity}", &capacity.to_string())
}

/// Returns the SHA-256 of the whole file, which is then at its beginning.
fn digest(file: &mut std::fs::File) -> Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut digest = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            read => digest.update(&chunk[..read]),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(hex::encode(digest.finalize()))
}

fn append(
    archive: &mut tar::Builder<File>,
    name: &str,
    size: u64,
    contents: impl Read,
    date: Timestamp,
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(date.as_second()).unwrap_or(0));
    archive.append_data(&mut header, name, contents)?;
    Ok(())
}
