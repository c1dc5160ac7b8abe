//! Guests that break out of KVM by nesting: CVE-2026-53359 and CVE-2026-46113, two bugs in one piece of KVM,
//! reached by guests that may run guests. A kernel needs both fixes.

use super::{not_applicable, processor};
use crate::hypervisor::Acceleration;
use crate::preflight::host_files::HostFiles;
use crate::preflight::host_report::HostReport;
use crate::preflight::needs::Needs;
use crate::preflight::{Finding, Verdict};
use crate::recipe::HypervisorKind;

/// What the two are called.
pub(super) const NAMES: &str = "CVE-2026-53359 and CVE-2026-46113";

/// The first kernel of each series that has both fixes (kernel.org's releases of 2026-07-04, as cozystack's
/// ansible-cozystack#61 lists them); 7.2 has had them from its first candidate on.
const FIXED: [KernelVersion; 7] = [
    KernelVersion(7, 1, 3),
    KernelVersion(6, 18, 38),
    KernelVersion(6, 12, 95),
    KernelVersion(6, 6, 144),
    KernelVersion(6, 1, 177),
    KernelVersion(5, 15, 211),
    KernelVersion(5, 10, 260),
];

/// The first series that was released with the fixes.
const FIXED_FROM: KernelVersion = KernelVersion(7, 2, 0);

/// A kernel of kernel.org's: `6.12.95`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct KernelVersion(u32, u32, u32);

impl std::fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl KernelVersion {
    /// Reads what `text` begins with, and returns it with what follows.
    fn parse(text: &str) -> Option<(KernelVersion, &str)> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (numbers, rest) = text.split_at(end);
        let mut parts = numbers.trim_end_matches('.').split('.').map(str::parse);
        let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
        let patch = parts.next().unwrap_or(Ok(0)).ok()?;
        Some((KernelVersion(major, minor, patch), rest))
    }
}

/// What a kernel's version tells.
#[derive(Debug, PartialEq, Eq)]
enum KernelVerdict {
    /// It has both fixes.
    Fixed,
    /// It has not; the first of its series that has, or of the next.
    Open(KernelVersion),
    /// The distribution counts by itself, and may have taken the fixes into an older version.
    CannotTell,
}

fn state(survey: &HostFiles) -> KernelVerdict {
    let release = survey.kernel();
    let Some((version, rest)) = KernelVersion::parse(&release) else {
        return KernelVerdict::CannotTell;
    };
    if version >= FIXED_FROM {
        return KernelVerdict::Fixed;
    }
    // Debian names a stable kernel's interface, `6.1.0-37-amd64`, and tells kernel.org's version behind it.
    let debian = survey.text("/proc/version").and_then(|text| {
        let (_, version) = text.split_once(" Debian ")?;
        KernelVersion::parse(version).map(|(version, _)| version)
    });
    if debian.is_none() && counts_by_itself(version, rest) {
        return KernelVerdict::CannotTell;
    }
    let version = debian.unwrap_or(version);
    let series = |fixed: &&KernelVersion| (fixed.0, fixed.1) == (version.0, version.1);
    match FIXED.iter().find(series) {
        Some(fixed) if version >= *fixed => KernelVerdict::Fixed,
        Some(fixed) => KernelVerdict::Open(*fixed),
        // A series that had ended before: the next one up has them.
        None => KernelVerdict::Open(
            *FIXED.iter().rfind(|fixed| **fixed > version).unwrap_or(&FIXED_FROM),
        ),
    }
}

/// Returns whether a kernel's release, `version` and the `rest` behind it, is a distribution's own: Ubuntu's
/// `6.8.0-60-generic`, Red Hat's `5.14.0-570.el9.x86_64`, Proxmox' `6.14.8-2-pve`.
fn counts_by_itself(version: KernelVersion, rest: &str) -> bool {
    let counted =
        rest.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    version.2 == 0 && counted
        || rest.ends_with("-pve")
        || rest.contains(".el")
        || rest.contains(".amzn")
}

pub(super) fn nesting(look: &HostReport, needs: &Needs) -> Finding {
    let id = "nesting-escape";
    let source = "uname -r, /proc/version";
    if needs.excludes(HypervisorKind::Qemu) {
        return not_applicable(id, "VirtualBox runs the guests here");
    }
    let module = processor::virtualization_of(&look.survey).map(super::kvm::module);
    let Some(module) = module.filter(|module| look.survey.has_module(module)) else {
        return not_applicable(id, "KVM is not loaded").from("/sys/module");
    };
    let emulates = matches!(look.probe(HypervisorKind::Qemu), Some(Ok(probe)) if probe.acceleration == Acceleration::Tcg);
    // Without a recipe the question is what this host would let guests do.
    let nobody = needs.hypervisor.is_none() && needs.recipe.is_none();
    let on = matches!(look.survey.parameter(module, "nested").as_deref(), Some("Y" | "1"));
    if emulates || !(needs.nests_in(HypervisorKind::Qemu) || nobody && on) {
        return not_applicable(id, "no guest of KVM's nests here").from(source);
    }
    let release = look.survey.kernel();
    match state(&look.survey) {
        KernelVerdict::Fixed => Finding::new(id, Verdict::Ok, format!("{release} has the fixes")),
        KernelVerdict::Open(fixed) => Finding::new(
            id,
            Verdict::Warn,
            format!("{release} lets a guest that nests break out of it ({NAMES}); fixed in {fixed}"),
        )
        .remedy(format!(
            "run {fixed} or newer; until then, let no guest nest that you would not run as root"
        )),
        KernelVerdict::CannotTell => Finding::new(
            id,
            Verdict::Warn,
            format!("cannot tell whether {release} has the fixes for {NAMES}: its distribution counts by itself"),
        )
        .remedy("a guest that nests may break out without them; look for both in the kernel's changelog:")
        .command(changelog(look)),
    }
    .from(source)
}

/// Returns the command that looks for the fixes in the changelog of the distribution's package.
fn changelog(look: &HostReport) -> &'static str {
    if look.survey.has("/usr/bin/apt-get") {
        r#"apt changelog "linux-image-$(uname -r)" | grep -E 'CVE-2026-(53359|46113)'"#
    } else {
        r#"rpm -q --changelog "kernel-core-$(uname -r)" | grep -E 'CVE-2026-(53359|46113)'"#
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state_of(release: &str, version: &str) -> KernelVerdict {
        let files = [("/proc/sys/kernel/osrelease", release), ("/proc/version", version)];
        state(&HostFiles::of(&files))
    }

    #[test]
    fn a_kernel_of_kernel_org_is_told_by_its_version() {
        for (release, fixed) in [
            ("7.2.13+deb14-amd64", KernelVerdict::Fixed),
            ("7.2.0-rc1", KernelVerdict::Fixed),
            ("8.0.1", KernelVerdict::Fixed),
            ("7.1.3-arch1-1", KernelVerdict::Fixed),
            ("7.1.2-arch1-1", KernelVerdict::Open(KernelVersion(7, 1, 3))),
            ("7.0.9", KernelVerdict::Open(KernelVersion(7, 1, 3))),
            ("6.18.38", KernelVerdict::Fixed),
            ("6.17.13-200.fc43.x86_64", KernelVerdict::Open(KernelVersion(6, 18, 38))),
            ("6.12.94+deb13-amd64", KernelVerdict::Open(KernelVersion(6, 12, 95))),
            ("6.12.95+deb13-amd64", KernelVerdict::Fixed),
            ("5.10.261", KernelVerdict::Fixed),
            ("4.19.300", KernelVerdict::Open(KernelVersion(5, 10, 260))),
        ] {
            assert_eq!(state_of(release, ""), fixed, "{release}");
        }
    }

    #[test]
    fn debian_tells_what_is_behind_the_name_of_an_interface() {
        let version = |package: &str| {
            format!(
                "Linux version 6.1.0-37-amd64 (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian {package} (2026-07-10)"
            )
        };
        assert_eq!(state_of("6.1.0-37-amd64", &version("6.1.177-1")), KernelVerdict::Fixed);
        let old = state_of("6.1.0-37-amd64", &version("6.1.140-1"));
        assert_eq!(old, KernelVerdict::Open(KernelVersion(6, 1, 177)));
    }

    #[test]
    fn a_distribution_that_counts_by_itself_may_have_the_fixes_in_any_version() {
        for release in [
            "6.8.0-60-generic",
            "5.14.0-570.12.1.el9_6.x86_64",
            "6.14.8-2-pve",
            "6.12.73-95.amzn2023.x86_64",
            "no number",
        ] {
            assert_eq!(state_of(release, ""), KernelVerdict::CannotTell, "{release}");
        }
    }
}
