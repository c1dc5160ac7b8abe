//! What the commands write: results on stdout, diagnostics and questions on stderr. Text passes
//! [`crate::event::printable`] here and nowhere later, so that nothing which a guest or a host said can drive
//! the user's terminal, whoever forgets to think of it. A reader that has seen enough
//! (`nestlab recipe list | head -1`) is not an error.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::event::printable_json;
use crate::report::Theme;

/// Writes `text` to stdout, made printable; colors of ours stay where stdout has colors.
///
/// # Errors
/// [`Kind::Io`] if stdout cannot be written, such as to a full disk.
pub(crate) fn print(text: &str) -> Result<()> {
    print_bytes(Theme::new(console::colors_enabled()).printable(text).as_bytes())
}

/// Writes `text` to stderr, made printable; if that is closed, there is nobody to tell.
pub(crate) fn eprint(text: &str) {
    let text = Theme::new(console::colors_enabled_stderr()).printable(text);
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// Writes `bytes`, which are nestlab's own, to stdout as they are; errors as [`print`] has them.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Io, format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes `answer` to stdout as one JSON object on one line; errors as [`print`] has them.
pub(crate) fn print_json(answer: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(answer)
        .map_err(|error| Error::internal("an answer is not JSON").with_source(error))?;
    print_bytes(format!("{}\n", printable_json(&text)).as_bytes())
}
