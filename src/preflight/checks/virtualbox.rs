//! VirtualBox.

use super::{kvm, not_applicable, processor};
use crate::guest::virt_check::Virtualization;
use crate::hypervisor::Nesting;
use crate::hypervisor::virtualbox::remedies::{KvmBeside, kernel_number, kvm_beside};
use crate::preflight::host_report::HostReport;
use crate::preflight::needs::Needs;
use crate::preflight::systems;
use crate::preflight::{Finding, Verdict};
use crate::recipe::HypervisorKind;

const DEVICE: &str = "/dev/vboxdrv";

/// Returns the version, if VirtualBox is there and can be asked.
fn found(look: &HostReport) -> Option<&semver::Version> {
    Some(&look.probe(HypervisorKind::VirtualBox)?.as_ref().ok()?.version)
}

/// Returns the version as VirtualBox prints it, such as `7.2.22_Debianr175245`.
fn found_text(look: &HostReport) -> Option<&str> {
    Some(&look.probe(HypervisorKind::VirtualBox)?.as_ref().ok()?.version_text)
}

/// Returns the finding for a host where VirtualBox is neither there nor wanted.
fn unused(id: &'static str, look: &HostReport, needs: &Needs) -> Option<Finding> {
    match needs.hypervisor {
        Some(_) if needs.excludes(HypervisorKind::VirtualBox) => {
            Some(not_applicable(id, "QEMU runs the guests here"))
        }
        None if found(look).is_none() && !look.survey.has(DEVICE) => {
            Some(not_applicable(id, "VirtualBox is not installed"))
        }
        _ => None,
    }
}

pub(super) fn version(look: &HostReport, needs: &Needs) -> Finding {
    let id = "virtualbox-version";
    let source = "VBoxManage --version";
    if let Some(finding) = unused(id, look, needs) {
        return finding;
    }
    match look.probe(HypervisorKind::VirtualBox) {
        Some(Ok(probe)) => {
            let finding = Finding::new(id, Verdict::Ok, probe.version_text.clone()).from(source);
            match &probe.nesting {
                Nesting::Absent(why) if needs.nests => Finding {
                    verdict: Verdict::Fail,
                    found: format!("{}, which cannot nest", finding.found),
                    ..finding
                }
                .remedy(why.clone()),
                _ => finding,
            }
        }
        Some(Err(error)) => {
            let verdict = if needs.requires(HypervisorKind::VirtualBox) {
                Verdict::Fail
            } else {
                Verdict::Warn
            };
            let remedy = error.hints().first().cloned();
            let finding = Finding::new(id, verdict, error.message()).from(source);
            match remedy {
                Some(remedy) => finding.remedy(remedy),
                None => finding
                    .remedy("Install it; Debian has it in sid's contrib:")
                    .command("sudo apt install --no-install-recommends virtualbox"),
            }
        }
        None => not_applicable(id, "VirtualBox was not asked"),
    }
}

pub(super) fn driver(look: &HostReport, needs: &Needs) -> Finding {
    let id = "virtualbox-driver";
    if let Some(finding) = unused(id, look, needs) {
        return finding;
    }
    if look.survey.has(DEVICE) {
        return Finding::new(id, Verdict::Ok, "loaded").from(DEVICE);
    }
    let verdict =
        if needs.requires(HypervisorKind::VirtualBox) { Verdict::Fail } else { Verdict::Warn };
    let kernel = look.survey.kernel();
    let modules = format!("/lib/modules/{kernel}/");
    let built = look.survey.paths(&modules, "").any(|path| path.contains("/vboxdrv.ko"));
    if built {
        return Finding::new(id, verdict, "built for this kernel, and not loaded")
            .from(format!("{DEVICE}, {modules}"))
            .remedy("Load it:")
            .command("sudo modprobe vboxdrv");
    }
    Finding::new(id, verdict, format!("there is none for the kernel {kernel}"))
        .from(format!("{DEVICE}, {modules}"))
        .remedy("Build it, with the kernel's headers (DKMS says nothing if they are missing):")
        .command("sudo apt install --no-install-recommends \"linux-headers-$(uname -r)\"")
        .command("sudo dkms autoinstall && sudo modprobe vboxdrv")
}

pub(super) fn group(look: &HostReport, needs: &Needs) -> Finding {
    let id = "virtualbox-group";
    if let Some(finding) = unused(id, look, needs) {
        return finding;
    }
    let source = "id";
    if kvm::is_root(look) || kvm::in_group(look, "vboxusers") {
        return Finding::new(id, Verdict::Ok, "yes").from(source);
    }
    Finding::new(id, Verdict::Ok, "yes, except for USB devices (not in the group vboxusers)")
        .from(source)
}

pub(super) fn nem(look: &HostReport, needs: &Needs) -> Finding {
    let id = "virtualbox-nem";
    if let Some(finding) = unused(id, look, needs) {
        return finding;
    }
    let (system, source) = systems::tell(look);
    if !matches!(system.id, "wsl2" | "hyper-v") {
        return not_applicable(id, "VirtualBox on Linux has the processor to itself").from(source);
    }
    Finding::new(id, Verdict::Warn, "Hyper-V has the processor").from(source).remedy(
        "VirtualBox on a Windows that runs Hyper-V drops nested virtualization silently: look for svm or vmx inside the guest; on Windows, as administrator:",
    )
    .command("bcdedit /set hypervisorlaunchtype off")
}

pub(super) fn beside_kvm(look: &HostReport, needs: &Needs) -> Finding {
    let id = "kvm-and-virtualbox";
    if let Some(finding) = unused(id, look, needs) {
        return finding;
    }
    let source = "/sys/module, /proc/modules, uname -r, VBoxManage --version";
    let module = processor::virtualization_of(&look.survey).map(|kind| match kind {
        Virtualization::Svm => "kvm_amd",
        Virtualization::Vmx => "kvm_intel",
    });
    let Some(module) = module.filter(|module| look.survey.has_module(module)) else {
        return Finding::new(id, Verdict::Ok, "KVM is not loaded").from(source);
    };
    let release = look.survey.kernel();
    let (Some(kernel), Some(version)) = (kernel_number(&release), found(look)) else {
        return not_applicable(id, "the versions are not known").from(source);
    };
    let running = kvm::running_guests(look);
    let at_load = look.survey.parameter("kvm", "enable_virt_at_load");
    let off = at_load.as_deref().is_some_and(|value| matches!(value, "N" | "0"));
    let bad =
        if needs.requires(HypervisorKind::VirtualBox) { Verdict::Fail } else { Verdict::Warn };
    let get_on = format!("Linux {}.{} and VirtualBox {version}", kernel.0, kernel.1);
    let both = needs.requires(HypervisorKind::VirtualBox) && needs.requires(HypervisorKind::Qemu);
    match kvm_beside(kernel, version) {
        KvmBeside::FineWhileIdle | KvmBeside::MustLetGo if both => Finding::new(
            id,
            Verdict::Fail,
            format!("{get_on}: only one of the two can run guests at a time"),
        )
        .remedy("both at once take Linux 6.16 and VirtualBox 7.2.10, or newer; `image = \"debian-sid\"` has them"),
        // Where they share, VirtualBox's own VMs count as users of KVM's module, too.
        KvmBeside::FineWhileIdle | KvmBeside::MustLetGo if running > 0 => {
            Finding::new(id, bad, format!("{running} KVM guests run and have the processor"))
                .remedy("end them before VirtualBox starts a VM")
        }
        KvmBeside::FineWhileIdle => {
            Finding::new(id, Verdict::Ok, format!("{get_on}: fine while no KVM guest runs"))
        }
        KvmBeside::MustLetGo if off => {
            Finding::new(id, Verdict::Ok, format!("{get_on}: fine, KVM waits for its first guest"))
        }
        KvmBeside::MustLetGo => {
            Finding::new(id, bad, format!("{get_on}: KVM keeps the processor while it is loaded"))
                .remedy("Unload it, or boot with `kvm.enable_virt_at_load=0`, which must go again before Linux 6.16:")
                .command(format!("sudo modprobe -r {module}"))
        }
        KvmBeside::LeaveAlone => sharing(look, needs, module, off, &get_on),
    }
    .from(source)
}

/// VirtualBox asks KVM for the processor. Two ways of that end the whole host, and are refused unless the user
/// names this very check.
fn sharing(look: &HostReport, needs: &Needs, module: &str, off: bool, get_on: &str) -> Finding {
    let id = "kvm-and-virtualbox";
    // `auto` takes VirtualBox where its driver is loaded.
    let runs_here = needs.requires(HypervisorKind::VirtualBox)
        || needs.hypervisor.is_none() && needs.recipe.is_some();
    let ends_it = if runs_here { needs.fail(id) } else { Verdict::Warn };
    // Seen with 7.2.22 on Linux 7.2.13 (docs/evidence/virtualbox-in-virtualbox.txt): where KVM has turned SVM
    // on for VirtualBox, a page that VirtualBox needs for a guest's own SVM is not there.
    if module == "kvm_amd" && needs.nests_in(HypervisorKind::VirtualBox) {
        let found = format!(
            "{get_on}: they share the processor, and a guest that uses its own svm was seen to crash this kernel"
        );
        return Finding::new(id, ends_it, found)
            .remedy("let QEMU run what nests (`hypervisor = \"qemu\"`), or keep KVM out while a guest of VirtualBox's runs guests itself:")
            .command(format!("sudo modprobe -r {module}"));
    }
    if !off {
        return Finding::new(id, Verdict::Ok, format!("{get_on}: they share the processor"));
    }
    // Debian's virtualbox-dkms sets it, and with that package it was seen to work where QEMU emulates AMD's SVM
    // (docs/evidence/virtualbox-beside-kvm.txt). With Oracle's, VERR_SVM_HOST_SVME_NOT_ENABLED and frozen
    // hosts, Intel's too: github.com/VirtualBox/virtualbox, issues 711 and 713.
    let debians = found_text(look).is_some_and(|text| text.contains("_Debian"));
    let (system, _) = systems::tell(look);
    if debians && module == "kvm_amd" && system.id == "qemu-tcg" {
        let found = format!("{get_on}: fine, with kvm.enable_virt_at_load=0 as Debian sets it");
        return Finding::new(id, Verdict::Ok, found);
    }
    let place = look.survey.switches_off("kvm", "enable_virt_at_load");
    let place = place.unwrap_or("/etc/modprobe.d or the kernel's command line");
    let finding = Finding::new(
        id,
        if debians { Verdict::Warn } else { ends_it },
        format!("{get_on}: with kvm.enable_virt_at_load=0 the two were seen to freeze hosts"),
    );
    finding.remedy(format!(
        "this VirtualBox wants KVM as it comes: take `enable_virt_at_load=0` out of {place}, then reboot:"
    ))
    .command("sudo systemctl reboot")
}
