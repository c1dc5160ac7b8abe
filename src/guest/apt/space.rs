//! Whether what apt is about to do fits on the disk; half an upgrade is worse than none.

use std::collections::BTreeMap;

use super::task::Task;
use crate::error::{Error, Result};
use crate::guest::ExecContext;
use crate::host::Command;

/// What stays free whatever happens: dpkg's database, logs and an initial RAM disk are not in the sizes.
const RESERVE: u64 = 200 << 20;

/// Where apt and dpkg write.
const PLACES: [&str; 2] = ["/usr", "/var/cache/apt"];

/// A package that a simulation says will be unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unpacked {
    name: String,
    version: String,
}

/// A package's sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sizes {
    archive: u64,
    installed: u64,
}

/// Refuses `task` if what it downloads and unpacks does not fit.
///
/// # Errors
/// [`Kind::Failed`](crate::Kind) with the sizes. Where they cannot be told, apt's own check remains.
pub(super) async fn check(exec: ExecContext<'_>, task: &Task) -> Result<()> {
    let simulated = exec.host.run(&task.simulation()).await?;
    let unpacked = unpacked(&simulated.text());
    if unpacked.is_empty() {
        return Ok(());
    }
    let names = unpacked.iter().map(|package| format!("{}={}", package.name, package.version));
    let show = Command::new("apt-cache").arg("show").args(names);
    let after = sizes_of_records(&exec.host.run(&show).await?.text());
    let query = Command::new("dpkg-query").args(["-W", "-f", "${Package} ${Installed-Size}\n"]);
    let before = installed_sizes(&exec.host.run(&query).await?.text());
    let df = Command::new("df").arg("-Pk").args(PLACES);
    let Some([system, archives]) = free(&exec.host.check(&df).await?.text()) else {
        return Ok(());
    };
    let need = need(&unpacked, &after, &before);
    let same = system.device == archives.device;
    let on_system = need.installed + RESERVE + if same { need.archive } else { 0 };
    for (wanted, place) in [(on_system, &system), (need.archive, &archives)] {
        if wanted > place.free {
            return Err(Error::failed(format!(
                "the disk is too small to {}: {} MB are needed on {}, {} MB are free",
                task.title(),
                wanted.div_ceil(1_000_000),
                place.mounted,
                place.free / 1_000_000,
            ))
            .on_host(exec.host.name())
            .hint("give the guest a larger `disk` in the recipe"));
        }
    }
    Ok(())
}

/// Returns the packages of the `Inst name [old] (new …)` lines of a simulation.
fn unpacked(simulation: &str) -> Vec<Unpacked> {
    simulation
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
            let version = rest.split_once('(')?.1.split(' ').next()?;
            Some(Unpacked { name: name.to_owned(), version: version.to_owned() })
        })
        .collect()
}

/// Returns the sizes in the records of `apt-cache show`, by package.
fn sizes_of_records(records: &str) -> BTreeMap<String, Sizes> {
    let mut all = BTreeMap::new();
    for record in records.split("\n\n") {
        let field = |name: &str| {
            record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let number =
            |name: &str| field(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        if let Some(package) = field("Package") {
            let sizes =
                Sizes { archive: number("Size"), installed: number("Installed-Size") * 1024 };
            all.insert(package.to_owned(), sizes);
        }
    }
    all
}

/// Returns the installed sizes of a `Package Installed-Size` list, in bytes.
fn installed_sizes(list: &str) -> BTreeMap<String, u64> {
    list.lines()
        .filter_map(|line| {
            let (name, kib) = line.split_once(' ')?;
            Some((name.to_owned(), kib.parse::<u64>().ok()? * 1024))
        })
        .collect()
}

/// Returns what the packages need at the worst moment: all archives, everything that grows, and the
/// largest package twice, since dpkg unpacks the new files beside the old ones.
fn need(
    unpacked: &[Unpacked],
    after: &BTreeMap<String, Sizes>,
    before: &BTreeMap<String, u64>,
) -> Sizes {
    let (mut archive, mut grown, mut shrunk, mut largest) = (0, 0, 0, 0);
    for package in unpacked {
        let name = package.name.split(':').next().unwrap_or_default();
        let new = after.get(name).copied().unwrap_or_default();
        archive += new.archive;
        grown += new.installed;
        let old = before.get(name).copied().unwrap_or(0);
        shrunk += old;
        largest = largest.max(old.min(new.installed));
    }
    Sizes { archive, installed: grown.saturating_sub(shrunk) + largest }
}

/// A file system, as `df` tells.
#[derive(Debug, PartialEq, Eq)]
struct FileSystem {
    device: String,
    mounted: String,
    free: u64,
}

/// Returns the file systems of the [`PLACES`] from the answer of `df -Pk`.
fn free(df: &str) -> Option<[FileSystem; 2]> {
    let mut places = df.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [device, _, _, free, _, mounted @ ..] = &fields[..] else { return None };
        Some(FileSystem {
            device: (*device).to_owned(),
            mounted: mounted.join(" "),
            free: free.parse::<u64>().ok()? * 1024,
        })
    });
    Some([places.next()?, places.next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_tells_what_is_unpacked() {
        let simulation = "Inst bash [5.2-1] (5.2-2 Debian:13 [amd64])\n\
                          Inst nl-two (1 localhost [all]) []\nConf bash (5.2-2 Debian:13 [amd64])\nRemv x [1]\n";
        let names: Vec<_> =
            unpacked(simulation).into_iter().map(|u| format!("{}={}", u.name, u.version)).collect();
        assert_eq!(names, ["bash=5.2-2", "nl-two=1"]);
    }

    #[test]
    fn what_is_needed_counts_growth_and_the_largest_package_twice() {
        let list = |names: &[&str]| {
            names
                .iter()
                .map(|n| Unpacked { name: (*n).to_owned(), version: "2".to_owned() })
                .collect::<Vec<_>>()
        };
        let after = sizes_of_records(
            "Package: big\nVersion: 2\nInstalled-Size: 1000\nSize: 300\n\nPackage: new\nInstalled-Size: 50\nSize: 20\n",
        );
        let before = installed_sizes("big 900\nother 5\nbroken \n");
        let need = need(&list(&["big:amd64", "new"]), &after, &before);
        assert_eq!(need, Sizes { archive: 320, installed: (1050 - 900 + 900) * 1024 });
    }

    #[test]
    fn df_is_read_with_spaces_in_a_mount_point() {
        let df = "Filesystem 1024-blocks Used Available Capacity Mounted on\n\
                  /dev/vda 100 50 50 50% /\ntmpfs 10 1 9 10% /var/cache/my apt\n";
        let [system, archives] = free(df).expect("two lines");
        assert_eq!((system.free, archives.free), (50 * 1024, 9 * 1024));
        assert_eq!(archives.mounted, "/var/cache/my apt");
    }
}
