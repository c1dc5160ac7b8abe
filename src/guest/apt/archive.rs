//! What the guest's repositories have, as its package lists tell.

use std::collections::BTreeMap;
use std::fmt;

use super::Package;
use crate::error::Result;
use crate::guest::ExecContext;
use crate::host::Command;

/// A package's version that no repository has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingVersion {
    /// The package, with the version.
    pub package: Package,
    /// The versions that there are, as apt orders them.
    pub instead: Vec<String>,
}

impl fmt::Display for MissingVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.package.version().unwrap_or_default();
        write!(f, "{} {version} (the archive has ", self.package.name())?;
        match self.instead.as_slice() {
            [] => f.write_str("none)"),
            versions => write!(f, "{})", versions.join(", ")),
        }
    }
}

/// Returns those of `packages`, each with a version, that no repository of the guest has.
///
/// # Errors
/// Those of the host.
pub async fn missing(exec: ExecContext<'_>, packages: &[Package]) -> Result<Vec<MissingVersion>> {
    if packages.is_empty() {
        return Ok(Vec::new());
    }
    let ask = Command::new("apt-cache").arg("madison").args(packages.iter().map(Package::name));
    let answer = exec.host.check(&ask).await?.text();
    let there = versions(&answer);
    let missing = packages.iter().filter_map(|package| {
        let name = package.name();
        // The system's own architecture is left out there.
        let plain = name.strip_suffix(":amd64").unwrap_or(name);
        let instead = there.get(name).or_else(|| there.get(plain)).cloned().unwrap_or_default();
        let has = instead.iter().any(|version| package.version() == Some(version));
        (!has).then(|| MissingVersion { package: package.clone(), instead })
    });
    Ok(missing.collect())
}

/// Reads `apt-cache madison`: lines of `NAME | VERSION | SOURCE`.
fn versions(text: &str) -> BTreeMap<&str, Vec<String>> {
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.split('|').map(str::trim);
        if let (Some(name), Some(version)) = (fields.next(), fields.next()) {
            let known = versions.entry(name).or_default();
            if !known.iter().any(|old| old == version) {
                known.push(version.to_owned());
            }
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::test_support::Bench;
    use crate::host::scripted::Scripted;

    /// apt-cache madison libc6:amd64 tzdata nonexistent, apt 2.6.1.
    const MADISON: &str = "     libc6 | 2.36-9+deb12u14 | http://archive.example/debian bookworm/main amd64 Packages
    tzdata | 2026f-0+deb12u1 | http://archive.example/debian-security bookworm-security/main amd64 Packages
    tzdata | 2026b-0+deb12u1 | http://archive.example/debian bookworm/main amd64 Packages
    tzdata | 2026b-0+deb12u1 | http://mirror.example/debian bookworm/main amd64 Packages
";

    #[tokio::test]
    async fn a_version_that_no_repository_has_is_told_with_those_that_there_are() {
        let packages = [
            "libc6:amd64=2.36-9+deb12u14",
            "tzdata=2026b-0+deb12u1",
            "tzdata=2025a-1",
            "nonexistent=1",
        ];
        let packages = packages.map(|text| text.parse().expect("a package"));
        let names = ["apt-cache", "madison", "libc6:amd64", "tzdata", "tzdata", "nonexistent"];
        let host = Scripted::new("l1").expect(names).prints(MADISON);
        let missing = missing(Bench::new().exec(&host), &packages).await.expect("answers");
        let told: Vec<_> = missing.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "tzdata 2025a-1 (the archive has 2026f-0+deb12u1, 2026b-0+deb12u1)",
                "nonexistent 1 (the archive has none)",
            ]
        );
    }
}
