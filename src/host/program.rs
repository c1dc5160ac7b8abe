//! What to say when a program is not there.

use crate::error::Error;

/// Programs that nestlab runs, and the Debian package that has each.
const PACKAGES: &[(&str, &str)] = &[
    ("VBoxManage", "virtualbox"),
    ("apt-get", "apt"),
    ("cpio", "cpio"),
    ("dmidecode", "dmidecode"),
    ("dropbear", "dropbear-bin"),
    ("e2fsck", "e2fsprogs"),
    ("gpg", "gpg"),
    ("gpgv", "gpgv"),
    ("ip", "iproute2"),
    ("mke2fs", "e2fsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mmdebstrap", "mmdebstrap"),
    ("mokutil", "mokutil"),
    ("mtools", "mtools"),
    ("qemu-img", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("resize2fs", "e2fsprogs"),
    ("sqv", "sqv"),
    ("ssh", "openssh-client"),
    ("sshd", "openssh-server"),
    ("sudo", "sudo"),
    ("xorriso", "xorriso"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// Returns the error that says that `program` is not on a host, with the package that has it.
pub(super) fn missing(program: &str) -> Error {
    let name = program.rsplit('/').next().unwrap_or(program);
    let shown = crate::event::printable(program);
    let error = Error::failed(format!("the program `{shown}` is not there"));
    match PACKAGES.iter().find(|(known, _)| *known == name) {
        Some((_, package)) => {
            error.hint(format!("on Debian and Ubuntu it is in the package `{package}`"))
        }
        None => error,
    }
}

/// Returns a signal's name without `SIG`, by its number on Linux.
pub(super) fn signal_name(number: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    usize::try_from(number)
        .ok()
        .and_then(|number| NAMES.get(number.checked_sub(1)?))
        .map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package_even_when_given_by_path() {
        let hints = missing("/usr/bin/qemu-img").hints().join(" ");
        assert!(hints.contains("qemu-utils"), "{hints}");
        assert!(missing("frobnicate").hints().is_empty());
    }

    #[test]
    fn signals_have_the_names_that_ssh_uses() {
        assert_eq!(
            [9, 11, 15, 6].map(signal_name),
            ["KILL", "SEGV", "TERM", "ABRT"].map(str::to_owned)
        );
        assert_eq!((signal_name(0), signal_name(64)), ("0".into(), "64".into()));
    }
}
