//! As much of ELF as is needed to know what a program or a kernel module needs: 64-bit, little-endian.
//!
//! Reading it here means that nothing of a foreign package is ever run to find out (as `ldd` would).

/// An ELF file's bytes, with its section headers found.
pub(super) struct Elf<'a> {
    bytes: &'a [u8],
    sections: Vec<Section>,
}

#[derive(Debug, Clone, Copy)]
struct Section {
    name: u32,
    offset: u64,
    size: u64,
    link: u32,
}

/// Bytes of one section header, and of one entry of the dynamic section.
const SECTION_HEADER: usize = 64;
const DYNAMIC_ENTRY: usize = 16;
const DT_NEEDED: u64 = 1;

impl<'a> Elf<'a> {
    /// Returns the file, or `None` if it is not a whole 64-bit little-endian ELF file with sections.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        bytes.starts_with(b"\x7fELF\x02\x01").then_some(())?;
        let table = usize::try_from(u64_at(bytes, 0x28)?).ok()?;
        let count = usize::from(u16_at(bytes, 0x3c)?);
        let sections = (0..count)
            .map(|index| {
                let header = bytes.get(table.checked_add(index * SECTION_HEADER)?..)?;
                Some(Section {
                    name: u32_at(header, 0)?,
                    offset: u64_at(header, 24)?,
                    size: u64_at(header, 32)?,
                    link: u32_at(header, 40)?,
                })
            })
            .collect::<Option<Vec<_>>>()?;
        let elf = Elf { bytes, sections };
        // The names' section must be there, else no section can be found by its name.
        elf.names().map(|_| elf)
    }

    /// Returns the libraries that the dynamic linker is to load for it, by their file names.
    pub(super) fn needed(&self) -> Vec<&'a str> {
        let Some(dynamic) = self.section(".dynamic") else { return Vec::new() };
        let Some(strings) =
            self.sections.get(dynamic.link as usize).and_then(|section| self.contents(*section))
        else {
            return Vec::new();
        };
        let Some(entries) = self.contents(dynamic) else { return Vec::new() };
        entries
            .chunks_exact(DYNAMIC_ENTRY)
            .filter(|entry| u64_at(entry, 0) == Some(DT_NEEDED))
            .filter_map(|entry| text_at(strings, usize::try_from(u64_at(entry, 8)?).ok()?))
            .collect()
    }

    /// Returns the program's dynamic linker, if it has one.
    pub(super) fn interpreter(&self) -> Option<&'a str> {
        text_at(self.contents(self.section(".interp")?)?, 0)
    }

    /// Returns the values that a kernel module's `.modinfo` gives for `key`.
    pub(super) fn modinfo(&self, key: &str) -> Vec<&'a str> {
        let info =
            self.section(".modinfo").and_then(|section| self.contents(section)).unwrap_or(&[]);
        info.split(|byte| *byte == 0)
            .filter_map(|line| std::str::from_utf8(line).ok()?.split_once('='))
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value)
            .collect()
    }

    fn section(&self, name: &str) -> Option<Section> {
        let names = self.names()?;
        self.sections
            .iter()
            .copied()
            .find(|section| text_at(names, section.name as usize) == Some(name))
    }

    fn names(&self) -> Option<&'a [u8]> {
        let index = usize::from(u16_at(self.bytes, 0x3e)?);
        self.contents(*self.sections.get(index)?)
    }

    fn contents(&self, section: Section) -> Option<&'a [u8]> {
        let start = usize::try_from(section.offset).ok()?;
        let end = start.checked_add(usize::try_from(section.size).ok()?)?;
        self.bytes.get(start..end)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Returns the NUL-terminated text at `at`.
fn text_at(strings: &[u8], at: usize) -> Option<&str> {
    let rest = strings.get(at..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_real_program_names_its_linker_and_its_libraries() {
        let bytes = fs_err::read("/bin/sh").unwrap();
        let elf = Elf::parse(&bytes).unwrap();
        assert_eq!(elf.interpreter(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert!(elf.needed().contains(&"libc.so.6"), "{:?}", elf.needed());
    }

    proptest! {
        #[test]
        fn damaged_files_are_read_as_far_as_they_go(
            at in 0usize..4096,
            patch in prop::collection::vec(any::<u8>(), 1..64),
            keep in 0usize..200_000,
        ) {
            let mut bytes = fs_err::read("/bin/sh").unwrap();
            bytes[at..at + patch.len()].copy_from_slice(&patch);
            bytes.truncate(keep);
            if let Some(elf) = Elf::parse(&bytes) {
                let _ = (elf.interpreter(), elf.needed(), elf.modinfo("alias"));
            }
        }
    }
}
