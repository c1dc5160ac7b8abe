//! The checks: pure functions from what a host told to findings.

mod escape;
mod hypervisors;
mod kernel;
pub(super) mod kvm;
pub(super) mod network;
mod packages;
pub(super) mod processor;
mod resources;
pub(super) mod surroundings;
mod virtualbox;

use super::host_report::HostReport;
use super::needs::{Needs, Stage};
use super::{Finding, Verdict};

/// A check: its id, what it asks, and how it is answered.
pub(super) struct HostCheck {
    /// The id in findings.
    pub(super) id: &'static str,
    /// What it asks, for the page.
    pub(super) question: &'static str,
    judge: fn(&HostReport, &Needs) -> Finding,
}

/// Every check that is answered from a look, in the order in which they are told.
pub(super) const CHECKS: &[HostCheck] = &[
    HostCheck {
        id: "architecture",
        question: "Is it a 64-bit x86 processor with a 64-bit system?",
        judge: processor::architecture,
    },
    HostCheck {
        id: "system",
        question: "What does it run under, and can guests run guests there?",
        judge: surroundings::system,
    },
    HostCheck { id: "container", question: "Is it a container?", judge: surroundings::container },
    HostCheck {
        id: "virtualization",
        question: "Does the processor show svm or vmx?",
        judge: processor::virtualization,
    },
    HostCheck {
        id: "nested-paging",
        question: "Does it walk guests' page tables (NPT, EPT)?",
        judge: processor::nested_paging,
    },
    HostCheck {
        id: "unrestricted-guest",
        question: "Can an Intel processor run guests in real mode?",
        judge: processor::unrestricted_guest,
    },
    HostCheck {
        id: "firmware-lock",
        question: "Does the firmware keep virtualization off?",
        judge: processor::firmware_lock,
    },
    HostCheck {
        id: "hypervisor",
        question: "Is there a hypervisor that can run guests?",
        judge: hypervisors::hypervisor,
    },
    HostCheck {
        id: "kvm-device",
        question: "Is /dev/kvm there, for this user?",
        judge: kvm::device,
    },
    HostCheck {
        id: "kvm-runs-guests",
        question: "Does a micro-guest really run on KVM?",
        judge: kvm::runs_guests,
    },
    HostCheck {
        id: "kvm-nested",
        question: "Does KVM pass virtualization on to its guests?",
        judge: kvm::nested,
    },
    HostCheck {
        id: "nesting-escape",
        question: "Does this kernel hold a guest of KVM that nests (CVE-2026-53359, CVE-2026-46113)?",
        judge: escape::nesting,
    },
    HostCheck {
        id: "virtualbox-version",
        question: "Is VirtualBox there, and new enough to nest?",
        judge: virtualbox::version,
    },
    HostCheck {
        id: "virtualbox-driver",
        question: "Is VirtualBox's kernel driver loaded?",
        judge: virtualbox::driver,
    },
    HostCheck {
        id: "virtualbox-group",
        question: "May this user use VirtualBox fully?",
        judge: virtualbox::group,
    },
    HostCheck {
        id: "virtualbox-nem",
        question: "Does VirtualBox have to share the processor with Hyper-V?",
        judge: virtualbox::nem,
    },
    HostCheck {
        id: "kvm-and-virtualbox",
        question: "Do KVM and VirtualBox get on with each other here?",
        judge: virtualbox::beside_kvm,
    },
    HostCheck {
        id: "mixed-hypervisors",
        question: "Do different hypervisors stand on top of each other?",
        judge: hypervisors::mixed,
    },
    HostCheck {
        id: "secure-boot",
        question: "Does Secure Boot let VirtualBox's driver in?",
        judge: kernel::secure_boot,
    },
    HostCheck {
        id: "kernel-headers",
        question: "Can modules be built for the running kernel?",
        judge: kernel::headers,
    },
    HostCheck {
        id: "pending-reboot",
        question: "Does the machine wait for a reboot?",
        judge: kernel::pending_reboot,
    },
    HostCheck { id: "packages", question: "Are all packages whole?", judge: packages::whole },
    HostCheck { id: "root", question: "Can packages be installed?", judge: packages::root },
    HostCheck {
        id: "cpus",
        question: "Are there enough cores for every level?",
        judge: resources::cpus,
    },
    HostCheck {
        id: "memory",
        question: "Is there enough memory for every level?",
        judge: resources::memory,
    },
    HostCheck { id: "disk", question: "Is there enough disk space?", judge: resources::disk },
    HostCheck {
        id: "subnets",
        question: "Do the guests' networks differ from those around them?",
        judge: network::subnets,
    },
    HostCheck {
        id: "host-loopback",
        question: "Do guests reach services on this host's loopback, or need what is there?",
        judge: network::loopback,
    },
    HostCheck {
        id: "ports",
        question: "Are there free ports for forwarding?",
        judge: network::ports,
    },
    HostCheck { id: "clock", question: "Is the clock right?", judge: kernel::clock },
    HostCheck {
        id: "clock-source",
        question: "Does a VM's kernel read its clock without leaving the VM?",
        judge: kernel::clock_source,
    },
];

/// Checks of what nestlab itself sees to in a guest that is to run guests: before that, they say nothing.
const PROVISIONED: [&str; 12] = [
    "hypervisor",
    "kvm-device",
    "kvm-runs-guests",
    "kvm-nested",
    "nesting-escape",
    "virtualbox-version",
    "virtualbox-driver",
    "virtualbox-group",
    "kvm-and-virtualbox",
    "kernel-headers",
    "pending-reboot",
    "packages",
];

/// Checks that are answered by every `up`: a kernel, a setting or a VirtualBox that came since the lab was begun
/// can take the whole host down, or let a guest out. They read files and ask VirtualBox, nothing else.
const EVERY_TIME: [&str; 3] = ["kvm-nested", "nesting-escape", "kvm-and-virtualbox"];

/// Answers the checks of [`EVERY_TIME`].
pub(super) fn judge_again(look: &HostReport, needs: &Needs) -> Vec<Finding> {
    let again = CHECKS.iter().filter(|check| EVERY_TIME.contains(&check.id));
    again.map(|check| (check.judge)(look, needs)).collect()
}

/// Answers every check.
pub(super) fn judge(look: &HostReport, needs: &Needs) -> Vec<Finding> {
    let answer = |check: &HostCheck| match needs.stage {
        Stage::Reached if PROVISIONED.contains(&check.id) => {
            not_applicable(check.id, "nestlab sees to it next")
        }
        _ => (check.judge)(look, needs),
    };
    CHECKS.iter().map(answer).collect()
}

/// Returns the finding of a check that does not matter here, and why.
fn not_applicable(id: &'static str, why: impl Into<String>) -> Finding {
    Finding::new(id, Verdict::NotApplicable, why)
}
