//! An OVA: a tar of one OVF, the files that it names, and perhaps a manifest of their digests.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};

use sequoia_openpgp::types::HashAlgorithm;

use super::disk::{DiskFormat, virtual_size};
use super::manifest::is_plain_file_name;
use super::ovf::{self, Descriptor};
use crate::error::{Error, Kind, Result};

/// The most members that are read; real ones have three to five.
const MEMBERS: usize = 64;

/// The longest digest list that is read.
const LONGEST_LIST: u64 = 1 << 20;

/// Where a member's bytes are in the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OvaMember {
    /// Where they start.
    pub offset: u64,
    /// How many there are.
    pub size: u64,
}

/// An OVA that is fit to be given to a hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ova {
    /// What its OVF says.
    pub descriptor: Descriptor,
    /// Its members by name.
    pub members: BTreeMap<String, OvaMember>,
}

impl Ova {
    /// Returns the one disk that has content, and where it is.
    ///
    /// # Errors
    /// [`Kind::HostCannot`] if there is none or more than one.
    pub fn disk(&self) -> Result<OvaMember> {
        let mut files = self.descriptor.disks.iter().filter_map(|disk| disk.file.as_ref());
        match (files.next(), files.next()) {
            (Some(file), None) => Ok(self.members[file]),
            _ => Err(Error::new(
                Kind::HostCannot,
                "only an OVA with exactly one disk can be turned into a disk",
            )),
        }
    }
}

/// Reads an OVA and checks that it holds together: members that are plain files with plain names, each
/// named by the OVF; one 64-bit machine; disks that do not reach outside and are no bigger than
/// they claim; digests, where a manifest lists them.
///
/// # Errors
/// [`Kind::Untrusted`] with the reason.
pub fn inspect<R: Read + Seek>(reader: &mut R) -> Result<Ova> {
    let members = members(reader)?;
    let descriptor_name = only_with_end(&members, ".ovf")?
        .ok_or_else(|| refused("there is no OVF descriptor in it"))?;
    let xml = read(reader, members[&descriptor_name], ovf::LONGEST)?;
    let descriptor = ovf::parse(&xml)?;
    let list = only_with_end(&members, ".mf")?;
    let certificate = only_with_end(&members, ".cert")?;
    for file in &descriptor.files {
        let member = members.get(&file.href).ok_or_else(|| {
            refused(format!("its OVF names `{}`, which is not in it", shown(&file.href)))
        })?;
        if file.size.is_some_and(|size| size != member.size) {
            return Err(refused(format!(
                "`{}` has another size than its OVF says",
                shown(&file.href)
            )));
        }
    }
    let known = |name: &String| {
        *name == descriptor_name
            || list.as_ref() == Some(name)
            || certificate.as_ref() == Some(name)
            || descriptor.files.iter().any(|file| file.href == *name)
    };
    if let Some(extra) = members.keys().find(|name| !known(name)) {
        return Err(refused(format!("`{}` does not belong in it", shown(extra))));
    }
    disks(reader, &descriptor, &members)?;
    if let Some(list) = &list {
        let skipped = [Some(list), certificate.as_ref()];
        digests(reader, &members, list, &skipped)?;
    }
    Ok(Ova { descriptor, members })
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::new(Kind::Untrusted, format!("OVA: {why}"))
}

fn shown(name: &str) -> String {
    crate::event::printable(name).replace('\n', "\\n")
}

fn members<R: Read + Seek>(reader: &mut R) -> Result<BTreeMap<String, OvaMember>> {
    let damaged = |error: std::io::Error| refused("the tar is damaged").with_source(error);
    let length = reader.seek(SeekFrom::End(0))?;
    reader.seek(SeekFrom::Start(0))?;
    let mut members = BTreeMap::new();
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !entry.header().entry_type().is_file() {
            return Err(refused(format!("`{}` is not a plain file", shown(&name))));
        }
        if !is_plain_file_name(&name) {
            return Err(refused(format!("`{}` is not a plain file name", shown(&name))));
        }
        let member = OvaMember { offset: entry.raw_file_position(), size: entry.size() };
        if member.offset.checked_add(member.size).is_none_or(|end| end > length) {
            return Err(refused(format!("`{name}` is cut off")));
        }
        if members.len() == MEMBERS {
            return Err(refused(format!("it has more than {MEMBERS} members")));
        }
        if members.insert(name.clone(), member).is_some() {
            return Err(refused(format!("`{name}` is in it twice")));
        }
    }
    Ok(members)
}

fn only_with_end(members: &BTreeMap<String, OvaMember>, end: &str) -> Result<Option<String>> {
    let mut names = members.keys().filter(|name| name.ends_with(end));
    match (names.next(), names.next()) {
        (name, None) => Ok(name.cloned()),
        (_, Some(_)) => Err(refused(format!("more than one {end} file is in it"))),
    }
}

fn read<R: Read + Seek>(reader: &mut R, member: OvaMember, longest: u64) -> Result<Vec<u8>> {
    if member.size > longest {
        return Err(refused(format!("a text in it has {} bytes", member.size)));
    }
    reader.seek(SeekFrom::Start(member.offset))?;
    let mut bytes = Vec::new();
    reader.take(member.size).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn disks<R: Read + Seek>(
    reader: &mut R,
    descriptor: &Descriptor,
    members: &BTreeMap<String, OvaMember>,
) -> Result<()> {
    for disk in &descriptor.disks {
        let Some(file) = &disk.file else { continue };
        let mut window = Window::new(reader, members[file]);
        let size = virtual_size(&mut window, DiskFormat::Vmdk)
            .map_err(|error| error.context(shown(file)))?;
        if size > disk.capacity {
            return Err(refused(format!(
                "the disk in `{}` has {size} bytes, more than the {} it is said to have",
                shown(file),
                disk.capacity
            )));
        }
    }
    Ok(())
}

/// Compares every member with the list of digests; a member that it leaves out is refused.
fn digests<R: Read + Seek>(
    reader: &mut R,
    members: &BTreeMap<String, OvaMember>,
    list: &String,
    skipped: &[Option<&String>],
) -> Result<()> {
    let text = read(reader, members[list], LONGEST_LIST)?;
    let text = std::str::from_utf8(&text).map_err(|_| refused("its digest list is not text"))?;
    let mut listed = BTreeMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let (algorithm, name, digest) =
            digest_line(line).ok_or_else(|| refused("its digest list cannot be read"))?;
        if !members.contains_key(name) {
            return Err(refused(format!(
                "its digest list names `{}`, which is not in it",
                shown(name)
            )));
        }
        if listed.insert(name, (algorithm, digest)).is_some() {
            return Err(refused(format!("its digest list names `{name}` twice")));
        }
    }
    for (name, member) in members.iter().filter(|(name, _)| !skipped.contains(&Some(name))) {
        let (algorithm, want) = listed
            .get(name.as_str())
            .ok_or_else(|| refused(format!("its digest list leaves out `{name}`")))?;
        let have = digest(reader, *member, *algorithm)?;
        if have != *want {
            return Err(refused(format!("`{name}` differs from its digest list")));
        }
    }
    Ok(())
}

/// `SHA256(name)= hex`, with or without spaces (OVF 1.1, section 5.1).
fn digest_line(line: &str) -> Option<(HashAlgorithm, &str, Vec<u8>)> {
    let (algorithm, rest) = line.split_once('(')?;
    let (name, digest) = rest.rsplit_once(')')?;
    let digest = hex::decode(digest.trim_start().strip_prefix('=')?.trim()).ok()?;
    let algorithm = match algorithm.trim() {
        // No proof of anything any more, but still what VirtualBox writes by default.
        "SHA1" => HashAlgorithm::SHA1,
        "SHA256" => HashAlgorithm::SHA256,
        "SHA512" => HashAlgorithm::SHA512,
        _ => return None,
    };
    Some((algorithm, name, digest))
}

fn digest<R: Read + Seek>(
    reader: &mut R,
    member: OvaMember,
    algorithm: HashAlgorithm,
) -> Result<Vec<u8>> {
    let unknown = |error| refused("a digest cannot be computed").with_source(error);
    let mut context = algorithm.context().map_err(|e| unknown(e.to_string()))?.for_digest();
    reader.seek(SeekFrom::Start(member.offset))?;
    let mut limited = reader.take(member.size);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match limited.read(&mut buffer)? {
            0 => break,
            count => context.update(&buffer[..count]),
        }
    }
    context.into_digest().map_err(|e| unknown(e.to_string()))
}

/// One member as if it were a file of its own.
struct Window<'a, R> {
    inner: &'a mut R,
    member: OvaMember,
    at: u64,
}

impl<'a, R> Window<'a, R> {
    fn new(inner: &'a mut R, member: OvaMember) -> Self {
        Window { inner, member, at: 0 }
    }
}

impl<R: Read + Seek> Read for Window<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.member.size.saturating_sub(self.at);
        if left == 0 {
            // As in a file, one may seek beyond the end, however far, and finds nothing there.
            return Ok(0);
        }
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        self.inner.seek(SeekFrom::Start(self.member.offset + self.at))?;
        let count = self.inner.read(&mut buffer[..wanted])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl<R: Seek> Seek for Window<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.member.size.checked_add_signed(by),
        };
        self.at = target.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests;
