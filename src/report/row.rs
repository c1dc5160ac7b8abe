//! How a running step looks in one row of a terminal, at any width. Pure.

use std::time::Duration;

use console::{measure_text_width, truncate_str};

use super::humanize::{self, one_line, percent};
use super::theme::Theme;
use crate::event::Progress;

/// A running step.
#[derive(Debug, Clone)]
pub struct Row {
    /// The step in words.
    pub title: String,
    /// How far it is; nothing is known at first.
    pub progress: Option<Progress>,
    /// Bytes each second, if bytes are moved.
    pub rate: Option<f64>,
    /// How long it has been running.
    pub elapsed: Duration,
}

const SPINNER: [char; 4] = ['-', '\\', '|', '/'];
const SPIN_EVERY: Duration = Duration::from_millis(150);

impl Row {
    /// Returns the row, never wider than `width` columns: the richest form that fits, else the
    /// title cut short.
    pub fn draw(&self, width: usize, paint: Theme) -> String {
        let spin = self.elapsed.as_millis() / SPIN_EVERY.as_millis();
        let spinner = SPINNER[usize::try_from(spin % 4).expect("less than four")];
        let took = humanize::duration(self.elapsed);
        let title = one_line(&self.title);
        let fixed = 2 + measure_text_width(&title) + 2 + took.len();
        let forms = self.forms(width.saturating_sub(fixed + 2));
        let middles = forms.iter().filter(|form| !form.is_empty()).map(|form| format!("  {form}"));
        for middle in middles.chain([String::new()]) {
            // A whole row is not always as wide as its parts: a mark may combine with what stands before it.
            if measure_text_width(&format!("{spinner} {title}{middle}  {took}")) <= width {
                let (spinner, took) = (paint.moving(spinner), paint.faint(took));
                return format!("{spinner} {title}{middle}  {took}");
            }
        }
        shortened(&format!("{spinner} {title}"), width)
    }

    /// What can be said of the progress, the richest first; the last is at most `room` wide.
    fn forms(&self, room: usize) -> Vec<String> {
        match &self.progress {
            None => Vec::new(),
            Some(Progress::Doing { what }) => vec![cut(&one_line(what), room)],
            Some(Progress::Items { done, total, item }) => {
                let (bar, count) = (bar(*done, *total), format!("{done}/{total}"));
                let left = room.saturating_sub(measure_text_width(&count) + 1);
                let item = one_line(item);
                vec![
                    format!("{bar} {count} {item}"),
                    format!("{count} {}", cut(&item, left)).trim_end().to_owned(),
                    format!("{} %", percent(*done, *total)),
                ]
            }
            Some(Progress::Bytes { done, total: Some(total) }) => {
                let (bar, share) = (bar(*done, *total), format!("{} %", percent(*done, *total)));
                let of =
                    format!("{share}  {} of {}", humanize::bytes(*done), humanize::bytes(*total));
                let rate = self.rate_words();
                let left = self.left_words(*done, *total);
                vec![
                    format!("{bar} {of}{rate}{left}"),
                    format!("{bar} {of}{rate}"),
                    format!("{bar} {of}"),
                    format!("{bar} {share}"),
                    share,
                ]
            }
            Some(Progress::Bytes { done, total: None }) => {
                let done = humanize::bytes(*done);
                vec![format!("{done}{}", self.rate_words()), done]
            }
        }
    }

    fn rate_words(&self) -> String {
        match self.rate {
            Some(rate) if rate >= 1.0 => format!("  {}/s", humanize::bytes(rate as u64)),
            _ => String::new(),
        }
    }

    /// How long the rest takes at this rate, once there is a rate to speak of.
    fn left_words(&self, done: u64, total: u64) -> String {
        let seconds = self.rate.map(|rate| total.saturating_sub(done) as f64 / rate);
        match seconds.map(Duration::try_from_secs_f64) {
            Some(Ok(left)) if left.as_secs() >= 1 && left.as_secs() < 360_000 => {
                format!("  {} left", humanize::duration(Duration::from_secs(left.as_secs())))
            }
            _ => String::new(),
        }
    }
}

/// A text cut to `room` columns; to nothing, if less than a word would be left.
fn cut(text: &str, room: usize) -> String {
    if room < 8 && measure_text_width(text) > room {
        return String::new();
    }
    shortened(text, room)
}

/// Returns `text`, cut so that it takes at most `width` columns.
fn shortened(text: &str, width: usize) -> String {
    let mut short = truncate_str(text, width, "…").into_owned();
    // It is cut by the widths of single characters, and some are wider together.
    while measure_text_width(&short) > width && short.pop().is_some() {}
    short
}

fn bar(done: u64, total: u64) -> String {
    const CELLS: u64 = 20;
    let full = percent(done, total) * CELLS / 100;
    let cell = |index| if index < full { '#' } else { '.' };
    format!("[{}]", (0..CELLS).map(cell).collect::<String>())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(progress: Option<Progress>) -> Row {
        Row {
            title: "fetch kicksecure-lxqt".into(),
            progress,
            rate: Some(16_777_216.0),
            elapsed: Duration::from_secs(95),
        }
    }

    fn drawn(progress: Option<Progress>, width: usize) -> String {
        row(progress).draw(width, Theme::new(false))
    }

    #[test]
    fn bytes_say_less_the_less_room_there_is() {
        let bytes = Some(Progress::Bytes { done: 1 << 30, total: Some(3 << 30) });
        let at = |width| drawn(bytes.clone(), width);
        assert_eq!(
            at(120),
            "\\ fetch kicksecure-lxqt  [######..............] 33 %  1.0 GiB of 3.0 GiB  16.0 MiB/s  2 min 8 s left  1 min 35 s"
        );
        assert_eq!(at(80), "\\ fetch kicksecure-lxqt  [######..............] 33 %  1 min 35 s");
        assert_eq!(at(50), "\\ fetch kicksecure-lxqt  33 %  1 min 35 s");
        assert_eq!(at(36), "\\ fetch kicksecure-lxqt  1 min 35 s");
        assert_eq!(at(16), "\\ fetch kicksec…");
    }

    #[test]
    fn items_name_the_one_at_hand() {
        let items = Some(Progress::Items { done: 12, total: 340, item: "linux-image-6.17".into() });
        assert_eq!(
            drawn(items.clone(), 100),
            "\\ fetch kicksecure-lxqt  [....................] 12/340 linux-image-6.17  1 min 35 s"
        );
        assert_eq!(
            drawn(items, 60),
            "\\ fetch kicksecure-lxqt  12/340 linux-image-6.17  1 min 35 s"
        );
    }

    #[test]
    fn what_is_waited_for_is_cut_to_the_room_there_is() {
        let doing = Some(Progress::Doing { what: "waiting for SSH: no banner yet".into() });
        assert_eq!(
            drawn(doing.clone(), 80),
            "\\ fetch kicksecure-lxqt  waiting for SSH: no banner yet  1 min 35 s"
        );
        assert_eq!(drawn(doing, 50), "\\ fetch kicksecure-lxqt  waiting for …  1 min 35 s");
    }

    #[test]
    fn a_mark_without_a_width_does_not_count_as_what_fits_where_nothing_does() {
        let row = Row {
            title: String::new(),
            progress: Some(Progress::Doing { what: "\u{a4b}".into() }),
            rate: None,
            elapsed: Duration::ZERO,
        };
        let drawn = row.draw(1, Theme::new(false));
        assert!(measure_text_width(&drawn) <= 1, "{drawn:?}");
    }

    #[test]
    fn characters_that_are_wider_together_are_cut_as_they_are_shown() {
        for title in
            ["\u{260e}\u{fe0f}".repeat(9), "\u{1f1e9}\u{1f1ea}".repeat(9), "e\u{301}".repeat(9)]
        {
            for width in 1..30 {
                let row = Row { title: title.clone(), ..row(None) };
                let drawn = row.draw(width, Theme::new(false));
                assert!(measure_text_width(&drawn) <= width, "{drawn:?} in {width}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_row_is_never_wider_than_the_terminal_and_drives_it_never(
            title in "\\PC{0,60}|[\u{0}-\u{1f}a-z]{0,20}",
            what in any::<String>(),
            width in 1_usize..200,
            seconds in 0_u64..1_000_000,
        ) {
            let row = Row {
                title,
                progress: Some(Progress::Doing { what }),
                rate: None,
                elapsed: Duration::from_secs(seconds),
            };
            let drawn = row.draw(width, Theme::new(false));
            prop_assert!(measure_text_width(&drawn) <= width, "{drawn:?} in {width}");
            prop_assert!(!drawn.chars().any(char::is_control), "{drawn:?}");
        }
    }
}
