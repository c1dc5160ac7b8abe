//! Results on stdout. A reader that has seen enough (`nestlab recipe list | head -1`) is not an error.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::error::{Error, Kind, Result};

/// Writes `text` to stdout as it is.
///
/// # Errors
/// [`Kind::Io`] if stdout cannot be written, such as to a full disk.
pub(crate) fn print(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes `bytes` to stdout as they are; errors as [`print`] has them.
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
    let mut text = serde_json::to_string(answer)
        .map_err(|error| Error::internal("an answer is not JSON").because(error))?;
    text.push('\n');
    print(&text)
}
