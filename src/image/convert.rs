//! The disk of an image in the format that a hypervisor wants, made once and kept beside the image.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use tokio_util::sync::CancellationToken;

use super::disk::{DiskFormat, virtual_size};
use super::fetch::{blocking, free_space};
use super::format::{Compression, ImageFormat};
use super::ova;
use super::store::{Stat, UNFINISHED, VerifiedImage};
use super::unpack::{Limits, unpack};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::host::{Command, Host, Local, StdStream};

/// How long qemu-img may show no progress at all.
const SILENCE: Duration = Duration::from_secs(15 * 60);

/// Space that unpacking leaves free.
const RESERVE: u64 = 64 << 20;

/// Where a disk's bytes are.
enum DiskSource {
    /// A file of its own.
    File(Utf8PathBuf, DiskFormat),
    /// A VMDK inside an OVA.
    Inside(Utf8PathBuf, ova::OvaMember),
}

/// Returns the path of the image's disk in `format`. It is shared: read it, never write to it.
///
/// What is compressed is unpacked, what is in another format is converted by this machine's
/// `qemu-img`; both are kept in the store beside the image. May be dropped at any time.
///
/// # Errors
/// [`Kind::Untrusted`] for an image whose inside is not what it should be, [`Kind::HostCannot`] where
/// qemu-img is needed and missing, the disk is full, or the image is a CD and has no disk.
pub async fn disk(
    image: &VerifiedImage,
    format: DiskFormat,
    events: &EventSink,
) -> Result<Utf8PathBuf> {
    let _claim = image.claim_derived(events).await?;
    let target = derived(image, format);
    if unchanged(&target) {
        return Ok(target);
    }
    match source(image, events).await? {
        DiskSource::File(path, have) if have == format => Ok(path),
        source => {
            convert(&source, format, &target, events).await?;
            Ok(target)
        }
    }
}

fn derived(image: &VerifiedImage, format: DiskFormat) -> Utf8PathBuf {
    image.derived().join(format!("disk.{}", format.as_str()))
}

/// Returns the note of how a derived disk looked when it was made.
fn note(target: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{target}.json"))
}

/// Returns whether a derived disk is there and as it was made. Anything else is made again: it can be.
fn unchanged(target: &Utf8Path) -> bool {
    let noted = fs_err::read(note(target)).ok();
    let noted: Option<Stat> = noted.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    noted.is_some() && noted == Stat::of(target).ok()
}

async fn source(image: &VerifiedImage, events: &EventSink) -> Result<DiskSource> {
    let native = match image.format() {
        ImageFormat::Ova => {
            let path = image.path();
            return blocking(move || {
                let member = ova::inspect(&mut fs_err::File::open(&path)?)?.disk()?;
                Ok(DiskSource::Inside(path, member))
            })
            .await;
        }
        ImageFormat::Iso => {
            return Err(Error::new(
                Kind::HostCannot,
                format!("{} is a CD, it has no disk of its own", image.name()),
            ));
        }
        ImageFormat::Qcow2 | ImageFormat::LibvirtTarXz => DiskFormat::Qcow2,
        ImageFormat::Vmdk => DiskFormat::Vmdk,
        ImageFormat::Vdi => DiskFormat::Vdi,
        ImageFormat::Raw => DiskFormat::Raw,
    };
    if image.compression() == Compression::None && image.format() != ImageFormat::LibvirtTarXz {
        return Ok(DiskSource::File(image.path(), native));
    }
    let target = derived(image, native);
    if !unchanged(&target) {
        events.doing(format!("unpacking {}", image.name()));
        unpacked(image, native, &target, events).await?;
    }
    Ok(DiskSource::File(target, native))
}

/// Unpacks the image's disk to `target`, which appears whole or not at all.
async fn unpacked(
    image: &VerifiedImage,
    native: DiskFormat,
    target: &Utf8Path,
    events: &EventSink,
) -> Result<()> {
    let free = free_space(&image.derived())?.saturating_sub(RESERVE);
    let limits = Limits::new(image.unpacked_size(), free);
    let form = (image.format(), image.compression());
    let (from, target, events) = (image.path(), target.to_owned(), events.clone());
    let cancel = CancellationToken::new();
    // When this future is dropped, the thread ends at its next read.
    let _ends_with_us = cancel.clone().drop_guard();
    blocking(move || {
        let unfinished = PartialFile::beside(&target)?;
        unpack(&from, form, unfinished.path(), limits, &events, &cancel)?;
        virtual_size(&mut fs_err::File::open(unfinished.path())?, native)
            .map_err(|error| error.context(&from))?;
        unfinished.becomes(&target)
    })
    .await
}

/// Has qemu-img write `source` to `target` in `format`.
async fn convert(
    source: &DiskSource,
    format: DiskFormat,
    target: &Utf8Path,
    events: &EventSink,
) -> Result<()> {
    let unfinished = PartialFile::beside(target)?;
    let mut command = Command::new("qemu-img").args(["convert", "-p", "-O", format.as_str()]);
    command = match source {
        DiskSource::File(path, have) => command.args(["-f", have.as_str(), path.as_str()]),
        DiskSource::Inside(path, member) => command.arg(inside(path, *member)),
    };
    let command = command.arg(unfinished.path().as_str()).silence(SILENCE);
    events.doing(format!("converting to {}", format.as_str()));
    let mut complaint = Vec::new();
    let exit = Local::new()
        .run_streaming(&command, &mut |stream, bytes| match stream {
            StdStream::Out => progress(bytes, events),
            StdStream::Err => complaint.extend_from_slice(bytes),
        })
        .await?;
    if !exit.success() {
        return Err(Error::failed(format!("qemu-img ended with {exit}"))
            .with_command(command.argv().iter().cloned())
            .tail(&complaint));
    }
    // An exit code is no disk: its header must be there.
    virtual_size(&mut fs_err::File::open(unfinished.path())?, format)
        .map_err(|error| error.context("what qemu-img wrote").with_kind(Kind::Failed))?;
    unfinished.becomes(target)
}

/// Returns QEMU's own description of a disk that is a part of a file (its JSON block options).
fn inside(path: &Utf8Path, member: ova::OvaMember) -> String {
    let options = serde_json::json!({
        "driver": "vmdk",
        "file": {
            "driver": "raw",
            "offset": member.offset,
            "size": member.size,
            "file": { "driver": "file", "filename": path },
        },
    });
    format!("json:{options}")
}

/// Passes on what qemu-img shows as `    (12.34/100%)`.
fn progress(bytes: &[u8], events: &EventSink) {
    let text = String::from_utf8_lossy(bytes);
    let last = text.rsplit('(').next().and_then(|rest| rest.split_once('/'));
    if let Some(percent) = last.and_then(|(number, _)| number.parse::<f64>().ok()) {
        // Within 0 to 100, so nothing is lost that a person would see.
        events.item(percent.clamp(0.0, 100.0) as u64, 100, "percent converted");
    }
}

/// A file that is being written, removed unless it becomes what it is for.
struct PartialFile {
    path: Utf8PathBuf,
    _folder: tempfile::TempDir,
}

impl PartialFile {
    fn beside(target: &Utf8Path) -> Result<Self> {
        let beside = target.parent().expect("a derived disk lies in a folder");
        let folder = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(beside)?;
        let path = Utf8Path::from_path(folder.path())
            .ok_or_else(|| Error::internal("a path below a UTF-8 one is not UTF-8"))?
            .join("disk");
        Ok(PartialFile { path, _folder: folder })
    }

    fn path(&self) -> &Utf8Path {
        &self.path
    }

    fn becomes(self, target: &Utf8Path) -> Result<()> {
        fs_err::File::open(&self.path)?.sync_all()?;
        fs_err::rename(&self.path, target)?;
        let noted = serde_json::to_vec(&Stat::of(target)?)
            .map_err(|error| Error::internal("a note cannot be written").with_source(error))?;
        Ok(fs_err::write(note(target), noted)?)
    }
}

#[cfg(test)]
mod tests;
