//! What a guest's VM is to be, in words that every hypervisor understands.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use crate::recipe::{Cpus, Mebibytes};

/// How the VM starts its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// PC BIOS.
    Bios,
    /// UEFI, 64-bit.
    Efi,
}

/// What the VM is made from; paths are the VM's host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Media {
    /// An OVA to import; its disk, controllers and operating system type are kept.
    Ova(Utf8PathBuf),
    /// A disk image, already this VM's own: it is attached and written to.
    Disk(Utf8PathBuf),
    /// A bootable ISO, read only.
    Iso(Utf8PathBuf),
}

/// Where the VM comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// nestlab makes it from this, and removes it in the end.
    Made(Media),
    /// It exists under this name or UUID; it is changed, and never removed.
    Existing {
        /// The name or UUID.
        vm: String,
        /// Take a snapshot before the first change.
        snapshot_before: bool,
    },
}

/// A guest's port that its host can reach on 127.0.0.1, at a free port that the driver finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// The forward's name, such as `nestlab-ssh`.
    pub name: String,
    /// The TCP port in the guest.
    pub guest_port: u16,
}

/// An IPv4 subnet `a.b.c.0/24`, the guest's NAT network; differs from every network around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet([u8; 3]);

impl Subnet {
    /// Returns `a.b.c.0/24`.
    pub fn new(a: u8, b: u8, c: u8) -> Self {
        Subnet([a, b, c])
    }

    /// Returns the address with the last octet `last`.
    pub fn address(self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.0;
        Ipv4Addr::new(a, b, c, last)
    }

    /// Returns whether `address` lies in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.octets()[..3] == self.0
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/24", self.address(0))
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a subnet like `10.0.3.0/24`");
        let address: Ipv4Addr =
            text.strip_suffix("/24").ok_or_else(bad)?.parse().map_err(|_| bad())?;
        let [a, b, c, last] = address.octets();
        if last == 0 { Ok(Subnet([a, b, c])) } else { Err(bad()) }
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A guest's VM as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSpec {
    /// The VM's name on its host, such as `nestlab-demo-l2`; for an existing VM its own name or UUID.
    pub vm: String,
    /// The folder on the VM's host that belongs to this VM alone: its disk, logs and sockets.
    pub directory: Utf8PathBuf,
    /// Where it comes from.
    pub origin: Origin,
    /// Virtual CPUs.
    pub cpus: Cpus,
    /// Memory.
    pub memory: Mebibytes,
    /// Grow the disk to this size, if it is smaller.
    pub disk: Option<Mebibytes>,
    /// How it starts.
    pub firmware: Firmware,
    /// A raw FAT volume labelled `CIDATA` with keys and names, attached read-only; see `image::build::seed`.
    pub seed: Option<Utf8PathBuf>,
    /// Whether it is to run guests itself: nested hardware virtualization on.
    pub nested: bool,
    /// Its NAT network.
    pub subnet: Subnet,
    /// Ports of the guest that its host can reach.
    pub forwards: Vec<Forward>,
    /// Networks that it shares with other guests of its host, by name.
    pub networks: Vec<String>,
    /// Whether it is started with a window.
    pub gui: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_reads_what_it_writes_and_nothing_else() {
        let subnet = Subnet::new(10, 0, 3);
        assert_eq!(subnet.to_string().parse(), Ok(subnet));
        for bad in ["10.0.3.1/24", "10.0.3.0/16", "10.0.3.0", "x/24"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        assert!(subnet.contains(Ipv4Addr::new(10, 0, 3, 15)));
    }
}
