//! The OVF descriptor inside an OVA: XML that says what the machine is and which files its disks are.

use roxmltree::{Document, Node};

use crate::error::{Error, Kind, Result};

/// The longest descriptor that is read; Kicksecure's, with a licence inside, has under 200 KiB.
pub const LONGEST: u64 = 4 << 20;

/// CIM's numbers of 64-bit x86 operating systems (CIM_OperatingSystem.OSType, schema 2.22).
const CIM_64: &[u32] = &[77, 78, 80, 81, 83, 85, 90, 92, 94, 96, 98, 100, 101, 102, 107, 109];

/// What an OVF descriptor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The machine's name.
    pub name: String,
    /// Its operating system, as VirtualBox, VMware or CIM calls it.
    pub os: String,
    /// The files that belong to it.
    pub files: Vec<FileReference>,
    /// Its disks, in order.
    pub disks: Vec<DiskReference>,
}

/// A file that belongs to the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReference {
    /// Its id, which disks refer to.
    pub id: String,
    /// Its name beside the descriptor.
    pub href: String,
    /// Its size in bytes, if that is said.
    pub size: Option<u64>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskReference {
    /// The name of the file that it is in; `None` for an empty one.
    pub file: Option<String>,
    /// Its size in bytes as a disk.
    pub capacity: u64,
}

/// Reads an OVF descriptor.
///
/// # Errors
/// [`Kind::Untrusted`] if it is not one, describes none or several machines, or one that is not
/// 64-bit x86.
pub fn parse(xml: &[u8]) -> Result<Descriptor> {
    let text = std::str::from_utf8(xml).map_err(|_| refused("it is not UTF-8"))?;
    let options = roxmltree::ParsingOptions { nodes_limit: 100_000, ..Default::default() };
    let document = Document::parse_with_options(text, options)
        .map_err(|error| refused("it is not XML").with_source(error))?;
    let envelope = document.root_element();
    if envelope.tag_name().name() != "Envelope" {
        return Err(refused("it is not an OVF envelope"));
    }
    let machine = only_machine(envelope)?;
    let files = references(envelope)?;
    let disks = disks(envelope, &files)?;
    let name = child(machine, "Name").and_then(|name| name.text()).unwrap_or("").trim();
    let name = match name {
        "" => attribute(machine, "id").unwrap_or(""),
        name => name,
    };
    Ok(Descriptor { name: name.to_owned(), os: operating_system(machine)?, files, disks })
}

fn refused(why: impl std::fmt::Display) -> Error {
    Error::new(Kind::Untrusted, format!("OVF: {why}"))
}

/// Returns the one machine; machines anywhere in the envelope count.
fn only_machine<'a, 'b>(envelope: Node<'a, 'b>) -> Result<Node<'a, 'b>> {
    let mut machines =
        envelope.descendants().filter(|node| node.tag_name().name() == "VirtualSystem");
    match (machines.next(), machines.count()) {
        (Some(machine), 0) if machine.parent() == Some(envelope) => Ok(machine),
        (Some(_), 0) => Err(refused("its machine is part of a collection")),
        (Some(_), more) => Err(refused(format!("it describes {} machines, not one", more + 1))),
        (None, _) => Err(refused("it describes no machine")),
    }
}

/// Returns the operating system's name. VirtualBox's own word decides, then VMware's, then CIM's number,
/// which is the order in which VirtualBox itself reads them.
fn operating_system(machine: Node<'_, '_>) -> Result<String> {
    let section = child(machine, "OperatingSystemSection")
        .ok_or_else(|| refused("it does not say which operating system"))?;
    let virtualbox = machine
        .descendants()
        .find(|node| node.tag_name().name() == "OSType")
        .and_then(|node| node.text())
        .map(str::trim);
    let vmware = attribute(section, "osType");
    let cim: Option<u32> = attribute(section, "id").and_then(|id| id.trim().parse().ok());
    let (name, wide) = match (virtualbox, vmware, cim) {
        (Some(name), _, _) => (name.to_owned(), name.ends_with("_64")),
        (None, Some(name), _) => {
            (name.to_owned(), name.ends_with("64Guest") || name.ends_with("_64Guest"))
        }
        (None, None, Some(number)) => (format!("CIM {number}"), CIM_64.contains(&number)),
        (None, None, None) => return Err(refused("it does not say which operating system")),
    };
    if !wide {
        return Err(refused(format!(
            "its operating system `{}` is not 64-bit x86, which a nested lab needs",
            crate::event::printable(&name)
        )));
    }
    Ok(name)
}

fn references(envelope: Node<'_, '_>) -> Result<Vec<FileReference>> {
    let Some(references) = child(envelope, "References") else { return Ok(Vec::new()) };
    let files = references.children().filter(|node| node.tag_name().name() == "File");
    files
        .map(|file| {
            let wanted =
                |name| attribute(file, name).ok_or_else(|| refused("a file lacks its id or name"));
            let size = attribute(file, "size")
                .map(|size| size.trim().parse().map_err(|_| refused("a file's size is no number")))
                .transpose()?;
            if attribute(file, "compression")
                .is_some_and(|how| how != "identity" && !how.is_empty())
                || attribute(file, "chunkSize").is_some()
            {
                return Err(refused("a file is compressed or in pieces"));
            }
            Ok(FileReference { id: wanted("id")?.into(), href: wanted("href")?.into(), size })
        })
        .collect()
}

fn disks(envelope: Node<'_, '_>, files: &[FileReference]) -> Result<Vec<DiskReference>> {
    let Some(section) = child(envelope, "DiskSection") else { return Ok(Vec::new()) };
    let disks = section.children().filter(|node| node.tag_name().name() == "Disk");
    disks
        .map(|disk| {
            if attribute(disk, "parentRef").is_some() {
                return Err(refused("a disk is a difference to another"));
            }
            let capacity = attribute(disk, "capacity").unwrap_or("");
            let units = attribute(disk, "capacityAllocationUnits").unwrap_or("byte");
            let capacity = bytes(capacity, units)
                .ok_or_else(|| refused(format!("a disk's capacity `{capacity}` is no number")))?;
            let file = attribute(disk, "fileRef")
                .map(|id| {
                    files
                        .iter()
                        .find(|file| file.id == id)
                        .map(|file| file.href.clone())
                        .ok_or_else(|| refused("a disk names a file that is not listed"))
                })
                .transpose()?;
            Ok(DiskReference { file, capacity })
        })
        .collect()
}

/// `capacity` in units such as `byte` or `byte * 2^30` (OVF 1.1, section 9.1).
fn bytes(capacity: &str, units: &str) -> Option<u64> {
    let number: u64 = capacity.trim().parse().ok()?;
    let units: String = units.split_whitespace().collect();
    let shift: u32 = match units.to_ascii_lowercase().as_str() {
        "byte" | "bytes" => 0,
        "kilobytes" => 10,
        "megabytes" => 20,
        "gigabytes" => 30,
        power => power.strip_prefix("byte*2^")?.parse().ok()?,
    };
    number.checked_mul(1_u64.checked_shl(shift)?)
}

fn child<'a, 'b>(node: Node<'a, 'b>, name: &str) -> Option<Node<'a, 'b>> {
    node.children().find(|child| child.tag_name().name() == name)
}

/// OVF's attributes are in its namespace in some writers' output and in none in others'.
fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|attribute| attribute.name() == name).map(|attribute| attribute.value())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An OVF as VirtualBox writes it, shortened.
    pub(in crate::image) fn sample(file: &str, size: u64, capacity: u64) -> String {
        format!(
            r#"<?xml version="1.0"?>
<Envelope ovf:version="1.0" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:vbox="http://www.virtualbox.org/ovf/machine">
  <References><File ovf:id="file1" ovf:href="{file}" ovf:size="{size}"/></References>
  <DiskSection><Disk ovf:capacity="{capacity}" ovf:diskId="vmdisk1" ovf:fileRef="file1"/></DiskSection>
  <VirtualSystem ovf:id="Demo">
    <OperatingSystemSection ovf:id="96"><vbox:OSType ovf:required="false">Debian_64</vbox:OSType></OperatingSystemSection>
  </VirtualSystem>
</Envelope>"#
        )
    }

    #[test]
    fn a_virtualbox_descriptor_is_read() {
        let ovf = parse(sample("d.vmdk", 10, 1 << 30).as_bytes()).expect("valid");
        assert_eq!((ovf.name.as_str(), ovf.os.as_str()), ("Demo", "Debian_64"));
        assert_eq!(ovf.files[0].size, Some(10));
        assert_eq!(ovf.disks[0].file.as_deref(), Some("d.vmdk"));
        assert_eq!(ovf.disks[0].capacity, 1 << 30);
    }

    #[test]
    fn what_is_not_one_64_bit_machine_is_refused() {
        let good = sample("d.vmdk", 10, 1 << 30);
        let machine_start = good.find("<VirtualSystem").expect("there");
        let machine_end = good.find("</Envelope>").expect("there");
        let two = good.replacen(
            "</Envelope>",
            &format!("{}</Envelope>", &good[machine_start..machine_end]),
            1,
        );
        for (text, part) in [
            (two, "2 machines"),
            (good.replace("Debian_64", "Debian"), "not 64-bit"),
            (good.replace("VirtualSystem", "Other"), "no machine"),
            (good.replace("Envelope", "Other"), "not an OVF envelope"),
            (
                good.replace("<vbox:OSType ovf:required=\"false\">Debian_64</vbox:OSType>", "")
                    .replace("\"96\"", "\"95\""),
                "not 64-bit",
            ),
            (good.replace("fileRef=\"file1\"", "fileRef=\"file2\""), "not listed"),
            (good.replace("</Envelope>", ""), "not XML"),
            (
                format!(
                    "<!DOCTYPE x [<!ENTITY a \"b\">]>{}",
                    good.replace("<?xml version=\"1.0\"?>\n", "")
                ),
                "not XML",
            ),
        ] {
            let error = parse(text.as_bytes()).expect_err(part);
            assert!(error.message().contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn capacities_are_read_with_their_units() {
        assert_eq!(bytes("3", "byte * 2^30"), Some(3 << 30));
        assert_eq!(bytes("5", "MegaBytes"), Some(5 << 20));
        assert_eq!(bytes("5", "byte * 2^99"), None);
        assert_eq!(bytes("18446744073709551615", "byte * 2^10"), None);
    }
}
