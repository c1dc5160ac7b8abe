//! The appliance: kernel, busybox and dropbear in an initial RAM file system, small enough for the
//! deepest level. It takes its keys and names from the seed, and answers over SSH as root.
//!
//! Its one form is a bootable ISO image with a partition table in front, which a PC BIOS also starts as
//! a hard disk; every other form is that disk in another wrapping.

use camino::{Utf8Path, Utf8PathBuf};
use fs_err::File;
use jiff::Timestamp;

use super::bootstrap::{self, BuildRecord, InstallMode, Packages};
use super::context::{BuildContext, Need};
use super::cpio::Initrd;
use super::libraries;
use super::mirror::Mirror;
use super::modules::Kernel;
use super::ova;
use super::tar_index::TarIndex;
use crate::error::{Error, Kind, Result};
use crate::host::Command;
use crate::image::format::ImageFormat;
use crate::image::manifest::BuildTable;

/// What it is made of.
const PACKAGES: [&str; 5] =
    ["linux-image-amd64", "busybox-static", "dropbear-bin", "isolinux", "syslinux-common"];

/// Drivers for what QEMU and VirtualBox offer, for the seed's file system, and for being a host itself.
const MODULES: &[&str] = &[
    // Disks.
    "ahci",
    "ata_piix",
    "nvme",
    "sd_mod",
    "sr_mod",
    "virtio_blk",
    "virtio_scsi",
    // Network cards.
    "e1000",
    "e1000e",
    "pcnet32",
    "virtio_net",
    // The seed, and a CD.
    "isofs",
    "nls_ascii",
    "nls_cp437",
    "nls_iso8859_1",
    "nls_utf8",
    "vfat",
    // The power button, and chance.
    "button",
    "evdev",
    "virtio_rng",
    // Its own guests.
    "kvm_amd",
    "kvm_intel",
];

/// Programs of the appliance beside busybox.
const PROGRAMS: [&str; 3] = ["usr/sbin/dropbear", "usr/bin/dropbearconvert", "usr/bin/dropbearkey"];

/// What the appliance's own files say: path, permission bits, contents.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/inittab", 0o644, include_str!("appliance/inittab")),
    ("etc/nestlab/start", 0o755, include_str!("appliance/start")),
    ("etc/nestlab/lease", 0o755, include_str!("appliance/lease")),
    ("etc/nestlab/ssh", 0o755, include_str!("appliance/ssh")),
    ("etc/nestlab/ready", 0o755, include_str!("appliance/ready")),
    // What busybox's acpid runs when the power button is pressed.
    ("etc/acpi/PWRF/00000080", 0o755, "#!/bin/sh\nexec poweroff\n"),
    // SVM and VMX belong to whoever asks for them, KVM or VirtualBox: neither is taken unasked.
    ("etc/modprobe.d/nestlab.conf", 0o644, "blacklist kvm_amd\nblacklist kvm_intel\n"),
    ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    // No password fits `*`.
    ("etc/shadow", 0o600, "root:*:1:0:99999:7:::\n"),
    ("etc/group", 0o644, "root:x:0:\n"),
    ("etc/shells", 0o644, "/bin/sh\n"),
];

/// The boot loader's configuration.
const ISOLINUX: &str = include_str!("appliance/isolinux.cfg");

/// What builds it needs on this machine.
const NEEDS: [Need; 1] = [("xorriso", "xorriso")];

/// What to build.
pub(super) struct Appliance<'a> {
    pub(super) name: &'a str,
    pub(super) mirror: &'a Mirror,
    pub(super) table: &'a BuildTable,
    pub(super) format: ImageFormat,
}

/// Returns the texts that go into an appliance, or decide what does.
pub(super) fn texts() -> impl Iterator<Item = &'static str> {
    let files = FILES.iter().flat_map(|(path, _, contents)| [*path, *contents]);
    files.chain([ISOLINUX, ova::OVF]).chain(PACKAGES).chain(PROGRAMS).chain(MODULES.iter().copied())
}

impl Appliance<'_> {
    /// Builds it; returns the file in the workshop, and what it was built from.
    pub(super) async fn build(
        &self,
        shop: &BuildContext<'_>,
    ) -> Result<(Utf8PathBuf, BuildRecord)> {
        self.check()?;
        shop.require(&self.needs(shop.host.is_root())).await?;
        let names = PACKAGES.map(str::to_owned);
        let packages = Packages {
            mirror: self.mirror,
            suite: &self.table.suite,
            components: &self.table.components,
            names: &names,
            debs: &[],
            allow_stale: self.table.allow_stale.is_some(),
            depth: InstallMode::Unpacked,
            options: &[],
        };
        let date = packages.release_date(shop).await?;
        let (tree, record) = packages.bootstrap(shop, date, "tree.tar").await?;

        shop.events.doing("making the initial RAM file system");
        let disc = shop.path("disc");
        let wanted: Vec<String> = MODULES
            .iter()
            .map(|name| (*name).to_owned())
            .chain(self.table.modules.iter().cloned())
            .collect();
        let folder = disc.clone();
        let boot = shop
            .blocking(move || {
                lay_out(&tree, &wanted, date, &folder)?;
                tree.read("usr/lib/ISOLINUX/isohdpfx.bin")
            })
            .await?;
        fs_err::write(shop.path("isohdpfx.bin"), boot)?;
        let iso = self.disc(shop, &disc, date).await?;
        let file = self.wrapped(shop, iso, date).await?;
        Ok((file, record))
    }

    /// Refuses what the manifest cannot mean.
    fn check(&self) -> Result<()> {
        const FORMS: [ImageFormat; 4] =
            [ImageFormat::Iso, ImageFormat::Ova, ImageFormat::Qcow2, ImageFormat::Raw];
        if !FORMS.contains(&self.format) {
            let what = format!("an appliance cannot be written as {}", self.format);
            return Err(Error::new(Kind::Recipe, what).hint(format!("use one of {}", {
                let names = FORMS.map(ImageFormat::as_str);
                names.join(", ")
            })));
        }
        if !self.table.packages.is_empty() || !self.table.debs.is_empty() {
            let what = "an appliance takes kernel modules, but no further packages";
            return Err(Error::new(Kind::Recipe, what).hint("`kind = \"debian\"` takes packages"));
        }
        Ok(())
    }

    fn needs(&self, is_root: bool) -> Vec<Need> {
        let mut needs = bootstrap::NEEDS.to_vec();
        needs.extend(NEEDS);
        if !is_root {
            needs.extend(bootstrap::NEEDS_AS_USER);
        }
        if self.format == ImageFormat::Qcow2 {
            needs.push(("qemu-img", "qemu-utils"));
        }
        needs
    }

    /// Makes the ISO image; `SOURCE_DATE_EPOCH` dates the volume, an option the files.
    async fn disc(
        &self,
        shop: &BuildContext<'_>,
        folder: &Utf8Path,
        date: Timestamp,
    ) -> Result<Utf8PathBuf> {
        let iso = shop.path("appliance.iso");
        let command = Command::new("xorriso")
            .args(["-as", "mkisofs", "-quiet", "-r", "-V", "NESTLAB", "-o", iso.as_str()])
            .args(["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat"])
            .args(["--set_all_file_dates", &format!("={}", date.as_second())])
            .args(["-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"])
            .args(["-isohybrid-mbr", shop.path("isohdpfx.bin").as_str()])
            .arg(folder.as_str())
            .env("SOURCE_DATE_EPOCH", date.as_second().to_string());
        shop.check(command).await?;
        Ok(iso)
    }

    async fn wrapped(
        &self,
        shop: &BuildContext<'_>,
        iso: Utf8PathBuf,
        date: Timestamp,
    ) -> Result<Utf8PathBuf> {
        match self.format {
            ImageFormat::Qcow2 => {
                let disk = shop.path("appliance.qcow2");
                // One coroutine and no writing out of order: the same disk gives the same file.
                let command = Command::new("qemu-img")
                    .args(["convert", "-m", "1", "-f", "raw", "-O", "qcow2"])
                    .args([iso.as_str(), disk.as_str()]);
                shop.check(command).await?;
                Ok(disk)
            }
            ImageFormat::Ova => {
                let file = shop.path("appliance.ova");
                let (name, to) = (self.name.to_owned(), file.clone());
                shop.blocking(move || ova::write(&name, File::open(iso)?, date, &to)).await?;
                Ok(file)
            }
            // The image is a raw disk as it is.
            _ => Ok(iso),
        }
    }
}

/// Lays out the disc's files in `folder`.
fn lay_out(tree: &TarIndex, modules: &[String], date: Timestamp, folder: &Utf8Path) -> Result<()> {
    let kernel = Kernel::find(tree)?;
    let isolinux = folder.join("isolinux");
    fs_err::create_dir_all(&isolinux)?;
    for (from, to) in [
        ("usr/lib/ISOLINUX/isolinux.bin", "isolinux.bin"),
        ("usr/lib/syslinux/modules/bios/ldlinux.c32", "ldlinux.c32"),
    ] {
        fs_err::write(isolinux.join(to), tree.read(from)?)?;
    }
    fs_err::write(isolinux.join("isolinux.cfg"), ISOLINUX)?;
    fs_err::write(folder.join("vmlinuz"), kernel.image()?)?;
    let epoch = u32::try_from(date.as_second())
        .map_err(|_| Error::internal("a release is dated before 1970 or after 2106"))?;
    let initrd = initrd(tree, &kernel, modules)?.compressed(epoch)?;
    fs_err::write(folder.join("initrd"), initrd)?;
    Ok(())
}

/// Returns the appliance's whole user land.
fn initrd(tree: &TarIndex, kernel: &Kernel<'_>, modules: &[String]) -> Result<Initrd> {
    let mut initrd = Initrd::default();
    for (link, to) in [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib")] {
        initrd.link(link, to);
    }
    initrd.file("usr/bin/busybox", 0o755, tree.read("usr/bin/busybox")?);
    // The kernel runs /init; busybox sees by that name what it is to be.
    initrd.link("init", "bin/busybox");
    for program in PROGRAMS {
        libraries::install(tree, program, &mut initrd)?;
    }
    kernel.install(modules.iter().map(String::as_str), &mut initrd)?;
    for (path, mode, contents) in FILES {
        initrd.file(path, *mode, *contents);
    }
    for (folder, mode) in [
        ("root", 0o700),
        ("root/.ssh", 0o700),
        ("etc/dropbear", 0o700),
        ("var", 0o755),
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
        ("run", 0o755),
        ("tmp", 0o777),
    ] {
        initrd.folder(folder, mode);
    }
    Ok(initrd)
}
