//! A Debian system that starts by itself: from a PC BIOS or from UEFI over GRUB to systemd and sshd, on QEMU
//! and on VirtualBox, on any of their disk controllers and network cards.
//!
//! It holds no password and no key. A volume labelled `CIDATA` (the [`seed`](super::seed)) gives it its name,
//! the keys that may log in and its SSH host key at each boot.

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::File;
use jiff::Timestamp;
use uuid::Uuid;

use super::bootstrap::{self, BuildRecord, InstallMode, Packages};
use super::context::{BuildContext, Need};
use super::grub::{self, Grub};
use super::mirror::Mirror;
use super::partitions;
use super::rootfs::{self, RootFs};
use super::tar_index::TarIndex;
use crate::error::{Error, Kind, Result};
use crate::host::Command;
use crate::image::digest::Sha256;
use crate::image::format::ImageFormat;
use crate::image::manifest::BuildTable;

/// What every image has beside the minimal system.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "linux-image-amd64",
    "openssh-server",
    "sudo",
    "systemd-repart",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "zstd",
];

/// Options for mmdebstrap: what a lab machine never reads is not unpacked, now and in upgrades.
const OPTIONS: &[&str] = &[
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/lintian/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-include=/usr/share/locale/locale.alias",
    "--dpkgopt=path-exclude=/usr/share/man/*",
];

/// Files over those of the packages: path, permission bits, contents; `{root}` is the root file system's
/// UUID.
const FILES: &[(&str, u32, &str)] = &[
    ("boot/grub/grub.cfg", 0o644, include_str!("debian/grub.cfg")),
    // An upgrade brings nothing that is only recommended: a kernel recommends AppArmor, whose profiles take
    // two minutes of an emulated boot.
    ("etc/apt/apt.conf.d/80nestlab", 0o644, "APT::Install-Recommends \"false\";\n"),
    // With an empty one systemd makes a new id, and does not ask what it asks at a first boot.
    ("etc/machine-id", 0o444, ""),
    ("etc/default/locale", 0o644, "LANG=C.UTF-8\n"),
    ("etc/fstab", 0o644, include_str!("debian/fstab")),
    ("etc/hostname", 0o644, "debian\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost\n"),
    ("etc/repart.d/50-root.conf", 0o644, include_str!("debian/repart.conf")),
    ("etc/ssh/sshd_config.d/nestlab.conf", 0o644, include_str!("debian/sshd.conf")),
    // Deep down a disk can take minutes to show up: without the seed nobody could log in.
    ("etc/systemd/system.conf.d/nestlab.conf", 0o644, include_str!("debian/manager.conf")),
    ("etc/systemd/network/80-nestlab.network", 0o644, include_str!("debian/network")),
    (
        "etc/systemd/system/nestlab-ready.service",
        0o644,
        include_str!("debian/nestlab-ready.service"),
    ),
    ("etc/systemd/system/nestlab-seed.service", 0o644, include_str!("debian/nestlab-seed.service")),
    ("usr/lib/nestlab/ready", 0o755, include_str!("debian/ready")),
    ("usr/lib/nestlab/seed", 0o755, include_str!("debian/seed")),
    // systemd's own caches were made when its packages were installed; these say so.
    ("etc/.updated", 0o644, ""),
    ("var/.updated", 0o644, ""),
];

/// Symbolic links over those of the packages: what is started, and what is kept from starting.
const LINKS: &[(&str, &str)] = &[
    ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
    (
        "etc/systemd/system/multi-user.target.wants/nestlab-ready.service",
        "/etc/systemd/system/nestlab-ready.service",
    ),
    (
        "etc/systemd/system/multi-user.target.wants/nestlab-seed.service",
        "/etc/systemd/system/nestlab-seed.service",
    ),
    (
        "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
        "/usr/lib/systemd/system/systemd-networkd.service",
    ),
    // Host keys come from the seed. apt is run by who provisions the machine, not beside it.
    ("etc/systemd/system/sshd-keygen.service", "/dev/null"),
    ("etc/systemd/system/apt-daily.timer", "/dev/null"),
    ("etc/systemd/system/apt-daily-upgrade.timer", "/dev/null"),
    // Ten seconds of an emulated boot, for snapshots of logical volumes that are not there.
    ("etc/systemd/system/e2scrub_all.timer", "/dev/null"),
    ("etc/systemd/system/e2scrub_reap.service", "/dev/null"),
];

/// GRUB's first configuration, outside the root partition: it goes on with the one inside.
const LOADER_CONFIG: &str = include_str!("debian/loader.cfg");

/// What the root file system's identifier is made from.
const ROOT: &str = "root file system";

/// Room in the root file system beside what is in it.
const ROOM: u64 = 1 << 30;

/// Returns the texts that go into an image, or decide what does.
pub(super) fn texts() -> impl Iterator<Item = &'static str> {
    let files = FILES.iter().flat_map(|(path, _, contents)| [*path, *contents]);
    let links = LINKS.iter().flat_map(|(path, to)| [*path, *to]);
    let options = PACKAGES.iter().chain(OPTIONS).copied();
    files
        .chain(links)
        .chain(options)
        .chain(rootfs::texts())
        .chain(grub::texts())
        .chain([LOADER_CONFIG])
}

/// What to build.
pub(super) struct Debian<'a> {
    pub(super) mirror: &'a Mirror,
    pub(super) table: &'a BuildTable,
    pub(super) format: ImageFormat,
    /// The digest of the build's inputs, from which its identifiers are made.
    pub(super) inputs: &'a Sha256,
}

impl Debian<'_> {
    /// Builds it; returns the file in the workshop, and what it was built from.
    pub(super) async fn build(
        &self,
        shop: &BuildContext<'_>,
    ) -> Result<(Utf8PathBuf, BuildRecord)> {
        self.check()?;
        shop.require(&needs(shop.host.is_root())).await?;
        let mut names: Vec<String> = PACKAGES.iter().map(|name| (*name).to_owned()).collect();
        names.extend(self.table.packages.iter().cloned());
        let system = self.packages(&names, InstallMode::Installed);
        let date = system.release_date(shop).await?;
        let config = LOADER_CONFIG.replace("{root}", &self.id(ROOT).to_string());
        let names = grub::PACKAGES.map(str::to_owned);
        let loader = self.packages(&names, InstallMode::Unpacked);
        let (grub, (tree, record)) = tokio::try_join!(
            Grub::unpack(&loader, shop, date, &config),
            system.bootstrap(shop, date, "tree.tar")
        )?;

        shop.events.doing("making the disk");
        let raw = self.disk(shop, &tree, &grub, &config, date).await?;
        let file = self.wrapped(shop, raw).await?;
        Ok((file, record))
    }

    /// Refuses what the manifest cannot mean.
    fn check(&self) -> Result<()> {
        if !matches!(self.format, ImageFormat::Qcow2 | ImageFormat::Raw) {
            let what = format!("a Debian image cannot be written as {}", self.format);
            return Err(Error::new(Kind::Recipe, what).hint("use one of qcow2, raw"));
        }
        if !self.table.modules.is_empty() {
            let what = "a Debian image has all kernel modules; `modules` is for an appliance";
            return Err(Error::new(Kind::Recipe, what));
        }
        Ok(())
    }

    fn packages<'p>(&'p self, names: &'p [String], depth: InstallMode) -> Packages<'p> {
        let (debs, options) = match depth {
            InstallMode::Installed => (&self.table.debs[..], OPTIONS),
            InstallMode::Unpacked => (&[][..], &[][..]),
        };
        Packages {
            mirror: self.mirror,
            suite: &self.table.suite,
            components: &self.table.components,
            names,
            debs,
            allow_stale: self.table.allow_stale.is_some(),
            depth,
            options,
        }
    }

    /// Returns the identifier of a part of the disk.
    fn id(&self, what: &str) -> Uuid {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, &[self.inputs.as_bytes(), what.as_bytes()].concat())
    }

    /// Makes the raw disk.
    async fn disk(
        &self,
        shop: &BuildContext<'_>,
        tree: &TarIndex,
        grub: &Grub,
        config: &str,
        date: Timestamp,
    ) -> Result<Utf8PathBuf> {
        let root = self.id(ROOT);
        let overlay = shop.path("overlay.tar");
        write_overlay(&overlay, root, date)?;
        let disk = shop.path("disk.raw");
        let size = (tree.size("var/cache/apt/") * 5 / 4 + ROOM).next_multiple_of(1 << 20);
        let efi: [(&str, &[u8]); 2] =
            [("EFI/BOOT/BOOTX64.EFI", &grub.program), ("EFI/debian/grub.cfg", config.as_bytes())];
        partitions::make(&disk, size, &grub.pc, &efi, |what| self.id(what))?;
        RootFs { disk: &disk, offset: partitions::ROOT_OFFSET, size, uuid: root, date }
            .make(shop, tree.path(), &overlay)
            .await?;
        Ok(disk)
    }

    async fn wrapped(&self, shop: &BuildContext<'_>, raw: Utf8PathBuf) -> Result<Utf8PathBuf> {
        if self.format == ImageFormat::Raw {
            return Ok(raw);
        }
        shop.events.doing("compressing the disk");
        let disk = shop.path("disk.qcow2");
        // One coroutine and no writing out of order: the same disk gives the same file.
        let command = Command::new("qemu-img")
            .args(["convert", "-m", "1", "-c", "-o", "compression_type=zstd"])
            .args(["-f", "raw", "-O", "qcow2", raw.as_str(), disk.as_str()]);
        shop.check(command).await?;
        Ok(disk)
    }
}

fn needs(is_root: bool) -> Vec<Need> {
    let mut needs = [&bootstrap::NEEDS[..], &rootfs::NEEDS, &[("qemu-img", "qemu-utils")]].concat();
    if !is_root {
        needs.extend(bootstrap::NEEDS_AS_USER);
        needs.extend(rootfs::NEEDS_AS_USER);
    }
    needs
}

/// Writes the tar archive of [`FILES`] and [`LINKS`], with the folders that packages do not bring.
fn write_overlay(path: &Utf8Path, root: Uuid, date: Timestamp) -> Result<()> {
    let mut archive = tar::Builder::new(File::create(path)?);
    let header = |kind: tar::EntryType, mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.set_mtime(u64::try_from(date.as_second()).unwrap_or(0));
        header
    };
    for folder in ["boot/grub", "etc/repart.d", "usr/lib/nestlab"] {
        let mut header = header(tar::EntryType::Directory, 0o755);
        archive.append_data(&mut header, folder, std::io::empty())?;
    }
    for (path, mode, contents) in FILES {
        let contents = contents.replace("{root}", &root.to_string());
        let mut header = header(tar::EntryType::Regular, *mode);
        header.set_size(contents.len() as u64);
        archive.append_data(&mut header, path, contents.as_bytes())?;
    }
    for (path, to) in LINKS {
        archive.append_link(&mut header(tar::EntryType::Symlink, 0o777), path, to)?;
    }
    archive.into_inner()?.sync_all()?;
    Ok(())
}
