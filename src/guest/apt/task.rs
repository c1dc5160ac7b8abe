//! What apt is to do, as data: package names that cannot be options, and the commands a user would type.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::host::{Command, TimeoutScale};

/// How long apt may write nothing, on bare metal. A DKMS build is silent for minutes.
const SILENCE: Duration = Duration::from_secs(600);

/// A Debian package's name, with an architecture (`:amd64`) or version (`=7.2.22`) behind it if need be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct Package(String);

impl Package {
    /// Returns the whole text, as apt takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the version, if there is one.
    pub fn version(&self) -> Option<&str> {
        self.0.split_once('=').map(|(_, version)| version)
    }

    /// Returns the name without the version, as dpkg takes it.
    pub fn name(&self) -> &str {
        self.0.split_once('=').map_or(self.0.as_str(), |(name, _)| name)
    }
}

impl FromStr for Package {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) = text.split_once('=').unwrap_or((text, "0"));
        let (name, architecture) = name.split_once(':').unwrap_or((name, "amd64"));
        let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        // Debian Policy 5.6.1 and 5.6.12.
        let ok = name.len() >= 2
            && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && name.bytes().all(|b| lower(b) || b"+-.".contains(&b))
            // apt reads a `-` or `+` at the end as "remove" or "install".
            && !name.ends_with('-')
            && architecture.bytes().all(|b| lower(b) || b == b'-')
            && version.starts_with(|c: char| c.is_ascii_digit())
            && version.bytes().all(|b| b.is_ascii_alphanumeric() || b".+~:-".contains(&b));
        if ok {
            Ok(Package(text.to_owned()))
        } else {
            Err(format!("`{}` is not the name of a Debian package", text.escape_debug()))
        }
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What apt is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// `apt-get update`: fetch the lists of all sources.
    Update,
    /// `apt-get full-upgrade`: upgrade every package, removing what stands in the way.
    FullUpgrade,
    /// `apt-get install`.
    Install {
        /// The packages.
        packages: Vec<Package>,
        /// Whether what they recommend comes too; else `--no-install-recommends`.
        recommends: bool,
    },
    /// `apt-get install --allow-downgrades`: exactly these versions, older ones too.
    Pin {
        /// The packages, each with its version.
        packages: Vec<Package>,
        /// Packages that are to go.
        removed: Vec<Package>,
    },
}

impl Task {
    /// Returns the task of installing `packages` without what they recommend.
    pub fn install(packages: impl IntoIterator<Item = Package>) -> Self {
        Task::Install { packages: packages.into_iter().collect(), recommends: false }
    }

    /// Returns the task in the imperative: `install virtualbox`.
    pub fn title(&self) -> String {
        match self {
            Task::Update => "update the package lists".to_owned(),
            Task::FullUpgrade => "upgrade all packages".to_owned(),
            Task::Install { packages, .. } => {
                let names: Vec<_> = packages.iter().map(Package::as_str).collect();
                format!("install {}", names.join(" "))
            }
            Task::Pin { packages, removed } => {
                let count = packages.len() + removed.len();
                format!("bring {count} packages to what is locked")
            }
        }
    }

    /// Returns the exact command: what a user would type, and the options that keep it from asking.
    pub fn command(&self, patience: TimeoutScale) -> Command {
        apt_get(patience).args(["-o", "APT::Status-Fd=1"]).args(self.words())
    }

    /// Returns the command that tells what [`Task::command`] would do, and does nothing.
    pub(super) fn simulation(&self) -> Command {
        apt_get(TimeoutScale::NATIVE).arg("--simulate").args(self.words())
    }

    fn words(&self) -> Vec<String> {
        let words = match self {
            // Without the error mode, apt-get exits 0 when a mirror could not be reached.
            Task::Update => vec!["-o", "APT::Update::Error-Mode=any", "update"],
            Task::FullUpgrade => vec!["full-upgrade"],
            Task::Install { packages, recommends } => {
                let option =
                    if *recommends { "--install-recommends" } else { "--no-install-recommends" };
                ["install", option]
                    .into_iter()
                    .chain(packages.iter().map(Package::as_str))
                    .collect()
            }
            Task::Pin { packages, removed } => {
                return ["install", "--no-install-recommends", "--allow-downgrades"]
                    .into_iter()
                    .chain(packages.iter().map(Package::as_str))
                    .map(str::to_owned)
                    // apt's own notation for "remove this one".
                    .chain(removed.iter().map(|package| format!("{}-", package.name())))
                    .collect();
            }
        };
        words.into_iter().map(str::to_owned).collect()
    }
}

/// Returns `apt-get` as root with everything that keeps it from asking questions or giving up early.
pub(super) fn apt_get(patience: TimeoutScale) -> Command {
    let lock = format!("DPkg::Lock::Timeout={}", patience.limit(Duration::from_secs(60)).as_secs());
    unattended(Command::new("apt-get"), patience)
        .args(["--yes", "--quiet"])
        .args(["-o", "Dpkg::Options::=--force-confold"])
        .args(["-o", lock.as_str()])
        .args(["-o", "Acquire::Retries=3"])
}

/// Returns `command` as root, so that no package asks and none restarts what runs in the guest.
pub(super) fn unattended(command: Command, patience: TimeoutScale) -> Command {
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("APT_LISTCHANGES_FRONTEND", "none")
        .env("NEEDRESTART_SUSPEND", "1")
        .env("UCF_FORCE_CONFFOLD", "1")
        .silence(patience.limit(SILENCE))
        .privileged()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str) -> Package {
        name.parse().expect("a package name")
    }

    #[test]
    fn the_commands_are_those_that_a_user_types_with_options_that_keep_them_from_asking() {
        let told = |task: Task| task.command(TimeoutScale::NATIVE).argv().join(" ");
        let common = "apt-get --yes --quiet -o Dpkg::Options::=--force-confold \
                      -o DPkg::Lock::Timeout=60 -o Acquire::Retries=3 -o APT::Status-Fd=1";
        assert_eq!(told(Task::Update), format!("{common} -o APT::Update::Error-Mode=any update"));
        assert_eq!(told(Task::FullUpgrade), format!("{common} full-upgrade"));
        assert_eq!(
            told(Task::install([package("virtualbox")])),
            format!("{common} install --no-install-recommends virtualbox")
        );
        let pin =
            Task::Pin { packages: vec![package("nl=2")], removed: vec![package("old:amd64")] };
        let words = "install --no-install-recommends --allow-downgrades nl=2 old:amd64-";
        assert_eq!(told(pin), format!("{common} {words}"));
    }

    #[test]
    fn no_question_is_asked_through_sudo_either() {
        let argv = Task::Update.command(TimeoutScale::NATIVE).argv_on(false);
        let at = |arg: &str| argv.iter().position(|a| a == arg).expect("is there");
        assert!(at("DEBIAN_FRONTEND=noninteractive") < at("apt-get"));
    }

    #[test]
    fn a_package_name_cannot_be_an_option_a_removal_or_a_file() {
        for bad in [
            "",
            "-y",
            "--yes",
            "x",
            "a b",
            "linux-headers-amd64-",
            "./x.deb",
            "/x",
            "A",
            "a;b",
            "a=",
        ] {
            assert!(bad.parse::<Package>().is_err(), "{bad:?}");
        }
        for good in
            ["g++", "libc6:amd64", "virtualbox=7.2.22-dfsg-2", "linux-headers-6.12.1+deb13-amd64"]
        {
            assert_eq!(package(good).as_str(), good);
        }
        assert_eq!(package("virtualbox=7.2.22-dfsg-2").name(), "virtualbox");
    }
}
