//! Finds QEMU on a host, and how guests execute there.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;

use super::accel_probe::{AccelOutcome, AccelProbe, Kvm};
use super::install::detail;
use super::micro_guest::MicroGuestResult;
use super::sandbox::Sandbox;
use super::scripts;
use crate::error::{Error, Kind, Result};
use crate::host::Host;
use crate::hypervisor::{Acceleration, Nesting, Probe};

/// Where QEMU's program is, in order of preference: on PATH, and where Fedora and RHEL keep theirs.
const PROGRAMS: [&str; 3] = ["qemu-system-x86_64", "/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm"];

/// UEFI firmware and the template of its variables where distributions keep them, both in this format.
const EFI: [(&str, &str, &str); 7] = [
    // Debian, Ubuntu
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", "raw"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd", "raw"),
    // Fedora, RHEL
    ("/usr/share/edk2/ovmf/OVMF_CODE_4M.qcow2", "/usr/share/edk2/ovmf/OVMF_VARS_4M.qcow2", "qcow2"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd", "raw"),
    // Arch
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd", "raw"),
    ("/usr/share/edk2-ovmf/x64/OVMF_CODE.fd", "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd", "raw"),
    // openSUSE
    ("/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin", "raw"),
];

/// Windows that QEMU can open, the preferred ones first.
const WINDOWS: [&str; 2] = ["gtk", "sdl"];

/// Prints what there is, one `key=value` a line: the first program of those before `--`, and the files
/// after it that can be read.
const SURVEY: &str = r#"
program=
while [ "$1" != -- ]; do
    [ -n "$program" ] || program=$(command -v -- "$1")
    shift
done
shift
[ -n "$program" ] || exit 0
echo "program=$program"
"$program" --version | sed 's/^/version=/;q'
"$program" -display help | sed 's/^/display=/'
[ ! -e /dev/kvm ] || echo kvm=there
[ ! -r /dev/kvm ] || [ ! -w /dev/kvm ] || echo kvm=open
for file in /sys/module/kvm_intel/parameters/nested /sys/module/kvm_amd/parameters/nested; do
    [ ! -r "$file" ] || echo "nested=$(cat "$file") $file"
done
for file in "$@"; do
    [ ! -r "$file" ] || echo "file=$file"
done
"#;

/// What [`SURVEY`] found.
#[derive(Debug, Default, PartialEq, Eq)]
struct QemuFiles(Vec<(String, String)>);

impl QemuFiles {
    fn parse(text: &str) -> Self {
        let pair = |line: &str| {
            line.split_once('=').map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        };
        QemuFiles(text.lines().filter_map(pair).collect())
    }

    fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    fn has(&self, key: &str, value: &str) -> bool {
        self.all(key).any(|found| found == value)
    }

    fn kvm(&self) -> Kvm {
        match (self.has("kvm", "there"), self.has("kvm", "open")) {
            (false, _) => Kvm::Absent,
            (true, false) => Kvm::Closed,
            (true, true) => Kvm::Open,
        }
    }
}

/// QEMU as it lies on a host, before it is tried.
struct UntestedQemu {
    program: String,
    version: semver::Version,
    version_text: String,
    survey: QemuFiles,
}

impl UntestedQemu {
    fn trial<'a>(&'a self, host: &'a dyn Host) -> AccelProbe<'a> {
        let strictest = Sandbox::strictest(&self.version, host.is_root());
        AccelProbe { host, program: &self.program, strictest }
    }
}

/// Finds QEMU on `host` and tries how guests execute there.
pub(super) async fn probe(host: &dyn Host) -> Result<Probe> {
    let found = find(host).await?;
    let outcome = found.trial(host).run(found.survey.kvm()).await?;
    let mut details = details(&found.survey);
    details.insert(detail::CONFINEMENT.to_owned(), outcome.confinement.to_string());
    Ok(Probe {
        acceleration: outcome.acceleration,
        patience: outcome.patience,
        nesting: nesting(&outcome, &found.survey),
        notes: outcome.notes,
        details,
        version: found.version,
        version_text: found.version_text,
        program: Utf8PathBuf::from(found.program),
    })
}

/// Runs the micro-guest on `host` and returns what was seen of it.
pub(super) async fn try_guest(
    host: &dyn Host,
    acceleration: Acceleration,
) -> Result<MicroGuestResult> {
    let found = find(host).await?;
    let (seen, _confinement) = found.trial(host).seen(acceleration).await?;
    Ok(seen)
}

async fn find(host: &dyn Host) -> Result<UntestedQemu> {
    let survey = survey(host).await?;
    let program = survey.all("program").next().ok_or_else(|| {
        Error::new(Kind::HostCannot, "QEMU is not installed").on_host(host.name()).hint(
            "Debian and Ubuntu: apt install --no-install-recommends qemu-system-x86 qemu-utils; \
             Fedora: dnf install qemu-system-x86-core qemu-img; Arch: pacman -S qemu-base",
        )
    })?;
    let version_text = survey.all("version").next().unwrap_or_default();
    let version = version(version_text).ok_or_else(|| {
        Error::new(Kind::HostCannot, format!("{program} does not say its version"))
            .on_host(host.name())
            .tail(version_text.as_bytes())
    })?;
    Ok(UntestedQemu {
        program: program.to_owned(),
        version,
        version_text: version_text.to_owned(),
        survey,
    })
}

async fn survey(host: &dyn Host) -> Result<QemuFiles> {
    let command = scripts::script(SURVEY, "nestlab-survey")
        .args(PROGRAMS)
        .arg("--")
        .args(EFI.iter().flat_map(|(code, variables, _)| [*code, *variables]));
    Ok(QemuFiles::parse(&host.check(&command).await?.text()))
}

/// Returns the version in `QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)`.
fn version(text: &str) -> Option<semver::Version> {
    let number = text.split_once("version ")?.1;
    let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
    semver::Version::parse(&number[..end]).ok()
}

fn details(survey: &QemuFiles) -> BTreeMap<String, String> {
    let mut details = BTreeMap::new();
    let efi = EFI
        .iter()
        .find(|(code, variables, _)| survey.has("file", code) && survey.has("file", variables));
    if let Some((code, variables, format)) = efi {
        details.insert(detail::EFI_CODE.to_owned(), code.to_string());
        details.insert(detail::EFI_VARIABLES.to_owned(), variables.to_string());
        details.insert(detail::EFI_FORMAT.to_owned(), format.to_string());
    }
    if let Some(window) = WINDOWS.iter().find(|window| survey.has("display", window)) {
        details.insert(detail::DISPLAY.to_owned(), window.to_string());
    }
    details
}

fn nesting(trial: &AccelOutcome, survey: &QemuFiles) -> Nesting {
    if trial.nests {
        return Nesting::Proven;
    }
    let parameter = survey.all("nested").find_map(|line| line.split_once(' '));
    Nesting::Absent(match parameter {
        Some(("N" | "0", file)) => {
            let module = if file.contains("kvm_amd") { "kvm_amd" } else { "kvm_intel" };
            format!(
                "{file} says that nesting is off; with no guest running: \
                 modprobe -r {module} && modprobe {module} nested=1"
            )
        }
        _ => "a guest was started and saw neither svm nor vmx".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::TimeoutScale;
    use crate::host::scripted::Scripted;

    #[test]
    fn versions_of_distributions_are_read() {
        for (text, wanted) in [
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)", "10.0.2"),
            ("QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2ubuntu6.22)", "6.2.0"),
            ("QEMU emulator version 9.1.3 (qemu-kvm-9.1.3-1.el10)", "9.1.3"),
        ] {
            assert_eq!(version(text).expect(text).to_string(), wanted);
        }
        assert_eq!(version("no such program"), None);
    }

    #[tokio::test]
    async fn a_host_without_qemu_is_told_how_to_install_it() {
        let host = Scripted::new("l1").expect_with(["sh", "nestlab-survey"]).prints("");
        let error = probe(&host).await.expect_err("nothing is there");
        assert_eq!((error.kind(), error.host()), (Kind::HostCannot, Some("l1")));
        assert!(error.hints()[0].contains("apt install --no-install-recommends qemu-system-x86"));
    }

    #[test]
    fn the_firmware_pair_is_one_of_which_both_files_are_there() {
        let survey = QemuFiles::parse(
            "file=/usr/share/OVMF/OVMF_CODE_4M.fd\n\
             file=/usr/share/OVMF/OVMF_CODE.fd\nfile=/usr/share/OVMF/OVMF_VARS.fd\ndisplay=sdl\n",
        );
        let details = details(&survey);
        assert_eq!(details[detail::EFI_CODE], "/usr/share/OVMF/OVMF_CODE.fd");
        assert_eq!(details[detail::DISPLAY], "sdl");
    }

    #[test]
    fn nesting_that_is_switched_off_names_the_switch() {
        let trial = AccelOutcome {
            acceleration: Acceleration::Kvm,
            confinement: Sandbox::Filter,
            patience: TimeoutScale::NATIVE,
            nests: false,
            notes: Vec::new(),
        };
        let survey = QemuFiles::parse("nested=N /sys/module/kvm_intel/parameters/nested\n");
        let Nesting::Absent(why) = nesting(&trial, &survey) else { panic!("it is off") };
        assert!(why.contains("modprobe kvm_intel nested=1"), "{why}");
    }
}
