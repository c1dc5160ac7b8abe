//! How guests execute on a host: tried with the micro-guest, confined as real guests will be.

use super::micro_guest::{self, MicroGuestResult};
use super::sandbox::Sandbox;
use crate::error::{Error, Kind, Result};
use crate::host::{Host, TimeoutScale};
use crate::hypervisor::Acceleration;

/// The factor of [`TimeoutScale`] for TCG at least: a whole system is about twenty times slower than on the
/// processor (measured with Debian), more than the micro-guest's work shows.
const TCG_FACTOR: f64 = 20.0;

/// Returns how long to wait for guests on a host that may be emulated.
pub(super) fn emulated_patience() -> TimeoutScale {
    TimeoutScale::new(TCG_FACTOR)
}

/// From this factor on, KVM might be emulated itself, and is compared with TCG.
const SUSPICIOUS_FACTOR: f64 = 10.0;

/// How guests turned out to execute.
#[derive(Debug, PartialEq)]
pub(super) struct AccelOutcome {
    pub(super) acceleration: Acceleration,
    pub(super) confinement: Sandbox,
    pub(super) patience: TimeoutScale,
    /// Whether the guest saw hardware virtualization.
    pub(super) nests: bool,
    /// What a user should be told once.
    pub(super) notes: Vec<String>,
}

/// What there is of KVM before a guest is tried on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kvm {
    /// No device.
    Absent,
    /// A device that is not for this user.
    Closed,
    /// A device that opens, which proves nothing.
    Open,
}

/// QEMU on a host, to be tried.
#[derive(Debug)]
pub(super) struct AccelProbe<'a> {
    pub(super) host: &'a dyn Host,
    pub(super) program: &'a str,
    /// The strictest confinement that this QEMU should know.
    pub(super) strictest: Sandbox,
}

impl AccelProbe<'_> {
    /// Tries KVM, and TCG if KVM does not run a guest or is no faster.
    pub(super) async fn run(&self, kvm: Kvm) -> Result<AccelOutcome> {
        let (why, slow) = match self.kvm(kvm).await? {
            Ok((seen, confinement)) if seen.patience().factor() < SUSPICIOUS_FACTOR => {
                return Ok(outcome(Acceleration::Kvm, confinement, &seen));
            }
            Ok(slow) => ("KVM is slower here than emulation".to_owned(), Some(slow)),
            Err(why) => (why, None),
        };
        let (tcg, confinement) = self.seen(Acceleration::Tcg).await?;
        match slow {
            Some((seen, confinement)) if !tcg.ran() || seen.work <= tcg.work => {
                return Ok(outcome(Acceleration::Kvm, confinement, &seen));
            }
            _ if !tcg.ran() => {
                return Err(Error::new(
                    Kind::HostCannot,
                    format!("{} runs no guest here: {}", self.program, tcg.summary()),
                )
                .on_host(self.host.name())
                .tail(tcg.complaint.as_bytes()));
            }
            _ => {}
        }
        let mut outcome = outcome(Acceleration::Tcg, confinement, &tcg);
        outcome.notes.insert(0, emulated(self.host.name(), &why, outcome.patience));
        Ok(outcome)
    }

    /// Returns a guest that ran on KVM, or why none did.
    async fn kvm(&self, kvm: Kvm) -> Result<Result<(MicroGuestResult, Sandbox), String>> {
        match kvm {
            Kvm::Absent => return Ok(Err("there is no /dev/kvm".to_owned())),
            Kvm::Closed => {
                let why = "/dev/kvm is not open to this user (is it in the group kvm?)";
                return Ok(Err(why.to_owned()));
            }
            Kvm::Open => {}
        }
        let (seen, confinement) = self.seen(Acceleration::Kvm).await?;
        if seen.ran() {
            return Ok(Ok((seen, confinement)));
        }
        Ok(Err(format!("/dev/kvm is there, but {}", seen.summary())))
    }

    /// Runs a micro-guest, confined as strictly as QEMU lets it here.
    pub(super) async fn seen(
        &self,
        acceleration: Acceleration,
    ) -> Result<(MicroGuestResult, Sandbox)> {
        let confined =
            micro_guest::run(self.host, self.program, acceleration, self.strictest).await?;
        if confined.ran() || !confined.said.is_empty() {
            return Ok((confined, self.strictest));
        }
        let bare = micro_guest::run(self.host, self.program, acceleration, Sandbox::None).await?;
        Ok(if bare.ran() { (bare, Sandbox::None) } else { (confined, self.strictest) })
    }
}

fn outcome(
    acceleration: Acceleration,
    confinement: Sandbox,
    seen: &MicroGuestResult,
) -> AccelOutcome {
    let measured = seen.patience();
    let patience = match acceleration {
        Acceleration::Tcg => TimeoutScale::new(measured.factor().max(TCG_FACTOR)),
        _ => measured,
    };
    let mut notes = Vec::new();
    if confinement == Sandbox::None {
        notes.push(
            "QEMU runs unconfined here: it refused its system call filter (-sandbox) or a user of \
             its own"
                .to_owned(),
        );
    }
    AccelOutcome { acceleration, confinement, patience, nests: seen.nests(), notes }
}

/// Returns what to tell about a host whose guests are emulated.
fn emulated(host: &str, why: &str, patience: TimeoutScale) -> String {
    format!(
        "guests on {host} are emulated (TCG), about {:.0} times slower than the processor: {why}",
        patience.factor()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::scripted::Scripted;

    const RAN: &str = "nestlab real\nlong\nvector\nsvm\nwork\ndone\n";
    const DIED: &str = "KVM internal error. Suberror: 1\n";

    async fn outcome(host: Scripted, kvm: Kvm) -> Result<AccelOutcome> {
        AccelProbe { host: &host, program: "qemu", strictest: Sandbox::Filter }.run(kvm).await
    }

    #[tokio::test]
    async fn kvm_that_runs_a_guest_is_used_and_nothing_needs_to_be_said() {
        let host = Scripted::new("l1").expect_with(["qemu", "kvm", "-sandbox"]).prints(RAN);
        let outcome = outcome(host, Kvm::Open).await.expect("guests run");
        assert_eq!(outcome.acceleration, Acceleration::Kvm);
        assert_eq!((outcome.nests, outcome.notes), (true, vec![]));
    }

    #[tokio::test]
    async fn kvm_on_which_the_guest_dies_is_not_used_and_the_reason_is_told() {
        let host = Scripted::new("l1")
            .expect_with(["qemu", "kvm", "-sandbox"])
            .answers(0, "nestlab real\nlong\n", DIED)
            .expect_with(["qemu", "tcg,thread=multi", "-sandbox"])
            .prints(RAN);
        let outcome = outcome(host, Kvm::Open).await.expect("guests run");
        assert_eq!(outcome.acceleration, Acceleration::Tcg);
        assert_eq!(outcome.patience, TimeoutScale::new(TCG_FACTOR));
        let [note] = outcome.notes.as_slice() else { panic!("one note: {:?}", outcome.notes) };
        assert!(note.contains("got as far as `long`: KVM internal error. Suberror: 1"), "{note}");
    }

    #[tokio::test]
    async fn a_device_that_is_absent_or_closed_is_not_tried() {
        for (kvm, part) in [(Kvm::Absent, "no /dev/kvm"), (Kvm::Closed, "group kvm")] {
            let host = Scripted::new("l1").expect_with(["qemu", "tcg,thread=multi"]).prints(RAN);
            let outcome = outcome(host, kvm).await.expect("guests run");
            assert!(outcome.notes[0].contains(part), "{:?}", outcome.notes);
        }
    }

    #[tokio::test]
    async fn a_qemu_that_knows_no_confinement_runs_without_and_that_is_told() {
        let host = Scripted::new("l1")
            .expect_with(["qemu", "kvm", "-sandbox"])
            .fails(1, "qemu: -sandbox on: sandbox option is not enabled\n")
            .expect_with(["qemu", "kvm"])
            .prints(RAN);
        let outcome = outcome(host, Kvm::Open).await.expect("guests run");
        assert_eq!(outcome.confinement, Sandbox::None);
        assert!(outcome.notes[0].contains("unconfined"), "{:?}", outcome.notes);
    }

    #[tokio::test]
    async fn a_host_that_runs_no_guest_at_all_is_an_error_in_qemus_words() {
        let host = Scripted::new("l1")
            .expect_with(["qemu", "tcg,thread=multi", "-sandbox"])
            .fails(1, "qemu: cannot set up guest memory: Cannot allocate memory\n")
            .expect_with(["qemu", "tcg,thread=multi"])
            .fails(1, "qemu: cannot set up guest memory: Cannot allocate memory\n");
        let error = outcome(host, Kvm::Absent).await.expect_err("nothing runs");
        assert_eq!((error.kind(), error.host()), (Kind::HostCannot, Some("l1")));
        assert!(error.message().contains("cannot set up guest memory"), "{error}");
    }
}
