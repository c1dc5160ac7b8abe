//! The words that a recipe chooses from, and the subnet: plain values that every layer understands.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Defines an enum of words: what is written in TOML and JSON is what `Display` shows, and a word that
/// is none of them is answered with the list.
macro_rules! words {
    (
        $(#[$doc:meta])* $name:ident: $what:literal {
            $($(#[$word_doc:meta])* $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
        #[schemars(inline)]
        pub enum $name {
            $($(#[$word_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every value, in the order in which messages list them.
            pub const ALL: &[$name] = &[$($name::$variant,)+];

            /// Returns the word.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                $name::ALL.iter().copied().find(|word| word.as_str() == text).ok_or_else(|| {
                    let known: Vec<_> = $name::ALL.iter().map(|w| format!("`{w}`")).collect();
                    format!(
                        "`{}` is not {}; choose one of {}",
                        text.escape_debug(), $what, known.join(", ")
                    )
                })
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

words! {
    /// Which hypervisor.
    HypervisorKind: "a hypervisor" {
        /// Oracle VirtualBox, through `VBoxManage`.
        VirtualBox = "virtualbox",
        /// QEMU, with KVM where a guest really runs on it, else TCG.
        Qemu = "qemu",
    }
}

words! {
    /// Which hypervisor L0 is to use.
    HypervisorChoice: "a hypervisor" {
        /// Oracle VirtualBox, through `VBoxManage`.
        VirtualBox = "virtualbox",
        /// QEMU, with KVM where a guest really runs on it, else TCG.
        Qemu = "qemu",
        /// The one that is there and can run guests.
        Auto = "auto",
    }
}

impl HypervisorChoice {
    /// Returns the hypervisor, unless it is left to nestlab.
    pub fn kind(self) -> Option<HypervisorKind> {
        match self {
            HypervisorChoice::VirtualBox => Some(HypervisorKind::VirtualBox),
            HypervisorChoice::Qemu => Some(HypervisorKind::Qemu),
            HypervisorChoice::Auto => None,
        }
    }
}

impl From<HypervisorKind> for HypervisorChoice {
    fn from(kind: HypervisorKind) -> Self {
        match kind {
            HypervisorKind::VirtualBox => HypervisorChoice::VirtualBox,
            HypervisorKind::Qemu => HypervisorChoice::Qemu,
        }
    }
}

words! {
    /// How a VM starts its disk.
    Firmware: "a firmware" {
        /// PC BIOS.
        Bios = "bios",
        /// UEFI, 64-bit.
        Efi = "efi",
    }
}

words! {
    /// By which evidence a guest counts as up.
    ReadyKind: "a kind of readiness" {
        /// Its SSH server lets nestlab in.
        Ssh = "ssh",
        /// A line on its serial console matches `serial-pattern`.
        Serial = "serial",
        /// VirtualBox's guest additions report the running system.
        GuestAdditions = "guest-additions",
        /// Its screen shows a picture that stays.
        Screen = "screen",
    }
}

/// By which evidence a guest counts as up, with what is needed to look for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "by")]
pub enum Readiness {
    /// Its SSH server lets nestlab in.
    Ssh,
    /// A line on its serial console matches this regular expression.
    Serial {
        /// The expression, in the `regex` crate's syntax.
        pattern: String,
    },
    /// VirtualBox's guest additions report the running system.
    GuestAdditions,
    /// Its screen shows a picture that stays.
    Screen,
}

impl Readiness {
    /// Returns the kind.
    pub fn kind(&self) -> ReadyKind {
        match self {
            Readiness::Ssh => ReadyKind::Ssh,
            Readiness::Serial { .. } => ReadyKind::Serial,
            Readiness::GuestAdditions => ReadyKind::GuestAdditions,
            Readiness::Screen => ReadyKind::Screen,
        }
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.kind().as_str())
    }
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
