//! Installing a hypervisor in a guest: its packages, and its kernel driver.
//!
//! DKMS exits 0 without having built anything where the kernel's headers are missing, and so does apt
//! then. Only the device that the driver makes is believed.

use super::apt::{self, Package, Task};
use super::virt_check::{Driver, VirtFacts};
use super::{ExecContext, kernel};
use crate::error::{Error, Kind, Result};
use crate::host::{Command, Output};
use crate::hypervisor::HypervisorKind;

/// Returns the task that installs `kind`: `apt-get install --no-install-recommends …`.
pub fn task(kind: HypervisorKind) -> Task {
    let names: &[&str] = match kind {
        HypervisorKind::VirtualBox => &["virtualbox"],
        HypervisorKind::Qemu => &["qemu-system-x86", "qemu-utils", "ovmf"],
    };
    let package = |name: &&str| name.parse::<Package>().expect("a literal name of a package");
    Task::install(names.iter().map(package))
}

/// Returns whether `kind` needs modules built for the guest's kernel, and so its headers first and a
/// reboot into the newest kernel.
pub fn builds_modules(kind: HypervisorKind) -> bool {
    kind == HypervisorKind::VirtualBox
}

/// Returns why the kernel driver of `kind` is to be loaded, or `None` if its device is there. For QEMU
/// that is KVM, and only where the processor can virtualize: else it emulates and needs none.
pub async fn why_driver(exec: ExecContext<'_>, kind: HypervisorKind) -> Result<Option<String>> {
    Ok(missing(&VirtFacts::take(exec).await?, kind))
}

/// Makes the driver's device appear: loads the module; builds it first, with the kernel's headers, where
/// DKMS did not.
///
/// # Errors
/// [`Kind::HostCannot`] with the remedy where Secure Boot refuses the module, else `Failed` with the end
/// of the build's output.
pub async fn load_driver(exec: ExecContext<'_>, kind: HypervisorKind) -> Result<()> {
    let survey = VirtFacts::take(exec).await?;
    if missing(&survey, kind).is_none() {
        return Ok(());
    }
    let module = match kind {
        HypervisorKind::VirtualBox => "vboxdrv",
        HypervisorKind::Qemu if survey.has_flag("svm") => "kvm_amd",
        HypervisorKind::Qemu => "kvm_intel",
    };
    if kind == HypervisorKind::VirtualBox && survey.driver() == Driver::NotBuilt {
        build(exec, &survey).await?;
    }
    exec.events.doing(format!("loading the module {module}"));
    let load = Command::new("modprobe").args(["-v", module]).privileged();
    let loaded = exec.host.run(&load).await?;
    let survey = VirtFacts::take(exec).await?;
    match missing(&survey, kind) {
        None => Ok(()),
        Some(why) => Err(refusal(exec, &survey, &load, &loaded, &why)),
    }
}

fn missing(survey: &VirtFacts, kind: HypervisorKind) -> Option<String> {
    match kind {
        HypervisorKind::VirtualBox => match survey.driver() {
            Driver::Ready => None,
            Driver::NotLoaded => Some("the driver vboxdrv is built and not loaded".to_owned()),
            Driver::NotBuilt => {
                Some(format!("there is no driver vboxdrv for the kernel {}", survey.kernel()))
            }
        },
        HypervisorKind::Qemu => (survey.virtualization().is_some() && !survey.has_kvm())
            .then(|| "the processor can virtualize and /dev/kvm is missing".to_owned()),
    }
}

/// Builds VirtualBox's modules for the running kernel.
async fn build(exec: ExecContext<'_>, survey: &VirtFacts) -> Result<()> {
    let release = survey.kernel();
    if kernel::why_headers(exec, release).await?.is_some() {
        apt::apply(exec, &kernel::headers(release)?).await?;
        if let Some(why) = kernel::why_headers(exec, release).await? {
            return Err(Error::failed(format!("{why}, though their package is installed"))
                .on_host(exec.host.name())
                .hint("install the headers of the newest kernel and reboot into it"));
        }
    }
    exec.events.doing(format!("building VirtualBox's modules for {release}"));
    let dkms = Command::new("dkms").args(["autoinstall", "--kernelver", release]);
    let output = apt::run_detached(exec, dkms).await?;
    let built = VirtFacts::take(exec).await?;
    if built.driver() == Driver::NotBuilt {
        let error = match output {
            Ok(()) => Error::failed("dkms succeeded and built nothing").on_host(exec.host.name()),
            Err(error) => error,
        };
        return Err(error.context(format!("there is no driver for the kernel {release}")).hint(
            format!(
                "the compiler's messages: /var/lib/dkms/virtualbox/*/build/make.log on {}",
                exec.host.name()
            ),
        ));
    }
    Ok(())
}

fn refusal(
    exec: ExecContext<'_>,
    survey: &VirtFacts,
    load: &Command,
    loaded: &Output,
    why: &str,
) -> Error {
    let error = loaded.error(load).on_host(exec.host.name()).context(why);
    if survey.secure_boot() {
        return error
            .with_kind(Kind::HostCannot)
            .hint("Secure Boot takes only signed modules: `mokutil --import /var/lib/dkms/mok.pub`, reboot and enrol the key in the blue menu")
            .hint("or turn Secure Boot off in the firmware's settings");
    }
    error.hint("`dmesg | tail` in the guest tells why the kernel refused it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::test_support::Bench;
    use crate::host::scripted::Scripted;

    const SVM: &str = "kernel=6.12.41-amd64\nflags=fpu svm npt\n";

    fn site_of(host: Scripted) -> (Scripted, Bench) {
        (host, Bench::new())
    }

    #[test]
    fn the_hypervisors_are_installed_without_what_they_recommend() {
        let argv = |kind| task(kind).command(crate::host::TimeoutScale::NATIVE).argv().join(" ");
        assert!(
            argv(HypervisorKind::VirtualBox)
                .ends_with("install --no-install-recommends virtualbox")
        );
        assert!(argv(HypervisorKind::Qemu).contains("--no-install-recommends qemu-system-x86"));
    }

    #[tokio::test]
    async fn a_driver_whose_device_is_there_needs_nothing() {
        let (host, bench) = site_of(
            Scripted::new("l1").expect_with(["survey"]).prints(format!("{SVM}vboxdrv=device\n")),
        );
        load_driver(bench.exec(&host), HypervisorKind::VirtualBox).await.expect("is there");
    }

    #[tokio::test]
    async fn a_built_driver_is_loaded_and_its_device_looked_for() {
        let (host, bench) = site_of(
            Scripted::new("l1")
                .expect_with(["survey"])
                .prints(format!("{SVM}vboxdrv=built\n"))
                .expect(["modprobe", "-v", "vboxdrv"])
                .prints("insmod vboxdrv.ko\n")
                .expect_with(["survey"])
                .prints(format!("{SVM}vboxdrv=device\n")),
        );
        load_driver(bench.exec(&host), HypervisorKind::VirtualBox).await.expect("loads");
    }

    #[tokio::test]
    async fn a_module_that_secure_boot_refuses_is_explained() {
        let survey = format!("{SVM}vboxdrv=built\nsecure_boot=1\n");
        let (host, bench) = site_of(
            Scripted::new("l1")
                .expect_with(["survey"])
                .prints(survey.clone())
                .expect(["modprobe", "-v", "vboxdrv"])
                .fails(
                    1,
                    "modprobe: ERROR: could not insert 'vboxdrv': Key was rejected by service\n",
                )
                .expect_with(["survey"])
                .prints(survey),
        );
        let error =
            load_driver(bench.exec(&host), HypervisorKind::VirtualBox).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::HostCannot);
        assert!(error.hints()[0].contains("mokutil --import"), "{error:?}");
    }

    #[tokio::test]
    async fn qemu_needs_no_driver_where_the_processor_cannot_virtualize() {
        let (host, bench) = site_of(
            Scripted::new("l2").expect_with(["survey"]).prints("kernel=6.12.41-amd64\nflags=fpu\n"),
        );
        let why = why_driver(bench.exec(&host), HypervisorKind::Qemu).await.expect("answers");
        assert_eq!(why, None);
    }

    #[tokio::test]
    async fn kvm_is_loaded_for_the_processor_at_hand() {
        let (host, bench) = site_of(
            Scripted::new("l1")
                .expect_with(["survey"])
                .prints(SVM)
                .expect(["modprobe", "-v", "kvm_amd"])
                .prints("")
                .expect_with(["survey"])
                .prints(format!("{SVM}kvm=1\n")),
        );
        load_driver(bench.exec(&host), HypervisorKind::Qemu).await.expect("loads");
    }
}
