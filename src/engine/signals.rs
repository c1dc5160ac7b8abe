//! Ctrl-C, SIGTERM and a closed terminal.
//!
//! The first SIGINT or SIGTERM ends the run at the next safe point, the second ends nestlab at once;
//! the journal is consistent either way. A closed terminal (SIGHUP) ends nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};
use crate::event::{Event, EventSink, Level};

/// How long work goes on that is to end, where it does not come to a safe point by itself.
const TO_A_SAFE_POINT: Duration = Duration::from_secs(5);

/// Runs `work` to its end, or drops it a while after `cancel` has fired. For work that survives being cut off
/// anywhere, as all does that nestlab itself would survive being killed in.
///
/// # Errors
/// Those of `work`; [`Kind::Interrupted`] if it was dropped.
pub async fn until_safe_point<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = cancel.cancelled() => {}
    }
    tokio::time::timeout(TO_A_SAFE_POINT, work).await.unwrap_or_else(|_| {
        Err(Error::new(Kind::Interrupted, "interrupted")
            .hint("run the same command again: it goes on where it was stopped"))
    })
}

/// The steps that run now, from the events.
#[derive(Debug, Clone, Default)]
pub struct RunningSteps(Arc<Mutex<BTreeMap<String, String>>>);

impl RunningSteps {
    /// Returns a feed that passes everything on to `events` and notes here what runs.
    pub fn watch(&self, events: EventSink) -> EventSink {
        let running = self.clone();
        EventSink::new(move |event| {
            running.note(&event);
            events.send(event);
        })
    }

    fn note(&self, event: &Event) {
        let mut titles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::StepStarted { step, title, .. } => {
                titles.insert(step.clone(), title.clone());
            }
            Event::StepDone { step, .. }
            | Event::StepFailed { step, .. }
            | Event::StepInterrupted { step, .. } => {
                titles.remove(step);
            }
            _ => {}
        }
    }

    /// Returns the titles of the steps that run.
    pub fn titles(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Listens for signals until it is dropped.
#[derive(Debug)]
pub struct Signals {
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Signals {
    /// Begins to listen. `running` says what is being finished; `leave` is called before nestlab ends
    /// at once, and when the terminal is gone: it puts the terminal in order, or leaves it alone.
    ///
    /// # Errors
    /// [`Kind::Io`] if the kernel refuses.
    pub fn listen(
        events: EventSink,
        running: RunningSteps,
        leave: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self> {
        let cancel = CancellationToken::new();
        let ends = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let hangup = signal(SignalKind::hangup())?;
        let task = tokio::spawn(attend(ends, hangup, cancel.clone(), events, running, leave));
        Ok(Signals { cancel, task })
    }

    /// Returns the token that fires at the first signal to end.
    pub fn cancel(&self) -> CancellationToken {
        self.cancel.clone()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn attend(
    (mut interrupt, mut terminate): (Signal, Signal),
    mut hangup: Signal,
    cancel: CancellationToken,
    events: EventSink,
    running: RunningSteps,
    leave: impl Fn() + Send + Sync,
) {
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {
                leave();
                events.notice(Level::Info, "the terminal is gone; the run goes on, and its log with it");
                continue;
            }
        }
        if cancel.is_cancelled() {
            leave();
            std::process::exit(i32::from(Kind::Interrupted.exit_code()));
        }
        cancel.cancel();
        events.notice(Level::Warning, stopping(&running.titles()));
    }
}

fn stopping(titles: &[String]) -> String {
    let what = match titles {
        [] => String::new(),
        titles => format!(" of: {}", titles.join(", ")),
    };
    format!("stopping at the next safe point{what}. Ctrl-C again ends nestlab at once")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_does_not_end_by_itself_is_dropped_once_it_is_to_end() {
        let cancel = CancellationToken::new();
        let done = until_safe_point(&cancel, async { Ok(1) }).await;
        assert_eq!(done.expect("is not to end"), 1);
        cancel.cancel();
        let done = until_safe_point(&cancel, async {
            tokio::task::yield_now().await;
            Ok(2)
        });
        assert_eq!(done.await.expect("comes to its end"), 2);
        let error = until_safe_point::<()>(&cancel, std::future::pending()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted);
    }

    #[test]
    fn what_is_being_finished_is_named() {
        let running = RunningSteps::default();
        let events = running.watch(EventSink::silent());
        for (step, title) in [("l1/start", "start l1"), ("image/a", "fetch a")] {
            let (step, title) = (step.to_owned(), title.to_owned());
            events.send(Event::StepStarted { step, title, why: String::new() });
        }
        assert!(stopping(&running.titles()).contains("of: fetch a, start l1."));
        events.send(Event::StepDone { step: "image/a".into(), title: String::new(), millis: 1 });
        assert_eq!(running.titles(), ["start l1"]);
    }
}
