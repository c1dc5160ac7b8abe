//! Colors, where the user and the terminal want them.

use std::fmt::Display;

use crate::event::{printable, printable_in_color};

/// Whether to color.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ColorMode {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl ColorMode {
    /// Returns the paint for a stream that is a terminal or not.
    pub fn paint(self, terminal: bool) -> Theme {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Theme::new(match self {
            ColorMode::Auto => terminal && !no_color,
            ColorMode::Always => true,
            ColorMode::Never => false,
        })
    }
}

/// Colors text, or leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme(bool);

impl Theme {
    /// Returns a paint that colors or not.
    pub fn new(colors: bool) -> Self {
        Theme(colors)
    }

    /// Returns `text`, a line or several, with nothing in it that could drive a terminal but these colors.
    pub(crate) fn printable(self, text: &str) -> String {
        if self.0 { printable_in_color(text) } else { printable(text) }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_colors_only_when_they_are_asked_for() {
        assert_eq!(ColorMode::Auto.paint(false).good("x"), "x");
        assert_eq!(ColorMode::Never.paint(true).good("x"), "x");
        let colored = ColorMode::Always.paint(false).good("x");
        assert_ne!(colored, "x");
        assert_eq!(console::strip_ansi_codes(&colored), "x");
    }
}
