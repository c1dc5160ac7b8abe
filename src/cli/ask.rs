//! Asking a person before something that cannot be undone.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use super::output;
use crate::error::{Error, Kind, Result};

/// Asks `question` on stderr and returns whether the answer is yes.
///
/// # Errors
/// [`Kind::Usage`] if stdin is no terminal.
pub(super) fn yes(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(
            Kind::Usage,
            "this needs a yes, and there is no terminal: add --yes",
        ));
    }
    output::eprint(&format!("{question} [y/N] "));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Tells that nothing was done since the answer was no, and returns the exit code of that.
pub(super) fn cancelled(nothing: &str) -> ExitCode {
    output::eprint(&format!("cancelled, {nothing}\n"));
    ExitCode::from(Kind::Interrupted.exit_code())
}
