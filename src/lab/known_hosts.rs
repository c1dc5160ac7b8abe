//! The guests' host keys in OpenSSH's `known_hosts` format, for the user's own ssh.
//!
//! A guest is known by an alias and not by its address, since addresses repeat: NAT is 127.0.0.1 and
//! some port at every level. An `ssh_config` names the alias with `HostKeyAlias`.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;

use super::private::Writing;
use crate::error::{Error, Kind, Result};
use crate::recipe::LabName;

/// The lab's `known_hosts` file.
#[derive(Debug, Clone)]
pub struct KnownHosts {
    directory: Utf8PathBuf,
    lab: LabName,
}

/// The file's name in the lab's directory.
const NAME: &str = "known_hosts";

impl KnownHosts {
    pub(super) fn in_directory(directory: Utf8PathBuf, lab: LabName) -> Self {
        KnownHosts { directory, lab }
    }

    /// Returns where the file lies.
    pub fn path(&self) -> Utf8PathBuf {
        self.directory.join(NAME)
    }

    /// Returns the name under which the key of `guest` is known: its alias, or for a key that was pinned when
    /// it was first seen the guest's name.
    pub fn name_of(&self, guest: &str, injected: bool) -> String {
        if injected { self.alias(guest) } else { guest.to_owned() }
    }

    /// Returns the alias of `guest`, such as `l1.demo.nestlab`.
    pub fn alias(&self, guest: &str) -> String {
        format!("{guest}.{}.nestlab", self.lab)
    }

    /// Makes `public_key` (a line such as `ssh-ed25519 AAAA… comment`) the host key of `guest`.
    ///
    /// # Errors
    /// [`Kind::Internal`] for text that is not a public key, [`Kind::Io`].
    pub fn set(&self, guest: &str, public_key: &str) -> Result<()> {
        let key = ssh_key::PublicKey::from_openssh(public_key)
            .and_then(|mut key| {
                key.set_comment("");
                key.to_openssh()
            })
            .map_err(|error| Error::internal(format!("the host key of {guest}: {error}")))?;
        self.change(|lines| {
            lines.insert(self.alias(guest), key.trim().to_owned());
        })
    }

    /// Removes the host key of `guest`, if there is one.
    pub fn remove(&self, guest: &str) -> Result<()> {
        self.change(|lines| {
            lines.remove(&self.alias(guest));
            lines.remove(guest);
        })
    }

    fn change(&self, work: impl FnOnce(&mut BTreeMap<String, String>)) -> Result<()> {
        let writing = Writing::into_directory(&self.directory)?;
        let before = self.read()?;
        let mut lines = before.clone();
        work(&mut lines);
        if lines == before {
            return Ok(());
        }
        let text: String = lines.iter().map(|(alias, key)| format!("{alias} {key}\n")).collect();
        writing.write(NAME, text.as_bytes())
    }

    fn read(&self) -> Result<BTreeMap<String, String>> {
        let text = match fs_err::read_to_string(self.path()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        text.lines()
            .map(|line| {
                line.split_once(' ')
                    .map(|(alias, key)| (alias.to_owned(), key.to_owned()))
                    .ok_or_else(|| {
                        Error::new(Kind::Io, format!("{} has a line without a key", self.path()))
                            .hint("the file is nestlab's own and can be removed: the next up writes it again")
                    })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a comment";

    #[test]
    fn openssh_finds_the_key_by_its_alias_until_it_is_removed() {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let directory = Utf8PathBuf::from_path_buf(scratch.path().into()).expect("UTF-8");
        let hosts = KnownHosts::in_directory(directory, "demo".parse().expect("a name"));
        let path = hosts.path();
        hosts.set("l1", KEY).expect("writes");
        hosts.set("l2", KEY).expect("writes");
        hosts.set("l1", KEY).expect("writes again");
        let found = |alias: &str| {
            let output = std::process::Command::new("ssh-keygen")
                .args(["-F", alias, "-f", path.as_str()])
                .output()
                .expect("ssh-keygen runs");
            String::from_utf8_lossy(&output.stdout).matches("ssh-ed25519").count()
        };
        assert_eq!((found("l1.demo.nestlab"), found("l2.demo.nestlab")), (1, 1));
        hosts.remove("l1").expect("removes");
        hosts.remove("l1").expect("is content");
        assert_eq!((found("l1.demo.nestlab"), found("l2.demo.nestlab")), (0, 1));
    }

    #[test]
    fn keys_set_at_once_are_all_there() {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let directory = Utf8PathBuf::from_path_buf(scratch.path().into()).expect("UTF-8");
        let hosts = KnownHosts::in_directory(directory, "demo".parse().expect("a name"));
        std::thread::scope(|scope| {
            for guest in ["l1", "l2", "l3", "l4"] {
                let hosts = &hosts;
                scope.spawn(move || hosts.set(guest, KEY).expect("writes"));
            }
        });
        assert_eq!(hosts.read().expect("reads").len(), 4);
    }

    #[test]
    fn what_is_not_a_key_is_never_written() {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let directory = Utf8PathBuf::from_path_buf(scratch.path().into()).expect("UTF-8");
        let hosts = KnownHosts::in_directory(directory, "demo".parse().expect("a name"));
        let path = hosts.path();
        assert!(hosts.set("l1", "* ssh-ed25519 x\n").is_err());
        assert!(!path.exists());
    }
}
