//! Which machine a lab is of, and which folder is its own: `identity.json`.
//!
//! A guest of this machine is a process of it, so "no such process" proves that the guest is off only
//! where it was started: on the same machine, in the same PID namespace. Elsewhere (a home directory on a
//! network, a container beside) a lab can be looked at and not acted on while its guests may run. A copy
//! of a lab's folder names the same guests as the folder that it was copied from, and is not acted on
//! either; a folder that was moved is the lab itself.

use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::directory::Lab;
use super::filesystem;
use super::journal::Reading;
use super::private::Writing;
use super::record::JournalEntry;
use super::resources::{self, Resource};
use crate::error::{Error, Kind, Result};

/// The file's name in the lab's directory.
pub(super) const FILE: &str = "identity.json";

/// The format's number.
const SCHEMA: u32 = 1;

/// What Whonix and Kicksecure have as machine id on every machine (their package `dist-base-files`), so that
/// nobody is told from the others by it.
const EVERYBODYS: &str = "b08dfa6083e7567a1921a715000001fb";

/// What a lab says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    schema: u32,
    /// Its own id; a copy has the same.
    id: Uuid,
    /// Where its guests were started.
    #[serde(flatten)]
    place: LabPlace,
    /// The user.
    uid: u32,
    /// When the lab was made, or first worked on by a nestlab that keeps this file.
    created: Timestamp,
}

/// A place where guests run: a machine since its start, and a folder on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LabPlace {
    /// The machine's id; `None` where it has none of its own.
    machine: Option<String>,
    /// What the kernel was given when it started.
    boot: Option<String>,
    /// The inode of the PID namespace (namespaces(7)).
    pid_namespace: Option<u64>,
    /// The lab's folder without symbolic links.
    path: Utf8PathBuf,
    /// The folder's device.
    device: u64,
    /// The folder's inode.
    inode: u64,
}

impl LabPlace {
    /// Returns this place, with the lab in `folder`.
    fn here(folder: &Utf8Path) -> Result<Self> {
        let metadata = fs_err::metadata(folder)?;
        Ok(LabPlace {
            machine: machine(),
            boot: read("/proc/sys/kernel/random/boot_id"),
            pid_namespace: std::fs::metadata("/proc/self/ns/pid").ok().map(|file| file.ino()),
            path: canonical(folder),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// Returns why guests that were started at `self` may run where `here` cannot see them; `shared` is
    /// whether other machines can have the lab's folder, too.
    fn hidden_from(&self, here: &LabPlace, shared: bool) -> Option<String> {
        if self.boot.is_some() && self.boot == here.boot {
            let same = self.pid_namespace.is_some() && self.pid_namespace == here.pid_namespace;
            return (!same)
                .then(|| "in another container (PID namespace) of this machine".to_owned());
        }
        match (&self.machine, &here.machine) {
            // It was started anew since: nothing that ran then runs now.
            (Some(then), Some(now)) if then == now => None,
            (Some(then), Some(_)) => Some(format!("on another machine ({then})")),
            // A folder that no other machine can have was here when it was started.
            _ => shared.then(|| "perhaps on another machine".to_owned()),
        }
    }
}

fn canonical(path: &Utf8Path) -> Utf8PathBuf {
    path.canonicalize_utf8().unwrap_or_else(|_| path.to_owned())
}

fn read(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Returns the machine's id: systemd's (machine-id(5)), else the firmware's, which only root may read.
fn machine() -> Option<String> {
    let own = |id: &String| id.len() == 32 && id != EVERYBODYS;
    read("/etc/machine-id").filter(own).or_else(|| read("/sys/class/dmi/id/product_uuid"))
}

/// Whether a lab may be acted on, judged by what it says of itself.
#[derive(Debug)]
pub(super) enum PlaceVerdict {
    /// It may, and what it says is right.
    Known,
    /// It may, once this is written down.
    Renewed(Identity),
    /// It may not.
    Refused(Error),
}

/// Writes what a lab that is just being made says of itself, if it says nothing yet.
pub(super) fn introduce(lab: &Lab, writing: &Writing) -> Result<()> {
    // A lab that was worked on before is judged first.
    if lab.directory().join(FILE).exists() || lab.journal_path().exists() {
        return Ok(());
    }
    write(&fresh(LabPlace::here(lab.directory())?), writing)
}

/// Lets the locked lab be acted on, or says why not.
///
/// # Errors
/// [`Kind::HostCannot`] if its guests may run elsewhere, [`Kind::Usage`] if it is a copy, [`Kind::Io`].
pub(super) fn admit(lab: &Lab) -> Result<()> {
    match judge(lab)? {
        PlaceVerdict::Known => Ok(()),
        PlaceVerdict::Renewed(identity) => {
            let written = Writing::into_directory(lab.directory())
                .and_then(|writing| write(&identity, &writing));
            if let Err(error) = written {
                // A full disk is no reason to leave a lab that is to be destroyed.
                tracing::warn!("{error}");
            }
            Ok(())
        }
        PlaceVerdict::Refused(error) => Err(error),
    }
}

/// Returns why `lab` can be looked at here and not acted on, if that is so.
pub(super) fn refusal(lab: &Lab) -> Option<Error> {
    match judge(lab) {
        Ok(PlaceVerdict::Refused(error)) | Err(error) => Some(error),
        Ok(PlaceVerdict::Known | PlaceVerdict::Renewed(_)) => None,
    }
}

fn judge(lab: &Lab) -> Result<PlaceVerdict> {
    let here = LabPlace::here(lab.directory())?;
    let reading = lab.read_journal()?;
    let Some(mut identity) = read_identity(lab)? else {
        return Ok(match former_folder(&reading) {
            // A lab of an older nestlab says where it lies by where its guests do.
            Some(path) if is_lab(&path) && canonical(&path) != here.path => {
                PlaceVerdict::Refused(copied(lab, &path))
            }
            _ => PlaceVerdict::Renewed(fresh(here)),
        });
    };
    let then = &identity.place;
    if then.path != here.path && id_at(&then.path) == Some(identity.id) {
        return Ok(PlaceVerdict::Refused(copied(lab, &then.path)));
    }
    if *then == here {
        return Ok(PlaceVerdict::Known);
    }
    let locals = [lab.directory(), &then.path, &here.path];
    if may_run(&reading, &locals)
        && let Some(place) = then.hidden_from(&here, filesystem::is_shared(&here.path))
    {
        return Ok(PlaceVerdict::Refused(elsewhere(lab, &place)));
    }
    identity.place = here;
    Ok(PlaceVerdict::Renewed(identity))
}

fn fresh(place: LabPlace) -> Identity {
    let uid = rustix::process::geteuid().as_raw();
    Identity { schema: SCHEMA, id: Uuid::new_v4(), place, uid, created: Timestamp::now() }
}

fn write(identity: &Identity, writing: &Writing) -> Result<()> {
    let text = serde_json::to_vec_pretty(identity).expect("an identity is plain data");
    writing.write(FILE, &text)
}

/// Returns what the lab says of itself; `None` if it says nothing.
fn read_identity(lab: &Lab) -> Result<Option<Identity>> {
    #[derive(Deserialize)]
    struct IdentitySchema {
        schema: u32,
    }
    let path = lab.directory().join(FILE);
    let text = match fs_err::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if serde_json::from_slice::<IdentitySchema>(&text).is_ok_and(|format| format.schema > SCHEMA) {
        return Err(Error::new(Kind::Io, format!("{path} was written by a newer nestlab"))
            .hint("use that version for this lab; `nestlab status` shows it all the same"));
    }
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::new(Kind::Io, format!("{path} cannot be read"))
            .with_source(error)
            .hint(format!("if the lab was made on this machine, remove it: rm {path}"))
    })
}

/// Returns the id of the lab in the folder `path`, if there is one.
fn id_at(path: &Utf8Path) -> Option<Uuid> {
    let text = std::fs::read(path.join(FILE)).ok()?;
    serde_json::from_slice::<Identity>(&text).ok().map(|identity| identity.id)
}

fn is_lab(path: &Utf8Path) -> bool {
    path.join("journal.jsonl").is_file()
}

/// Returns the folder that the lab had when its first guest on this machine was made: each has
/// `disks/GUEST` in it.
fn former_folder(reading: &Reading) -> Option<Utf8PathBuf> {
    resources::remaining(&reading.records).into_iter().rev().find_map(|resource| {
        let Resource::Vm { directory, .. } = resource else { return None };
        let disks = directory.parent().filter(|parent| parent.file_name() == Some("disks"))?;
        disks.parent().map(Utf8Path::to_owned)
    })
}

/// Returns whether a guest of this lab may run on the machine that has the lab's folder, which may have
/// been called by any of `folders`. One that was stopped by nestlab and not touched since does not.
fn may_run(reading: &Reading, folders: &[&Utf8Path]) -> bool {
    if !reading.damaged.is_empty() || !reading.newer.is_empty() {
        return true;
    }
    resources::remaining(&reading.records).iter().any(|resource| {
        let Resource::Vm { guest, directory, .. } = resource else { return false };
        folders.iter().any(|folder| directory.starts_with(folder)) && was_started(reading, guest)
    })
}

fn was_started(reading: &Reading, guest: &str) -> bool {
    let is_its = |step: &str| step.split_once('/').is_some_and(|(of, _)| of == guest);
    let (mut started, mut in_a_step) = (false, false);
    for record in &reading.records {
        match &record.entry {
            // Most steps of a guest start it, or may.
            JournalEntry::Intent { step, .. } if is_its(step) => {
                (started, in_a_step) = (true, true)
            }
            JournalEntry::Outcome { step, .. } if is_its(step) => in_a_step = false,
            JournalEntry::Ready { guest: of, .. } if of == guest => started = true,
            // A step that stops a guest starts it again.
            JournalEntry::Stopped { guest: of } if of == guest => started &= in_a_step,
            _ => {}
        }
    }
    started
}

fn copied(lab: &Lab, original: &Utf8Path) -> Error {
    let (name, here) = (lab.name(), lab.directory());
    Error::new(Kind::Usage, format!("the lab {name} is a copy of the one in {original}"))
        .hint("both name the same guests, so only the original can be acted on")
        .hint(format!("nothing runs from the copy; to be rid of it: rm -r {here}"))
}

fn elsewhere(lab: &Lab, place: &str) -> Error {
    let name = lab.name();
    let file = lab.directory().join(FILE);
    Error::new(Kind::HostCannot, format!("guests of the lab {name} may run {place}"))
        .hint(format!("`nestlab status {name}` shows what is known of it; act on it there"))
        .hint(format!("if that is gone for good, nothing of it runs any more: rm {file}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::HypervisorKind;
    use crate::lab::Labs;

    fn place(machine: Option<&str>, boot: &str, namespace: u64) -> LabPlace {
        LabPlace {
            machine: machine.map(str::to_owned),
            boot: Some(boot.to_owned()),
            pid_namespace: Some(namespace),
            path: "/state/labs/demo".into(),
            device: 1,
            inode: 2,
        }
    }

    #[test]
    fn guests_are_out_of_sight_on_another_machine_and_in_another_namespace() {
        let then = place(Some("a"), "boot 1", 1);
        let hidden = |now: &LabPlace, shared| then.hidden_from(now, shared).is_some();
        for (now, expected) in [
            (place(Some("a"), "boot 1", 1), false),
            (place(Some("a"), "boot 1", 2), true),
            (place(Some("a"), "boot 2", 2), false),
            (place(Some("b"), "boot 2", 1), true),
            // A machine id that was made anew: the kernel is the same, and so are its processes.
            (place(Some("b"), "boot 1", 1), false),
            (place(Some("b"), "boot 1", 2), true),
            (place(None, "boot 1", 1), false),
            (place(None, "boot 1", 2), true),
        ] {
            for shared in [false, true] {
                assert_eq!(hidden(&now, shared), expected, "{now:?}, shared: {shared}");
            }
        }
    }

    #[test]
    fn without_a_machine_id_a_folder_of_this_machine_alone_was_here_before_it_started() {
        let rebooted = place(None, "boot 2", 1);
        for then in [place(None, "boot 1", 1), place(Some("a"), "boot 1", 1)] {
            assert!(then.hidden_from(&rebooted, false).is_none());
            assert!(then.hidden_from(&rebooted, true).is_some());
        }
        let nothing_known = LabPlace { boot: None, pid_namespace: None, ..place(None, "", 0) };
        assert!(nothing_known.hidden_from(&nothing_known, true).is_some());
    }

    struct Bench {
        _scratch: tempfile::TempDir,
        labs: Labs,
        lab: Lab,
    }

    impl Bench {
        fn new() -> Self {
            let scratch = tempfile::tempdir().expect("a temporary directory");
            let root = Utf8Path::from_path(scratch.path()).expect("UTF-8");
            let labs = Labs::at(root.join("state"));
            let lab = labs.create(&"demo".parse().expect("a name"), "").expect("makes");
            Bench { _scratch: scratch, labs, lab }
        }

        /// Records `entries`.
        fn write(&self, entries: Vec<JournalEntry>) {
            let journal = self.lab.lock(["test"]).and_then(|lock| lock.journal()).expect("opens");
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("one");
            for entry in entries {
                runtime.block_on(journal.append(entry)).expect("writes");
            }
        }

        /// Has the lab say that it is of another machine.
        fn send_away(&self) {
            let mut identity = read_identity(&self.lab).expect("reads").expect("is there");
            identity.place.boot = Some("another".to_owned());
            identity.place.machine = Some("0".repeat(32));
            let writing = Writing::into_directory(self.lab.directory()).expect("locks");
            write(&identity, &writing).expect("writes");
        }

        fn error(&self) -> Error {
            self.lab.lock(["test"]).expect_err("is refused")
        }

        fn place(&self) -> LabPlace {
            read_identity(&self.lab).expect("reads").expect("is there").place
        }

        fn here(&self) -> LabPlace {
            LabPlace::here(self.lab.directory()).expect("is there")
        }
    }

    fn made(directory: Utf8PathBuf) -> JournalEntry {
        let resource = Resource::Vm {
            host: "L0".into(),
            guest: "l1".into(),
            hypervisor: HypervisorKind::Qemu,
            vm: "nestlab-demo-l1".into(),
            directory,
        };
        JournalEntry::Creating { step: None, resource }
    }

    fn started() -> JournalEntry {
        JournalEntry::Intent { step: "l1/start".into(), title: String::new(), why: String::new() }
    }

    fn stopped() -> JournalEntry {
        JournalEntry::Stopped { guest: "l1".into() }
    }

    fn done() -> JournalEntry {
        let outcome = crate::lab::Outcome::Done;
        JournalEntry::Outcome { step: "l1/start".into(), outcome, millis: 1 }
    }

    #[test]
    fn a_guest_counts_as_stopped_only_when_no_step_that_starts_it_followed() {
        for (entries, expected) in [
            (vec![], false),
            (vec![started()], true),
            (vec![started(), stopped()], true),
            (vec![started(), stopped(), done()], true),
            (vec![started(), stopped(), done(), stopped()], false),
            (vec![started(), done(), stopped(), started()], true),
        ] {
            let record =
                |entry| crate::lab::Record { schema: 1, at: Timestamp::UNIX_EPOCH, run: 1, entry };
            let records = entries.iter().cloned().map(record).collect();
            let reading = Reading { records, ..Reading::default() };
            assert_eq!(was_started(&reading, "l1"), expected, "{entries:?}");
            assert!(!was_started(&reading, "l10"));
        }
    }

    #[test]
    fn a_new_lab_says_which_machine_it_is_of() {
        let bench = Bench::new();
        assert_eq!(bench.place(), bench.here());
        let before = read_identity(&bench.lab).expect("reads");
        bench.lab.lock(["test"]).expect("is at home");
        assert_eq!(read_identity(&bench.lab).expect("reads"), before);
    }

    #[test]
    fn a_lab_whose_guests_may_run_on_another_machine_is_refused_until_they_were_stopped() {
        let bench = Bench::new();
        bench.write(vec![made(bench.lab.guest_directory("l1")), started()]);
        bench.send_away();
        let away = bench.place();
        let error = bench.error();
        assert_eq!((error.kind(), error.kind().exit_code()), (Kind::HostCannot, 3));
        assert!(error.message().contains(&"0".repeat(32)), "{error:?}");
        assert!(refusal(&bench.lab).is_some());
        assert_eq!(bench.place(), away, "a refusal changes nothing");
        // The way out of a machine that is gone.
        std::fs::remove_file(bench.lab.directory().join(FILE)).expect("is there");
        bench.write(vec![done(), stopped()]);
        bench.send_away();
        bench.lab.lock(["test"]).expect("nothing runs");
        assert_eq!(bench.place(), bench.here());
    }

    #[test]
    fn a_lab_without_guests_on_the_machine_itself_can_be_acted_on_from_anywhere() {
        let bench = Bench::new();
        bench.write(vec![made("/var/lib/nestlab/demo/l1".into()), started()]);
        bench.send_away();
        bench.lab.lock(["test"]).expect("its guests are on a host that is reached from here");
    }

    #[test]
    fn a_damaged_journal_may_hide_a_guest_that_runs() {
        let bench = Bench::new();
        std::fs::write(bench.lab.journal_path(), "damage\n").expect("writes");
        bench.send_away();
        assert_eq!(bench.error().kind(), Kind::HostCannot);
    }

    #[test]
    fn an_identity_that_cannot_be_read_is_refused_and_kept() {
        let bench = Bench::new();
        let path = bench.lab.directory().join(FILE);
        for text in ["{", r#"{"schema":2,"soul":"of a newer nestlab"}"#] {
            std::fs::write(&path, text).expect("writes");
            assert_eq!(bench.error().kind(), Kind::Io);
            assert_eq!(std::fs::read_to_string(&path).expect("is there"), text);
        }
    }

    fn copy(from: &Utf8Path, to: &Utf8Path) {
        let status = std::process::Command::new("cp").arg("-a").args([from, to]).status();
        assert!(status.expect("cp runs").success());
    }

    #[test]
    fn a_copy_is_refused_as_long_as_the_original_is_there() {
        for old in [false, true] {
            let bench = Bench::new();
            bench.write(vec![made(bench.lab.guest_directory("l1")), started()]);
            if old {
                std::fs::remove_file(bench.lab.directory().join(FILE)).expect("is there");
            }
            let copy_of_it = bench.lab.directory().with_file_name("demo-backup");
            copy(bench.lab.directory(), &copy_of_it);
            let copied = bench.labs.open(&"demo-backup".parse().expect("a name")).expect("opens");
            let error = copied.lock(["test"]).expect_err("is a copy");
            assert_eq!(error.kind(), Kind::Usage, "{error:?}");
            assert!(error.message().contains(bench.lab.directory().as_str()), "{error:?}");
            assert!(error.hints()[1].contains(&format!("rm -r {copy_of_it}")), "{error:?}");
            bench.lab.lock(["test"]).expect("the original is no copy");
            std::fs::remove_dir_all(bench.lab.directory()).expect("is there");
            copied.lock(["test"]).expect("it is the only one now");
        }
    }

    #[test]
    fn a_state_directory_that_was_moved_is_the_same() {
        let bench = Bench::new();
        bench.write(vec![made(bench.lab.guest_directory("l1")), started()]);
        let state = bench.labs.state_directory();
        let moved = state.with_file_name("moved");
        std::fs::rename(state, &moved).expect("moves");
        let lab = Labs::at(moved).open(bench.lab.name()).expect("opens");
        lab.lock(["test"]).expect("it was moved");
        let identity = read_identity(&lab).expect("reads").expect("is there");
        assert_eq!(identity.place.path, canonical(lab.directory()));
    }
}
