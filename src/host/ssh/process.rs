//! A command on the other side: how it is started there, followed, and ended.

use std::borrow::Cow;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use super::actor::ChannelTarget;
use super::channel::{ChannelError, ChannelRequest};
use super::connection::ChannelHold;
use crate::error::{Error, Result};
use crate::host::{Command, Exit, OnOutput, StdStream, command, program, quote};

/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// The longest command line that is sent; libssh2 packs a request into one packet of 40000 bytes.
const LONGEST: usize = 32 << 10;

/// How long a login shell may take to start a command, if the command's own limit is not longer.
const LOGIN: Duration = Duration::from_secs(60);

/// Sets the environment, says under which process id the command runs, and becomes it. `$0` is a word that
/// nothing else says; it comes on both outputs, since what is written before it is a talkative login
/// shell's and not the command's. OpenSSH makes a command the leader of a process group, dropbear does not.
const START: &str = r#"while [ "$1" != -- ]; do export "$1"; shift; done; shift
command -v -- "$1" >/dev/null 2>&1 || { echo "$0 missing" >&2; exit 127; }
echo "$0 $$"; echo "$0 $$" >&2
group() { echo "$3"; }
read -r stat < /proc/$$/stat
[ "$(group ${stat##*") "})" = $$ ] || ! command -v setsid >/dev/null || exec setsid "$@"
exec "$@""#;

/// Ends a process group: asks, and kills what is left after two seconds.
///
/// No `--` before the negative number: dash and busybox do not know it there.
const END: &str = r#"kill -TERM "-$1" 2>/dev/null || exit 0
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  kill -0 "-$1" 2>/dev/null || exit 0
  sleep 0.1 2>/dev/null || sleep 1
done
kill -KILL "-$1" 2>/dev/null
exit 0"#;

/// A command made ready to be started; made once, it can be tried in a second session if the first turns
/// out to be over.
pub(super) struct PreparedCommand {
    line: String,
    word: String,
    elevated: bool,
}

impl PreparedCommand {
    /// Returns the command line that starts `command`, announced with a word made for it.
    pub(super) fn of(command: &Command, is_root: bool) -> Result<Self> {
        let argv = command.argv_on(is_root);
        let word = uuid::Uuid::new_v4().simple().to_string();
        let words = ["exec", "sh", "-c", START, &word].map(str::to_owned);
        let envs = command.envs().iter().map(|(name, value)| format!("{name}={value}"));
        let words: Vec<String> =
            words.into_iter().chain(envs).chain(["--".to_owned()]).chain(argv.clone()).collect();
        let line = quote::posix(&words);
        if line.len() > LONGEST {
            let message = format!("the command line is too long for SSH: {} bytes", line.len());
            return Err(Error::failed(message));
        }
        Ok(PreparedCommand { line, word, elevated: argv.len() != command.argv().len() })
    }

    /// Returns the channel that starts it.
    pub(super) fn goal(&self) -> ChannelTarget {
        ChannelTarget::Session(vec![ChannelRequest::Command(self.line.clone())])
    }
}

/// A started command. Dropped before it has ended, it is ended on the other side too.
pub(super) struct RemoteProcess {
    held: Option<ChannelHold>,
    out: Prologue,
    err: Prologue,
    elevated: bool,
}

impl RemoteProcess {
    /// Returns what runs in a channel that was opened for `start`.
    pub(super) fn started(held: ChannelHold, start: PreparedCommand) -> Self {
        RemoteProcess {
            held: Some(held),
            out: Prologue::new(start.word.clone()),
            err: Prologue::new(start.word),
            elevated: start.elevated,
        }
    }

    /// Gives it `input`, passes on what it writes, and returns how it ended.
    pub(super) async fn follow(
        mut self,
        command: &Command,
        input: impl AsyncRead,
        on_output: OnOutput<'_>,
    ) -> Result<Exit> {
        match self.pump(command.silence_limit(), input, on_output).await {
            Ok(_) if self.err.is_missing => {
                self.held = None;
                Err(program::missing(&command.argv()[0]))
            }
            Ok(exit) => {
                self.held = None;
                Ok(exit)
            }
            Err(RemoteStop::Silent(limit)) => {
                if let Some(held) = self.held.take() {
                    end(held, self.err.clone(), self.elevated).await;
                }
                Err(command::silent(command, limit))
            }
            Err(RemoteStop::Failed(failure)) => {
                // There is nothing left to end, or no way to reach it.
                self.held = None;
                Err(failure.into())
            }
            Err(RemoteStop::Broken(error)) => Err(error.into()),
        }
    }

    async fn pump(
        &mut self,
        limit: Option<Duration>,
        input: impl AsyncRead,
        on_output: OnOutput<'_>,
    ) -> Result<Exit, RemoteStop> {
        let held = self.held.as_mut().expect("held until the process is done with");
        let (mut out, mut to) = held.main.split();
        let feeding = feed(&mut to, input);
        tokio::pin!(feeding);
        let (mut fed, mut out_ended) = (false, false);
        let (mut out_buffer, mut err_buffer) = (vec![0; CHUNK], vec![0; CHUNK]);
        // Before the command itself runs, it is the login shell that is silent.
        let silence = tokio::time::sleep(limit.map_or(Duration::MAX, |limit| limit.max(LOGIN)));
        tokio::pin!(silence);
        loop {
            let all_read = out_ended && held.error.is_none();
            let (stream, read) = tokio::select! {
                read = out.read(&mut out_buffer), if !out_ended => (StdStream::Out, or_end(read)?),
                read = read_some(&mut held.error, &mut err_buffer) => (StdStream::Err, read?),
                done = &mut feeding, if !fed => {
                    done?;
                    fed = true;
                    continue;
                }
                // A program may close its outputs and go on reading.
                exit = held.ending.exit(), if all_read => return Ok(exit?),
                () = &mut silence, if limit.is_some() => {
                    let limit = limit.unwrap_or_default();
                    return Err(RemoteStop::Silent(if self.err.is_over { limit } else { limit.max(LOGIN) }));
                }
            };
            let visible = match stream {
                StdStream::Out => self.out.strip(&out_buffer[..read]),
                StdStream::Err => self.err.strip(&err_buffer[..read]),
            };
            if !visible.is_empty() {
                on_output(stream, &visible);
            }
            match stream {
                StdStream::Out => out_ended = read == 0,
                StdStream::Err if read == 0 => held.error = None,
                StdStream::Err => {}
            }
            if let Some(limit) = limit.filter(|_| self.err.is_over) {
                silence.as_mut().reset(tokio::time::Instant::now() + limit);
            }
        }
    }
}

impl Drop for RemoteProcess {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        // Without a runtime nestlab itself is ending, and closing the channel has to do.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(end(held, self.err.clone(), self.elevated));
        }
    }
}

/// Ends the command behind `held`, and all of its process group.
async fn end(mut held: ChannelHold, mut prologue: Prologue, elevated: bool) {
    let mut buffer = vec![0; CHUNK];
    while let (None, Some(error)) = (prologue.pid, &mut held.error) {
        match error.read(&mut buffer).await {
            Ok(read) if read > 0 => drop(prologue.strip(&buffer[..read])),
            _ => held.error = None,
        }
    }
    let connection = held.ending.connection().clone();
    drop(held);
    let Some(pid) = prologue.pid else { return };
    let mut words = if elevated { vec!["sudo", "-n", "--"] } else { Vec::new() };
    let pid = pid.to_string();
    words.extend(["sh", "-c", END, "sh", &pid]);
    let goal = ChannelTarget::Session(vec![ChannelRequest::Command(quote::posix(&words))]);
    if let Ok(mut held) = connection.open(goal, None).await {
        // That it could not be ended is known only if the session is lost, and then so is the command.
        let _ = held.ending.exit().await;
    }
}

/// Why a command is no longer followed.
enum RemoteStop {
    Silent(Duration),
    Failed(ChannelError),
    Broken(std::io::Error),
}

impl From<ChannelError> for RemoteStop {
    fn from(failure: ChannelError) -> Self {
        RemoteStop::Failed(failure)
    }
}

impl From<std::io::Error> for RemoteStop {
    fn from(error: std::io::Error) -> Self {
        RemoteStop::Broken(error)
    }
}

/// Reads from `stream`, or waits forever once it has ended.
async fn read_some(stream: &mut Option<UnixStream>, buffer: &mut [u8]) -> std::io::Result<usize> {
    match stream {
        Some(stream) => or_end(stream.read(buffer).await),
        None => std::future::pending().await,
    }
}

/// Returns what was read. A reset means that the session's thread let go while it had more of our input to
/// send: an end like any other, and how the channel ended tells why.
fn or_end(read: std::io::Result<usize>) -> std::io::Result<usize> {
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(0),
        read => read,
    }
}

/// Passes on all of `input` and the end. A program that does not read all of it is free to do so.
async fn feed(to: &mut (impl AsyncWrite + Unpin), input: impl AsyncRead) -> std::io::Result<()> {
    tokio::pin!(input);
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = input.read(&mut buffer).await?;
        let written = match read {
            0 => to.shutdown().await,
            _ => to.write_all(&buffer[..read]).await,
        };
        // Whatever went wrong, the other side takes no more; how the command ended tells why.
        if read == 0 || written.is_err() {
            return Ok(());
        }
    }
}

/// What comes on an output ahead of a command's own words: whatever the login shell says, and the
/// announcement of the command's process id, or that there is no such program.
#[derive(Clone)]
struct Prologue {
    word: String,
    held: Vec<u8>,
    is_over: bool,
    is_missing: bool,
    pid: Option<u32>,
}

impl Prologue {
    fn new(word: String) -> Self {
        Prologue { word, held: Vec::new(), is_over: false, is_missing: false, pid: None }
    }

    /// Returns what of `bytes` is the command's; no bytes mean the end. If no announcement came, then
    /// what the login shell said is why, and is returned in the end.
    fn strip<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if self.is_over {
            return bytes.into();
        }
        self.held.extend_from_slice(bytes);
        let word = self.word.as_bytes();
        let found = self.held.windows(word.len()).position(|window| window == word);
        let found = found.and_then(|start| {
            let length = self.held[start..].iter().position(|&b| b == b'\n')?;
            Some((start + word.len(), start + length))
        });
        if let Some((start, end)) = found {
            let said = String::from_utf8_lossy(&self.held[start..end]);
            self.is_missing = said.trim() == "missing";
            self.pid = said.trim().parse().ok();
            self.held.drain(..=end);
            self.is_over = true;
        }
        self.is_over |= bytes.is_empty();
        // However much a login shell says, the announcement is at the end.
        self.held.drain(..self.held.len().saturating_sub(CHUNK) * usize::from(!self.is_over));
        if self.is_over { std::mem::take(&mut self.held).into() } else { Cow::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_login_shell_says_before_the_announcement_is_not_the_commands() {
        let mut prologue = Prologue::new("W0RD".to_owned());
        assert!(prologue.strip(b"motd\nW0").is_empty());
        assert!(prologue.strip(b"RD 12").is_empty());
        assert_eq!(prologue.strip(b"34\nerror: ").as_ref(), b"error: ");
        assert_eq!(prologue.pid, Some(1234));
        assert_eq!(prologue.strip(b"W0RD 9\n").as_ref(), b"W0RD 9\n");
    }

    #[test]
    fn a_flood_of_greetings_is_bounded_and_the_announcement_found_all_the_same() {
        let mut prologue = Prologue::new("W0RD".to_owned());
        for _ in 0..100 {
            assert!(prologue.strip(&[b'x'; 4096]).is_empty());
            assert!(prologue.held.len() <= CHUNK);
        }
        assert_eq!(prologue.strip(b"W0RD 7\nout").as_ref(), b"out");
    }

    #[test]
    fn what_comes_without_an_announcement_tells_why_and_is_not_lost() {
        let mut prologue = Prologue::new("W0RD".to_owned());
        assert!(prologue.strip(b"no shell for you").is_empty());
        assert_eq!(prologue.strip(b"").as_ref(), b"no shell for you");
        assert_eq!(prologue.pid, None);
    }
}
