//! What `up` asks before it restarts or replaces what is there, and what it says where it cannot ask.

use std::io::IsTerminal as _;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::session::RunSession;
use super::{Globals, ask};
use crate::error::{Error, Kind, Result};
use crate::event::Level;
use crate::plan::{Context, Disturbance, Effect, LabContext, builder, contract};

/// Returns `lab_context` with what the user agrees to, after everything was looked at that would be disturbed or
/// kept. Nothing is changed before.
///
/// # Errors
/// [`Kind::Usage`] if the user would have to be asked and cannot, [`Kind::Interrupted`] if the answer is no,
/// [`Kind::Stuck`] if something is.
pub(super) async fn settle(
    lab_context: LabContext,
    until: Option<&str>,
    globals: &Globals,
    run_session: &RunSession,
) -> Result<LabContext> {
    if !lab_context.has_guests() {
        return Ok(lab_context);
    }
    let lab_context = Arc::new(lab_context);
    let plan = builder::plan(lab_context.clone(), until)?;
    let context = Context::looking(run_session.events.clone(), run_session.cancel());
    let found = contract::survey(&plan, &context).await?;
    drop(plan);
    let mut lab_context =
        Arc::into_inner(lab_context).ok_or_else(|| Error::internal("a plan outlived its steps"))?;

    let (kept, disturbs): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|one| matches!(one.effect, Effect::Keep { .. }));
    let can_ask = !globals.json && std::io::stdin().is_terminal();
    let asked = can_ask.then(|| run_session.cancel());
    agree_to_disturbances(&mut lab_context, &disturbs, asked.as_ref(), run_session).await?;
    for one in &kept {
        offer_to_replace(&mut lab_context, one, asked.as_ref(), run_session).await?;
    }
    let consent = lab_context.consent.clone();
    lab_context.with_consent(consent)
}

/// Asks for everything at once that is not agreed to yet.
async fn agree_to_disturbances(
    lab_context: &mut LabContext,
    disturbs: &[Disturbance],
    terminal: Option<&CancellationToken>,
    run_session: &RunSession,
) -> Result<()> {
    let open = disturbs.iter().filter(|one| match &one.effect {
        Effect::Restart { .. } => !lab_context.consent.restart && lab_context.asks_for(&one.effect),
        // Whoever named a guest may not have thought of those inside.
        Effect::Replace { with, .. } => terminal.is_some() && !with.is_empty(),
        Effect::InPlace | Effect::Keep { .. } | Effect::Stuck { .. } => false,
    });
    if open.count() == 0 {
        for one in disturbs {
            run_session.events.notice(Level::Info, one.to_string());
        }
        return Ok(());
    }
    let list: Vec<String> = disturbs.iter().map(ToString::to_string).collect();
    let Some(cancel) = terminal else {
        return Err(Error::new(
            Kind::Usage,
            format!("nothing was changed, since guests that run would be: {}", list.join("; ")),
        )
        .hint("`--allow restart` lets `up` do it without asking; docs/up.md says more"));
    };
    let question = format!("  {}\ndo this?", list.join("\n  "));
    if !yes(question, cancel).await? {
        return Err(Error::new(Kind::Interrupted, "nothing was changed"));
    }
    lab_context.consent.restart = true;
    Ok(())
}

/// Says what is kept, and asks whether to replace it where that can be done.
async fn offer_to_replace(
    lab_context: &mut LabContext,
    one: &Disturbance,
    terminal: Option<&CancellationToken>,
    run_session: &RunSession,
) -> Result<()> {
    let Effect::Keep { guest, ask } = &one.effect else { return Ok(()) };
    if let (Some(cancel), Some(_)) = (terminal, ask) {
        let inside = lab_context.inside(guest);
        let with = if inside.is_empty() { String::new() } else { format!(" with {inside} in it") };
        let question = format!("{}: replace the disk of {guest}{with}?", one.why);
        if yes(question, cancel).await? {
            lab_context.consent.replaced.insert(guest.clone());
            return Ok(());
        }
    }
    let text = match ask {
        Some(ask) => {
            format!(
                "{}: {guest} keeps the disk that it has; `nestlab up {ask}` replaces it",
                one.why
            )
        }
        None => one.why.clone(),
    };
    run_session.events.notice(Level::Warning, text);
    Ok(())
}

/// Asks at the terminal, and waits for the answer or the end of the run.
async fn yes(question: String, cancel: &CancellationToken) -> Result<bool> {
    tokio::select! {
        answer = tokio::task::spawn_blocking(move || ask::yes(&question)) => {
            answer.map_err(|error| Error::internal("a question broke off").with_source(error))?
        }
        () = cancel.cancelled() => Err(Error::new(Kind::Interrupted, "interrupted")),
    }
}
