//! Steps and the arrows between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::step::{Step, StepId};
use crate::error::{Error, Result};

/// A graph of steps without cycles, in an order in which each stands after all that it needs.
#[derive(Clone)]
pub struct Plan {
    steps: Vec<Arc<dyn Step>>,
}

impl Plan {
    /// Returns the plan of `steps`, sorted so that each stands after what it needs, otherwise in the
    /// order given.
    ///
    /// # Errors
    /// [`Kind::Internal`](crate::Kind) for two steps with one id, a need that is not in the plan, or a cycle.
    pub fn new(steps: Vec<Arc<dyn Step>>) -> Result<Self> {
        let mut ids = BTreeSet::new();
        for step in &steps {
            if !ids.insert(step.id().clone()) {
                return Err(Error::internal(format!("two steps are called {}", step.id())));
            }
        }
        for step in &steps {
            if let Some(missing) = step.needs().iter().find(|need| !ids.contains(need)) {
                return Err(Error::internal(format!(
                    "{} needs {missing}, which is not in the plan",
                    step.id()
                )));
            }
        }
        let mut sorted = Vec::with_capacity(steps.len());
        let mut placed: BTreeSet<StepId> = BTreeSet::new();
        let mut waiting = steps;
        while !waiting.is_empty() {
            let (ready, rest): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|step: &Arc<dyn Step>| {
                    step.needs().iter().all(|need| placed.contains(need))
                });
            if ready.is_empty() {
                let names: Vec<_> = rest.iter().map(|step| step.id().as_str()).collect();
                return Err(Error::internal(format!(
                    "steps wait for each other: {}",
                    names.join(", ")
                )));
            }
            placed.extend(ready.iter().map(|step| step.id().clone()));
            sorted.extend(ready);
            waiting = rest;
        }
        Ok(Plan { steps: sorted })
    }

    /// Returns the steps, each after all that it needs.
    pub fn steps(&self) -> &[Arc<dyn Step>] {
        &self.steps
    }

    /// Returns the steps that need `id` directly, by id.
    pub fn dependents(&self) -> BTreeMap<StepId, Vec<StepId>> {
        let mut dependents: BTreeMap<StepId, Vec<StepId>> = BTreeMap::new();
        for step in &self.steps {
            for need in step.needs() {
                dependents.entry(need.clone()).or_default().push(step.id().clone());
            }
        }
        dependents
    }
}
