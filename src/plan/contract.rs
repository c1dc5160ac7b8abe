//! What `up` may do with what is there already: the contract, which docs/up.md tells users as a table.
//!
//! A check says the [`Effect`] of making its step so; what disturbs what runs, or takes the place of what a
//! guest has written, needs the user's [`Consent`]. This module must not know how a guest is run.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::graph::Plan;
use super::step::{Check, Context, StepId};
use crate::error::{Error, Kind, Result};

/// What it does to what is there, if a step is made so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Effect {
    /// Nothing that is there is disturbed: something is added, or changed as it runs.
    InPlace,
    /// What differs stays as it is until the user asks for more.
    Keep {
        /// The guest.
        guest: String,
        /// The arguments of `up` that would change it; `None` if nothing does.
        ask: Option<String>,
    },
    /// A running guest is powered off and started again.
    Restart {
        /// The guest.
        guest: String,
        /// The running guests inside, which go down with it and are started again; each after its host.
        with: Vec<String>,
    },
    /// A guest's disk is put aside, and another one is made in its place.
    Replace {
        /// The guest.
        guest: String,
        /// The guests inside, whose disks are in that disk; each after its host.
        with: Vec<String>,
    },
    /// Neither this nor what needs it can be done without the user.
    Stuck {
        /// The ways out.
        hints: Vec<String>,
    },
}

impl Effect {
    /// Returns the guests that are not up afterwards until later steps start them.
    fn down(&self) -> Vec<&str> {
        match self {
            Effect::Restart { guest, with } | Effect::Replace { guest, with } => {
                [guest].into_iter().chain(with).map(String::as_str).collect()
            }
            Effect::InPlace | Effect::Keep { .. } | Effect::Stuck { .. } => Vec::new(),
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let and_with = |with: &[String]| match with {
            [] => String::new(),
            with => format!(", and with it {}", with.join(", ")),
        };
        match self {
            Effect::InPlace => f.write_str("changed in place"),
            Effect::Keep { ask: Some(ask), .. } => write!(f, "kept, unless you run up {ask}"),
            Effect::Keep { ask: None, .. } => f.write_str("kept"),
            Effect::Restart { guest, with } => write!(f, "restart {guest}{}", and_with(with)),
            Effect::Replace { guest, with } => {
                write!(f, "replace the disk of {guest}{}", and_with(with))
            }
            Effect::Stuck { .. } => f.write_str("stuck"),
        }
    }
}

/// What the user agreed to before a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Consent {
    /// Restarting guests that run.
    pub restart: bool,
    /// Cutting off a VM that was there before nestlab and does not shut down when it is asked to.
    pub power_off: bool,
    /// Replacing the disk of every guest that the recipe wants another image for.
    pub replace: bool,
    /// The guests whose disks are replaced in any case.
    pub replaced: BTreeSet<String>,
}

impl Consent {
    /// Returns whether the disk of `guest` is to be replaced, `differs` being whether the recipe wants
    /// another image for it.
    pub(super) fn replaces(&self, guest: &str, differs: bool) -> bool {
        self.replaced.contains(guest) || (self.replace && differs)
    }
}

/// A step that is not simply done: what it would do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disturbance {
    /// The step.
    pub step: StepId,
    /// Why it is needed.
    pub why: String,
    /// What it does.
    pub effect: Effect,
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.effect, self.why)
    }
}

/// Looks, before anything is changed, for what running `plan` would disturb or leave as it is. What cannot
/// be looked at yet is left out: it does not run.
///
/// # Errors
/// [`Kind::Stuck`] for the first step that is, [`Kind::Interrupted`].
pub async fn survey(plan: &Plan, context: &Context) -> Result<Vec<Disturbance>> {
    let mut found = Vec::new();
    for step in plan.steps().iter().filter(|step| step.may_disturb()) {
        let check = context.or_cancelled(step.check(context)).await;
        let (why, effect) = match check {
            Ok(Check::Affects { why, effect }) => (why, effect),
            Err(error) if matches!(error.kind(), Kind::Stuck | Kind::Interrupted) => {
                return Err(error.in_step(step.id()));
            }
            Ok(_) | Err(_) => continue,
        };
        if let Effect::Stuck { hints } = effect {
            return Err(stuck(&why, &hints).in_step(step.id()));
        }
        found.push(Disturbance { step: step.id().clone(), why, effect });
    }
    Ok(found)
}

/// Returns the error for what is stuck.
pub(crate) fn stuck(why: &str, hints: &[String]) -> Error {
    hints.iter().fold(Error::new(Kind::Stuck, why), |error, hint| error.hint(hint))
}

/// Adds to `checks` what the steps' effects mean for others: a guest that is restarted is to be started and
/// waited for, though it runs now.
pub fn consequences(checks: Vec<(StepId, Check)>) -> Vec<(StepId, Check)> {
    let mut restarted: BTreeSet<String> = BTreeSet::new();
    let mut anew: Vec<(String, StepId)> = Vec::new();
    for (id, check) in &checks {
        let Check::Affects { effect, .. } = check else { continue };
        let down = effect.down().into_iter().map(str::to_owned);
        match effect {
            Effect::Replace { .. } => anew.extend(down.map(|guest| (guest, id.clone()))),
            // A guest that reboots by itself is not started by a step.
            Effect::Restart { guest, .. } if id.what() == Some("reboot") => {
                restarted.extend(down.filter(|name| name != guest));
            }
            _ => restarted.extend(down),
        }
    }
    checks
        .into_iter()
        .map(|(id, check)| {
            let (guest, what) = (id.of().to_owned(), id.what().unwrap_or_default());
            let replaced = anew.iter().find(|(name, by)| *name == guest && *by != id);
            let check = match (check, replaced) {
                (Check::Satisfied, Some((_, by))) => Check::Unknown(format!("after {by}")),
                (Check::Satisfied, None)
                    if restarted.contains(&guest) && ["start", "ready"].contains(&what) =>
                {
                    Check::Needed(format!("{guest} is restarted"))
                }
                (check, _) => check,
            };
            (id, check)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract as users read it.
    const TABLE: &str = include_str!("../../docs/up.md");

    fn every_effect() -> [Effect; 5] {
        let (guest, with) = ("l1".to_owned(), vec!["l2".to_owned()]);
        [
            Effect::InPlace,
            Effect::Keep { guest: guest.clone(), ask: None },
            Effect::Restart { guest: guest.clone(), with: with.clone() },
            Effect::Replace { guest, with },
            Effect::Stuck { hints: Vec::new() },
        ]
    }

    #[test]
    fn every_effect_stands_in_the_table_that_users_read() {
        for effect in every_effect() {
            // Whoever adds a variant gets here.
            let word = match &effect {
                Effect::InPlace => "in place",
                Effect::Keep { .. } => "keep",
                Effect::Restart { .. } => "restart",
                Effect::Replace { .. } => "replace",
                Effect::Stuck { .. } => "stuck",
            };
            let cell = format!("| **{word}** |");
            assert!(TABLE.lines().any(|line| line.contains(&cell)), "{word} is not in docs/up.md");
            let kind = serde_json::to_value(&effect).expect("plain data")["kind"].clone();
            assert_eq!(kind, word.replace(' ', "-"));
        }
    }

    #[test]
    fn what_goes_down_with_a_guest_is_named_and_started_again() {
        let id = |of: &str, what: &str| StepId::new(of, what);
        let restart = Effect::Restart { guest: "l1".into(), with: vec!["l2".into(), "l3".into()] };
        assert_eq!(restart.to_string(), "restart l1, and with it l2, l3");
        let affects = Check::Affects { why: "memory".into(), effect: restart.clone() };
        let mut checks = vec![(id("l1", "define"), affects.clone())];
        for guest in ["l1", "l2", "l3", "other"] {
            for what in ["start", "ready", "upgrade"] {
                checks.push((id(guest, what), Check::Satisfied));
            }
        }
        let open = |checks: Vec<(StepId, Check)>| -> Vec<String> {
            let open = consequences(checks).into_iter().filter(|(_, check)| !check.is_right());
            open.map(|(id, _)| id.to_string()).collect()
        };
        assert_eq!(
            open(checks.clone()),
            ["l1/define", "l1/start", "l1/ready", "l2/start", "l2/ready", "l3/start", "l3/ready"]
        );
        checks[0] = (id("l1", "reboot"), affects);
        assert_eq!(open(checks), ["l1/reboot", "l2/start", "l2/ready", "l3/start", "l3/ready"]);
    }

    #[test]
    fn all_that_a_guest_is_to_be_follows_its_new_disk() {
        let effect = Effect::Replace { guest: "l1".into(), with: vec!["l2".into()] };
        let checks = vec![
            (StepId::new("l1", "place"), Check::Affects { why: "1 → 2".into(), effect }),
            (StepId::new("l1", "upgrade"), Check::Satisfied),
            (StepId::new("l2", "place"), Check::Satisfied),
            (StepId::new("image", "x.raw"), Check::Satisfied),
        ];
        let after = consequences(checks);
        let unknown = Check::Unknown("after l1/place".into());
        assert_eq!((&after[1].1, &after[2].1), (&unknown, &unknown));
        assert_eq!(after[3].1, Check::Satisfied);
    }

    #[test]
    fn a_disk_is_replaced_where_its_guest_is_named_or_where_all_that_differ_may_be() {
        let named = Consent { replaced: BTreeSet::from(["l1".to_owned()]), ..Consent::default() };
        assert!(named.replaces("l1", false) && !named.replaces("l2", true));
        let all = Consent { replace: true, ..Consent::default() };
        assert!(all.replaces("l2", true) && !all.replaces("l2", false));
        assert!(!Consent::default().replaces("l1", true));
    }
}
