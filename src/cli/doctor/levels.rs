//! The levels of a lab that is up, each looked at from inside.

use crate::cli::session::LabSession;
use crate::error::{Kind, Result};
use crate::lab::Lab;
use crate::lab::status::StepState;
use crate::plan::{Blueprint, StepId};
use crate::preflight::{self, Finding, Needs, Stage};
use crate::recipe::Recipe;

/// Returns what the checks find in each guest of `recipe` that runs guests, where `lab` is up; nothing of
/// a guest that cannot be reached.
pub(super) async fn inside(recipe: &Recipe, lab: &Lab) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if Blueprint::of(lab)?.is_none() {
        return Ok(findings);
    }
    let machines = LabSession::of(lab.clone())?.machines;
    let steps = lab.status()?.steps;
    for guest in recipe.guests() {
        let name = guest.name.as_str();
        // What is not installed yet is no fault of a lab that is being built.
        let proof = steps.get(&StepId::new(name, "proof").to_string());
        let stage = match proof.map(|step| &step.state) {
            Some(StepState::Good) => Stage::Settled,
            _ => Stage::Reached,
        };
        let Some(needs) = Needs::of_guest(recipe, guest, stage) else { continue };
        let looked = async {
            let host = machines.host(name).await?;
            preflight::run(&*host, &needs, &*machines).await
        };
        match looked.await {
            Ok(found) => findings.extend(found),
            // A guest that the lab was not built with yet, or that is off.
            Err(error) if matches!(error.kind(), Kind::Unreachable | Kind::Usage) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(findings)
}
