//! What a line of apt's or dpkg's output means, and what can be done about it.
//!
//! The messages are those of apt 2.2 to 3.0 and dpkg 1.20 to 1.22 in the C.UTF-8 locale.

use crate::error::{Error, Kind};

/// What went wrong. The order is that of explaining: the first one found is the cause of those behind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// Another program holds a lock.
    Locked(String),
    /// A file system is full.
    DiskFull(String),
    /// The mirror's Release file is of the future, as the guest's clock says.
    NotYetValid(String),
    /// The mirror's Release file is past its Valid-Until.
    Expired(String),
    /// The repository's signature is missing or not by a known key.
    Unsigned(String),
    /// dpkg was interrupted, and its packages are half configured.
    Interrupted(String),
    /// A package lacks what it depends on, and apt offers to repair it.
    BrokenDependencies(String),
    /// The mirror no longer has a file that the lists name.
    OldLists(String),
    /// The mirror cannot be reached, or answered nonsense.
    Mirror(String),
    /// No list names this package.
    NoSuchPackage(String),
    /// A package's script failed.
    Package(String),
}

impl Trouble {
    /// Returns what `line` complains of, if it does.
    pub(super) fn of(line: &str) -> Option<Trouble> {
        let line = line.trim();
        let has = |part: &str| line.contains(part);
        let complaint = ["E: ", "W: ", "dpkg: error", "dpkg-deb: error"]
            .iter()
            .any(|start| line.starts_with(start));
        // Wherever it stands: a package's own script may be the one that runs out of space.
        if has("No space left on device") || has("You don't have enough free space in") {
            return Some(Trouble::DiskFull(line.to_owned()));
        }
        if !complaint {
            return None;
        }
        let text = line.to_owned();
        Some(match () {
            () if has("Could not get lock")
                || has("Unable to acquire the dpkg frontend lock")
                || has("Unable to lock directory")
                || has("dpkg frontend lock was locked by") =>
            {
                Trouble::Locked(text)
            }
            () if has("is not valid yet") => Trouble::NotYetValid(text),
            () if has("is expired (invalid since") => Trouble::Expired(text),
            () if has("NO_PUBKEY")
                || has("is not signed")
                || has("couldn't be verified")
                || has("signature verification failed")
                || has("GPG error") =>
            {
                Trouble::Unsigned(text)
            }
            () if has("dpkg was interrupted") => Trouble::Interrupted(text),
            () if has("Unmet dependencies") || has("--fix-broken install") => {
                Trouble::BrokenDependencies(text)
            }
            () if has("Failed to fetch") && has(".deb ") && has("404") => Trouble::OldLists(text),
            () if has("Failed to fetch")
                || has("Unable to fetch some archives")
                || has("Some index files failed to download")
                || has("does not have a Release file")
                || has("Temporary failure resolving")
                || has("Hash Sum mismatch") =>
            {
                Trouble::Mirror(text)
            }
            () if has("Unable to locate package")
                || has("has no installation candidate")
                || (has("Version '") && has("was not found")) =>
            {
                Trouble::NoSuchPackage(text)
            }
            () if has("error processing") || has("returned an error code") => {
                Trouble::Package(text)
            }
            () => return None,
        })
    }

    /// Returns the line that told it.
    fn line(&self) -> &str {
        match self {
            Trouble::Locked(line)
            | Trouble::DiskFull(line)
            | Trouble::NotYetValid(line)
            | Trouble::Expired(line)
            | Trouble::Unsigned(line)
            | Trouble::Interrupted(line)
            | Trouble::BrokenDependencies(line)
            | Trouble::OldLists(line)
            | Trouble::Mirror(line)
            | Trouble::NoSuchPackage(line)
            | Trouble::Package(line) => line,
        }
    }

    /// Returns the error for the user when nothing more can be tried.
    pub(super) fn error(&self) -> Error {
        let (kind, message, hint) = match self {
            Trouble::Locked(_) => (
                Kind::Busy,
                "another program holds apt's lock",
                "wait until it has finished, then run the same command again",
            ),
            Trouble::DiskFull(_) => (
                Kind::Failed,
                "the disk is full",
                "give the guest a larger `disk` in the recipe, or free space inside it with `apt-get clean`",
            ),
            Trouble::NotYetValid(_) => (
                Kind::Failed,
                "the mirror's Release file is of the future: the clock is wrong",
                "set the clock of the machine that nestlab runs on; guests follow it",
            ),
            Trouble::Expired(_) => (
                Kind::Network,
                "the mirror's Release file has expired",
                "use a mirror that is kept up to date; if it is meant to be old, let the image say so with `allow-stale-release = true` (signatures are still checked)",
            ),
            Trouble::Unsigned(_) => (
                Kind::Untrusted,
                "the repository is not signed by a key that this system trusts",
                "install the repository's key with the `signed-by` option of its source",
            ),
            Trouble::Interrupted(_) | Trouble::BrokenDependencies(_) => (
                Kind::Failed,
                "packages are half installed, and apt could not repair it",
                "inside the guest: `dpkg --configure -a`, then `apt-get --fix-broken install`",
            ),
            Trouble::OldLists(_) => (
                Kind::Network,
                "the mirror no longer has a package that its lists name",
                "the mirror is being updated: run the same command again in a while",
            ),
            Trouble::Mirror(_) => (
                Kind::Network,
                "the mirror could not be reached or gave a wrong answer",
                "look at the guest's network and at its apt sources, then run the same command again",
            ),
            Trouble::NoSuchPackage(_) => (
                Kind::Failed,
                "a package is in none of the guest's repositories",
                "add the suite or component that has it to the image (VirtualBox is in Debian sid's `contrib`)",
            ),
            Trouble::Package(_) => (
                Kind::Failed,
                "a package could not be installed",
                "the lines above it name the script that failed",
            ),
        };
        Error::new(kind, format!("{message}: {}", crate::event::printable(self.line()))).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_known_complaint_is_told_by_its_kind() {
        let table: &[(&str, Option<Kind>)] = &[
            (
                "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 812 (unattended-upgr)",
                Some(Kind::Busy),
            ),
            ("E: Unable to lock directory /var/lib/apt/lists/", Some(Kind::Busy)),
            (
                "dpkg: error: dpkg frontend lock was locked by another process with pid 7",
                Some(Kind::Busy),
            ),
            (
                "E: You don't have enough free space in /var/cache/apt/archives/.",
                Some(Kind::Failed),
            ),
            (
                " cannot copy extracted data for './usr/x' to '/usr/x.dpkg-new': failed to write (No space left on device)",
                Some(Kind::Failed),
            ),
            (
                "E: Release file for file:/srv/repo/./Release is not valid yet (invalid for another 37d 16h 45min 50s). Updates for this repository will not be applied.",
                Some(Kind::Failed),
            ),
            (
                "E: Release file for http://x/dists/sid/InRelease is expired (invalid since 3d 2h 5min 20s). Updates for this repository will not be applied.",
                Some(Kind::Network),
            ),
            ("E: The repository 'http://x sid InRelease' is not signed.", Some(Kind::Untrusted)),
            (
                "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem. ",
                Some(Kind::Failed),
            ),
            (
                "E: Unmet dependencies. Try 'apt --fix-broken install' with no packages (or specify a solution).",
                Some(Kind::Failed),
            ),
            (
                "E: Failed to fetch http://x/pool/a/a_1_all.deb  404  Not Found [IP: 127.0.0.1 80]",
                Some(Kind::Network),
            ),
            ("W: Failed to fetch http://x/./InRelease  Could not resolve 'x'", Some(Kind::Network)),
            ("E: Unable to locate package virtualbox", Some(Kind::Failed)),
            ("E: Sub-process /usr/bin/dpkg returned an error code (1)", Some(Kind::Failed)),
            ("Get:1 file:/srv/repo ./ InRelease", None),
            ("Setting up error-handler (1) ...", None),
            ("W: Target Packages is configured multiple times", None),
        ];
        for (line, kind) in table {
            assert_eq!(Trouble::of(line).map(|t| t.error().kind()), *kind, "{line}");
        }
    }

    #[test]
    fn the_cause_is_told_rather_than_its_consequence() {
        let lines = [
            "E: Sub-process /usr/bin/dpkg returned an error code (1)",
            " cannot copy extracted data: failed to write (No space left on device)",
        ];
        let first = lines.iter().filter_map(|line| Trouble::of(line)).min();
        assert!(matches!(first, Some(Trouble::DiskFull(_))), "{first:?}");
    }

    #[test]
    fn what_a_mirror_writes_cannot_drive_the_terminal() {
        let error = Trouble::Mirror("E: Failed to fetch \x1b[2Jx".into()).error();
        assert!(!error.message().contains('\x1b'));
    }
}
