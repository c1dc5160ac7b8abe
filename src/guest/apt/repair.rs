//! Finishing what an interrupted dpkg left half done.

use super::run::{self, AptTranscript};
use super::task::{apt_get, unattended};
use crate::error::Result;
use crate::guest::ExecContext;
use crate::host::Command;

/// Returns what dpkg has left unfinished, or `None`: a package that is not configured, or a journal of
/// changes that were not taken over into its database.
pub(super) async fn needed(exec: ExecContext<'_>) -> Result<Option<String>> {
    let audit = Command::new("dpkg").arg("--audit").privileged();
    let answer = exec.host.run(&audit).await?;
    // The audit itself says nothing about the journal, and its exit code differs by version.
    let journal = Command::new("find").args(["/var/lib/dpkg/updates", "-name", "[0-9]*"]);
    let journal = exec.host.run(&journal.privileged()).await?.text();
    let unfinished = answer.text();
    Ok(match unfinished.lines().find(|line| line.starts_with(' ')) {
        Some(package) => {
            let name = package.split_whitespace().next().unwrap_or_default();
            Some(format!("{name} is half installed"))
        }
        None if !journal.trim().is_empty() => Some("dpkg was interrupted".to_owned()),
        None => None,
    })
}

/// Configures what is unpacked, then installs what is missing.
pub(super) async fn run(exec: ExecContext<'_>) -> Result<()> {
    exec.events.doing("finishing what an interrupted dpkg left");
    let configure = Command::new("dpkg").args(["--force-confold", "--configure", "-a"]);
    let configured = run::detached(exec, &unattended(configure, exec.patience)).await?;
    let fix = apt_get(exec.patience).args(["-o", "APT::Status-Fd=1", "--fix-broken", "install"]);
    let fixed = run::detached(exec, &fix).await?;
    // A package that dpkg could not configure may have been waiting for one that apt just installed.
    let failed: Option<AptTranscript> = [fixed, configured].into_iter().find(|t| !t.exit.success());
    match (needed(exec).await?, failed) {
        (Some(still), Some(transcript)) => Err(transcript.error(exec).context(still)),
        (Some(still), None) => {
            Err(crate::Error::failed(format!("{still}, and dpkg did not repair it"))
                .on_host(exec.host.name())
                .with_command(fix.argv().iter().cloned()))
        }
        (None, _) => Ok(()),
    }
}
