//! One event a line, for programs: `up --json`, and the log.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Report;
use crate::event::Event;

/// The format's number; fields and events are only ever added to it.
pub const SCHEMA: u32 = 1;

/// How often the progress of one step is told.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// An event with its time: one line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    /// The format's number.
    pub schema: u32,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

impl EventLine {
    /// Returns the line for what happens now.
    pub fn now(event: Event) -> Self {
        EventLine { schema: SCHEMA, at: Timestamp::now(), event }
    }

    /// Returns the line as JSON, with its end.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string(self).expect("an event is plain data");
        crate::event::printable_json(&json) + "\n"
    }
}

/// Writes events as JSON, one a line.
pub struct Json<W> {
    out: W,
    no_progress: bool,
    told: BTreeMap<String, Instant>,
    left: bool,
}

impl<W: Write + Send> Json<W> {
    /// Returns JSON lines written to `out`, without progress if that is not wanted.
    pub fn new(out: W, no_progress: bool) -> Self {
        Json { out, no_progress, told: BTreeMap::new(), left: false }
    }

    fn is_due(&mut self, event: &Event, now: Instant) -> bool {
        let Event::StepProgress { step, .. } = event else { return true };
        if self.no_progress {
            return false;
        }
        let last = self.told.get(step);
        let due = last.is_none_or(|last| now.saturating_duration_since(*last) >= PROGRESS_EVERY);
        if due {
            self.told.insert(step.clone(), now);
        }
        due
    }
}

impl<W: Write + Send> Report for Json<W> {
    fn event(&mut self, event: &Event, now: Instant) {
        if self.left || !self.is_due(event, now) {
            return;
        }
        let line = EventLine::now(event.clone()).to_json();
        // A reader that has gone away does not end a run.
        self.left = self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush()).is_err();
    }

    fn leave(&mut self) {
        self.left = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Progress;

    #[test]
    fn every_event_is_one_line_that_reads_back() {
        let mut json = Json::new(Vec::new(), false);
        let events = [
            Event::RunStarted { lab: "demo".into(), steps: 1 },
            Event::StepOutput { step: "l1/x".into(), line: "a\nb\u{2028}".into() },
        ];
        for event in &events {
            json.event(event, Instant::now());
        }
        let text = String::from_utf8(json.out).expect("UTF-8");
        let read: Vec<Event> = text
            .lines()
            .map(|line| serde_json::from_str::<EventLine>(line).expect("reads back").event)
            .collect();
        assert_eq!(read, events);
        assert!(text.contains(r#""event":"run-started""#), "{text}");
    }

    #[test]
    fn progress_comes_once_a_second_for_each_step_or_not_at_all() {
        let progress = |step: &str| Event::StepProgress {
            step: step.into(),
            progress: Progress::Bytes { done: 1, total: None },
        };
        let start = Instant::now();
        for (no_progress, lines) in [(false, 6), (true, 0)] {
            let mut json = Json::new(Vec::new(), no_progress);
            for tenth in 0..30_u32 {
                let now = start + Duration::from_millis(100) * tenth;
                json.event(&progress("a"), now);
                json.event(&progress("b"), now);
            }
            assert_eq!(json.out.iter().filter(|byte| **byte == b'\n').count(), lines);
        }
    }

    #[test]
    fn a_reader_that_goes_away_ends_the_telling_and_nothing_else() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut json = Json::new(Gone, false);
        json.event(&Event::RunStarted { lab: "demo".into(), steps: 1 }, Instant::now());
        assert!(json.left);
    }
}
