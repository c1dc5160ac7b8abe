//! The kernel, its modules' headers, Secure Boot, a pending reboot, and the clock.

use super::{not_applicable, processor};
use crate::guest::clock::{Offset, TOLERANCE};
use crate::guest::kernel;
use crate::preflight::host_report::{HostCommand, HostReport};
use crate::preflight::needs::Needs;
use crate::preflight::{Finding, Verdict};
use crate::recipe::HypervisorKind;

/// Returns whether VirtualBox, which brings modules of its own, may run guests here.
fn needs_modules(look: &HostReport, needs: &Needs) -> bool {
    match needs.hypervisor {
        Some(_) => needs.requires(HypervisorKind::VirtualBox),
        None => look.survey.has("/dev/vboxdrv"),
    }
}

pub(super) fn secure_boot(look: &HostReport, needs: &Needs) -> Finding {
    let id = "secure-boot";
    let source = "/sys/firmware/efi/efivars/SecureBoot-*";
    match look.survey.secure_boot() {
        None => return not_applicable(id, "no UEFI, or no Secure Boot").from(source),
        Some(false) => return Finding::new(id, Verdict::Ok, "off").from(source),
        Some(true) if !needs_modules(look, needs) => {
            return Finding::new(id, Verdict::Ok, "on; KVM's modules are signed").from(source);
        }
        Some(true) => {}
    }
    let source = "mokutil --test-key /var/lib/dkms/mok.pub";
    // It exits 1 for a key that is enrolled already, and has said so since 0.3.
    if look.text(HostCommand::MokEnrolled).contains("is already enrolled") {
        return Finding::new(id, Verdict::Ok, "on, and DKMS's key is enrolled").from(source);
    }
    if look.survey.has("/dev/vboxdrv") {
        return Finding::new(id, Verdict::Ok, "on, and VirtualBox's driver is loaded").from(source);
    }
    Finding::new(id, Verdict::Fail, "on, and the firmware does not know DKMS's key")
        .from(source)
        .remedy("Enrol the key: choose a password, reboot, and confirm in the blue menu:")
        .command("sudo mokutil --import /var/lib/dkms/mok.pub")
        .command("sudo systemctl reboot")
}

pub(super) fn headers(look: &HostReport, needs: &Needs) -> Finding {
    let id = "kernel-headers";
    let release = look.survey.kernel();
    let makefile = format!("/lib/modules/{release}/build/Makefile");
    if look.survey.has(&makefile) {
        return Finding::new(id, Verdict::Ok, format!("there, for {release}")).from(makefile);
    }
    if !needs_modules(look, needs) {
        return not_applicable(id, "no module is to be built").from(makefile);
    }
    if look.survey.has("/dev/vboxdrv") {
        return Finding::new(
            id,
            Verdict::Warn,
            format!("none for {release}; the driver is loaded, the next kernel's will not be"),
        )
        .from(makefile)
        .remedy("Install the headers that follow the kernel:")
        .command("sudo apt install --no-install-recommends linux-headers-amd64");
    }
    Finding::new(id, Verdict::Fail, format!("none for {release}"))
        .from(makefile)
        .remedy("Install them:")
        .command("sudo apt install --no-install-recommends \"linux-headers-$(uname -r)\"")
}

pub(super) fn pending_reboot(look: &HostReport, needs: &Needs) -> Finding {
    let id = "pending-reboot";
    let running = look.survey.kernel();
    let newest = look
        .survey
        .paths("/boot/vmlinuz-", "")
        .map(|path| path.trim_start_matches("/boot/vmlinuz-"))
        .filter(|release| kernel::is_release(release))
        .max_by(|a, b| kernel::compare(a, b));
    let reason = if let Some(newest) = newest.filter(|newest| {
        // A container sees the host's kernel, and none of its own.
        look.survey.paths("/boot/vmlinuz-", &running).next().is_some() && *newest != running
    }) {
        Some((format!("{running} runs, {newest} is installed"), "/boot".to_owned()))
    } else if look.survey.has("/run/reboot-required") {
        let packages = look.survey.text("/run/reboot-required.pkgs").unwrap_or_default();
        let packages = packages.lines().take(3).collect::<Vec<_>>().join(", ");
        Some((format!("asked for by {packages}"), "/run/reboot-required".to_owned()))
    } else {
        None
    };
    match reason {
        None => Finding::new(id, Verdict::Ok, "no").from("/boot, /run/reboot-required"),
        Some((found, source)) => {
            // Modules are built for the running kernel, and gone after the reboot.
            let verdict = if needs_modules(look, needs) { Verdict::Warn } else { Verdict::Ok };
            let finding = Finding::new(id, verdict, found).from(source);
            match verdict {
                Verdict::Warn => finding.remedy("Reboot:").command("sudo systemctl reboot"),
                _ => finding,
            }
        }
    }
}

pub(super) fn clock(look: &HostReport, _needs: &Needs) -> Finding {
    let id = "clock";
    if look.local {
        let source = "timedatectl";
        return match look.text(HostCommand::ClockSynchronized) {
            "yes" => Finding::new(id, Verdict::Ok, "set over the network").from(source),
            "no" => Finding::new(id, Verdict::Warn, "not set over the network")
                .from(source)
                .remedy("Guests get this machine's time; a wrong one makes apt refuse its mirrors:")
                .command("sudo timedatectl set-ntp true"),
            _ => not_applicable(id, "nothing here tells").from(source),
        };
    }
    let source = "date, compared with the clock of the machine that nestlab runs on";
    match look.clock_offset {
        None => not_applicable(id, "it does not tell its time").from(source),
        Some(seconds) if seconds.unsigned_abs() <= TOLERANCE.as_secs() => {
            Finding::new(id, Verdict::Ok, "right").from(source)
        }
        Some(seconds) => {
            let verdict = Verdict::Warn;
            Finding::new(id, verdict, Offset { seconds }.to_string())
                .from(source)
                .remedy("nestlab sets it before it runs apt; or set it yourself:")
                .command("sudo timedatectl set-ntp true")
        }
    }
}

/// The clock that the kernel has chosen.
const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
/// Clocks that a VM's kernel reads without leaving the VM.
const INSIDE: [&str; 4] = ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "xen"];

pub(super) fn clock_source(look: &HostReport, _needs: &Needs) -> Finding {
    let id = "clock-source";
    let Some(clock) = look.survey.text(CLOCK_SOURCE) else {
        return not_applicable(id, "nothing here tells");
    };
    if !processor::has_flag(&look.survey, "hypervisor") {
        return not_applicable(id, "no VM").from("/proc/cpuinfo");
    }
    if INSIDE.contains(&clock.as_str()) {
        return Finding::new(id, Verdict::Ok, clock).from(CLOCK_SOURCE);
    }
    let found = format!("{clock}: each look at the time leaves the VM, and guests are slow");
    Finding::new(id, Verdict::Warn, found)
        .from(CLOCK_SOURCE)
        .remedy(
            "Linux distrusts a TSC that stood still while the VM was held up, as an emulated one is. An emulated TSC is steady; have Linux keep it, and reboot:",
        )
        .command(
            r#"sudo sed -i 's/^GRUB_CMDLINE_LINUX="/&tsc=nowatchdog /' /etc/default/grub && sudo update-grub"#,
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::host_files::HostFiles;

    #[test]
    fn a_vm_whose_clock_is_read_outside_of_it_is_told_so() {
        let emulated = "flags\t\t: fpu tsc svm npt hypervisor";
        for (flags, clock, verdict) in [
            (emulated, "hpet\n", Verdict::Warn),
            (emulated, "acpi_pm\n", Verdict::Warn),
            (emulated, "tsc\n", Verdict::Ok),
            (emulated, "kvm-clock\n", Verdict::Ok),
            ("flags\t\t: fpu tsc svm npt", "hpet\n", Verdict::NotApplicable),
        ] {
            let survey = HostFiles::of(&[("/proc/cpuinfo", flags), (CLOCK_SOURCE, clock)]);
            let finding = clock_source(&HostReport::of(survey, &[]), &Needs::nothing("/"));
            assert_eq!(finding.verdict, verdict, "{flags}, {clock}");
        }
        let silent = HostReport::of(HostFiles::of(&[("/proc/cpuinfo", emulated)]), &[]);
        let finding = clock_source(&silent, &Needs::nothing("/"));
        assert_eq!(finding.verdict, Verdict::NotApplicable);
    }
}
