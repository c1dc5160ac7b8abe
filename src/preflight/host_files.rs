//! What a host's files tell, read in one go: a deep guest answers slowly, and a check that reads ten files
//! must not ask ten times.

use std::collections::BTreeMap;

use base64::Engine as _;

use crate::error::Result;
use crate::host::{Command, Host};

/// Prints, for each pattern up to `--` that something matches, `? ACCESS PATH`, and for each behind it
/// `= BASE64 PATH`, or `! - PATH` for what cannot be read. Paths are relative to "$1".
const SCRIPT: &str = r#"
cd "$1" || exit 1
shift
while [ "$1" != -- ]; do
    for path in $1; do
        [ -e "$path" ] || continue
        access=
        [ -r "$path" ] && access=r
        [ -w "$path" ] && access=${access}w
        [ -d "$path" ] && access=${access}d
        printf '? %s %s\n' "${access:--}" "$path"
    done
    shift
done
shift
for pattern in "$@"; do
    for path in $pattern; do
        [ -f "$path" ] || continue
        if [ -r "$path" ] && content=$(head -c 1048576 "$path" 2>/dev/null | base64 | tr -d '\n'); then
            printf '= %s %s\n' "$content" "$path"
        else
            printf '! - %s\n' "$path"
        fi
    done
done
exit 0
"#;

/// What only has to be there.
const PRESENCE: &[&str] = &[
    ".dockerenv",
    "boot/vmlinuz-*",
    "dev/kvm",
    "dev/vboxdrv",
    "etc/qubes-release",
    "lib/modules/*/build/Makefile",
    "lib/modules/*/kernel",
    "lib/modules/*/misc/vboxdrv.ko*",
    "lib/modules/*/updates/dkms/vboxdrv.ko*",
    "lib/modules/*/updates/vboxdrv.ko*",
    "lib/modules/*/extramodules/vboxdrv.ko*",
    "lib/modules/*/extra/VirtualBox/vboxdrv.ko*",
    "proc/sys/fs/binfmt_misc/WSLInterop*",
    "proc/xen",
    "run/.containerenv",
    "run/reboot-required",
    "run/systemd/system",
    "sys/class/dmi/id",
    "sys/firmware/efi",
    "sys/module/kvm",
    "sys/module/kvm_amd",
    "sys/module/kvm_intel",
    "sys/module/vboxdrv",
    "usr/bin/apt-get",
    "usr/bin/dnf",
    "usr/bin/pacman",
    "usr/share/qubes/marker-vm",
    "var/lib/dpkg/status",
    "var/lib/dpkg/updates/[0-9]*",
];

/// What is read.
const CONTENTS: &[&str] = &[
    "etc/modprobe.d/*.conf",
    "etc/os-release",
    "proc/cmdline",
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/modules",
    "proc/net/route",
    "proc/net/tcp",
    "proc/sys/kernel/osrelease",
    "proc/version",
    "proc/xen/capabilities",
    "run/modprobe.d/*.conf",
    "run/reboot-required.pkgs",
    "run/systemd/container",
    "sys/class/dmi/id/bios_vendor",
    "sys/class/dmi/id/board_vendor",
    "sys/class/dmi/id/chassis_asset_tag",
    "sys/class/dmi/id/product_name",
    "sys/class/dmi/id/product_version",
    "sys/class/dmi/id/sys_vendor",
    "sys/devices/system/clocksource/clocksource0/available_clocksource",
    "sys/devices/system/clocksource/clocksource0/current_clocksource",
    "sys/firmware/efi/efivars/SecureBoot-*",
    "sys/hypervisor/type",
    "sys/module/kvm/parameters/enable_virt_at_load",
    "sys/module/kvm_amd/parameters/nested",
    "sys/module/kvm_amd/parameters/npt",
    "sys/module/kvm_intel/parameters/ept",
    "sys/module/kvm_intel/parameters/nested",
    "sys/module/kvm_intel/parameters/unrestricted_guest",
    "usr/lib/modprobe.d/*.conf",
    "usr/local/lib/modprobe.d/*.conf",
];

/// The files of a host that checks look at.
#[derive(Debug, Clone, Default)]
pub(super) struct HostFiles {
    present: BTreeMap<String, Access>,
    contents: BTreeMap<String, Vec<u8>>,
}

/// What the user may do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Access {
    read: bool,
    write: bool,
    folder: bool,
}

impl HostFiles {
    /// Reads `host`'s files; what is not there is no error.
    pub(super) async fn take(host: &dyn Host) -> Result<HostFiles> {
        Ok(HostFiles::parse(&host.check(&HostFiles::command("/")).await?.text()))
    }

    /// Returns the command that reads the files below `root`.
    pub(super) fn command(root: &str) -> Command {
        Command::new("sh")
            .args(["-c", SCRIPT, "survey", root])
            .args(PRESENCE.iter().copied())
            .arg("--")
            .args(CONTENTS.iter().copied())
    }

    fn parse(answer: &str) -> HostFiles {
        let mut survey = HostFiles::default();
        for line in answer.lines() {
            let mut fields = line.splitn(3, ' ');
            let (Some(kind), Some(value), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let path = format!("/{path}");
            let can = |what| kind == "?" && value.contains(what);
            let mut access = Access { read: can('r'), write: can('w'), folder: can('d') };
            if kind == "=" {
                let content = base64::engine::general_purpose::STANDARD.decode(value);
                survey.contents.insert(path.clone(), content.unwrap_or_default());
                access.read = true;
            }
            survey.present.insert(path, access);
        }
        survey
    }

    /// Returns a survey of these files, which can be read and not written, for tests.
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> HostFiles {
        let mut survey = HostFiles::default();
        for (path, text) in files {
            let access = Access { read: true, write: false, folder: false };
            survey.present.insert((*path).to_owned(), access);
            survey.contents.insert((*path).to_owned(), text.as_bytes().to_vec());
        }
        survey
    }

    /// Returns every path that is there, with what was read; a folder as an empty file in it, which keeps
    /// it in a repository.
    pub(super) fn files(&self) -> impl Iterator<Item = (String, &[u8])> {
        self.present.iter().map(|(path, access)| {
            let content = self.contents.get(path).map(Vec::as_slice).unwrap_or_default();
            (if access.folder { format!("{path}/.keep") } else { path.clone() }, content)
        })
    }

    /// Returns whether there is something at `path`, whether or not it can be read.
    pub(super) fn has(&self, path: &str) -> bool {
        self.present.contains_key(path)
    }

    /// Returns whether the user may read and write what is at `path`.
    pub(super) fn usable(&self, path: &str) -> bool {
        self.present.get(path).is_some_and(|access| access.read && access.write)
    }

    /// Returns the paths that begin with `start` and end with `end`.
    pub(super) fn paths<'a>(
        &'a self,
        start: &'a str,
        end: &'a str,
    ) -> impl Iterator<Item = &'a str> + 'a {
        let paths = self.present.keys().map(String::as_str);
        paths.filter(move |path| path.starts_with(start) && path.ends_with(end))
    }

    /// Returns what is in the file at `path`, bad UTF-8 replaced and the ends trimmed; `None` if it is not
    /// there or cannot be read.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let bytes = self.contents.get(path)?;
        Some(String::from_utf8_lossy(bytes).trim().to_owned())
    }

    /// Returns the value of the parameter `name` of the kernel module `module`.
    pub(super) fn parameter(&self, module: &str, name: &str) -> Option<String> {
        self.text(&format!("/sys/module/{module}/parameters/{name}"))
    }

    /// Returns the file that switches the parameter `name` of the kernel module `module` off: one that
    /// modprobe(8) reads, or the kernel's command line.
    pub(super) fn switches_off(&self, module: &str, name: &str) -> Option<&str> {
        const FOLDERS: [&str; 4] = [
            "/etc/modprobe.d/",
            "/run/modprobe.d/",
            "/usr/local/lib/modprobe.d/",
            "/usr/lib/modprobe.d/",
        ];
        const COMMAND_LINE: &str = "/proc/cmdline";
        let is_off = |setting: &str| {
            let value = setting.split_once('=').filter(|(key, _)| *key == name).map(|it| it.1);
            value.is_some_and(|value| matches!(value, "0" | "n" | "N"))
        };
        let same = |word: &str| word.replace('-', "_") == module;
        let by_modprobe = |path: &&str| {
            let text = self.text(path).unwrap_or_default().replace("\\\n", " ");
            text.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some("options")
                    && words.next().is_some_and(same)
                    && words.any(is_off)
            })
        };
        let by_kernel = |text: String| {
            let mut words = text.split_whitespace().filter_map(|word| word.split_once('.'));
            words.any(|(word, setting)| same(word) && is_off(setting))
        };
        let mut files = FOLDERS.iter().flat_map(|folder| self.paths(folder, ".conf"));
        files
            .find(by_modprobe)
            .or_else(|| self.text(COMMAND_LINE).is_some_and(by_kernel).then_some(COMMAND_LINE))
    }

    /// Returns the field `name` of the machine's DMI table, such as `sys_vendor`; empty if unknown.
    pub(super) fn dmi(&self, name: &str) -> String {
        self.text(&format!("/sys/class/dmi/id/{name}")).unwrap_or_default()
    }

    /// Returns the running kernel's release.
    pub(super) fn kernel(&self) -> String {
        self.text("/proc/sys/kernel/osrelease").unwrap_or_default()
    }

    /// Returns the value behind `name` in /etc/os-release, without quotes.
    pub(super) fn os(&self, name: &str) -> Option<String> {
        let text = self.text("/etc/os-release")?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches(['"', '\'']).to_owned())
    }

    /// Returns how many users the loaded kernel module `name` has, such as running guests; `None` if it is
    /// not loaded as a module.
    pub(super) fn module_users(&self, name: &str) -> Option<u32> {
        let modules = self.text("/proc/modules")?;
        let line = modules.lines().find(|line| line.split(' ').next() == Some(name))?;
        line.split(' ').nth(2)?.parse().ok()
    }

    /// Returns whether the kernel has `module`, loaded or built in.
    pub(super) fn has_module(&self, module: &str) -> bool {
        self.has(&format!("/sys/module/{module}")) || self.module_users(module).is_some()
    }

    /// Returns whether the variable `SecureBoot` of the firmware says it is on (UEFI 2.10, 3.3: four bytes
    /// of attributes, then one that is 1); `None` if there is no such variable.
    pub(super) fn secure_boot(&self) -> Option<bool> {
        let start = "/sys/firmware/efi/efivars/SecureBoot-";
        let path = self.paths(start, "").next()?;
        Some(self.contents.get(path)?.get(4) == Some(&1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Local;

    async fn survey_of(root: &str) -> HostFiles {
        let host = Local::new();
        let host: &dyn Host = &host;
        HostFiles::parse(&host.check(&HostFiles::command(root)).await.expect("runs").text())
    }

    #[tokio::test]
    async fn this_machines_files_are_read_in_one_command() {
        let host = Local::new();
        let survey = HostFiles::take(&host).await.expect("reads");
        let release = fs_err::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
        assert_eq!(survey.kernel(), release.trim());
        assert!(survey.text("/proc/cpuinfo").expect("is there").contains("processor"));
        assert!(!survey.has("/etc/qubes-release"));
    }

    #[tokio::test]
    async fn binary_contents_patterns_and_odd_names_survive() {
        let tree = tempfile::tempdir().expect("a folder");
        let write = |path: &str, bytes: &[u8]| {
            let path = tree.path().join(path);
            fs_err::create_dir_all(path.parent().expect("in a folder")).expect("creates");
            fs_err::write(path, bytes).expect("writes");
        };
        write("sys/firmware/efi/efivars/SecureBoot-8be4df61", &[6, 0, 0, 0, 1]);
        write("lib/modules/6.1 odd/build/Makefile", b"");
        write("proc/modules", b"kvm_intel 393216 4 - Live 0x0\nkvm 1 1 kvm_intel, Live 0x0\n");
        write("etc/os-release", b"ID=debian\nPRETTY_NAME=\"Debian GNU/Linux\"\n");
        write("sys/module/kvm_amd/parameters/npt", b"Y\n");
        let survey = survey_of(tree.path().to_str().expect("UTF-8")).await;
        assert_eq!(survey.secure_boot(), Some(true));
        assert_eq!(
            survey.paths("/lib/modules/", "/build/Makefile").collect::<Vec<_>>(),
            ["/lib/modules/6.1 odd/build/Makefile"]
        );
        assert_eq!(survey.module_users("kvm_intel"), Some(4));
        assert_eq!(survey.module_users("kvm_amd"), None);
        assert_eq!(survey.os("PRETTY_NAME").as_deref(), Some("Debian GNU/Linux"));
        assert_eq!(survey.parameter("kvm_amd", "npt").as_deref(), Some("Y"));
        assert!(survey.has("/sys/module/kvm_amd"));
    }

    #[test]
    fn the_file_that_switches_a_parameter_off_is_found_however_it_spells_that() {
        for (path, text) in [
            ("/etc/modprobe.d/kvm.conf", "# why\noptions kvm-intel nested=0\n"),
            ("/run/modprobe.d/x.conf", "options  kvm_intel ept=1 \\\n  nested=N\n"),
            ("/proc/cmdline", "root=/dev/sda1 kvm-intel.nested=0 quiet\n"),
        ] {
            let survey = HostFiles::of(&[(path, text)]);
            assert_eq!(survey.switches_off("kvm_intel", "nested"), Some(path), "{text}");
            assert_eq!(survey.switches_off("kvm_amd", "nested"), None, "{text}");
            assert_eq!(survey.switches_off("kvm_intel", "unrestricted_guest"), None, "{text}");
        }
        let on = [(
            "/etc/modprobe.d/kvm.conf",
            "#options kvm_intel nested=0\noptions kvm_intel nested=1\n",
        )];
        assert_eq!(HostFiles::of(&on).switches_off("kvm_intel", "nested"), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_there_and_has_no_text() {
        let survey =
            HostFiles::parse("? - dev/kvm\n! - proc/modules\n? rw dev/vboxdrv\nnonsense\n");
        assert!(survey.has("/dev/kvm") && !survey.usable("/dev/kvm"));
        assert!(survey.has("/proc/modules") && survey.text("/proc/modules").is_none());
        assert!(survey.usable("/dev/vboxdrv"));
    }
}
