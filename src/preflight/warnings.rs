//! Warnings of a lab, each told once: a second `up` repeats only what has changed since.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Finding, Verdict};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::lab::Lab;
use crate::lab::private::Writing;

/// The file of a lab that keeps what was told.
const FILE: &str = "warnings.json";

const SCHEMA: u32 = 1;

/// Guests are looked at side by side, and tell into one file.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[derive(Debug, Serialize, Deserialize)]
struct ShownWarnings {
    schema: u32,
    /// What was found, by host and by check.
    told: BTreeMap<String, BTreeMap<String, String>>,
}

impl ShownWarnings {
    /// Reads what was told in `lab`; `None` if a newer nestlab keeps it or it cannot be read, which is then left
    /// as it is.
    fn of(lab: &Lab) -> Option<ShownWarnings> {
        match fs_err::read(lab.directory().join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .ok()
                .filter(|told: &ShownWarnings| told.schema <= SCHEMA),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Some(ShownWarnings { schema: SCHEMA, told: BTreeMap::new() })
            }
            Err(_) => None,
        }
    }

    fn keep(&self, lab: &Lab) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::internal("what was told is not JSON").with_source(error))?;
        Writing::into_directory(lab.directory())?.write(FILE, &text)
    }
}

/// Tells on `events` each warning of `findings`, with its remedy, that was not told in `lab` before, or not in
/// these words; one that is gone is told again when it comes back.
///
/// # Errors
/// [`Kind::Io`] if what was told cannot be kept.
pub fn tell(lab: &Lab, findings: &[Finding], events: &EventSink) -> Result<()> {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let known = ShownWarnings::of(lab);
    let keeps = known.is_some();
    let mut known = known.unwrap_or(ShownWarnings { schema: SCHEMA, told: BTreeMap::new() });
    let mut changed = false;
    for finding in findings {
        let of_host = known.told.entry(finding.host.clone()).or_default();
        if finding.verdict != Verdict::Warn {
            changed |= of_host.remove(finding.id).is_some();
        } else if of_host.get(finding.id) != Some(&finding.found) {
            events.notice(Level::Warning, words(finding));
            of_host.insert(finding.id.to_owned(), finding.found.clone());
            changed = true;
        }
    }
    if !keeps || !changed {
        return Ok(());
    }
    known.keep(lab).map_err(|error| error.with_kind(Kind::Io))
}

/// Returns a warning in one line: where, what, and what to do.
fn words(finding: &Finding) -> String {
    let place = match finding.level {
        0 => finding.host.clone(),
        level => format!("{} (level {level})", finding.host),
    };
    let remedy = finding.remedy.iter().cloned();
    let commands = finding.commands.iter().map(|command| format!("`{command}`"));
    let todo = remedy.chain(commands).collect::<Vec<_>>().join(" ");
    format!("{place}: {}: {}; {todo}", finding.id, finding.found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::test_support::Bench;
    use crate::lab::Labs;

    fn lab(folder: &tempfile::TempDir) -> Lab {
        let state = camino::Utf8Path::from_path(folder.path()).expect("UTF-8").join("state");
        let name = "demo".parse().expect("a name");
        Labs::at(state).create(&name, "").expect("makes a lab")
    }

    fn warning(found: &str) -> Finding {
        let finding = Finding::new("kvm-nested", Verdict::Warn, found);
        let finding = finding.remedy("Switch it on:").command("modprobe kvm_amd");
        Finding { level: 1, host: "l1".to_owned(), ..finding }
    }

    #[test]
    fn a_warning_is_told_once_with_its_remedy_and_again_when_it_changes_or_comes_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let (lab, bench) = (lab(&folder), Bench::new());
        let fine = Finding { verdict: Verdict::Ok, ..warning("on") };
        for (finding, told) in [
            (warning("off"), 1),
            (warning("off"), 1),
            (warning("off, on purpose"), 2),
            (fine, 2),
            (warning("off, on purpose"), 3),
        ] {
            tell(&lab, &[finding], &bench.events()).expect("keeps it");
            assert_eq!(bench.notices().len(), told, "{:?}", bench.notices());
        }
        assert_eq!(
            bench.notices()[0],
            "l1 (level 1): kvm-nested: off; Switch it on: `modprobe kvm_amd`"
        );
    }

    #[test]
    fn what_a_newer_nestlab_keeps_or_nobody_can_read_is_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let (lab, bench) = (lab(&folder), Bench::new());
        for text in [r#"{"schema": 2, "told": {}}"#, "damaged"] {
            let file = lab.directory().join(FILE);
            fs_err::write(&file, text).expect("writes");
            tell(&lab, &[warning("off")], &bench.events()).expect("tells");
            assert_eq!(fs_err::read_to_string(&file).expect("reads"), text);
        }
        assert_eq!(bench.notices().len(), 2);
    }
}
