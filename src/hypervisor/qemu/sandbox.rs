//! How a QEMU process is kept from what it does not need, should its guest break into it.

use std::fmt;
use std::str::FromStr;

/// How QEMU is confined on a host, as far as its probe saw it work.
///
/// The system call filter always forbids to start programs. Where nestlab is root, QEMU opens its
/// files as root, then becomes a user that nothing else is; it can make files in its `run/` alone.
/// (`elevateprivileges=deny` forbids that very change and is only used where there is none.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sandbox {
    /// Not at all.
    None,
    /// The filter.
    Filter,
    /// The filter, and a user of its own, by this option.
    FilterAndUser(UserOption),
}

/// The option that changes QEMU's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UserOption {
    /// `-run-with user=`, from 9.1.
    RunWith,
    /// `-runas`, until 9.2.
    RunAs,
}

impl Sandbox {
    /// Returns the strictest confinement that a QEMU of `version` knows.
    pub(super) fn strictest(version: &semver::Version, host_is_root: bool) -> Self {
        if !host_is_root {
            return Sandbox::Filter;
        }
        Sandbox::FilterAndUser(if (version.major, version.minor) >= (9, 1) {
            UserOption::RunWith
        } else {
            UserOption::RunAs
        })
    }

    /// Returns the options for a guest whose own user and group id are `id`.
    pub(super) fn options(self, id: u32) -> Vec<String> {
        const FILTER: &str = "on,obsolete=deny,spawn=deny,resourcecontrol=deny";
        let options: Vec<String> = match self {
            Sandbox::None => Vec::new(),
            Sandbox::Filter => {
                vec!["-sandbox".to_owned(), format!("{FILTER},elevateprivileges=deny")]
            }
            Sandbox::FilterAndUser(option) => {
                let user = match option {
                    UserOption::RunWith => ["-run-with".to_owned(), format!("user={id}:{id}")],
                    UserOption::RunAs => ["-runas".to_owned(), format!("{id}:{id}")],
                };
                ["-sandbox".to_owned(), FILTER.to_owned()].into_iter().chain(user).collect()
            }
        };
        options
    }

    /// Returns the user and group id, `N:N`, that QEMU changes to, if it does.
    pub(super) fn owner(self, id: u32) -> Option<String> {
        matches!(self, Sandbox::FilterAndUser(_)).then(|| format!("{id}:{id}"))
    }
}

impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sandbox::None => "none",
            Sandbox::Filter => "filter",
            Sandbox::FilterAndUser(UserOption::RunWith) => "filter and run-with",
            Sandbox::FilterAndUser(UserOption::RunAs) => "filter and runas",
        })
    }
}

impl FromStr for Sandbox {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [
            Sandbox::None,
            Sandbox::Filter,
            Sandbox::FilterAndUser(UserOption::RunWith),
            Sandbox::FilterAndUser(UserOption::RunAs),
        ]
        .into_iter()
        .find(|confinement| confinement.to_string() == text)
        .ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_runs_qemu_as_a_user_of_its_own_by_the_option_that_its_version_knows() {
        let options = |version: &str, is_root: bool| {
            let version = version.parse().expect("a version");
            Sandbox::strictest(&version, is_root).options(7).join(" ")
        };
        for (version, user) in [
            ("6.2.0", "-runas 7:7"),
            ("9.0.4", "-runas 7:7"),
            ("9.1.0", "-run-with user=7:7"),
            ("10.0.2", "-run-with user=7:7"),
        ] {
            let options = options(version, true);
            assert!(options.ends_with(user), "{version}: {options}");
            assert!(options.contains("spawn=deny"), "{version}: {options}");
        }
        let unprivileged = options("9.1.0", false);
        assert!(!unprivileged.contains("user=") && !unprivileged.contains("-runas"));
        assert!(unprivileged.contains("elevateprivileges=deny"), "{unprivileged}");
    }
}
