//! Proof, from inside, that a guest can run guests of its own: virtualization, nested paging, the
//! driver, and the hypervisor that answers.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Site;
use crate::error::{Error, Kind, Result};
use crate::host::Command;
use crate::hypervisor::{Acceleration, Hypervisor, HypervisorKind};

/// Prints what is known about virtualization, one `name=value` a line; what is not known is left out.
const SURVEY: &str = r#"
release=$(uname -r)
printf 'kernel=%s\n' "$release"
sed -n 's/^flags[^:]*: */flags=/p; s/^vmx flags[^:]*: */vmx_flags=/p' /proc/cpuinfo | sort -u
for module in kvm_amd/npt kvm_intel/ept; do
    file=/sys/module/${module%/*}/parameters/${module#*/}
    [ -r "$file" ] && printf '%s=%s\n' "${module#*/}" "$(cat "$file")"
done
[ -c /dev/kvm ] && echo kvm=1
if [ -c /dev/vboxdrv ]; then
    echo vboxdrv=device
elif [ -n "$(find "/lib/modules/$release" -name 'vboxdrv.ko*' 2>/dev/null)" ]; then
    echo vboxdrv=built
fi
# Four bytes of attributes, then 1 if Secure Boot is on (UEFI 2.10, 3.3).
for variable in /sys/firmware/efi/efivars/SecureBoot-*; do
    [ -r "$variable" ] && printf 'secure_boot=%s\n' "$(od -An -tu1 -j4 -N1 "$variable" | tr -d ' ')"
done
exit 0
"#;

/// A processor's hardware virtualization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Virtualization {
    /// AMD's.
    Svm,
    /// Intel's.
    Vmx,
}

impl Virtualization {
    /// Returns the name of its nested paging: AMD's NPT, Intel's EPT.
    pub fn nested_paging(self) -> &'static str {
        match self {
            Virtualization::Svm => "NPT",
            Virtualization::Vmx => "EPT",
        }
    }
}

impl fmt::Display for Virtualization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Virtualization::Svm => "svm",
            Virtualization::Vmx => "vmx",
        })
    }
}

/// The state of VirtualBox's kernel driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    /// `/dev/vboxdrv` is there.
    Ready,
    /// The module is there for the running kernel.
    NotLoaded,
    /// There is no module for the running kernel.
    NotBuilt,
}

/// What a look inside a guest told about virtualization.
#[derive(Debug, Clone)]
pub(super) struct Survey(BTreeMap<String, String>);

impl Survey {
    /// Looks.
    pub(super) async fn take(site: Site<'_>) -> Result<Survey> {
        let look = Command::new("sh").args(["-c", SURVEY, "survey"]);
        let survey = Survey::parse(&site.host.check(&look).await?.text());
        if survey.kernel().is_empty() {
            return Err(
                Error::failed("uname did not tell the kernel's release").on(site.host.name())
            );
        }
        Ok(survey)
    }

    fn parse(text: &str) -> Survey {
        let pair = |line: &str| {
            line.split_once('=').map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        };
        Survey(text.lines().filter_map(pair).collect())
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Returns the running kernel's release.
    pub(super) fn kernel(&self) -> &str {
        self.get("kernel")
    }

    /// Returns whether the processor has `flag`.
    pub(super) fn has_flag(&self, flag: &str) -> bool {
        ["flags", "vmx_flags"].iter().any(|list| self.get(list).split(' ').any(|has| has == flag))
    }

    /// Returns the processor's hardware virtualization, if it has one.
    pub(super) fn virtualization(&self) -> Option<Virtualization> {
        match (self.has_flag("svm"), self.has_flag("vmx")) {
            (true, _) => Some(Virtualization::Svm),
            (_, true) => Some(Virtualization::Vmx),
            _ => None,
        }
    }

    /// Returns whether guests' page tables are walked by the processor: by its flag, and by what KVM
    /// makes of it where it is loaded.
    pub(super) fn has_nested_paging(&self) -> bool {
        let flag = self.has_flag("npt") || self.has_flag("ept");
        let refused = ["npt", "ept"].iter().any(|name| matches!(self.get(name), "N" | "0"));
        flag && !refused
    }

    /// Returns whether `/dev/kvm` is there.
    pub(super) fn has_kvm(&self) -> bool {
        self.get("kvm") == "1"
    }

    /// Returns whether Secure Boot is on.
    pub(super) fn secure_boot(&self) -> bool {
        self.get("secure_boot") == "1"
    }

    /// Returns the state of VirtualBox's driver.
    pub(super) fn driver(&self) -> Driver {
        match self.get("vboxdrv") {
            "device" => Driver::Ready,
            "built" => Driver::NotLoaded,
            _ => Driver::NotBuilt,
        }
    }
}

/// What was found inside a guest that is to run guests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// The hypervisor.
    pub hypervisor: HypervisorKind,
    /// Its version.
    pub version: semver::Version,
    /// How its guests execute.
    pub acceleration: Acceleration,
    /// The processor's hardware virtualization, as the guest sees it.
    pub virtualization: Option<Virtualization>,
    /// Whether the processor walks guests' page tables.
    pub nested_paging: bool,
    /// The running kernel.
    pub kernel: String,
}

impl Proof {
    /// Returns whether its guests can get hardware virtualization of their own.
    pub fn nests(&self) -> bool {
        self.virtualization.is_some() && self.nested_paging
    }

    /// Returns what the user should know about it.
    pub fn notes(&self) -> Vec<String> {
        match self.virtualization {
            None => vec![
                "neither svm nor vmx here: guests are emulated, ten to thirty times slower"
                    .to_owned(),
            ],
            Some(kind) if !self.nested_paging => vec![format!(
                "{kind} without {} here (VirtualBox gives AMD guests no nested paging): guests are slower, and cannot run guests of their own",
                kind.nested_paging()
            )],
            Some(_) => Vec::new(),
        }
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.hypervisor, self.version)?;
        match self.virtualization {
            None => f.write_str(", emulating"),
            Some(kind) => {
                let paging = if self.nested_paging { "with" } else { "without" };
                write!(f, ", {kind} {paging} {}", kind.nested_paging())
            }
        }
    }
}

/// Looks from inside whether the guest can run guests with `hypervisor`.
///
/// # Errors
/// [`Kind::HostCannot`] with the remedy if it cannot.
pub async fn prove(site: Site<'_>, hypervisor: &dyn Hypervisor) -> Result<Proof> {
    let survey = Survey::take(site).await?;
    let kind = hypervisor.kind();
    judge(&survey, kind).map_err(|error| error.on(site.host.name()))?;
    let probe = hypervisor.probe(site.host).await?;
    Ok(Proof {
        hypervisor: kind,
        version: probe.version,
        acceleration: probe.acceleration,
        virtualization: survey.virtualization(),
        nested_paging: survey.has_nested_paging(),
        kernel: survey.kernel().to_owned(),
    })
}

/// QEMU can always emulate; VirtualBox needs the processor and its driver.
fn judge(survey: &Survey, kind: HypervisorKind) -> Result<()> {
    if kind == HypervisorKind::Qemu {
        return Ok(());
    }
    let cannot = |message: String| Error::new(Kind::HostCannot, message);
    if survey.virtualization().is_none() {
        return Err(cannot("the processor has neither svm nor vmx here".to_owned())
            .hint("nested virtualization is off in the machine around it; `nestlab doctor` tells how to turn it on"));
    }
    match survey.driver() {
        Driver::Ready => Ok(()),
        state => Err(cannot(format!(
            "VirtualBox's driver is {} for the kernel {}",
            if state == Driver::NotLoaded { "not loaded" } else { "not built" },
            survey.kernel()
        ))
        .hint("nestlab builds and loads it: run the same command again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::bench::Bench;
    use crate::host::Local;

    #[tokio::test]
    async fn the_survey_runs_on_this_machine_and_names_its_kernel() {
        let survey = Survey::take(Bench::new().site(&Local::new())).await.expect("looks");
        let release = fs_err::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
        assert_eq!(survey.kernel(), release.trim());
        assert!(survey.has_flag("fpu"), "{survey:?}");
    }

    #[test]
    fn nested_paging_is_by_the_flag_and_by_what_kvm_makes_of_it() {
        let paging = |text: &str| Survey::parse(text).has_nested_paging();
        assert!(paging("flags=svm npt\nnpt=Y\n"));
        assert!(paging("flags=vmx ept\n"));
        assert!(paging("flags=vmx\nvmx_flags=ept vpid\n"));
        assert!(!paging("flags=svm npt\nnpt=N\n"));
        assert!(!paging("flags=svm\n"));
        assert!(!paging("flags=nptx xnpt\n"));
    }

    #[test]
    fn a_guest_without_virtualization_cannot_run_virtualbox_and_can_run_qemu() {
        let survey = Survey::parse("kernel=6.1\nflags=fpu\n");
        let error = judge(&survey, HypervisorKind::VirtualBox).expect_err("cannot");
        assert_eq!(error.kind(), Kind::HostCannot);
        judge(&survey, HypervisorKind::Qemu).expect("emulates");
    }

    #[test]
    fn a_driver_that_apt_said_it_installed_is_not_believed() {
        let survey = Survey::parse("kernel=6.1\nflags=svm npt\n");
        let error = judge(&survey, HypervisorKind::VirtualBox).expect_err("no driver");
        assert!(error.message().contains("not built"), "{error}");
    }

    #[test]
    fn an_amd_guest_of_virtualbox_is_told_that_it_cannot_nest_further() {
        let proof = Proof {
            hypervisor: HypervisorKind::VirtualBox,
            version: semver::Version::new(7, 2, 22),
            acceleration: Acceleration::VirtualBox,
            virtualization: Some(Virtualization::Svm),
            nested_paging: false,
            kernel: "6.12".into(),
        };
        assert!(!proof.nests());
        assert!(proof.notes()[0].contains("without NPT"));
        assert_eq!(proof.to_string(), "virtualbox 7.2.22, svm without NPT");
    }
}
