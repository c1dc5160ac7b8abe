//! A publisher of images on loopback, with Kicksecure's URL layout and keys made for the run.
//!
//! ```ignore
//! let publisher = Publisher::start();
//! let release = publisher.publish_ova("LXQt", "18.2.1.9", ova);
//! let manifest = publisher.manifest_toml(&release);   // or .manifest(&release)
//! ```

pub mod ova;
pub mod proxy;
pub mod server;
pub mod signing;

use std::sync::Arc;

use sha2::Digest as _;

use server::Server;
use signing::{PgpKey, SignifyKey, Signing};

/// A publisher; everything it has published is served until it is dropped.
pub struct Publisher {
    pub server: Server,
    pub pgp: PgpKey,
    pub signify: SignifyKey,
}

/// A published image and the small files beside it.
#[derive(Clone)]
pub struct Release {
    /// The manifest's name for it, such as `kicksecure-lxqt`.
    pub name: String,
    pub version: String,
    /// The manifest's format, such as `ova`.
    pub format: &'static str,
    /// Its path on the server.
    pub path: String,
    /// The last part of its path.
    pub file: String,
    pub bytes: Arc<[u8]>,
}

impl Release {
    /// The path of the file beside it with this ending, such as `.asc`.
    pub fn beside(&self, ending: &str) -> String {
        format!("{}{ending}", self.path)
    }

    /// The lines of its `.sha512sums`.
    pub fn sums(&self) -> String {
        format!("{}  {}\n", hex::encode(sha2::Sha512::digest(&self.bytes)), self.file)
    }
}

impl Publisher {
    /// Starts a publisher with new keys.
    pub fn start() -> Self {
        Self::on(Server::start())
    }

    /// Starts a publisher with new keys that speaks HTTPS, and returns it with its certificate.
    pub fn start_tls() -> (Self, String) {
        let (server, certificate) = Server::start_tls();
        (Self::on(server), certificate)
    }

    fn on(server: Server) -> Self {
        let publisher = Publisher { server, pgp: PgpKey::new(), signify: SignifyKey::new() };
        publisher.server.serve("/keys/derivative.asc", publisher.pgp.file());
        publisher
    }

    /// Publishes an OVA as Kicksecure does: with `.asc`, `.sha512sums`, and that one's `.asc` and `.sig`.
    pub fn publish_ova(&self, flavor: &str, version: &str, bytes: impl Into<Arc<[u8]>>) -> Release {
        self.publish("ova", "ova", "Intel_AMD64.ova", flavor, version, bytes.into())
    }

    /// Publishes raw bytes in the place of an OVA: what arrives and is proven need not be a disk.
    pub fn publish_raw(&self, version: &str, bytes: impl Into<Arc<[u8]>>) -> Release {
        self.publish("raw", "ova", "Intel_AMD64.ova", "LXQt", version, bytes.into())
    }

    fn publish(
        &self,
        format: &'static str,
        folder: &str,
        end: &str,
        flavor: &str,
        version: &str,
        bytes: Arc<[u8]>,
    ) -> Release {
        let file = format!("Kicksecure-{flavor}-{version}.{end}");
        let release = Release {
            name: format!("kicksecure-{}", flavor.to_lowercase()),
            version: version.to_owned(),
            format,
            path: format!("/download/{folder}/{version}/{file}"),
            file,
            bytes,
        };
        self.server.serve(&release.path, release.bytes.clone());
        self.sign(&release, &Signing::of(&release.file));
        release
    }

    /// Publishes everything else about a release anew under another version's name: an attacker's way
    /// to pass one signed image off as another.
    pub fn pass_off(&self, other: &Release, as_if: &Release) {
        let log_of = |path: &str| self.server.current(path).expect("published");
        for end in ["", ".asc", ".sha512sums", ".sha512sums.asc", ".sha512sums.sig"] {
            self.server.serve(&as_if.beside(end), log_of(&other.beside(end)));
        }
    }

    /// Signs a release anew: the image with `how`, its checksum file as always.
    pub fn sign(&self, release: &Release, how: &Signing) {
        let sums = release.sums();
        let sums_name = format!("{}.sha512sums", release.file);
        let over_sums = Signing { notations: Signing::of(&sums_name).notations, ..how.clone() };
        let serve = |end: &str, body: Vec<u8>| self.server.serve(&release.beside(end), body);
        serve(".asc", self.pgp.sign(&release.bytes, how));
        serve(".sha512sums.asc", self.pgp.sign(sums.as_bytes(), &over_sums));
        serve(".sha512sums.sig", self.signify.sign(sums.as_bytes()));
        serve(".sha512sums", sums.into_bytes());
    }

    /// Says which version is the newest, as Kicksecure's wiki does.
    pub fn announce(&self, version: &str) {
        let page = format!("{version}<noinclude>\n[[Category:Template]]\n</noinclude>\n");
        self.server.serve("/latest", page.into_bytes());
    }

    /// The text of a manifest that demands every proof of `release`.
    pub fn manifest_toml(&self, release: &Release) -> String {
        let url = self.server.url();
        let path = release.path.replace(&release.version, "{version}");
        format!(
            r#"schema = 1
name = "{name}"
version = "{version}"
arch = "x86_64"
format = "{format}"
urls = ["{url}{path}"]

[openpgp]
fingerprint = "{fingerprint}"
key = "{url}/keys/derivative.asc"
signature = "{{url}}.asc"
notations = {{ "file@name" = "{{file}}" }}
not-before = 2020-01-01

[checksums]
url = "{{url}}.sha512sums"
signify = {{ key = "{signify}", signature = "{{url}}.sha512sums.sig" }}
openpgp = {{ signature = "{{url}}.sha512sums.asc", notations = {{ "file@name" = "{{file}}.sha512sums" }} }}

[latest]
url = "{url}/latest"
"#,
            name = release.name,
            version = release.version,
            format = release.format,
            fingerprint = self.pgp.fingerprint(),
            signify = self.signify.public(),
        )
    }
}
