//! Recording what a host tells, as a tree of files that a bug report can hold and a test can read:
//! `root/` with the files that checks look at, and `fixture.toml` with what programs answered.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::host_report::{HostCommand, HostReport, Prober};
use super::needs::Needs;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::hypervisor::{Acceleration, HypervisorKind, Nesting, Probe};

/// What `fixture.toml` holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fixture {
    /// Where it comes from: recorded on which machine, or made by hand from which documentation.
    pub(super) provenance: String,
    /// What programs answered, by their command line; one that is not listed is not there.
    pub(super) answers: BTreeMap<String, Answered>,
    /// What the hypervisors' probes found; one that is not listed is not installed.
    #[serde(default)]
    pub(super) probes: BTreeMap<HypervisorKind, Probed>,
    /// What is expected of it, in tests; a recording expects nothing.
    #[serde(default)]
    pub(super) expect: toml::Table,
}

/// A program's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Answered {
    /// It succeeded and printed this.
    Printed(String),
    /// It failed.
    Failed {
        /// What it printed.
        failed: String,
    },
}

/// A probe's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Probed {
    /// The version.
    pub(super) version: semver::Version,
    /// The version as the program printed it, if it prints more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) version_text: Option<String>,
    /// How guests execute.
    pub(super) acceleration: Acceleration,
    /// Why guests cannot nest, if they cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cannot_nest: Option<String>,
    /// What the user should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
}

impl From<&Probe> for Probed {
    fn from(probe: &Probe) -> Self {
        let cannot_nest = match &probe.nesting {
            Nesting::Absent(why) => Some(why.clone()),
            Nesting::Proven | Nesting::Claimed => None,
        };
        Probed {
            version: probe.version.clone(),
            version_text: Some(probe.version_text.clone())
                .filter(|text| *text != probe.version.to_string()),
            acceleration: probe.acceleration,
            cannot_nest,
            notes: probe.notes.clone(),
        }
    }
}

/// Records what `host` tells into the folder `to`, which is made and must not exist, and returns the files.
/// They hold the processor's, firmware's and kernel's own words (its command line among them), the options of
/// kernel modules, the user's name and groups, and the networks' addresses; no file of a user.
///
/// # Errors
/// [`Kind::Io`](crate::Kind) if `to` exists or cannot be written.
pub async fn record(
    host: &dyn Host,
    prober: &dyn Prober,
    to: &Utf8Path,
) -> Result<Vec<Utf8PathBuf>> {
    let needs = Needs::nothing("/");
    let look = HostReport::take(host, &needs, prober).await?;
    fs_err::create_dir(to)?;
    let mut written = Vec::new();
    for (path, content) in look.survey.files() {
        let path = to.join("root").join(path.trim_start_matches('/'));
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent)?;
        }
        fs_err::write(&path, content)?;
        written.push(path);
    }
    let fixture = fixture(&look, &needs);
    let text = toml::to_string_pretty(&fixture)
        .map_err(|error| Error::internal("a recording is not TOML").with_source(error))?;
    let path = to.join("fixture.toml");
    fs_err::write(&path, text)?;
    written.push(path);
    Ok(written)
}

fn fixture(look: &HostReport, needs: &Needs) -> Fixture {
    let answers = HostCommand::ALL.iter().filter_map(|question| {
        let answer = look.answer(*question)?;
        // The time of a recording is no property of the machine.
        if *question == HostCommand::Clock {
            return None;
        }
        let text = answer.text.clone();
        let answered = if answer.success {
            Answered::Printed(text)
        } else {
            Answered::Failed { failed: text }
        };
        Some((question.command(needs).to_string(), answered))
    });
    let probes = needs
        .candidates()
        .into_iter()
        .filter_map(|kind| Some((kind, look.probe(kind)?.as_ref().ok()?.into())));
    Fixture {
        provenance: format!("recorded with nestlab {}", env!("CARGO_PKG_VERSION")),
        answers: answers.collect(),
        probes: probes.collect(),
        expect: toml::Table::new(),
    }
}
