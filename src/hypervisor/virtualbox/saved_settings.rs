//! What an existing VM was like before nestlab changed it, as data that a lab keeps, and the commands that
//! lead back. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::settings::{self, Rule, Settings};
use super::version::Spelling;
use crate::hypervisor::{Actual, Change};

/// The settings that nestlab changed of a VM that is not its own, as they were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSettings {
    /// The VM's UUID, or `global` for VirtualBox itself.
    pub vm: String,
    /// Its name, for messages.
    pub name: String,
    /// What each changed setting was; `None` for one that did not exist.
    pub settings: BTreeMap<String, Option<String>>,
}

impl SavedSettings {
    /// Returns what `changes` will overwrite of the VM `actual`.
    pub fn before(actual: &Actual, changes: &[Change]) -> Self {
        let kept = changes
            .iter()
            // A snapshot is taken, not overwritten; it stays.
            .filter(|change| change.setting != "snapshot")
            .map(|change| (change.setting.clone(), actual.settings.get(&change.setting).cloned()));
        SavedSettings {
            vm: actual.id.clone(),
            name: actual.settings.get("name").cloned().unwrap_or_default(),
            settings: kept.collect(),
        }
    }

    /// Adds what a later run overwrote; of a setting that was changed twice the first value counts.
    pub fn add_later(&mut self, later: SavedSettings) {
        for (setting, value) in later.settings {
            self.settings.entry(setting).or_insert(value);
        }
    }

    /// Returns the settings that are not as they were, each with the arguments after `modifyvm VM` that
    /// lead back, in an order that works.
    pub(crate) fn way_back(
        &self,
        now: &Settings,
        spelling: Spelling,
    ) -> Vec<(String, Vec<String>)> {
        self.settings
            .iter()
            .filter_map(|(setting, former)| {
                let args = way_back(setting, former.as_deref(), now.get(setting), spelling)?;
                Some((setting.clone(), args))
            })
            .collect()
    }
}

fn way_back(
    setting: &str,
    former: Option<&str>,
    now: Option<&String>,
    spelling: Spelling,
) -> Option<Vec<String>> {
    if let Some((adapter, name)) = setting.strip_prefix("natpf").and_then(|it| it.split_once('/')) {
        let option = spelling.nat_pf(adapter.parse().ok()?);
        let rule = |text: &str| {
            Rule { adapter: 0, name: name.to_owned(), text: text.to_owned() }.argument()
        };
        let delete = now.is_some().then(|| vec![option.clone(), "delete".into(), name.to_owned()]);
        let add = former.map(|text| vec![option, rule(text)]);
        let args: Vec<String> = delete.into_iter().chain(add).flatten().collect();
        return (former != now.map(String::as_str) && !args.is_empty()).then_some(args);
    }
    // A network's name went with its adapter's kind: it has no value to go back to.
    let former = former?;
    if now.is_some_and(|now| settings::same(setting, now, former)) {
        return None;
    }
    settings::arguments(setting, former, spelling)
}

#[cfg(test)]
mod tests {
    use super::super::diff::changes;
    use super::super::test_support::{existing, probe, vm};
    use super::*;
    use crate::hypervisor::{Forward, Power};
    use crate::recipe::{Constraint, Cpus};
    use semver::Version;

    fn spelling() -> Spelling {
        Spelling::of(&Version::new(7, 2, 22))
    }

    #[test]
    fn what_was_changed_is_kept_and_leads_back() {
        let mut spec = existing("mine");
        spec.cpus = Constraint::Exactly(Cpus::new(3).expect("not zero"));
        spec.networks = vec!["lan".into()];
        let actual = vm("plain-vm", Power::Off);
        let changes = changes(&spec, Some(&actual), &probe());
        let former = SavedSettings::before(&actual, &changes);
        assert_eq!(former.settings["cpus"].as_deref(), Some("1"));
        assert_eq!(former.settings["natpf1/nestlab-ssh"], None);
        assert_eq!(former.settings["nic2"].as_deref(), Some("none"));
        assert!(!former.settings.contains_key("snapshot"));
        assert!(!former.settings.contains_key("acpi"), "it was not changed: {former:?}");

        let mut now = actual.settings.clone();
        now.insert("cpus".into(), "3".into());
        now.insert("nic2".into(), "intnet".into());
        now.insert("intnet2".into(), "lan".into());
        now.insert("natpf1/nestlab-ssh".into(), "tcp,127.0.0.1,2200,,22".into());
        let back = former.way_back(&now, spelling());
        let args: Vec<_> = back.iter().map(|(_, args)| args.join(" ")).collect();
        for expected in ["--cpus 1", "--nat-pf1 delete nestlab-ssh", "--nic2 none"] {
            assert!(args.iter().any(|line| line == expected), "{expected}: {args:?}");
        }
        assert!(former.way_back(&actual.settings, spelling()).is_empty());
    }

    #[test]
    fn a_forward_that_was_another_one_comes_back() {
        let mut actual = vm("plain-vm", Power::Off);
        actual.settings.insert("natpf1/nestlab-ssh".into(), "tcp,,22,,22".into());
        let mut spec = existing("mine");
        spec.forwards = vec![Forward { name: "nestlab-ssh".into(), guest_port: 22 }];
        let former = SavedSettings::before(&actual, &changes(&spec, Some(&actual), &probe()));
        let mut now = actual.settings.clone();
        now.insert("natpf1/nestlab-ssh".into(), "tcp,127.0.0.1,2200,,22".into());
        let back = former.way_back(&now, spelling());
        assert!(
            back.iter().any(|(_, args)| args.join(" ")
                == "--nat-pf1 delete nestlab-ssh --nat-pf1 nestlab-ssh,tcp,,22,,22"),
            "{back:?}"
        );
    }

    #[test]
    fn the_first_value_counts_and_it_survives_being_written_down() {
        let record = |cpus: &str| SavedSettings {
            vm: "u".into(),
            name: "n".into(),
            settings: BTreeMap::from([("cpus".to_owned(), Some(cpus.to_owned()))]),
        };
        let mut former = record("4");
        former.add_later(record("3"));
        assert_eq!(former, record("4"));
        let json = serde_json::to_string(&former).expect("serializes");
        assert_eq!(serde_json::from_str::<SavedSettings>(&json).expect("reads"), former);
    }
}
