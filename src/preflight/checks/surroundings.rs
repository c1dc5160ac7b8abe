//! What the machine runs under.

use super::{not_applicable, processor};
use crate::preflight::host_report::{HostCommand, HostReport};
use crate::preflight::needs::Needs;
use crate::preflight::systems::{self, Support};
use crate::preflight::{Finding, Verdict};
use crate::recipe::HypervisorKind;

pub(super) fn system(look: &HostReport, needs: &Needs) -> Finding {
    let (system, source) = systems::tell(look);
    let has = processor::virtualization_of(&look.survey).is_some();
    let verdict = match system.support {
        Support::No => needs.fail("system"),
        // What its processor lacks is told by `virtualization`.
        Support::Native => Verdict::Ok,
        _ if has => Verdict::Ok,
        // QEMU emulates what is missing; VirtualBox does not.
        _ if needs.requires(HypervisorKind::VirtualBox) => Verdict::Fail,
        _ => Verdict::Warn,
    };
    let found = match (system.support, has) {
        (Support::Native, _) => system.name.to_owned(),
        (Support::No, _) => format!("{}, which does not let guests run guests", system.name),
        (_, true) => format!("{}, which passes virtualization on", system.name),
        (_, false) => format!("{}, which does not pass virtualization on", system.name),
    };
    let finding = Finding::new("system", verdict, found).from(source);
    if verdict == Verdict::Ok {
        return finding;
    }
    let advice = match system.link {
        "" => system.advice.to_owned(),
        link => format!("{} See {link}", system.advice),
    };
    system
        .commands
        .iter()
        .fold(finding.remedy(advice), |finding, command| finding.command(*command))
}

pub(super) fn container(look: &HostReport, _needs: &Needs) -> Finding {
    let id = "container";
    let (name, source) = container_name(look);
    let Some(name) = name else {
        return not_applicable(id, "no").from(source);
    };
    Finding::new(id, Verdict::Warn, format!("{name}: its kernel and modules are the host's"))
        .from(source)
        .remedy("VirtualBox's driver must be loaded outside; KVM needs the device, so start the container with it:")
        .command("docker run --device /dev/kvm …")
}

/// Returns whether it is a container.
pub(in crate::preflight) fn is_container(look: &HostReport) -> bool {
    container_name(look).0.is_some()
}

/// Returns the kind of container, and where that is read.
fn container_name(look: &HostReport) -> (Option<String>, String) {
    let survey = &look.survey;
    let told = look.text(HostCommand::Container);
    // WSL counts as a container for systemd; here it is a system of its own.
    if !told.is_empty() && told != "none" && told != "wsl" {
        return (Some(told.to_owned()), "systemd-detect-virt --container".to_owned());
    }
    let files = [("/.dockerenv", "docker"), ("/run/.containerenv", "podman")];
    if let Some((path, name)) = files.iter().find(|(path, _)| survey.has(path)) {
        return (Some((*name).to_owned()), (*path).to_owned());
    }
    let file = "/run/systemd/container";
    (survey.text(file).filter(|name| !name.is_empty()), file.to_owned())
}
