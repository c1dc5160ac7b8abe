//! What is done inside a guest through its [`Host`]: apt, kernel and reboot, the hypervisor's
//! installation and its proof, readiness.
//!
//! Everything comes in pairs, as the steps of a plan need it: a question that changes nothing and
//! answers `Some(why)` while something is to be done, and an act that makes the answer `None`. This
//! module must not know which hypervisor runs the guest from outside, or at which level.

pub mod apt;
#[cfg(test)]
mod bench;
pub mod clock;
mod vigil;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};
use crate::event::Feed;
use crate::host::{Host, Patience};

pub use vigil::Vigil;

/// Where work is done, and with whom: the guest, how patient to be with it, whom to tell, and what
/// ends the work early.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The guest.
    pub host: &'a dyn Host,
    /// How much slower than bare metal it is.
    pub patience: Patience,
    /// Who is told of the progress.
    pub feed: &'a Feed,
    /// Fires when the work is to end at its next safe point.
    pub cancel: &'a CancellationToken,
}

impl Site<'_> {
    /// Returns a [`Kind::Interrupted`] error if the work is to end.
    pub fn proceed(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(interrupted()) } else { Ok(()) }
    }

    /// Waits until it is time to look again, or returns a [`Kind::Interrupted`] error as soon as the
    /// work is to end.
    async fn pause(&self, interval: Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(interval) => self.proceed(),
            () = self.cancel.cancelled() => Err(interrupted()),
        }
    }
}

/// How long to wait before looking again at something in a guest: short against everything that is
/// waited for, long against the answer of an emulated guest.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted").hint("run the same `nestlab up` again to go on")
}
