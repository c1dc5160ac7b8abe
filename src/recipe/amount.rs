//! How much of something a VM is to have, where an existing one may keep its own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How much of something a VM is to have. A VM that existed before keeps what its recipe leaves out, as far
/// as its own guests allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Amount<T> {
    /// This much.
    Just(T),
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
    Kept,
}

impl<T: Copy + PartialOrd> Amount<T> {
    /// Returns the number, or the bound where only that is known; `None` if nothing is.
    pub fn known(self) -> Option<T> {
        match self {
            Amount::Just(amount)
            | Amount::AtLeast { least: amount }
            | Amount::AtMost { most: amount } => Some(amount),
            Amount::Kept => None,
        }
    }

    /// Returns what a VM that has `actual` is to have; `None` if that is as it should be.
    pub fn instead_of(self, actual: Option<T>) -> Option<T> {
        let wanted = self.known()?;
        let fine = actual.is_some_and(|actual| match self {
            Amount::Just(_) => actual == wanted,
            Amount::AtLeast { .. } => actual >= wanted,
            Amount::AtMost { .. } => actual <= wanted,
            Amount::Kept => true,
        });
        (!fine).then_some(wanted)
    }
}

impl<T: fmt::Display> fmt::Display for Amount<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Amount::Just(amount) => amount.to_string(),
            Amount::AtLeast { least } => format!("{least} or more"),
            Amount::AtMost { most } => format!("{most} or fewer"),
            Amount::Kept => "as it is".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_keeps_what_it_has_within_the_bound_alone() {
        let instead = |amount: Amount<u32>| [1, 3, 5].map(|has| amount.instead_of(Some(has)));
        assert_eq!(instead(Amount::Just(3)), [Some(3), None, Some(3)]);
        assert_eq!(instead(Amount::AtLeast { least: 3 }), [Some(3), None, None]);
        assert_eq!(instead(Amount::AtMost { most: 3 }), [None, None, Some(3)]);
        assert_eq!(instead(Amount::Kept), [None, None, None]);
        assert_eq!(Amount::Just(3).instead_of(None), Some(3), "it is not known what it has");
    }

    #[test]
    fn an_amount_that_is_written_down_reads_back_and_a_bare_number_is_one() {
        let amounts = [
            Amount::Just(3),
            Amount::AtLeast { least: 3 },
            Amount::AtMost { most: 3 },
            Amount::Kept,
        ];
        let json = serde_json::to_string(&amounts).expect("serializes");
        assert_eq!(json, r#"[3,{"at-least":3},{"at-most":3},null]"#);
        assert_eq!(serde_json::from_str::<[Amount<u32>; 4]>(&json).expect("reads"), amounts);
    }
}
