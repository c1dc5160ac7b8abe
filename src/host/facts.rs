//! What a machine says about itself, read in one round trip: cores, memory, networks, free disk, and the
//! ports that are taken.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use camino::Utf8Path;

use super::{Command, Host};
use crate::error::{Error, Kind, Result};

/// Prints the files that [`Facts`] are read from, each behind a line that names it.
const READ: &str = r#"
for file in /proc/cpuinfo /proc/meminfo /proc/net/route; do
    echo "@@ $file"
    cat "$file" 2>/dev/null
done
exit 0
"#;

/// Prints the free KiB where "$1" is, or will be made.
const FREE_DISK: &str = r#"
path=$1
while [ ! -e "$path" ]; do path=$(dirname -- "$path"); done
df -Pk -- "$path"
"#;

/// What a machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Physical cores, not threads; processors, where a virtual machine names no cores.
    pub cores: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// IPv4 networks that it is in or routes to, without the default route.
    pub networks: Vec<HostNetwork>,
}

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostNetwork {
    /// An address in it.
    pub address: Ipv4Addr,
    /// The length of its prefix, 0 to 32.
    pub prefix: u8,
}

impl Facts {
    /// Reads the facts of `host`.
    ///
    /// # Errors
    /// [`Kind::HostCannot`] where it does not say, such as on a system without /proc.
    pub async fn read(host: &dyn Host) -> Result<Self> {
        let answer = host.check(&Command::new("sh").args(["-c", READ, "nestlab-facts"])).await?;
        Facts::of(&answer.text()).map_err(|what| {
            Error::new(Kind::HostCannot, format!("it does not tell its {what}"))
                .on_host(host.name())
                .hint("nestlab reads Linux's /proc")
        })
    }

    fn of(answer: &str) -> Result<Self, &'static str> {
        let file = |name: &str| {
            let mut parts = answer.split("@@ ");
            let part = parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('\n'));
            part.unwrap_or_default()
        };
        Ok(Facts {
            cores: physical_cores(file("/proc/cpuinfo")).ok_or("cores")?,
            memory_mib: memory(file("/proc/meminfo")).ok_or("memory")?,
            networks: networks(file("/proc/net/route")),
        })
    }
}

/// Returns the free bytes on the file system of `path` on `host`, or where it will be made.
///
/// # Errors
/// [`Kind::Failed`] if `df` does not say.
pub async fn free_disk(host: &dyn Host, path: &Utf8Path) -> Result<u64> {
    let ask = Command::new("sh").args(["-c", FREE_DISK, "nestlab-free-disk", path.as_str()]);
    let answer = host.check(&ask).await?;
    let text = answer.text();
    // POSIX: the last line's fourth field is what is available, in KiB.
    let kib = text.lines().last().and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    kib.map(|kib: u64| kib.saturating_mul(1024)).ok_or_else(|| {
        Error::failed(format!("how much is free at {path} is not known"))
            .on_host(host.name())
            .tail(text.as_bytes())
    })
}

/// Returns the number of cores in /proc/cpuinfo: pairs of socket and core, since the threads of one core
/// share it; processors, where a virtual machine names no cores.
pub(crate) fn physical_cores(cpuinfo: &str) -> Option<u32> {
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
    u32::try_from(cores.len()).ok().filter(|cores| *cores > 0)
}

/// Returns `MemTotal` of /proc/meminfo, in MiB.
pub(crate) fn memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024).filter(|mib| *mib > 0)
}

/// Returns the networks of /proc/net/route, the default route aside: addresses are in hexadecimal, in
/// the byte order of the machine, which is little-endian x86.
pub(crate) fn networks(routes: &str) -> Vec<HostNetwork> {
    routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let address = u32::from_str_radix(fields.get(1)?, 16).ok()?.to_le_bytes().into();
            let prefix = u32::from_str_radix(fields.get(7)?, 16).ok()?.count_ones();
            Some(HostNetwork { address, prefix: u8::try_from(prefix).ok()? })
        })
        .filter(|network| network.prefix > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Local;

    #[test]
    fn threads_of_one_core_count_once() {
        let processor = |number: u32, socket: u32, core: u32| {
            format!("processor\t: {number}\nphysical id\t: {socket}\ncore id\t\t: {core}\n\n")
        };
        let cpuinfo: String = [(0, 0, 0), (1, 0, 1), (2, 0, 0), (3, 0, 1), (4, 1, 0)]
            .map(|(number, socket, core)| processor(number, socket, core))
            .concat();
        assert_eq!(physical_cores(&cpuinfo), Some(3));
    }

    #[test]
    fn processors_count_where_no_core_is_named() {
        let cpuinfo = "processor\t: 0\nmodel name\t: x\n\nprocessor\t: 1\nmodel name\t: x\n";
        assert_eq!(physical_cores(cpuinfo), Some(2));
        assert_eq!(physical_cores("nothing of the kind"), None);
    }

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(memory("MemTotal:       16384000 kB\nMemFree: 1 kB\n"), Some(16000));
        assert_eq!(memory("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn routes_are_read_without_the_default_one() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n\
                      eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(networks(routes), [HostNetwork { address: [10, 0, 2, 0].into(), prefix: 24 }]);
    }

    #[tokio::test]
    async fn this_machine_is_read() {
        let facts = Facts::read(&Local::new()).await.expect("Linux tells");
        assert!(facts.cores >= 1 && facts.memory_mib > 100, "{facts:?}");
        let free = free_disk(&Local::new(), "/nonexistent/lab".into()).await.expect("df tells");
        assert!(free > 0);
    }
}
