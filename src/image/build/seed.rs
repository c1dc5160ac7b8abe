//! The seed: a small volume that makes a guest itself. It carries the host name, the keys that may log
//! in and the guest's own SSH host key, so that the image need not, and so that the host key is known
//! before the first connection.
//!
//! One raw FAT volume labelled `CIDATA` serves every hypervisor and every image: cloud-init takes
//! `user-data` and `meta-data` from it (its "NoCloud" source), nestlab's own images the plain files.

use std::io::Write as _;
use std::net::Ipv4Addr;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use ssh_key::{Algorithm, LineEnding, PrivateKey, PublicKey};

use super::fat::Volume;
use crate::error::{Error, Kind, Result};
use crate::recipe::units::GuestName;

/// The volume's label; cloud-init looks for this one.
pub const LABEL: &str = "CIDATA";

/// The volume's size in bytes: the smallest that every hypervisor takes as a disk without ado.
pub const SIZE: usize = 1 << 20;

/// Where a BIOS looks for the mark of a disk that it can start. Without it the BIOS goes on to the next
/// disk; with it, it would run the volume's boot code, which waits for a key to be pressed for ever.
const BOOT_SIGNATURE: std::ops::Range<usize> = 510..512;

/// What makes a guest itself.
#[derive(Debug, Clone)]
pub struct Seed {
    /// Its host name.
    pub hostname: GuestName,
    /// The keys that may log in as root, and as a foreign image's default user.
    pub authorized_keys: Vec<PublicKey>,
    /// Its SSH host key, Ed25519 and not encrypted. Without it the guest makes one of its own, which
    /// then has to be pinned on first use.
    pub host_key: Option<PrivateKey>,
    /// Its place in the networks that it shares with guests beside it. Only nestlab's own images take it:
    /// cloud-init would want all of the guest's cards described.
    pub network: SeedNetwork,
}

/// A guest's place in networks that have no DHCP server: what its own cards are called there, and where
/// its neighbours are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedNetwork {
    /// Its cards.
    pub cards: Vec<Card>,
    /// Its neighbours, for `/etc/hosts`.
    pub neighbours: Vec<Neighbour>,
}

/// A network card with an address that is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// The network's name in the recipe.
    pub network: String,
    /// The card's MAC address, such as `52:54:00:01:02:03`.
    pub mac: String,
    /// Its address; the network is the /24 around it.
    pub address: Ipv4Addr,
}

/// A guest on the same network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its name.
    pub name: GuestName,
    /// Its address.
    pub address: Ipv4Addr,
}

impl SeedNetwork {
    /// Returns `MAC ADDRESS/24`, a card a line.
    fn cards(&self) -> String {
        self.cards.iter().map(|card| format!("{} {}/24\n", card.mac, card.address)).collect()
    }

    /// Returns the lines for `/etc/hosts`.
    fn hosts(&self) -> String {
        self.neighbours.iter().map(|other| format!("{} {}\n", other.address, other.name)).collect()
    }

    /// Returns the name of the seed's file: another network is another file, so that a hypervisor sees
    /// that the guest is to get another seed.
    pub fn file_name(&self) -> String {
        if self.cards.is_empty() {
            return "seed.img".to_owned();
        }
        let digest = Sha256::digest(format!("{}\n{}", self.cards(), self.hosts()));
        format!("seed-{}.img", hex::encode(&digest[..4]))
    }
}

impl Seed {
    /// Returns the volume's bytes; the same seed gives the same bytes.
    ///
    /// # Errors
    /// [`Kind::Internal`] for a host key of another kind than Ed25519, or an encrypted one.
    pub fn volume(&self) -> Result<Vec<u8>> {
        let host_key = self.host_key.as_ref().map(SshHostKey::new).transpose()?;
        let authorized = self.authorized_lines()?;
        let instance = self.instance(&authorized, host_key.as_ref());
        let meta_data = json!({
            "instance-id": format!("nestlab-{instance}"),
            "local-hostname": self.hostname,
        });
        let user_data = user_data(&self.hostname, &authorized, host_key.as_ref());

        let meta_data = format!("{meta_data:#}\n");
        let user_data = format!("#cloud-config\n{user_data:#}\n");
        let hostname = format!("{}\n", self.hostname);
        let authorized: String = authorized.iter().map(|line| format!("{line}\n")).collect();
        let mut files: Vec<(&str, &[u8])> = vec![
            ("meta-data", meta_data.as_bytes()),
            ("user-data", user_data.as_bytes()),
            ("hostname", hostname.as_bytes()),
            ("authorized_keys", authorized.as_bytes()),
        ];
        let (cards, hosts) = (self.network.cards(), self.network.hosts());
        if !self.network.cards.is_empty() {
            files.push(("network", cards.as_bytes()));
            files.push(("hosts", hosts.as_bytes()));
        }
        let public_line;
        if let Some(key) = &host_key {
            public_line = format!("{}\n", key.public);
            files.push(("ssh_host_ed25519_key", key.private.as_bytes()));
            files.push(("ssh_host_ed25519_key.pub", public_line.as_bytes()));
        }
        let serial = u32::from_str_radix(&instance[..8], 16).expect("the instance is hexadecimal");
        let mut bytes = Volume { label: LABEL, serial, size: SIZE }.with_files(&files)?;
        bytes[BOOT_SIGNATURE].fill(0);
        Ok(bytes)
    }

    fn authorized_lines(&self) -> Result<Vec<String>> {
        self.authorized_keys.iter().map(openssh_line).collect()
    }

    /// Returns what cloud-init tells guests apart by: another value makes it configure anew.
    fn instance(&self, authorized: &[String], host_key: Option<&SshHostKey>) -> String {
        let mut digest = Sha256::new();
        let public = host_key.map_or("", |key| &key.public);
        for part in [self.hostname.as_str(), public]
            .into_iter()
            .chain(authorized.iter().map(String::as_str))
        {
            digest.update(part);
            digest.update([0]);
        }
        hex::encode(&digest.finalize()[..8])
    }
}

/// Writes the seed volume to `path`, readable by its owner alone; it appears whole or not at all.
///
/// # Errors
/// [`Kind::Io`] when it cannot be written, and those of [`Seed::volume`].
pub fn write(path: &Utf8Path, seed: &Seed) -> Result<()> {
    let folder = path.parent().ok_or_else(|| Error::internal(format!("{path} has no folder")))?;
    let unwritable = |error: std::io::Error| {
        Error::new(Kind::Io, format!("the seed {path} cannot be written")).with_source(error)
    };
    // A temporary file is made with mode 0600, and stays so.
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(unwritable)?;
    file.write_all(&seed.volume()?).map_err(unwritable)?;
    file.as_file().sync_all().map_err(unwritable)?;
    file.persist(path).map_err(|error| unwritable(error.error))?;
    Ok(())
}

/// A guest's SSH host key, in the forms that files and cloud-init want.
struct SshHostKey {
    private: String,
    public: String,
}

impl SshHostKey {
    fn new(key: &PrivateKey) -> Result<Self> {
        if key.algorithm() != Algorithm::Ed25519 || key.is_encrypted() {
            return Err(Error::internal("a guest's host key is an unencrypted Ed25519 key"));
        }
        let unusable =
            |error| Error::internal("the host key cannot be written down").with_source(error);
        let private = key.to_openssh(LineEnding::LF).map_err(unusable)?;
        Ok(SshHostKey { private: private.to_string(), public: openssh_line(key.public_key())? })
    }
}

fn openssh_line(key: &PublicKey) -> Result<String> {
    let line = key
        .to_openssh()
        .map_err(|error| Error::internal("a key cannot be written down").with_source(error))?;
    // A comment with a line break would be a second key.
    if line.contains(['\n', '\r']) {
        return Err(Error::internal("an SSH key's comment has more than one line"));
    }
    Ok(line)
}

/// Returns cloud-init's configuration. JSON is YAML, so that nothing in it needs YAML's quoting.
fn user_data(
    hostname: &GuestName,
    authorized: &[String],
    host_key: Option<&SshHostKey>,
) -> serde_json::Value {
    let mut config = json!({
        "hostname": hostname,
        "preserve_hostname": false,
        "manage_etc_hosts": true,
        "disable_root": false,
        "ssh_pwauth": false,
        "ssh_deletekeys": true,
        "ssh_genkeytypes": ["ed25519"],
        "ssh_authorized_keys": authorized,
    });
    if let Some(key) = host_key {
        config["ssh_keys"] =
            json!({ "ed25519_private": key.private, "ed25519_public": key.public });
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    use ssh_key::rand_core::OsRng;

    fn ed25519(comment: &str) -> PrivateKey {
        let mut key = PrivateKey::random(&mut OsRng, Algorithm::Ed25519).unwrap();
        key.set_comment(comment);
        key
    }

    fn seed() -> Seed {
        Seed {
            hostname: "l2".parse().unwrap(),
            authorized_keys: vec![ed25519("one").public_key().clone(), ed25519("").into()],
            host_key: Some(ed25519("l2")),
            network: SeedNetwork::default(),
        }
    }

    /// A place in one network, beside a gateway.
    fn network() -> SeedNetwork {
        let at = |last| Ipv4Addr::new(10, 0, 14, last);
        SeedNetwork {
            cards: vec![Card {
                network: "inner".to_owned(),
                mac: "52:54:00:01:02:03".to_owned(),
                address: at(2),
            }],
            neighbours: vec![Neighbour { name: "gateway".parse().unwrap(), address: at(1) }],
        }
    }

    /// Reads a file as a program of another author does.
    fn file(volume: &[u8], name: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed.img");
        fs_err::write(&path, volume).unwrap();
        let output = std::process::Command::new("mtype")
            .arg("-i")
            .arg(&path)
            .arg(format!("::{name}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_one_does_not() {
        let seed = seed();
        assert_eq!(seed.volume().unwrap(), seed.clone().volume().unwrap());
        let other = Seed { hostname: "l3".parse().unwrap(), ..seed.clone() };
        assert_ne!(seed.volume().unwrap(), other.volume().unwrap());
    }

    #[test]
    fn the_keys_that_go_in_come_out() {
        let seed = seed();
        let volume = seed.volume().unwrap();
        let key = PrivateKey::from_openssh(file(&volume, "ssh_host_ed25519_key")).unwrap();
        assert_eq!(key.public_key(), seed.host_key.as_ref().unwrap().public_key());
        let public = PublicKey::from_openssh(&file(&volume, "ssh_host_ed25519_key.pub")).unwrap();
        assert_eq!(&public, key.public_key());
        let authorized: Vec<PublicKey> = file(&volume, "authorized_keys")
            .lines()
            .map(|line| PublicKey::from_openssh(line).unwrap())
            .collect();
        assert_eq!(authorized, seed.authorized_keys);
        assert_eq!(file(&volume, "hostname"), "l2\n");
    }

    #[test]
    fn a_guest_is_told_its_addresses_and_its_neighbours_by_another_file_each_time() {
        let one = Seed { network: network(), ..seed() };
        let volume = one.volume().unwrap();
        assert_eq!(file(&volume, "network"), "52:54:00:01:02:03 10.0.14.2/24\n");
        assert_eq!(file(&volume, "hosts"), "10.0.14.1 gateway\n");
        let alone = SeedNetwork { neighbours: Vec::new(), ..network() };
        assert_ne!(one.network.file_name(), alone.file_name());
        assert_eq!(SeedNetwork::default().file_name(), "seed.img");
    }

    #[test]
    fn cloud_init_is_told_the_same_keys_as_our_own_images() {
        let seed = seed();
        let volume = seed.volume().unwrap();
        let user_data = file(&volume, "user-data");
        let config: serde_json::Value =
            serde_json::from_str(user_data.strip_prefix("#cloud-config\n").unwrap()).unwrap();
        assert_eq!(config["hostname"], "l2");
        assert_eq!(config["ssh_keys"]["ed25519_private"], file(&volume, "ssh_host_ed25519_key"));
        let authorized = file(&volume, "authorized_keys");
        assert_eq!(config["ssh_authorized_keys"], json!(authorized.lines().collect::<Vec<_>>()));
    }

    #[test]
    fn linux_finds_the_volume_by_its_label_and_a_bios_does_not_start_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed.img");
        let volume = seed().volume().unwrap();
        fs_err::write(&path, &volume).unwrap();
        let blkid = std::process::Command::new("blkid")
            .args(["--probe", "--output", "export"])
            .arg(&path)
            .env("PATH", "/usr/sbin:/sbin")
            .output()
            .unwrap();
        let found = String::from_utf8(blkid.stdout).unwrap();
        assert!(found.lines().any(|line| line == "LABEL=CIDATA"), "{found}");
        assert!(found.lines().any(|line| line == "TYPE=vfat"), "{found}");
        assert_ne!(&volume[BOOT_SIGNATURE], [0x55, 0xaa]);
    }

    #[test]
    fn without_a_host_key_none_is_on_the_volume() {
        let volume = Seed { host_key: None, ..seed() }.volume().unwrap();
        assert!(!file(&volume, "user-data").contains("PRIVATE KEY"));
        assert!(!String::from_utf8_lossy(&volume).contains("PRIVATE KEY"));
    }

    #[test]
    fn a_comment_with_a_line_break_cannot_smuggle_in_a_second_key() {
        let mut key: PublicKey = ed25519("").into();
        key.set_comment("x\nssh-ed25519 AAAA evil");
        let error = Seed { authorized_keys: vec![key], ..seed() }.volume().unwrap_err();
        assert_eq!(error.kind(), Kind::Internal);
    }

    #[test]
    fn the_file_is_readable_by_its_owner_alone_and_replaces_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap().join("seed.img");
        fs_err::write(&path, "old").unwrap();
        write(&path, &seed()).unwrap();
        let metadata = fs_err::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(metadata.len(), SIZE as u64);
    }
}
