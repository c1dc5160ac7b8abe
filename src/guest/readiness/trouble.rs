//! What a guest says where it goes no further: on its serial console, or on a screen in text mode. It is told by
//! the last lines alone, since what stands above them may be of a boot that was overcome.

/// How many lines the end of a text has.
const END: usize = 3;

/// What stands at the end of what a guest says that goes no further, and what that means.
const SIGNS: [(&str, &str); 14] = [
    ("Kernel panic - not syncing", "its kernel panicked"),
    (
        "(initramfs)",
        "it stopped in the shell of its initramfs: it does not find its root file system",
    ),
    ("grub rescue>", "GRUB does not find what it is to start"),
    ("grub>", "GRUB was told nothing to start"),
    ("Control-D to continue", "it is in emergency mode"),
    ("press Enter for maintenance", "it is in emergency mode"),
    ("Cannot open access to console, the root account is locked", "it is in emergency mode"),
    ("No bootable device", "its firmware finds nothing to start"),
    ("No bootable option or device was found", "its firmware finds nothing to start"),
    ("No bootable medium found", "its firmware finds nothing to start"),
    ("Could not read from the boot medium", "its firmware cannot read what it is to start"),
    ("not a bootable disk", "its firmware finds nothing to start"),
    ("UEFI Interactive Shell", "its firmware finds nothing to start, and waits in its shell"),
    ("Shell>", "its firmware finds nothing to start, and waits in its shell"),
];

/// What a boot loader or a firmware says last while it works.
const LOADING: [&str; 8] = [
    "Booting from",
    "Booting `",
    "Loading ",
    "SeaBIOS",
    "iPXE",
    "GRUB loading",
    "Welcome to GRUB",
    "Press any key",
];

/// Returns what is the matter with a guest whose output ends with `text`, with the line that tells.
pub(super) fn at_the_end_of(text: &str) -> Option<String> {
    let end = end(text);
    // A kernel that starts the machine anew goes on.
    if end.first()?.starts_with("Rebooting in") {
        return None;
    }
    SIGNS.iter().find_map(|(sign, what)| {
        let line = end.iter().find(|line| line.contains(sign))?;
        Some(format!("{what}: {line:?}"))
    })
}

/// Returns whether a screen shows a firmware or a boot loader at work, or its menu.
pub(super) fn is_loading(text: &str) -> bool {
    text.contains("GNU GRUB  version")
        || end(text).first().is_some_and(|last| LOADING.iter().any(|word| last.starts_with(word)))
}

/// Returns the last lines of `text` that are not empty, the last first, safe for a terminal.
fn end(text: &str) -> Vec<String> {
    let lines = text.lines().rev().map(|line| crate::event::printable(line.trim()));
    lines.filter(|line| !line.is_empty()).take(END).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_goes_no_further_says_so_in_its_last_lines() {
        for (text, what) in [
            (
                "VFS: Unable to mount root fs\n---[ end Kernel panic - not syncing: VFS ]---\n",
                "its kernel panicked",
            ),
            ("Gave up waiting for root.\nALERT!\n(initramfs) ", "initramfs"),
            ("\x1b[0merror: no such device.\r\nEntering rescue mode...\r\ngrub rescue> ", "GRUB"),
            ("Give root password for maintenance\n(or press Control-D to continue): ", "emergency"),
            (
                "BdsDxe: No bootable option or device was found.\r\n\
                 BdsDxe: Press any key to enter the Boot Manager Menu.\r\n",
                "its firmware",
            ),
            ("Booting from Hard Disk...\nNo bootable device.\n\n\n", "its firmware"),
        ] {
            let told = at_the_end_of(text).unwrap_or_else(|| panic!("{text}"));
            assert!(told.contains(what), "{told}");
        }
    }

    #[test]
    fn what_was_overcome_is_no_trouble() {
        for text in [
            "",
            "---[ end Kernel panic - not syncing: x ]---\nSeaBIOS\nLinux version 7\nsystemd[1]: hello\n",
            "Kernel panic - not syncing: x\nKernel Offset: disabled\nRebooting in 10 seconds..",
            "grub rescue>\nnormal\nLoading Linux\nLoading initial ramdisk\nlogin: ",
        ] {
            assert_eq!(at_the_end_of(text), None, "{text}");
        }
    }

    #[test]
    fn a_boot_loader_at_work_is_told_from_a_system() {
        for text in [
            "SeaBIOS (version 1.16)\n\nBooting from Hard Disk...\n",
            "Loading Linux 7.2 ...\nLoading initial ramdisk ...\n",
            "  GNU GRUB  version 2.12\n\n Debian\n The highlighted entry will be executed\n",
        ] {
            assert!(is_loading(text), "{text}");
        }
        assert!(!is_loading("Debian GNU/Linux 13 l1 tty1\n\nl1 login:\n"));
    }
}
