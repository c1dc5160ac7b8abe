//! Proof, from inside, that a guest can run guests of its own: virtualization and the driver.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::ExecContext;
use crate::error::{Error, Kind, Result};
use crate::host::Command;
use crate::hypervisor::HypervisorKind;
use crate::hypervisor::virtualbox::remedies;

/// Prints what is known about virtualization, one `name=value` a line; what is not known is left out.
const SURVEY: &str = r#"
release=$(uname -r)
printf 'kernel=%s\n' "$release"
sed -n 's/^flags[^:]*: */flags=/p; s/^vmx flags[^:]*: */vmx_flags=/p' /proc/cpuinfo | sort -u
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
pub(super) struct VirtFacts(BTreeMap<String, String>);

impl VirtFacts {
    /// Looks.
    pub(super) async fn take(exec: ExecContext<'_>) -> Result<VirtFacts> {
        let look = Command::new("sh").args(["-c", SURVEY, "survey"]);
        let survey = VirtFacts::parse(&exec.host.check(&look).await?.text());
        if survey.kernel().is_empty() {
            return Err(
                Error::failed("uname did not tell the kernel's release").on_host(exec.host.name())
            );
        }
        Ok(survey)
    }

    fn parse(text: &str) -> VirtFacts {
        let pair = |line: &str| {
            line.split_once('=').map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        };
        VirtFacts(text.lines().filter_map(pair).collect())
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

/// Looks from inside whether the guest has what `kind` runs guests with.
///
/// # Errors
/// [`Kind::HostCannot`] with the remedy if it has not.
pub async fn prove(exec: ExecContext<'_>, kind: HypervisorKind) -> Result<()> {
    let survey = VirtFacts::take(exec).await?;
    judge(&survey, kind).map_err(|error| error.on_host(exec.host.name()))
}

/// Looks from inside whether a guest got the hardware virtualization that its VM, run by `outer`, passes on.
///
/// # Errors
/// [`Kind::HostCannot`] with the remedy if it did not: hypervisors drop it without a word.
pub async fn virtualization(
    exec: ExecContext<'_>,
    outer: HypervisorKind,
) -> Result<Virtualization> {
    let survey = VirtFacts::take(exec).await?;
    survey.virtualization().ok_or_else(|| passed_nothing(outer).on_host(exec.host.name()))
}

fn passed_nothing(outer: HypervisorKind) -> Error {
    let error = Error::new(
        Kind::HostCannot,
        "nested virtualization is on for it, and its processor has neither svm nor vmx",
    );
    match outer {
        HypervisorKind::VirtualBox => {
            remedies::nested_flag_absent().into_iter().fold(error, Error::hint)
        }
        HypervisorKind::Qemu => error.hint(
            "nested virtualization is off in the machine around it; `nestlab doctor` tells how to turn it on",
        ),
    }
}

/// QEMU can always emulate; VirtualBox needs the processor and its driver.
fn judge(survey: &VirtFacts, kind: HypervisorKind) -> Result<()> {
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
    use crate::guest::test_support::Bench;
    use crate::host::Local;
    use crate::host::scripted::Scripted;

    #[tokio::test]
    async fn the_survey_runs_on_this_machine_and_names_its_kernel() {
        let survey = VirtFacts::take(Bench::new().exec(&Local::new())).await.expect("looks");
        let release = fs_err::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
        assert_eq!(survey.kernel(), release.trim());
        assert!(survey.has_flag("fpu"), "{survey:?}");
    }

    #[test]
    fn a_guest_without_virtualization_cannot_run_virtualbox_and_can_run_qemu() {
        let survey = VirtFacts::parse("kernel=6.1\nflags=fpu\n");
        let error = judge(&survey, HypervisorKind::VirtualBox).expect_err("cannot");
        assert_eq!(error.kind(), Kind::HostCannot);
        judge(&survey, HypervisorKind::Qemu).expect("emulates");
    }

    #[tokio::test]
    async fn a_guest_that_was_to_get_virtualization_and_did_not_is_told_what_drops_it() {
        let look = async |flags: &str| {
            let host = Scripted::new("l1").expect_with(["sh", "survey"]);
            let host = host.prints(format!("kernel=6.1\nflags={flags}\n"));
            virtualization(Bench::new().exec(&host), HypervisorKind::VirtualBox).await
        };
        assert_eq!(look("fpu svm").await.expect("it got it"), Virtualization::Svm);
        let error = look("fpu").await.expect_err("it did not");
        assert_eq!(error.kind(), Kind::HostCannot);
        assert!(error.report().contains("bcdedit"), "{}", error.report());
    }

    #[test]
    fn a_driver_that_apt_said_it_installed_is_not_believed() {
        let survey = VirtFacts::parse("kernel=6.1\nflags=svm npt\n");
        let error = judge(&survey, HypervisorKind::VirtualBox).expect_err("no driver");
        assert!(error.message().contains("not built"), "{error}");
    }
}
