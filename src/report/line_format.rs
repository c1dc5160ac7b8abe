//! What is said of an event, in one line: the same words on a terminal and in a pipe, except that a
//! terminal has marks where a pipe has words.

use std::time::Duration;

use super::Style;
use super::humanize::{self, one_line};
use super::theme::Theme;
use crate::error::Kind;
use crate::event::{Event, Failure, Level};

/// Says events.
#[derive(Debug, Clone, Copy)]
pub struct LineFormatter {
    style: Style,
    /// The colors it uses.
    pub paint: Theme,
    marks: LineMarks,
}

/// What stands in front of a line.
#[derive(Debug, Clone, Copy)]
struct LineMarks {
    done: &'static str,
    right: &'static str,
    failed: &'static str,
    stopped: &'static str,
    begun: &'static str,
    note: &'static str,
    warning: &'static str,
}

const SIGNS: LineMarks = LineMarks {
    done: "✓",
    right: "=",
    failed: "✗",
    stopped: "○",
    begun: "→",
    note: "·",
    warning: "!",
};

const WORDS: LineMarks = LineMarks {
    done: "done    ",
    right: "right   ",
    failed: "failed  ",
    stopped: "stopped ",
    begun: "begin   ",
    note: "note    ",
    warning: "warning ",
};

impl LineFormatter {
    /// Returns what tells events in this style, with marks where `signs` are understood and else with
    /// words.
    pub fn new(style: Style, paint: Theme, signs: bool) -> Self {
        LineFormatter { style, paint, marks: if signs { SIGNS } else { WORDS } }
    }

    /// Returns what is said of `event`, if anything is. Progress is not: how it looks depends on
    /// where it is shown.
    pub fn line(&self, event: &Event) -> Option<String> {
        let (paint, marks) = (self.paint, self.marks);
        let line = match event {
            Event::StepFailed { title, failure, .. } => {
                let said = format!("{}: {}", one_line(title), one_line(&failure.message));
                format!("{} {}", paint.bad(marks.failed), said)
            }
            Event::Notice { level: Level::Warning, text } => {
                format!("{} {}", paint.warning(marks.warning), one_line(text))
            }
            _ if self.style.quiet => return None,
            Event::Notice { level: Level::Info, text } => {
                format!("{} {}", paint.faint(marks.note), one_line(text))
            }
            Event::StepDone { title, millis, .. } => {
                let took = humanize::duration(Duration::from_millis(*millis));
                let took = paint.faint(format!("({took})"));
                format!("{} {} {took}", paint.good(marks.done), one_line(title))
            }
            Event::StepInterrupted { title, .. } => {
                let title = one_line(title);
                format!("{} {title}: goes on with the next run", paint.warning(marks.stopped))
            }
            Event::StepSatisfied { title, .. } if self.style.verbose => {
                format!("{} {}", paint.faint(marks.right), one_line(title))
            }
            Event::StepOutput { step, line } if self.style.verbose => {
                paint.faint(format!("  {step} | {}", one_line(line)))
            }
            Event::RunEnded { lab, changed, satisfied, millis, failure } => {
                let took = humanize::duration(Duration::from_millis(*millis));
                summary(lab, *changed, *satisfied, &took, failure.as_ref())
            }
            Event::RunStarted { .. }
            | Event::StepSatisfied { .. }
            | Event::StepOutput { .. }
            | Event::StepStarted { .. }
            | Event::StepProgress { .. } => return None,
        };
        Some(line)
    }

    /// Returns what is said of a step that begins, where no bar shows it.
    pub fn begun(&self, title: &str, why: &str) -> Option<String> {
        let mark = self.paint.moving(self.marks.begun);
        (!self.style.quiet).then(|| format!("{mark} {}: {}", one_line(title), one_line(why)))
    }
}

fn summary(
    lab: &str,
    changed: usize,
    satisfied: usize,
    took: &str,
    failure: Option<&Failure>,
) -> String {
    let steps = |number: usize| humanize::count(number, "step");
    let so_far = format!("{} done, {satisfied} already right", steps(changed));
    match failure {
        Some(failure) if failure.kind == Kind::Interrupted => {
            format!("{lab}: interrupted after {took}; {so_far}")
        }
        Some(_) => format!("{lab}: failed after {took}; {so_far}"),
        None if changed == 0 && satisfied == 1 => {
            format!("{lab}: nothing to do: its one step is as the recipe wants ({took})")
        }
        None if changed == 0 => {
            format!(
                "{lab}: nothing to do: all {} are as the recipe wants ({took})",
                steps(satisfied)
            )
        }
        None => format!("{lab}: {so_far}, in {took}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn ended(changed: usize, satisfied: usize, error: Option<Error>) -> Event {
        Event::RunEnded {
            lab: "demo".into(),
            changed,
            satisfied,
            millis: 391_000,
            failure: error.as_ref().map(Failure::from),
        }
    }

    #[test]
    fn the_end_of_a_run_says_what_changed_and_what_was_right() {
        let tell = LineFormatter::new(Style::default(), Theme::new(false), true);
        let said = |event| tell.line(&event).expect("is said");
        assert_eq!(said(ended(3, 11, None)), "demo: 3 steps done, 11 already right, in 6 min 31 s");
        assert_eq!(
            said(ended(0, 14, None)),
            "demo: nothing to do: all 14 steps are as the recipe wants (6 min 31 s)"
        );
        assert_eq!(
            said(ended(1, 2, Some(Error::failed("x")))),
            "demo: failed after 6 min 31 s; 1 step done, 2 already right"
        );
        assert_eq!(
            said(ended(1, 2, Some(Error::new(Kind::Interrupted, "x")))),
            "demo: interrupted after 6 min 31 s; 1 step done, 2 already right"
        );
    }

    #[test]
    fn quiet_says_only_what_went_wrong_or_will_hurt() {
        let style = Style { quiet: true, ..Style::default() };
        let tell = LineFormatter::new(style, Theme::new(false), false);
        let (step, title) = ("l1/start".to_owned(), "start l1".to_owned());
        let failure = Failure::from(&Error::failed("no\nway"));
        let failed = Event::StepFailed { step: step.clone(), title: title.clone(), failure };
        assert_eq!(tell.line(&failed).as_deref(), Some("failed   start l1: no way"));
        let warning = Event::Notice { level: Level::Warning, text: "slow".into() };
        assert_eq!(tell.line(&warning).as_deref(), Some("warning  slow"));
        for silent in [
            Event::StepDone { step, title: title.clone(), millis: 1 },
            Event::Notice { level: Level::Info, text: "x".into() },
            ended(0, 1, None),
        ] {
            assert_eq!(tell.line(&silent), None);
        }
        assert_eq!(tell.begun(&title, "not there"), None);
    }
}
