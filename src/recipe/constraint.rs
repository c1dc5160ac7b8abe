//! How much of something a VM is to have, where an existing one may keep its own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much of something a VM is to have. A VM that existed before keeps what its recipe leaves out, as far
/// as its own guests allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Constraint<T> {
    /// This much.
    Exactly(T),
    /// What the VM has, raised to this if it is less.
    AtLeast {
        /// The least.
        #[serde(rename = "at-least")]
        least: T,
    },
    /// What the VM has, lowered to this if it is more.
    AtMost {
        /// The most.
        #[serde(rename = "at-most")]
        most: T,
    },
    /// What the VM has.
    Unchanged,
}

impl<T: Copy + PartialOrd> Constraint<T> {
    /// Returns the number, or the bound where only that is known; `None` if nothing is.
    pub fn known(self) -> Option<T> {
        match self {
            Constraint::Exactly(amount)
            | Constraint::AtLeast { least: amount }
            | Constraint::AtMost { most: amount } => Some(amount),
            Constraint::Unchanged => None,
        }
    }

    /// Returns what a VM that has `actual` is to have; `None` if that is as it should be.
    pub fn instead_of(self, actual: Option<T>) -> Option<T> {
        let wanted = self.known()?;
        let fine = actual.is_some_and(|actual| match self {
            Constraint::Exactly(_) => actual == wanted,
            Constraint::AtLeast { .. } => actual >= wanted,
            Constraint::AtMost { .. } => actual <= wanted,
            Constraint::Unchanged => true,
        });
        (!fine).then_some(wanted)
    }
}

impl<T: fmt::Display> fmt::Display for Constraint<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Constraint::Exactly(amount) => amount.to_string(),
            Constraint::AtLeast { least } => format!("{least} or more"),
            Constraint::AtMost { most } => format!("{most} or fewer"),
            Constraint::Unchanged => "as it is".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_keeps_what_it_has_within_the_bound_alone() {
        let instead = |amount: Constraint<u32>| [1, 3, 5].map(|has| amount.instead_of(Some(has)));
        assert_eq!(instead(Constraint::Exactly(3)), [Some(3), None, Some(3)]);
        assert_eq!(instead(Constraint::AtLeast { least: 3 }), [Some(3), None, None]);
        assert_eq!(instead(Constraint::AtMost { most: 3 }), [None, None, Some(3)]);
        assert_eq!(instead(Constraint::Unchanged), [None, None, None]);
        assert_eq!(Constraint::Exactly(3).instead_of(None), Some(3), "it is not known what it has");
    }

    #[test]
    fn an_amount_that_is_written_down_reads_back_and_a_bare_number_is_one() {
        let amounts = [
            Constraint::Exactly(3),
            Constraint::AtLeast { least: 3 },
            Constraint::AtMost { most: 3 },
            Constraint::Unchanged,
        ];
        let json = serde_json::to_string(&amounts).expect("serializes");
        assert_eq!(json, r#"[3,{"at-least":3},{"at-most":3},null]"#);
        assert_eq!(serde_json::from_str::<[Constraint<u32>; 4]>(&json).expect("reads"), amounts);
    }
}
