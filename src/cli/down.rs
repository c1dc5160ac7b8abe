//! `nestlab down`: stop a lab's guests, innermost first; keep everything.

use std::process::ExitCode;
use std::time::Duration;

use super::Globals;
use super::session::{Session, Told, command_line};
use crate::error::{Kind, Result};
use crate::event::{Feed, Level};
use crate::hypervisor::{Power, Stop};
use crate::lab::Ledger;
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
    for machine in session.machines.blueprint().machines.iter().rev() {
        let name = machine.name.as_str();
        if told.cancel().is_cancelled() {
            break;
        }
        match stop(&session, name, &ledger, &told).await {
            // Its host is off, and so is it.
            Err(error) if error.kind() == Kind::Unreachable && machine.parent.is_some() => {}
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

async fn stop(session: &Session, name: &str, ledger: &Ledger, told: &Told) -> Result<()> {
    let seat = session.machines.seat(name).await?;
    match seat.inspect().await?.map(|actual| actual.power) {
        None | Some(Power::Off | Power::Saved) => {
            told.feed.notice(Level::Info, format!("{name} is off"));
            return Ok(());
        }
        Some(_) => {}
    }
    let grace = Stop::Graceful(session.machines.patience(name).await?.limit(GRACE));
    let stop = async |feed: &Feed| {
        seat.hypervisor.stop(&*seat.host, &seat.machine.spec, grace, feed).await?;
        ledger.stopped(name).await?;
        session.machines.forget(name).await;
        Ok(())
    };
    told.feed.step(&format!("{name}/stop"), &format!("stop {name}"), "it runs", stop).await
}
