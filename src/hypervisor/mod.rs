//! Software on a host that runs guests: the trait [`Hypervisor`], and VirtualBox and QEMU behind it.
//!
//! A driver turns a wanted [`GuestSpec`] and the inspected [`Actual`] state into a list of
//! [`Change`]s: `plan` prints the list, `up` applies it, and an empty list means nothing to do. A
//! driver acts through [`Host`] alone and must not know at which level it works, what a recipe is or
//! where images come from.

pub mod aside;
pub mod qemu;
pub mod spec;
pub mod virtualbox;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};

pub use crate::recipe::HypervisorKind;
pub use spec::{Firmware, Forward, GuestSpec, Media, Subnet, VmOrigin};

use crate::error::Result;
use crate::event::EventSink;
use crate::host::{Command, Host, StreamAddress, TimeoutScale};

/// How a hypervisor executes guest code on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// Hardware virtualization through KVM, proven by a micro-guest.
    Kvm,
    /// Hardware virtualization through VirtualBox's own driver.
    VirtualBox,
    /// Software emulation; guests run ten to thirty times slower.
    Tcg,
}

/// Whether a guest that asks for it gets hardware virtualization of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nesting {
    /// It does: a guest was seen to have svm or vmx.
    Proven,
    /// The hypervisor says so; only a look inside a guest tells.
    Claimed,
    /// It does not, and why, with the remedy where there is one.
    Absent(String),
}

/// What a hypervisor on a host is and can do, as found by [`Hypervisor::probe`].
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Its version, such as `7.2.22` or `10.0.2`.
    pub version: semver::Version,
    /// The version line as the program printed it.
    pub version_text: String,
    /// The program that is run, as found: `VBoxManage`, `/usr/bin/qemu-system-x86_64`.
    pub program: Utf8PathBuf,
    /// How guests execute.
    pub acceleration: Acceleration,
    /// How long to wait for guests on it.
    pub patience: TimeoutScale,
    /// Whether its guests can run guests themselves.
    pub nesting: Nesting,
    /// What the driver found here and needs again when it builds a command line, such as the path of
    /// a firmware; keys are the driver's own.
    pub details: BTreeMap<String, String>,
    /// What a user should be told once, such as why it is TCG and not KVM.
    pub notes: Vec<String>,
}

/// Whether a VM runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Power {
    /// Off: powered off, or aborted.
    Off,
    /// Off, with its memory saved.
    Saved,
    /// Running.
    Running,
    /// Paused.
    Paused,
    /// Between two states; the word is the hypervisor's own.
    Changing(String),
    /// The virtual machine monitor gave up on the guest (VirtualBox's Guru Meditation, QEMU's
    /// internal error).
    Crashed(String),
}

impl Probe {
    /// Returns what is presumed of a hypervisor on a host that is not up yet, so that a plan can show
    /// commands; nothing is run by it.
    pub fn presumed(kind: HypervisorKind) -> Self {
        let (version, program, acceleration) = match kind {
            HypervisorKind::VirtualBox => {
                (semver::Version::new(7, 2, 0), "VBoxManage", Acceleration::VirtualBox)
            }
            HypervisorKind::Qemu => {
                (semver::Version::new(10, 0, 0), "qemu-system-x86_64", Acceleration::Kvm)
            }
        };
        Probe {
            version_text: version.to_string(),
            version,
            program: program.into(),
            acceleration,
            patience: TimeoutScale::NATIVE,
            nesting: Nesting::Claimed,
            details: BTreeMap::new(),
            notes: Vec::new(),
        }
    }
}

/// A VM as it is: what [`Hypervisor::inspect`] read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actual {
    /// What addresses the VM for certain: VirtualBox's UUID, QEMU's process id.
    pub id: String,
    /// Whether it runs.
    pub power: Power,
    /// Its settings by the hypervisor's own names, for the diff and for restoring.
    pub settings: BTreeMap<String, String>,
}

/// One difference between the wanted and the actual VM, and what removes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The setting, by the hypervisor's own name.
    pub setting: String,
    /// What it is; `None` if it does not exist yet.
    pub actual: Option<String>,
    /// What it is to be.
    pub wanted: String,
    /// The exact commands that change it; run on the guest's host in this order.
    pub commands: Vec<Command>,
    /// Whether the VM must be off for it.
    pub needs_power_off: bool,
}

/// How to stop a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Press the ACPI power button, and pull the plug if it is still on after this grace time; of a VM that
    /// existed before nestlab it is never pulled: as [`Stop::Ask`].
    Graceful(Duration),
    /// Press the ACPI power button, and fail if it is still on after this grace time.
    Ask(Duration),
    /// Pull the plug.
    PowerOff,
}

/// Returns the error for the VM `name` that was asked to shut down and is on after `grace`.
fn still_on(name: &str, grace: Duration) -> crate::Error {
    let text =
        format!("{name} was asked to shut down, and is still on after {} s", grace.as_secs());
    crate::Error::failed(text)
        .hint(format!("shut {name} down inside, and run the same command again"))
}

/// What there is of a VM that was whole once and that its hypervisor does not know now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remains {
    /// It can be made known again, with the disk that it has.
    Known {
        /// What is the matter with it.
        why: String,
        /// What makes it known, run on its host in this order. No disk is touched.
        commands: Vec<Command>,
    },
    /// It cannot, and why.
    Lost(String),
}

/// A VM on a host, whoever made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundVm {
    /// Its name.
    pub name: String,
    /// What addresses it: VirtualBox's UUID, QEMU's process id.
    pub id: String,
    /// The UUID that it was made with; VirtualBox gives its own.
    pub uuid: Option<uuid::Uuid>,
    /// Its settings file, where the hypervisor keeps one; it need not exist any more.
    pub file: Option<Utf8PathBuf>,
}

/// A file of a guest that helps to understand a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// What it is: `serial`, `VBox.log`, `qemu.log`.
    pub name: String,
    /// Where it lies on the guest's host.
    pub path: Utf8PathBuf,
}

/// Software on a host that runs guests. Every method takes the host it acts on.
///
/// All methods are idempotent: to start what runs, to stop what is off and to destroy what is not
/// there succeed.
#[async_trait]
pub trait Hypervisor: Send + Sync + fmt::Debug {
    /// Returns which hypervisor it is.
    fn kind(&self) -> HypervisorKind;

    /// Finds the hypervisor on `host`.
    ///
    /// # Errors
    /// [`Kind::HostCannot`](crate::Kind) with a remedy, if it is not installed or cannot run guests.
    async fn probe(&self, host: &dyn Host) -> Result<Probe>;

    /// Returns the VM as it is, or `None` if there is none.
    async fn inspect(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Option<Actual>>;

    /// Returns what must change, in order, so that the VM is as `spec` says. Pure.
    fn changes(&self, spec: &GuestSpec, actual: Option<&Actual>, probe: &Probe) -> Vec<Change>;

    /// Returns what differs between the VM and `spec` and stays, a sentence each: no change could remove it.
    /// Pure.
    fn stays(&self, spec: &GuestSpec, actual: &Actual) -> Vec<String>;

    /// Returns what there is of the VM of `spec`, which was whole once and which [`Hypervisor::inspect`] does
    /// not find or cannot read. `recorded` is what it was when it was last seen to be as wanted.
    ///
    /// # Errors
    /// [`Kind::Io`](crate::Kind) if a newer nestlab has defined it.
    async fn remains(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        recorded: Option<&GuestSpec>,
    ) -> Result<Remains>;

    /// Forgets the VM that nestlab made for `spec`, which is off, and moves all that it has to `kept`, a folder
    /// in its own. May be run on what an interrupted run left.
    async fn set_aside(&self, host: &dyn Host, spec: &GuestSpec, kept: &Utf8Path) -> Result<()>;

    /// Applies `changes`; powers the VM off first (gracefully) if one of them needs it.
    async fn change(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        changes: &[Change],
        events: &EventSink,
    ) -> Result<()>;

    /// Returns the commands that [`Hypervisor::start`] would run, for `plan`.
    fn start_commands(&self, spec: &GuestSpec, probe: &Probe) -> Vec<Command>;

    /// Starts the VM so that it outlives the command. Returns at power-on, not at boot.
    async fn start(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        probe: &Probe,
        events: &EventSink,
    ) -> Result<()>;

    /// Stops the VM.
    async fn stop(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        how: Stop,
        events: &EventSink,
    ) -> Result<()>;

    /// Stops and removes the VM, its disks and its files; for a VM that existed before nestlab
    /// ([`VmOrigin::Existing`]) it restores nothing and removes nothing.
    async fn destroy(&self, host: &dyn Host, spec: &GuestSpec, events: &EventSink) -> Result<()>;

    /// Returns where, on the VM's host, the forwarded `guest_port` of the running VM is reached.
    async fn endpoint(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        guest_port: u16,
    ) -> Result<StreamAddress>;

    /// Returns what the guest's additions published under `name`, such as
    /// `/VirtualBox/GuestInfo/OS/Product`; `None` if nothing, or where the hypervisor has no such thing.
    async fn guest_property(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
        name: &str,
    ) -> Result<Option<String>>;

    /// Writes a PNG of the guest's screen to `to` on the VM's host.
    async fn screenshot(&self, host: &dyn Host, spec: &GuestSpec, to: &Utf8Path) -> Result<()>;

    /// Returns what stands on the screen of a running guest whose screen is VGA's text mode (720×400 pixels in
    /// [`Hypervisor::screenshot`]); in any other mode it is nonsense. `None` where the hypervisor cannot tell.
    async fn screen_text(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Option<String>> {
        let _ = (host, spec);
        Ok(None)
    }

    /// Returns the file into which the guest's first serial port is written, from its last start on.
    fn serial_log(&self, spec: &GuestSpec) -> Utf8PathBuf;

    /// Returns where, on the VM's host, the running guest's first serial port can be talked to; `None`
    /// where the hypervisor only writes it to [`Hypervisor::serial_log`].
    async fn console(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Option<StreamAddress>> {
        let _ = (host, spec);
        Ok(None)
    }

    /// Returns the files that help to understand a failure, whether or not they exist yet.
    async fn log_files(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Vec<LogFile>>;

    /// Returns the error that tells why the VM is down, with the end of its log, if it went down by a
    /// failure of its own: the hypervisor gave up on it, or its process died. `None` for one that runs
    /// or was stopped. Whoever waits for a guest asks this now and then.
    async fn down_because(
        &self,
        host: &dyn Host,
        spec: &GuestSpec,
    ) -> Result<Option<crate::Error>> {
        Ok(match self.inspect(host, spec).await?.map(|actual| actual.power) {
            Some(Power::Crashed(why)) => Some(
                crate::Error::failed(format!("{} gave up on {}: {why}", self.kind(), spec.vm))
                    .on_host(host.name()),
            ),
            _ => None,
        })
    }

    /// Returns the VMs on `host`, whoever made them; of QEMU's, those that run.
    async fn vms(&self, host: &dyn Host) -> Result<Vec<FoundVm>>;

    /// Stops a VM whose files are gone, and makes the hypervisor forget it; touches no file. One that is
    /// gone too is no error.
    async fn forget(&self, host: &dyn Host, vm: &FoundVm) -> Result<()>;

    /// Takes a snapshot called `name`.
    async fn snapshot(&self, host: &dyn Host, spec: &GuestSpec, name: &str) -> Result<()>;

    /// Returns the names of its snapshots, oldest first.
    async fn snapshots(&self, host: &dyn Host, spec: &GuestSpec) -> Result<Vec<String>>;

    /// Restores the snapshot called `name`; the VM is off afterwards or runs as it did then.
    async fn restore(&self, host: &dyn Host, spec: &GuestSpec, name: &str) -> Result<()>;
}

/// Returns what to say of the files `left` in a guest's folder on `host`.
fn left(host: &dyn Host, left: &str) -> String {
    format!("left on {}, since nestlab did not make it: {}", host.name(), left.trim())
}

/// A shared driver.
pub type HypervisorRef = Arc<dyn Hypervisor>;

/// The drivers, each made once: a driver remembers what it found on each host.
#[derive(Debug, Clone)]
pub struct Drivers {
    /// VirtualBox.
    pub virtualbox: Arc<virtualbox::VirtualBox>,
    /// QEMU.
    pub qemu: Arc<qemu::Qemu>,
}

impl Drivers {
    /// Returns fresh drivers.
    pub fn new() -> Self {
        Drivers {
            virtualbox: Arc::new(virtualbox::VirtualBox::new()),
            qemu: Arc::new(qemu::Qemu::new()),
        }
    }

    /// Returns the driver for `kind`.
    pub fn driver(&self, kind: HypervisorKind) -> HypervisorRef {
        match kind {
            HypervisorKind::VirtualBox => self.virtualbox.clone(),
            HypervisorKind::Qemu => self.qemu.clone(),
        }
    }
}

impl Default for Drivers {
    fn default() -> Self {
        Drivers::new()
    }
}
