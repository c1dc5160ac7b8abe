//! The files of one VM in its folder.

use camino::{Utf8Path, Utf8PathBuf};

/// The longest path of a Unix socket: `sun_path` holds 108 bytes, one of them the end (unix(7)).
const LONGEST_SOCKET_PATH: usize = 107;

/// One VM's folder. QEMU's working directory is `run/` inside it, so that the sockets that QEMU makes
/// have short names however deep the folder lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Folder<'a>(pub(super) &'a Utf8Path);

impl Folder<'_> {
    /// The VM's definition.
    pub(super) fn definition(self) -> Utf8PathBuf {
        self.0.join("guest.json")
    }

    /// QEMU's process id, written by what became QEMU.
    pub(super) fn pid(self) -> Utf8PathBuf {
        self.0.join("pid")
    }

    /// What QEMU says.
    pub(super) fn log(self) -> Utf8PathBuf {
        self.0.join("qemu.log")
    }

    /// What the guest says on its first serial port, from its last start on.
    pub(super) fn serial(self) -> Utf8PathBuf {
        self.0.join("serial.log")
    }

    /// What it said from the start before that one on.
    pub(super) fn serial_before(self) -> Utf8PathBuf {
        self.0.join("serial.log.old")
    }

    /// The guest's own copy of the UEFI variables.
    pub(super) fn efi_variables(self) -> Utf8PathBuf {
        self.0.join("efivars.qcow2")
    }

    /// QEMU's working directory; the only place where it can make files once it runs as its own user.
    pub(super) fn run(self) -> Utf8PathBuf {
        self.0.join("run")
    }

    /// A file that QEMU makes, and removes when it ends itself; it stays where QEMU was killed or crashed.
    pub(super) fn alive(self) -> Utf8PathBuf {
        self.run().join(super::argv::ALIVE)
    }

    /// Where the socket `name` of the QEMU with this process id is reached. A path that is too long
    /// for a socket address leads through the process's working directory instead (proc(5)).
    pub(super) fn socket(self, name: &str, pid: u32) -> Utf8PathBuf {
        let path = self.run().join(name);
        if path.as_str().len() <= LONGEST_SOCKET_PATH {
            path
        } else {
            Utf8PathBuf::from(format!("/proc/{pid}/cwd/{name}"))
        }
    }

    /// Every file that the driver makes here, besides those in `run/`.
    pub(super) fn made(self) -> Vec<Utf8PathBuf> {
        vec![
            self.definition(),
            self.pid(),
            self.log(),
            self.serial(),
            self.serial_before(),
            self.efi_variables(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_a_deep_folder_is_reached_through_the_process() {
        let deep = Utf8PathBuf::from(format!("/{}", "x".repeat(200)));
        assert_eq!(Folder(&deep).socket("qmp", 42), "/proc/42/cwd/qmp");
        assert_eq!(Folder("/short".into()).socket("qmp", 42), "/short/run/qmp");
    }
}
