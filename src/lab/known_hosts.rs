//! The guests' host keys in OpenSSH's `known_hosts` format, for the user's own ssh.
//!
//! A guest is known by an alias and not by its address, since addresses repeat: NAT is 127.0.0.1 and
//! some port at every level. An `ssh_config` names the alias with `HostKeyAlias`.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::private;
use crate::error::{Error, Kind, Result};
use crate::recipe::LabName;

/// The lab's `known_hosts` file.
#[derive(Debug, Clone)]
pub struct KnownHosts {
    path: Utf8PathBuf,
    lab: LabName,
}

impl KnownHosts {
    pub(super) fn at(path: Utf8PathBuf, lab: LabName) -> Self {
        KnownHosts { path, lab }
    }

    /// Returns where the file lies.
    pub fn path(&self) -> &Utf8Path {
        &self.path
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
        let mut lines = self.read()?;
        lines.insert(self.alias(guest), key.trim().to_owned());
        self.write(&lines)
    }

    /// Removes the host key of `guest`, if there is one.
    pub fn remove(&self, guest: &str) -> Result<()> {
        let mut lines = self.read()?;
        if lines.remove(&self.alias(guest)).is_some() {
            self.write(&lines)?;
        }
        Ok(())
    }

    fn read(&self) -> Result<BTreeMap<String, String>> {
        let text = match fs_err::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        text.lines()
            .map(|line| {
                line.split_once(' ')
                    .map(|(alias, key)| (alias.to_owned(), key.to_owned()))
                    .ok_or_else(|| {
                        Error::new(Kind::Io, format!("{} has a line without a key", self.path))
                            .hint("the file is nestlab's own and can be removed: the next up writes it again")
                    })
            })
            .collect()
    }

    fn write(&self, lines: &BTreeMap<String, String>) -> Result<()> {
        let text: String = lines.iter().map(|(alias, key)| format!("{alias} {key}\n")).collect();
        private::write(&self.path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti a comment";

    #[test]
    fn openssh_finds_the_key_by_its_alias_until_it_is_removed() {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let path = Utf8Path::from_path(scratch.path()).expect("UTF-8").join("known_hosts");
        let hosts = KnownHosts::at(path.clone(), "demo".parse().expect("a name"));
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
    fn what_is_not_a_key_is_never_written() {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let path = Utf8Path::from_path(scratch.path()).expect("UTF-8").join("known_hosts");
        let hosts = KnownHosts::at(path.clone(), "demo".parse().expect("a name"));
        assert!(hosts.set("l1", "* ssh-ed25519 x\n").is_err());
        assert!(!path.exists());
    }
}
