//! Kernel modules out of a Debian kernel package: the wanted ones, what they need, and the tables by
//! which busybox's `modprobe` finds them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use super::cpio::Initrd;
use super::elf::Elf;
use super::tar_index::TarIndex;
use crate::error::{Error, Kind, Result};

/// Where a kernel's modules are, in the package and in the appliance.
const MODULES: &str = "usr/lib/modules";

/// The one kernel in a tree of packages, and its modules.
pub(super) struct Kernel<'t> {
    tree: &'t TarIndex,
    version: &'t str,
    image: &'t str,
    /// The modules' paths by their names.
    files: BTreeMap<String, &'t str>,
    built_in: BTreeSet<String>,
}

impl<'t> Kernel<'t> {
    /// Finds the kernel.
    ///
    /// # Errors
    /// [`Kind::Internal`] if the packages brought none, or more than one.
    pub(super) fn find(tree: &'t TarIndex) -> Result<Self> {
        let mut images = tree
            .under("boot")
            .chain(tree.under(MODULES))
            .filter_map(|path| Some((version_of_image(path)?, path)));
        let (Some((version, image)), None) = (images.next(), images.next()) else {
            return Err(Error::internal("the packages do not bring exactly one kernel"));
        };
        let folder = format!("{MODULES}/{version}");
        let built_in = tree.read(&format!("{folder}/modules.builtin"))?;
        let built_in = String::from_utf8_lossy(&built_in).lines().filter_map(name_of).collect();
        let files = tree
            .under(&format!("{folder}/kernel"))
            .filter_map(|path| Some((name_of(path)?, path)))
            .collect();
        Ok(Kernel { tree, version, image, files, built_in })
    }

    /// Returns the kernel itself.
    pub(super) fn image(&self) -> Result<Vec<u8>> {
        self.tree.read(self.image)
    }

    /// Puts the modules `wanted` into `initrd`, with those that they need, and modprobe's tables. One
    /// that is built into the kernel is there already.
    ///
    /// # Errors
    /// [`Kind::Recipe`] for a module that this kernel does not have.
    pub(super) fn install<'n>(
        &self,
        wanted: impl IntoIterator<Item = &'n str>,
        initrd: &mut Initrd,
    ) -> Result<()> {
        let folder = format!("{MODULES}/{}", self.version);
        let modules = self.closure(wanted)?;
        let (mut dependencies, mut aliases) = (String::new(), String::new());
        for (name, module) in &modules {
            let line: Vec<String> =
                last_to_load_first(&modules, name).into_iter().map(place).collect();
            let needed = line[1..].join(" ");
            dependencies.push_str(&format!("{}: {needed}\n", line[0]));
            for alias in &module.aliases {
                aliases.push_str(&format!("alias {alias} {name}\n"));
            }
        }
        initrd.file(&format!("{folder}/modules.dep"), 0o644, dependencies);
        initrd.file(&format!("{folder}/modules.alias"), 0o644, aliases);
        for (name, module) in modules {
            initrd.file(&format!("{folder}/{}", place(&name)), 0o644, module.contents);
        }
        Ok(())
    }

    /// Returns the modules and all that they need, by name.
    fn closure<'n>(
        &self,
        wanted: impl IntoIterator<Item = &'n str>,
    ) -> Result<BTreeMap<String, Module>> {
        let mut found = BTreeMap::new();
        let mut open: Vec<String> = wanted.into_iter().map(plain).collect();
        while let Some(name) = open.pop() {
            if found.contains_key(&name) || self.built_in.contains(&name) {
                continue;
            }
            let path = self.files.get(&name).ok_or_else(|| {
                Error::new(
                    Kind::Recipe,
                    format!("the kernel {} has no module `{name}`", self.version),
                )
            })?;
            let module = Module::read(self.tree, path)?;
            open.extend(module.needs.iter().cloned());
            found.insert(name, module);
        }
        Ok(found)
    }
}

/// A module's contents, unpacked, and what its `.modinfo` says.
struct Module {
    contents: Vec<u8>,
    needs: Vec<String>,
    aliases: Vec<String>,
}

impl Module {
    fn read(tree: &TarIndex, path: &str) -> Result<Self> {
        let damaged = || Error::internal(format!("/{path} is not a kernel module"));
        let packed = tree.read(path)?;
        let contents = unpacked(path, packed).map_err(|error| damaged().with_source(error))?;
        let elf = Elf::parse(&contents).ok_or_else(damaged)?;
        let depends = elf.modinfo("depends");
        let needs = depends.iter().flat_map(|names| names.split(','));
        let needs = needs.filter(|name| !name.is_empty()).map(plain).collect();
        let aliases = elf.modinfo("alias").into_iter().map(str::to_owned).collect();
        Ok(Module { needs, aliases, contents })
    }
}

/// Returns `name` and after it all that it needs, what must be loaded first last: the order of a line
/// in `modules.dep`.
fn last_to_load_first<'m>(modules: &'m BTreeMap<String, Module>, name: &'m str) -> Vec<&'m str> {
    fn visit<'m>(modules: &'m BTreeMap<String, Module>, name: &'m str, order: &mut Vec<&'m str>) {
        if order.contains(&name) {
            return;
        }
        // What is not among the modules is built in.
        let Some((name, module)) = modules.get_key_value(name) else { return };
        for needed in &module.needs {
            visit(modules, needed, order);
        }
        order.push(name);
    }
    let mut order = Vec::new();
    visit(modules, name, &mut order);
    order.reverse();
    order
}

/// Returns a kernel's version from the path of its image, or `None` if it is not a kernel's. Debian's
/// packages bring it in `/boot` up to Linux 6.12, beside its modules in 7.2; a script copies it then.
fn version_of_image(path: &str) -> Option<&str> {
    path.strip_prefix("boot/vmlinuz-").or_else(|| {
        path.strip_prefix(MODULES)?
            .strip_prefix('/')?
            .strip_suffix("/vmlinuz")
            .filter(|version| !version.contains('/'))
    })
}

/// Returns where a module lies in the appliance, below the kernel's folder.
fn place(name: &str) -> String {
    format!("kernel/{name}.ko")
}

/// Returns a module's name from its path, or `None` if it is not a module's.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (stem, ending) = file.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".zst").then(|| plain(stem))
}

/// Returns the name as the kernel has it; files and `depends` may have hyphens.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn unpacked(path: &str, packed: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    if path.ends_with(".xz") {
        liblzma::read::XzDecoder::new(&packed[..]).read_to_end(&mut contents)?;
    } else if path.ends_with(".zst") {
        zstd::Decoder::new(&packed[..])?.read_to_end(&mut contents)?;
    } else {
        contents = packed;
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(needs: &[&str]) -> Module {
        let needs = needs.iter().map(|name| (*name).to_owned()).collect();
        Module { contents: Vec::new(), needs, aliases: Vec::new() }
    }

    #[test]
    fn a_module_comes_before_all_that_must_be_loaded_first() {
        let modules: BTreeMap<String, Module> = [
            ("ahci", module(&["libahci", "libata"])),
            ("libahci", module(&["libata"])),
            ("libata", module(&["scsi_mod"])),
            ("scsi_mod", module(&["built_in"])),
        ]
        .map(|(name, module)| (name.to_owned(), module))
        .into();
        assert_eq!(last_to_load_first(&modules, "ahci"), ["ahci", "libahci", "libata", "scsi_mod"]);
    }

    #[test]
    fn a_kernel_is_found_where_old_and_new_packages_bring_it() {
        for path in
            ["boot/vmlinuz-6.12.57+deb13-amd64", "usr/lib/modules/7.2.13+deb14-amd64/vmlinuz"]
        {
            let version = version_of_image(path).expect("a kernel");
            assert!(path.contains(version) && version.ends_with("-amd64"), "{version}");
        }
        for path in [
            "boot/System.map-6.12.57+deb13-amd64",
            "usr/lib/modules/7.2.13+deb14-amd64/System.map",
            "usr/lib/modules/7.2.13+deb14-amd64/build/vmlinuz",
        ] {
            assert_eq!(version_of_image(path), None, "{path}");
        }
    }

    #[test]
    fn a_modules_name_is_the_kernels_however_its_file_is_packed() {
        for path in ["a/virtio-rng.ko", "virtio-rng.ko.xz", "x/virtio_rng.ko.zst"] {
            assert_eq!(name_of(path).as_deref(), Some("virtio_rng"), "{path}");
        }
        assert_eq!(name_of("modules.order"), None);
        assert_eq!(name_of("x.kold"), None);
    }
}
