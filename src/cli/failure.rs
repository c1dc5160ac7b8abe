//! Errors, told: several lines on stderr for a person, one JSON object on stdout for a program.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use console::style;
use serde::Serialize;

use super::output;
use crate::error::{Error, Kind};
use crate::event::{Failure, printable};

/// What `--json` answers instead of a result.
#[derive(Serialize)]
struct FailureAnswer {
    schema: u32,
    error: Failure,
}

/// Tells `error` and returns its exit code.
pub(crate) fn tell(error: &Error, json: bool) -> ExitCode {
    let written = if json {
        output::print_json(&FailureAnswer { schema: 1, error: error.into() })
    } else {
        output::eprint(&styled(&printable(&error.report())));
        Ok(())
    };
    if let Err(also) = written {
        output::eprint(&styled(&printable(&also.report())));
    }
    ExitCode::from(error.kind().exit_code())
}

/// Tells what is wrong with the arguments, or what they asked to be told: help or the version.
pub(crate) fn of_arguments(
    error: &clap::Error,
    mut arguments: impl Iterator<Item = OsString>,
) -> ExitCode {
    if !error.use_stderr() {
        // A closed stdout is no reason to complain about help that nobody reads.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let asked_for_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if !asked_for_help && arguments.any(|argument| argument == "--json") {
        let text = error.to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let error = lines.fold(Error::new(Kind::Usage, message), |error, line| error.hint(line));
        return tell(&error, true);
    }
    let _ = error.print();
    ExitCode::from(Kind::Usage.exit_code())
}

/// Colors the report's first word and its labels.
fn styled(report: &str) -> String {
    let mut out = String::with_capacity(report.len() + 64);
    for line in report.lines() {
        let (label, rest) = match line {
            _ if line.starts_with("error:") => line.split_at("error:".len()),
            _ if line.starts_with("  hint:") => line.split_at("  hint:".len()),
            _ if line.starts_with("  = ") => line.split_at("  =".len()),
            _ => ("", line),
        };
        let label = match label {
            "" => String::new(),
            "error:" => style(label).for_stderr().red().bold().to_string(),
            _ => style(label).for_stderr().cyan().bold().to_string(),
        };
        let caret = line.trim_start_matches([' ', '|']);
        let rest = if label.is_empty() && !caret.is_empty() && caret.bytes().all(|b| b == b'^') {
            let (margin, carets) = rest.split_at(rest.len() - caret.len());
            format!("{margin}{}", style(carets).for_stderr().red().bold())
        } else {
            rest.to_owned()
        };
        out.push_str(&label);
        out.push_str(&rest);
        out.push('\n');
    }
    out
}
