//! What exactly a lab came to: image digests and signature times, package versions in each guest,
//! kernels and hypervisors. Kept beside the recipe, it makes the next lab the same one.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::machines::Machines;
use super::world::World;
use crate::error::{Error, Kind, Result};
use crate::host::{Command, Host};
use crate::image::{Sha256, VerifiedImage};

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
    pub async fn of(world: &World) -> Result<Self> {
        let machines = &world.machines;
        let (mut image, mut guest, mut l0) = (BTreeMap::new(), BTreeMap::new(), String::new());
        for machine in &machines.blueprint().machines {
            let name = machine.name.as_str();
            if let Some(found) = world.image_of(machine)? {
                image.insert(key(&found), LockedImage::of(&found));
            }
            let probe = machines.probe(name).await?;
            let runs_on = format!("{} {}", machine.outer, probe.version);
            match &machine.parent {
                None => l0 = runs_on,
                Some(parent) => {
                    let outer: Option<&mut LockedGuest> = guest.get_mut(parent.as_str());
                    if let Some(outer) = outer {
                        outer.hypervisor = Some(runs_on);
                    }
                }
            }
            if machine.login.is_some() {
                guest.insert(name.to_owned(), LockedGuest::of(machines, name).await?);
            }
        }
        let recipe = world.recipe.name.to_string();
        Ok(Lock { schema: SCHEMA, recipe, image, l0, guest })
    }

    /// Reads a lock file's text; `origin` is what errors call it.
    ///
    /// # Errors
    /// [`Kind::Recipe`] with the place, or if it was written by a newer nestlab.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let lock: Lock = toml::from_str(text).map_err(|error| {
            Error::new(Kind::Recipe, format!("{origin} is not a lock file"))
                .because(error)
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
            .map_err(|error| Error::internal("a lock is not TOML").because(error))?;
        Ok(format!("# Written by `nestlab lock`; `nestlab up --locked` builds just this.\n{body}"))
    }

    /// Returns whether `image` is the one that was locked.
    ///
    /// # Errors
    /// [`Kind::Untrusted`] with both digests if it is not.
    pub fn admits(&self, image: &VerifiedImage) -> Result<()> {
        let key = key(image);
        let Some(locked) = self.image.get(&key) else {
            return Err(Error::new(
                Kind::Recipe,
                format!("the lock does not name the image {key}"),
            )
            .hint("`nestlab lock RECIPE` writes it anew from a lab that is up"));
        };
        if locked.sha256 == image.sha256() {
            return Ok(());
        }
        Err(Error::new(
            Kind::Untrusted,
            format!(
                "{key} {} has SHA-256 {}, and {} {} is locked",
                image.version(),
                image.sha256(),
                locked.version,
                locked.sha256
            ),
        )
        .hint("what was locked cannot be had from there any more; `nestlab lock` pins the new one"))
    }

    /// Returns what differs from `self` to `other`.
    pub fn diff(&self, other: &Lock) -> Diff {
        Diff { old: self.facts(), new: other.facts() }
    }

    /// Every fact of the lock as a line's name and value.
    fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::from([("L0 hypervisor".to_owned(), self.l0.clone())]);
        for (name, image) in &self.image {
            facts.insert(format!("image {name} version"), image.version.clone());
            facts.insert(format!("image {name} sha256"), image.sha256.to_string());
            let signed =
                image.signed_at.map(|time| (format!("image {name} signed"), time.to_string()));
            facts.extend(signed);
        }
        for (name, guest) in &self.guest {
            facts.insert(format!("{name} kernel"), guest.kernel.clone());
            facts.extend(guest.hypervisor.clone().map(|it| (format!("{name} hypervisor"), it)));
            let packages = guest.packages.iter();
            facts.extend(
                packages.map(|(package, version)| {
                    (format!("{name} package {package}"), version.clone())
                }),
            );
        }
        facts
    }
}

impl LockedImage {
    fn of(image: &VerifiedImage) -> Self {
        LockedImage {
            version: image.version().to_owned(),
            sha256: image.sha256(),
            signed_at: image.signed_at(),
        }
    }
}

impl LockedGuest {
    async fn of(machines: &Machines, guest: &str) -> Result<Self> {
        let host = machines.host(guest).await?;
        installed(&*host).await
    }
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
fn key(image: &VerifiedImage) -> String {
    format!("{}.{}", image.name(), image.format())
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
    fn a_lock_of_a_newer_nestlab_is_refused() {
        let text = lock("1", &[]).text().expect("writes").replace("schema = 1", "schema = 2");
        let error = Lock::parse(&text, "demo.lock").expect_err("newer");
        assert_eq!(error.kind(), Kind::Recipe);
        assert!(error.message().contains("schema 2"), "{error}");
    }
}
