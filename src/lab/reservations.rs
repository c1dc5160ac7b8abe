//! VMs that belong to one lab, so that no two labs take over the same one.
//!
//! They are kept for all labs of a state directory in one file, changed by one at a time, which is there as
//! long as something is reserved. Between users or state directories the hypervisor decides.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use super::private::{self, Writing};
use crate::error::{Error, Kind, Result};
use crate::recipe::LabName;

/// Something that only one lab can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Claim {
    /// A VM's name on a host.
    Name {
        /// The host.
        host: String,
        /// The VM's name.
        name: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Reserved {
    lab: LabName,
    #[serde(flatten)]
    claim: Claim,
}

/// The file's name in the state directory.
const NAME: &str = "reservations.json";

/// The reservations of all labs of a state directory.
#[derive(Debug, Clone)]
pub struct Reservations {
    state: Utf8PathBuf,
}

impl Reservations {
    pub(super) fn at(state: &Utf8Path) -> Self {
        Reservations { state: state.to_owned() }
    }

    /// Reserves `claim` for `lab` and returns `None`, or returns the lab that has it already. To
    /// reserve what one has is fine.
    pub fn claim(&self, lab: &LabName, claim: Claim) -> Result<Option<LabName>> {
        self.change(|all| {
            if let Some(other) = all.iter().find(|held| held.lab != *lab && held.claim == claim) {
                return Ok(Some(other.lab.clone()));
            }
            all.insert(Reserved { lab: lab.clone(), claim });
            Ok(None)
        })
    }

    /// Gives back one reservation of `lab`.
    pub fn give_back(&self, lab: &LabName, claim: &Claim) -> Result<()> {
        self.change(|all| {
            all.retain(|held| held.lab != *lab || held.claim != *claim);
            Ok(())
        })
    }

    /// Gives back all that `lab` has.
    pub fn release(&self, lab: &LabName) -> Result<()> {
        self.change(|all| {
            all.retain(|held| held.lab != *lab);
            Ok(())
        })
    }

    /// Returns what `lab` has.
    pub fn held(&self, lab: &LabName) -> Result<Vec<Claim>> {
        let all = self.read()?;
        Ok(all.into_iter().filter(|held| held.lab == *lab).map(|held| held.claim).collect())
    }

    fn path(&self) -> Utf8PathBuf {
        self.state.join(NAME)
    }

    fn change<T>(&self, work: impl FnOnce(&mut BTreeSet<Reserved>) -> Result<T>) -> Result<T> {
        private::make_directory(&self.state)?;
        let writing = Writing::into_directory(&self.state)?;
        let before = self.read()?;
        let mut all = before.clone();
        let result = work(&mut all)?;
        if all.is_empty() && !before.is_empty() {
            fs_err::remove_file(self.path())?;
        } else if all != before {
            let text = serde_json::to_vec_pretty(&all).expect("reservations are plain data");
            writing.write(NAME, &text)?;
        }
        Ok(result)
    }

    /// Reads what is reserved, leaving out labs that are no longer there.
    fn read(&self) -> Result<BTreeSet<Reserved>> {
        let text = match fs_err::read(self.path()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(BTreeSet::new());
            }
            Err(error) => return Err(error.into()),
        };
        let all: BTreeSet<Reserved> = serde_json::from_slice(&text).map_err(|error| {
            Error::new(Kind::Io, format!("{} cannot be read", self.path())).with_source(error).hint(
                "it is nestlab's own: with no lab being built it can be removed and is made again",
            )
        })?;
        let labs = self.state.join("labs");
        Ok(all.into_iter().filter(|held| labs.join(held.lab.as_str()).is_dir()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Labs;

    fn two_labs() -> (tempfile::TempDir, Labs, LabName, LabName) {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let state = Utf8Path::from_path(scratch.path()).expect("UTF-8").join("state");
        let labs = Labs::at(state);
        let names: Vec<LabName> =
            ["a", "b"].iter().map(|name| name.parse().expect("a name")).collect();
        for name in &names {
            labs.create(name, "").expect("makes a lab");
        }
        (scratch, labs, names[0].clone(), names[1].clone())
    }

    fn name(name: &str) -> Claim {
        Claim::Name { host: "L0".into(), name: name.into() }
    }

    #[test]
    fn a_name_belongs_to_one_lab_until_it_is_given_back() {
        let (_keep, labs, a, b) = two_labs();
        let all = labs.reservations();
        assert_eq!(all.claim(&a, name("nestlab-x")).expect("asks"), None);
        assert_eq!(all.claim(&a, name("nestlab-x")).expect("asks"), None);
        assert_eq!(all.claim(&b, name("nestlab-x")).expect("asks"), Some(a.clone()));
        all.give_back(&a, &name("nestlab-x")).expect("gives back");
        assert_eq!(all.claim(&b, name("nestlab-x")).expect("asks"), None);
        assert_eq!(all.held(&b).expect("reads"), [name("nestlab-x")]);
    }

    #[test]
    fn what_a_lab_had_is_free_once_the_lab_is_gone() {
        let (_keep, labs, a, b) = two_labs();
        let all = labs.reservations();
        all.claim(&a, name("nestlab-x")).expect("asks");
        std::fs::remove_dir_all(labs.open(&a).expect("opens").directory()).expect("removes");
        assert_eq!(all.claim(&b, name("nestlab-x")).expect("asks"), None);
    }

    #[test]
    fn of_many_labs_at_once_one_gets_the_name() {
        let (_keep, labs, a, b) = two_labs();
        let got: Vec<_> = std::thread::scope(|scope| {
            let tasks: Vec<_> = (0..8)
                .map(|number| {
                    let (all, lab) = (labs.reservations(), if number % 2 == 0 { &a } else { &b });
                    scope.spawn(move || all.claim(lab, name("nestlab-x")).expect("asks"))
                })
                .collect();
            tasks.into_iter().map(|task| task.join().expect("does not panic")).collect()
        });
        assert_eq!(got.iter().filter(|other| other.is_none()).count(), 4, "{got:?}");
    }

    #[test]
    fn nothing_reserved_is_no_file() {
        let (_keep, labs, a, _b) = two_labs();
        let all = labs.reservations();
        all.claim(&a, name("nestlab-x")).expect("asks");
        assert!(all.path().exists());
        all.release(&a).expect("gives back");
        assert!(!all.path().exists());
    }
}
