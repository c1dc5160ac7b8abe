//! A dynamically linked program out of a tree of packages, with every library that it needs.

use super::cpio::Initrd;
use super::elf::Elf;
use super::tar_index::TarIndex;
use crate::error::{Error, Result};

/// Where Debian has libraries, and where its dynamic linker looks for them.
const FOLDERS: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib"];

/// Puts the program at `path` into `initrd`, with its dynamic linker and libraries.
///
/// # Errors
/// [`Kind::Failed`](crate::Kind) if it, or a library that it names, is in no package.
pub(super) fn install(tree: &TarIndex, path: &str, initrd: &mut Initrd) -> Result<()> {
    let mut open = vec![(path.to_owned(), path.to_owned())];
    while let Some((from, to)) = open.pop() {
        if initrd.contains(&to) {
            continue;
        }
        let contents = tree.read(&from)?;
        let elf = Elf::parse(&contents)
            .ok_or_else(|| Error::internal(format!("/{from} is not a 64-bit program")))?;
        for name in elf.needed() {
            let library = library(tree, name)?;
            open.push((library.clone(), library));
        }
        // The path of the dynamic linker is part of the program; a merged /usr has it elsewhere.
        if let Some(linker) = elf.interpreter() {
            let linker = linker.trim_start_matches('/');
            let from = if tree.has(linker) { linker.to_owned() } else { format!("usr/{linker}") };
            open.push((from, linker.to_owned()));
        }
        initrd.file(&to, 0o755, contents);
    }
    Ok(())
}

fn library(tree: &TarIndex, name: &str) -> Result<String> {
    FOLDERS
        .iter()
        .map(|folder| format!("{folder}/{name}"))
        .find(|path| tree.has(path))
        .ok_or_else(|| Error::failed(format!("no package brought the library {name}")))
}
