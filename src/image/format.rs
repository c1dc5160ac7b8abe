//! The forms an image can have, and how a file's first bytes tell them apart.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an image file is, once its compression is taken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// A tar of one OVF and the disks that it names.
    Ova,
    /// QEMU's copy-on-write disk.
    Qcow2,
    /// VMware's disk, in one file.
    Vmdk,
    /// VirtualBox's disk.
    Vdi,
    /// The disk's bytes as they are; has no mark of its own.
    Raw,
    /// A bootable CD.
    Iso,
    /// Kicksecure's and Whonix's libvirt release: xz over a sparse GNU tar of one qcow2, its libvirt
    /// XML and licence texts.
    LibvirtTarXz,
}

impl ImageFormat {
    /// Every format, in the order in which messages list them.
    pub const ALL: [ImageFormat; 7] = [
        ImageFormat::Ova,
        ImageFormat::Qcow2,
        ImageFormat::Vmdk,
        ImageFormat::Vdi,
        ImageFormat::Raw,
        ImageFormat::Iso,
        ImageFormat::LibvirtTarXz,
    ];

    /// Returns the name that manifests use.
    pub fn as_str(self) -> &'static str {
        match self {
            ImageFormat::Ova => "ova",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vmdk => "vmdk",
            ImageFormat::Vdi => "vdi",
            ImageFormat::Raw => "raw",
            ImageFormat::Iso => "iso",
            ImageFormat::LibvirtTarXz => "libvirt-tar-xz",
        }
    }

    /// Returns the mark that a file of this format carries, and where.
    fn mark(self) -> Option<(usize, &'static [u8])> {
        match self {
            ImageFormat::Ova => Some((257, b"ustar")),
            ImageFormat::Qcow2 => Some((0, b"QFI\xfb")),
            ImageFormat::Vmdk => Some((0, b"KDMV")),
            ImageFormat::Vdi => Some((64, &[0x7f, 0x10, 0xda, 0xbe])),
            ImageFormat::Raw => None,
            ImageFormat::Iso => Some((32769, b"CD001")),
            ImageFormat::LibvirtTarXz => Compression::Xz.mark().map(|mark| (0, mark)),
        }
    }
}

impl std::str::FromStr for ImageFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        ImageFormat::ALL.into_iter().find(|format| format.as_str() == text).ok_or_else(|| {
            let known = ImageFormat::ALL.map(ImageFormat::as_str).join(", ");
            format!("`{}` is not an image's format; there are {known}", text.escape_debug())
        })
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a file is wrapped in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Nothing.
    #[default]
    None,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// gzip.
    Gzip,
}

impl Compression {
    /// Returns what the end of a file's name says.
    pub fn of_name(file: &str) -> Self {
        match file.rsplit_once('.').map(|(_, end)| end) {
            Some("xz") => Compression::Xz,
            Some("zst" | "zstd") => Compression::Zstd,
            Some("gz") => Compression::Gzip,
            _ => Compression::None,
        }
    }

    fn mark(self) -> Option<&'static [u8]> {
        match self {
            Compression::None => None,
            Compression::Xz => Some(&[0xfd, b'7', b'z', b'X', b'Z', 0]),
            Compression::Zstd => Some(&[0x28, 0xb5, 0x2f, 0xfd]),
            Compression::Gzip => Some(&[0x1f, 0x8b]),
        }
    }
}

/// How many of a file's first bytes [`looks_wrong`] wants to see.
pub const HEAD: usize = 32 * 1024 + 512;

/// Returns why a file that begins with `head` cannot be an image of this format and compression, or
/// `None` if it may be one. This finds accidents (an error page under the image's address) early; it
/// is no proof of anything.
pub fn looks_wrong(head: &[u8], format: ImageFormat, compression: Compression) -> Option<String> {
    let wanted = match compression.mark() {
        Some(mark) => Some((0, mark)),
        None => format.mark(),
    };
    let Some((at, mark)) = wanted else {
        return looks_like_a_page(head).then(|| "it is a web page".to_owned());
    };
    if head.get(at..at + mark.len()) == Some(mark) {
        return None;
    }
    Some(if looks_like_a_page(head) {
        format!("it is a web page, not {format}")
    } else {
        format!("its first bytes are not those of {format}")
    })
}

/// Returns whether `head` begins like HTML or XHTML.
fn looks_like_a_page(head: &[u8]) -> bool {
    let start = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let start: Vec<u8> = start.iter().take(64).map(u8::to_ascii_lowercase).collect();
    [&b"<!doctype html"[..], b"<html", b"<head", b"<body", b"<?xml"]
        .iter()
        .any(|tag| start.starts_with(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_page_is_told_from_every_format() {
        let page = b"\n<!DOCTYPE HTML><html><body>504 Gateway Time-out</body></html>";
        for format in ImageFormat::ALL {
            let why = looks_wrong(page, format, Compression::None).expect("a page is no image");
            assert!(why.contains("web page"), "{format}: {why}");
        }
    }

    #[test]
    fn compression_is_told_by_the_name_and_checked_by_the_mark() {
        assert_eq!(Compression::of_name("a.qcow2.xz"), Compression::Xz);
        assert_eq!(Compression::of_name("a.raw.zst"), Compression::Zstd);
        assert_eq!(Compression::of_name("a.img.gz"), Compression::Gzip);
        assert_eq!(Compression::of_name("a.qcow2"), Compression::None);
        assert_eq!(looks_wrong(&[0x1f, 0x8b, 8], ImageFormat::Raw, Compression::Gzip), None);
        assert!(looks_wrong(b"QFI\xfb", ImageFormat::Qcow2, Compression::Gzip).is_some());
        assert_eq!(looks_wrong(b"QFI\xfb\0\0\0\x03", ImageFormat::Qcow2, Compression::None), None);
    }
}
