//! Which steps may begin: those whose needs are met.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::plan::{Plan, Step, StepId};

/// The steps that have not begun, and what each still waits for.
pub(super) struct ReadyQueue {
    waiting: Vec<(Arc<dyn Step>, BTreeSet<StepId>)>,
    dependents: BTreeMap<StepId, Vec<StepId>>,
}

impl ReadyQueue {
    pub(super) fn of(plan: &Plan) -> Self {
        let waiting = plan
            .steps()
            .iter()
            .map(|step| (step.clone(), step.needs().iter().cloned().collect()))
            .collect();
        ReadyQueue { waiting, dependents: plan.dependents() }
    }

    /// Says that the need for `id` is met.
    pub(super) fn met(&mut self, id: &StepId) {
        for dependent in self.dependents.get(id).into_iter().flatten() {
            for (step, needs) in &mut self.waiting {
                if step.id() == dependent {
                    needs.remove(id);
                }
            }
        }
    }

    /// Takes out the steps that may begin, in the plan's order.
    pub(super) fn take_ready(&mut self) -> Vec<Arc<dyn Step>> {
        let (ready, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|(_, needs)| needs.is_empty());
        self.waiting = waiting;
        let ready: Vec<_> = ready;
        ready.into_iter().map(|(step, _)| step).collect()
    }

    /// Returns the steps that have not begun.
    pub(super) fn rest(&self) -> impl Iterator<Item = &StepId> {
        self.waiting.iter().map(|(step, _)| step.id())
    }
}
