//! `nestlab destroy`: remove everything that a lab made, and nothing else.

use std::process::ExitCode;

use super::session::{Session, Told, command_line};
use super::{Globals, ask};
use crate::engine;
use crate::error::Result;
use crate::event::Level;
use crate::lab::{Lab, LabLock, Labs};
use crate::plan::{Blueprint, recovery};
use crate::recipe::LabName;

/// Remove everything that a lab made; images stay in the store
///
/// A VM that existed before gets its former settings back, and is never removed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The lab [default: the only one]
    lab: Option<LabName>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let labs = Labs::at(&globals.state_dir);
    labs.sweep()?;
    let lab = labs.choose(args.lab.as_ref())?;
    if !args.yes && !confirmed(&lab)? {
        return Ok(ask::cancelled("nothing removed"));
    }
    let lock = lab.lock(command_line())?;
    remove(lab, lock, globals).await?;
    Ok(ExitCode::SUCCESS)
}

/// Removes `lab`, which is locked, and all that it made.
async fn remove(lab: Lab, lock: LabLock, globals: &Globals) -> Result<()> {
    // Its log would lie in the lab that goes.
    let told = Told::begin(globals, None)?;
    let removed = remove_all(lab, lock, globals, &told).await;
    told.end();
    removed
}

async fn remove_all(lab: Lab, lock: LabLock, globals: &Globals, told: &Told) -> Result<()> {
    told.warn_of_records(&lab);
    if Blueprint::of(&lab)?.is_some() {
        let session = Session::of(lab.clone())?;
        let journal = lock.journal()?;
        let machines = &session.machines;
        recovery::find_hidden(machines, &journal, &told.feed).await?;
        let restored = machines.restore_adopted(&journal, &told.feed).await;
        let removal = engine::remove_all(&journal, &**machines, &told.feed, &told.cancel()).await;
        restored?;
        removal.into_result()?;
    }
    recovery::check_nothing_runs(&lab)?;
    let store = crate::image::Store::open(&globals.cache_dir.join("images"))?;
    store.release(lab.directory())?;
    let folder = lab.directory().to_owned();
    let left = lab.remove(lock)?;
    if !left.is_empty() {
        let left: Vec<_> =
            left.iter().map(|path| path.strip_prefix(&folder).unwrap_or(path)).collect();
        let left: Vec<_> = left.iter().map(|path| path.as_str()).collect();
        let text = format!("{folder} stays, with what nestlab did not make: {}", left.join(", "));
        told.feed.notice(Level::Warning, text);
    }
    Ok(())
}

fn confirmed(lab: &Lab) -> Result<bool> {
    let mut question = String::new();
    for resource in lab.resources()? {
        question.push_str(&format!("  {resource}\n"));
    }
    question.push_str(&format!("remove the lab {} and all of this?", lab.name()));
    ask::yes(&question)
}
