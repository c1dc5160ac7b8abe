//! A guest built by a lock: its packages brought to the locked versions, and the whole held to the lock.

use async_trait::async_trait;

use super::action::Action;
use super::context::{GuestRef, unless_unreachable};
use super::lock::{self, LockedGuest};
use super::step::{Check, Context};
use crate::error::{Error, Kind, Result};
use crate::guest::apt::{self, Package, Task};
use crate::host::Host;

/// What to do about a lock that cannot be kept.
const LOCK_ANEW: &str = "without --locked the newest is built; `nestlab lock` then pins that";

/// Brings every package to the version that a lock names; instead of an upgrade.
pub(super) struct Pin {
    pub(super) guest: GuestRef,
    pub(super) locked: LockedGuest,
    /// Whether packages that are not locked go; never in a VM that existed before.
    pub(super) removes: bool,
}

impl Pin {
    /// Returns the packages to install, each with its version, and those to remove.
    async fn differing(&self, host: &dyn Host) -> Result<(Vec<Package>, Vec<Package>)> {
        let (wrong, surplus) = differing(&self.locked, &lock::installed(host).await?)?;
        Ok((wrong, if self.removes { surplus } else { Vec::new() }))
    }
}

#[async_trait]
impl Action for Pin {
    async fn check(&self, context: &Context) -> Result<Check> {
        let look = async {
            let session = self.guest.session(context).await?;
            let (wrong, surplus) = self.differing(session.exec().host).await?;
            Ok(match (wrong.as_slice(), surplus.as_slice()) {
                ([], []) => Check::Satisfied,
                ([only], []) => Check::Needed(format!("{only} is locked")),
                ([], [only]) => Check::Needed(format!("{only} is there, and not in the lock")),
                _ => Check::Needed(format!(
                    "{} packages are not as locked",
                    wrong.len() + surplus.len()
                )),
            })
        };
        unless_unreachable(look.await)
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let session = self.guest.session(context).await?;
        let exec = session.exec();
        let (packages, removed) = self.differing(exec.host).await?;
        let missing = apt::missing(exec, &packages).await?;
        if let Some(first) = missing.first() {
            let others = match missing.len() - 1 {
                0 => String::new(),
                others => format!(", and {others} more"),
            };
            let all: Vec<_> = missing.iter().map(ToString::to_string).collect();
            return Err(Error::failed(format!("what is locked cannot be had: {first}{others}"))
                .on_host(exec.host.name())
                .tail(all.join("\n").as_bytes())
                .hint("a mirror keeps only the newest versions: name one that keeps all (a snapshot) as the recipe's `mirror`")
                .hint(LOCK_ANEW));
        }
        apt::apply(exec, &Task::Pin { packages, removed }).await
    }
}

/// Returns the packages that are not as locked, each with the locked version, and those that are not locked.
fn differing(locked: &LockedGuest, now: &LockedGuest) -> Result<(Vec<Package>, Vec<Package>)> {
    let package = |text: String| {
        text.parse::<Package>().map_err(|error| Error::new(Kind::Recipe, error).context("the lock"))
    };
    // `all` is an architecture of packages, not one that apt takes.
    let plain = |name: &String| name.strip_suffix(":all").unwrap_or(name).to_owned();
    let wrong = locked
        .packages
        .iter()
        .filter(|(name, version)| now.packages.get(*name) != Some(*version))
        .map(|(name, version)| package(format!("{}={version}", plain(name))));
    let surplus = now.packages.keys().filter(|name| !locked.packages.contains_key(*name));
    Ok((
        wrong.collect::<Result<_>>()?,
        surplus.map(|name| package(plain(name))).collect::<Result<_>>()?,
    ))
}

/// Holds a guest to its lock: kernel, hypervisor, packages. It changes nothing.
pub(super) struct AsLocked {
    pub(super) guest: GuestRef,
    pub(super) locked: LockedGuest,
}

impl AsLocked {
    /// Returns what differs, a line each.
    async fn differences(&self, context: &Context) -> Result<Vec<String>> {
        let session = self.guest.session(context).await?;
        let mut now = lock::installed(session.exec().host).await?;
        if self.locked.packages == now.packages {
            now.hypervisor =
                lock::hypervisor(&self.guest.lab.machines, Some(self.guest.name.as_str())).await?;
        } else {
            // It may not even be installed.
            now.hypervisor.clone_from(&self.locked.hypervisor);
        }
        Ok(self.locked.diff(&now).to_string().lines().map(str::to_owned).collect())
    }
}

#[async_trait]
impl Action for AsLocked {
    async fn check(&self, context: &Context) -> Result<Check> {
        unless_unreachable(self.differences(context).await.map(|lines| match lines.as_slice() {
            [] => Check::Satisfied,
            [only] => Check::Needed(only.clone()),
            several => Check::Needed(format!("{} things are not as locked", several.len())),
        }))
    }

    async fn apply(&self, context: &Context) -> Result<()> {
        let lines = self.differences(context).await?;
        let guest = &self.guest.name;
        Err(Error::failed(format!("{guest} is not as locked: {}", lines.join("; ")))
            .on_host(guest)
            .tail(lines.join("\n").as_bytes())
            .hint(LOCK_ANEW))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(packages: &[(&str, &str)]) -> LockedGuest {
        let packages = packages.iter().map(|(name, version)| ((*name).into(), (*version).into()));
        LockedGuest { kernel: "7".into(), hypervisor: None, packages: packages.collect() }
    }

    #[test]
    fn what_differs_from_a_lock_is_installed_or_removed() {
        let locked = guest(&[("aa:amd64", "1"), ("bb:all", "2"), ("cc:all", "3")]);
        let now = guest(&[("aa:amd64", "1"), ("bb:all", "1"), ("old:amd64", "9")]);
        let (wrong, surplus) = differing(&locked, &now).expect("are packages");
        let texts =
            |packages: &[Package]| packages.iter().map(Package::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&wrong), ["bb=2", "cc=3"]);
        assert_eq!(texts(&surplus), ["old:amd64"]);
    }

    #[test]
    fn a_lock_cannot_smuggle_an_option_into_apt() {
        let locked = guest(&[("--reinstall:all", "1")]);
        assert_eq!(differing(&locked, &guest(&[])).expect_err("no package").kind(), Kind::Recipe);
    }
}
