//! Tells a stall from slowness: what still changes is alive, however long it takes.

use std::time::{Duration, Instant};

/// A watch over something that shows signs of life.
///
/// The sign is any text that changes while there is life: the size of a log, a lock holder's CPU time,
/// the last line of a console. Only when it stood still for the limit is it a stall.
#[derive(Debug)]
pub struct StallDetector {
    limit: Duration,
    sign: Option<String>,
    since: Instant,
}

impl StallDetector {
    /// Begins a watch that counts `limit` without a change as a stall.
    pub fn new(limit: Duration) -> Self {
        StallDetector { limit, sign: None, since: Instant::now() }
    }

    /// Takes in what was seen now, and returns for how long it has been the same if that is a stall.
    pub fn stalled(&mut self, sign: impl Into<String>) -> Option<Duration> {
        let sign = Some(sign.into());
        if self.sign != sign {
            self.sign = sign;
            self.since = Instant::now();
            return None;
        }
        let still = self.since.elapsed();
        (still >= self.limit).then_some(still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_still_is_stalled() {
        let mut vigil = StallDetector::new(Duration::ZERO);
        assert_eq!(vigil.stalled("1 byte"), None);
        assert_eq!(vigil.stalled("2 bytes"), None);
        assert!(vigil.stalled("2 bytes").is_some());
        assert_eq!(vigil.stalled("3 bytes"), None, "life came back");
    }

    #[test]
    fn silence_within_the_limit_is_patience() {
        let mut vigil = StallDetector::new(Duration::MAX);
        assert_eq!(vigil.stalled(""), None);
        assert_eq!(vigil.stalled(""), None);
    }
}
