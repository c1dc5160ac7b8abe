//! Which failures pass by themselves, and how long to wait for that.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

use crate::error::{Error, Kind};

/// How often, and at what distance, a failure that may pass by itself is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// How many times after the first.
    pub times: usize,
    /// How long to wait before the second attempt; each further wait is twice as long, give or take
    /// a random part, so that many labs do not ask a mirror at once.
    pub first_wait: Duration,
    /// The longest wait.
    pub longest_wait: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            times: 4,
            first_wait: Duration::from_secs(2),
            longest_wait: Duration::from_secs(30),
        }
    }
}

impl Retry {
    /// Returns the waits between attempts, one after the other.
    pub(super) fn waits(self) -> impl Iterator<Item = Duration> + Send {
        ExponentialBuilder::default()
            .with_min_delay(self.first_wait)
            .with_max_delay(self.longest_wait)
            .with_max_times(self.times)
            .with_jitter()
            .build()
    }
}

/// Returns whether the failure may pass by itself: a mirror or a name that did not answer.
pub fn is_transient(error: &Error) -> bool {
    error.kind() == Kind::Network
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_bounded_in_number_and_length() {
        let retry = Retry {
            times: 5,
            first_wait: Duration::from_millis(10),
            longest_wait: Duration::from_millis(40),
        };
        let waits: Vec<Duration> = retry.waits().collect();
        assert_eq!(waits.len(), 5);
        // The random part is at most one first wait.
        assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(80)), "{waits:?}");
        assert!(waits[0] >= retry.first_wait);
    }

    #[test]
    fn only_a_network_failure_passes_by_itself() {
        assert!(is_transient(&Error::new(Kind::Network, "timed out")));
        for kind in [Kind::Failed, Kind::Untrusted, Kind::Stuck, Kind::Io, Kind::Interrupted] {
            assert!(!is_transient(&Error::new(kind, "x")), "{kind:?}");
        }
    }
}
