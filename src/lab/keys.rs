//! The lab's SSH keys: one for the user, and a host key for each guest, made here and injected into
//! the guest, so that nothing has to be trusted on first use.

use std::fmt;

use camino::{Utf8Path, Utf8PathBuf};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, LineEnding, PrivateKey};

use super::private::{self, Writing};
use crate::error::{Error, Kind, Result};

/// The keys of one lab, each an Ed25519 key in OpenSSH's format.
#[derive(Debug, Clone)]
pub struct LabKeys {
    directory: Utf8PathBuf,
}

impl LabKeys {
    /// Returns the keys in `directory`.
    pub(super) fn in_directory(directory: Utf8PathBuf) -> Self {
        LabKeys { directory }
    }

    /// Returns the key that lets nestlab and the user into the guests; made when first asked for.
    ///
    /// # Errors
    /// [`Kind::Io`] with the remedy, if others can read it or it is damaged.
    pub fn user(&self) -> Result<KeyPair> {
        self.key("user")
    }

    /// Returns the host key of `guest`; made when first asked for.
    pub fn host_key(&self, guest: &str) -> Result<KeyPair> {
        self.key(&format!("host-{guest}"))
    }

    /// Returns whether a host key was made for `guest`.
    pub fn has_host_key(&self, guest: &str) -> bool {
        self.directory.join(format!("host-{guest}")).is_file()
    }

    /// Removes the host key of `guest`, if there is one.
    pub fn remove_host_key(&self, guest: &str) -> Result<()> {
        for name in [format!("host-{guest}"), format!("host-{guest}.pub")] {
            match fs_err::remove_file(self.directory.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns where the user's private key lies, for the user's own ssh.
    pub fn user_path(&self) -> Utf8PathBuf {
        self.directory.join("user")
    }

    fn key(&self, name: &str) -> Result<KeyPair> {
        let path = self.directory.join(name);
        if !path.exists() {
            let writing = Writing::into_directory(&self.directory)?;
            // Somebody may have made it while this one waited.
            if !path.exists() {
                make(&writing, name)?;
            }
        }
        private::check_secret(&path)?;
        let private = PrivateKey::read_openssh_file(path.as_std_path()).map_err(|error| {
            Error::new(Kind::Io, format!("{path} is not a private SSH key")).with_source(error).hint(
                "destroy the lab and build it again: its guests cannot be reached without the key",
            )
        })?;
        KeyPair::new(path, &private)
    }
}

/// Makes a key. The private half is written last and at once: a public half may exist without it, but
/// a private half is always whole.
fn make(writing: &Writing, name: &str) -> Result<()> {
    let broken =
        |error: ssh_key::Error| Error::internal(format!("no SSH key could be made: {error}"));
    let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).map_err(broken)?;
    key.set_comment(format!("nestlab {name}"));
    let public = key.public_key().to_openssh().map_err(broken)?;
    writing.write(&format!("{name}.pub"), format!("{public}\n").as_bytes())?;
    let private = key.to_openssh(LineEnding::LF).map_err(broken)?;
    writing.write(name, private.as_bytes())
}

/// A private key and its public half. Its `Debug` shows the public half only.
#[derive(Clone)]
pub struct KeyPair {
    path: Utf8PathBuf,
    private: String,
    public: String,
}

impl KeyPair {
    fn new(path: Utf8PathBuf, private: &PrivateKey) -> Result<Self> {
        let broken = |error: ssh_key::Error| Error::internal(format!("{path}: {error}"));
        Ok(KeyPair {
            private: private.to_openssh(LineEnding::LF).map_err(broken)?.to_string(),
            public: private.public_key().to_openssh().map_err(broken)?,
            path,
        })
    }

    /// Returns where the private key lies.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// Returns the private key as the text of an OpenSSH key file. A secret: never in an argument
    /// vector, an event or a log.
    pub fn private(&self) -> &str {
        &self.private
    }

    /// Returns the public key as one line of `authorized_keys`, without the line's end.
    pub fn public(&self) -> &str {
        &self.public
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public", &self.public).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (tempfile::TempDir, LabKeys) {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let path = Utf8Path::from_path(scratch.path()).expect("UTF-8").to_owned();
        (scratch, LabKeys::in_directory(path))
    }

    #[test]
    fn a_key_is_made_once_and_differs_from_every_other() {
        let (_keep, keys) = keys();
        let first = keys.user().expect("makes");
        let again = keys.user().expect("reads");
        assert_eq!(first.private(), again.private());
        assert_ne!(first.public(), keys.host_key("l1").expect("makes").public());
        assert_ne!(
            keys.host_key("l1").expect("reads").public(),
            keys.host_key("l2").expect("makes").public()
        );
    }

    #[test]
    fn all_who_ask_at_once_get_the_same_key() {
        let (_keep, keys) = keys();
        let publics: Vec<String> = std::thread::scope(|scope| {
            let ask = || keys.host_key("l1").expect("makes or reads").public().to_owned();
            let tasks: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            tasks.into_iter().map(|task| task.join().expect("does not panic")).collect()
        });
        assert!(publics.iter().all(|public| *public == publics[0]), "{publics:?}");
    }

    #[test]
    fn openssh_reads_the_key_and_agrees_on_its_public_half() {
        let (_keep, keys) = keys();
        let key = keys.user().expect("makes");
        let output = std::process::Command::new("ssh-keygen")
            .args(["-y", "-f", keys.user_path().as_str()])
            .output()
            .expect("ssh-keygen runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let derived = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            derived.split_whitespace().take(2).collect::<Vec<_>>(),
            key.public().split_whitespace().take(2).collect::<Vec<_>>()
        );
    }

    #[test]
    fn the_private_half_is_not_in_the_debug_output() {
        let (_keep, keys) = keys();
        let key = keys.user().expect("makes");
        assert!(!format!("{key:?}").contains("PRIVATE"));
        assert!(key.private().contains("PRIVATE"));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_keep, keys) = keys();
        keys.user().expect("makes");
        let open = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(keys.user_path(), open).expect("chmod");
        assert_eq!(keys.user().expect_err("others can read it").kind(), Kind::Io);
    }
}
