//! What the commands that act on a lab have in common: finding it, its machines, and telling events.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Globals;
use crate::engine::{RunningSteps, Signals};
use crate::error::{Error, Kind, Result};
use crate::event::{EventSink, Level};
use crate::host::HostRef;
use crate::hypervisor::Drivers;
use crate::lab::{Lab, Labs};
use crate::plan::{Blueprint, Machines, l0, recovery};
use crate::recipe::LabName;
use crate::report::{Reporter, RunLog, Style};

/// A lab that was built, at least in part, and its machines.
pub(super) struct LabSession {
    /// The lab.
    pub(super) lab: Lab,
    /// Its machines.
    pub(super) machines: Arc<Machines>,
}

impl LabSession {
    /// Opens the lab that the user means: the one named, or the only one.
    ///
    /// # Errors
    /// [`Kind::Usage`] if there is no such lab, or nothing of it was built.
    pub(super) fn open(globals: &Globals, name: Option<&LabName>) -> Result<Self> {
        let lab = Labs::at(&globals.state_dir).choose(name)?;
        LabSession::of(lab)
    }

    /// Opens `lab`.
    pub(super) fn of(lab: Lab) -> Result<Self> {
        let blueprint = Blueprint::of(&lab)?.ok_or_else(|| nothing_built(&lab))?;
        let l0 = l0_of(&blueprint, &lab)?;
        let machines = Arc::new(Machines::new(lab.clone(), blueprint, l0, Drivers::new()));
        Ok(LabSession { lab, machines })
    }
}

fn nothing_built(lab: &Lab) -> Error {
    Error::new(Kind::Usage, format!("nothing of the lab {} was built yet", lab.name()))
        .hint("nestlab up builds it")
}

/// Returns L0 as `blueprint` has it.
fn l0_of(blueprint: &Blueprint, lab: &Lab) -> Result<HostRef> {
    match &blueprint.l0_ssh {
        None => Ok(l0::local()),
        Some(destination) => {
            let destination = destination
                .parse()
                .map_err(|error: String| Error::new(Kind::Io, error).context("L0 of the lab"))?;
            l0::over_ssh(&destination, l0::NAME, lab)
        }
    }
}

/// Returns the error for a machine that said nothing for as long as a look at it may take.
pub(super) fn silent(name: &str, limit: Duration) -> Error {
    Error::new(Kind::NotReady, format!("{name} did not answer within {} s", limit.as_secs()))
}

/// Returns how events are told.
pub(super) fn style(globals: &Globals) -> Style {
    Style {
        json: globals.json,
        quiet: globals.quiet,
        verbose: globals.verbosity > 0,
        no_progress: globals.no_progress,
        color: globals.color.into(),
    }
}

/// Returns the arguments that nestlab was called with, for the lock and the journal.
pub(super) fn command_line() -> Vec<String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect()
}

/// A run that tells of its events and ends at a signal.
pub(super) struct RunSession {
    reporter: Reporter,
    signals: Signals,
    /// Where the run tells of what it does.
    pub(super) events: EventSink,
}

impl RunSession {
    /// Begins to tell, into `log` too if there is one, and to listen for signals.
    pub(super) fn begin(globals: &Globals, log: Option<RunLog>) -> Result<Self> {
        RunSession::in_style(style(globals), log)
    }

    /// Begins to tell a person, for a command that answers with one JSON object: a program is told nothing
    /// on the way.
    pub(super) fn aside(globals: &Globals) -> Result<Self> {
        let quiet = globals.quiet || globals.json;
        RunSession::in_style(Style { json: false, quiet, ..style(globals) }, None)
    }

    fn in_style(style: Style, log: Option<RunLog>) -> Result<Self> {
        let reporter = Reporter::new(style, log);
        let running = RunningSteps::default();
        let events = running.watch(reporter.events());
        let leave = reporter.clone();
        let signals = Signals::listen(events.clone(), running, move || leave.leave())?;
        Ok(RunSession { reporter, signals, events })
    }

    /// Tells what is wrong with the records of `lab`.
    pub(super) fn warn_of_records(&self, lab: &Lab) {
        for warning in recovery::warnings(lab) {
            self.events.notice(Level::Warning, warning);
        }
    }

    /// Returns the token that fires when the user wants the run to end.
    pub(super) fn cancel(&self) -> CancellationToken {
        self.signals.cancel()
    }

    /// Puts the terminal in order.
    pub(super) fn end(self) {
        self.reporter.leave();
    }
}
