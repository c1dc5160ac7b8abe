//! Colors, where the user and the terminal want them.

use std::fmt::Display;

/// Whether to color.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Returns the paint for a stream that is a terminal or not.
    pub fn paint(self, terminal: bool) -> Paint {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Paint::new(match self {
            Color::Auto => terminal && !no_color,
            Color::Always => true,
            Color::Never => false,
        })
    }
}

/// Colors text, or leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(bool);

impl Paint {
    /// Returns a paint that colors or not.
    pub fn new(colors: bool) -> Self {
        Paint(colors)
    }

    fn paint(self, text: impl Display, style: console::Style) -> String {
        if self.0 { style.force_styling(true).apply_to(text).to_string() } else { text.to_string() }
    }

    /// Returns `text` as what went well.
    pub fn good(self, text: impl Display) -> String {
        self.paint(text, console::Style::new().green())
    }

    /// Returns `text` as what went wrong.
    pub fn bad(self, text: impl Display) -> String {
        self.paint(text, console::Style::new().red().bold())
    }

    /// Returns `text` as what will hurt if ignored.
    pub fn warning(self, text: impl Display) -> String {
        self.paint(text, console::Style::new().yellow())
    }

    /// Returns `text` as what moves now.
    pub fn moving(self, text: impl Display) -> String {
        self.paint(text, console::Style::new().cyan())
    }

    /// Returns `text` as what matters less.
    pub fn faint(self, text: impl Display) -> String {
        self.paint(text, console::Style::new().dim())
    }

    /// Returns the whole report of `error` for standard error; what it quotes was made safe before.
    pub fn report(self, error: &crate::Error) -> String {
        let report = error.report();
        if !self.0 {
            return report;
        }
        let lines = report.lines().enumerate().map(|(number, line)| {
            let labelled = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '));
            match (number, line.split_once(':'), labelled) {
                (0, Some((label, rest)), _) => format!("{}:{rest}", self.bad(label)),
                (_, Some((label, rest)), Some(_)) => {
                    format!("{}{rest}", self.faint(format!("{label}:")))
                }
                _ => line.to_owned(),
            }
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn without_colors_a_report_is_what_the_error_says() {
        let error = Error::failed("no").on("l1").tail(b"  x: y\n").hint("do: this");
        assert_eq!(Paint::new(false).report(&error), error.report());
    }

    #[test]
    fn with_colors_a_report_says_the_same() {
        let error = Error::failed("no").on("l1").tail(b"  x: y\n").hint("do: this");
        let report = Paint::new(true).report(&error);
        assert!(report.starts_with('\x1b'), "{report:?}");
        assert_eq!(console::strip_ansi_codes(&report), error.report());
    }
}
