//! `nestlab destroy`: remove everything that a lab made, and nothing else.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use super::Globals;
use super::session::{Session, Told, command_line};
use crate::engine;
use crate::error::{Error, Kind, Result};
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
        return Err(Error::new(Kind::Interrupted, "nothing was removed"));
    }
    let lock = lab.lock(command_line())?;
    remove(lab, lock, globals).await?;
    Ok(ExitCode::SUCCESS)
}

/// Removes `lab`, which is locked, and all that it made.
pub(super) async fn remove(lab: Lab, lock: LabLock, globals: &Globals) -> Result<()> {
    if Blueprint::of(&lab)?.is_some() {
        let session = Session::of(lab.clone())?;
        let journal = lock.journal()?;
        // Its log would lie in the lab that goes.
        let told = Told::begin(globals, None)?;
        told.warn_of_records(&lab);
        let machines = &session.machines;
        recovery::find_hidden(machines, &journal, &told.feed).await?;
        let restored = machines.restore_adopted(&journal, &told.feed).await;
        let removal = engine::remove_all(&journal, &**machines, &told.feed, &told.cancel()).await;
        told.end();
        restored?;
        removal.into_result()?;
    }
    let store = crate::image::Store::open(&globals.cache_dir.join("images"))?;
    store.release(lab.name())?;
    recovery::check_nothing_runs(&lab)?;
    lab.remove(lock)
}

fn confirmed(lab: &Lab) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(Kind::Usage, "whether to remove the lab cannot be asked here")
            .hint(format!("nestlab destroy {} --yes", lab.name())));
    }
    let mut stderr = std::io::stderr();
    for resource in lab.resources()? {
        writeln!(stderr, "  {resource}")?;
    }
    write!(stderr, "remove the lab {} and all of this? [y/N] ", lab.name())?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
