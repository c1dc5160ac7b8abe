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

use super::look::Look;
use super::needs::{Needs, Stage};
use super::{Finding, Verdict};

/// A check: its id, what it asks, and how it is answered.
pub(super) struct Check {
    /// The id in findings.
    pub(super) id: &'static str,
    /// What it asks, for the page.
    pub(super) question: &'static str,
    judge: fn(&Look, &Needs) -> Finding,
}

/// Every check that is answered from a look, in the order in which they are told.
pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "architecture",
        question: "Is it a 64-bit x86 processor with a 64-bit system?",
        judge: processor::architecture,
    },
    Check {
        id: "system",
        question: "What does it run under, and can guests run guests there?",
        judge: surroundings::system,
    },
    Check { id: "container", question: "Is it a container?", judge: surroundings::container },
    Check {
        id: "virtualization",
        question: "Does the processor show svm or vmx?",
        judge: processor::virtualization,
    },
    Check {
        id: "nested-paging",
        question: "Does it walk guests' page tables (NPT, EPT)?",
        judge: processor::nested_paging,
    },
    Check {
        id: "unrestricted-guest",
        question: "Can an Intel processor run guests in real mode?",
        judge: processor::unrestricted_guest,
    },
    Check {
        id: "firmware-lock",
        question: "Does the firmware keep virtualization off?",
        judge: processor::firmware_lock,
    },
    Check {
        id: "hypervisor",
        question: "Is there a hypervisor that can run guests?",
        judge: hypervisors::hypervisor,
    },
    Check { id: "kvm-device", question: "Is /dev/kvm there, for this user?", judge: kvm::device },
    Check {
        id: "kvm-runs-guests",
        question: "Does a micro-guest really run on KVM?",
        judge: kvm::runs_guests,
    },
    Check {
        id: "kvm-nested",
        question: "Does KVM pass virtualization on to its guests?",
        judge: kvm::nested,
    },
    Check {
        id: "nesting-escape",
        question: "Does this kernel hold a guest of KVM that nests (CVE-2026-53359, CVE-2026-46113)?",
        judge: escape::nesting,
    },
    Check {
        id: "virtualbox-version",
        question: "Is VirtualBox there, and new enough to nest?",
        judge: virtualbox::version,
    },
    Check {
        id: "virtualbox-driver",
        question: "Is VirtualBox's kernel driver loaded?",
        judge: virtualbox::driver,
    },
    Check {
        id: "virtualbox-group",
        question: "May this user use VirtualBox fully?",
        judge: virtualbox::group,
    },
    Check {
        id: "virtualbox-nem",
        question: "Does VirtualBox have to share the processor with Hyper-V?",
        judge: virtualbox::nem,
    },
    Check {
        id: "kvm-and-virtualbox",
        question: "Do KVM and VirtualBox get on with each other here?",
        judge: virtualbox::beside_kvm,
    },
    Check {
        id: "mixed-hypervisors",
        question: "Do different hypervisors stand on top of each other?",
        judge: hypervisors::mixed,
    },
    Check {
        id: "secure-boot",
        question: "Does Secure Boot let VirtualBox's driver in?",
        judge: kernel::secure_boot,
    },
    Check {
        id: "kernel-headers",
        question: "Can modules be built for the running kernel?",
        judge: kernel::headers,
    },
    Check {
        id: "pending-reboot",
        question: "Does the machine wait for a reboot?",
        judge: kernel::pending_reboot,
    },
    Check { id: "packages", question: "Are all packages whole?", judge: packages::whole },
    Check { id: "root", question: "Can packages be installed?", judge: packages::root },
    Check {
        id: "cpus",
        question: "Are there enough cores for every level?",
        judge: resources::cpus,
    },
    Check {
        id: "memory",
        question: "Is there enough memory for every level?",
        judge: resources::memory,
    },
    Check { id: "disk", question: "Is there enough disk space?", judge: resources::disk },
    Check {
        id: "subnets",
        question: "Do the guests' networks differ from those around them?",
        judge: network::subnets,
    },
    Check {
        id: "host-loopback",
        question: "Do guests reach services on this host's loopback, or need what is there?",
        judge: network::loopback,
    },
    Check { id: "ports", question: "Are there free ports for forwarding?", judge: network::ports },
    Check { id: "clock", question: "Is the clock right?", judge: kernel::clock },
    Check {
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
pub(super) fn judge_again(look: &Look, needs: &Needs) -> Vec<Finding> {
    let again = CHECKS.iter().filter(|check| EVERY_TIME.contains(&check.id));
    again.map(|check| (check.judge)(look, needs)).collect()
}

/// Answers every check.
pub(super) fn judge(look: &Look, needs: &Needs) -> Vec<Finding> {
    let answer = |check: &Check| match needs.stage {
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
