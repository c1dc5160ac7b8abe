//! What a line of apt's or dpkg's output means, and what can be done about it.
//!
//! The messages are those of apt 2.2 to 3.0 and dpkg 1.20 to 1.22 in the C.UTF-8 locale.

use crate::error::{Error, Kind};

/// What a line complains of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AptError {
    pub(super) cause: AptErrorKind,
    /// The line.
    pub(super) line: String,
}

/// What went wrong. The order is that of explaining: the first one found is the cause of those behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AptErrorKind {
    /// Another program holds a lock.
    Locked,
    /// A file system is full.
    DiskFull,
    /// The mirror's Release file is of the future, as the guest's clock says.
    NotYetValid,
    /// The mirror's Release file is past its Valid-Until.
    Expired,
    /// The repository's signature is missing or not by a known key.
    Unsigned,
    /// dpkg was interrupted, and its packages are half configured.
    Interrupted,
    /// A package lacks what it depends on, and apt offers to repair it.
    BrokenDependencies,
    /// The mirror no longer has a file that the lists name.
    OldLists,
    /// The mirror cannot be reached, or answered nonsense.
    Mirror,
    /// No list names this package.
    NoSuchPackage,
    /// A package's script failed.
    Package,
}

impl AptError {
    /// Returns what `line` complains of, if it does.
    pub(super) fn of(line: &str) -> Option<AptError> {
        let line = line.trim();
        let has = |part: &str| line.contains(part);
        let complaint = ["E: ", "W: ", "dpkg: error", "dpkg-deb: error"]
            .iter()
            .any(|start| line.starts_with(start));
        // Wherever it stands: a package's own script may be the one that runs out of space.
        let full = has("No space left on device") || has("You don't have enough free space in");
        let cause =
            if full { Some(AptErrorKind::DiskFull) } else { complaint.then(|| cause(line))? };
        cause.map(|cause| AptError { cause, line: line.to_owned() })
    }

    /// Returns the one of `troubles` that explains the others.
    pub(super) fn first(troubles: &[AptError]) -> Option<&AptError> {
        troubles.iter().min_by_key(|trouble| trouble.cause)
    }

    /// Returns the error for the user when nothing more can be tried.
    pub(super) fn error(&self) -> Error {
        let (kind, message, hint) = match self.cause {
            AptErrorKind::Locked => (
                Kind::Busy,
                "another program holds apt's lock",
                "wait until it has finished, then run the same command again",
            ),
            AptErrorKind::DiskFull => (
                Kind::Failed,
                "the disk is full",
                "give the guest a larger `disk` in the recipe, or free space inside it with `apt-get clean`",
            ),
            AptErrorKind::NotYetValid => (
                Kind::Failed,
                "the mirror's Release file is of the future: the clock is wrong",
                "set the clock of the machine that nestlab runs on; guests follow it",
            ),
            AptErrorKind::Expired => (
                Kind::Network,
                "the mirror's Release file has expired",
                "use a mirror that is kept up to date; if it is meant to be old, let the image say so: `allow-stale = \"why\"` in its manifest's [build] (signatures are still checked)",
            ),
            AptErrorKind::Unsigned => (
                Kind::Untrusted,
                "the repository is not signed by a key that this system trusts",
                "install the repository's key with the `signed-by` option of its source",
            ),
            AptErrorKind::Interrupted | AptErrorKind::BrokenDependencies => (
                Kind::Failed,
                "packages are half installed, and apt could not repair it",
                "inside the guest: `dpkg --configure -a`, then `apt-get --fix-broken install`",
            ),
            AptErrorKind::OldLists => (
                Kind::Network,
                "the mirror no longer has a package that its lists name",
                "the mirror is being updated: run the same command again in a while",
            ),
            AptErrorKind::Mirror => (
                Kind::Network,
                "the mirror could not be reached or gave a wrong answer",
                "look at the guest's network and at its apt sources, then run the same command again",
            ),
            AptErrorKind::NoSuchPackage => (
                Kind::Failed,
                "a package is in none of the guest's repositories",
                "add the suite or component that has it to the image (VirtualBox is in Debian sid's `contrib`)",
            ),
            AptErrorKind::Package => (
                Kind::Failed,
                "a package could not be installed",
                "the lines above it name the script that failed",
            ),
        };
        Error::new(kind, format!("{message}: {}", crate::event::printable(&self.line))).hint(hint)
    }
}

/// Returns what a complaint of apt or dpkg is about.
fn cause(line: &str) -> Option<AptErrorKind> {
    let has = |part: &&str| line.contains(*part);
    let table: [(AptErrorKind, &[&str]); 9] = [
        (
            AptErrorKind::Locked,
            &[
                "Could not get lock",
                "Unable to acquire the dpkg frontend lock",
                "Unable to lock directory",
                "dpkg frontend lock was locked by",
            ],
        ),
        (AptErrorKind::NotYetValid, &["is not valid yet"]),
        (AptErrorKind::Expired, &["is expired (invalid since"]),
        (
            AptErrorKind::Unsigned,
            &[
                "NO_PUBKEY",
                "is not signed",
                "couldn't be verified",
                "signature verification failed",
                "GPG error",
            ],
        ),
        (AptErrorKind::Interrupted, &["dpkg was interrupted"]),
        (AptErrorKind::BrokenDependencies, &["Unmet dependencies", "--fix-broken install"]),
        (
            AptErrorKind::Mirror,
            &[
                "Failed to fetch",
                "Unable to fetch some archives",
                "Some index files failed to download",
                "does not have a Release file",
                "Temporary failure resolving",
                "Hash Sum mismatch",
            ],
        ),
        (
            AptErrorKind::NoSuchPackage,
            &["Unable to locate package", "has no installation candidate"],
        ),
        (AptErrorKind::Package, &["error processing", "returned an error code"]),
    ];
    let gone = ["Failed to fetch", ".deb ", "404"].iter().all(has);
    if gone {
        return Some(AptErrorKind::OldLists);
    }
    if ["Version '", "was not found"].iter().all(has) {
        return Some(AptErrorKind::NoSuchPackage);
    }
    table.iter().find(|(_, parts)| parts.iter().any(has)).map(|(cause, _)| *cause)
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
            assert_eq!(AptError::of(line).map(|t| t.error().kind()), *kind, "{line}");
        }
    }

    #[test]
    fn the_cause_is_told_rather_than_its_consequence() {
        let lines = [
            "E: Sub-process /usr/bin/dpkg returned an error code (1)",
            " cannot copy extracted data: failed to write (No space left on device)",
        ];
        let troubles: Vec<_> = lines.iter().filter_map(|line| AptError::of(line)).collect();
        assert_eq!(
            AptError::first(&troubles).map(|trouble| trouble.cause),
            Some(AptErrorKind::DiskFull)
        );
    }

    #[test]
    fn what_a_mirror_writes_cannot_drive_the_terminal() {
        let error = AptError::of("E: Failed to fetch \x1b[2Jx").expect("a complaint").error();
        assert!(!error.message().contains('\x1b'));
    }
}
