//! What `up` asks before it restarts or replaces what is there, and what it says where it cannot ask.

use std::io::IsTerminal as _;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::session::Told;
use super::{Globals, ask};
use crate::error::{Error, Kind, Result};
use crate::event::Level;
use crate::plan::{Context, Disturbance, Effect, World, chain, contract};

/// Returns `world` with what the user agrees to, after everything was looked at that would be disturbed or
/// kept. Nothing is changed before.
///
/// # Errors
/// [`Kind::Usage`] if the user would have to be asked and cannot, [`Kind::Interrupted`] if the answer is no,
/// [`Kind::Stuck`] if something is.
pub(super) async fn settle(
    world: World,
    until: Option<&str>,
    globals: &Globals,
    told: &Told,
) -> Result<World> {
    if !world.has_guests() {
        return Ok(world);
    }
    let world = Arc::new(world);
    let plan = chain::plan(world.clone(), until)?;
    let context = Context::looking(told.feed.clone(), told.cancel());
    let found = contract::survey(&plan, &context).await?;
    drop(plan);
    let mut world =
        Arc::into_inner(world).ok_or_else(|| Error::internal("a plan outlived its steps"))?;

    let (kept, disturbs): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|one| matches!(one.effect, Effect::Keep { .. }));
    let can_ask = !globals.json && std::io::stdin().is_terminal();
    let asked = can_ask.then(|| told.cancel());
    agree_to_disturbances(&mut world, &disturbs, asked.as_ref(), told).await?;
    for one in &kept {
        offer_to_replace(&mut world, one, asked.as_ref(), told).await?;
    }
    let consent = world.consent.clone();
    world.with_consent(consent)
}

/// Asks for everything at once that is not agreed to yet.
async fn agree_to_disturbances(
    world: &mut World,
    disturbs: &[Disturbance],
    terminal: Option<&CancellationToken>,
    told: &Told,
) -> Result<()> {
    let open = disturbs.iter().filter(|one| match &one.effect {
        Effect::Restart { .. } => !world.consent.restart && world.asks_for(&one.effect),
        // Whoever named a guest may not have thought of those inside.
        Effect::Replace { with, .. } => terminal.is_some() && !with.is_empty(),
        Effect::InPlace | Effect::Keep { .. } | Effect::Stuck { .. } => false,
    });
    if open.count() == 0 {
        for one in disturbs {
            told.feed.notice(Level::Info, one.to_string());
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
    world.consent.restart = true;
    Ok(())
}

/// Says what is kept, and asks whether to replace it where that can be done.
async fn offer_to_replace(
    world: &mut World,
    one: &Disturbance,
    terminal: Option<&CancellationToken>,
    told: &Told,
) -> Result<()> {
    let Effect::Keep { guest, ask } = &one.effect else { return Ok(()) };
    if let (Some(cancel), Some(_)) = (terminal, ask) {
        let inside = world.inside(guest);
        let with = if inside.is_empty() { String::new() } else { format!(" with {inside} in it") };
        let question = format!("{}: replace the disk of {guest}{with}?", one.why);
        if yes(question, cancel).await? {
            world.consent.replaced.insert(guest.clone());
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
    told.feed.notice(Level::Warning, text);
    Ok(())
}

/// Asks at the terminal, and waits for the answer or the end of the run.
async fn yes(question: String, cancel: &CancellationToken) -> Result<bool> {
    tokio::select! {
        answer = tokio::task::spawn_blocking(move || ask::yes(&question)) => {
            answer.map_err(|error| Error::internal("a question broke off").because(error))?
        }
        () = cancel.cancelled() => Err(Error::new(Kind::Interrupted, "interrupted")),
    }
}
