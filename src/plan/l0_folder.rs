//! Where a lab's part on L0 lies: in the lab, or in a folder of the lab's own on another machine.

use std::os::unix::ffi::OsStrExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

use super::blueprint::{Blueprint, ROOT_DIRECTORY, remote_directory};
use crate::error::{Error, Kind, Result};
use crate::host::{Command, Host};
use crate::lab::Lab;
use crate::recipe::Recipe;

/// How many digits of a hash tell one owner from another.
const DIGITS: usize = 8;

/// Prints the user's id and home, and where that machine keeps state, a line each.
const HOME: &str = r#"printf '%s\n' "$(id -u)" "$HOME" "$XDG_STATE_HOME""#;

/// What tells one machine from another, as far as each is there; containers of one image may have the same id.
const IDENTITY: [&str; 3] =
    ["/etc/machine-id", "/var/lib/dbus/machine-id", "/proc/sys/kernel/hostname"];

/// Where a lab's part on L0 lies, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct L0Folder {
    /// The folder of the guests' folders.
    pub(crate) directory: Utf8PathBuf,
    /// What tells this lab from one of the same name that somebody else has on that machine.
    pub(super) owner: Option<String>,
}

impl L0Folder {
    /// Returns the ground of `lab` on this machine, whose state directory is the user's own.
    pub(super) fn here(lab: &Lab) -> Self {
        L0Folder { directory: lab.disks(), owner: None }
    }

    /// Returns the ground of `lab` on `l0`, the L0 of `recipe`. What was begun on a machine stays where it is
    /// there.
    ///
    /// # Errors
    /// [`Kind::HostCannot`] if the user has no home there.
    pub(crate) async fn of(recipe: &Recipe, lab: &Lab, l0: &dyn Host) -> Result<Self> {
        let Some(ssh) = &recipe.host.ssh else { return Ok(L0Folder::here(lab)) };
        let before = Blueprint::of(lab)?;
        let begun = before.filter(|before| before.l0_ssh == Some(ssh.to_string()));
        match begun {
            None => {
                let owner = owner(lab);
                let directory = state_folder(l0).await?.join(format!("{}-{owner}", lab.name()));
                Ok(L0Folder { directory, owner: Some(owner) })
            }
            Some(Blueprint { l0_folder: Some(directory), owner, .. }) => {
                Ok(L0Folder { directory, owner })
            }
            Some(_) => {
                let user = ssh.user.as_ref().map(|user| user.as_str());
                Ok(L0Folder { directory: remote_directory(user, lab.name()), owner: None })
            }
        }
    }
}

/// Returns the folder on `l0`, entered as some user, that nestlab keeps its files in.
async fn state_folder(l0: &dyn Host) -> Result<Utf8PathBuf> {
    let answer = l0.check(&Command::new("sh").args(["-c", HOME])).await?.text();
    let mut lines = answer.lines().map(str::trim);
    let [user, home, state] = [(); 3].map(|()| lines.next().unwrap_or_default());
    let is_absolute = |path: &str| Utf8Path::new(path).is_absolute();
    if is_absolute(state) {
        return Ok(Utf8Path::new(state).join("nestlab"));
    }
    match user {
        "0" => Ok(ROOT_DIRECTORY.into()),
        _ if is_absolute(home) => Ok(Utf8Path::new(home).join(".local/state/nestlab")),
        _ => Err(Error::new(Kind::HostCannot, "the user has no home directory there")
            .on_host(l0.name())
            .hint("name another user in the recipe: ssh = \"user@host\"")),
    }
}

/// Returns what tells the labs of this user, machine and state directory from all others.
fn owner(lab: &Lab) -> String {
    let mut digest = Sha256::new();
    digest.update(rustix::process::geteuid().as_raw().to_le_bytes());
    for path in IDENTITY {
        digest.update(std::fs::read(path).unwrap_or_default());
        digest.update([0]);
    }
    digest.update(lab.labs().state_directory().as_std_path().as_os_str().as_bytes());
    let mut text = hex::encode(digest.finalize());
    text.truncate(DIGITS);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::scripted::Scripted;
    use crate::lab::Labs;

    #[tokio::test]
    async fn the_folder_is_where_that_machine_keeps_the_users_state() {
        for (answer, folder) in [
            ("1000\n/home/jo\n\n", "/home/jo/.local/state/nestlab"),
            ("1000\n/srv/people/jo\n/data/state\n", "/data/state/nestlab"),
            ("0\n/root\n\n", "/var/lib/nestlab"),
            ("0\n/root\nrelative\n", "/var/lib/nestlab"),
        ] {
            let host = Scripted::new("L0").expect(["sh", "-c", HOME]).prints(answer);
            assert_eq!(state_folder(&host).await.expect("is told"), folder);
        }
        let host = Scripted::new("L0").expect(["sh", "-c", HOME]).prints("1000\n\n\n");
        assert_eq!(state_folder(&host).await.expect_err("no home").kind(), Kind::HostCannot);
    }

    #[test]
    fn labs_of_the_same_name_in_two_state_directories_have_two_owners() {
        let name = "quickstart".parse().expect("a name");
        let [one, other] = ["/a", "/b"].map(|state| owner(&Labs::at(state).planned(&name)));
        assert_ne!(one, other);
        assert_eq!(one, owner(&Labs::at("/a").planned(&name)));
        assert!(one.len() == DIGITS && one.bytes().all(|byte| byte.is_ascii_hexdigit()), "{one}");
    }
}
