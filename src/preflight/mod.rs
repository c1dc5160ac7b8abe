//! Can this host do it? Each check is a value: what was found and where, a verdict, a remedy.
//!
//! Checks read through [`Host`], so that the same ones judge L0 and every level from inside. First the
//! host is asked everything that any check wants to know, then it is judged; judging is pure. Nothing here
//! changes anything but [`prepare`], which is asked for.

mod checks;
mod host_files;
mod host_report;
mod needs;
pub mod page;
pub mod prepare;
mod record;
pub mod systems;
#[cfg(test)]
mod test_support;
mod warnings;

use serde::Serialize;

pub use host_report::Prober;
pub use needs::{Demand, Destination, FORCEABLE, Needs, Stage};
pub use record::record;
pub use warnings::tell;

use crate::error::{Error, Kind, Result};
use crate::host::Host;
use host_report::HostReport;

/// How a check judges what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It does not matter here.
    NotApplicable,
    /// As it should be.
    Ok,
    /// It works, but slower, weaker or not for everything.
    Warn,
    /// What is wanted cannot work.
    Fail,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Verdict::NotApplicable => "not-applicable",
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        })
    }
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check.
    pub id: &'static str,
    /// The host's level.
    pub level: u32,
    /// The host: `L0`, or the guest.
    pub host: String,
    /// What was found, in a few words; safe for a terminal.
    pub found: String,
    /// Where it was read.
    pub source: String,
    /// How it is judged.
    pub verdict: Verdict,
    /// What to do about it.
    pub remedy: Option<String>,
    /// The commands to type for it, in order.
    pub commands: Vec<String>,
}

impl Finding {
    fn new(id: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Finding {
            id,
            level: 0,
            host: String::new(),
            found: crate::event::printable(&found.into()),
            source: String::new(),
            verdict,
            remedy: None,
            commands: Vec::new(),
        }
    }

    fn from(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(crate::event::printable(&remedy.into()));
        self
    }

    fn command(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }
}

/// Looks at `host` and judges it by `needs`; changes nothing.
///
/// # Errors
/// Only if `host` cannot be reached. What it lacks is a finding.
pub async fn run(host: &dyn Host, needs: &Needs, prober: &dyn Prober) -> Result<Vec<Finding>> {
    let look = HostReport::take(host, needs, prober).await?;
    let mut findings = checks::judge(&look, needs);
    findings.extend(checks::network::reach(host, needs).await);
    place(&mut findings, host, needs);
    Ok(findings)
}

/// Looks at `host`, which was judged before, for what can have come since and ends the whole host or lets a
/// guest out of it. Cheap: files and VirtualBox's version, no program else.
///
/// # Errors
/// As [`run`].
pub async fn run_again(
    host: &dyn Host,
    needs: &Needs,
    prober: &dyn Prober,
) -> Result<Vec<Finding>> {
    let look = HostReport::again(host, needs, prober).await?;
    let mut findings = checks::judge_again(&look, needs);
    place(&mut findings, host, needs);
    Ok(findings)
}

fn place(findings: &mut [Finding], host: &dyn Host, needs: &Needs) {
    for finding in findings {
        finding.level = needs.level;
        finding.host = host.name().to_owned();
    }
}

/// Returns the worst verdict of `findings`.
pub fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok)
}

/// Refuses a host of which a check failed.
///
/// # Errors
/// [`Kind::HostCannot`] with every check that failed and its remedy.
pub fn require(findings: &[Finding]) -> Result<()> {
    let failed: Vec<_> = findings.iter().filter(|it| it.verdict == Verdict::Fail).collect();
    let Some(first) = failed.first() else { return Ok(()) };
    let lines: Vec<_> = failed.iter().map(|it| format!("{}: {}", it.id, it.found)).collect();
    let error = Error::new(Kind::HostCannot, format!("{}: {}", first.id, first.found))
        .on_host(&first.host)
        .tail(lines.join("\n").as_bytes());
    let remedies = failed.iter().flat_map(|finding| finding.remedy.iter().chain(&finding.commands));
    Err(remedies.fold(error, Error::hint))
}
