//! Who we are, and who the server must be.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};
use ssh_key::PrivateKey;
use ssh2::{CheckResult, KnownHostFileKind, Session};

use crate::error::{Error, Kind, Result};

/// The key that a session authenticates with; never a password.
#[derive(Clone)]
pub enum SshKey {
    /// A private key file in OpenSSH's format, without a passphrase.
    File(Utf8PathBuf),
    /// A private key in OpenSSH's format, without a passphrase.
    Memory(Arc<str>),
    /// A running ssh-agent with these identities, for a host that the user logs in to anyway.
    Agent,
}

impl fmt::Debug for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SshKey::File(path) => write!(f, "File({path})"),
            SshKey::Memory(_) => f.write_str("Memory(…)"),
            SshKey::Agent => f.write_str("Agent"),
        }
    }
}

/// What a session authenticates with, read and checked.
pub(super) enum Credential {
    Private(Arc<str>),
    Agent,
}

impl SshKey {
    /// Reads the key, and refuses one that would need a passphrase.
    pub(super) fn load(&self) -> Result<Credential> {
        let text: Arc<str> = match self {
            SshKey::File(path) => fs_err::read_to_string(path)?.into(),
            SshKey::Memory(text) => text.clone(),
            SshKey::Agent => return Ok(Credential::Agent),
        };
        // Kinds of keys that this parser does not know are left to libssh2.
        if PrivateKey::from_openssh(text.as_bytes()).is_ok_and(|key| key.is_encrypted()) {
            return Err(Error::new(Kind::Io, format!("the key {self:?} has a passphrase"))
                .hint("give the key to an ssh-agent, or use a key without a passphrase"));
        }
        Ok(Credential::Private(text))
    }
}

/// A server's public key as it goes over the wire, whatever its kind.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ServerKey(Vec<u8>);

impl ServerKey {
    /// Reads `kind base64 …`; `None` for anything else.
    fn read(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let kind = words.next()?;
        let key = ServerKey(STANDARD.decode(words.next()?).ok()?);
        (key.kind() == Some(kind)).then_some(key)
    }

    /// Returns its kind, such as `ssh-ed25519`, which stands in front of the key itself (RFC 4253,
    /// section 6.6).
    fn kind(&self) -> Option<&str> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        std::str::from_utf8(rest.get(..length)?).ok()
    }

    /// Returns the fingerprint that OpenSSH shows.
    fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&self.0)))
    }

    /// Returns the methods by which a server can prove that it has the key.
    fn methods(&self) -> Vec<&str> {
        match self.kind() {
            // One RSA key signs by several methods; the one with SHA-1 is not asked for.
            Some("ssh-rsa") => vec!["rsa-sha2-512", "rsa-sha2-256"],
            kind => kind.into_iter().collect(),
        }
    }
}

/// Which host keys are the right ones.
#[derive(Debug, Clone)]
pub enum HostKeyPolicy {
    /// These, each a line such as `ssh-ed25519 AAAA… comment`.
    Pinned(Vec<String>),
    /// Those of a `known_hosts` file, for a machine that existed before nestlab.
    KnownHosts {
        /// The file; it need not exist.
        file: Utf8PathBuf,
        /// Whether the key of a machine that the file does not name is accepted and written to it.
        accept_new: bool,
    },
}

/// The host keys that are accepted, found before the server is asked for its own.
#[derive(Debug)]
pub(super) struct Accepted {
    keys: Vec<ServerKey>,
    revoked: Vec<ServerKey>,
    /// Where the key of an unknown machine is written, and under which name.
    learn: Option<(Utf8PathBuf, String)>,
}

impl HostKeyPolicy {
    /// Returns the keys accepted for the machine known as `name` and `port`.
    pub(super) fn accepted(&self, name: &str, port: u16, session: &Session) -> Result<Accepted> {
        let (file, accept_new) = match self {
            HostKeyPolicy::Pinned(lines) => {
                let keys: Vec<_> = lines.iter().filter_map(|line| ServerKey::read(line)).collect();
                if keys.is_empty() || keys.len() < lines.len() {
                    return Err(Error::internal("a pinned host key is not in OpenSSH's format"));
                }
                return Ok(Accepted { keys, revoked: Vec::new(), learn: None });
            }
            HostKeyPolicy::KnownHosts { file, accept_new } => (file, *accept_new),
        };
        let (keys, revoked) = read_known_hosts(file, name, port, session)?;
        let shown = if port == 22 { name.to_owned() } else { format!("[{name}]:{port}") };
        let learn = match (keys.is_empty(), accept_new) {
            (false, _) => None,
            (true, true) => Some((file.clone(), shown)),
            (true, false) => {
                return Err(Error::new(Kind::Untrusted, format!("{file} does not know {shown}"))
                    .hint("connect once with `ssh` and compare the key that it shows"));
            }
        };
        Ok(Accepted { keys, revoked, learn })
    }
}

/// Returns the keys that a `known_hosts` file has for a machine, and the keys that it revokes.
fn read_known_hosts(
    file: &Utf8Path,
    name: &str,
    port: u16,
    session: &Session,
) -> Result<(Vec<ServerKey>, Vec<ServerKey>)> {
    let text = match fs_err::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    let (mut keys, mut revoked) = (Vec::new(), Vec::new());
    for line in text.lines().map(str::trim) {
        let (first, rest) = line.split_once([' ', '\t']).unwrap_or_default();
        match first {
            "@revoked" => {
                let key =
                    rest.trim().split_once([' ', '\t']).and_then(|(_, key)| ServerKey::read(key));
                revoked.extend(key);
            }
            _ if first.starts_with(['#', '@']) => {}
            _ => keys.extend(
                ServerKey::read(rest).filter(|key| is_about(line, name, port, key, session)),
            ),
        }
    }
    Ok((keys, revoked))
}

/// Returns whether `line` of a `known_hosts` file, which has `key`, is about `name` and `port`; libssh2
/// knows hashed names.
fn is_about(line: &str, name: &str, port: u16, key: &ServerKey, session: &Session) -> bool {
    let check = || -> Result<CheckResult, ssh2::Error> {
        let mut hosts = session.known_hosts()?;
        hosts.read_str(line, KnownHostFileKind::OpenSSH)?;
        Ok(hosts.check_port(name, port, &key.0))
    };
    !name.contains('\0') && matches!(check(), Ok(CheckResult::Match))
}

impl Accepted {
    /// Returns the host-key methods to ask the server for, so that it shows a key that can be compared;
    /// `None` where any will do.
    pub(super) fn methods(&self) -> Option<String> {
        let methods: Vec<&str> = self.keys.iter().flat_map(ServerKey::methods).collect();
        (!methods.is_empty()).then(|| methods.join(","))
    }

    /// Checks the key that the server has proved to have.
    ///
    /// # Errors
    /// [`Kind::Untrusted`] if it is another than the accepted ones, or revoked.
    pub(super) fn check(&self, shown: &[u8]) -> Result<()> {
        let shown = ServerKey(shown.to_owned());
        if self.revoked.contains(&shown) {
            let print = shown.fingerprint();
            return Err(Error::new(Kind::Untrusted, format!("the host key {print} is revoked")));
        }
        if self.keys.contains(&shown) {
            return Ok(());
        }
        match &self.learn {
            Some((file, name)) => learn(file, name, &shown),
            None => Err(self.another(&shown)),
        }
    }

    fn another(&self, shown: &ServerKey) -> Error {
        let wanted: Vec<String> = self.keys.iter().map(ServerKey::fingerprint).collect();
        let message = format!(
            "the server is not the one it should be: it shows the host key {}, not {}",
            shown.fingerprint(),
            wanted.join(" or ")
        );
        Error::new(Kind::Untrusted, message).hint(
            "another machine answers at this address, or someone is in between; nothing was sent to it",
        )
    }
}

/// Adds the key of a machine that was unknown so far.
fn learn(file: &Utf8Path, name: &str, key: &ServerKey) -> Result<()> {
    use fs_err::os::unix::fs::OpenOptionsExt;
    use std::io::Write;
    let kind = key.kind().ok_or_else(|| Error::new(Kind::Untrusted, "the host key has no kind"))?;
    let mut line = format!("{name} {kind} {}\n", STANDARD.encode(&key.0));
    if fs_err::read(file).is_ok_and(|text| text.last().is_some_and(|&last| last != b'\n')) {
        line.insert(0, '\n');
    }
    let mut opened = fs_err::OpenOptions::new();
    opened.append(true).create(true).mode(0o600);
    let mut opened = opened.open(file)?;
    opened.write_all(line.as_bytes())?;
    opened.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEdH0xaCCJ5k5wpzL9T+vY7vBV1frJLHMpPeU2xI5xX1";
    const OTHER: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA5J1UsakECf5dnDYIEFI1RcZH0duMN/+wKYBcA18p6w";

    fn blob(line: &str) -> Vec<u8> {
        ServerKey::read(line).unwrap().0
    }

    fn known_hosts(text: &str, accept_new: bool) -> (tempfile::TempDir, HostKeyPolicy) {
        let directory = tempfile::tempdir().unwrap();
        let file = Utf8PathBuf::from_path_buf(directory.path().join("known_hosts")).unwrap();
        std::fs::write(&file, text).unwrap();
        (directory, HostKeyPolicy::KnownHosts { file, accept_new })
    }

    fn accepted(policy: &HostKeyPolicy, name: &str, port: u16) -> Result<Accepted> {
        policy.accepted(name, port, &Session::new().unwrap())
    }

    #[test]
    fn a_private_key_never_shows_in_debug_output() {
        let shown = format!("{:?}", SshKey::Memory("-----BEGIN secret".into()));
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn the_server_is_asked_for_a_key_of_the_pinned_kind() {
        let pinned = accepted(&HostKeyPolicy::Pinned(vec![ED.into()]), "x", 22).unwrap();
        assert_eq!(pinned.methods().as_deref(), Some("ssh-ed25519"));
        assert!(pinned.check(&blob(ED)).is_ok());
        let error = pinned.check(&blob(OTHER)).unwrap_err();
        assert_eq!(error.kind(), Kind::Untrusted);
        assert_eq!(error.message().matches("SHA256:").count(), 2, "{error}");
    }

    #[test]
    fn a_known_hosts_file_is_read_with_ports_comments_and_other_hosts() {
        let text = format!("# comment\n\nrunner {ED}\nother {OTHER}\n[runner]:2222 {OTHER}\n");
        let (_kept, policy) = known_hosts(&text, false);
        assert!(accepted(&policy, "runner", 22).unwrap().check(&blob(ED)).is_ok());
        assert!(accepted(&policy, "runner", 22).unwrap().check(&blob(OTHER)).is_err());
        assert!(accepted(&policy, "runner", 2222).unwrap().check(&blob(OTHER)).is_ok());
        let error = accepted(&policy, "stranger", 22).unwrap_err();
        assert_eq!(error.kind(), Kind::Untrusted);
    }

    #[test]
    fn a_revoked_key_is_refused_even_for_an_unknown_host() {
        let (_kept, policy) = known_hosts(&format!("@revoked * {ED}\n"), true);
        let accepted = accepted(&policy, "runner", 22).unwrap();
        assert!(accepted.check(&blob(ED)).unwrap_err().message().contains("revoked"));
    }

    #[test]
    fn a_new_host_is_learned_once_and_held_to_it() {
        let (_kept, policy) = known_hosts(&format!("other {OTHER}"), true);
        accepted(&policy, "runner", 2222).unwrap().check(&blob(ED)).unwrap();
        let later = accepted(&policy, "runner", 2222).unwrap();
        assert!(later.check(&blob(ED)).is_ok());
        assert!(later.check(&blob(OTHER)).is_err());
        assert!(accepted(&policy, "other", 22).unwrap().check(&blob(OTHER)).is_ok());
    }
}
