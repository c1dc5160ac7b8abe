//! A command as data: an argument vector, never a shell string.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::error::Error;

/// What a command reads on standard input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Stdin {
    /// Nothing.
    #[default]
    Empty,
    /// These bytes, then the end.
    Bytes(Vec<u8>),
}

/// A command to run on a [`Host`](super::Host).
///
/// Built with [`Command::new`] and the methods that each change one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    stdin: Stdin,
    silence: Option<Duration>,
    privileged: bool,
}

impl Command {
    /// Returns a command that runs `program` without arguments, in the `C.UTF-8` locale.
    pub fn new(program: impl Into<String>) -> Self {
        Command {
            argv: vec![program.into()],
            env: BTreeMap::from([("LC_ALL".to_owned(), "C.UTF-8".to_owned())]),
            stdin: Stdin::Empty,
            silence: None,
            privileged: false,
        }
    }

    /// Returns a command from a whole argument vector, which is not empty.
    pub fn from_argv<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        let mut argv = argv.into_iter().map(Into::into);
        let program: String = argv.next().expect("an argument vector names a program");
        Command::new(program).args(argv)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.argv.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Gives `bytes` on standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Stdin::Bytes(bytes.into());
        self
    }

    /// Ends the command, as failed, when it has written nothing for `limit`. Without it a command
    /// may be silent for as long as it likes.
    #[must_use]
    pub fn silence(mut self, limit: Duration) -> Self {
        self.silence = Some(limit);
        self
    }

    /// Runs as root: as it is where the host's user is root, else through `sudo -n`.
    #[must_use]
    pub fn privileged(mut self) -> Self {
        self.privileged = true;
        self
    }

    /// Returns the argument vector, without `sudo`.
    pub fn argv(&self) -> &[String] {
        &self.argv
    }

    /// Returns the argument vector as the host runs it, with `sudo -n env …` in front where the
    /// command is privileged and the host's user is not root (sudo drops the environment).
    pub fn argv_on(&self, host_is_root: bool) -> Vec<String> {
        if !self.privileged || host_is_root {
            return self.argv.clone();
        }
        // env would take a program with an equals sign in its name for a variable.
        let shell: &[&str] =
            if self.argv[0].contains('=') { &["sh", "-c", r#"exec "$@""#, "sh"] } else { &[] };
        ["sudo", "-n", "--", "env"]
            .into_iter()
            .map(str::to_owned)
            .chain(self.env.iter().map(|(name, value)| format!("{name}={value}")))
            .chain(shell.iter().map(|&arg| arg.to_owned()))
            .chain(self.argv.iter().cloned())
            .collect()
    }

    /// Returns whether it runs as root.
    pub fn is_privileged(&self) -> bool {
        self.privileged
    }

    /// Returns the environment variables that the command adds.
    pub fn envs(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    /// Returns what it reads.
    pub fn input(&self) -> &[u8] {
        match &self.stdin {
            Stdin::Empty => &[],
            Stdin::Bytes(bytes) => bytes,
        }
    }

    /// Returns how long it may be silent.
    pub fn silence_limit(&self) -> Option<Duration> {
        self.silence
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::quote::display(&self.argv))
    }
}

/// Returns the error that says that `command` was ended because it wrote nothing for `limit`.
pub(super) fn silent(command: &Command, limit: Duration) -> Error {
    let seconds = limit.as_secs_f64();
    Error::failed(format!("{} wrote nothing for {seconds:.0} s and was ended", command.argv()[0]))
        .with_command(command.argv().iter().cloned())
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it; its name without `SIG`, such as `KILL`.
    Signal(String),
}

impl Exit {
    /// Returns whether it exited with code 0.
    pub fn success(&self) -> bool {
        *self == Exit::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(name) => write!(f, "signal {name}"),
        }
    }
}

/// A finished command's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Returns standard output as text, bad UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns standard error as text, bad UTF-8 replaced.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Returns the error that says that `command` ended like this.
    pub fn error(&self, command: &Command) -> Error {
        let program = command.argv()[0].as_str();
        let output = if self.stderr.iter().all(u8::is_ascii_whitespace) {
            &self.stdout
        } else {
            &self.stderr
        };
        Error::failed(format!("{program} ended with {}", self.exit))
            .with_command(command.argv().iter().cloned())
            .tail(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_privileged_command_keeps_its_environment_through_sudo() {
        let command = Command::new("apt-get")
            .arg("update")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .privileged();
        assert_eq!(command.argv_on(true), ["apt-get", "update"]);
        assert_eq!(
            command.argv_on(false),
            [
                "sudo",
                "-n",
                "--",
                "env",
                "DEBIAN_FRONTEND=noninteractive",
                "LC_ALL=C.UTF-8",
                "apt-get",
                "update"
            ]
        );
    }
}
