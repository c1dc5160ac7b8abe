//! The guest's clock: a wrong one makes apt refuse its mirrors ("not valid yet") and TLS its servers.
//! A guest's clock is often wrong after it was paused, restored or emulated slowly.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ExecContext;
use crate::error::{Error, Result};
use crate::host::Command;

/// How far a guest's clock may be off: more than the answer of an emulated guest takes, less than any
/// certificate or Release file minds.
pub const TOLERANCE: Duration = Duration::from_secs(60);

/// How far a clock is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// Seconds that the guest is ahead of this machine; negative if it is behind.
    pub seconds: i64,
}

impl Offset {
    /// Returns whether that is more than [`TOLERANCE`].
    pub fn matters(self) -> bool {
        self.seconds.unsigned_abs() > TOLERANCE.as_secs()
    }
}

impl std::fmt::Display for Offset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = if self.seconds < 0 { "behind" } else { "ahead" };
        write!(f, "{} s {direction}", self.seconds.unsigned_abs())
    }
}

/// Returns how far the guest's clock is off from this machine's; good to the second, and to half of
/// the time that the guest takes to answer.
pub async fn offset(exec: ExecContext<'_>) -> Result<Offset> {
    let ask = Command::new("date").args(["-u", "+%s"]);
    let before = now();
    let answer = exec.host.check(&ask).await?.text();
    let middle = i64::midpoint(before, now());
    let guest: i64 = answer.trim().parse().map_err(|_| {
        Error::failed("date did not answer with seconds")
            .on_host(exec.host.name())
            .with_command(ask.argv().iter().cloned())
            .tail(answer.as_bytes())
    })?;
    Ok(Offset { seconds: guest - middle })
}

/// Sets the guest's clock to this machine's if it is off by more than [`TOLERANCE`], and returns by how
/// much it was off then.
///
/// # Errors
/// [`Kind::Failed`](crate::Kind) if it cannot be set, or is off again at once.
pub async fn set(exec: ExecContext<'_>) -> Result<Option<Offset>> {
    let was = offset(exec).await?;
    if !was.matters() {
        return Ok(None);
    }
    exec.events.doing(format!("setting the clock, which is {was}"));
    let set = Command::new("date").args(["-u", "-s", &format!("@{}", now())]).privileged();
    let cannot =
        "a container or a virtual machine without its own clock follows its host's: set it there";
    exec.host.check(&set).await.map_err(|error| error.hint(cannot))?;
    let is = offset(exec).await?;
    if is.matters() {
        return Err(Error::failed(format!("the clock was set and is still {is}"))
            .on_host(exec.host.name())
            .with_command(set.argv().iter().cloned())
            .hint("something in the guest sets it otherwise: look at `timedatectl status`"));
    }
    Ok(Some(was))
}

/// Returns this machine's time in seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::test_support::Bench;
    use crate::host::scripted::Scripted;

    const ASK: [&str; 3] = ["date", "-u", "+%s"];

    #[tokio::test]
    async fn a_clock_within_tolerance_is_left_alone() {
        let host = Scripted::new("l1").expect(ASK).prints(format!("{}\n", now() - 5));
        assert_eq!(set(Bench::new().exec(&host)).await.expect("answers"), None);
    }

    #[tokio::test]
    async fn a_clock_that_is_a_year_behind_is_set_and_read_back() {
        let host = Scripted::new("l1")
            .expect(ASK)
            .prints(format!("{}\n", now() - 31_536_000))
            .expect_with(["date", "-u", "-s"])
            .prints("")
            .expect(ASK)
            .prints(format!("{}\n", now()));
        let was = set(Bench::new().exec(&host)).await.expect("sets").expect("was wrong");
        assert!((-31_536_010..=-31_535_990).contains(&was.seconds), "{was}");
        let seen = host.seen();
        let at = seen[1].argv()[3].strip_prefix('@').expect("seconds").parse::<i64>();
        assert!((now() - at.expect("a number")).abs() < 10);
    }

    #[tokio::test]
    async fn a_clock_that_jumps_back_is_an_error() {
        let host = Scripted::new("l1")
            .expect(ASK)
            .prints("5\n")
            .expect_with(["date", "-u", "-s"])
            .prints("")
            .expect(ASK)
            .prints("7\n");
        let error = set(Bench::new().exec(&host)).await.expect_err("still wrong");
        assert!(error.message().contains("still"), "{error}");
    }

    #[tokio::test]
    async fn a_clock_that_may_not_be_set_says_whose_clock_to_set() {
        let host = Scripted::new("l1")
            .expect(ASK)
            .prints("5\n")
            .expect_with(["date", "-u", "-s"])
            .fails(1, "date: cannot set date: Operation not permitted\n");
        let error = set(Bench::new().exec(&host)).await.expect_err("refused");
        assert!(error.hints()[0].contains("host"), "{error:?}");
    }
}
