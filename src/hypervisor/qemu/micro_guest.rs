//! The micro-guest: whether a processor really runs guests, judged by what a guest of 64 KiB says.
//!
//! `/dev/kvm` can be there, open and make VMs while every guest dies, so nothing less is believed. The
//! guest is `micro_guest.s`; QEMU's exit code plays no part.

use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::argv;
use super::sandbox::Sandbox;
use super::scripts;
use crate::error::Result;
use crate::host::{Command, Host, StdStream, TimeoutScale};
use crate::hypervisor::Acceleration;

/// The code of `micro_guest.s`, assembled; a test assembles it again.
const CODE: &[u8] = include_bytes!("micro_guest.bin");

/// The size of the firmware, the least that QEMU accepts.
const FIRMWARE_SIZE: usize = 64 << 10;

/// Where a processor begins in it, and a jump from there to its first byte.
const RESET: (usize, [u8; 3]) = (FIRMWARE_SIZE - 16, [0xe9, 0x0d, 0x00]);

/// How long the guest's work takes on a processor itself: measured as a Linux process on a Xeon server,
/// 22–28 ms. QEMU 10's TCG took 360 ms there.
const NATIVE_WORK: Duration = Duration::from_millis(25);

/// How long a guest may say nothing. Long enough for a host that is itself emulated in emulation; a
/// guest that dies on KVM is recognized by what QEMU says then.
const SILENCE: Duration = Duration::from_secs(60);

/// What QEMU says when KVM gave up on the guest; it stays there, paused, and does not exit.
const GAVE_UP: &str = "KVM internal error";

/// Returns the firmware that holds the guest.
fn firmware() -> Vec<u8> {
    let mut image = vec![0; FIRMWARE_SIZE];
    image[..CODE.len()].copy_from_slice(CODE);
    let (at, jump) = RESET;
    image[at..at + jump.len()].copy_from_slice(&jump);
    image
}

/// What was seen of a micro-guest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MicroGuestResult {
    /// The lines that the guest said, in order.
    pub said: Vec<String>,
    /// How long its work took, if it ended it.
    pub work: Option<Duration>,
    /// What QEMU itself said, warnings left out.
    pub complaint: String,
}

impl MicroGuestResult {
    /// Returns whether the guest ran to its end.
    pub fn ran(&self) -> bool {
        self.work.is_some()
    }

    /// Returns whether the guest saw hardware virtualization.
    pub fn nests(&self) -> bool {
        self.said.iter().any(|line| line == "svm" || line == "vmx")
    }

    /// Returns how much slower than a processor itself the guest was.
    pub fn patience(&self) -> TimeoutScale {
        let work = self.work.unwrap_or_default();
        TimeoutScale::new(work.as_secs_f64() / NATIVE_WORK.as_secs_f64())
    }

    /// Returns in a few words what was seen, for people.
    pub fn summary(&self) -> String {
        let came = match self.said.last() {
            _ if self.ran() => return "a micro-guest ran to its end".to_owned(),
            Some(line) => format!("a micro-guest got as far as `{line}`"),
            None => "a micro-guest said nothing".to_owned(),
        };
        match self.complaint.lines().next() {
            Some(line) => format!("{came}: {line}"),
            None => came,
        }
    }
}

/// Runs the micro-guest with `program` on `host` and returns what was seen.
///
/// # Errors
/// Only what keeps commands from being run at all; a guest that dies is a sighting.
pub(super) async fn run(
    host: &dyn Host,
    program: &str,
    acceleration: Acceleration,
    confinement: Sandbox,
) -> Result<MicroGuestResult> {
    let command = command(program, acceleration, confinement);
    let gave_up = Notify::new();
    let mut watch = MicroGuestLog::default();
    let mut see = |stream: StdStream, bytes: &[u8]| {
        watch.see(stream, bytes, Instant::now());
        if watch.gave_up() {
            gave_up.notify_one();
        }
    };
    let outcome = tokio::select! {
        ended = host.run_streaming(&command, &mut see) => ended.map(|_| ()),
        () = gave_up.notified() => Ok(()),
    };
    match outcome {
        // The silence limit ended it: then what it said before tells all.
        Err(error) if error.kind() != crate::Kind::Failed => return Err(error),
        _ => {}
    }
    Ok(watch.sighting())
}

/// Runs `$2…` for at most `$1` seconds with a firmware from standard input, which has no name any more
/// when the command starts.
const RUN: &str = r#"
limit=$1
shift
file=$(mktemp) || exit 1
cat >"$file" && exec 3<"$file"
rm -f -- "$file"
exec timeout -k 5 "$limit" "$@" -bios /dev/fd/3 </dev/null
"#;

fn command(program: &str, acceleration: Acceleration, confinement: Sandbox) -> Command {
    let fixed = [
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-machine",
        "q35",
        "-display",
        "none",
        "-m",
        "16M",
        "-chardev",
        "stdio,id=out,signal=off",
        "-serial",
        "chardev:out",
    ];
    scripts::script(RUN, "nestlab-micro-guest")
        .arg((2 * SILENCE.as_secs()).to_string())
        .arg(program)
        .args(fixed)
        .args(["-accel", argv::accelerator(acceleration), "-cpu", argv::cpu(acceleration, true)])
        .args(confinement.options(argv::confined_user(uuid::Uuid::nil())))
        .stdin(firmware())
        .silence(SILENCE)
}

/// Collects what a micro-guest says, with the times that matter.
#[derive(Debug, Default)]
struct MicroGuestLog {
    serial: Vec<u8>,
    errors: Vec<u8>,
    began: Option<Instant>,
    ended: Option<Instant>,
}

impl MicroGuestLog {
    /// What is kept of either stream, in bytes; a real micro-guest says less than 100.
    const KEPT: usize = 64 << 10;

    fn see(&mut self, stream: StdStream, bytes: &[u8], now: Instant) {
        let kept = match stream {
            StdStream::Out => &mut self.serial,
            StdStream::Err => &mut self.errors,
        };
        kept.extend_from_slice(&bytes[..bytes.len().min(Self::KEPT.saturating_sub(kept.len()))]);
        let said = self.said();
        let reached = |line: &str| said.iter().any(|known| known == line);
        if self.began.is_none() && reached("work") {
            self.began = Some(now);
        }
        if self.ended.is_none() && reached("done") {
            self.ended = Some(now);
        }
    }

    fn gave_up(&self) -> bool {
        String::from_utf8_lossy(&self.errors).contains(GAVE_UP)
    }

    fn said(&self) -> Vec<String> {
        let complete = self.serial.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        String::from_utf8_lossy(&self.serial[..complete])
            .lines()
            .map(crate::event::printable)
            .collect()
    }

    fn sighting(&self) -> MicroGuestResult {
        let errors = crate::event::printable(&String::from_utf8_lossy(&self.errors));
        let complaint: Vec<_> = errors
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.contains("warning:"))
            .collect();
        MicroGuestResult {
            said: self.said(),
            work: self.began.zip(self.ended).map(|(began, ended)| ended - began),
            complaint: complaint.join("\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_what_its_source_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name);
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/hypervisor/qemu/micro_guest.s");
        let run = |program: &str, args: &[&std::ffi::OsStr]| {
            let status = std::process::Command::new(program).args(args).status().expect(program);
            assert!(status.success(), "{program}");
        };
        let (object, binary) = (file("m.o"), file("m.bin"));
        run("as", &["--64".as_ref(), source.as_ref(), "-o".as_ref(), object.as_ref()]);
        let link = ["-e", "0", "-Ttext=0", "--oformat", "binary"].map(AsRef::as_ref);
        run("ld", &[&link[..], &[object.as_ref(), "-o".as_ref(), binary.as_ref()]].concat());
        assert_eq!(std::fs::read(binary).expect("assembled"), CODE);
    }

    #[test]
    fn a_firmware_begins_at_its_end() {
        let image = firmware();
        assert_eq!(image.len(), FIRMWARE_SIZE);
        assert_eq!(image[0xfff0..0xfff3], [0xe9, 0x0d, 0x00], "a jump to 0xfff3 + 0x000d = 0");
    }

    #[test]
    fn work_is_timed_from_line_to_line_however_the_bytes_arrive() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut watch = MicroGuestLog::default();
        watch.see(StdStream::Out, b"nestlab real\nlong\nvec", at(0));
        watch.see(StdStream::Out, b"tor\nsvm\nwor", at(10));
        watch.see(StdStream::Out, b"k\n", at(20));
        watch.see(StdStream::Err, b"qemu: warning: odd\n", at(21));
        assert!(!watch.sighting().ran());
        watch.see(StdStream::Out, b"done\n", at(520));
        let seen = watch.sighting();
        assert_eq!(seen.work, Some(Duration::from_millis(500)));
        assert_eq!(seen.patience(), TimeoutScale::new(20.0));
        assert!(seen.nests());
        assert_eq!(seen.summary(), "a micro-guest ran to its end");
    }

    #[test]
    fn a_guest_that_kvm_gives_up_on_is_told_with_how_far_it_came() {
        let mut watch = MicroGuestLog::default();
        watch.see(StdStream::Out, b"nestlab real\nlong\n", Instant::now());
        watch.see(StdStream::Err, b"KVM internal error. Suberror: 1\nRAX=0\n", Instant::now());
        assert!(watch.gave_up());
        assert_eq!(
            watch.sighting().summary(),
            "a micro-guest got as far as `long`: KVM internal error. Suberror: 1"
        );
    }

    #[test]
    fn an_endless_babble_does_not_fill_the_memory() {
        let mut watch = MicroGuestLog::default();
        for _ in 0..3 {
            watch.see(StdStream::Out, &vec![b'x'; MicroGuestLog::KEPT], Instant::now());
        }
        assert_eq!(watch.serial.len(), MicroGuestLog::KEPT);
        assert!(!watch.sighting().ran());
    }
}
