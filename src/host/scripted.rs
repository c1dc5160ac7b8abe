//! A host of scripted answers, for tests of what is hard to provoke for real.
//!
//! A command that was not scripted fails the test, and so does a scripted one that was never run:
//! ```ignore
//! let host = Scripted::new("l1")
//!     .expect(["VBoxManage", "--version"]).prints("7.2.22r175245\n")
//!     .expect(["VBoxManage", "startvm", "l2"]).fails(1, "VBoxManage: error: … (VERR_X)\n")
//!     .always(["id", "-u"]).prints("0\n");
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};

use super::{Command, Exit, Host, OnOutput, StdStream, Stream, StreamAddress};
use crate::error::{Error, Kind, Result};
use crate::event::EventSink;

/// A host that answers as scripted. Commands of [`Scripted::expect`] must come in their order and all
/// of them; those of [`Scripted::always`] may come at any time and any number of times.
#[derive(Debug)]
pub(crate) struct Scripted {
    name: String,
    root: bool,
    state: Mutex<ScriptedState>,
}

#[derive(Debug, Default)]
struct ScriptedState {
    expected: std::collections::VecDeque<Exchange>,
    always: Vec<Exchange>,
    seen: Vec<Command>,
    files: BTreeMap<Utf8PathBuf, Vec<u8>>,
    broken: bool,
}

#[derive(Debug)]
struct Exchange {
    asked: ScriptedCall,
    reply: Reply,
}

#[derive(Debug)]
enum ScriptedCall {
    Exactly(Vec<String>),
    Containing(Vec<String>),
}

impl ScriptedCall {
    /// Returns whether `argv` is what was asked for.
    fn matches(&self, argv: &[String]) -> bool {
        match self {
            ScriptedCall::Exactly(wanted) => wanted == argv,
            ScriptedCall::Containing(parts) => {
                let mut rest = argv.iter();
                parts.iter().all(|part| rest.any(|arg| arg == part))
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Reply {
    Output { exit: Exit, stdout: Vec<u8>, stderr: Vec<u8> },
    Lost(Kind, String),
}

/// A scripted command that still needs its answer.
#[must_use = "an expectation without an answer is not part of the script"]
pub(crate) struct Expectation {
    host: Scripted,
    asked: ScriptedCall,
    always: bool,
}

impl Scripted {
    /// Returns a host called `name` whose user is root and that expects nothing.
    pub(crate) fn new(name: &str) -> Self {
        Scripted { name: name.to_owned(), root: true, state: Mutex::default() }
    }

    /// Makes the host's user an ordinary one.
    pub(crate) fn unprivileged(mut self) -> Self {
        self.root = false;
        self
    }

    /// Lets [`Host::get`] find `bytes` at `path`.
    pub(crate) fn with_file(self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.state().files.insert(path.into(), bytes.into());
        self
    }

    /// Expects exactly this argument vector (without `sudo`) as the next command.
    pub(crate) fn expect<S: Into<String>>(self, argv: impl IntoIterator<Item = S>) -> Expectation {
        let asked = ScriptedCall::Exactly(argv.into_iter().map(Into::into).collect());
        Expectation { host: self, asked, always: false }
    }

    /// Expects a command with these arguments in this order, others between them, as the next one.
    pub(crate) fn expect_with<S: Into<String>>(
        self,
        parts: impl IntoIterator<Item = S>,
    ) -> Expectation {
        let asked = ScriptedCall::Containing(parts.into_iter().map(Into::into).collect());
        Expectation { host: self, asked, always: false }
    }

    /// Answers exactly this argument vector whenever it comes.
    pub(crate) fn always<S: Into<String>>(self, argv: impl IntoIterator<Item = S>) -> Expectation {
        let asked = ScriptedCall::Exactly(argv.into_iter().map(Into::into).collect());
        Expectation { host: self, asked, always: true }
    }

    /// Returns the commands that were run so far.
    pub(crate) fn seen(&self) -> Vec<Command> {
        self.state().seen.clone()
    }

    /// Returns what [`Host::put`] wrote to `path`, or what the script put there.
    pub(crate) fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.state().files.get(Utf8Path::new(path)).cloned()
    }

    fn state(&self) -> MutexGuard<'_, ScriptedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, command: &Command) -> Reply {
        let mut state = self.state();
        state.seen.push(command.clone());
        if let Some(known) = state.always.iter().find(|known| known.asked.matches(command.argv())) {
            return known.reply.clone();
        }
        let next = state.expected.front().map(|next| format!("{:?}", next.asked));
        match state.expected.pop_front_if(|next| next.asked.matches(command.argv())) {
            Some(exchange) => exchange.reply,
            None => {
                state.broken = true;
                drop(state);
                panic!(
                    "{}: unexpected command\n  came:     {:?}\n  expected: {}",
                    self.name,
                    command.argv(),
                    next.unwrap_or_else(|| "nothing more".to_owned())
                )
            }
        }
    }
}

impl Expectation {
    /// Answers with exit code 0 and this standard output.
    pub(crate) fn prints(self, stdout: impl Into<Vec<u8>>) -> Scripted {
        self.answers(0, stdout, "")
    }

    /// Answers with exit code `code` and this standard error.
    pub(crate) fn fails(self, code: i32, stderr: impl Into<Vec<u8>>) -> Scripted {
        self.answers(code, "", stderr)
    }

    /// Answers with exit code `code` and this output.
    pub(crate) fn answers(
        self,
        code: i32,
        stdout: impl Into<Vec<u8>>,
        stderr: impl Into<Vec<u8>>,
    ) -> Scripted {
        self.replies(Reply::Output {
            exit: Exit::Code(code),
            stdout: stdout.into(),
            stderr: stderr.into(),
        })
    }

    /// Answers as a host that cannot start the program.
    pub(crate) fn cannot_be_found(self) -> Scripted {
        self.replies(Reply::Lost(Kind::Failed, "no such program".to_owned()))
    }

    /// Answers as a host whose connection drops while the command runs.
    pub(crate) fn loses_the_connection(self) -> Scripted {
        self.replies(Reply::Lost(Kind::Unreachable, "the connection was closed".to_owned()))
    }

    fn replies(self, reply: Reply) -> Scripted {
        let exchange = Exchange { asked: self.asked, reply };
        {
            let mut state = self.host.state();
            if self.always {
                state.always.push(exchange);
            } else {
                state.expected.push_back(exchange);
            }
        }
        self.host
    }
}

#[async_trait]
impl Host for Scripted {
    fn name(&self) -> &str {
        &self.name
    }

    async fn run_streaming(&self, command: &Command, on_output: OnOutput<'_>) -> Result<Exit> {
        match self.answer(command) {
            Reply::Output { exit, stdout, stderr } => {
                on_output(StdStream::Out, &stdout);
                on_output(StdStream::Err, &stderr);
                Ok(exit)
            }
            Reply::Lost(kind, message) => Err(Error::new(kind, message)
                .on_host(&self.name)
                .with_command(command.argv().iter().cloned())),
        }
    }

    async fn put(
        &self,
        from: &Utf8Path,
        to: &Utf8Path,
        _mode: u32,
        _feed: &EventSink,
    ) -> Result<()> {
        let bytes = fs_err::read(from)?;
        self.state().files.insert(to.to_owned(), bytes);
        Ok(())
    }

    async fn get(&self, from: &Utf8Path, to: &Utf8Path, _feed: &EventSink) -> Result<()> {
        let bytes = self.state().files.get(from).cloned();
        let bytes = bytes.ok_or_else(|| Error::failed(format!("{from}: no such file")))?;
        Ok(fs_err::write(to, bytes)?)
    }

    async fn open_stream(&self, address: &StreamAddress) -> Result<Box<dyn Stream>> {
        Err(Error::new(Kind::Unreachable, format!("{address}: connection refused")))
    }

    fn is_root(&self) -> bool {
        self.root
    }
}

impl Drop for Scripted {
    /// Fails the test if the script was not played to its end. A panic for an unexpected command may
    /// have been caught by a task; it counts here again.
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if std::thread::panicking() {
            return;
        }
        assert!(!state.broken, "{}: an unexpected command was run", self.name);
        assert!(
            state.expected.is_empty(),
            "{}: never run: {:?}",
            self.name,
            state.expected.iter().map(|exchange| &exchange.asked).collect::<Vec<_>>()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_scripted_host_answers_in_order_and_remembers_what_ran() {
        let host = Scripted::new("l1")
            .always(["id", "-u"])
            .prints("0\n")
            .expect(["true"])
            .prints("")
            .expect_with(["sh", "job-7"])
            .fails(3, "no\n");
        let host: &dyn Host = &host;
        host.check(&Command::new("true")).await.expect("scripted");
        assert_eq!(host.check(&Command::new("id").arg("-u")).await.expect("always").text(), "0\n");
        let output = host.run(&Command::new("sh").args(["-c", "x", "job-7"])).await.expect("runs");
        assert_eq!((output.exit, output.stderr), (Exit::Code(3), b"no\n".to_vec()));
    }

    #[tokio::test]
    async fn files_and_failures_to_run_are_scripted_too() {
        let host = Scripted::new("l1")
            .unprivileged()
            .with_file("/etc/hostname", "l1\n")
            .expect(["dkms", "status"])
            .cannot_be_found()
            .expect(["reboot"])
            .loses_the_connection();
        assert!(!host.is_root());
        assert_eq!(host.file("/etc/hostname").as_deref(), Some(b"l1\n".as_slice()));
        let on: &dyn Host = &host;
        let kind = async |argv: &[&str]| {
            on.run(&Command::from_argv(argv.iter().copied())).await.expect_err("fails").kind()
        };
        assert_eq!(kind(&["dkms", "status"]).await, Kind::Failed);
        assert_eq!(kind(&["reboot"]).await, Kind::Unreachable);
        assert_eq!(host.seen().len(), 2);
    }

    #[tokio::test]
    #[should_panic(expected = "unexpected command")]
    async fn a_command_that_was_not_scripted_fails_the_test() {
        let host = Scripted::new("l1");
        let host: &dyn Host = &host;
        let _ = host.run(&Command::new("rm").arg("-rf")).await;
    }

    #[test]
    #[should_panic(expected = "never run")]
    fn a_scripted_command_that_never_came_fails_the_test() {
        drop(Scripted::new("l1").expect(["true"]).prints(""));
    }
}
