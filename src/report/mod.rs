//! Events → what a person or a program reads: terminal bars, plain lines, JSON lines, and the log.
//!
//! | file | what it holds |
//! |---|---|
//! | [`bars`] | a terminal: one line per running step, and what is finished above |
//! | [`lines`] | a pipe or a CI log: plain lines without repeats |
//! | [`json`] | `--json`: one event a line |
//! | [`log`] | every event of a run, kept in the lab |
//! | [`tell`] | what is said of an event, in one line |
//! | [`row`] | how a running step looks, at any width |
//! | [`words`], [`paint`] | durations and amounts; colors |
//!
//! Results go to standard output, progress and diagnostics to standard error. This module must not
//! know what a step does; it sees [`Event`]s only. What it shows cannot drive a terminal, whoever
//! wrote it.

pub mod bars;
mod echo;
pub mod humanize;
pub mod json;
pub mod line_format;
pub mod lines;
pub mod log;
pub mod row;
pub mod theme;

use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use log::RunLog;
pub use theme::{ColorMode, Theme};

use crate::event::{Event, EventSink, Level};

/// How often it is looked whether something that was held back is due.
const TICK: Duration = Duration::from_secs(1);

/// How the user wants to be told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Style {
    /// One event a line on standard output, for a program.
    pub json: bool,
    /// Only what went wrong or will hurt.
    pub quiet: bool,
    /// Show also what was already right and what programs write.
    pub verbose: bool,
    /// Never draw bars, even on a terminal.
    pub no_progress: bool,
    /// Whether to color.
    pub color: ColorMode,
}

/// Shows events to somebody. `now` is handed in, so that tests own the time.
pub trait Report: Send {
    /// Shows `event`.
    fn event(&mut self, event: &Event, now: Instant);

    /// Shows what was held back; called about once a second though nothing happens.
    fn idle(&mut self, _now: Instant) {}

    /// Puts the terminal in order and shows no more there.
    fn leave(&mut self);
}

/// Shows events to the user, and keeps them in the log. Cheap to clone.
#[derive(Clone)]
pub struct Reporter(Arc<Mutex<ReporterState>>);

struct ReporterState {
    shown: Box<dyn Report>,
    log: Option<RunLog>,
}

impl Reporter {
    /// Returns the reporter for `style` and what standard error is.
    pub fn new(style: Style, log: Option<RunLog>) -> Self {
        let terminal = std::io::stderr().is_terminal() && !console::is_dumb();
        let paint = style.color.paint(terminal);
        let tell = line_format::LineFormatter::new(style, paint, terminal && speaks_utf8());
        let shown: Box<dyn Report> = if style.json {
            Box::new(json::Json::new(std::io::stdout(), style.no_progress))
        } else if terminal && !style.no_progress && !style.quiet {
            Box::new(bars::Bars::on_stderr(tell))
        } else {
            Box::new(lines::Lines::new(std::io::stderr(), tell, !style.quiet))
        };
        Reporter::showing(shown, log)
    }

    /// Returns a reporter that shows events through `shown`.
    pub fn showing(shown: Box<dyn Report>, log: Option<RunLog>) -> Self {
        let inner = Arc::new(Mutex::new(ReporterState { shown, log }));
        let seen = Arc::downgrade(&inner);
        let clock = move || {
            while let Some(inner) = seen.upgrade() {
                lock(&inner).shown.idle(Instant::now());
                drop(inner);
                std::thread::sleep(TICK);
            }
        };
        // It ends by itself. Without it, what is held back is shown with the next event.
        let _ = std::thread::Builder::new().name("report".to_owned()).spawn(clock);
        Reporter(inner)
    }

    /// Returns the feed that leads here.
    pub fn events(&self) -> EventSink {
        let reporter = self.clone();
        EventSink::new(move |event| reporter.take(&event))
    }

    /// Puts the terminal in order and shows no more there; the log goes on.
    pub fn leave(&self) {
        lock(&self.0).shown.leave();
    }

    fn take(&self, event: &Event) {
        let mut inner = lock(&self.0);
        let now = Instant::now();
        inner.shown.event(event, now);
        if let Some(log) = &mut inner.log
            && let Err(error) = log.write(event)
        {
            let text = format!("the log {} is not written any more: {error}", log.path());
            inner.log = None;
            inner.shown.event(&Event::Notice { level: Level::Warning, text }, now);
        }
    }
}

fn lock(inner: &Mutex<ReporterState>) -> MutexGuard<'_, ReporterState> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the terminal's locale has the marks beyond ASCII.
fn speaks_utf8() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    locale.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_is_held_back_becomes_due_though_nothing_happens() {
        struct Shown(mpsc::Sender<()>);
        impl Report for Shown {
            fn event(&mut self, _: &Event, _: Instant) {}
            fn idle(&mut self, _: Instant) {
                let _ = self.0.send(());
            }
            fn leave(&mut self) {}
        }
        let (sender, asked) = mpsc::channel();
        let reporter = Reporter::showing(Box::new(Shown(sender)), None);
        for _ in 0..2 {
            asked.recv().expect("it is asked again and again");
        }
        drop(reporter);
        while asked.recv().is_ok() {}
    }
}
