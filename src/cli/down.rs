//! `nestlab down`: stop a lab's guests, innermost first; keep everything.

use std::process::ExitCode;
use std::time::Duration;

use super::session::{Session, Told, command_line};
use super::{Globals, guests};
use crate::engine::until_safe_point;
use crate::error::{Error, Kind, Result};
use crate::event::{Feed, Level};
use crate::hypervisor::{Power, Stop};
use crate::lab::Ledger;
use crate::plan::Machine;
use crate::recipe::LabName;
use crate::report::RunLog;

/// How long a guest may take to shut down by itself, on bare metal.
const GRACE: Duration = Duration::from_secs(60);

/// Stop a lab's guests; `up` starts them again
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The lab [default: the only one]
    lab: Option<LabName>,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let session = Session::open(globals, args.lab.as_ref())?;
    let lock = session.lab.lock(command_line())?;
    let ledger = Ledger::of_step(&lock.journal()?, "down");
    let log = RunLog::create(&session.lab.logs(), "down")?;
    let told = Told::begin(globals, Some(log))?;
    told.warn_of_records(&session.lab);
    let mut stopped = Ok(());
    let blueprint = session.machines.blueprint();
    let mut machines: Vec<&Machine> = blueprint.all().collect();
    machines.sort_by_key(|machine| std::cmp::Reverse(blueprint.level(machine)));
    for machine in machines {
        if told.cancel().is_cancelled() {
            stopped = Err(Error::new(Kind::Interrupted, "interrupted; what is left runs on"));
            break;
        }
        match stop(&session, machine, &ledger, &told).await {
            // Its host is off, and so is it.
            Err(error) if error.kind() == Kind::Unreachable && machine.parent.is_some() => {}
            // The lab goes down without it.
            Err(error) if error.kind() != Kind::Interrupted && blueprint.is_orphaned(machine) => {
                let text =
                    format!("{} was not stopped: {error}", guests::orphan(blueprint, machine));
                told.feed.notice(Level::Warning, text);
            }
            Err(error) => {
                stopped = Err(error);
                break;
            }
            Ok(()) => {}
        }
    }
    told.end();
    stopped.map(|()| ExitCode::SUCCESS)
}

async fn stop(session: &Session, machine: &Machine, ledger: &Ledger, told: &Told) -> Result<()> {
    let name = machine.name.as_str();
    let cancel = told.cancel();
    let look = async {
        let seat = session.machines.seat_of(machine).await?;
        let power = seat.inspect().await?.map(|actual| actual.power);
        Ok((seat, power))
    };
    let (seat, power) = until_safe_point(&cancel, look).await?;
    match power {
        None | Some(Power::Off | Power::Saved) => {
            told.feed.notice(Level::Info, format!("{name} is off"));
            return Ok(());
        }
        Some(_) => {}
    }
    let patience = until_safe_point(&cancel, session.machines.patience_of(machine)).await?;
    let grace = Stop::Graceful(patience.limit(GRACE));
    let stop = async |feed: &Feed| {
        // A guest that was asked goes on shutting down though nobody waits for it any more.
        let stopped = seat.hypervisor.stop(&*seat.host, &seat.machine.spec, grace, feed);
        until_safe_point(&cancel, stopped).await?;
        // Another guest may have its name now.
        if session.machines.blueprint().known(name)? == machine {
            ledger.stopped(name).await?;
        }
        session.machines.forget(name).await;
        Ok(())
    };
    told.feed.step(&format!("{name}/stop"), &format!("stop {name}"), "it runs", stop).await
}
