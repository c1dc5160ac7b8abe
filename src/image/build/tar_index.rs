//! A tree of files inside a tar archive, read in place: what mmdebstrap made is never unpacked, so that
//! no root rights are needed to read it and nothing is left to clean up.

use std::collections::BTreeMap;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::File;

use crate::error::{Error, Kind, Result};

/// How many symbolic links are followed before they count as a loop, as in Linux.
const MAX_LINKS: usize = 40;

/// An indexed tar archive. Paths are without a leading slash.
pub(super) struct TarIndex {
    path: Utf8PathBuf,
    entries: BTreeMap<String, TarEntry>,
}

#[derive(Debug, Clone)]
enum TarEntry {
    Folder,
    File { offset: u64, size: u64 },
    Link { to: String },
}

impl TarIndex {
    /// Reads the index of the tar file at `path`.
    ///
    /// # Errors
    /// [`Kind::Io`] if it cannot be read, or is not a whole tar archive.
    pub(super) fn open(path: &Utf8Path) -> Result<Self> {
        let unreadable =
            |error| Error::new(Kind::Io, format!("{path} cannot be read")).with_source(error);
        let mut archive = tar::Archive::new(BufReader::new(File::open(path)?));
        let mut entries = BTreeMap::new();
        for entry in archive.entries_with_seek().map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = plain(&String::from_utf8_lossy(&entry.path_bytes()));
            let kind = entry.header().entry_type();
            let link = entry
                .link_name_bytes()
                .map(|to| String::from_utf8_lossy(&to).into_owned())
                .unwrap_or_default();
            let found = if kind.is_file() {
                TarEntry::File { offset: entry.raw_file_position(), size: entry.size() }
            } else if kind.is_symlink() {
                TarEntry::Link { to: link }
            } else if kind.is_hard_link() {
                // A hard link names a file that came before it.
                match entries.get(&plain(&link)) {
                    Some(TarEntry::File { offset, size }) => {
                        TarEntry::File { offset: *offset, size: *size }
                    }
                    _ => continue,
                }
            } else if kind.is_dir() {
                TarEntry::Folder
            } else {
                continue;
            };
            entries.insert(name, found);
        }
        Ok(TarIndex { path: path.to_owned(), entries })
    }

    /// Returns the paths of the files and links directly or deeper in `folder`, in order.
    pub(super) fn under<'t>(&'t self, folder: &str) -> impl Iterator<Item = &'t str> + use<'t> {
        let start = format!("{folder}/");
        self.entries
            .range(start.clone()..)
            .take_while(move |(path, _)| path.starts_with(&start))
            .filter(|(_, entry)| !matches!(entry, TarEntry::Folder))
            .map(|(path, _)| path.as_str())
    }

    /// Returns the tar archive's path.
    pub(super) fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Returns about how many bytes its files take in a file system, but for those under `but`.
    pub(super) fn size(&self, but: &str) -> u64 {
        const BLOCK: u64 = 4096;
        let sizes =
            self.entries.iter().filter(|(path, _)| !path.starts_with(but)).map(|(_, entry)| {
                match entry {
                    TarEntry::File { size, .. } => size.next_multiple_of(BLOCK),
                    TarEntry::Folder | TarEntry::Link { .. } => BLOCK,
                }
            });
        sizes.sum()
    }

    /// Returns the contents of the file at `path`, symbolic links followed.
    ///
    /// # Errors
    /// [`Kind::Failed`] if there is no such file, [`Kind::Io`] if it cannot be read.
    pub(super) fn read(&self, path: &str) -> Result<Vec<u8>> {
        let (offset, size) = self
            .locate(path)
            .ok_or_else(|| Error::failed(format!("no package brought /{path}")))?;
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(offset))?;
        let size = usize::try_from(size).expect("a file of a package fits into memory");
        let mut contents = vec![0; size];
        file.read_exact(&mut contents)?;
        Ok(contents)
    }

    /// Returns whether there is a file at `path`, symbolic links followed.
    pub(super) fn has(&self, path: &str) -> bool {
        self.locate(path).is_some()
    }

    fn locate(&self, path: &str) -> Option<(u64, u64)> {
        let mut path = plain(path);
        for _ in 0..MAX_LINKS {
            if let Some(TarEntry::File { offset, size }) = self.entries.get(&path) {
                return Some((*offset, *size));
            }
            path = self.one_link_followed(&path)?;
        }
        None
    }

    /// Returns `path` with the first symbolic link in it replaced by what it points to.
    fn one_link_followed(&self, path: &str) -> Option<String> {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            if let Some(TarEntry::Link { to }) = self.entries.get(&path[..end]) {
                let folder = path[..end].rsplit_once('/').map_or("", |(folder, _)| folder);
                let target =
                    if to.starts_with('/') { to.clone() } else { format!("{folder}/{to}") };
                return Some(plain(&format!("{target}{}", &path[end..])));
            }
        }
        None
    }
}

/// Returns `path` without a leading slash, `.` or `..`.
fn plain(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(folder: &tempfile::TempDir) -> TarIndex {
        let root = folder.path().join("root");
        fs_err::create_dir_all(root.join("usr/lib/deep")).unwrap();
        fs_err::write(root.join("usr/lib/libx.so.1.2"), "library").unwrap();
        fs_err::hard_link(root.join("usr/lib/libx.so.1.2"), root.join("usr/lib/twin")).unwrap();
        for (link, to) in [
            ("lib", "usr/lib"),
            ("usr/lib/libx.so.1", "libx.so.1.2"),
            ("usr/lib/deep/up", "../libx.so.1"),
            ("usr/lib/absolute", "/lib/libx.so.1"),
            ("loop", "loop"),
        ] {
            std::os::unix::fs::symlink(to, root.join(link)).unwrap();
        }
        let path = folder.path().join("tree.tar");
        let tar = std::process::Command::new("tar")
            .args(["--create", "--sort=name", "--file"])
            .arg(&path)
            .arg("--directory")
            .arg(&root)
            .arg(".")
            .status()
            .unwrap();
        assert!(tar.success());
        TarIndex::open(Utf8Path::from_path(&path).unwrap()).unwrap()
    }

    #[test]
    fn links_of_every_kind_lead_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let tree = tree(&folder);
        for path in [
            "usr/lib/libx.so.1.2",
            "usr/lib/libx.so.1",
            "lib/libx.so.1",
            "/lib/deep/up",
            "lib/absolute",
            "usr/lib/twin",
        ] {
            assert_eq!(tree.read(path).unwrap(), b"library", "{path}");
        }
    }

    #[test]
    fn what_is_not_there_and_what_points_at_itself_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let tree = tree(&folder);
        for path in ["usr/lib/none", "loop"] {
            assert!(!tree.has(path));
            let error = tree.read(path).unwrap_err();
            assert!(error.message().contains(path), "{error:?}");
        }
    }

    #[test]
    fn listing_a_folder_leaves_out_its_neighbours() {
        let folder = tempfile::tempdir().unwrap();
        let tree = tree(&folder);
        assert_eq!(tree.under("usr/lib/deep").collect::<Vec<_>>(), ["usr/lib/deep/up"]);
        assert_eq!(tree.under("usr/li").count(), 0);
    }
}
