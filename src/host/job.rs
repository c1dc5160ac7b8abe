//! Long commands that outlive the connection, and nestlab itself.
//!
//! A job runs detached on its host, with its output and its exit code in files of a folder of its own.
//! Whoever runs a job of the same id attaches to the one that runs, or gets the result of the one that
//! has finished. The folder goes when the result has been collected.

mod script;

use std::sync::Mutex;
use std::time::Duration;

use camino::Utf8PathBuf;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Command, Exit, Host, Output, StdStream, keep_tail, program};
use crate::error::{Error, Kind, Result};

/// How long a host may be out of reach before a job on it is given up, if the job's own limit of silence
/// is not longer.
const OUT_OF_REACH: Duration = Duration::from_secs(120);

/// The same where nobody listens any more: a server that is being restarted is back sooner, however slow its
/// machine; else the machine is off, and the job with it.
const NOBODY_LISTENS: Duration = Duration::from_secs(30);

/// The pause before a host that is out of reach is tried again; a host has a patience of its own besides.
const TRY_AGAIN: Duration = Duration::from_millis(500);

/// The longest line that is passed on in one piece.
const LONGEST_LINE: usize = 16 << 10;

/// A long command.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// What it is called on its host, the same in every run: letters, digits, `-`, `_` and `.`.
    pub id: String,
    /// The command. Its limit of silence is one of the job's output: a job that says nothing for so long
    /// has stalled, and is ended.
    pub command: Command,
    /// The folder on the host that holds jobs; made if it is not there.
    pub directory: Utf8PathBuf,
}

/// Receives the lines that a job writes.
pub type OnLine<'a> = &'a mut (dyn FnMut(&str) + Send);

/// Runs `spec` on `host`, or attaches to it if it runs already, passes on the lines of its output (all of
/// them, from the first on), and returns how it ended. A connection that drops is established again.
///
/// A cancelled or dropped run leaves the job going; the next run takes it up again. One that was lost before
/// that is started anew.
///
/// # Errors
/// [`Kind::Failed`] if the job could not be started, has stalled, or is lost meanwhile: its process died
/// without a result, or the host was rebooted under it. [`Kind::Unreachable`] if the host stays out of reach,
/// [`Kind::Interrupted`] if `cancel` fires.
pub async fn run(
    host: &dyn Host,
    spec: &JobSpec,
    on_line: OnLine<'_>,
    cancel: &CancellationToken,
) -> Result<Exit> {
    let job = Job::new(host, spec)?;
    let done = tokio::select! {
        done = job.run(on_line) => done,
        () = cancel.cancelled() => Err(Error::new(Kind::Interrupted, "interrupted").hint(format!(
            "the command goes on on {}; the next run takes it up again",
            host.name()
        ))),
    };
    done.map_err(|error| {
        error.on_host(host.name()).with_command(spec.command.argv().iter().cloned())
    })
}

/// Ends the job on `host`, if it runs, and removes what there is of it.
///
/// # Errors
/// Those of the host.
pub async fn stop(host: &dyn Host, spec: &JobSpec) -> Result<()> {
    Job::new(host, spec)?.stop().await
}

/// A job on its host.
struct Job<'a> {
    host: &'a dyn Host,
    spec: &'a JobSpec,
    folder: Utf8PathBuf,
}

/// What has become of a job.
#[derive(Debug, PartialEq, Eq)]
enum JobOutcome {
    Exited(Exit),
    Missing,
    Lost(&'static str),
    Stalled(Duration),
}

impl<'a> Job<'a> {
    fn new(host: &'a dyn Host, spec: &'a JobSpec) -> Result<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if spec.id.is_empty() || spec.id.starts_with('.') || !spec.id.bytes().all(plain) {
            return Err(Error::internal(format!("`{}` cannot be a job's id", spec.id)));
        }
        Ok(Job { host, spec, folder: spec.directory.join(&spec.id) })
    }

    async fn run(&self, on_line: OnLine<'_>) -> Result<Exit> {
        let mut progress = JobProgress::new(on_line);
        let patience = self.spec.command.silence_limit().unwrap_or_default().max(OUT_OF_REACH);
        let mut out_of_reach: Option<Instant> = None;
        loop {
            match self.attempt(&mut progress).await {
                Ok(Some(fate)) => return self.judge(fate, &progress.tail),
                Ok(None) => progress.start_anew(),
                Err(error) if error.kind() == Kind::Unreachable => {
                    if std::mem::take(&mut progress.in_reach) {
                        out_of_reach = None;
                    }
                    let limit = if error.is_refusal() { NOBODY_LISTENS } else { patience };
                    if out_of_reach.get_or_insert_with(Instant::now).elapsed() > limit {
                        return Err(error.hint("the command may go on there; run it again to see"));
                    }
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts the job, follows it and removes it; goes on from where an attempt before was cut short.
    /// `None`: what was there was lost before, and is gone now.
    async fn attempt(&self, progress: &mut JobProgress<'_>) -> Result<Option<JobOutcome>> {
        if !progress.started {
            progress.attached = self.start().await?;
            progress.started = true;
        }
        if progress.fate.is_none() {
            progress.fate = Some(self.follow(progress).await?);
            progress.end();
        }
        // A result that stays would be taken for that of the next run.
        self.stop().await?;
        let fate = progress.fate.take();
        let fate = fate.ok_or_else(|| Error::internal("a job ended without a fate"))?;
        Ok(match fate {
            JobOutcome::Lost(_) if progress.attached => None,
            fate => Some(fate),
        })
    }

    fn judge(&self, fate: JobOutcome, tail: &[u8]) -> Result<Exit> {
        let program = &self.spec.command.argv()[0];
        let failed = match fate {
            JobOutcome::Exited(exit) => return Ok(exit),
            JobOutcome::Missing => program::missing(program),
            JobOutcome::Lost(why) => Error::failed(format!("{program} was lost: {why}"))
                .hint("run it again; what it did so far may be there already"),
            JobOutcome::Stalled(limit) => Error::failed(format!(
                "{program} has stalled: it wrote nothing for {:.0} s and was ended",
                limit.as_secs_f64()
            )),
        };
        Err(failed.tail(tail))
    }

    /// Starts it, and returns whether it was there already.
    async fn start(&self) -> Result<bool> {
        let command = &self.spec.command;
        let envs = command.envs().iter().map(|(name, value)| format!("{name}={value}"));
        let start = self
            .script(script::START)
            .arg(script::RUN)
            .args(envs)
            .arg("--")
            .args(command.argv_on(self.host.is_root()))
            .stdin(command.input());
        Ok(self.host.check(&start).await?.text().trim() == "attached")
    }

    /// Passes on the output from where it was left, until the job is over.
    async fn follow(&self, progress: &mut JobProgress<'_>) -> Result<JobOutcome> {
        let follow = self.script(script::FOLLOW).arg(progress.offset.to_string());
        let mut said = Vec::new();
        let heard = Mutex::new(Instant::now());
        let mut on_output = |stream: StdStream, bytes: &[u8]| match stream {
            StdStream::Err => {
                progress.in_reach = true;
                keep_tail(&mut said, bytes);
            }
            StdStream::Out => {
                progress.take(bytes);
                *heard.lock().expect("nothing panics while it is held") = Instant::now();
            }
        };
        let exit = {
            let following = self.host.run_streaming(&follow, &mut on_output);
            match unless_silent(following, &heard, self.spec.command.silence_limit()).await {
                Ok(exit) => exit?,
                Err(limit) => return Ok(JobOutcome::Stalled(limit)),
            }
        };
        fate(&said).ok_or_else(|| {
            Output { exit, stdout: Vec::new(), stderr: said }
                .error(&follow)
                .context(format!("the job {} cannot be followed", self.spec.id))
        })
    }

    /// Ends it if it runs, and removes its folder.
    async fn stop(&self) -> Result<()> {
        let stop = self.script(script::STOP);
        let stop = if self.spec.command.is_privileged() { stop.privileged() } else { stop };
        self.host.check(&stop).await.map(drop)
    }

    fn script(&self, script: &str) -> Command {
        Command::new("sh").args(["-c", script, "nestlab-job", self.folder.as_str()])
    }
}

/// Returns what `work` gives, or the limit if nothing was heard for so long.
async fn unless_silent<T>(
    work: impl Future<Output = T>,
    heard: &Mutex<Instant>,
    limit: Option<Duration>,
) -> Result<T, Duration> {
    tokio::pin!(work);
    let Some(limit) = limit else { return Ok(work.await) };
    loop {
        let last = *heard.lock().expect("nothing panics while it is held");
        if last.elapsed() >= limit {
            return Err(limit);
        }
        tokio::select! {
            done = &mut work => return Ok(done),
            () = tokio::time::sleep_until(last + limit) => {}
        }
    }
}

/// Reads what [`script::FOLLOW`] says in the end.
fn fate(said: &[u8]) -> Option<JobOutcome> {
    let text = String::from_utf8_lossy(said);
    let fate = match text.lines().last()? {
        "absent" => JobOutcome::Lost("there is no trace of it"),
        "rebooted" => JobOutcome::Lost("the machine was rebooted under it"),
        "gone" => JobOutcome::Lost("its process ended without a result"),
        "exit missing" => JobOutcome::Missing,
        exit => {
            let code: i32 = exit.strip_prefix("exit ")?.parse().ok()?;
            // The shell has no other way to tell of a signal.
            let signal = code.checked_sub(128).filter(|signal| (1..=64).contains(signal));
            let signal = signal.map(|signal| Exit::Signal(program::signal_name(signal)));
            JobOutcome::Exited(signal.unwrap_or(Exit::Code(code)))
        }
    };
    Some(fate)
}

/// How far running a job has come, over all its connections.
struct JobProgress<'a> {
    on_line: OnLine<'a>,
    started: bool,
    /// Whether it was there before this run started it.
    attached: bool,
    fate: Option<JobOutcome>,
    /// Whether the host was heard since this was last set to false.
    in_reach: bool,
    /// Bytes of output that have come.
    offset: u64,
    line: Vec<u8>,
    tail: Vec<u8>,
}

impl<'a> JobProgress<'a> {
    fn new(on_line: OnLine<'a>) -> Self {
        JobProgress {
            on_line,
            started: false,
            attached: false,
            fate: None,
            in_reach: false,
            offset: 0,
            line: Vec::new(),
            tail: Vec::new(),
        }
    }

    fn start_anew(&mut self) {
        (self.started, self.attached, self.offset) = (false, false, 0);
        self.tail.clear();
    }

    fn take(&mut self, bytes: &[u8]) {
        self.offset += bytes.len() as u64;
        self.in_reach = true;
        keep_tail(&mut self.tail, bytes);
        for &byte in bytes {
            // What draws a progress bar ends its lines with a carriage return.
            if matches!(byte, b'\n' | b'\r') || self.line.len() >= LONGEST_LINE {
                self.end();
            }
            if !matches!(byte, b'\n' | b'\r') {
                self.line.push(byte);
            }
        }
    }

    /// Passes on the line that has not ended.
    fn end(&mut self) {
        if !self.line.is_empty() {
            (self.on_line)(&String::from_utf8_lossy(&self.line));
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Local;

    fn spec(directory: &tempfile::TempDir, id: &str, script: &str) -> JobSpec {
        JobSpec {
            id: id.to_owned(),
            command: Command::new("sh").args(["-c", script]),
            directory: Utf8PathBuf::from_path_buf(directory.path().join("a b/jobs")).unwrap(),
        }
    }

    /// Runs `spec` here to its end.
    async fn run_here(spec: &JobSpec) -> (Result<Exit>, Vec<String>) {
        let mut lines = Vec::new();
        let mut on_line = |line: &str| lines.push(line.to_owned());
        let exit = run(&Local::new(), spec, &mut on_line, &CancellationToken::new()).await;
        (exit, lines)
    }

    fn is_empty(spec: &JobSpec) -> bool {
        std::fs::read_dir(&spec.directory).unwrap().next().is_none()
    }

    #[tokio::test]
    async fn a_job_gives_its_lines_and_its_exit_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let script = r"printf 'one\ntwo\r\nthr'; printf 'ee\n\nlast'; exit 3";
        let spec = spec(&directory, "x-1", script);
        let (exit, lines) = run_here(&spec).await;
        assert_eq!(exit.unwrap(), Exit::Code(3));
        assert_eq!(lines, ["one", "two", "three", "last"]);
        assert!(is_empty(&spec));
    }

    #[tokio::test]
    async fn a_job_has_its_input_environment_arguments_and_the_users_umask() {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = spec(&directory, "x", "");
        let script = r#"cat; echo; echo "$ODD"; echo "$1"; umask"#;
        spec.command = Command::new("sh")
            .args(["-c", script, "sh", "$(id) 'x'"])
            .env("ODD", "a b\"c")
            .stdin("given");
        let (exit, lines) = run_here(&spec).await;
        assert!(exit.unwrap().success());
        let umask = Command::new("sh").args(["-c", "umask"]);
        let umask = (&Local::new() as &dyn Host).check(&umask).await.unwrap().text();
        assert_eq!(lines, ["given", "a b\"c", "$(id) 'x'", umask.trim()]);
    }

    #[tokio::test]
    async fn a_second_run_attaches_to_the_first_and_both_get_the_result() {
        let directory = tempfile::tempdir().unwrap();
        let gate = directory.path().join("gate");
        let script = format!(
            "echo ran >> {0}/count; echo started; until [ -e {1} ]; do sleep 0.05; done; echo end",
            directory.path().display(),
            gate.display()
        );
        let spec = spec(&directory, "x", &script);
        let cancel = CancellationToken::new();
        let mut stop_at_first = |_: &str| cancel.cancel();
        let error = run(&Local::new(), &spec, &mut stop_at_first, &cancel).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted);
        std::fs::write(&gate, "").unwrap();
        let (exit, lines) = run_here(&spec).await;
        assert!(exit.unwrap().success());
        assert_eq!(lines, ["started", "end"]);
        let count = std::fs::read_to_string(directory.path().join("count")).unwrap();
        assert_eq!(count.lines().count(), 1);
    }

    #[tokio::test]
    async fn a_killed_command_is_a_signal_and_a_missing_one_names_its_package() {
        let directory = tempfile::tempdir().unwrap();
        let (exit, _) = run_here(&spec(&directory, "x", "kill -KILL $$")).await;
        assert_eq!(exit.unwrap(), Exit::Signal("KILL".into()));
        let mut missing = spec(&directory, "x", "");
        missing.command = Command::new("/nonexistent/qemu-img");
        let error = run_here(&missing).await.0.unwrap_err();
        assert!(error.hints()[0].contains("qemu-utils"), "{error:?}");
        assert!(is_empty(&missing));
    }

    #[tokio::test]
    async fn a_job_whose_process_died_without_a_result_is_lost_and_can_be_run_again() {
        let directory = tempfile::tempdir().unwrap();
        let ran = directory.path().join("ran");
        let script =
            format!("[ -e {0} ] || {{ : > {0}; echo before; kill -KILL $PPID; }}", ran.display());
        let spec = spec(&directory, "x", &script);
        let (lost, lines) = run_here(&spec).await;
        let lost = lost.unwrap_err();
        assert!(lost.message().contains("was lost"), "{lost:?}");
        assert_eq!((lines, lost.output_tail()), (vec!["before".to_owned()], Some("before")));
        assert!(run_here(&spec).await.0.unwrap().success());
    }

    #[tokio::test]
    async fn a_job_that_was_lost_before_this_run_is_started_anew() {
        let directory = tempfile::tempdir().unwrap();
        let spec = spec(&directory, "x", "echo again");
        let folder = spec.directory.join("x");
        fs_err::create_dir_all(&folder).unwrap();
        // As a job leaves it whose machine was switched off under it.
        fs_err::write(folder.join("job"), "1 1 another-boot\n").unwrap();
        fs_err::write(folder.join("output"), "before\n").unwrap();
        let (exit, lines) = run_here(&spec).await;
        assert!(exit.unwrap().success());
        assert_eq!(lines, ["before", "again"]);
        assert!(is_empty(&spec));
    }

    #[tokio::test]
    async fn a_job_that_says_nothing_for_too_long_has_stalled_and_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = spec(&directory, "x", "echo $$; exec sleep 1000");
        // The limit counts for a job that has begun to speak: how long that takes is the machine's affair.
        let (cancel, mut pid) = (CancellationToken::new(), String::new());
        let mut stop_at_first = |line: &str| {
            pid = line.to_owned();
            cancel.cancel();
        };
        run(&Local::new(), &spec, &mut stop_at_first, &cancel).await.unwrap_err();
        spec.command = spec.command.silence(Duration::from_secs(1));
        let stalled = run_here(&spec).await.0.unwrap_err();
        assert!(stalled.message().contains("stalled"), "{stalled:?}");
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z"), "{stat}");
        assert!(is_empty(&spec));
    }

    #[tokio::test]
    async fn an_id_that_is_a_path_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for id in ["", "..", "a/b", "a b", "$(id)"] {
            let error = run_here(&spec(&directory, id, "true")).await.0.unwrap_err();
            assert_eq!(error.kind(), Kind::Internal, "{id}");
        }
    }

    #[test]
    fn what_becomes_of_a_job_is_read_from_its_last_word() {
        assert_eq!(fate(b"on\nexit 0\n"), Some(JobOutcome::Exited(Exit::Code(0))));
        assert_eq!(fate(b"exit 137"), Some(JobOutcome::Exited(Exit::Signal("KILL".into()))));
        assert_eq!(fate(b"exit 255"), Some(JobOutcome::Exited(Exit::Code(255))));
        assert!(matches!(fate(b"on\nrebooted\n"), Some(JobOutcome::Lost(_))));
        assert_eq!(fate(b"on\n"), None);
        assert_eq!(fate(b""), None);
    }
}
