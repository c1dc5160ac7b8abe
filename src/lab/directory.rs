//! Where everything of a lab lies, and how labs are made, found and removed.

use camino::{Utf8Path, Utf8PathBuf};
use uuid::Uuid;

use super::identity;
use super::journal::{self, Reading};
use super::keys::LabKeys;
use super::known_hosts::KnownHosts;
use super::lock::{self, LabLock, LockHolder};
use super::private::{self, Writing};
use super::reservations::Reservations;
use super::resources::{self, Resource};
use super::status::LabState;
use crate::error::{Error, Kind, Result};
use crate::recipe::LabName;

/// A removed lab is first renamed to this prefix and a random name, so that it is gone at once.
const REMOVED: &str = ".removed-";

/// The name of the recipe in the lab's directory.
pub(super) const RECIPE: &str = "recipe.toml";

/// What nestlab keeps in a lab's directory; all else there is somebody else's.
const OWN: [&str; 11] = [
    RECIPE,
    "machines.json",
    "journal.jsonl",
    identity::FILE,
    "known_hosts",
    "lock",
    private::LOCK,
    "warnings.json",
    "keys",
    "logs",
    DISKS,
];

/// What tells that a directory is a lab's: each is written before the lab makes anything.
const PROOFS: [&str; 3] = [RECIPE, "machines.json", "journal.jsonl"];

/// The folder of the guests' folders on this machine.
const DISKS: &str = "disks";

/// What the names of a lab's VMs begin with on their host.
pub(super) const VM_PREFIX: &str = "nestlab-";

/// All labs of one state directory.
#[derive(Debug, Clone)]
pub struct Labs {
    state: Utf8PathBuf,
}

impl Labs {
    /// Returns the labs below `state`, such as `~/.local/state/nestlab`. Nothing is made before the
    /// first lab is.
    pub fn at(state: impl Into<Utf8PathBuf>) -> Self {
        Labs { state: state.into() }
    }

    /// Returns the state directory.
    pub fn state_directory(&self) -> &Utf8Path {
        &self.state
    }

    fn directory(&self) -> Utf8PathBuf {
        self.state.join("labs")
    }

    /// Returns the names of all labs, sorted.
    pub fn list(&self) -> Result<Vec<LabName>> {
        let names = self.entries()?;
        let names = names.iter().filter_map(|name| name.parse().ok());
        let mut names: Vec<LabName> = names.filter(|name| self.lab(name).is_there()).collect();
        names.sort();
        Ok(names)
    }

    fn entries(&self) -> Result<Vec<String>> {
        let entries = match fs_err::read_dir(self.directory()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// Makes the lab `name` for the recipe with this text, or opens the one that is there and leaves
    /// its recipe alone; [`LabLock::keep_recipe`] changes it.
    ///
    /// # Errors
    /// [`Kind::Io`], also if others can write into the state directory.
    pub fn create(&self, name: &LabName, recipe: &str) -> Result<Lab> {
        for directory in [&self.state, &self.directory()] {
            private::make_directory(directory)?;
        }
        let lab = self.lab(name);
        private::make_directory(lab.directory())?;
        // The recipe first: by it a lab that was cut off after this is known as one, and removed whole.
        let writing = Writing::into_directory(lab.directory())?;
        if !lab.recipe_path().exists() {
            writing.write(RECIPE, recipe.as_bytes())?;
        }
        for directory in [lab.keys_directory(), lab.logs(), lab.disks()] {
            private::make_directory(&directory)?;
        }
        identity::introduce(&lab, &writing)?;
        private::sync_directory(&self.directory())?;
        Ok(lab)
    }

    /// Opens the lab `name`.
    ///
    /// # Errors
    /// [`Kind::Usage`] with the labs that are there, if it is not; [`Kind::Io`] if others can write it.
    pub fn open(&self, name: &LabName) -> Result<Lab> {
        let lab = self.lab(name);
        if !lab.is_there() {
            return Err(self.unknown(name)?);
        }
        for directory in [&self.state, &self.directory(), &lab.directory] {
            private::check_directory(directory)?;
        }
        Ok(lab)
    }

    /// Returns where the lab `name` lies or would lie, for those who only look; it need not exist.
    pub fn planned(&self, name: &LabName) -> Lab {
        self.lab(name)
    }

    /// Returns the lab `name`, which is not there, with its lock: nobody makes it meanwhile. It is to be
    /// removed again.
    ///
    /// # Errors
    /// [`Kind::Busy`] if somebody is about to make it; [`Kind::Usage`] if it is there.
    pub fn hold_the_place_of(&self, name: &LabName) -> Result<(Lab, LabLock)> {
        let lab = self.lab(name);
        private::make_directory(lab.directory())?;
        let lock = lab.lock(["nestlab"])?;
        if lab.is_there() {
            return Err(Error::new(Kind::Usage, format!("the lab {name} is there")));
        }
        Ok((lab, lock))
    }

    /// Returns the lab and the guest whose VM in `directory` would be, if that is a guest's folder of this
    /// state directory.
    pub(super) fn guest_at(&self, directory: &Utf8Path) -> Option<(LabName, String)> {
        let labs = self.directory();
        let canonical = self.canonical(&labs);
        let mut inside = [Some(labs), canonical].into_iter().flatten();
        let inside = inside.find_map(|labs| directory.strip_prefix(labs).ok())?;
        let mut parts = inside.components().map(|part| part.as_str());
        let (lab, disks, guest) = (parts.next()?, parts.next()?, parts.next()?);
        (disks == DISKS).then_some((lab.parse().ok()?, guest.to_owned()))
    }

    /// Returns what `path`, which lies in the state directory and need not exist, is without links in the way
    /// to that.
    pub(super) fn canonical(&self, path: &Utf8Path) -> Option<Utf8PathBuf> {
        let rest = path.strip_prefix(&self.state).ok()?;
        Some(self.state.canonicalize_utf8().ok()?.join(rest))
    }

    /// Opens the lab that the user means: the one named, or the only one there is.
    ///
    /// # Errors
    /// [`Kind::Usage`], if there is none or more than one to choose from.
    pub fn choose(&self, name: Option<&LabName>) -> Result<Lab> {
        if let Some(name) = name {
            return self.open(name);
        }
        match self.list()?.as_slice() {
            [] => Err(Error::new(Kind::Usage, "there is no lab")
                .hint("nestlab up quickstart makes one; nestlab recipe list shows others")),
            [only] => self.open(only),
            several => Err(Error::new(Kind::Usage, "there is more than one lab")
                .hint(format!("say which with --lab: {}", join(several)))),
        }
    }

    fn unknown(&self, name: &LabName) -> Result<Error> {
        let labs = self.list()?;
        let error = Error::new(Kind::Usage, format!("there is no lab called {name}"));
        Ok(if labs.is_empty() {
            error.hint("there is none yet; nestlab up makes one")
        } else {
            error.hint(format!("there are: {}", join(&labs)))
        })
    }

    /// Returns the names and ports that labs of this state directory have reserved.
    pub fn reservations(&self) -> Reservations {
        Reservations::at(&self.state)
    }

    /// Removes what an interrupted removal of a lab left; returns how many directories.
    pub fn sweep(&self) -> Result<usize> {
        let mut swept = 0;
        for name in self.entries()?.iter().filter(|name| name.starts_with(REMOVED)) {
            remove_tree(&self.directory().join(name))?;
            swept += 1;
        }
        Ok(swept)
    }

    fn lab(&self, name: &LabName) -> Lab {
        Lab {
            name: name.clone(),
            directory: self.directory().join(name.as_str()),
            labs: self.clone(),
        }
    }
}

/// Removes `directory` with all that is in it. Another nestlab may be at the same: what it removed first is
/// gone, too.
fn remove_tree(directory: &Utf8Path) -> Result<()> {
    loop {
        match fs_err::remove_dir_all(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && directory.exists() => {}
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => return Ok(()),
        }
    }
}

fn join(names: &[LabName]) -> String {
    names.iter().map(LabName::as_str).collect::<Vec<_>>().join(", ")
}

/// One lab. Only paths and reading; what writes needs the lab's [`LabLock`].
#[derive(Debug, Clone)]
pub struct Lab {
    name: LabName,
    directory: Utf8PathBuf,
    labs: Labs,
}

impl Lab {
    /// Returns the lab's name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// Returns the lab's directory.
    pub fn directory(&self) -> &Utf8Path {
        &self.directory
    }

    /// Returns whether there is such a lab, begun at least; a directory with other files alone is none.
    pub fn is_there(&self) -> bool {
        PROOFS.iter().any(|name| self.directory.join(name).exists()) || self.was_cut_off()
    }

    /// Returns whether a run was killed while it wrote a file of the lab's, perhaps its very first.
    fn was_cut_off(&self) -> bool {
        let Ok(entries) = fs_err::read_dir(&self.directory) else { return false };
        let mut names = entries.flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_str().is_some_and(private::is_unfinished))
    }

    /// Returns the labs that it is one of.
    pub fn labs(&self) -> &Labs {
        &self.labs
    }

    /// Returns where the recipe lies as it was last applied.
    pub fn recipe_path(&self) -> Utf8PathBuf {
        self.directory.join(RECIPE)
    }

    /// Returns the text of the recipe as it was last applied.
    pub fn recipe(&self) -> Result<String> {
        Ok(fs_err::read_to_string(self.recipe_path())?)
    }

    /// Returns where the journal lies.
    pub fn journal_path(&self) -> Utf8PathBuf {
        self.directory.join("journal.jsonl")
    }

    /// Returns where the lab's private keys lie.
    pub fn keys_directory(&self) -> Utf8PathBuf {
        self.directory.join("keys")
    }

    /// Returns the folder of the runs' logs, serial consoles and bundles.
    pub fn logs(&self) -> Utf8PathBuf {
        self.directory.join("logs")
    }

    /// Returns the folder of the disks of the guests on this machine.
    pub fn disks(&self) -> Utf8PathBuf {
        self.directory.join(DISKS)
    }

    /// Returns the folder of the guest `guest` on this machine: disk, sockets, serial log.
    pub fn guest_directory(&self, guest: &str) -> Utf8PathBuf {
        self.disks().join(guest)
    }

    /// Returns the name of the VM of `guest` on its host, such as `nestlab-demo-l1`.
    pub fn vm_name(&self, guest: &str) -> String {
        format!("{VM_PREFIX}{}-{guest}", self.name)
    }

    /// Returns the lab's SSH keys; each is made when it is first asked for.
    pub fn keys(&self) -> LabKeys {
        LabKeys::in_directory(self.keys_directory())
    }

    /// Returns the file with the guests' host keys, for the user's own ssh.
    pub fn known_hosts(&self) -> KnownHosts {
        KnownHosts::in_directory(self.directory.clone(), self.name.clone())
    }

    /// Takes the lab's lock for `command`, the argument vector that others are told.
    ///
    /// # Errors
    /// [`Kind::Busy`] if another nestlab holds it; [`Kind::HostCannot`] if the lab is of another machine
    /// and its guests may run there; [`Kind::Usage`] if it is a copy of a lab that is there.
    pub fn lock<S: Into<String>>(&self, command: impl IntoIterator<Item = S>) -> Result<LabLock> {
        lock::take(self, command.into_iter().map(Into::into).collect())
    }

    /// Returns who works on the lab now, if anybody does.
    pub fn holder(&self) -> Result<Option<LockHolder>> {
        lock::holder(&self.directory)
    }

    /// Reads the journal, as far as it can be read.
    pub fn read_journal(&self) -> Result<Reading> {
        journal::read(&self.journal_path())
    }

    /// Returns why the lab can be looked at here and not acted on, if that is so.
    pub fn refusal(&self) -> Option<Error> {
        identity::refusal(self)
    }

    /// Returns what exists because of this lab, the newest first: the order in which to remove it.
    pub fn resources(&self) -> Result<Vec<Resource>> {
        Ok(resources::remaining(&self.read_journal()?.records))
    }

    /// Returns the last known state of the lab's steps and guests.
    pub fn status(&self) -> Result<LabState> {
        Ok(LabState::from_records(&self.read_journal()?.records))
    }

    /// Removes the lab's directory and reservations. What the lab made elsewhere must be gone before. A file that nestlab did
    /// not make stays, in its place: returns the paths of these.
    ///
    /// # Errors
    /// [`Kind::Stuck`] if the journal names something that was not removed, or has damage that nobody has
    /// looked into; [`Kind::Io`], also if a newer nestlab wrote in it.
    pub fn remove(self, lock: LabLock) -> Result<Vec<Utf8PathBuf>> {
        let reading = self.read_journal()?;
        reading.check_writable(&self.journal_path())?;
        if !reading.unexamined().is_empty() {
            let warnings = reading.warnings(&self.journal_path()).join("; ");
            return Err(Error::new(Kind::Stuck, warnings)
                .hint(format!("nestlab destroy {} looks for what that may hide", self.name)));
        }
        let left = resources::remaining(&reading.records);
        if let Some(first) = left.first() {
            return Err(Error::new(
                Kind::Stuck,
                format!("{} of lab {} still exist, first {first}", left.len(), self.name),
            )
            .hint(format!("nestlab destroy {}", self.name)));
        }
        self.labs.reservations().release(&self.name)?;
        let foreign = self.foreign()?;
        if foreign.is_empty() {
            let doomed = self.labs.directory().join(format!("{REMOVED}{}", Uuid::new_v4()));
            fs_err::rename(&self.directory, &doomed)?;
            private::sync_directory(&self.labs.directory())?;
            drop(lock);
            remove_tree(&doomed)?;
        } else {
            self.remove_own()?;
            drop(lock);
        }
        Ok(foreign)
    }

    /// Returns the files in the lab's directory that nestlab did not make. The guests' folders are empty, or
    /// gone, once their VMs are.
    fn foreign(&self) -> Result<Vec<Utf8PathBuf>> {
        let mut foreign = files_in(&self.disks())?;
        for entry in self.directory.read_dir_utf8()? {
            let entry = entry?;
            let name = entry.file_name();
            let own = OWN.contains(&name) || private::is_unfinished(name);
            // A damaged file is kept beside the one that took its place.
            if !own && !name.starts_with("machines.json.damaged") {
                foreign.push(entry.into_path());
            }
        }
        foreign.sort();
        Ok(foreign)
    }

    /// Removes what nestlab keeps in the lab's directory, and nothing else. What tells that it is a lab's goes
    /// last: an interrupted removal is gone on with by the next.
    fn remove_own(&self) -> Result<()> {
        let proofs_last = OWN.iter().filter(|name| !PROOFS.contains(name)).chain(&PROOFS);
        for name in proofs_last.filter(|name| **name != DISKS) {
            let path = self.directory.join(name);
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => remove_tree(&path)?,
                Ok(_) => fs_err::remove_file(path)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        remove_empty(&self.disks())?;
        private::sync_directory(&self.directory)
    }
}

/// Returns everything below `directory` that is not a directory.
fn files_in(directory: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match directory.read_dir_utf8() {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path().to_owned();
            if entry.file_type()?.is_dir() { directories.push(path) } else { files.push(path) }
        }
    }
    Ok(files)
}

/// Removes the directories below `directory`, and itself, in which there is no file.
fn remove_empty(directory: &Utf8Path) -> Result<()> {
    let Ok(entries) = directory.read_dir_utf8() else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty(entry.path())?;
        }
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => Err(error.into()),
        _ => Ok(()),
    }
}
