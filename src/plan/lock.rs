//! What exactly a lab came to: image digests and signature times, package versions in each guest,
//! kernels and hypervisors. Kept beside the recipe, it makes the next lab the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::context::LabContext;
use super::machines::Machines;
use crate::error::{Error, Kind, Result};
use crate::host::{Command, Host};
use crate::image::build::BuildRecord;
use crate::image::store::Provenance;
use crate::image::{ImageFormat, Sha256, VerifiedImage};
use crate::recipe::{GuestName, ImageName};

/// The lock format's number.
const SCHEMA: u32 = 1;

/// Prints every installed package with its version, and the running kernel's release in front.
const INSTALLED: &str = r#"
uname -r
command -v dpkg-query >/dev/null || exit 0
dpkg-query -W -f '${db:Status-Status} ${Package}:${Architecture} ${Version}\n'
"#;

/// A lab, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Lock {
    schema: u32,
    /// The recipe's name.
    pub recipe: String,
    /// The images, by the name and format that they are kept under.
    pub image: BTreeMap<String, LockedImage>,
    /// What runs the outermost guests, such as `qemu 10.0.2`.
    pub l0: String,
    /// The release of the kernel that runs on L0.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub l0_kernel: String,
    /// The guests that were entered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub guest: BTreeMap<String, LockedGuest>,
}

/// An image, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LockedImage {
    /// Its version.
    pub version: String,
    /// Its file's digest.
    pub sha256: Sha256,
    /// When it was signed, if it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signed_at: Option<Timestamp>,
    /// The packages that it was built from, if it was built here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub packages: BTreeMap<String, String>,
}

/// What runs in a guest, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LockedGuest {
    /// The running kernel's release.
    pub kernel: String,
    /// What it runs for its own guests, such as `virtualbox 7.2.22`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hypervisor: Option<String>,
    /// Its packages' versions, by `name:architecture`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub packages: BTreeMap<String, String>,
}

impl Lock {
    /// Looks at a lab that is up and returns what it came to.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] if a guest that is entered over SSH is not up.
    pub async fn of(lab: &LabContext) -> Result<Self> {
        let machines = &lab.machines;
        let (mut image, mut guest) = (BTreeMap::new(), BTreeMap::new());
        for machine in &machines.blueprint().machines {
            let name = machine.name.as_str();
            if let Some(found) = lab.image_of(machine)? {
                image.insert(key(found.name(), found.format()), LockedImage::of(&found));
            }
            if machine.login.is_some() {
                let mut locked = installed(&*machines.host(name).await?).await?;
                locked.hypervisor = hypervisor(machines, Some(name)).await?;
                guest.insert(name.to_owned(), locked);
            }
        }
        let recipe = lab.recipe.name.to_string();
        let (l0, l0_kernel) = of_l0(machines).await?;
        Ok(Lock { schema: SCHEMA, recipe, image, l0, l0_kernel, guest })
    }

    /// Reads a lock file's text; `origin` is what errors call it.
    ///
    /// # Errors
    /// [`Kind::Recipe`] with the place, or if it was written by a newer nestlab.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let lock: Lock = toml::from_str(text).map_err(|error| {
            Error::new(Kind::Recipe, format!("{origin} is not a lock file"))
                .with_source(error)
                .hint("`nestlab lock RECIPE` writes it anew from a lab that is up")
        })?;
        if lock.schema > SCHEMA {
            return Err(Error::new(
                Kind::Recipe,
                format!("{origin} has schema {}, and this nestlab reads {SCHEMA}", lock.schema),
            )
            .hint("use a newer nestlab"));
        }
        Ok(lock)
    }

    /// Returns the lock file's text.
    pub fn text(&self) -> Result<String> {
        let body = toml::to_string(self)
            .map_err(|error| Error::internal("a lock is not TOML").with_source(error))?;
        Ok(format!("# Written by `nestlab lock`; `nestlab up --locked` builds just this.\n{body}"))
    }

    /// Returns what is locked of `guest`.
    ///
    /// # Errors
    /// [`Kind::Recipe`] if the lock does not name it.
    pub fn guest(&self, guest: &str) -> Result<&LockedGuest> {
        self.guest.get(guest).ok_or_else(|| self.does_not_name(&format!("guest {guest}")))
    }

    /// Returns what is locked of the image called `name` in `format`.
    ///
    /// # Errors
    /// [`Kind::Recipe`] if the lock does not name it.
    pub fn image(&self, name: &ImageName, format: ImageFormat) -> Result<&LockedImage> {
        let key = key(name, format);
        self.image.get(&key).ok_or_else(|| self.does_not_name(&format!("image {key}")))
    }

    fn does_not_name(&self, what: &str) -> Error {
        Error::new(Kind::Recipe, format!("the lock of {} does not name the {what}", self.recipe))
            .hint("the recipe has changed since: `nestlab lock RECIPE` writes the lock anew from a lab that is up")
    }

    /// Returns whether `image` is the one that was locked.
    ///
    /// # Errors
    /// If it is not, [`Kind::Untrusted`] with both digests for one that was downloaded; for one that was
    /// built here [`Kind::Failed`] with the packages that have other versions now, if it is these.
    pub fn admits(&self, image: &VerifiedImage) -> Result<()> {
        let locked = self.image(image.name(), image.format())?;
        if locked.sha256 == image.sha256() {
            return Ok(());
        }
        let found = LockedImage::of(image);
        let (name, diff) = (image.name(), locked.diff(&found));
        let lines: Vec<String> = diff.to_string().lines().map(str::to_owned).collect();
        let built = matches!(image.provenance(), Provenance::Built { .. });
        let (kind, why) = locked.refuses(&found, built);
        let (was, digest) = (&locked.version, locked.sha256);
        let message =
            format!("what is locked cannot be had: {name} {was}, SHA-256 {digest}: {why}");
        Err(Error::new(kind, message)
            .tail(lines.join("\n").as_bytes())
            .hint("without --locked the newest is used; `nestlab lock` then pins that"))
    }

    /// Returns what L0 has other than when the lock was written, a line each. nestlab does not change it.
    ///
    /// # Errors
    /// Those of L0.
    pub async fn differs_at_l0(&self, machines: &Machines) -> Result<Vec<String>> {
        let (l0, l0_kernel) = of_l0(machines).await?;
        let known = [(&self.l0, l0), (&self.l0_kernel, l0_kernel)];
        let differ = known.into_iter().filter(|(old, new)| !old.is_empty() && *old != new);
        Ok(differ.map(|(old, new)| format!("{old} is locked, and L0 has {new}")).collect())
    }

    /// Returns what differs from `self` to `other`.
    pub fn diff(&self, other: &Lock) -> Diff {
        Diff { old: self.facts(), new: other.facts() }
    }

    /// Every fact of the lock as a line's name and value.
    fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::from([("L0 hypervisor".to_owned(), self.l0.clone())]);
        if !self.l0_kernel.is_empty() {
            facts.insert("L0 kernel".to_owned(), self.l0_kernel.clone());
        }
        for (name, image) in &self.image {
            let of_image = image.facts().into_iter();
            facts.extend(of_image.map(|(fact, value)| (format!("image {name} {fact}"), value)));
        }
        for (name, guest) in &self.guest {
            let of_guest = guest.facts().into_iter();
            facts.extend(of_guest.map(|(fact, value)| (format!("{name} {fact}"), value)));
        }
        facts
    }
}

impl LockedImage {
    fn of(image: &VerifiedImage) -> Self {
        let packages = match image.provenance() {
            Provenance::Built { record } => BuildRecord::deserialize(record).ok(),
            _ => None,
        };
        LockedImage {
            version: image.version().to_owned(),
            sha256: image.sha256(),
            signed_at: image.signed_at(),
            packages: packages.map(|record| record.packages).unwrap_or_default(),
        }
    }

    fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = of_packages(&self.packages);
        facts.insert("version".to_owned(), self.version.clone());
        facts.insert("sha256".to_owned(), self.sha256.to_string());
        facts.extend(self.signed_at.map(|time| ("signed".to_owned(), time.to_string())));
        facts
    }

    fn diff(&self, other: &Self) -> Diff {
        Diff { old: self.facts(), new: other.facts() }
    }

    /// Returns why `found` is not what is locked, though it has the name.
    fn refuses(&self, found: &Self, built: bool) -> (Kind, String) {
        if !built {
            return (Kind::Untrusted, format!("SHA-256 {} is there now", found.sha256));
        }
        let packages = Diff { old: of_packages(&self.packages), new: of_packages(&found.packages) };
        let why = match packages.to_string().lines().count() {
            0 => "this nestlab builds it otherwise, from the same packages".to_owned(),
            1 => "the archive has another version of one of its packages now".to_owned(),
            count => format!("the archive has other versions of {count} of its packages now"),
        };
        (Kind::Failed, why)
    }
}

impl LockedGuest {
    fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = of_packages(&self.packages);
        facts.insert("kernel".to_owned(), self.kernel.clone());
        facts.extend(self.hypervisor.clone().map(|version| ("hypervisor".to_owned(), version)));
        facts
    }

    /// Returns what differs from `self` to `other`.
    pub(super) fn diff(&self, other: &Self) -> Diff {
        Diff { old: self.facts(), new: other.facts() }
    }
}

fn of_packages(packages: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    packages.iter().map(|(name, version)| (format!("package {name}"), version.clone())).collect()
}

/// Returns what L0 runs the outermost guests with, and its kernel's release.
async fn of_l0(machines: &Machines) -> Result<(String, String)> {
    let hypervisor = hypervisor(machines, None).await?.unwrap_or_default();
    let kernel = machines.l0().check(&Command::new("uname").arg("-r")).await?.text();
    Ok((hypervisor, kernel.trim().to_owned()))
}

/// Returns what `host` (`None`: L0) runs guests with, if it has any; more than one hypervisor with commas.
///
/// # Errors
/// Those of the hypervisors' probes.
pub(super) async fn hypervisor(machines: &Machines, host: Option<&str>) -> Result<Option<String>> {
    let mut found = BTreeSet::new();
    for machine in &machines.blueprint().machines {
        if machine.parent.as_ref().map(GuestName::as_str) == host {
            let probe = machines.probe(machine.name.as_str()).await?;
            found.insert(format!("{} {}", machine.outer, probe.version));
        }
    }
    let found: Vec<String> = found.into_iter().collect();
    Ok((!found.is_empty()).then(|| found.join(", ")))
}

/// Returns the kernel and the packages of `host`.
pub(super) async fn installed(host: &dyn Host) -> Result<LockedGuest> {
    let answer = host.check(&Command::new("sh").args(["-c", INSTALLED])).await?.text();
    let mut lines = answer.lines();
    let kernel = lines.next().unwrap_or_default().trim().to_owned();
    let packages = lines.filter_map(|line| {
        let mut words = line.strip_prefix("installed ")?.split(' ');
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    });
    Ok(LockedGuest { kernel, hypervisor: None, packages: packages.collect() })
}

/// The name that an image has in a lock.
fn key(name: &ImageName, format: ImageFormat) -> String {
    format!("{name}.{format}")
}

/// What differs between two locks; its `Display` is for reading, a line a difference.
#[derive(Debug)]
pub struct Diff {
    old: BTreeMap<String, String>,
    new: BTreeMap<String, String>,
}

impl Diff {
    /// Returns whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.old == self.new
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, old) in &self.old {
            match self.new.get(name) {
                None => writeln!(f, "- {name}: {old}")?,
                Some(new) if new != old => writeln!(f, "~ {name}: {old} → {new}")?,
                Some(_) => {}
            }
        }
        for (name, new) in self.new.iter().filter(|(name, _)| !self.old.contains_key(*name)) {
            writeln!(f, "+ {name}: {new}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(version: &str, packages: &[(&str, &str)]) -> Lock {
        let image = LockedImage {
            version: version.to_owned(),
            sha256: Sha256::from_bytes([7; 32]),
            signed_at: None,
            packages: BTreeMap::new(),
        };
        let pair = |(name, version): &(&str, &str)| ((*name).to_owned(), (*version).to_owned());
        let guest = LockedGuest {
            kernel: "7.2.13-amd64".to_owned(),
            hypervisor: Some("virtualbox 7.2.22".to_owned()),
            packages: packages.iter().map(pair).collect(),
        };
        Lock {
            schema: SCHEMA,
            recipe: "demo".to_owned(),
            image: BTreeMap::from([("a.ova".to_owned(), image)]),
            l0: "qemu 10.0.2".to_owned(),
            l0_kernel: "6.12.41".to_owned(),
            guest: BTreeMap::from([("l1".to_owned(), guest)]),
        }
    }

    #[test]
    fn a_lock_reads_what_it_writes() {
        let lock = lock("1", &[("libc6:amd64", "2.41-1"), ("base-files:amd64", "13")]);
        let text = lock.text().expect("writes");
        assert_eq!(Lock::parse(&text, "demo.lock").expect("reads"), lock);
        assert!(text.contains("[guest.l1.packages]"), "{text}");
    }

    #[test]
    fn the_difference_of_two_locks_is_a_line_a_fact() {
        let (old, new) = (
            lock("1", &[("a:all", "1"), ("b:all", "1")]),
            lock("2", &[("a:all", "2"), ("c:all", "1")]),
        );
        assert!(old.diff(&old.clone()).is_empty());
        let expected = "~ image a.ova version: 1 → 2\n~ l1 package a:all: 1 → 2\n\
                        - l1 package b:all: 1\n+ l1 package c:all: 1\n";
        assert_eq!(old.diff(&new).to_string(), expected);
    }

    #[test]
    fn an_image_that_is_not_the_locked_one_is_refused_with_what_made_it_another() {
        let image = |digest: u8, packages: &[(&str, &str)]| LockedImage {
            version: "1".to_owned(),
            sha256: Sha256::from_bytes([digest; 32]),
            signed_at: None,
            packages: packages.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        };
        let locked = image(1, &[("libc6", "1"), ("dpkg", "1")]);
        let why = |found: &[(&str, &str)]| locked.refuses(&image(2, found), true);
        let (same, one, both) = (
            why(&[("libc6", "1"), ("dpkg", "1")]),
            why(&[("libc6", "2"), ("dpkg", "1")]),
            why(&[("libc6", "2"), ("dpkg", "2")]),
        );
        assert!(same.1.contains("nestlab builds it otherwise"), "{same:?}");
        assert!(one.1.contains("another version of one"), "{one:?}");
        assert!(both.1.contains("other versions of 2"), "{both:?}");
        assert_eq!((same.0, one.0, both.0), (Kind::Failed, Kind::Failed, Kind::Failed));
        assert_eq!(locked.refuses(&image(2, &[]), false).0, Kind::Untrusted);
    }

    #[test]
    fn what_a_lock_does_not_name_is_not_built_as_it_comes() {
        let lock = lock("1", &[]);
        assert!(lock.guest("l1").is_ok());
        let error = lock.guest("l2").expect_err("is not in it");
        assert_eq!(error.kind(), Kind::Recipe);
        assert!(error.message().contains("does not name the guest l2"), "{error}");
        let name = "a".parse().expect("a name");
        assert!(lock.image(&name, ImageFormat::Ova).is_ok());
        assert!(lock.image(&name, ImageFormat::Raw).is_err());
    }

    #[test]
    fn a_guest_differs_from_its_lock_in_kernel_hypervisor_and_packages() {
        let locked = lock("1", &[("a:all", "1")]).guest["l1"].clone();
        let now = LockedGuest {
            kernel: "7.2.14-amd64".to_owned(),
            hypervisor: Some("virtualbox 7.2.24".to_owned()),
            packages: BTreeMap::from([("a:all".to_owned(), "2".to_owned())]),
        };
        let expected = "~ hypervisor: virtualbox 7.2.22 → virtualbox 7.2.24\n\
                        ~ kernel: 7.2.13-amd64 → 7.2.14-amd64\n~ package a:all: 1 → 2\n";
        assert_eq!(locked.diff(&now).to_string(), expected);
    }

    #[test]
    fn a_lock_of_a_newer_nestlab_is_refused() {
        let text = lock("1", &[]).text().expect("writes").replace("schema = 1", "schema = 2");
        let error = Lock::parse(&text, "demo.lock").expect_err("newer");
        assert_eq!(error.kind(), Kind::Recipe);
        assert!(error.message().contains("schema 2"), "{error}");
    }
}
