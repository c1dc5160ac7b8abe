//! The one error of the crate: a kind, what was tried where, the end of the output that matters,
//! and a hint.
//!
//! A module that must tell failures of its own apart (the VirtualBox driver its VERR codes, the
//! verifier its refusals) has its own enum and turns it into this one at its edge. This module knows
//! no module of the crate.

use std::fmt;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure an [`Error`] is; it decides the exit code and nothing else does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// A step's command or check failed.
    Failed,
    /// The command line is wrong.
    Usage,
    /// The recipe or an image manifest is wrong.
    Recipe,
    /// This host cannot do what the recipe wants.
    HostCannot,
    /// An image, or what vouches for it, is not what it claims to be.
    Untrusted,
    /// A download, a mirror or a name could not be reached, or answered nonsense.
    Network,
    /// A guest or host does not answer.
    Unreachable,
    /// A guest was started but gave no evidence of being up in time.
    NotReady,
    /// Another nestlab works on this lab.
    Busy,
    /// The user interrupted the run.
    Interrupted,
    /// The state directory or another local file could not be read or written.
    Io,
    /// A step can be neither completed nor undone without the user.
    Stuck,
    /// A bug in nestlab: an invariant does not hold.
    Internal,
}

impl Kind {
    /// The process exit code, as DESIGN.md settles it.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed | Kind::Io | Kind::Stuck | Kind::Internal => 1,
            Kind::Usage | Kind::Recipe => 2,
            Kind::HostCannot => 3,
            Kind::Untrusted => 4,
            Kind::Network => 5,
            Kind::Unreachable | Kind::NotReady => 6,
            Kind::Busy => 7,
            Kind::Interrupted => 130,
        }
    }
}

/// A failure, told so that the person at the terminal can act on it.
///
/// `Display` gives the one-line message; [`Error::report`] gives everything.
pub struct Error(Box<ErrorData>);

struct ErrorData {
    kind: Kind,
    message: String,
    step: Option<String>,
    host: Option<String>,
    command: Option<Vec<String>>,
    tail: Option<String>,
    problems: Vec<Problem>,
    hints: Vec<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Something wrong at one place of a file that the user wrote, told as a compiler tells it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Problem {
    /// The file, as the user named it.
    pub file: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// What is wrong, in one line.
    pub message: String,
    /// The line itself with the place underlined; safe for a terminal.
    pub excerpt: String,
    /// What to write instead, where that is known.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub help: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

/// How much of a command's output an error keeps: the last lines are the ones that matter.
pub const TAIL_LINES: usize = 20;

impl Error {
    /// Returns an error of `kind` that says `message`: what went wrong, where, in one line.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error(Box::new(ErrorData {
            kind,
            message: message.into(),
            step: None,
            host: None,
            command: None,
            tail: None,
            problems: Vec::new(),
            hints: Vec::new(),
            source: None,
        }))
    }

    /// Returns a [`Kind::Failed`] error.
    pub fn failed(message: impl Into<String>) -> Self {
        Error::new(Kind::Failed, message)
    }

    /// Returns a [`Kind::Internal`] error: an invariant that does not hold.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(Kind::Internal, message)
    }

    /// Names the step in which it happened; the innermost name stays.
    #[must_use]
    pub fn in_step(mut self, step: impl fmt::Display) -> Self {
        self.0.step.get_or_insert_with(|| step.to_string());
        self
    }

    /// Names the host on which it happened; the innermost name stays.
    #[must_use]
    pub fn on_host(mut self, host: impl fmt::Display) -> Self {
        self.0.host.get_or_insert_with(|| host.to_string());
        self
    }

    /// Records the argument vector that was tried; the innermost stays.
    #[must_use]
    pub fn with_command<S: Into<String>>(mut self, argv: impl IntoIterator<Item = S>) -> Self {
        self.0.command.get_or_insert_with(|| argv.into_iter().map(Into::into).collect());
        self
    }

    /// Keeps the last [`TAIL_LINES`] lines of `output`, made safe for a terminal.
    #[must_use]
    pub fn tail(mut self, output: &[u8]) -> Self {
        let text = crate::event::printable(&String::from_utf8_lossy(output));
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let kept = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        if !kept.is_empty() {
            self.0.tail = Some(kept.join("\n"));
        }
        self
    }

    /// Returns a [`Kind::Recipe`] error that points at each of `problems`, of which there is one at
    /// least, in one file.
    pub fn problems_in_file(problems: Vec<Problem>) -> Self {
        let message = match problems.as_slice() {
            [only] => only.to_string(),
            [first, ..] => format!("{} has {} problems", first.file, problems.len()),
            [] => "a file was refused for no reason".to_owned(),
        };
        let mut error = Error::new(Kind::Recipe, message);
        error.0.problems = problems;
        error
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hints.push(hint.into());
        self
    }

    /// Adds the underlying cause.
    #[must_use]
    pub fn with_source(
        mut self,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(cause.into());
        self
    }

    /// Puts `context` in front of the message: "`context`: message".
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// Changes the kind, for a caller that knows what the failure means.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Returns the kind.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Returns the one-line message, without causes.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Returns the step's id, if it happened in one.
    pub fn step(&self) -> Option<&str> {
        self.0.step.as_deref()
    }

    /// Returns the host's name, if it happened on a known one.
    pub fn host(&self) -> Option<&str> {
        self.0.host.as_deref()
    }

    /// Returns the argument vector that was tried.
    pub fn command(&self) -> Option<&[String]> {
        self.0.command.as_deref()
    }

    /// Returns the kept end of the output.
    pub fn output_tail(&self) -> Option<&str> {
        self.0.tail.as_deref()
    }

    /// Returns the places of a file that are wrong.
    pub fn problems(&self) -> &[Problem] {
        &self.0.problems
    }

    /// Returns the hints, first the most useful.
    pub fn hints(&self) -> &[String] {
        &self.0.hints
    }

    /// Returns the causes below this error, outermost first; without one whose words the message ends with.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        for text in self.sources().map(ToString::to_string) {
            if causes.last() != Some(&text) && !self.0.message.ends_with(&text) {
                causes.push(text);
            }
        }
        causes
    }

    /// Returns whether it was caused by a connection that nobody accepted: no program listens there.
    pub fn is_refusal(&self) -> bool {
        let refused = std::io::ErrorKind::ConnectionRefused;
        self.sources()
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .any(|cause| cause.kind() == refused)
    }

    /// Returns what is below this error, outermost first.
    fn sources(&self) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
        std::iter::successors(std::error::Error::source(self), |cause| cause.source())
    }

    /// Returns the whole report, several lines, for a terminal or a log.
    pub fn report(&self) -> String {
        use fmt::Write as _;
        let mut out = format!("error: {self}");
        // Writing to a String cannot fail.
        if let Some(step) = self.step() {
            let _ = write!(out, "\n  step:    {step}");
        }
        if let Some(host) = self.host() {
            let _ = write!(out, "\n  host:    {host}");
        }
        if let Some(command) = self.command() {
            let _ = write!(out, "\n  command: {}", crate::host::quote::display(command));
        }
        for cause in self.causes() {
            let _ = write!(out, "\n  because: {cause}");
        }
        if let Some(tail) = self.output_tail() {
            let _ = write!(out, "\n  output:");
            for line in tail.lines() {
                let _ = write!(out, "\n    | {line}");
            }
        }
        for problem in self.problems() {
            if self.problems().len() > 1 {
                let _ = write!(out, "\n\n{problem}");
            }
            let _ = write!(out, "\n{}", problem.excerpt);
            if let Some(help) = &problem.help {
                let _ = write!(out, "\n  = {help}");
            }
        }
        for hint in self.hints() {
            let _ = write!(out, "\n  hint:    {hint}");
        }
        out
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:?}] {}", self.0.kind, self.report())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

impl From<std::io::Error> for Error {
    /// A local file that could not be used; `fs-err` puts the path into the message.
    fn from(error: std::io::Error) -> Self {
        Error::new(Kind::Io, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_exit_code_of_the_design() {
        let table = [
            (Kind::Failed, 1),
            (Kind::Usage, 2),
            (Kind::Recipe, 2),
            (Kind::HostCannot, 3),
            (Kind::Untrusted, 4),
            (Kind::Network, 5),
            (Kind::Unreachable, 6),
            (Kind::NotReady, 6),
            (Kind::Busy, 7),
            (Kind::Interrupted, 130),
        ];
        for (kind, code) in table {
            assert_eq!(kind.exit_code(), code, "{kind:?}");
        }
    }

    #[test]
    fn the_report_names_step_host_command_output_and_hint() {
        let error = Error::failed("VBoxManage failed")
            .on_host("l1")
            .in_step("l2/define")
            .with_command(["VBoxManage", "modifyvm", "a b"])
            .tail(b"one\ntwo\x1b[31m\n")
            .hint("nestlab logs l2");
        let report = error.report();
        for part in ["l2/define", "l1", "VBoxManage modifyvm 'a b'", "| two", "nestlab logs l2"] {
            assert!(report.contains(part), "{part} is missing in:\n{report}");
        }
        assert!(!report.contains('\x1b'), "a guest's escape sequence reached the report");
    }

    #[test]
    fn the_innermost_host_is_kept() {
        let error = Error::failed("x").on_host("l2").on_host("l1");
        assert_eq!(error.host(), Some("l2"));
    }
}
