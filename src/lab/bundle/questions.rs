//! What each level is asked for a bundle. All of it only looks.

use crate::host::{Command, Host};

/// A question: the file of the answer, whether only root may ask, and the argument vector.
type BundleQuestion = (&'static str, bool, &'static [&'static str]);

/// What every level is asked, this machine included: nothing of what its user does.
const EVERYWHERE: &[BundleQuestion] = &[
    ("uname", false, &["uname", "-a"]),
    ("os-release", false, &["cat", "/etc/os-release"]),
    ("cpuinfo", false, &["cat", "/proc/cpuinfo"]),
    ("meminfo", false, &["cat", "/proc/meminfo"]),
    ("modules", false, &["cat", "/proc/modules"]),
    ("disks", false, &["df", "-h"]),
    ("uptime", false, &["cat", "/proc/uptime"]),
    ("dmesg", true, &["dmesg"]),
    ("qemu-version", false, &["qemu-system-x86_64", "--version"]),
    ("virtualbox-version", false, &["VBoxManage", "--version"]),
    ("virtualbox-host", false, &["VBoxManage", "list", "hostinfo"]),
];

/// What guests are asked besides: they are nestlab's own.
const IN_GUESTS: &[BundleQuestion] = &[
    ("virtualbox-vms", false, &["VBoxManage", "list", "--long", "vms"]),
    ("processes", false, &["ps", "ax"]),
    ("addresses", false, &["ip", "address"]),
    ("units", false, &["systemctl", "--no-pager", "--failed"]),
    ("journal", true, &["journalctl", "--no-pager", "--boot", "--lines", "3000"]),
    ("apt-history", false, &["cat", "/var/log/apt/history.log"]),
    ("apt-terminal", true, &["cat", "/var/log/apt/term.log"]),
    ("packages", false, &["dpkg-query", "--show"]),
    ("dkms", false, &["dkms", "status"]),
    ("dkms-build", false, &["sh", "-c", "tail -n 400 /var/lib/dkms/*/*/build/make.log"]),
];

/// Returns the questions for `host`, each with the name of the file for its answer.
pub(super) fn of(host: &dyn Host) -> Vec<(&'static str, Command)> {
    let in_guests = if host.is_local() { &[] } else { IN_GUESTS };
    EVERYWHERE
        .iter()
        .chain(in_guests)
        .map(|(file, root, argv)| {
            let command = Command::from_argv(argv.iter().copied());
            (*file, if *root { command.privileged() } else { command })
        })
        .collect()
}
