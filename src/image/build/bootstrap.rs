//! Packages from the Debian archive, made into a tree by mmdebstrap. Only what Debian's archive keys
//! sign gets in.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::context::{BuildContext, Need};
use super::mirror::Mirror;
use super::tar_index::TarIndex;
use crate::error::{Error, Kind, Result};
use crate::host::{Command, Output};

/// Debian's archive keys, the only ones that count.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Downloads a file as apt itself would: by its proxies and methods.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// What [`Packages::bootstrap`] needs.
pub(super) const NEEDS: [Need; 3] =
    [("mmdebstrap", "mmdebstrap"), (APT_HELPER, "apt"), (KEYRING, "debian-archive-keyring")];
/// What it needs beside, when a user who is not root runs it.
pub(super) const NEEDS_AS_USER: [Need; 1] = [("newuidmap", "uidmap")];

/// What an image was built from, for `nestlab lock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRecord {
    /// The archive's suite, such as `sid`.
    pub suite: String,
    /// When that suite was published, as its signed release file says.
    pub release_date: Timestamp,
    /// Every package in the image, with its version.
    pub packages: BTreeMap<String, String>,
}

/// How far packages are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InstallMode {
    /// Unpacked, with what they depend on; nothing of them is run.
    Unpacked,
    /// Installed into a minimal system.
    Installed,
}

/// Which packages, and from where.
pub(super) struct Packages<'a> {
    pub(super) mirror: &'a Mirror,
    pub(super) suite: &'a str,
    pub(super) components: &'a [String],
    pub(super) names: &'a [String],
    /// Package files of this machine, installed beside.
    pub(super) debs: &'a [Utf8PathBuf],
    /// Take a release whose validity is over; its signature counts as before.
    pub(super) allow_stale: bool,
    pub(super) depth: InstallMode,
    /// Further options, such as hooks.
    pub(super) options: &'a [&'a str],
}

impl Packages<'_> {
    /// Returns when the suite was published, as the mirror says; not verified yet.
    ///
    /// It is asked for beforehand because every file that the build makes is dated so.
    pub(super) async fn release_date(&self, shop: &BuildContext<'_>) -> Result<Timestamp> {
        shop.events.doing(format!("looking for {} on the Debian mirror", self.suite));
        let path = shop.path("InRelease");
        let url = format!("{}/dists/{}/InRelease", self.mirror.archive(), self.suite);
        let command = Command::new(APT_HELPER).args(["download-file", url.as_str(), path.as_str()]);
        let output = shop.run(command.clone()).await?;
        if !output.exit.success() {
            return Err(output
                .error(&command)
                .context(format!("{} cannot be read from {}", self.suite, self.mirror))
                .with_kind(Kind::Network)
                .on_host(shop.host.name()));
        }
        date_of(&String::from_utf8_lossy(&fs_err::read(&path)?), self.suite)
    }

    /// Makes the tree as the tar archive `name` in the workshop, everything in it dated `date` or earlier.
    pub(super) async fn bootstrap(
        &self,
        shop: &BuildContext<'_>,
        date: Timestamp,
        name: &str,
    ) -> Result<(TarIndex, BuildRecord)> {
        let target = shop.path(name);
        let command = self.command(shop, date, &target);
        let output = shop.run(command.clone()).await?;
        if !output.exit.success() {
            return Err(explained(output, &command).on_host(shop.host.name()));
        }
        let tree = shop.blocking(move || TarIndex::open(&target)).await?;
        let record = self.record(&tree)?;
        if record.release_date != date {
            return Err(Error::new(
                Kind::Network,
                "the Debian mirror was updated during the build",
            )
            .hint("run it again"));
        }
        Ok((tree, record))
    }

    fn command(&self, shop: &BuildContext<'_>, date: Timestamp, target: &Utf8Path) -> Command {
        let (variant, stale) = (
            match self.depth {
                InstallMode::Unpacked => "extract",
                InstallMode::Installed => "minbase",
            },
            self.allow_stale.then_some("--aptopt=Acquire::Check-Valid-Until \"false\""),
        );
        let command = Command::new("mmdebstrap")
            // Namespaces also as root: whatever ends the build, no mount outlives it.
            .args(["--mode=unshare", "--architectures=amd64", "--format=tar"])
            .arg(format!("--variant={variant}"))
            .arg("--aptopt=Acquire::Languages \"none\"")
            // The lists' release file and the packages' names are read for the record.
            .arg("--skip=cleanup/apt")
            .args(stale)
            .args(self.options.iter().copied())
            .args(self.names.iter().map(|name| format!("--include={name}")))
            .args(self.debs.iter().map(|deb| format!("--include={deb}")))
            .args([self.suite, target.as_str()])
            .args(self.source_lines())
            .env("SOURCE_DATE_EPOCH", date.as_second().to_string());
        let command = if self.debs.is_empty() {
            command
        } else {
            command
                .arg("--hook-dir=/usr/share/mmdebstrap/hooks/file-mirror-automount")
                // Exactly these files, also where the archive has a newer version of an essential one.
                .arg("--aptopt=APT::Get::Allow-Downgrades \"true\"")
        };
        // Root's scratch is ours, and goes with it; a user's must be open to the user's other ids.
        if shop.host.is_root() { command.env("TMPDIR", shop.folder.as_str()) } else { command }
    }

    /// Returns the lines of the tree's own sources.list.
    fn source_lines(&self) -> Vec<String> {
        let components = self.components.join(" ");
        let line = |archive: &str, suite: &str| {
            format!("deb [signed-by={KEYRING}] {archive} {suite} {components}")
        };
        let mut lines = vec![line(self.mirror.archive(), self.suite)];
        // Testing and unstable have no updates beside themselves.
        let moving = ["sid", "unstable", "testing", "experimental"];
        if !moving.contains(&self.suite) {
            lines.push(line(self.mirror.archive(), &format!("{}-updates", self.suite)));
            if let Some(security) = self.mirror.security() {
                lines.push(line(security, &format!("{}-security", self.suite)));
            }
        }
        lines
    }

    fn record(&self, tree: &TarIndex) -> Result<BuildRecord> {
        let packages = match self.depth {
            InstallMode::Unpacked => tree
                .under("var/cache/apt/archives")
                .filter_map(|path| package_of_file(path.rsplit('/').next()?))
                .collect(),
            InstallMode::Installed => {
                installed(&String::from_utf8_lossy(&tree.read("var/lib/dpkg/status")?))
            }
        };
        let suite = format!("_dists_{}_InRelease", self.suite);
        let release = tree
            .under("var/lib/apt/lists")
            .find(|path| path.ends_with(&suite))
            .ok_or_else(|| Error::internal("apt kept no release file of the suite"))?;
        let release_date = date_of(&String::from_utf8_lossy(&tree.read(release)?), self.suite)?;
        Ok(BuildRecord { suite: self.suite.to_owned(), release_date, packages })
    }
}

/// Returns the `Date` of a release file.
fn date_of(release: &str, suite: &str) -> Result<Timestamp> {
    release
        .lines()
        .find_map(|line| line.strip_prefix("Date:"))
        .and_then(|date| {
            // RFC 2822 wants an offset where Debian writes the zone's name.
            let date = date.trim().replace("UTC", "+0000");
            jiff::fmt::rfc2822::parse(&date).ok().map(|zoned| zoned.timestamp())
        })
        .ok_or_else(|| {
            Error::new(Kind::Network, format!("the mirror's release file of {suite} has no date"))
        })
}

/// Returns name and version of a package from its file's name in apt's cache: `name_version_arch.deb`,
/// the version with `%3a` for a colon.
fn package_of_file(file: &str) -> Option<(String, String)> {
    let (name, rest) = file.strip_suffix(".deb")?.split_once('_')?;
    let (version, _) = rest.rsplit_once('_')?;
    Some((name.to_owned(), version.replace("%3a", ":")))
}

/// Returns the installed packages in dpkg's status file.
fn installed(status: &str) -> BTreeMap<String, String> {
    status
        .split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            (field("Status")? == "install ok installed")
                .then(|| Some((field("Package")?.to_owned(), field("Version")?.to_owned())))?
        })
        .collect()
}

/// Returns mmdebstrap's failure with its kind and with what can be done about it.
fn explained(output: Output, command: &Command) -> Error {
    let said = output.error_text();
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let error = output.error(command);
    if says(&[
        "NO_PUBKEY",
        "is not signed",
        "Missing key",
        "BADSIG",
        "EXPKEYSIG",
        "invalid signature",
    ]) {
        error
            .with_kind(Kind::Untrusted)
            .context("the archive's signature does not hold")
            .hint("a newer `debian-archive-keyring` may have the key: apt-get install debian-archive-keyring")
    } else if says(&["is expired", "Release file expired"]) {
        error.with_kind(Kind::Untrusted).context("the mirror's release file is past its Valid-Until").hint(
            "if the mirror is known to be behind, write `allow-stale = \"why\"` into the manifest's [build]; signatures are checked either way",
        )
    } else if says(&["Unable to locate package", "has no installation candidate"]) {
        error.with_kind(Kind::Recipe).context("a package is not in this suite and its components")
    } else if says(&[
        "Could not resolve",
        "Could not connect",
        "Failed to fetch",
        "Unable to fetch",
        "Connection failed",
    ]) {
        error.with_kind(Kind::Network).context("the Debian mirror does not answer")
    } else if says(&["newuidmap", "/etc/subuid", "user namespaces"]) {
        error.with_kind(Kind::HostCannot).hint(
            "a user needs a range of ids (`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 NAME`) and unprivileged user namespaces; root needs neither",
        )
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Exit;

    #[test]
    fn a_cached_packages_name_gives_its_version() {
        assert_eq!(
            package_of_file("isolinux_3%3a6.04~git2019_all.deb"),
            Some(("isolinux".to_owned(), "3:6.04~git2019".to_owned()))
        );
        assert_eq!(package_of_file("lock"), None);
    }

    #[test]
    fn only_what_is_installed_is_recorded() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1:2-3\n\n\
                      Package: b\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                      Package: c\nStatus: install ok installed\nDescription: x\n y\nVersion: 4\n";
        let found: Vec<_> = installed(status).into_iter().collect();
        assert_eq!(found, [("a".into(), "1:2-3".into()), ("c".into(), "4".into())]);
    }

    #[test]
    fn a_release_date_is_read_as_debian_writes_it() {
        let date = date_of("Origin: Debian\nDate: Fri, 30 Oct 2026 08:08:01 UTC\n", "sid").unwrap();
        assert_eq!(date.to_string(), "2026-10-30T08:08:01Z");
        assert_eq!(date_of("Origin: Debian\n", "sid").unwrap_err().kind(), Kind::Network);
    }

    #[test]
    fn mmdebstraps_failures_are_told_apart_by_kind() {
        for (said, kind) in [
            (
                "E: The following signatures couldn't be verified: NO_PUBKEY 6ED0E7B82643E131",
                Kind::Untrusted,
            ),
            (
                "E: Release file for http://m/InRelease is expired (invalid since 9d).",
                Kind::Untrusted,
            ),
            ("E: Unable to locate package virtualbox", Kind::Recipe),
            ("E: Failed to fetch http://m/x.deb  Could not connect to m:80", Kind::Network),
            ("E: invalid /etc/subuid", Kind::HostCannot),
            ("E: something else", Kind::Failed),
        ] {
            let output = Output {
                exit: Exit::Code(25),
                stdout: Vec::new(),
                stderr: said.as_bytes().to_vec(),
            };
            assert_eq!(explained(output, &Command::new("mmdebstrap")).kind(), kind, "{said}");
        }
    }
}
