//! What is done inside a guest through its [`Host`]: apt, kernel and reboot, the hypervisor's
//! installation and its proof, readiness.
//!
//! Everything comes in pairs, as the steps of a plan need it: a question that changes nothing and
//! answers `Some(why)` while something is to be done, and an act that makes the answer `None`. This
//! module must not know which hypervisor runs the guest from outside, or at which level.

pub mod apt;
pub mod clock;
pub mod hypervisor;
pub mod kernel;
mod liveness;
pub mod readiness;
pub mod reboot;
mod stall;
#[cfg(test)]
pub(crate) mod test_support;
pub mod virt_check;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::host::{Host, TimeoutScale};

pub use stall::StallDetector;

/// Where work is done, and with whom: the guest, how patient to be with it, whom to tell, and what
/// ends the work early.
#[derive(Debug, Clone, Copy)]
pub struct ExecContext<'a> {
    /// The guest.
    pub host: &'a dyn Host,
    /// How much slower than bare metal it is.
    pub patience: TimeoutScale,
    /// Who is told of the progress.
    pub events: &'a EventSink,
    /// Fires when the work is to end at its next safe point.
    pub cancel: &'a CancellationToken,
}

impl ExecContext<'_> {
    /// Returns a [`Kind::Interrupted`] error if the work is to end.
    pub fn proceed(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(interrupted()) } else { Ok(()) }
    }

    /// Waits until it is time to look again at what is waited for: soon, but not so often that looking
    /// slows an emulated guest down.
    async fn look_again(&self) -> Result<()> {
        self.look_again_after(Duration::ZERO).await
    }

    /// The same, but not before `least` has passed.
    async fn look_again_after(&self, least: Duration) -> Result<()> {
        let interval = self.patience.limit(LOOK_AGAIN).min(LOOK_AGAIN_AT_MOST);
        self.pause(interval.max(least)).await
    }

    /// Waits for `interval`, or returns a [`Kind::Interrupted`] error as soon as the work is to end.
    async fn pause(&self, interval: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(interval) => self.proceed(),
            () = self.cancel.cancelled() => Err(interrupted()),
        }
    }
}

/// How long to wait before looking again at something in a guest, on bare metal: short against
/// everything that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The same for the slowest guest: what is shown on the progress line is never older.
const LOOK_AGAIN_AT_MOST: Duration = Duration::from_secs(5);

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted").hint("run the same `nestlab up` again to go on")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Local;
    use crate::hypervisor::HypervisorKind;

    /// A plan's steps run on any thread.
    fn may_move_between_threads<T: Send>(work: T) -> T {
        work
    }

    #[tokio::test]
    async fn work_in_a_guest_may_move_between_threads_and_ends_when_told_to() {
        let (bench, host) = (test_support::Bench::new(), Local::new());
        bench.cancel.cancel();
        let exec = bench.exec(&host);
        let upgrade = may_move_between_threads(apt::apply(exec, &apt::Task::FullUpgrade));
        assert_eq!(upgrade.await.expect_err("cancelled").kind(), Kind::Interrupted);
        drop(may_move_between_threads(reboot::reboot(exec, None)));
        drop(may_move_between_threads(hypervisor::load_driver(exec, HypervisorKind::Qemu)));
    }
}
