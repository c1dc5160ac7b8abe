//! Findings as a table for people: one line each where the terminal is wide, remedies below as commands to
//! paste.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthStr as _;

use crate::preflight::{Finding, Verdict};
use crate::report::humanize;
use crate::report::{ColorMode, Theme};

/// Where the table is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableLayout {
    /// Columns.
    pub(super) width: usize,
    /// Colors.
    pub(super) paint: Theme,
}

impl TableLayout {
    /// Returns how stdout is drawn on; a pipe gets one long line for each finding.
    pub(super) fn of_stdout() -> Self {
        let terminal = console::Term::stdout();
        let width = match terminal.size_checked() {
            Some((_, columns)) if terminal.is_term() => usize::from(columns).clamp(40, 120),
            _ => usize::MAX,
        };
        let color = if console::colors_enabled() { ColorMode::Always } else { ColorMode::Never };
        TableLayout { width, paint: color.paint(terminal.is_term()) }
    }
}

/// A terminal with fewer columns gets what was found below the check, not beside it.
const NARROW: usize = 72;

/// Columns before the check's name: a verdict and two spaces on either side.
const VERDICT: usize = 8;

/// Returns the table. What does not matter here is left out unless `all` is asked for.
pub(super) fn draw(findings: &[Finding], look: TableLayout, all: bool) -> String {
    let shown: Vec<_> = findings
        .iter()
        .filter(|finding| all || finding.verdict != Verdict::NotApplicable)
        .collect();
    let names = shown.iter().map(|finding| finding.id.width()).max().unwrap_or(0);
    let mut out = String::new();
    let several = findings.iter().any(|finding| finding.host != findings[0].host);
    let mut host = "";
    for finding in &shown {
        if several && finding.host != host {
            host = &finding.host;
            // Writing to a String cannot fail.
            let _ = match finding.level {
                0 => writeln!(out, "{host}"),
                level => writeln!(out, "{host} (level {level})"),
            };
        }
        one(&mut out, finding, names, look, all);
    }
    summary(&mut out, findings, look, all);
    out
}

fn one(out: &mut String, finding: &Finding, names: usize, look: TableLayout, all: bool) {
    let word = match finding.verdict {
        Verdict::Ok => look.paint.good("ok  "),
        Verdict::Warn => look.paint.warning("warn"),
        Verdict::Fail => look.paint.bad("FAIL"),
        Verdict::NotApplicable => "-   ".to_owned(),
    };
    let narrow = look.width < NARROW;
    let indent = if narrow { VERDICT } else { VERDICT + names + 2 };
    let found = wrapped(&finding.found, look.width.saturating_sub(indent));
    // Writing to a String cannot fail.
    if narrow {
        let _ = writeln!(out, "  {word}  {}", finding.id);
    }
    for (number, line) in found.iter().enumerate() {
        let _ = match number {
            0 if !narrow => writeln!(out, "  {word}  {:names$}  {line}", finding.id),
            _ => writeln!(out, "{:indent$}{line}", ""),
        };
    }
    if all && !finding.source.is_empty() {
        for line in wrapped(&format!("read from {}", finding.source), look.width - indent) {
            let _ = writeln!(out, "{:indent$}{}", "", look.paint.faint(line));
        }
    }
    if finding.verdict >= Verdict::Warn {
        remedy(out, finding, indent, look);
    }
}

fn remedy(out: &mut String, finding: &Finding, indent: usize, look: TableLayout) {
    let remedy = finding.remedy.as_deref().unwrap_or_default();
    for (number, line) in wrapped(remedy, look.width.saturating_sub(indent + 2)).iter().enumerate()
    {
        let arrow = if number == 0 { "→" } else { " " };
        let _ = writeln!(out, "{:indent$}{arrow} {line}", "");
    }
    for command in &finding.commands {
        // Never wrapped: a command is there to be pasted.
        let _ = writeln!(out, "{:indent$}  $ {}", "", look.paint.moving(command));
    }
}

fn summary(out: &mut String, findings: &[Finding], look: TableLayout, all: bool) {
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let hidden = count(Verdict::NotApplicable);
    let mut parts = vec![
        format!("{} ok", count(Verdict::Ok)),
        humanize::count(count(Verdict::Warn), "warning"),
        humanize::count(count(Verdict::Fail), "failure"),
    ];
    if hidden > 0 && !all {
        parts.push(format!("{hidden} do not matter here (-v shows them)"));
    }
    for line in wrapped(&parts.join(", "), look.width) {
        let _ = writeln!(out, "{line}");
    }
}

/// Returns `text` in lines of at most `width` columns; a word that is longer stands alone.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(id: &'static str, verdict: Verdict, found: &str) -> Finding {
        Finding {
            id,
            level: 0,
            host: "L0".to_owned(),
            found: found.to_owned(),
            source: "/proc/cpuinfo".to_owned(),
            verdict,
            remedy: (verdict >= Verdict::Warn)
                .then(|| "Switch it on in the firmware's settings:".to_owned()),
            commands: vec!["systemctl reboot --firmware-setup".to_owned()],
        }
    }

    fn findings() -> Vec<Finding> {
        vec![
            finding("architecture", Verdict::Ok, "x86_64, Debian GNU/Linux 13 (trixie)"),
            finding(
                "virtualization",
                Verdict::Fail,
                "neither svm nor vmx: guests are emulated, ten to thirty times slower",
            ),
            finding("container", Verdict::NotApplicable, "no"),
        ]
    }

    fn drawn(width: usize, all: bool) -> String {
        draw(&findings(), TableLayout { width, paint: Theme::new(false) }, all)
    }

    #[test]
    fn a_wide_terminal_gets_a_line_for_each_finding_and_commands_to_paste() {
        insta::assert_snapshot!(drawn(100, false), @r"
          ok    architecture    x86_64, Debian GNU/Linux 13 (trixie)
          FAIL  virtualization  neither svm nor vmx: guests are emulated, ten to thirty times slower
                                → Switch it on in the firmware's settings:
                                  $ systemctl reboot --firmware-setup
        1 ok, 0 warnings, 1 failure, 1 do not matter here (-v shows them)
        ");
    }

    #[test]
    fn each_level_has_its_part() {
        let inside = Finding { level: 1, host: "l1".to_owned(), ..findings()[0].clone() };
        let all = [findings().remove(0), inside];
        insta::assert_snapshot!(draw(&all, TableLayout { width: 100, paint: Theme::new(false) }, false), @r"
        L0
          ok    architecture  x86_64, Debian GNU/Linux 13 (trixie)
        l1 (level 1)
          ok    architecture  x86_64, Debian GNU/Linux 13 (trixie)
        2 ok, 0 warnings, 0 failures
        ");
    }

    #[test]
    fn a_narrow_terminal_gets_what_was_found_below_the_check() {
        insta::assert_snapshot!(drawn(44, false), @r"
          ok    architecture
                x86_64, Debian GNU/Linux 13 (trixie)
          FAIL  virtualization
                neither svm nor vmx: guests are
                emulated, ten to thirty times slower
                → Switch it on in the firmware's
                  settings:
                  $ systemctl reboot --firmware-setup
        1 ok, 0 warnings, 1 failure, 1 do not matter
        here (-v shows them)
        ");
        let too_wide =
            drawn(44, false).lines().any(|line| line.width() > 44 && !line.contains('$'));
        assert!(!too_wide);
    }

    #[test]
    fn everything_is_shown_when_asked_for_with_where_it_was_read() {
        let shown = drawn(100, true);
        assert!(
            shown.contains("container") && shown.contains("read from /proc/cpuinfo"),
            "{shown}"
        );
    }
}
