//! Running apt and dpkg: their lines become progress, and what they complain of is kept.

use std::collections::VecDeque;

use sha2::{Digest as _, Sha256};

use super::status::{self, AptStatus};
use super::trouble::{AptError, AptErrorKind};
use crate::error::{Error, Result};
use crate::event::EventSink;
use crate::guest::ExecContext;
use crate::host::job::{self, JobSpec};
use crate::host::{Command, Exit};

/// How many lines are kept for the error report; it shows the last of them.
const KEPT: usize = 60;

/// What a run of apt or dpkg said.
#[derive(Debug)]
pub(super) struct AptTranscript {
    command: Command,
    /// How it ended.
    pub(super) exit: Exit,
    troubles: Vec<AptError>,
    tail: VecDeque<String>,
}

impl AptTranscript {
    /// Returns what went wrong, the cause before its consequences.
    pub(super) fn trouble(&self) -> Option<&AptError> {
        AptError::first(&self.troubles)
    }

    /// Returns the error that tells it all.
    pub(super) fn error(&self, exec: ExecContext<'_>) -> Error {
        let program = self.command.argv()[0].as_str();
        let error = match self.trouble() {
            Some(trouble) => trouble.error(),
            None => Error::failed(format!("{program} ended with {}", self.exit)),
        };
        let tail = self.tail.iter().map(|line| format!("{line}\n")).collect::<String>();
        error
            .on_host(exec.host.name())
            .with_command(self.command.argv().iter().cloned())
            .tail(tail.as_bytes())
    }
}

/// Where jobs lie in a guest that is entered as root.
const JOBS: &str = "/var/lib/nestlab/jobs";

/// The same for another user: below the home directory, where commands begin.
const JOBS_OF_USER: &str = ".local/state/nestlab/jobs";

/// Runs `command` as a job, so that neither a lost connection nor the end of nestlab ends it, and returns
/// what it said. The same command attaches to the one that still runs.
pub(super) async fn detached(exec: ExecContext<'_>, command: &Command) -> Result<AptTranscript> {
    exec.proceed()?;
    let spec = job_of(exec, command);
    let mut reader = Reader::new(exec.events);
    let exit = job::run(exec.host, &spec, &mut |line| reader.line(line), exec.cancel).await?;
    Ok(reader.end(command.clone(), exit))
}

/// Ends `command` if an earlier run left it running, and forgets its result if nobody waited for it: the next
/// run of it begins anew.
pub(super) async fn discard(exec: ExecContext<'_>, command: &Command) -> Result<()> {
    exec.proceed()?;
    job::stop(exec.host, &job_of(exec, command)).await
}

fn job_of(exec: ExecContext<'_>, command: &Command) -> JobSpec {
    JobSpec {
        id: job_id(command),
        command: command.clone(),
        directory: if exec.host.is_root() { JOBS } else { JOBS_OF_USER }.into(),
    }
}

/// Returns the id of the job that runs `command`: the same for the same arguments, and for these alone, since
/// a job is taken up again by its id.
fn job_id(command: &Command) -> String {
    let words = Sha256::digest(command.argv().join("\0"));
    format!("{}-{}", command.argv()[0], hex::encode(&words[..8]))
}

/// Reads what apt and dpkg write, line by line as it comes, and tells how far they are.
#[derive(Debug)]
pub struct Reader<'a> {
    events: &'a EventSink,
    total: Option<u64>,
    /// How much of the total is done.
    done: u64,
    troubles: Vec<AptError>,
    tail: VecDeque<String>,
}

impl<'a> Reader<'a> {
    /// Returns a reader that tells `events`.
    pub fn new(events: &'a EventSink) -> Self {
        Reader { events, total: None, done: 0, troubles: Vec::new(), tail: VecDeque::new() }
    }

    /// Takes a line. dpkg separates the states of its progress with carriage returns.
    pub fn line(&mut self, line: &str) {
        for part in line.split('\r').filter(|part| !part.trim().is_empty()) {
            match AptStatus::parse(part) {
                Some(status) => self.status(status),
                None => self.text(part),
            }
        }
    }

    fn status(&mut self, status: AptStatus) {
        match status {
            AptStatus::Download { what, percent } => match files(&what) {
                Some((at, of)) => self.events.item(at.saturating_sub(1).min(of), of, "downloading"),
                None => self.events.doing(format!("downloading, {percent:.0} %")),
            },
            AptStatus::Package { what, percent, .. } => {
                // apt unpacks many packages before it configures the first, and its percentage counts
                // both: packages that are wholly installed would stand at none for most of the time.
                let total = self.packages();
                let done = (percent.clamp(0.0, 100.0) / 100.0 * total as f64) as u64;
                self.done = done.min(total);
                self.events.item(self.done, total, crate::event::printable(what_short(&what)));
            }
            AptStatus::Failure { package, message } => {
                let line = format!("{package}: {message}");
                self.text(&line);
                self.trouble(AptError { cause: AptErrorKind::Package, line });
            }
        }
    }

    /// Returns how many packages there are to do, or 100 for a percentage as long as it is not known.
    fn packages(&self) -> u64 {
        self.total.unwrap_or(100)
    }

    fn text(&mut self, line: &str) {
        self.total = status::summary(line).or(self.total);
        if let Some(module) = built_by_dkms(line) {
            // Between this line and DKMS's next one lie minutes.
            let what = format!("building {} with DKMS", crate::event::printable(module));
            self.events.item(self.done, self.packages(), what);
        }
        if let Some(trouble) = AptError::of(line) {
            self.trouble(trouble);
        }
        if self.tail.len() == KEPT {
            self.tail.pop_front();
        }
        self.tail.push_back(line.to_owned());
        self.events.line(line);
    }

    /// Keeps the first trouble of each cause; no more is told of.
    fn trouble(&mut self, trouble: AptError) {
        if self.troubles.iter().all(|known| known.cause != trouble.cause) {
            self.troubles.push(trouble);
        }
    }

    fn end(self, command: Command, exit: Exit) -> AptTranscript {
        AptTranscript { command, exit, troubles: self.troubles, tail: self.tail }
    }
}

/// Returns N and M of `Retrieving file N of M`.
fn files(what: &str) -> Option<(u64, u64)> {
    let (at, of) = what.strip_prefix("Retrieving file ")?.split_once(" of ")?;
    Some((at.parse().ok()?, of.split(' ').next()?.parse().ok()?))
}

/// Returns dpkg's words without the architecture behind them.
fn what_short(what: &str) -> &str {
    what.rsplit_once(" (").map_or(what, |(words, _)| words)
}

/// Returns which module DKMS begins to build: `NAME/VERSION` of its 3.2, `a module` of older ones, which
/// do not tell.
fn built_by_dkms(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("Building initial module ")?;
    rest.split_once(" for ").map(|(module, _)| module).or(Some("a module"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Progress};
    use std::sync::{Arc, Mutex};

    /// apt-get -y -o APT::Status-Fd=1 full-upgrade, apt 2.6.1, shortened; what DKMS 3.2 and 3.0 say in between.
    const UPGRADE: &str = "\
Reading package lists...
dlstatus:1:0.0000:Retrieving file 1 of 2
2 upgraded, 0 newly installed, 0 to remove and 0 not upgraded.
dlstatus:2:100.0000:Retrieving file 2 of 2
(Reading database ... 5%\r(Reading database ... 10%
pmstatus:nl-one:0.0000:Preparing nl-one (amd64)
pmstatus:nl-one:60.0000:Configuring nl-one (amd64)
Building initial module nl/1.0 for 7.2.13+deb14-amd64
Building initial module for 6.1.0-50-amd64
pmstatus:nl-one:80.0000:Installed nl-one (amd64)
";

    #[test]
    fn the_progress_tells_the_package_at_hand_and_how_many_there_are() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = told.clone();
        let events = EventSink::new(move |event| sink.lock().expect("not poisoned").push(event));
        let events = events.for_step("l1/upgrade");
        let mut reader = Reader::new(&events);
        UPGRADE.lines().for_each(|line| reader.line(line));
        let items: Vec<_> = told
            .lock()
            .expect("not poisoned")
            .iter()
            .filter_map(|event| match event {
                Event::StepProgress { progress: Progress::Items { done, total, item }, .. } => {
                    Some(format!("{done}/{total} {item}"))
                }
                _ => None,
            })
            .collect();
        assert_eq!(
            items,
            [
                "0/2 downloading",
                "1/2 downloading",
                "0/2 Preparing nl-one",
                "1/2 Configuring nl-one",
                "1/2 building nl/1.0 with DKMS",
                "1/2 building a module with DKMS",
                "1/2 Installed nl-one",
            ]
        );
    }

    #[test]
    fn a_command_takes_up_the_job_of_the_same_arguments_and_no_other() {
        let apt = |args: &[&str]| job_id(&Command::new("apt-get").args(args.to_vec()));
        let install = apt(&["install", "virtualbox"]);
        assert!(install.starts_with("apt-get-"), "{install}");
        assert_eq!(install, apt(&["install", "virtualbox"]));
        for other in [&["install", "qemu"][..], &["install"], &["install virtualbox"], &["update"]]
        {
            assert_ne!(install, apt(other), "{other:?}");
        }
        // A limit and an environment are no other job: the one that runs is gone on with.
        let command = Command::new("apt-get").args(["install", "virtualbox"]);
        assert_eq!(job_id(&command.silence(std::time::Duration::from_secs(1))), install);
    }

    #[test]
    fn progress_that_makes_no_sense_is_never_more_than_all() {
        let events = EventSink::new(|event| match event {
            Event::StepProgress { progress: Progress::Items { done, total, .. }, .. } => {
                assert!(done <= total, "{done} of {total}");
            }
            Event::StepOutput { .. } => {}
            other => panic!("{other:?}"),
        });
        let events = events.for_step("l1/upgrade");
        let mut reader = Reader::new(&events);
        for line in [
            "dlstatus:1:0.0:Retrieving file 9 of 2",
            "9007199254740995 upgraded, 0 newly installed, 0 to remove and 0 not upgraded.",
            "pmstatus:x:100.0:Installed x",
            "pmstatus:x:inf:Installed x",
            "pmstatus:x:nan:Installed x",
        ] {
            reader.line(line);
        }
    }

    #[test]
    fn a_failure_keeps_the_lines_around_it_and_not_the_status_lines() {
        let events = EventSink::silent();
        let mut reader = Reader::new(&events);
        for line in [
            "Setting up nl-bad (1) ...",
            "pmstatus:nl-bad:60.0:Configuring nl-bad (amd64)",
            "pmerror:nl-bad:60.0:installed nl-bad package post-installation script subprocess returned error exit status 3",
            "E: Sub-process /usr/bin/dpkg returned an error code (1)",
        ] {
            reader.line(line);
        }
        let transcript = reader.end(Command::new("apt-get"), Exit::Code(100));
        let trouble = transcript.trouble().expect("a package failed");
        assert!(trouble.line.starts_with("nl-bad: "), "{trouble:?}");
        assert_eq!(transcript.tail.len(), 3, "{:?}", transcript.tail);
    }
}
