//! Waiting for apt's and dpkg's locks, and saying who holds them.
//!
//! apt waits for dpkg's frontend lock itself (`DPkg::Lock::Timeout`), but not for the one on its lists,
//! and for neither does it say for whom. A fresh guest often runs unattended-upgrades or apt-daily at
//! its first boot.

use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::guest::{ExecContext, StallDetector};
use crate::host::Command;

/// How long a holder may do nothing at all, on bare metal. A download over a slow line still wakes its
/// process; only what is stuck, or waits for a person, stands still.
const SILENCE: Duration = Duration::from_secs(300);

/// The locks that apt-get takes.
const LOCKS: [&str; 4] = [
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
];

/// Prints a line for every process that holds one of the files: `file<TAB>pid<TAB>name<TAB>stat`, the last
/// being `/proc/PID/stat`, which changes while the process or a child that it waited for lives.
///
/// `/proc/locks` tells inodes; that the process has this very file open rules out the same number on
/// another file system.
const HOLDERS: &str = r#"
for file in "$@"; do
    inode=$(stat -c %i -- "$file" 2>/dev/null) || continue
    while read -r _ _ _ _ pid where _; do
        [ "${where##*:}" = "$inode" ] || continue
        for open in "/proc/$pid/fd/"*; do
            [ "$open" -ef "$file" ] || continue
            printf '%s\t%s\t' "$file" "$pid"
            tr '\n' '\t' <"/proc/$pid/comm"
            cat "/proc/$pid/stat"
            break
        done
    done </proc/locks
done 2>/dev/null
exit 0
"#;

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
struct AptLockHolder {
    file: String,
    pid: u32,
    name: String,
}

impl std::fmt::Display for AptLockHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = crate::event::printable(&self.name);
        let meant = match name.as_str() {
            "unattended-upgr" => "unattended-upgrades",
            name => name,
        };
        write!(f, "{meant} (process {}), which holds {}", self.pid, self.file)
    }
}

/// Waits until nobody holds one of apt's locks.
///
/// # Errors
/// [`Kind::Busy`] if the holder does nothing any more.
pub(super) async fn wait(exec: ExecContext<'_>) -> Result<()> {
    wait_for(exec, exec.patience.limit(SILENCE)).await
}

async fn wait_for(exec: ExecContext<'_>, silence: Duration) -> Result<()> {
    let ask = Command::new("sh").args(["-c", HOLDERS, "holders"]).args(LOCKS).privileged();
    let mut vigil = StallDetector::new(silence);
    loop {
        exec.proceed()?;
        let answer = exec.host.check(&ask).await?.text();
        let Some(holder) = holders(&answer).into_iter().next() else {
            return Ok(());
        };
        exec.events.doing(format!("waiting for {holder}"));
        if let Some(still) = vigil.stalled(answer) {
            return Err(Error::new(
                Kind::Busy,
                format!("apt is locked by {holder} and has done nothing for {} s", still.as_secs()),
            )
            .on_host(exec.host.name())
            .hint(format!("look at what it waits for inside the guest: `ps -f {}`", holder.pid)));
        }
        exec.look_again().await?;
    }
}

fn holders(answer: &str) -> Vec<AptLockHolder> {
    answer
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(4, '\t');
            let (file, pid, name) = (fields.next()?, fields.next()?, fields.next()?);
            Some(AptLockHolder { file: file.into(), pid: pid.parse().ok()?, name: name.into() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::test_support::Bench;
    use crate::host::scripted::Scripted;

    const HELD: &str =
        "/var/lib/dpkg/lock-frontend\t812\tunattended-upgr\t812 (unattended-upgr) S 1 2 3\n";

    #[tokio::test]
    async fn a_held_lock_is_waited_for_and_its_holder_is_named() {
        let host = Scripted::new("l1")
            .expect_with(["holders"])
            .prints(HELD)
            .expect_with(["holders"])
            .prints(HELD.replace("S 1 2 3", "R 1 2 4"))
            .expect_with(["holders"])
            .prints("");
        let bench = Bench::new();
        wait_for(bench.exec(&host), Duration::ZERO).await.expect("becomes free");
        assert_eq!(
            bench.doings(),
            ["waiting for unattended-upgrades (process 812), which holds /var/lib/dpkg/lock-frontend";
                2]
        );
    }

    #[tokio::test]
    async fn a_holder_that_does_nothing_is_an_error_that_names_it() {
        let host = Scripted::new("l1")
            .expect_with(["holders"])
            .prints(HELD)
            .expect_with(["holders"])
            .prints(HELD);
        let error = wait_for(Bench::new().exec(&host), Duration::ZERO).await.expect_err("still");
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.message().contains("unattended-upgrades (process 812)"), "{error}");
    }

    #[tokio::test]
    async fn waiting_ends_when_the_run_is_to_end() {
        let host = Scripted::new("l1").expect_with(["holders"]).prints(HELD);
        let bench = Bench::new();
        let waiting = wait(bench.exec(&host));
        tokio::pin!(waiting);
        tokio::select! {
            biased;
            done = &mut waiting => panic!("{done:?}"),
            () = tokio::task::yield_now() => bench.cancel.cancel(),
        }
        assert_eq!(waiting.await.expect_err("cancelled").kind(), Kind::Interrupted);
    }
}
