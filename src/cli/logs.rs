//! `nestlab logs`: what happened, and what programs said.

use std::process::ExitCode;

use jiff::tz::TimeZone;
use serde::Serialize;

use super::session::style;
use super::{Globals, output};
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Progress, printable};
use crate::lab::{Lab, Labs};
use crate::recipe::LabName;
use crate::report::json::EventLine;
use crate::report::line_format::LineFormatter;
use crate::report::{Style, log};

/// Show what happened in a lab, and what programs said
///
/// Every run keeps a log of its own, the output of every command in it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  nestlab logs                    the last run
  nestlab logs l1                 what was done for l1
  nestlab logs l1/upgrade         one step, with what its commands said
  nestlab logs --list             the runs whose logs are kept
  nestlab logs --run 2            the run before the last

`nestlab console GUEST` shows what a guest writes to its serial console.")]
pub(crate) struct Args {
    /// Only this guest or step
    what: Option<String>,
    /// The lab [default: the only one]
    #[arg(long, value_name = "NAME")]
    lab: Option<LabName>,
    /// Which run, counted back from the last
    #[arg(long, value_name = "NUMBER", default_value = "1",
          value_parser = clap::value_parser!(u32).range(1..))]
    run: u32,
    /// List the runs
    #[arg(long, conflicts_with = "what")]
    list: bool,
}

/// A run whose log is kept.
#[derive(Serialize)]
struct LoggedRun {
    run: usize,
    log: String,
}

#[derive(Serialize)]
struct LogsAnswer {
    schema: u32,
    lab: String,
    runs: Vec<LoggedRun>,
}

pub(crate) async fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    let lab = Labs::at(&globals.state_dir).choose(args.lab.as_ref())?;
    if args.list {
        list(&lab, globals)?;
    } else {
        show(&lab, args.run, args.what.as_deref(), globals)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(lab: &Lab, globals: &Globals) -> Result<()> {
    let logs = log::list(&lab.logs())?;
    let newest_first = logs.into_iter().rev().enumerate();
    let runs: Vec<LoggedRun> = newest_first
        .map(|(back, path)| LoggedRun { run: back + 1, log: path.into_string() })
        .collect();
    if globals.json {
        return output::print_json(&LogsAnswer { schema: 1, lab: lab.name().to_string(), runs });
    }
    output::print(
        &runs.iter().map(|run| format!("{:3}  {}\n", run.run, run.log)).collect::<String>(),
    )
}

fn show(lab: &Lab, back: u32, what: Option<&str>, globals: &Globals) -> Result<()> {
    let logs = log::list(&lab.logs())?;
    let place = logs.len().checked_sub(back as usize);
    let path = place.and_then(|place| logs.get(place)).ok_or_else(|| {
        Error::new(Kind::Usage, format!("the lab {} has {} logs", lab.name(), logs.len()))
            .hint("nestlab logs --list shows them; nestlab up makes one")
    })?;
    let lines = log::read(path)?;
    let mut wanted =
        lines.iter().filter(|line| what.is_none_or(|what| belongs(&line.event, what))).peekable();
    if let (Some(what), None) = (what, wanted.peek()) {
        let what = what.escape_debug();
        return Err(Error::new(Kind::Usage, format!("that run did nothing for `{what}`"))
            .hint("name a guest, such as l1, or a step as `nestlab plan` lists them"));
    }
    let text: String = if globals.json {
        wanted.map(EventLine::to_json).collect()
    } else {
        let style = Style { verbose: true, quiet: false, ..style(globals) };
        let terminal = console::colors_enabled();
        let tell = LineFormatter::new(style, style.color.paint(terminal), false);
        wanted.filter_map(|line| shown(line, &tell)).collect()
    };
    output::print(&text)
}

/// Returns whether `event` is of the guest or step `what`.
fn belongs(event: &Event, what: &str) -> bool {
    event.step().is_some_and(|step| {
        step == what || step.strip_prefix(what).is_some_and(|rest| rest.starts_with('/'))
    })
}

/// Returns a line for a person: the time of day here, and what happened.
fn shown(line: &EventLine, tell: &LineFormatter) -> Option<String> {
    let said = match &line.event {
        Event::StepStarted { title, why, .. } => tell.begun(title, why),
        Event::StepProgress { step, progress: Progress::Doing { what } } => {
            Some(format!("   ...   {step}: {}", printable(what)))
        }
        event => tell.line(event),
    }?;
    let time = line.at.to_zoned_datetime(TimeZone::system()).strftime("%H:%M:%S");
    Some(format!("{time}  {said}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_not_taken_for_another_whose_name_begins_alike() {
        let of = |step: &str| Event::StepOutput { step: step.into(), line: String::new() };
        assert!(belongs(&of("l1/upgrade"), "l1"));
        assert!(belongs(&of("l1/upgrade"), "l1/upgrade"));
        assert!(!belongs(&of("l10/upgrade"), "l1"));
        assert!(!belongs(&Event::RunStarted { lab: "l1".into(), steps: 1 }, "l1"));
    }
}
