//! The journal: an append-only file, one JSON record a line, each durable before what it announces
//! happens.
//!
//! A line that was torn by a crash can only be the last one, and has no end: it is ignored when reading
//! and cut off before the next write. Whole lines are never cut. One that a newer nestlab wrote keeps
//! this one from writing; one that is no record at all is damage from outside: the rest still counts,
//! and the damage is told.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;

use super::lock::LabLock;
use super::private;
use super::record::{JournalEntry, Record, SCHEMA};
use super::resources::{self, Resource};
use crate::error::{Error, Kind, Result};
use crate::faults;

/// What could be read of a journal.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reading {
    /// The records, oldest first.
    pub records: Vec<Record>,
    /// How many bytes from the start are whole lines.
    pub whole: u64,
    /// Numbers, from 1, of whole lines that are no records.
    pub damaged: Vec<usize>,
    /// Numbers, from 1, of whole lines that say more than this nestlab understands.
    pub newer: Vec<usize>,
}

/// What a whole line is.
enum JournalLine {
    Record(Record),
    /// It has a format's number and is more than this nestlab understands.
    Newer(Option<Record>),
    Damaged,
}

impl JournalLine {
    fn of(line: &[u8]) -> Self {
        // The format's number is read for itself: what else stands in a newer line is anything.
        #[derive(serde::Deserialize)]
        struct JournalSchema {
            schema: u32,
        }
        let Ok(JournalSchema { schema }) = serde_json::from_slice(line) else {
            return JournalLine::Damaged;
        };
        match serde_json::from_slice::<Record>(line) {
            Ok(record) if schema <= SCHEMA && record.entry != JournalEntry::Unknown => {
                JournalLine::Record(record)
            }
            newer => JournalLine::Newer(newer.ok()),
        }
    }
}

impl Reading {
    /// Returns what can be read from the journal's bytes. Total: any bytes give a reading.
    pub fn of(bytes: &[u8]) -> Self {
        let mut reading = Reading::default();
        let lines = bytes.split_inclusive(|byte| *byte == b'\n');
        for (number, line) in (1..).zip(lines.filter(|line| line.ends_with(b"\n"))) {
            reading.whole += line.len() as u64;
            match JournalLine::of(line) {
                JournalLine::Record(record) => reading.records.push(record),
                JournalLine::Newer(record) => {
                    reading.newer.push(number);
                    reading.records.extend(record);
                }
                JournalLine::Damaged => reading.damaged.push(number),
            }
        }
        reading
    }

    /// Returns the damaged lines that nobody has made up for yet.
    pub fn unexamined(&self) -> Vec<usize> {
        let examined: BTreeSet<usize> = self
            .records
            .iter()
            .filter_map(|record| match &record.entry {
                JournalEntry::Examined { damaged } => Some(damaged),
                _ => None,
            })
            .flatten()
            .copied()
            .collect();
        self.damaged.iter().copied().filter(|line| !examined.contains(line)).collect()
    }

    /// Returns what to tell of lines that cannot be read in the journal at `path`.
    pub fn warnings(&self, path: &Utf8Path) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.damaged.is_empty() {
            let (lines, verb) =
                (lines(&self.damaged), if self.damaged.len() == 1 { "is" } else { "are" });
            warnings.push(format!("the journal {path} is damaged: {lines} {verb} no record"));
        }
        if !self.newer.is_empty() {
            let lines = lines(&self.newer);
            warnings.push(format!(
                "a newer nestlab wrote {lines} of the journal {path}: it can only be looked at here"
            ));
        }
        warnings
    }

    /// Refuses to have the journal at `path` written to if a newer nestlab wrote in it.
    ///
    /// # Errors
    /// [`Kind::Io`] with the way out.
    pub fn check_writable(&self, path: &Utf8Path) -> Result<()> {
        if self.newer.is_empty() {
            return Ok(());
        }
        let marks: Vec<String> = self.newer.iter().map(|line| format!("{line}s/^/#/")).collect();
        let text = format!("{path} was written by a newer nestlab: {}", lines(&self.newer));
        Err(Error::new(Kind::Io, text)
            .hint("use that version for this lab; `nestlab status` shows it all the same")
            .hint(format!(
                "if no newer one was ever used for it, that is damage: mark it as such \
                 (sed -i '{}' {path}) and run the command again",
                marks.join(";")
            )))
    }
}

/// Returns line numbers in words, such as `lines 3, 5 and 6 more`.
fn lines(numbers: &[usize]) -> String {
    /// More are told by their count.
    const NAMED: usize = 4;
    let named: Vec<String> = numbers.iter().take(NAMED).map(ToString::to_string).collect();
    let word = if numbers.len() == 1 { "line" } else { "lines" };
    match numbers.len().saturating_sub(NAMED) {
        0 => format!("{word} {}", named.join(", ")),
        more => format!("{word} {} and {more} more", named.join(", ")),
    }
}

/// Reads the journal at `path`; one that is not there is empty.
pub fn read(path: &Utf8Path) -> Result<Reading> {
    match fs_err::read(path) {
        Ok(bytes) => Ok(Reading::of(&bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Reading::default()),
        Err(error) => Err(error.into()),
    }
}

/// A lab's journal, open for writing. Cheap to clone; it keeps the lab's lock.
///
/// A write may take as long as the disk does, so it happens on a thread of its own; nothing else
/// waits for it.
#[derive(Debug, Clone)]
pub struct Journal {
    shared: Arc<Shared>,
    lock: LabLock,
}

#[derive(Debug)]
struct Shared {
    /// Held while the disk is written.
    writer: Mutex<JournalFile>,
    /// Damaged lines that nobody has made up for yet; held for an instant only.
    unexamined: Mutex<Vec<usize>>,
    /// Held for an instant only.
    records: Mutex<Vec<Record>>,
    /// What is to be written ahead of the next record; held for an instant only.
    notes: Mutex<Vec<(Timestamp, JournalEntry)>>,
}

#[derive(Debug)]
struct JournalFile {
    file: File,
    path: Utf8PathBuf,
    /// How many bytes of the file are whole lines.
    whole: u64,
    /// Whether there may be part of a line after them.
    torn: bool,
    run: u64,
}

impl Journal {
    /// Opens the journal of the locked lab.
    ///
    /// # Errors
    /// [`Kind::Io`], also if a newer nestlab wrote what this one does not know.
    pub(super) fn open(lock: &LabLock) -> Result<Self> {
        let path = lock.lab().journal_path();
        let mut file = private::open_append(&path)?;
        private::check_secret(&path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let reading = Reading::of(&bytes);
        reading.check_writable(&path)?;
        let run = reading.records.iter().map(|record| record.run).max().unwrap_or(0);
        let torn = reading.whole < bytes.len() as u64;
        let writer = JournalFile { file, path, whole: reading.whole, torn, run };
        let shared = Shared {
            unexamined: Mutex::new(reading.unexamined()),
            writer: Mutex::new(writer),
            records: Mutex::new(reading.records),
            notes: Mutex::default(),
        };
        Ok(Journal { shared: Arc::new(shared), lock: lock.clone() })
    }

    /// Returns the lock that it keeps.
    pub fn lock(&self) -> &LabLock {
        &self.lock
    }

    /// Returns all records, oldest first.
    pub fn records(&self) -> Vec<Record> {
        locked(&self.shared.records).clone()
    }

    /// Returns what exists because of the lab, the newest first.
    pub fn resources(&self) -> Vec<Resource> {
        resources::remaining(&locked(&self.shared.records))
    }

    /// Returns the numbers of the damaged lines that nobody has made up for yet.
    pub fn unexamined(&self) -> Vec<usize> {
        locked(&self.shared.unexamined).clone()
    }

    /// Records that what the damaged lines may have hidden was looked for.
    pub async fn examined(&self) -> Result<()> {
        let damaged = self.unexamined();
        if damaged.is_empty() {
            return Ok(());
        }
        self.append(JournalEntry::Examined { damaged }).await?;
        locked(&self.shared.unexamined).clear();
        Ok(())
    }

    /// Writes `entry`; when this returns, it is durable.
    ///
    /// # Errors
    /// [`Kind::Io`], with a hint when the disk is full. What was written in part is cut off before
    /// the next write.
    pub async fn append(&self, entry: JournalEntry) -> Result<()> {
        self.on_its_own_thread(|shared| shared.append(&mut locked(&shared.writer), entry)).await
    }

    /// Records that `resource` is about to exist, unless that is recorded already.
    pub(super) async fn append_new(&self, step: Option<String>, resource: Resource) -> Result<()> {
        self.on_its_own_thread(|shared| {
            let mut writer = locked(&shared.writer);
            if resources::remaining(&locked(&shared.records)).contains(&resource) {
                return Ok(());
            }
            shared.append(&mut writer, JournalEntry::Creating { step, resource })
        })
        .await
    }

    /// Keeps `entry` in mind, and writes it ahead of the next record. For what may be lost in a crash.
    pub fn note(&self, entry: JournalEntry) {
        locked(&self.shared.notes).push((Timestamp::now(), entry));
    }

    async fn on_its_own_thread(
        &self,
        work: impl FnOnce(&Shared) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        // The lock is kept by whoever still writes, even if nobody waits for it any more.
        let journal = self.clone();
        tokio::task::spawn_blocking(move || work(&journal.shared))
            .await
            .map_err(|error| Error::internal(format!("a write of the journal broke: {error}")))?
    }
}

/// Locks; a panic elsewhere leaves at worst a torn line, which the writer knows of.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn append(&self, writer: &mut JournalFile, entry: JournalEntry) -> Result<()> {
        let mut entries = std::mem::take(&mut *locked(&self.notes));
        entries.push((Timestamp::now(), entry));
        let mut records = Vec::with_capacity(entries.len());
        let mut lines = Vec::new();
        for (at, entry) in entries {
            if matches!(entry, JournalEntry::RunStarted { .. }) {
                writer.run += 1;
            }
            let record = Record { schema: SCHEMA, at, run: writer.run, entry };
            serde_json::to_writer(&mut lines, &record)
                .map_err(|error| Error::internal(format!("a record is not JSON: {error}")))?;
            lines.push(b'\n');
            records.push(record);
        }
        writer.write(&lines).map_err(|error| writer.failed(error))?;
        locked(&self.records).extend(records);
        faults::point("the end of a write").map_err(|error| writer.failed(error))
    }
}

impl JournalFile {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        faults::point("the start of a write")?;
        if self.torn {
            self.file.set_len(self.whole)?;
        }
        self.torn = true;
        faults::write_all(&mut self.file, &self.path, lines)?;
        faults::sync(&self.file, &self.path)?;
        self.torn = false;
        self.whole += lines.len() as u64;
        Ok(())
    }

    fn failed(&self, error: std::io::Error) -> Error {
        let full = error.kind() == std::io::ErrorKind::StorageFull;
        let told = Error::new(Kind::Io, format!("the journal {} cannot be written", self.path))
            .with_source(error);
        if full { told.hint("make room on this disk, then run the command again") } else { told }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lab::record::Outcome;

    fn entry(number: usize) -> JournalEntry {
        match number % 3 {
            0 => JournalEntry::Intent {
                step: format!("l1/{number}"),
                title: "start \"l1\"\n".into(),
                why: "not there".into(),
            },
            1 => JournalEntry::Outcome {
                step: format!("l1/{}", number - 1),
                outcome: Outcome::Interrupted,
                millis: 7,
            },
            _ => JournalEntry::Creating {
                step: None,
                resource: Resource::Directory {
                    host: "L0".into(),
                    path: format!("/f{number}").into(),
                },
            },
        }
    }

    fn lab(scratch: &tempfile::TempDir) -> super::super::Lab {
        let state = Utf8Path::from_path(scratch.path()).expect("UTF-8").join("state");
        let name = "demo".parse().expect("a name");
        super::super::Labs::at(state).create(&name, "schema = 1\n").expect("makes a lab")
    }

    /// Makes `bytes` the journal of `lab`.
    fn put(lab: &super::super::Lab, bytes: &[u8]) {
        let writing = private::Writing::into_directory(lab.directory()).expect("locks");
        writing.write("journal.jsonl", bytes).expect("writes");
    }

    fn append(journal: &Journal, entry: JournalEntry) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(journal.append(entry)).expect("appends");
    }

    /// The bytes of a journal of `count` records.
    fn written(count: usize) -> Vec<u8> {
        (0..count)
            .flat_map(|number| {
                let at = Timestamp::UNIX_EPOCH;
                let record = Record { schema: SCHEMA, at, run: 1, entry: entry(number) };
                let mut line = serde_json::to_vec(&record).expect("is JSON");
                line.push(b'\n');
                line
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_prefix_gives_the_records_that_are_whole_in_it(count in 0_usize..8, cut in 0.0_f64..=1.0) {
            let bytes = written(count);
            let cut = (bytes.len() as f64 * cut) as usize;
            let reading = Reading::of(&bytes[..cut]);
            let whole = bytes[..cut].iter().filter(|byte| **byte == b'\n').count();
            prop_assert_eq!(reading.records.len(), whole);
            prop_assert!(reading.damaged.is_empty());
            prop_assert!(reading.whole <= cut as u64);
        }

        #[test]
        fn any_torn_last_line_changes_nothing_of_what_was_before(
            count in 0_usize..6,
            torn in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let bytes = written(count);
            let mut longer = bytes.clone();
            longer.extend(torn.iter().filter(|byte| **byte != b'\n'));
            let (plain, torn) = (Reading::of(&bytes), Reading::of(&longer));
            prop_assert_eq!(plain, torn);
        }

        #[test]
        fn no_bytes_at_all_make_reading_fail(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let reading = Reading::of(&bytes);
            let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            prop_assert_eq!(reading.whole, end as u64, "a whole line would be cut off");
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            prop_assert_eq!(reading.records.len() + reading.damaged.len(), lines);
        }

        #[test]
        fn garbage_between_two_records_is_told_and_costs_no_other(
            before in 1_usize..4, after in 1_usize..4, garbage in "[^\n]{1,30}",
        ) {
            let mut bytes = written(before);
            bytes.extend(garbage.as_bytes());
            bytes.push(b'\n');
            bytes.extend(written(after));
            let reading = Reading::of(&bytes);
            prop_assert_eq!(reading.records.len(), before + after);
            prop_assert_eq!(reading.damaged, vec![before + 1]);
        }

        #[test]
        fn writing_goes_on_after_any_tear(count in 0_usize..5, cut in 0.0_f64..=1.0) {
            let scratch = tempfile::tempdir().expect("a temporary directory");
            let lab = lab(&scratch);
            let bytes = written(count);
            let cut = (bytes.len() as f64 * cut) as usize;
            put(&lab, &bytes[..cut]);
            let before = Reading::of(&bytes[..cut]).records;
            let journal = lab.lock(["test"]).and_then(|lock| lock.journal()).expect("opens");
            append(&journal, entry(2));
            let after = lab.read_journal().expect("reads");
            prop_assert!(after.damaged.is_empty());
            prop_assert_eq!(&after.records[..before.len()], &before[..]);
            prop_assert_eq!(&after.records[before.len()].entry, &entry(2));
            prop_assert_eq!(after.records.len(), before.len() + 1);
        }
    }

    #[test]
    fn a_note_is_written_ahead_of_the_next_record() {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let lab = lab(&scratch);
        let journal = lab.lock(["test"]).and_then(|lock| lock.journal()).expect("opens");
        let note = JournalEntry::Stopped { guest: "l1".into() };
        journal.note(note.clone());
        assert!(lab.read_journal().expect("reads").records.is_empty());
        append(&journal, entry(0));
        let entries: Vec<JournalEntry> = lab
            .read_journal()
            .expect("reads")
            .records
            .into_iter()
            .map(|record| record.entry)
            .collect();
        assert_eq!(entries, [note, entry(0)]);
        assert_eq!(journal.records().len(), 2);
    }

    #[test]
    fn runs_are_counted_across_openings() {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let lab = lab(&scratch);
        let start = || JournalEntry::RunStarted {
            command: vec!["up".into()],
            version: "0".into(),
            pid: 1,
            steps: 0,
        };
        for _ in 0..3 {
            let journal = lab.lock(["test"]).and_then(|lock| lock.journal()).expect("opens");
            append(&journal, start());
        }
        let runs: Vec<u64> =
            lab.read_journal().expect("reads").records.iter().map(|record| record.run).collect();
        assert_eq!(runs, [1, 2, 3]);
    }

    #[test]
    fn what_a_newer_nestlab_wrote_is_neither_cut_off_nor_written_behind() {
        let at = r#""at":"2026-01-01T00:00:00Z","run":1"#;
        let creating = r#""record":"creating","resource"#;
        for line in [
            format!(r#"{{"schema":1,{at},"record":"teleported","to":"l9"}}"#),
            format!(r#"{{"schema":1,{at},{creating}":{{"kind":"wormhole","host":"L0"}}}}"#),
            format!(r#"{{"schema":2,{at},"record":"satisfied","step":"l1/start"}}"#),
            r#"{"schema":2,"when":0,"what":["nothing that 0.1 knows"]}"#.to_owned(),
        ] {
            let scratch = tempfile::tempdir().expect("a temporary directory");
            let lab = lab(&scratch);
            let mut bytes = written(2);
            bytes.extend(line.as_bytes());
            bytes.extend(b"\n{\"torn\":");
            put(&lab, &bytes);
            let lock = lab.lock(["test"]).expect("locks");
            let error = lock.journal().expect_err("is newer");
            assert!(error.message().contains("newer nestlab: line 3"), "{line}: {error:?}");
            assert!(error.hints()[1].contains("sed -i '3s/^/#/'"), "{error:?}");
            assert_eq!(std::fs::read(lab.journal_path()).expect("is there"), bytes, "{line}");
            let reading = lab.read_journal().expect("can be looked at");
            assert_eq!((&reading.newer[..], &reading.damaged[..]), (&[3][..], &[][..]), "{line}");
            assert_eq!(reading.records[..2], Reading::of(&written(2)).records[..]);
        }
    }

    #[test]
    fn a_damaged_line_at_the_end_is_told_and_stays() {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let lab = lab(&scratch);
        let mut bytes = written(2);
        bytes.extend(b"#{\"schema\":1}\n\xff\n{\"torn");
        put(&lab, &bytes);
        let journal = lab.lock(["test"]).and_then(|lock| lock.journal()).expect("opens");
        assert_eq!(journal.unexamined(), [3, 4]);
        append(&journal, entry(2));
        let after = std::fs::read(lab.journal_path()).expect("is there");
        assert!(after.starts_with(&bytes[..bytes.len() - b"{\"torn".len()]), "a line was cut off");
        let reading = lab.read_journal().expect("reads");
        assert_eq!((reading.damaged.as_slice(), reading.records.len()), (&[3, 4][..], 3));
        let warnings = reading.warnings(&lab.journal_path());
        assert!(warnings[0].contains("lines 3, 4 are no record"), "{warnings:?}");
    }

    #[test]
    fn damage_that_was_made_up_for_is_remembered_as_that() {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let lab = lab(&scratch);
        put(&lab, b"damage\n");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let open = || lab.lock(["test"]).and_then(|lock| lock.journal()).expect("opens");
        runtime.block_on(open().examined()).expect("writes");
        let journal = open();
        assert!(journal.unexamined().is_empty());
        runtime.block_on(journal.examined()).expect("has nothing to write");
        let reading = lab.read_journal().expect("reads");
        assert_eq!((reading.records.len(), reading.damaged.len()), (1, 1));
    }
}
