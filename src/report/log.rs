//! The log of a run: every event, what programs wrote included, one JSON line each, in the lab's
//! `logs/`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};

use super::json::EventLine;
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Level, Progress};
use crate::lab::numbered::Numbered;

/// How many logs are kept; an older one goes when a new one is made.
const KEPT: usize = 30;

/// How much of what programs write a log keeps, in bytes; what a guest says must not fill the disk.
const MOST_OUTPUT: usize = 64 << 20;

/// The ending of a log's name.
const ENDING: &str = ".log.jsonl";

/// The log of one run, being written.
#[derive(Debug)]
pub struct RunLog {
    file: File,
    path: Utf8PathBuf,
    /// How much of [`MOST_OUTPUT`] is left; `None` once it was said that there is no more.
    room: Option<usize>,
}

impl RunLog {
    /// Makes the log of a run of `command` (such as `up`) in `directory`, with mode 0600; its name
    /// has its number and the time.
    pub fn create(directory: &Utf8Path, command: &str) -> Result<Self> {
        let path = logs(directory).next(KEPT, &format!("-{command}"))?;
        let file =
            OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path).map_err(
                |error| Error::new(Kind::Io, format!("{path} cannot be made")).with_source(error),
            )?;
        Ok(RunLog { file, path, room: Some(MOST_OUTPUT) })
    }

    /// Returns where it lies.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Writes `event`; of progress, only what is done and not how far.
    pub(super) fn write(&mut self, event: &Event) -> std::io::Result<()> {
        let count = |progress: &Progress| !matches!(progress, Progress::Doing { .. });
        if matches!(event, Event::StepProgress { progress, .. } if count(progress)) {
            return Ok(());
        }
        let line = EventLine::now(event.clone()).to_json();
        if matches!(event, Event::StepOutput { .. } | Event::StepProgress { .. }) {
            let Some(room) = self.room else { return Ok(()) };
            self.room = room.checked_sub(line.len());
            if self.room.is_none() {
                let text =
                    format!("more than {} MiB were said, and no more is kept", MOST_OUTPUT >> 20);
                let notice = Event::Notice { level: Level::Warning, text };
                return self.file.write_all(EventLine::now(notice).to_json().as_bytes());
            }
        }
        self.file.write_all(line.as_bytes())
    }
}

/// Returns the logs in `directory`, oldest first.
pub fn list(directory: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    logs(directory).list()
}

fn logs(directory: &Utf8Path) -> Numbered<'_> {
    Numbered { directory, beginning: "", ending: ENDING }
}

/// Reads a log. Lines that are not events (a torn last one, or those of a newer nestlab) are left out.
pub fn read(path: &Utf8Path) -> Result<Vec<EventLine>> {
    let bytes = fs_err::read(path)?;
    let lines = bytes.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Report, Reporter};

    fn scratch() -> (tempfile::TempDir, Utf8PathBuf) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = Utf8Path::from_path(directory.path()).expect("UTF-8").to_owned();
        (directory, path)
    }

    struct LogSummary(std::sync::Arc<std::sync::Mutex<Vec<Event>>>);

    impl Report for LogSummary {
        fn event(&mut self, event: &Event, _: std::time::Instant) {
            self.0.lock().expect("unpoisoned").push(event.clone());
        }
        fn leave(&mut self) {}
    }

    #[test]
    fn the_log_keeps_what_programs_wrote_and_no_counts() {
        let (_keep, directory) = scratch();
        let log = RunLog::create(&directory, "up").expect("makes");
        let path = log.path().to_owned();
        let reporter = Reporter::showing(Box::new(LogSummary(Default::default())), Some(log));
        let events = reporter.events().for_step("l1/upgrade");
        events.line("Get:1 linux-image");
        events.bytes(1, None);
        events.doing("unpacking");
        reporter.leave();
        events.line("after the terminal was closed");
        let events: Vec<Event> =
            read(&path).expect("reads").into_iter().map(|line| line.event).collect();
        assert_eq!(events.len(), 3, "{events:?}");
        assert!(matches!(&events[2], Event::StepOutput { line, .. } if line.starts_with("after")));
    }

    #[test]
    fn a_log_that_cannot_be_written_is_told_once_and_the_run_goes_on() {
        let (_keep, directory) = scratch();
        let mut log = RunLog::create(&directory, "up").expect("makes");
        log.file = File::open(log.path()).expect("opens for reading only");
        let seen = std::sync::Arc::default();
        let reporter =
            Reporter::showing(Box::new(LogSummary(std::sync::Arc::clone(&seen))), Some(log));
        for _ in 0..3 {
            reporter.events().for_step("l1/x").line("a");
        }
        let seen = seen.lock().expect("unpoisoned");
        let notices = seen.iter().filter(|event| matches!(event, Event::Notice { .. })).count();
        assert_eq!((notices, seen.len()), (1, 4));
    }

    #[test]
    fn the_newest_log_stays_although_the_clock_was_set_back() {
        let (_keep, directory) = scratch();
        for second in 10..10 + KEPT {
            let name = format!("20990101T0000{second}.000000Z-up{ENDING}");
            std::fs::write(directory.join(name), "").expect("writes");
        }
        let one = RunLog::create(&directory, "up").expect("makes");
        let two = RunLog::create(&directory, "down").expect("makes");
        let logs = list(&directory).expect("lists");
        assert_eq!(logs[KEPT - 2..], [one.path(), two.path()]);
    }

    #[test]
    fn a_program_that_says_too_much_fills_no_disk_and_hides_nothing_that_happens() {
        let (_keep, directory) = scratch();
        let mut log = RunLog::create(&directory, "up").expect("makes");
        log.room = Some(1 << 10);
        let line = Event::StepOutput { step: "l1/upgrade".into(), line: "x".repeat(100) };
        for _ in 0..100 {
            log.write(&line).expect("writes");
        }
        let done = Event::StepDone { step: "l1/upgrade".into(), title: "t".into(), millis: 1 };
        log.write(&done).expect("writes");
        assert!(std::fs::metadata(log.path()).expect("is there").len() < 2 << 10);
        let mut events = read(log.path()).expect("reads");
        assert_eq!(events.pop().map(|line| line.event), Some(done));
        let last = events.pop().expect("what was said before").event;
        assert!(matches!(last, Event::Notice { level: Level::Warning, .. }), "{last:?}");
    }

    #[test]
    fn old_logs_make_room_for_new_ones() {
        let (_keep, directory) = scratch();
        for second in 0..KEPT + 5 {
            let name = format!("20260101T0000{second:02}.000Z-up{ENDING}");
            std::fs::write(directory.join(name), "").expect("writes");
        }
        std::fs::write(directory.join("l1-serial.log"), "").expect("writes");
        let log = RunLog::create(&directory, "up").expect("makes");
        let logs = list(&directory).expect("lists");
        assert_eq!(logs.len(), KEPT);
        assert_eq!(logs.last().map(Utf8PathBuf::as_path), Some(log.path()));
        assert!(directory.join("l1-serial.log").exists());
    }
}
