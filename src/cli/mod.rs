//! The command line: one file per command. The only place that knows clap.

use std::process::ExitCode;

/// Runs nestlab with the process's arguments and returns its exit code.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
