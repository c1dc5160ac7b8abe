//! What keeps a guest of QEMU's user network from services on its host's loopback: a small library that QEMU is
//! started with. QEMU has no option for it but `restrict=on`, which cuts the guest off from everything.
//!
//! It is `loopback.s`, whose first lines say what it does and why that is enough.

/// The library, for 64-bit x86 Linux, with any C library that has `__errno_location`.
pub(super) const LIBRARY: &[u8] = include_bytes!("loopback.so");

/// Its file's name.
pub(super) const NAME: &str = "loopback.so";

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::process::Command;

    use super::*;

    /// Returns what is executed of the library in the file `path`.
    fn code_of(path: &std::path::Path) -> Vec<u8> {
        let code = path.with_extension("text");
        let copy = Command::new("objcopy")
            .args(["-O", "binary", "-j", ".text"])
            .args([path, &code])
            .status();
        assert!(copy.expect("binutils are there").success());
        fs_err::read(code).expect("is written")
    }

    #[test]
    fn the_library_is_its_source_assembled() {
        let folder = tempfile::tempdir().expect("a folder");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/hypervisor/qemu/loopback.s");
        let (object, library) = (folder.path().join("x.o"), folder.path().join("x.so"));
        let kept = folder.path().join("kept.so");
        fs_err::write(&kept, LIBRARY).expect("writes");
        let assemble = Command::new("as").args(["--64", source, "-o"]).arg(&object).status();
        assert!(assemble.expect("binutils are there").success());
        let link =
            ["-shared", "-s", "-z", "noseparate-code", "--hash-style=sysv", "--build-id=none"];
        let link = Command::new("ld").args(link).args([&object]).arg("-o").arg(&library).status();
        assert!(link.expect("binutils are there").success());
        assert_eq!(code_of(&library), code_of(&kept));
    }

    /// Returns whether a program with the library connects to `address`.
    fn reaches(kept: bool, protocol: &str, address: &str, port: u16) -> bool {
        let folder = tempfile::tempdir().expect("a folder");
        let library = folder.path().join(NAME);
        fs_err::write(&library, LIBRARY).expect("writes");
        let script = format!("exec 3<>/dev/{protocol}/{address}/{port}");
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).stderr(std::process::Stdio::null());
        if kept {
            bash.env("LD_PRELOAD", &library);
        }
        bash.status().expect("bash is there").success()
    }

    #[test]
    fn a_program_with_it_reaches_no_address_that_leads_to_the_loopback_and_every_other() {
        let listener = TcpListener::bind("0.0.0.0:0").expect("binds");
        let port = listener.local_addr().expect("is bound").port();
        for address in ["127.0.0.1", "127.1.2.3", "0.0.0.0", "::ffff:127.0.0.1"] {
            assert!(reaches(false, "tcp", address, port), "{address} leads there");
            assert!(!reaches(true, "tcp", address, port), "{address}");
        }
        // A packet to nobody needs no route but the host's own.
        let udp =
            UdpSocket::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound").port();
        assert!(reaches(false, "udp", "127.0.0.1", udp) && !reaches(true, "udp", "127.0.0.1", udp));
        // The resolver of the host.
        assert!(reaches(true, "udp", "127.0.0.53", 53));
    }
}
