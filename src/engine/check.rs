//! Looks at every step of a plan and changes nothing.

use std::collections::{BTreeMap, HashMap};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ready_queue::ReadyQueue;
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;
use crate::plan::{Check, Context, Plan, StepId};

/// Returns what each step of `plan` found, in the plan's order. A step is looked at after those that
/// it needs; what cannot be looked at because they are not done yet is [`Check::Unknown`].
///
/// # Errors
/// The first failure of a check whose needs are all satisfied, or an interruption.
pub async fn check(
    plan: &Plan,
    events: EventSink,
    cancel: CancellationToken,
) -> Result<Vec<(StepId, Check)>> {
    let mut frontier = ReadyQueue::of(plan);
    let mut looking: JoinSet<Result<Check>> = JoinSet::new();
    let mut ids = HashMap::new();
    let mut found: BTreeMap<StepId, Check> = BTreeMap::new();
    loop {
        for step in frontier.take_ready() {
            let id = step.id().clone();
            let missing = step.needs().iter().find(|need| !found[*need].is_right());
            let missing = missing.map(ToString::to_string);
            let context = Context::looking(events.for_step(id.as_str()), cancel.clone());
            let task = looking.spawn(async move {
                context.proceed()?;
                match (context.or_cancelled(step.check(&context)).await, missing) {
                    (Err(_), Some(need)) if !context.cancel.is_cancelled() => {
                        Ok(Check::Unknown(format!("after {need}")))
                    }
                    (Err(error), None) if error.kind() == Kind::Stuck => Ok(Check::stuck(&error)),
                    (Err(error), _) => Err(error.in_step(step.id())),
                    (Ok(check), _) => Ok(check),
                }
            });
            ids.insert(task.id(), id);
        }
        let Some(looked) = looking.join_next_with_id().await else { break };
        let (task, check) =
            looked.map_err(|error| Error::internal(format!("a check broke off: {error}")))?;
        let id = ids.remove(&task).expect("every task is a step");
        frontier.met(&id);
        found.insert(id, check?);
    }
    let in_order = plan.steps().iter().map(|step| step.id());
    Ok(in_order.filter_map(|id| found.remove_entry(id)).collect())
}
