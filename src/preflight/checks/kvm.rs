//! KVM.

use super::{escape, not_applicable, processor};
use crate::guest::virt_check::Virtualization;
use crate::hypervisor::{Acceleration, Nesting};
use crate::preflight::host_report::{HostCommand, HostReport};
use crate::preflight::needs::Needs;
use crate::preflight::{Finding, Verdict};
use crate::recipe::HypervisorKind;

const DEVICE: &str = "/dev/kvm";

/// Returns the KVM module for the processor.
pub(in crate::preflight) fn module(kind: Virtualization) -> &'static str {
    match kind {
        Virtualization::Svm => "kvm_amd",
        Virtualization::Vmx => "kvm_intel",
    }
}

fn unused(id: &'static str, needs: &Needs) -> Option<Finding> {
    needs
        .excludes(HypervisorKind::Qemu)
        .then(|| not_applicable(id, "VirtualBox runs the guests here"))
}

pub(super) fn device(look: &HostReport, needs: &Needs) -> Finding {
    let id = "kvm-device";
    if let Some(finding) = unused(id, needs) {
        return finding;
    }
    if look.survey.usable(DEVICE) {
        return Finding::new(id, Verdict::Ok, "there, and this user may use it").from(DEVICE);
    }
    if look.survey.has(DEVICE) {
        return Finding::new(id, Verdict::Warn, "there, and this user may not use it")
            .from(DEVICE)
            .remedy("Join its group, then log in anew:")
            .command("sudo usermod -aG kvm \"$USER\"");
    }
    match processor::virtualization_of(&look.survey) {
        None => not_applicable(id, "no hardware virtualization").from("/proc/cpuinfo"),
        Some(kind) => Finding::new(id, Verdict::Warn, "not there")
            .from(DEVICE)
            .remedy("Load KVM's module:")
            .command(format!("sudo modprobe {}", module(kind))),
    }
}

pub(super) fn runs_guests(look: &HostReport, needs: &Needs) -> Finding {
    let id = "kvm-runs-guests";
    if let Some(finding) = unused(id, needs) {
        return finding;
    }
    let source = "a micro-guest, run on it";
    if !look.survey.has(DEVICE) {
        return not_applicable(id, "no /dev/kvm").from(DEVICE);
    }
    match look.probe(HypervisorKind::Qemu) {
        Some(Ok(probe)) if probe.acceleration == Acceleration::Kvm => {
            Finding::new(id, Verdict::Ok, "yes, a micro-guest ran").from(source)
        }
        Some(Ok(probe)) => {
            let why = probe.notes.first().map_or("", String::as_str);
            Finding::new(id, Verdict::Warn, format!("no, QEMU emulates instead: {why}"))
                .from(source)
                .remedy("a device that opens is not enough: the machine around it must pass on all of virtualization, or this kernel's KVM is of another kind")
        }
        Some(Err(error)) => {
            not_applicable(id, format!("QEMU could not be asked: {}", error.message())).from(source)
        }
        None => not_applicable(id, "QEMU was not asked").from(source),
    }
}

pub(super) fn nested(look: &HostReport, needs: &Needs) -> Finding {
    let id = "kvm-nested";
    if let Some(finding) = unused(id, needs) {
        return finding;
    }
    let kind = processor::virtualization_of(&look.survey);
    let Some(module) = kind.map(module).filter(|module| look.survey.has_module(module)) else {
        return not_applicable(id, "KVM is not loaded").from("/sys/module");
    };
    let source = format!("/sys/module/{module}/parameters/nested");
    match look.survey.parameter(module, "nested").as_deref() {
        Some("Y" | "1") => {
            let finding = Finding::new(id, Verdict::Ok, "on").from(source);
            match look.probe(HypervisorKind::Qemu).map(|probe| probe.as_ref().map(|p| &p.nesting)) {
                Some(Ok(Nesting::Absent(why))) => Finding {
                    verdict: if needs.nests { Verdict::Warn } else { Verdict::Ok },
                    found: format!(
                        "on, but guests do not get it: {}",
                        crate::event::printable(why)
                    ),
                    ..finding
                },
                _ => finding,
            }
        }
        Some(_) => switched_off(look, needs, module).from(source),
        None => not_applicable(id, "the module does not tell").from(source),
    }
}

fn switched_off(look: &HostReport, needs: &Needs, module: &str) -> Finding {
    let needed = needs.nests_in(HypervisorKind::Qemu) && needs.requires(HypervisorKind::Qemu);
    let verdict = if needed { Verdict::Fail } else { Verdict::Warn };
    if let Some(file) = look.survey.switches_off(module, "nested") {
        return on_purpose(verdict, file);
    }
    let finding = Finding::new("kvm-nested", verdict, "off");
    let keep =
        format!("echo 'options {module} nested=1' | sudo tee /etc/modprobe.d/nestlab-kvm.conf");
    let running = look.survey.module_users(module).unwrap_or(0);
    let finding = if running > 0 {
        finding.remedy(format!(
            "Switch it on; {running} guests run now and must end before the module can be loaded anew:"
        ))
    } else {
        finding.remedy("Switch it on:")
    };
    finding.command(keep).command(format!("sudo modprobe -r {module} && sudo modprobe {module}"))
}

/// Hosts were told to switch nesting off against guests that break out of KVM by it: what somebody has
/// decided is not for nestlab to undo.
fn on_purpose(verdict: Verdict, file: &str) -> Finding {
    Finding::new("kvm-nested", verdict, format!("off, on purpose: {file} sets `nested=0`"))
        .remedy(format!(
            "somebody switched it off, as many did against {}: ask why, and look at `nesting-escape` before you take it out of {file} and load the module anew",
            escape::NAMES
        ))
}

/// Returns whether KVM guests run on the host, as the use count of its module tells.
pub(in crate::preflight) fn running_guests(look: &HostReport) -> u32 {
    let modules = ["kvm_amd", "kvm_intel"];
    modules.iter().filter_map(|module| look.survey.module_users(module)).sum()
}

/// Returns whether the user is in the group `name`.
pub(in crate::preflight) fn in_group(look: &HostReport, name: &str) -> bool {
    // uid=1000(u) gid=1000(u) groups=1000(u),27(sudo)
    let id = look.text(HostCommand::User);
    id.contains(&format!("({name})"))
}

/// Returns whether the user is root.
pub(in crate::preflight) fn is_root(look: &HostReport) -> bool {
    look.text(HostCommand::User).starts_with("uid=0(")
}

/// Returns the user's name.
pub(in crate::preflight) fn user_name(look: &HostReport) -> Option<String> {
    let id = look.text(HostCommand::User);
    let (_, rest) = id.strip_prefix("uid=")?.split_once('(')?;
    Some(rest.split_once(')')?.0.to_owned())
}
