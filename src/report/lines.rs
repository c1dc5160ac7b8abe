//! A pipe or a CI log: plain lines, none twice, and progress no more often than it can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{Duration, Instant};

use super::Report;
use super::humanize::{self, one_line, percent};
use super::line_format::LineFormatter;
use crate::event::{Event, Progress};

/// How long after a line of a step the next change of what it does may be told.
const DOING_EVERY: Duration = Duration::from_secs(2);
/// How long after a line of a step the next count may be told.
const COUNT_EVERY: Duration = Duration::from_secs(20);

/// Writes plain lines.
pub struct Lines<W> {
    out: W,
    tell: LineFormatter,
    progress: bool,
    running: BTreeMap<String, RunningLine>,
    /// Steps that have ended: what is still told of their progress comes too late.
    ended: BTreeSet<String>,
    left: bool,
}

struct RunningLine {
    title: String,
    /// When its last line was written.
    told_at: Instant,
    /// What its last line of progress said.
    told: String,
    /// What it says now.
    now: String,
    every: Duration,
}

impl<W: Write + Send> Lines<W> {
    /// Returns plain lines written to `out`, with progress or without.
    pub fn new(out: W, tell: LineFormatter, progress: bool) -> Self {
        let (running, ended) = (BTreeMap::new(), BTreeSet::new());
        Lines { out, tell, progress, running, ended, left: false }
    }

    fn write(&mut self, line: &str) {
        let line = self.tell.paint.printable(line);
        // A reader that has gone away is not a reason to stop.
        let _ = writeln!(self.out, "{line}");
        let _ = self.out.flush();
    }

    fn begin(&mut self, step: &str, title: &str, now: Instant) {
        self.ended.remove(step);
        let running = RunningLine {
            title: one_line(title),
            told_at: now,
            told: String::new(),
            now: String::new(),
            every: DOING_EVERY,
        };
        self.running.insert(step.to_owned(), running);
    }

    fn note(&mut self, step: &str, progress: &Progress, now: Instant) {
        if self.ended.contains(step) {
            return;
        }
        if !self.running.contains_key(step) {
            self.begin(step, step, now);
        }
        let running = self.running.get_mut(step).expect("it was just put there");
        (running.now, running.every) = match progress {
            Progress::Doing { what } => (one_line(what), DOING_EVERY),
            Progress::Items { done, total, item } => {
                (format!("{done} of {total}, {}", one_line(item)), COUNT_EVERY)
            }
            Progress::Bytes { done, total: Some(total) } => {
                let share = percent(*done, *total);
                (format!("{share} % of {}", humanize::bytes(*total)), COUNT_EVERY)
            }
            Progress::Bytes { done, total: None } => (humanize::bytes(*done), COUNT_EVERY),
        };
    }

    /// Writes what has become due, of any step.
    fn tell_what_is_due(&mut self, now: Instant) {
        let mut due = Vec::new();
        for running in self.running.values_mut() {
            let waited = now.saturating_duration_since(running.told_at);
            if running.now != running.told && waited >= running.every {
                running.told.clone_from(&running.now);
                running.told_at = now;
                due.push(format!("   ...   {}: {}", running.title, running.now));
            }
        }
        due.iter().for_each(|line| self.write(line));
    }
}

impl<W: Write + Send> Report for Lines<W> {
    fn event(&mut self, event: &Event, now: Instant) {
        if self.left {
            return;
        }
        match event {
            Event::StepStarted { step, title, why } => {
                self.begin(step, title, now);
                if let Some(line) = self.tell.begun(title, why) {
                    self.write(&line);
                }
            }
            Event::StepProgress { step, progress } if self.progress => {
                self.note(step, progress, now);
            }
            Event::StepSatisfied { step, .. }
            | Event::StepDone { step, .. }
            | Event::StepFailed { step, .. }
            | Event::StepInterrupted { step, .. } => {
                self.running.remove(step);
                self.ended.insert(step.clone());
            }
            Event::RunEnded { .. } => self.running.clear(),
            Event::RunStarted { .. }
            | Event::StepProgress { .. }
            | Event::StepOutput { .. }
            | Event::Notice { .. } => {}
        }
        if let Some(line) = self.tell.line(event) {
            self.write(&line);
        }
        self.tell_what_is_due(now);
    }

    fn idle(&mut self, now: Instant) {
        if !self.left {
            self.tell_what_is_due(now);
        }
    }

    fn leave(&mut self) {
        self.left = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Style, Theme};

    fn lines(style: Style) -> Lines<Vec<u8>> {
        Lines::new(Vec::new(), LineFormatter::new(style, Theme::new(false), false), true)
    }

    fn text(lines: &Lines<Vec<u8>>) -> String {
        String::from_utf8(lines.out.clone()).expect("UTF-8")
    }

    fn progress(step: &str, progress: Progress) -> Event {
        Event::StepProgress { step: step.into(), progress }
    }

    fn doing(what: &str) -> Event {
        progress("l1/start", Progress::Doing { what: what.into() })
    }

    fn started(step: &str, title: &str) -> Event {
        Event::StepStarted { step: step.into(), title: title.into(), why: "not there".into() }
    }

    #[test]
    fn a_run_reads_as_a_list_of_what_happened() {
        let mut lines = lines(Style::default());
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        lines.event(&Event::RunStarted { lab: "demo".into(), steps: 2 }, at(0));
        lines.event(&started("l1/start", "start l1"), at(0));
        lines.event(&doing("waiting for SSH"), at(3));
        lines.event(
            &Event::StepDone { step: "l1/start".into(), title: "start l1".into(), millis: 22_000 },
            at(22),
        );
        let failure = None;
        lines.event(
            &Event::RunEnded {
                lab: "demo".into(),
                changed: 1,
                satisfied: 1,
                millis: 22_000,
                failure,
            },
            at(22),
        );
        assert_eq!(
            text(&lines),
            "begin    start l1: not there\n   \
                ...   start l1: waiting for SSH\n\
             done     start l1 (22 s)\n\
             demo: 1 step done, 1 already right, in 22 s\n"
        );
    }

    #[test]
    fn progress_is_told_neither_twice_nor_too_often_and_the_last_word_is_not_lost() {
        let mut lines = lines(Style::default());
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        lines.event(&started("l1/start", "start l1"), at(0));
        for millis in (0..10_000).step_by(100) {
            lines.event(&doing("waiting for SSH"), at(millis));
        }
        lines.event(&doing("a"), at(10_000));
        lines.event(&doing("b"), at(10_100));
        lines.idle(at(11_900));
        lines.idle(at(12_100));
        lines.idle(at(60_000));
        lines.event(&doing("c"), at(60_100));
        lines.event(&doing("d"), at(60_200));
        // Another step's event is an occasion too.
        lines.event(&started("l2/start", "start l2"), at(62_200));
        let told: Vec<String> = text(&lines).lines().map(str::to_owned).collect();
        assert_eq!(
            told,
            [
                "begin    start l1: not there",
                "   ...   start l1: waiting for SSH",
                "   ...   start l1: a",
                "   ...   start l1: b",
                "   ...   start l1: c",
                "begin    start l2: not there",
                "   ...   start l1: d",
            ]
        );
    }

    #[test]
    fn a_download_of_an_hour_is_not_thousands_of_lines() {
        let mut lines = lines(Style::default());
        let start = Instant::now();
        lines.event(&started("image/k", "fetch k"), start);
        for second in 0..3600_u64 {
            let bytes = Progress::Bytes { done: second << 20, total: Some(3600 << 20) };
            lines.event(&progress("image/k", bytes), start + Duration::from_secs(second));
        }
        let count = text(&lines).lines().count();
        assert!((50..=190).contains(&count), "{count} lines");
    }

    #[test]
    fn what_programs_write_is_shown_only_when_asked_for() {
        let output = Event::StepOutput { step: "l1/upgrade".into(), line: "Get:1 x\x1b[1m".into() };
        let mut plain = lines(Style::default());
        plain.event(&output, Instant::now());
        assert_eq!(text(&plain), "");
        let mut verbose = lines(Style { verbose: true, ..Style::default() });
        verbose.event(&output, Instant::now());
        assert_eq!(text(&verbose), "  l1/upgrade | Get:1 x\n");
    }
}
