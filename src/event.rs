//! What happens while nestlab works, as one enum that feeds every reporter and the journal, and the
//! [`EventSink`] through which the layers below tell of it.
//!
//! An event holds plain data. How it looks is the business of `report`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Kind, Problem, Result};

/// Something that happened. Serialized, it is one line of `up --json`; fields are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event {
    /// A run begins: how many steps its plan has.
    RunStarted {
        /// The lab's name.
        lab: String,
        /// Number of steps in the plan.
        steps: usize,
    },
    /// A step was checked and is already as it should be.
    StepSatisfied {
        /// The step's id, such as `l1/start`.
        step: String,
        /// The step in words, such as `start l1`.
        title: String,
    },
    /// A step begins to change something.
    StepStarted {
        /// The step's id.
        step: String,
        /// The step in words.
        title: String,
        /// Why it is needed, as its check found.
        why: String,
    },
    /// How far a step is; not kept in the journal.
    StepProgress {
        /// The step's id.
        step: String,
        /// How far.
        progress: Progress,
    },
    /// A line that a command of the step wrote, made safe for a terminal.
    StepOutput {
        /// The step's id.
        step: String,
        /// The line, without its end.
        line: String,
    },
    /// A step is done, and its check agreed afterwards.
    StepDone {
        /// The step's id.
        step: String,
        /// The step in words.
        title: String,
        /// How long it took, in milliseconds.
        millis: u64,
    },
    /// A step failed.
    StepFailed {
        /// The step's id.
        step: String,
        /// The step in words.
        title: String,
        /// The failure.
        failure: Failure,
    },
    /// A step stopped at a safe point because the run is to end; the next run goes on with it.
    StepInterrupted {
        /// The step's id.
        step: String,
        /// The step in words.
        title: String,
    },
    /// Something that the user should know, said once.
    Notice {
        /// How much it matters.
        level: Level,
        /// What to know, in one or two sentences.
        text: String,
    },
    /// The run is over.
    RunEnded {
        /// The lab's name.
        lab: String,
        /// Steps that changed something.
        changed: usize,
        /// Steps that were already as they should be.
        satisfied: usize,
        /// How long it took, in milliseconds.
        millis: u64,
        /// The failure, if it ended with one.
        failure: Option<Failure>,
    },
}

impl Event {
    /// Returns the id of the step that it is about, if it is about one.
    pub fn step(&self) -> Option<&str> {
        match self {
            Event::StepSatisfied { step, .. }
            | Event::StepStarted { step, .. }
            | Event::StepProgress { step, .. }
            | Event::StepOutput { step, .. }
            | Event::StepDone { step, .. }
            | Event::StepFailed { step, .. }
            | Event::StepInterrupted { step, .. } => Some(step),
            Event::RunStarted { .. } | Event::Notice { .. } | Event::RunEnded { .. } => None,
        }
    }
}

/// How much a [`Event::Notice`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Good to know.
    Info,
    /// Will hurt if ignored.
    Warning,
}

/// How far a step is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Progress {
    /// Bytes moved, of how many if that is known.
    Bytes {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: Option<u64>,
    },
    /// Items done, such as packages, and the one at hand.
    Items {
        /// Items so far.
        done: u64,
        /// Items in all.
        total: u64,
        /// The item at hand, such as a package's name.
        item: String,
    },
    /// What is being done or waited for, in a few words.
    Doing {
        /// The words.
        what: String,
    },
}

/// An [`crate::Error`] as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Its kind.
    pub kind: Kind,
    /// Its one-line message.
    pub message: String,
    /// The host on which it happened.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub host: Option<String>,
    /// The argument vector that was tried.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub command: Option<Vec<String>>,
    /// The end of the output.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub output: Option<String>,
    /// The places of a recipe or manifest that are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub problems: Vec<Problem>,
    /// What can be done about it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub hints: Vec<String>,
}

impl From<&crate::Error> for Failure {
    fn from(error: &crate::Error) -> Self {
        Failure {
            kind: error.kind(),
            message: error.message().to_owned(),
            host: error.host().map(str::to_owned),
            command: error.command().map(<[String]>::to_vec),
            output: error.output_tail().map(str::to_owned),
            problems: error.problems().to_vec(),
            hints: error.hints().to_vec(),
        }
    }
}

/// Where events go. Cheap to clone; a feed made for a step stamps that step's id on what it sends.
#[derive(Clone)]
pub struct EventSink {
    sink: Arc<dyn Fn(Event) + Send + Sync>,
    step: Option<Arc<str>>,
}

impl EventSink {
    /// Returns a feed that gives every event to `sink`, which must not block for long.
    pub fn new(sink: impl Fn(Event) + Send + Sync + 'static) -> Self {
        EventSink { sink: Arc::new(sink), step: None }
    }

    /// Returns a feed that drops everything.
    pub fn silent() -> Self {
        EventSink::new(|_| {})
    }

    /// Returns this feed for the step `id`.
    pub fn for_step(&self, id: &str) -> Self {
        EventSink { sink: self.sink.clone(), step: Some(id.into()) }
    }

    /// Does `work` as the step `id`, and tells that it begins, `why`, and how it ended. `work` gets the feed
    /// for that step.
    pub async fn step<T>(
        &self,
        id: &str,
        title: &str,
        why: &str,
        work: impl AsyncFnOnce(&EventSink) -> Result<T>,
    ) -> Result<T> {
        let began = Instant::now();
        let (step, title) = (id.to_owned(), title.to_owned());
        let started =
            Event::StepStarted { step: step.clone(), title: title.clone(), why: why.to_owned() };
        self.send(started);
        let done = work(&self.for_step(id)).await;
        self.send(match &done {
            Ok(_) => Event::StepDone { step, title, millis: millis(began.elapsed()) },
            Err(error) if error.kind() == Kind::Interrupted => {
                Event::StepInterrupted { step, title }
            }
            Err(error) => Event::StepFailed { step, title, failure: Failure::from(error) },
        });
        done
    }

    /// Sends an event as it is.
    pub fn send(&self, event: Event) {
        (self.sink)(event);
    }

    /// Tells how many bytes have been moved.
    pub fn bytes(&self, done: u64, total: Option<u64>) {
        self.progress(Progress::Bytes { done, total });
    }

    /// Tells which item of how many is at hand.
    pub fn item(&self, done: u64, total: u64, item: impl Into<String>) {
        self.progress(Progress::Items { done, total, item: item.into() });
    }

    /// Tells what is being done or waited for.
    pub fn doing(&self, what: impl Into<String>) {
        self.progress(Progress::Doing { what: what.into() });
    }

    /// Passes on a line that a program wrote; control characters are made visible first.
    pub fn line(&self, line: &str) {
        if let Some(step) = &self.step {
            self.send(Event::StepOutput { step: step.to_string(), line: printable(line) });
        }
    }

    /// Says something that the user should know.
    pub fn notice(&self, level: Level, text: impl Into<String>) {
        self.send(Event::Notice { level, text: text.into() });
    }

    fn progress(&self, progress: Progress) {
        if let Some(step) = &self.step {
            self.send(Event::StepProgress { step: step.to_string(), progress });
        }
    }
}

impl std::fmt::Debug for EventSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventSink").field("step", &self.step).finish_non_exhaustive()
    }
}

/// Returns `text` with everything that could drive a terminal removed: escape sequences whole, other
/// control characters but newline and tab as `\u{..}`. What a guest says never reaches the user's
/// terminal raw.
pub fn printable(text: &str) -> String {
    without_controls(text, false)
}

/// Returns `text` as [`printable`] does, but with the colors that nestlab itself uses, ended where they
/// were not: for what is written to a terminal, where they stand beside what others said.
pub(crate) fn printable_in_color(text: &str) -> String {
    without_controls(text, true)
}

/// The sequences that [`console::Style`] writes for the colors and attributes in use here.
const OUR_COLORS: [&str; 6] =
    ["\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m"];

/// Ends every color.
const RESET: &str = "\x1b[0m";

fn without_controls(text: &str, keep_colors: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut colored) = (text, false);
    while let Some(c) = rest.chars().next() {
        let length = sequence_length(rest).unwrap_or(0);
        let (sequence, after) = rest.split_at(length);
        if length > 0 {
            let colors = OUR_COLORS.contains(&sequence);
            if keep_colors && (colors || (sequence == RESET && colored)) {
                out.push_str(sequence);
                colored = colors;
            }
            rest = after;
            continue;
        }
        match c {
            '\n' | '\t' => out.push(c),
            '\r' => {}
            c if is_unprintable(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
    if colored {
        out.push_str(RESET);
    }
    out
}

/// Returns `json`, compact as serde_json writes it, with the characters escaped that JSON allows raw and
/// that could drive a terminal all the same: such stand in strings alone, where `\u….` says the same.
pub(crate) fn printable_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unprintable(c) {
            // None of them lies beyond U+FFFF.
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

fn is_unprintable(c: char) -> bool {
    c.is_control() || is_bidi_control(c)
}

/// Returns the length of the escape sequence at the beginning of `text`, if a whole one stands there (ECMA-48,
/// sections 5.3 to 5.6). Looks no further than to the next control character, so that a text without an end
/// costs no more than its length.
fn sequence_length(text: &str) -> Option<usize> {
    let mut chars = text.chars();
    let (kind, begins) = match chars.next()? {
        '\x1b' => match chars.next()? {
            kind @ ('[' | ']' | 'P' | 'X' | '^' | '_') => (kind, 2),
            _ => return short_sequence(text),
        },
        '\u{9b}' => ('[', 2),
        '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => (']', 2),
        _ => return None,
    };
    let rest = &text[begins..];
    let body = if kind == '[' { control_body(rest) } else { string_body(rest) };
    Some(begins + body?)
}

/// ESC, intermediate bytes, and a final one.
fn short_sequence(text: &str) -> Option<usize> {
    let rest = &text.as_bytes()[1..];
    let between = rest.iter().take_while(|byte| matches!(byte, 0x20..=0x2f)).count();
    rest.get(between).filter(|byte| matches!(byte, 0x30..=0x7e)).map(|_| between + 2)
}

/// Parameters, intermediate bytes, and a final one.
fn control_body(rest: &str) -> Option<usize> {
    let bytes = rest.as_bytes();
    let parameters = bytes.iter().take_while(|byte| matches!(byte, 0x30..=0x3f)).count();
    let between = bytes[parameters..].iter().take_while(|byte| matches!(byte, 0x20..=0x2f)).count();
    let end = parameters + between;
    bytes.get(end).filter(|byte| matches!(byte, 0x40..=0x7e)).map(|_| end + 1)
}

/// Anything in one line, ended by BEL or ST.
fn string_body(rest: &str) -> Option<usize> {
    let end = rest.find(char::is_control)?;
    let rest = &rest[end..];
    let terminators = ["\x07", "\u{9c}", "\x1b\\"];
    let terminator = terminators.iter().find(|terminator| rest.starts_with(**terminator))?;
    Some(end + terminator.len())
}

/// Characters that reorder text on screen (Unicode "Bidi_Control").
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns `duration` in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_of_a_guest_do_not_survive() {
        let evil = "\x1b]0;owned\x07\x1b[2Jhi\x08\x7f\u{202e}there\r";
        let safe = printable(evil);
        assert!(!safe.chars().any(|c| c.is_control() || c == '\u{202e}'), "{safe:?}");
        assert!(safe.contains("hi") && safe.contains("there"));
    }

    #[test]
    fn whole_sequences_go_and_what_is_cut_off_is_shown_instead_of_hiding_what_follows() {
        for (said, shown) in [
            ("\x1b[!p\x1b]104\x07\x1b[?7hGRUB", "GRUB"),
            ("\x1b7\x1b(Ba\x1bcb", "ab"),
            ("\x1bP1$r0m\x1b\\a\u{9d}0;x\u{9c}b\u{9b}2Jc", "abc"),
            ("\x1b]0;an end that never comes", "\\u{1b}]0;an end that never comes"),
            ("\x1b]0;one line\nand the next\x07", "\\u{1b}]0;one line\nand the next\\u{7}"),
            ("a\x1b[1;2", "a\\u{1b}[1;2"),
            ("a\x1b", "a\\u{1b}"),
            ("\x1b\u{e9}", "\\u{1b}\u{e9}"),
        ] {
            assert_eq!(printable(said), shown, "{said:?}");
        }
    }

    #[test]
    fn our_own_colors_stay_where_they_are_wanted_and_nothing_else_does() {
        let styled = console::Style::new().force_styling(true).green().bold();
        let ours = styled.apply_to("up").to_string();
        assert_eq!(printable_in_color(&ours), ours);
        assert_eq!(printable(&ours), "up");
        let evil = format!("{ours} \x1b[8mhidden\x1b[5A\x1b[38;5;0m\x1b]0;x\x07\u{9b}2J");
        assert_eq!(printable_in_color(&evil), format!("{ours} hidden"));
        assert_eq!(printable_in_color("\x1b[31mred"), "\x1b[31mred\x1b[0m", "no color runs on");
    }

    #[test]
    fn json_says_the_same_without_a_character_that_drives_a_terminal() {
        let text = "\x1b[2J\u{9b}2J\x7f\u{202e}\n\u{e9}\"\\";
        let json = serde_json::to_string(text).expect("JSON");
        let safe = printable_json(&json);
        assert!(!safe.chars().any(is_unprintable), "{safe:?}");
        assert_eq!(serde_json::from_str::<String>(&safe).expect("JSON"), text);
    }

    #[tokio::test]
    async fn a_step_is_told_from_its_begin_to_its_end_whatever_the_end() {
        let (told, listener) = std::sync::mpsc::channel();
        let events = EventSink::new(move |event| told.send(event).expect("is listened to"));
        let outcomes = [
            Ok(()),
            Err(crate::Error::new(Kind::Interrupted, "interrupted")),
            Err(crate::Error::failed("no")),
        ];
        for outcome in outcomes {
            let _ = events
                .step("l1/stop", "stop l1", "it runs", async move |events| {
                    events.doing("waiting");
                    outcome
                })
                .await;
        }
        drop(events);
        let ends = ["step-done", "step-interrupted", "step-failed"];
        let expected = ends.map(|end| ["step-started", "step-progress", end]).concat();
        let kinds = listener.iter().map(|event| {
            assert_eq!(event.step(), Some("l1/stop"));
            serde_json::to_value(&event).expect("serializes")["event"].clone()
        });
        assert_eq!(kinds.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_event_is_one_json_object_with_a_tag() {
        let event =
            Event::StepDone { step: "l1/start".into(), title: "start l1".into(), millis: 5 };
        let json = serde_json::to_string(&event).expect("serializes");
        assert_eq!(
            json,
            r#"{"event":"step-done","step":"l1/start","title":"start l1","millis":5}"#
        );
    }
}
