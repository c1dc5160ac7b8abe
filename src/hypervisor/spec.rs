//! What a guest's VM is to be, in words that every hypervisor understands.

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::recipe::{Constraint, Cpus, Mebibytes};
pub use crate::recipe::{Firmware, Subnet};

/// The name space of the VMs' UUIDs (version 5).
const VMS: Uuid = Uuid::from_u128(0x6b1f_3c52_0c1e_4a55_9d0f_a3b6_7e6d_5c21);

/// What the VM is made from; paths are the VM's host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Media {
    /// An OVA to import; its disk, controllers and operating system type are kept.
    Ova(Utf8PathBuf),
    /// A disk image, already this VM's own and without a backing file: it is attached and written to.
    Disk(Utf8PathBuf),
    /// A bootable ISO, read only.
    Iso(Utf8PathBuf),
}

/// Where the VM comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmOrigin {
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

/// A guest's VM as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// The VM's name on its host, such as `nestlab-demo-l2`; for an existing VM its own name or UUID.
    pub vm: String,
    /// The folder on the VM's host that belongs to this VM alone: its disk, logs and sockets.
    pub directory: Utf8PathBuf,
    /// Where it comes from.
    pub origin: VmOrigin,
    /// Virtual CPUs.
    pub cpus: Constraint<Cpus>,
    /// Memory.
    pub memory: Constraint<Mebibytes>,
    /// Grow the disk to this size, if it is smaller.
    pub disk: Option<Mebibytes>,
    /// How it starts when it is made, and later unless [`GuestSpec::firmware_after`] says otherwise.
    pub firmware: Firmware,
    /// Whether the recipe names that firmware.
    #[serde(default)]
    pub firmware_given: bool,
    /// A raw FAT volume labelled `CIDATA` with keys and names, attached read-only; see `image::build::seed`.
    pub seed: Option<Utf8PathBuf>,
    /// Whether it gets nested hardware virtualization; `None`: as an existing VM has it.
    pub nested: Option<bool>,
    /// Its NAT network.
    pub subnet: Subnet,
    /// Ports of the guest that its host can reach.
    pub forwards: Vec<Forward>,
    /// Networks that it shares with other guests of its host, by names that no other lab on that host
    /// uses for its own, such as `nestlab-demo-lan`. A guest with a seed finds its card in each of them by
    /// its [`mac`].
    pub networks: Vec<String>,
    /// Whether it is started with a window.
    pub gui: bool,
    /// Whether it reaches services on its host's loopback interface, through the gateway of its NAT network.
    #[serde(default)]
    pub reach_host: bool,
}

impl GuestSpec {
    /// Returns what tells the VM from all others; the same as long as its name and folder are.
    pub fn uuid(&self) -> Uuid {
        uuid(&self.directory, &self.vm)
    }

    /// Returns how a VM is to start that starts with `actual` now: one that was made for UEFI keeps it unless
    /// the recipe says otherwise, since its disk may start from nothing else.
    pub fn firmware_after(&self, actual: Option<Firmware>) -> Firmware {
        match actual {
            Some(Firmware::Efi) if !self.firmware_given => Firmware::Efi,
            _ => self.firmware,
        }
    }

    /// Has the VM's files in the folder `to` instead of `from`.
    pub fn move_files(&mut self, from: &Utf8Path, to: &Utf8Path) {
        let media = match &mut self.origin {
            VmOrigin::Made(Media::Ova(path) | Media::Disk(path) | Media::Iso(path)) => Some(path),
            VmOrigin::Existing { .. } => None,
        };
        for path in media.into_iter().chain(&mut self.seed).chain([&mut self.directory]) {
            if let Ok(inside) = path.strip_prefix(from) {
                *path = to.join(inside);
            }
        }
    }

    /// Returns whether hardware virtualization inside is asked for.
    pub fn nests(&self) -> bool {
        self.nested == Some(true)
    }
}

/// Returns what tells the VM called `vm` in `directory` from all others.
pub(crate) fn uuid(directory: &Utf8Path, vm: &str) -> Uuid {
    Uuid::new_v5(&VMS, format!("{directory}\0{vm}").as_bytes())
}

/// Returns the MAC address of the card that the VM `vm` has in `network`, the same at every start: a
/// locally administered one, under the prefix that QEMU uses.
pub fn mac(vm: Uuid, network: &str) -> String {
    let [a, b, c, ..] = *Uuid::new_v5(&vm, network.as_bytes()).as_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}
