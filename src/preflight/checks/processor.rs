//! The processor: 64-bit x86, hardware virtualization and what belongs to it.

use super::not_applicable;
use crate::guest::virt_check::Virtualization;
use crate::preflight::host_files::HostFiles;
use crate::preflight::host_report::{HostCommand, HostReport};
use crate::preflight::needs::Needs;
use crate::preflight::systems::{self, Support};
use crate::preflight::{Finding, Verdict};
use crate::recipe::HypervisorKind;

const CPUINFO: &str = "/proc/cpuinfo";

/// Returns whether the first processor has `flag`.
pub(in crate::preflight) fn has_flag(survey: &HostFiles, flag: &str) -> bool {
    let cpuinfo = survey.text(CPUINFO).unwrap_or_default();
    ["flags", "vmx flags"].iter().any(|list| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().map(str::trim) == Some(list));
        line.is_some_and(|line| line.split_whitespace().any(|word| word == flag))
    })
}

/// Returns the hardware virtualization that the processor shows.
pub(in crate::preflight) fn virtualization_of(survey: &HostFiles) -> Option<Virtualization> {
    match (has_flag(survey, "svm"), has_flag(survey, "vmx")) {
        (true, _) => Some(Virtualization::Svm),
        (_, true) => Some(Virtualization::Vmx),
        _ => None,
    }
}

pub(super) fn architecture(look: &HostReport, _needs: &Needs) -> Finding {
    let machine = look.text(HostCommand::Architecture);
    let long_mode = has_flag(&look.survey, "lm");
    let os = look.survey.os("PRETTY_NAME").unwrap_or_else(|| "an unknown system".to_owned());
    let verdict = if machine == "x86_64" && long_mode { Verdict::Ok } else { Verdict::Fail };
    let finding = Finding::new("architecture", verdict, format!("{machine}, {os}"))
        .from("uname -m, /proc/cpuinfo, /etc/os-release");
    match verdict {
        Verdict::Ok => finding,
        _ => finding.remedy(
            "nestlab runs 64-bit x86 guests on 64-bit x86 systems only; name another machine with `[host] ssh` in the recipe",
        ),
    }
}

pub(super) fn virtualization(look: &HostReport, needs: &Needs) -> Finding {
    let id = "virtualization";
    if let Some(kind) = virtualization_of(&look.survey) {
        return Finding::new(id, Verdict::Ok, kind.to_string()).from(CPUINFO);
    }
    // QEMU emulates what is missing; VirtualBox does not.
    let needed = needs.requires(HypervisorKind::VirtualBox);
    let verdict = if needed { Verdict::Fail } else { Verdict::Warn };
    let found = if needed {
        "neither svm nor vmx"
    } else {
        "neither svm nor vmx: guests are emulated, ten to thirty times slower"
    };
    let finding = Finding::new(id, verdict, found).from(CPUINFO);
    let (system, _) = systems::tell(look);
    if system.support != Support::Native {
        return finding.remedy("it is for the machine around this one to pass it on; see `system`");
    }
    let commands = system.commands.iter();
    commands.fold(finding.remedy(system.advice), |finding, command| finding.command(*command))
}

pub(super) fn nested_paging(look: &HostReport, needs: &Needs) -> Finding {
    let id = "nested-paging";
    let Some(kind) = virtualization_of(&look.survey) else {
        return not_applicable(id, "no hardware virtualization").from(CPUINFO);
    };
    let name = kind.nested_paging();
    let (flag, module, parameter) = match kind {
        Virtualization::Svm => ("npt", "kvm_amd", "npt"),
        Virtualization::Vmx => ("ept", "kvm_intel", "ept"),
    };
    let source = format!("{CPUINFO}, /sys/module/{module}/parameters/{parameter}");
    let setting = look.survey.parameter(module, parameter);
    if setting.as_deref().is_some_and(|value| matches!(value, "N" | "0")) {
        let verdict = if needs.nests { Verdict::Fail } else { Verdict::Warn };
        return Finding::new(id, verdict, format!("{name} is switched off in {module}"))
            .from(source)
            .remedy("Switch it on, with no guest running:")
            .command(format!("modprobe -r {module} && modprobe {module} {parameter}=1"));
    }
    // Older kernels show EPT only in what KVM makes of it.
    if has_flag(&look.survey, flag) || setting.is_some() {
        return Finding::new(id, Verdict::Ok, name).from(source);
    }
    let verdict = if needs.nests { Verdict::Fail } else { Verdict::Warn };
    Finding::new(id, verdict, format!("{kind} without {name}: guests cannot nest any further"))
        .from(source)
        .remedy(format!(
            "the machine around it must pass {name} on; VirtualBox does not do so for AMD guests"
        ))
}

pub(super) fn unrestricted_guest(look: &HostReport, needs: &Needs) -> Finding {
    let id = "unrestricted-guest";
    if virtualization_of(&look.survey) != Some(Virtualization::Vmx) {
        return not_applicable(id, "only Intel's vmx knows it").from(CPUINFO);
    }
    let source = format!("{CPUINFO}, /sys/module/kvm_intel/parameters/unrestricted_guest");
    let setting = look.survey.parameter("kvm_intel", "unrestricted_guest");
    let absent = setting.as_deref().is_some_and(|value| matches!(value, "N" | "0"));
    match (absent, setting.is_some() || has_flag(&look.survey, "unrestricted_guest")) {
        (false, true) => Finding::new(id, Verdict::Ok, "yes").from(source),
        (false, false) => not_applicable(id, "neither KVM nor this kernel tells").from(source),
        (true, _) => {
            let verdict = if needs.nests { Verdict::Fail } else { Verdict::Warn };
            Finding::new(id, verdict, "no: VirtualBox cannot nest without it").from(source).remedy(
                "it takes a processor of the Westmere generation or newer, and EPT switched on",
            )
        }
    }
}

pub(super) fn firmware_lock(look: &HostReport, _needs: &Needs) -> Finding {
    let id = "firmware-lock";
    let source = "dmesg";
    let said = look.text(HostCommand::FirmwareLock);
    if said.is_empty() {
        return match virtualization_of(&look.survey) {
            Some(_) => Finding::new(id, Verdict::Ok, "virtualization is not locked").from(CPUINFO),
            None => not_applicable(id, "the kernel says nothing of it").from(source),
        };
    }
    Finding::new(id, Verdict::Fail, said)
        .from(source)
        .remedy("Switch on \"Intel Virtualization Technology\" or \"SVM Mode\" in the firmware's settings, then switch the machine off and on:")
        .command("systemctl reboot --firmware-setup")
}
