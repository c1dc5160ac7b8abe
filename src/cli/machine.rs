//! This machine's size, read from /proc: enough to check a recipe without running anything.

use std::collections::BTreeSet;

use camino::Utf8Path;

use crate::error::{Error, Kind, Result};
use crate::recipe::budget::{Network, Resources};
use crate::recipe::{Cpus, HostKey, HypervisorKind, Mebibytes, Platform};

/// What the user says of L0 instead of what this machine has.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Given {
    /// Physical cores.
    pub(super) cores: Option<Cpus>,
    /// Memory.
    pub(super) memory: Option<Mebibytes>,
}

/// Returns this machine's resources with `hypervisor` running the outermost guests, and labs kept in
/// `state_dir`. The disk is not looked at where `given` describes another machine.
///
/// # Errors
/// [`Kind::HostCannot`] where /proc does not say.
pub(super) fn resources(
    hypervisor: HypervisorKind,
    given: Given,
    state_dir: &Utf8Path,
) -> Result<Resources> {
    let read = |path: &str, option: &str| {
        fs_err::read_to_string(path).map_err(|error| {
            Error::new(Kind::HostCannot, format!("this machine's size is not known: {error}"))
                .hint(format!("say it with `{option}`"))
        })
    };
    let unclear = |path: &str, option: &str| {
        Error::new(Kind::HostCannot, format!("{path} does not say what nestlab looks for in it"))
            .hint(format!("say it with `{option}`"))
    };
    let cores = match given.cores {
        Some(cores) => cores,
        None => physical_cores(&read("/proc/cpuinfo", "--cpus")?)
            .ok_or_else(|| unclear("/proc/cpuinfo", "--cpus"))?,
    };
    let memory = match given.memory {
        Some(memory) => memory,
        None => memory(&read("/proc/meminfo", "--memory")?)
            .ok_or_else(|| unclear("/proc/meminfo", "--memory"))?,
    };
    let elsewhere = given.cores.is_some() || given.memory.is_some();
    let routes = if elsewhere { None } else { fs_err::read_to_string("/proc/net/route").ok() };
    Ok(Resources {
        cores,
        memory,
        free_disk: if elsewhere { None } else { free_disk(state_dir) },
        networks: routes.as_deref().map(networks).unwrap_or_default(),
        hypervisor,
        platform: Platform::current(),
        host_key: (hypervisor == HypervisorKind::VirtualBox)
            .then(|| HostKey::default_on(Platform::current())),
    })
}

/// Returns the number of cores in /proc/cpuinfo: pairs of socket and core, since the threads of one core
/// share it; processors, where a virtual machine names no cores.
fn physical_cores(cpuinfo: &str) -> Option<Cpus> {
    let field = |block: &str, name: &str| {
        let line =
            block.lines().find(|line| line.split(':').next().map(str::trim) == Some(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let processors: Vec<&str> =
        cpuinfo.split("\n\n").filter(|block| field(block, "processor").is_some()).collect();
    let cores: BTreeSet<_> = processors
        .iter()
        .map(|block| match field(block, "core id") {
            Some(core) => (field(block, "physical id"), core),
            None => (None, format!("processor {:?}", field(block, "processor"))),
        })
        .collect();
    u32::try_from(cores.len()).ok().and_then(Cpus::new)
}

/// Returns `MemTotal` of /proc/meminfo, which is in KiB.
fn memory(meminfo: &str) -> Option<Mebibytes> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Mebibytes::new(kib / 1024)
}

/// Returns the networks of /proc/net/route, the default route aside: addresses are in hexadecimal, in
/// the byte order of the machine, which is little-endian x86.
fn networks(routes: &str) -> Vec<Network> {
    routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let address = u32::from_str_radix(fields.get(1)?, 16).ok()?.to_le_bytes().into();
            let prefix = u32::from_str_radix(fields.get(7)?, 16).ok()?.count_ones();
            Some(Network { address, prefix: u8::try_from(prefix).ok()? })
        })
        .filter(|network| network.prefix > 0)
        .collect()
}

/// Returns the free disk space at `path`, or where it will be made.
fn free_disk(path: &Utf8Path) -> Option<Mebibytes> {
    let there = path.ancestors().find(|path| path.exists())?;
    let disk = rustix::fs::statvfs(there.as_std_path()).ok()?;
    Mebibytes::new(disk.f_bavail.saturating_mul(disk.f_frsize) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_one_core_count_once() {
        let processor = |number: u32, socket: u32, core: u32| {
            format!("processor\t: {number}\nphysical id\t: {socket}\ncore id\t\t: {core}\n\n")
        };
        let cpuinfo: String = [(0, 0, 0), (1, 0, 1), (2, 0, 0), (3, 0, 1), (4, 1, 0)]
            .map(|(number, socket, core)| processor(number, socket, core))
            .concat();
        assert_eq!(physical_cores(&cpuinfo), Cpus::new(3));
    }

    #[test]
    fn processors_count_where_no_core_is_named() {
        let cpuinfo = "processor\t: 0\nmodel name\t: x\n\nprocessor\t: 1\nmodel name\t: x\n";
        assert_eq!(physical_cores(cpuinfo), Cpus::new(2));
        assert_eq!(physical_cores("nothing of the kind"), None);
    }

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(memory("MemTotal:       16384000 kB\nMemFree: 1 kB\n"), Mebibytes::new(16000));
        assert_eq!(memory("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn routes_are_read_without_the_default_one() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                      eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(networks(routes), [Network { address: [10, 0, 2, 0].into(), prefix: 24 }]);
    }

    #[test]
    fn this_machine_is_read() {
        let here = resources(HypervisorKind::Qemu, Given::default(), "/nonexistent/lab".into());
        let here = here.unwrap_or_else(|error| panic!("{}", error.report()));
        assert!(here.free_disk.is_some());
        let given = Given { cores: Cpus::new(64), memory: Mebibytes::new(1 << 20) };
        let other = resources(HypervisorKind::VirtualBox, given, "/".into()).expect("given");
        assert_eq!((other.cores.get(), other.free_disk, other.networks.len()), (64, None, 0));
    }
}
