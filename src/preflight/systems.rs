//! The systems that nestlab can find itself in, as data: how each is told, whether guests can run guests
//! there, and the exact setting that lets them. `docs/hosts.md` is generated from this table.
//!
//! DMI is asked before the processor: VirtualBox, for one, calls itself KVM in CPUID.

use super::host_report::{HostCommand, HostReport};

/// Whether a system lets its guests run guests of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// There is nothing in between.
    Native,
    /// Once the setting is on.
    Setting,
    /// On some of its machines only.
    Some,
    /// It emulates a processor that can.
    Emulated,
    /// Not at all.
    No,
}

impl Support {
    /// Returns the words for it.
    pub fn words(self) -> &'static str {
        match self {
            Support::Native => "yes, it is the machine itself",
            Support::Setting => "yes, with a setting",
            Support::Some => "on some machine types",
            Support::Emulated => "yes, emulated",
            Support::No => "no",
        }
    }
}

/// One sign by which a system is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemMarker {
    /// The DMI field contains the text.
    Dmi(&'static str, &'static str),
    /// There is no DMI table.
    NoDmi,
    /// The file or folder is there.
    File(&'static str),
    /// The file contains the text.
    Text(&'static str, &'static str),
    /// `systemd-detect-virt --vm` says so.
    Virt(&'static str),
    /// The processor says that a hypervisor runs it (the flag `hypervisor`).
    HypervisorFlag,
}

impl SystemMarker {
    fn seen(self, look: &HostReport) -> bool {
        let survey = &look.survey;
        match self {
            SystemMarker::Dmi(field, text) => survey.dmi(field).contains(text),
            SystemMarker::NoDmi => !survey.has("/sys/class/dmi/id"),
            SystemMarker::File(path) => survey.has(path),
            SystemMarker::Text(path, text) => {
                survey.text(path).is_some_and(|found| found.contains(text))
            }
            SystemMarker::Virt(name) => look.text(HostCommand::VirtualMachine) == name,
            SystemMarker::HypervisorFlag => {
                super::checks::processor::has_flag(survey, "hypervisor")
            }
        }
    }

    /// Returns where it is read, for a finding's source.
    fn source(self) -> String {
        match self {
            SystemMarker::Dmi(field, _) => format!("/sys/class/dmi/id/{field}"),
            SystemMarker::NoDmi => "/sys/class/dmi".to_owned(),
            SystemMarker::File(path) | SystemMarker::Text(path, _) => path.to_owned(),
            SystemMarker::Virt(_) => "systemd-detect-virt --vm".to_owned(),
            SystemMarker::HypervisorFlag => "/proc/cpuinfo".to_owned(),
        }
    }
}

impl std::fmt::Display for SystemMarker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SystemMarker::Dmi(field, text) => write!(f, "DMI `{field}` has `{text}`"),
            SystemMarker::NoDmi => f.write_str("no DMI table"),
            SystemMarker::File(path) => write!(f, "`{path}` is there"),
            SystemMarker::Text(path, text) => write!(f, "`{path}` has `{text}`"),
            SystemMarker::Virt(name) => write!(f, "`systemd-detect-virt --vm` says `{name}`"),
            SystemMarker::HypervisorFlag => f.write_str("the processor has the flag `hypervisor`"),
        }
    }
}

/// A system that nestlab can find itself in.
#[derive(Debug)]
pub struct System {
    /// Its name in findings and fixtures.
    pub id: &'static str,
    /// Its name for people.
    pub name: &'static str,
    /// How it is told: by all signs of one of these lists.
    pub signs: &'static [&'static [SystemMarker]],
    /// Whether guests can run guests there.
    pub support: Support,
    /// What to do so that they can, or why they cannot.
    pub advice: &'static str,
    /// The commands to type for it, on the machine around it.
    pub commands: &'static [&'static str],
    /// Where its makers say so.
    pub link: &'static str,
}

/// Every system, the more special before the more general.
pub const SYSTEMS: &[System] = &[
    System {
        id: "wsl1",
        name: "Windows Subsystem for Linux 1",
        signs: &[&[SystemMarker::Text("/proc/sys/kernel/osrelease", "-Microsoft")]],
        support: Support::No,
        advice: "It has no Linux kernel; convert the distribution to WSL 2, in PowerShell:",
        commands: &["wsl --set-version <distribution> 2"],
        link: "https://learn.microsoft.com/windows/wsl/compare-versions",
    },
    System {
        id: "wsl2",
        name: "Windows Subsystem for Linux 2",
        signs: &[
            &[SystemMarker::Text("/proc/sys/kernel/osrelease", "microsoft-standard-WSL2")],
            &[SystemMarker::Text("/proc/sys/kernel/osrelease", "WSL2")],
        ],
        support: Support::Setting,
        advice: "Windows 11 passes virtualization on if `%UserProfile%\\.wslconfig` has `nestedVirtualization=true` under `[wsl2]`; use QEMU with KVM, since VirtualBox finds no headers for this kernel. In PowerShell afterwards:",
        commands: &["wsl --shutdown"],
        link: "https://learn.microsoft.com/windows/wsl/wsl-config",
    },
    System {
        id: "qubes-dom0",
        name: "Qubes OS, dom0",
        signs: &[&[SystemMarker::File("/etc/qubes-release")]],
        support: Support::No,
        advice: "dom0 is no place for other hypervisors: Xen already has the processor. Use another machine, or name one in the recipe with `[host] ssh`.",
        commands: &[],
        link: "https://www.kicksecure.com/wiki/Nested_Virtualization#Qubes",
    },
    System {
        id: "qubes",
        name: "Qubes OS",
        signs: &[&[SystemMarker::File("/usr/share/qubes/marker-vm")]],
        support: Support::No,
        advice: "Qubes does not pass hardware virtualization on to its qubes and its developers do not support running VirtualBox or KVM in one. Use another machine, or name one in the recipe with `[host] ssh`.",
        commands: &[],
        link: "https://www.kicksecure.com/wiki/Nested_Virtualization#Qubes",
    },
    System {
        id: "aws-metal",
        name: "Amazon EC2, bare metal",
        signs: &[&[
            SystemMarker::Dmi("sys_vendor", "Amazon EC2"),
            SystemMarker::Dmi("product_name", ".metal"),
        ]],
        support: Support::Native,
        advice: "Nothing to do.",
        commands: &[],
        link: "https://aws.amazon.com/ec2/instance-types/",
    },
    System {
        id: "aws",
        name: "Amazon EC2",
        signs: &[&[SystemMarker::Dmi("sys_vendor", "Amazon EC2")]],
        support: Support::Some,
        advice: "C8i, M8i and R8i instances pass it on with a CPU option, and every `.metal` instance has it; other types do not. For a stopped C8i, M8i or R8i:",
        commands: &[
            "aws ec2 modify-instance-cpu-options --instance-id <id> --nested-virtualization enabled",
        ],
        link: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/amazon-ec2-nested-virtualization.html",
    },
    System {
        id: "google",
        name: "Google Compute Engine",
        signs: &[&[SystemMarker::Dmi("product_name", "Google Compute Engine")]],
        support: Support::Some,
        advice: "Intel machine types (N1, N2, C2, C3 …) pass it on; E2, Arm and most AMD types do not. For a stopped instance set `advancedMachineFeatures: enableNestedVirtualization: true`:",
        commands: &[
            "gcloud compute instances export <name> --destination=vm.yaml --zone=<zone>",
            "gcloud compute instances update-from-file <name> --source=vm.yaml --most-disruptive-allowed-action=RESTART --zone=<zone>",
        ],
        link: "https://cloud.google.com/compute/docs/instances/nested-virtualization/overview",
    },
    System {
        id: "azure",
        name: "Microsoft Azure",
        signs: &[&[
            SystemMarker::Dmi("sys_vendor", "Microsoft Corporation"),
            // The tag that every machine of Azure has and no other Hyper-V.
            SystemMarker::Dmi("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),
        ]],
        support: Support::Some,
        advice: "Sizes of Intel's D, E and F series from v3 on pass it on, with the security type `Standard`; it cannot be switched. Resize to one of them:",
        commands: &["az vm resize --resource-group <group> --name <name> --size Standard_D4s_v5"],
        link: "https://learn.microsoft.com/azure/virtual-machines/acu",
    },
    System {
        id: "digitalocean",
        name: "DigitalOcean",
        signs: &[&[SystemMarker::Dmi("sys_vendor", "DigitalOcean")]],
        support: Support::Some,
        advice: "Droplets on Intel processors mostly pass vmx on, without a promise; create another one if this one does not.",
        commands: &[],
        link: "https://docs.digitalocean.com/products/droplets/",
    },
    System {
        id: "hetzner",
        name: "Hetzner Cloud",
        signs: &[&[
            SystemMarker::Dmi("sys_vendor", "Hetzner"),
            SystemMarker::Dmi("product_name", "vServer"),
        ]],
        support: Support::No,
        advice: "Cloud servers do not pass it on; a dedicated server has it.",
        commands: &[],
        link: "https://docs.hetzner.com/cloud/servers/faq/",
    },
    System {
        id: "oracle-cloud",
        name: "Oracle Cloud",
        signs: &[&[SystemMarker::Dmi("chassis_asset_tag", "OracleCloud.com")]],
        support: Support::Some,
        advice: "Bare metal shapes have it, and Intel VM shapes pass vmx on; Arm shapes cannot run 64-bit x86 guests.",
        commands: &[],
        link: "https://docs.oracle.com/iaas/Content/Compute/References/computeshapes.htm",
    },
    System {
        id: "openstack",
        name: "OpenStack",
        signs: &[
            &[SystemMarker::Dmi("sys_vendor", "OpenStack Foundation")],
            &[SystemMarker::Dmi("product_name", "OpenStack Nova")],
        ],
        support: Support::Setting,
        advice: "On the compute nodes: KVM with nesting, and `cpu_mode = host-passthrough` under `[libvirt]` in nova.conf; then, on each, with no guest running:",
        commands: &["modprobe -r kvm_intel && modprobe kvm_intel nested=1"],
        link: "https://docs.openstack.org/nova/latest/admin/configuration/hypervisor-kvm.html",
    },
    System {
        id: "virtualbox",
        name: "VirtualBox",
        signs: &[
            &[SystemMarker::Dmi("product_name", "VirtualBox")],
            &[SystemMarker::Dmi("sys_vendor", "innotek GmbH")],
            &[SystemMarker::Virt("oracle")],
        ],
        support: Support::Setting,
        advice: "On its host, with this machine off. AMD machines get svm without nested paging, so that their own guests cannot nest any further:",
        commands: &["VBoxManage modifyvm <vm> --nested-hw-virt on --nested-paging on"],
        link: "https://docs.oracle.com/en/virtualization/virtualbox/7.2/user/AdvancedTopics.html",
    },
    System {
        id: "vmware",
        name: "VMware",
        signs: &[&[SystemMarker::Dmi("sys_vendor", "VMware")], &[SystemMarker::Virt("vmware")]],
        support: Support::Setting,
        advice: "On its host, with this machine off: put `vhv.enable = \"TRUE\"` into its .vmx file (Workstation and Fusion: Processors, \"Virtualize Intel VT-x/EPT or AMD-V/RVI\").",
        commands: &["echo 'vhv.enable = \"TRUE\"' >> <vm>.vmx"],
        link: "https://techdocs.broadcom.com/us/en/vmware-cis/desktop-hypervisors.html",
    },
    System {
        id: "parallels",
        name: "Parallels Desktop",
        signs: &[
            &[SystemMarker::Dmi("sys_vendor", "Parallels")],
            &[SystemMarker::Virt("parallels")],
        ],
        support: Support::Setting,
        advice: "In the Pro edition on an Intel Mac, with this machine off; not on Apple silicon:",
        commands: &["prlctl set <vm> --nested-virt on"],
        link: "https://kb.parallels.com/116239",
    },
    System {
        id: "apple",
        name: "Apple's Virtualization framework",
        signs: &[
            &[SystemMarker::Dmi("product_name", "Apple Virtualization")],
            &[SystemMarker::Virt("apple")],
        ],
        support: Support::Some,
        advice: "Nesting needs an M3 or newer and macOS 15 or newer, and Macs with such processors run no 64-bit x86 guests at speed: use another machine, with `[host] ssh` in the recipe.",
        commands: &[],
        link: "https://developer.apple.com/documentation/virtualization/vzgenericplatformconfiguration",
    },
    System {
        id: "hyper-v",
        name: "Microsoft Hyper-V",
        signs: &[
            &[
                SystemMarker::Dmi("sys_vendor", "Microsoft Corporation"),
                SystemMarker::Dmi("product_name", "Virtual Machine"),
            ],
            &[SystemMarker::Virt("microsoft")],
        ],
        support: Support::Setting,
        advice: "On its host, in PowerShell as administrator, with this machine off:",
        commands: &["Set-VMProcessor -VMName <vm> -ExposeVirtualizationExtensions $true"],
        link: "https://learn.microsoft.com/virtualization/hyper-v-on-windows/user-guide/nested-virtualization",
    },
    System {
        id: "xen-dom0",
        name: "Xen, dom0",
        signs: &[&[SystemMarker::Text("/proc/xen/capabilities", "control_d")]],
        support: Support::No,
        advice: "Xen already has the processor: boot the same system without Xen (in the boot menu, the entry without it) to use KVM or VirtualBox.",
        commands: &[],
        link: "https://wiki.xenproject.org/wiki/Nested_Virtualization_in_Xen",
    },
    System {
        id: "xen",
        name: "Xen",
        signs: &[
            &[SystemMarker::Text("/sys/hypervisor/type", "xen")],
            &[SystemMarker::Dmi("sys_vendor", "Xen")],
            &[SystemMarker::File("/proc/xen")],
            &[SystemMarker::Virt("xen")],
        ],
        support: Support::Setting,
        advice: "Experimental in Xen. In this machine's configuration on its host: `type = \"hvm\"`, `hap = 1` and `nestedhvm = 1`; then start it anew:",
        commands: &["xl shutdown <vm>", "xl create /etc/xen/<vm>.cfg"],
        link: "https://wiki.xenproject.org/wiki/Nested_Virtualization_in_Xen",
    },
    System {
        id: "bhyve",
        name: "bhyve",
        signs: &[&[SystemMarker::Dmi("product_name", "BHYVE")], &[SystemMarker::Virt("bhyve")]],
        support: Support::No,
        advice: "bhyve does not pass it on: use another machine, or name one in the recipe with `[host] ssh`.",
        commands: &[],
        link: "https://wiki.freebsd.org/bhyve",
    },
    System {
        id: "qemu-tcg",
        name: "QEMU, emulating (TCG)",
        signs: &[
            &[SystemMarker::Virt("qemu")],
            &[SystemMarker::Text("/proc/cpuinfo", "QEMU TCG CPU")],
        ],
        support: Support::Emulated,
        advice: "TCG emulates AMD's SVM with nested paging, and no VMX. On its host:",
        commands: &["qemu-system-x86_64 -accel tcg,thread=multi -cpu EPYC,+svm,+npt …"],
        link: "https://www.qemu.org/docs/master/system/i386/cpu.html",
    },
    System {
        id: "micro-vm",
        name: "a KVM micro-VM (Firecracker, Cloud Hypervisor, crosvm)",
        signs: &[
            &[SystemMarker::NoDmi, SystemMarker::Virt("kvm")],
            &[SystemMarker::NoDmi, SystemMarker::Virt("amazon")],
            &[
                SystemMarker::NoDmi,
                SystemMarker::Text(
                    "/sys/devices/system/clocksource/clocksource0/available_clocksource",
                    "kvm-clock",
                ),
            ],
        ],
        support: Support::Some,
        advice: "Who runs it decides, with its CPU template; Firecracker does not support nesting. QEMU emulates what is missing.",
        commands: &[],
        link: "https://github.com/firecracker-microvm/firecracker/blob/main/docs/cpu_templates/cpu-templates.md",
    },
    System {
        id: "kvm",
        name: "KVM",
        signs: &[
            &[SystemMarker::Virt("kvm")],
            &[SystemMarker::Text(
                "/sys/devices/system/clocksource/clocksource0/available_clocksource",
                "kvm-clock",
            )],
            &[SystemMarker::Dmi("sys_vendor", "QEMU")],
        ],
        support: Support::Setting,
        advice: "On its host, with no guest running, switch nesting on (kvm_amd: the same), then give this machine the host's processor (libvirt: `<cpu mode='host-passthrough'/>`, QEMU: `-cpu host`, Proxmox: CPU type `host`):",
        commands: &[
            "modprobe -r kvm_intel && modprobe kvm_intel nested=1",
            "virt-xml <vm> --edit --cpu host-passthrough",
        ],
        link: "https://docs.kernel.org/virt/kvm/x86/running-nested-guests.html",
    },
    System {
        id: "unknown-vm",
        name: "a virtual machine of a kind that nestlab does not know",
        signs: &[&[SystemMarker::HypervisorFlag]],
        support: Support::Some,
        advice: "Look in the settings of what runs it for nested virtualization.",
        commands: &[],
        link: "",
    },
    System {
        id: "bare-metal",
        name: "bare metal",
        signs: &[&[]],
        support: Support::Native,
        advice: "In the firmware's settings (Del, F2 or F10 while it starts; often under Advanced, CPU), switch on \"Intel Virtualization Technology\" or \"SVM Mode\", then switch the machine off and on:",
        commands: &["systemctl reboot --firmware-setup"],
        link: "https://support.microsoft.com/windows/enable-virtualization-on-windows-c5578302-6e43-4b4b-a449-8ced115f58e1",
    },
];

/// Returns the system that `look` shows, and where that was read. Pure.
pub(super) fn tell(look: &HostReport) -> (&'static System, String) {
    let told = SYSTEMS.iter().find_map(|system| {
        let signs = system.signs.iter().find(|signs| signs.iter().all(|sign| sign.seen(look)))?;
        let sources: Vec<_> = signs.iter().map(|sign| sign.source()).collect();
        Some((system, sources.join(", ")))
    });
    let (system, source) = told.expect("the last system of the table has no sign to look for");
    let everywhere = "DMI, systemd-detect-virt and /proc/cpuinfo show nothing around it";
    (system, if source.is_empty() { everywhere.to_owned() } else { source })
}
