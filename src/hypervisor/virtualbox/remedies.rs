//! What to do about what VirtualBox cannot do on a host: pure functions from what is known to hints, for
//! the driver, `doctor` and the checks inside a guest.

use semver::Version;

use super::fault::Fault;
use crate::error::Kind;
use crate::hypervisor::Nesting;

/// Who made the processor; the two kinds of hardware virtualization differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cpu {
    /// AMD, with SVM (AMD-V).
    Amd,
    /// Intel, with VMX (VT-x).
    Intel,
}

impl Cpu {
    /// Returns the kind of processor that has the flags in a line of /proc/cpuinfo, if it has
    /// virtualization.
    pub fn from_flags(flags: &str) -> Option<Self> {
        flags.split_ascii_whitespace().find_map(|flag| match flag {
            "svm" => Some(Cpu::Amd),
            "vmx" => Some(Cpu::Intel),
            _ => None,
        })
    }

    /// Returns the KVM module for it.
    pub fn kvm_module(self) -> &'static str {
        match self {
            Cpu::Amd => "kvm_amd",
            Cpu::Intel => "kvm_intel",
        }
    }
}

/// How VirtualBox and a loaded KVM get on with each other on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvmBeside {
    /// Fine as long as no KVM guest runs: KVM switches virtualization on with its first guest.
    FineWhileIdle,
    /// KVM holds the processor from when its module is loaded; it must let go.
    MustLetGo,
    /// VirtualBox asks KVM for the processor: leave KVM as it is.
    LeaveAlone,
}

/// Returns how VirtualBox `virtualbox` gets on with KVM on Linux `kernel` (major, minor).
///
/// Linux 6.12 made KVM switch virtualization on when its module is loaded (parameter
/// `kvm.enable_virt_at_load`); 6.16 gave other hypervisors a way to ask KVM for it, which VirtualBox uses
/// since 7.2.10 and which fails, up to a frozen host, when the parameter is off.
pub fn kvm_beside(kernel: (u32, u32), virtualbox: &Version) -> KvmBeside {
    match kernel {
        kernel if kernel < (6, 12) => KvmBeside::FineWhileIdle,
        kernel if kernel >= (6, 16) && *virtualbox >= Version::new(7, 2, 10) => {
            KvmBeside::LeaveAlone
        }
        _ => KvmBeside::MustLetGo,
    }
}

/// Returns major and minor number of a kernel release such as `7.2.13-amd64`.
pub fn kernel_number(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether Linux loads a kernel module that was built on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SecureBoot {
    /// It is off, or could not be asked about.
    #[default]
    Off,
    /// It is on, and the key that DKMS signs with is enrolled.
    KeyEnrolled,
    /// It is on, and the firmware does not know that key: the driver is not loaded.
    KeyMissing,
}

/// What is known about the host of a failed VM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `uname -r`; `None` where it is not Linux.
    pub kernel: Option<String>,
    /// VirtualBox's version.
    pub virtualbox: Option<Version>,
    /// The processor, if it shows svm or vmx.
    pub cpu: Option<Cpu>,
    /// Whether the KVM module of this processor is loaded.
    pub kvm_loaded: bool,
    /// Whether the firmware lets the driver be loaded.
    pub secure_boot: SecureBoot,
}

/// Returns the kind of error that a fault is.
pub(crate) fn kind(fault: Fault) -> Kind {
    match fault {
        Fault::Driver
        | Fault::DriverVersion
        | Fault::VirtualizationInUse
        | Fault::VirtualizationNotEnabled
        | Fault::VirtualizationDisabled
        | Fault::VirtualizationMissing
        | Fault::NestedUnavailable
        | Fault::Nem
        | Fault::Memory => Kind::HostCannot,
        Fault::NotFound
        | Fault::InvalidState
        | Fault::Locked
        | Fault::InUse
        | Fault::AlreadyExists
        | Fault::AccessDenied
        | Fault::Usage
        | Fault::Service
        | Fault::Licence
        | Fault::Terminated
        | Fault::Other => Kind::Failed,
    }
}

/// Returns what can be done about `fault` on a host, most useful first; empty where nothing is known.
pub fn hints(fault: Fault, around: &Surroundings) -> Vec<String> {
    match fault {
        Fault::Driver => driver_missing(around),
        Fault::DriverVersion => vec![
            "the loaded vboxdrv is of another version than VirtualBox: end every VM, then \
             `modprobe -r vboxnetadp vboxnetflt vboxdrv && modprobe vboxdrv`, or reboot"
                .to_owned(),
        ],
        Fault::VirtualizationInUse | Fault::VirtualizationNotEnabled => {
            vec![kvm_conflict(fault, around)]
        }
        Fault::VirtualizationDisabled => vec![
            "switch on AMD-V (SVM) or VT-x in the firmware setup of this machine".to_owned(),
            "if this host is itself a VM: switch on nested virtualization for it, from outside"
                .to_owned(),
        ],
        Fault::VirtualizationMissing => vec![
            "VirtualBox runs 64-bit guests on svm or vmx only, and this host shows neither: if it is \
             itself a VM, switch on nested virtualization for it, from outside"
                .to_owned(),
        ],
        Fault::NestedUnavailable => nested_unavailable(around),
        Fault::Nem => vec![nem()],
        Fault::Memory => vec!["give the guest less memory, or its host more".to_owned()],
        Fault::AccessDenied => {
            vec!["is the VM's settings file still there, and does this user own it?".to_owned()]
        }
        Fault::Locked => vec![
            "another program works on this VM: close its settings window or end its session"
                .to_owned(),
        ],
        _ => Vec::new(),
    }
}

/// Returns what to do where /dev/vboxdrv is missing or cannot be opened.
fn driver_missing(around: &Surroundings) -> Vec<String> {
    let kernel = around.kernel.as_deref().unwrap_or("$(uname -r)");
    match around.secure_boot {
        SecureBoot::KeyMissing => vec![
            "Secure Boot is on and the firmware does not know the key that signed vboxdrv: \
             `mokutil --import /var/lib/dkms/mok.pub`, reboot, and choose Enroll MOK"
                .to_owned(),
        ],
        SecureBoot::Off | SecureBoot::KeyEnrolled => vec![
            format!(
                "install the headers of the kernel that runs and build the driver again: `apt \
                 install linux-headers-{kernel} && dkms autoinstall && modprobe vboxdrv` (DKMS \
                 without headers succeeds and builds nothing)"
            ),
            "after a kernel upgrade, reboot first".to_owned(),
        ],
    }
}

/// Returns what to do where KVM and VirtualBox are in each other's way; the remedy of one kernel is the
/// cause on another.
fn kvm_conflict(fault: Fault, around: &Surroundings) -> String {
    let modules = around.cpu.map_or("kvm_intel kvm_amd", Cpu::kvm_module);
    let unload = format!("end all KVM guests, then `modprobe -r {modules} kvm`");
    let beside = around
        .kernel
        .as_deref()
        .and_then(kernel_number)
        .zip(around.virtualbox.as_ref())
        .map(|(kernel, virtualbox)| kvm_beside(kernel, virtualbox));
    match (beside, fault) {
        (Some(KvmBeside::LeaveAlone), Fault::VirtualizationNotEnabled) => format!(
            "this VirtualBox asks KVM for the processor, so that KVM must be loaded with \
             virtualization on: remove `kvm.enable_virt_at_load=0` from the kernel command line and \
             from /etc/modprobe.d, `modprobe {modules}`, reboot"
        ),
        (Some(KvmBeside::LeaveAlone), _) => {
            "another hypervisor runs a guest on this processor: end that guest".to_owned()
        }
        (Some(KvmBeside::MustLetGo), _) => format!(
            "since Linux 6.12 KVM holds the processor from when it is loaded: {unload}, or boot with \
             `kvm.enable_virt_at_load=0`; Linux 6.16 with VirtualBox 7.2.10 needs neither"
        ),
        (Some(KvmBeside::FineWhileIdle) | None, _) => {
            format!("a KVM guest holds the processor: {unload}")
        }
    }
}

/// Returns what to do where a VM with nested virtualization is refused.
fn nested_unavailable(around: &Surroundings) -> Vec<String> {
    let mut hints = vec![
        "VirtualBox passes virtualization on only where it has nested paging and unrestricted guest \
         execution itself, and `--nested-paging on` is set"
            .to_owned(),
    ];
    if around.cpu == Some(Cpu::Amd) {
        hints.push(
            "on AMD, a guest of VirtualBox sees SVM without nested paging: inside it, VirtualBox can \
             run guests, but none that run guests themselves; let that level use QEMU/KVM"
                .to_owned(),
        );
    }
    hints
}

/// Returns what to do where Windows keeps the processor for itself.
fn nem() -> String {
    "VirtualBox runs on top of Hyper-V here (a turtle in its status bar) and drops nested \
     virtualization silently: as administrator `bcdedit /set hypervisorlaunchtype off`, switch Memory \
     Integrity off, reboot"
        .to_owned()
}

/// Returns whether VirtualBox `version` can give a guest svm or vmx; `hostinfo_says` is what its
/// `Processor supports nested HW virtualization` says.
///
/// Nested AMD-V came with 6.0, nested VT-x with 6.1 (their change logs).
pub fn nesting(version: &Version, cpu: Option<Cpu>, hostinfo_says: Option<&str>) -> Nesting {
    let first = match cpu {
        Some(Cpu::Amd) => Version::new(6, 0, 0),
        Some(Cpu::Intel) | None => Version::new(6, 1, 0),
    };
    if *version < first {
        let name = if cpu == Some(Cpu::Amd) { "AMD" } else { "Intel" };
        return Nesting::Absent(format!(
            "VirtualBox {version} cannot nest on {name}: it takes {}.{} or newer",
            first.major, first.minor
        ));
    }
    if hostinfo_says == Some("no") {
        let around = Surroundings { cpu, ..Surroundings::default() };
        return Nesting::Absent(format!(
            "`VBoxManage list hostinfo` says `nested HW virtualization: no`: {}",
            nested_unavailable(&around).join("; ")
        ));
    }
    Nesting::Claimed
}

/// Returns the hints for a guest in which svm and vmx are absent although its VM has nested
/// virtualization on; only a look inside tells, VirtualBox reports no error.
pub fn nested_flag_absent() -> Vec<String> {
    vec![
        format!("if the host is Windows: {}", nem()),
        "if the host is itself a VM: switch on nested virtualization, with nested paging, for it, from \
         outside"
            .to_owned(),
        "the setting takes effect when the VM is started, not when it is rebooted: power it off and on"
            .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(kernel: &str, virtualbox: (u64, u64, u64)) -> Surroundings {
        Surroundings {
            kernel: Some(kernel.to_owned()),
            virtualbox: Some(Version::new(virtualbox.0, virtualbox.1, virtualbox.2)),
            cpu: Some(Cpu::Amd),
            kvm_loaded: true,
            secure_boot: SecureBoot::Off,
        }
    }

    #[test]
    fn kvm_and_virtualbox_get_on_as_their_versions_say() {
        for (kernel, virtualbox, beside) in [
            ((5, 10), (7, 0, 20), KvmBeside::FineWhileIdle),
            ((6, 11), (7, 2, 22), KvmBeside::FineWhileIdle),
            ((6, 12), (7, 2, 22), KvmBeside::MustLetGo),
            ((6, 15), (7, 2, 22), KvmBeside::MustLetGo),
            ((6, 16), (7, 2, 8), KvmBeside::MustLetGo),
            ((6, 16), (7, 2, 10), KvmBeside::LeaveAlone),
            ((7, 2), (7, 2, 22), KvmBeside::LeaveAlone),
        ] {
            let version = Version::new(virtualbox.0, virtualbox.1, virtualbox.2);
            assert_eq!(kvm_beside(kernel, &version), beside, "{kernel:?} {version}");
        }
    }

    #[test]
    fn the_remedy_for_kvm_in_the_way_inverts_with_the_kernel() {
        let old = hints(Fault::VirtualizationInUse, &around("6.12.9-amd64", (7, 2, 22))).join("\n");
        assert!(old.contains("boot with `kvm.enable_virt_at_load=0`"), "{old}");
        assert!(old.contains("modprobe -r kvm_amd kvm"), "{old}");

        let new = hints(Fault::VirtualizationNotEnabled, &around("7.2.13-amd64", (7, 2, 22)));
        let new = new.join("\n");
        assert!(new.contains("remove `kvm.enable_virt_at_load=0`"), "{new}");
        assert!(!new.contains("modprobe -r"), "{new}");
    }

    #[test]
    fn a_missing_driver_names_the_headers_of_the_running_kernel_unless_secure_boot_is_the_cause() {
        let mut around = around("7.2.13-amd64", (7, 2, 22));
        assert!(hints(Fault::Driver, &around)[0].contains("linux-headers-7.2.13-amd64"));
        around.secure_boot = SecureBoot::KeyMissing;
        assert!(hints(Fault::Driver, &around)[0].contains("mokutil --import"));
    }

    #[test]
    fn nesting_takes_6_0_on_amd_and_6_1_on_intel_and_a_processor_that_can() {
        let absent = |major, minor, cpu, says| {
            matches!(nesting(&Version::new(major, minor, 0), Some(cpu), says), Nesting::Absent(_))
        };
        assert!(absent(5, 2, Cpu::Amd, None));
        assert!(!absent(6, 0, Cpu::Amd, Some("yes")));
        assert!(absent(6, 0, Cpu::Intel, Some("yes")));
        assert!(!absent(6, 1, Cpu::Intel, Some("yes")));
        assert!(absent(7, 2, Cpu::Amd, Some("no")));
        assert_eq!(nesting(&Version::new(7, 2, 0), None, None), Nesting::Claimed);
    }

    #[test]
    fn kernel_releases_are_read_whatever_follows_the_numbers() {
        assert_eq!(kernel_number("7.2.13-amd64\n"), Some((7, 2)));
        assert_eq!(kernel_number("6.12"), Some((6, 12)));
        assert_eq!(kernel_number("23.6.0"), Some((23, 6)));
        assert_eq!(kernel_number("x"), None);
    }

    #[test]
    fn the_processor_is_told_by_its_flags() {
        assert_eq!(Cpu::from_flags("flags : fpu svm npt"), Some(Cpu::Amd));
        assert_eq!(Cpu::from_flags("fpu vmx ept"), Some(Cpu::Intel));
        assert_eq!(Cpu::from_flags("fpu svm_lock"), None);
    }
}
