//! A workbench for the tests of this module: a [`ExecContext`] on any host, and what was told through it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use super::ExecContext;
use crate::event::{Event, EventSink, Level, Progress};
use crate::host::{Host, TimeoutScale};

/// What a site needs besides its host.
pub(crate) struct Bench {
    events: EventSink,
    told: Arc<Mutex<Vec<Event>>>,
    pub(crate) cancel: CancellationToken,
}

impl Bench {
    /// Returns a bench whose feed belongs to a step called `test/step`.
    pub(crate) fn new() -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        let events = EventSink::new(move |event| {
            sink.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        });
        Bench { events: events.for_step("test/step"), told, cancel: CancellationToken::new() }
    }

    /// Returns the site for work on `host`, as patient as with bare metal.
    pub(crate) fn exec<'a>(&'a self, host: &'a dyn Host) -> ExecContext<'a> {
        ExecContext {
            host,
            patience: TimeoutScale::NATIVE,
            events: &self.events,
            cancel: &self.cancel,
        }
    }

    /// Returns its feed.
    pub(crate) fn events(&self) -> EventSink {
        self.events.clone()
    }

    /// Returns the warnings that were given, in order.
    pub(crate) fn notices(&self) -> Vec<String> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter()
            .filter_map(|event| match event {
                Event::Notice { level: Level::Warning, text } => Some(text.clone()),
                _ => None,
            })
            .collect()
    }

    /// Returns what was said to be done or waited for, in order.
    pub(crate) fn doings(&self) -> Vec<String> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.iter()
            .filter_map(|event| match event {
                Event::StepProgress { progress: Progress::Doing { what }, .. } => {
                    Some(what.clone())
                }
                _ => None,
            })
            .collect()
    }
}
