//! Recorded answers of the real VBoxManage, for tests; `scripts/record-transcripts` makes them.

use crate::host::{Exit, Output};

/// One recorded run.
pub(super) struct Transcript {
    /// The version that answered, as `--version` prints it.
    pub(super) version: String,
    /// How it ended and what it printed.
    pub(super) output: Output,
}

/// Returns the recording `name` of VirtualBox 7.2.22.
pub(super) fn transcript(name: &str) -> Transcript {
    let path =
        format!("{}/tests/transcripts/virtualbox-7.2.22/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let (head, rest) = text.split_once("\n--- stderr\n").expect("a transcript has a head");
    let (stderr, stdout) = match rest.strip_prefix("--- stdout\n") {
        Some(stdout) => ("", stdout),
        None => rest.split_once("\n--- stdout\n").expect("a transcript has two outputs"),
    };
    let line = |name: &str| {
        let found = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_else(|| panic!("{path} does not say its {name}")).to_owned()
    };
    Transcript {
        version: line("version"),
        output: Output {
            exit: Exit::Code(line("exit").parse().expect("an exit code")),
            stdout: stdout.as_bytes().to_vec(),
            stderr: stderr.as_bytes().to_vec(),
        },
    }
}

/// Returns what the recording `name` printed to standard output.
pub(super) fn printed(name: &str) -> String {
    transcript(name).output.text()
}
