//! Problems that point at their place in a file: line, column, the line itself with the place
//! underlined, what is wrong and what to write instead.
//!
//! For every TOML file that a user writes; it knows no format.

use std::ops::Range;
use std::sync::Arc;

use unicode_width::UnicodeWidthStr;

use crate::error::{Error, Problem};
use crate::event::printable;

/// How many characters of an overlong line are shown to the left of the place and from it on.
const SHOWN: (usize, usize) = (60, 100);

/// How many problems of a file are told; what is not a recipe at all can have thousands.
const MOST: usize = 20;

/// A text file in memory, with the name by which messages call it.
#[derive(Debug, Clone)]
pub struct SourceText {
    name: Arc<str>,
    text: Arc<str>,
}

impl SourceText {
    /// Returns the file called `name` that holds `text`.
    pub fn new(name: &str, text: &str) -> Self {
        SourceText { name: name.into(), text: text.into() }
    }

    /// Returns the name by which messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what it holds.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the problem `message` at the bytes `span`; a span outside the text counts as its end,
    /// and of a span over several lines the first is underlined.
    pub fn problem(&self, span: Range<usize>, message: impl Into<String>) -> Problem {
        let start = self.text.floor_char_boundary(span.start);
        let end = self.text.floor_char_boundary(span.end).max(start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end =
            self.text[line_start..].find('\n').map_or(self.text.len(), |n| line_start + n);
        let number = self.text[..line_start].matches('\n').count() + 1;
        let before = &self.text[line_start..start.min(line_end)];
        let rest = self.text[start.min(line_end)..line_end].trim_end();
        let marked = (end - start).min(rest.len());
        Problem {
            file: printable(&self.name),
            line: number,
            column: before.chars().count() + 1,
            message: printable(&message.into()).replace('\n', " "),
            excerpt: excerpt(number, before, rest, marked),
            help: None,
        }
    }
}

/// Returns the line `before` + `rest` with the first `marked` bytes of `rest` underlined, at least one
/// column.
fn excerpt(number: usize, before: &str, rest: &str, marked: usize) -> String {
    let (left, right) = SHOWN;
    let skip = before.chars().count().saturating_sub(left);
    let before = shown(&before.chars().skip(skip).collect::<String>());
    let marked = shown(&rest[..marked].chars().take(right).collect::<String>());
    let rest = shown(&rest.chars().take(right).collect::<String>());
    let before = if skip > 0 { format!("…{before}") } else { before };
    let gutter = number.to_string();
    let margin = " ".repeat(gutter.len());
    let indent = " ".repeat(before.width());
    let carets = "^".repeat(marked.width().max(1));
    let line = format!("  {gutter} | {before}{rest}");
    format!("  {margin} |\n{}\n  {margin} | {indent}{carets}", line.trim_end())
}

fn shown(text: &str) -> String {
    printable(text).replace(['\t', '\n'], " ")
}

impl Problem {
    /// Adds what to write instead.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(printable(&help.into()).replace('\n', " "));
        self
    }
}

/// Returns the [`Kind::Recipe`](crate::Kind) error that tells of all `problems`, of which there is one at
/// least, in the order of their places.
pub fn error(mut problems: Vec<Problem>) -> Error {
    problems.sort_by_key(|problem| (problem.line, problem.column));
    problems.dedup();
    let more = problems.len().saturating_sub(MOST);
    problems.truncate(MOST);
    let error = Error::problems_in_file(problems);
    if more == 0 { error } else { error.hint(format!("{more} more problems are not shown")) }
}

/// Returns the word of `known` that `word` was most likely meant to be, if one is near enough.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= near)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_problem_shows_its_line_with_the_place_underlined() {
        let source = SourceText::new("lab.toml", "schema = 1\nmemroy = \"6GiB\"\n");
        let problem = source.problem(11..17, "unknown key `memroy`").help("did you mean `memory`?");
        assert_eq!((problem.line, problem.column), (2, 1));
        assert_eq!(
            Error::problems_in_file(vec![problem]).report(),
            "error: lab.toml:2:1: unknown key `memroy`\n    |\n  2 | memroy = \"6GiB\"\n    | ^^^^^^\n  = did you mean `memory`?"
        );
    }

    #[test]
    fn wide_characters_tabs_and_control_characters_keep_the_underline_in_place() {
        let source = SourceText::new("x", "\ta = \"漢字\x1b[31m\" # y");
        let place = source.text().find('#').expect("is there");
        let problem = source.problem(place..place + 1, "here");
        let lines: Vec<_> = problem.excerpt.lines().collect();
        let column = |line: &str, c: char| line[..line.find(c).expect("is there")].width();
        assert_eq!(column(lines[1], '#'), column(lines[2], '^'), "{}", problem.excerpt);
        assert!(!problem.excerpt.contains('\x1b'));
    }

    #[test]
    fn an_overlong_line_is_shown_around_the_place() {
        let text = format!("{}HERE{}", "a".repeat(5000), "b".repeat(5000));
        let problem = SourceText::new("x", &text).problem(5000..5004, "here");
        assert!(problem.excerpt.contains("HERE") && problem.excerpt.len() < 600);
        assert_eq!(problem.column, 5001);
    }

    #[test]
    fn only_a_near_word_is_suggested() {
        assert_eq!(nearest("memroy", ["memory", "name"]), Some("memory"));
        assert_eq!(nearest("banana", ["memory", "name"]), None);
    }

    proptest! {
        #[test]
        fn no_span_however_odd_makes_a_problem_fail(text in "(?s).{0,60}", start in 0usize..90, len in 0usize..90) {
            let problem = SourceText::new("x", &text).problem(start..start + len, "odd");
            prop_assert!(problem.line >= 1 && problem.column >= 1);
            prop_assert!(problem.excerpt.contains('^'));
        }
    }
}
