//! `nestlab down`: stop a lab's guests, innermost first; keep everything.

use std::process::ExitCode;
use std::time::Duration;

use super::session::{LabSession, RunSession, command_line};
use super::{Globals, guests};
use crate::engine::until_safe_point;
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::hypervisor::{Power, Stop};
use crate::lab::JournalWriter;
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
    let session = LabSession::open(globals, args.lab.as_ref())?;
    let lock = session.lab.lock(command_line())?;
    let journal = JournalWriter::of_step(&lock.journal()?, "down");
    let log = RunLog::create(&session.lab.logs(), "down")?;
    let run_session = RunSession::begin(globals, Some(log))?;
    run_session.warn_of_records(&session.lab);
    let mut stopped = Ok(());
    let blueprint = session.machines.blueprint();
    let mut machines: Vec<&Machine> = blueprint.all().collect();
    machines.sort_by_key(|machine| std::cmp::Reverse(blueprint.level(machine)));
    for machine in machines {
        if run_session.cancel().is_cancelled() {
            stopped = Err(Error::new(Kind::Interrupted, "interrupted; what is left runs on"));
            break;
        }
        match stop(&session, machine, &journal, &run_session).await {
            // Its host is off, and so is it.
            Err(error) if error.kind() == Kind::Unreachable && machine.parent.is_some() => {}
            // The lab goes down without it.
            Err(error) if error.kind() != Kind::Interrupted && blueprint.is_orphaned(machine) => {
                let text =
                    format!("{} was not stopped: {error}", guests::orphan(blueprint, machine));
                run_session.events.notice(Level::Warning, text);
            }
            Err(error) => {
                stopped = Err(error);
                break;
            }
            Ok(()) => {}
        }
    }
    run_session.end();
    stopped.map(|()| ExitCode::SUCCESS)
}

async fn stop(
    session: &LabSession,
    machine: &Machine,
    journal: &JournalWriter,
    run_session: &RunSession,
) -> Result<()> {
    let name = machine.name.as_str();
    let cancel = run_session.cancel();
    let look = async {
        let vm = session.machines.vm_handle(machine).await?;
        let power = vm.inspect().await?.map(|actual| actual.power);
        Ok((vm, power))
    };
    let (vm, power) = until_safe_point(&cancel, look).await?;
    match power {
        None | Some(Power::Off | Power::Saved) => {
            run_session.events.notice(Level::Info, format!("{name} is off"));
            return Ok(());
        }
        Some(_) => {}
    }
    let patience = until_safe_point(&cancel, session.machines.patience_of(machine)).await?;
    let grace = Stop::Graceful(patience.limit(GRACE));
    let stop = async |events: &EventSink| {
        // A guest that was asked goes on shutting down though nobody waits for it any more.
        let stopped = vm.hypervisor.stop(&*vm.host, &vm.machine.spec, grace, events);
        until_safe_point(&cancel, stopped).await?;
        // Another guest may have its name now.
        if session.machines.blueprint().known(name)? == machine {
            journal.stopped(name).await?;
        }
        session.machines.forget(name).await;
        Ok(())
    };
    run_session.events.step(&format!("{name}/stop"), &format!("stop {name}"), "it runs", stop).await
}
