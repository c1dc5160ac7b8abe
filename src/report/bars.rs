//! A terminal: one row per running step at the bottom, and above it what is finished.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::Report;
use super::echo::EchoGuard;
use super::line_format::LineFormatter;
use super::row::Row;
use crate::event::{Event, Progress};

/// How often a row is drawn again, so that its time goes on.
const TICK: Duration = Duration::from_millis(150);

/// Shows events on a terminal.
pub struct Bars {
    multi: MultiProgress,
    tell: LineFormatter,
    width: Width,
    tick: Option<Duration>,
    running: BTreeMap<String, RunningBar>,
    /// Steps that have ended: what is still told of their progress comes too late.
    ended: BTreeSet<String>,
    left: bool,
    /// Dropped when the terminal is left.
    hidden: Option<EchoGuard>,
}

/// Asks for the terminal's width in columns; it may change at any time.
type Width = Arc<dyn Fn() -> usize + Send + Sync>;

struct RunningBar {
    bar: ProgressBar,
    row: Arc<Mutex<Row>>,
    rate: Rate,
}

impl Bars {
    /// Returns bars on standard error.
    pub fn on_stderr(tell: LineFormatter) -> Self {
        let width = || usize::from(console::Term::stderr().size().1);
        let bars = Bars::on(ProgressDrawTarget::stderr(), tell, Arc::new(width), Some(TICK));
        Bars { hidden: EchoGuard::begin(), ..bars }
    }

    fn on(
        target: ProgressDrawTarget,
        tell: LineFormatter,
        width: Width,
        tick: Option<Duration>,
    ) -> Self {
        let multi = MultiProgress::with_draw_target(target);
        let (running, ended) = (BTreeMap::new(), BTreeSet::new());
        Bars { multi, tell, width, tick, running, ended, left: false, hidden: None }
    }

    fn begin(&mut self, step: &str, title: &str) {
        self.ended.remove(step);
        let row =
            Row { title: title.to_owned(), progress: None, rate: None, elapsed: Duration::ZERO };
        let row = Arc::new(Mutex::new(row));
        let bar = self.multi.add(ProgressBar::new_spinner().with_style(self.style(row.clone())));
        match self.tick {
            Some(tick) => bar.enable_steady_tick(tick),
            None => bar.tick(),
        }
        self.running.insert(step.to_owned(), RunningBar { bar, row, rate: Rate::default() });
    }

    /// A style whose one field is the row, drawn for the width that the terminal has then.
    fn style(&self, row: Arc<Mutex<Row>>) -> ProgressStyle {
        let (width, paint) = (self.width.clone(), self.tell.paint);
        let draw = move |state: &ProgressState, out: &mut dyn fmt::Write| {
            let mut row = row.lock().unwrap_or_else(PoisonError::into_inner).clone();
            row.elapsed = state.elapsed();
            // A full last column would make some terminals wrap.
            let _ = out.write_str(&row.draw(width().saturating_sub(1), paint));
        };
        ProgressStyle::with_template("{row}").expect("the template is sound").with_key("row", draw)
    }

    fn progress(&mut self, step: &str, progress: &Progress, now: Instant) {
        if self.ended.contains(step) {
            return;
        }
        if !self.running.contains_key(step) {
            // A check that takes a while: the step has not begun, and has no other title yet.
            self.begin(step, step);
        }
        let running = self.running.get_mut(step).expect("it was just put there");
        let mut row = running.row.lock().unwrap_or_else(PoisonError::into_inner);
        row.rate = match progress {
            Progress::Bytes { done, .. } => running.rate.at(*done, now),
            _ => None,
        };
        row.progress = Some(progress.clone());
        drop(row);
        if self.tick.is_none() {
            running.bar.tick();
        }
    }

    fn end(&mut self, step: &str) {
        self.ended.insert(step.to_owned());
        if let Some(running) = self.running.remove(step) {
            running.bar.finish_and_clear();
            self.multi.remove(&running.bar);
        }
    }
}

impl Report for Bars {
    fn event(&mut self, event: &Event, now: Instant) {
        if self.left {
            return;
        }
        match event {
            Event::StepStarted { step, title, .. } => {
                self.end(step);
                self.begin(step, title);
            }
            Event::StepProgress { step, progress } => self.progress(step, progress, now),
            Event::StepSatisfied { step, .. }
            | Event::StepDone { step, .. }
            | Event::StepFailed { step, .. }
            | Event::StepInterrupted { step, .. } => self.end(step),
            Event::RunEnded { .. } => {
                let steps: Vec<String> = self.running.keys().cloned().collect();
                steps.iter().for_each(|step| self.end(step));
            }
            Event::RunStarted { .. } | Event::StepOutput { .. } | Event::Notice { .. } => {}
        }
        if let Some(line) = self.tell.line(event) {
            // A terminal that is gone is not a reason to stop.
            let _ = self.multi.println(self.tell.paint.printable(&line));
        }
    }

    fn leave(&mut self) {
        self.left = true;
        self.hidden = None;
        for running in std::mem::take(&mut self.running).into_values() {
            running.bar.finish_and_clear();
        }
        self.multi.set_draw_target(ProgressDrawTarget::hidden());
    }
}

/// Bytes each second, over the last few seconds.
#[derive(Debug, Default)]
struct Rate {
    /// When how many bytes were done; at most [`Rate::MARKS`], at least [`Rate::APART`] apart.
    marks: std::collections::VecDeque<(Instant, u64)>,
}

impl Rate {
    const MARKS: usize = 8;
    const APART: Duration = Duration::from_secs(1);

    /// Notes that `done` bytes are done and returns the rate, once there is one.
    fn at(&mut self, done: u64, now: Instant) -> Option<f64> {
        if self.marks.back().is_some_and(|(_, before)| *before > done) {
            self.marks.clear();
        }
        let last = self.marks.back().map(|(at, _)| *at);
        if last.is_none_or(|last| now.saturating_duration_since(last) >= Rate::APART) {
            self.marks.push_back((now, done));
            if self.marks.len() > Rate::MARKS {
                self.marks.pop_front();
            }
        }
        let (since, before) = *self.marks.front()?;
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        (seconds >= Rate::APART.as_secs_f64()).then(|| (done - before) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use indicatif::InMemoryTerm;

    use super::*;
    use crate::error::Error;
    use crate::event::{Failure, Level};
    use crate::report::{Style, Theme};

    fn bars(columns: u16) -> (InMemoryTerm, Bars) {
        let term = InMemoryTerm::new(20, columns);
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(term.clone()), 255);
        let tell = LineFormatter::new(Style::default(), Theme::new(false), true);
        let bars = Bars::on(target, tell, Arc::new(move || usize::from(columns)), None);
        (term, bars)
    }

    fn started(step: &str, title: &str) -> Event {
        Event::StepStarted { step: step.into(), title: title.into(), why: "not there".into() }
    }

    fn doing(step: &str, what: &str) -> Event {
        let progress = Progress::Doing { what: what.into() };
        Event::StepProgress { step: step.into(), progress }
    }

    /// What is on the screen, with every duration as `T`: how long a test takes is not its subject.
    fn screen(term: &InMemoryTerm) -> String {
        let time = regex::Regex::new(r"\d+\.\d s").expect("a sound pattern");
        let spinner = regex::Regex::new(r"(?m)^[-\\|/] ").expect("a sound pattern");
        let text = time.replace_all(&term.contents(), "T").into_owned();
        spinner.replace_all(&text, "~ ").into_owned()
    }

    #[test]
    fn running_steps_stand_below_what_is_finished() {
        let (term, mut bars) = bars(80);
        let now = Instant::now();
        bars.event(&Event::RunStarted { lab: "demo".into(), steps: 3 }, now);
        bars.event(&started("l1/start", "start l1"), now);
        bars.event(&started("image/k", "fetch kicksecure"), now);
        bars.event(&doing("l1/start", "waiting for SSH"), now);
        let done = Event::StepDone {
            step: "image/k".into(),
            title: "fetch kicksecure".into(),
            millis: 391_000,
        };
        bars.event(&done, now);
        bars.event(&Event::Notice { level: Level::Warning, text: "no KVM here".into() }, now);
        assert_eq!(
            screen(&term),
            "✓ fetch kicksecure (6 min 31 s)\n! no KVM here\n~ start l1  waiting for SSH  T"
        );
    }

    #[test]
    fn what_is_told_of_a_step_that_has_ended_brings_it_not_back() {
        let (term, mut bars) = bars(80);
        let now = Instant::now();
        bars.event(&doing("l1/start", "looking"), now);
        assert_eq!(screen(&term), "~ l1/start  looking  T");
        bars.event(&Event::StepSatisfied { step: "l1/start".into(), title: String::new() }, now);
        bars.event(&doing("l1/start", "too late"), now);
        assert_eq!(screen(&term), "");
    }

    #[test]
    fn at_the_end_only_what_happened_stays_on_the_screen() {
        let (term, mut bars) = bars(60);
        let now = Instant::now();
        bars.event(&started("l1/start", "start l1"), now);
        bars.event(&started("image/k", "fetch kicksecure"), now);
        let failure = Failure::from(&Error::failed("no such image"));
        bars.event(
            &Event::StepFailed {
                step: "image/k".into(),
                title: "fetch kicksecure".into(),
                failure: failure.clone(),
            },
            now,
        );
        bars.event(
            &Event::StepInterrupted { step: "l1/start".into(), title: "start l1".into() },
            now,
        );
        bars.event(
            &Event::RunEnded {
                lab: "demo".into(),
                changed: 0,
                satisfied: 2,
                millis: 12_000,
                failure: Some(failure),
            },
            now,
        );
        assert_eq!(
            screen(&term),
            "✗ fetch kicksecure: no such image\n\
             ○ start l1: goes on with the next run\n\
             demo: failed after 12 s; 0 steps done, 2 already right"
        );
    }

    #[test]
    fn a_narrow_terminal_gets_one_row_for_each_step() {
        let (term, mut bars) = bars(28);
        let now = Instant::now();
        bars.event(&started("l1/upgrade", "upgrade every package of l1"), now);
        bars.event(&doing("l1/upgrade", "waiting for a very long line to end"), now);
        bars.event(&started("l2/x", "import l2"), now);
        assert_eq!(screen(&term), "~ upgrade every package of…\n~ import l2  T");
    }

    #[test]
    fn nothing_is_drawn_after_the_terminal_was_left() {
        let (term, mut bars) = bars(60);
        let now = Instant::now();
        bars.event(&started("l1/start", "start l1"), now);
        bars.leave();
        bars.event(&doing("l1/start", "waiting"), now);
        bars.event(&Event::Notice { level: Level::Warning, text: "x".into() }, now);
        assert_eq!(screen(&term), "");
    }

    #[test]
    fn what_a_guest_says_cannot_drive_the_terminal() {
        let (term, mut bars) = bars(60);
        let now = Instant::now();
        bars.event(&started("l1/start", "start l1"), now);
        bars.event(&doing("l1/start", "\x1b[2J\x1b]0;owned\x07hello\r\nworld"), now);
        bars.event(&Event::Notice { level: Level::Info, text: "\x1b[5Aup".into() }, now);
        assert_eq!(screen(&term), "· up\n~ start l1  hello world  T");
    }

    #[test]
    fn a_rate_is_that_of_the_last_seconds_and_begins_anew_with_a_new_file() {
        let mut rate = Rate::default();
        let start = Instant::now();
        assert_eq!(rate.at(0, start), None);
        assert_eq!(rate.at(4000, start + Duration::from_secs(2)), Some(2000.0));
        for second in 3..30_u64 {
            rate.at(4000 + (second - 2) * 10, start + Duration::from_secs(second));
        }
        let late = rate.at(4280, start + Duration::from_secs(30)).expect("has a rate");
        assert!((late - 10.0).abs() < 0.01, "{late}");
        assert_eq!(rate.at(5, start + Duration::from_secs(31)), None);
    }
}
