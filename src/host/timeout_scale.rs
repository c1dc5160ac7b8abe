//! How long to wait before silence counts as a stall, scaled to the speed of the machine waited for.

use std::time::Duration;

/// A factor on every limit of silence. One machine's emulated guest is twenty times slower than
/// another's, so no limit is a number of seconds: it is a base for bare metal times this.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct TimeoutScale(f64);

impl TimeoutScale {
    /// For code that runs on the processor itself.
    pub const NATIVE: TimeoutScale = TimeoutScale(1.0);

    /// Returns a factor, raised to at least one; what is not a number counts as one.
    pub fn new(factor: f64) -> Self {
        TimeoutScale(if factor.is_finite() { factor.max(1.0) } else { 1.0 })
    }

    /// Returns the factor.
    pub fn factor(self) -> f64 {
        self.0
    }

    /// Returns this patience, `factor` times as long.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        TimeoutScale::new(self.0 * factor)
    }

    /// Returns how long something that answers within `base` on bare metal may be silent here.
    pub fn limit(self, base: Duration) -> Duration {
        Duration::try_from_secs_f64(base.as_secs_f64() * self.0).unwrap_or(Duration::MAX)
    }
}
