//! Keys and signatures made for one run: good OpenPGP and signify ones, and every odd kind.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use ed25519_dalek::Signer as _;
use sequoia_openpgp::armor::Kind;
use sequoia_openpgp::cert::{CertBuilder, CertRevocationBuilder, SubkeyRevocationBuilder};
use sequoia_openpgp::crypto::KeyPair;
use sequoia_openpgp::packet::signature::SignatureBuilder;
use sequoia_openpgp::packet::signature::subpacket::NotationDataFlags;
use sequoia_openpgp::packet::{Key, key};
use sequoia_openpgp::serialize::SerializeInto as _;
use sequoia_openpgp::types::{HashAlgorithm, KeyFlags, ReasonForRevocation, SignatureType};
use sequoia_openpgp::{Cert, Packet, Profile};

/// A day.
pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns the time so many days ago, in whole seconds, as OpenPGP has them.
pub fn days_ago(days: u32) -> SystemTime {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()) - DAY * days
}

/// An OpenPGP key with everything that is needed to sign.
#[derive(Clone)]
pub struct PgpKey {
    pub cert: Cert,
}

/// How a signature is made.
#[derive(Clone)]
pub struct Signing {
    pub time: SystemTime,
    pub notations: Vec<(String, String)>,
    pub hash: HashAlgorithm,
    pub kind: SignatureType,
    pub lives: Option<Duration>,
    /// Sign with the primary key instead of the signing subkey.
    pub by_primary: bool,
}

impl Signing {
    /// A good signature, made yesterday, over the file called `file`.
    pub fn of(file: &str) -> Self {
        Signing {
            time: days_ago(1),
            notations: vec![("file@name".to_owned(), file.to_owned())],
            hash: HashAlgorithm::SHA512,
            kind: SignatureType::Binary,
            lives: None,
            by_primary: false,
        }
    }
}

impl PgpKey {
    /// A key like Kicksecure's: a primary key that certifies, and a subkey that signs; a year old.
    pub fn new() -> Self {
        Self::built(CertBuilder::new().add_signing_subkey())
    }

    /// The same as a version 6 key, whose signatures hash a salt ahead of the bytes.
    pub fn version_6() -> Self {
        let builder = CertBuilder::new().set_profile(Profile::RFC9580).expect("is known");
        Self::built(builder.add_signing_subkey())
    }

    /// A key whose primary key signs.
    pub fn signing_primary() -> Self {
        Self::built(
            CertBuilder::new()
                .set_primary_key_flags(KeyFlags::empty().set_certification().set_signing()),
        )
    }

    /// A key that expired a month ago.
    pub fn expired() -> Self {
        Self::built(CertBuilder::new().set_validity_period(DAY * 335).add_signing_subkey())
    }

    /// A key whose signing subkey expired a month ago.
    pub fn expired_subkey() -> Self {
        Self::built(CertBuilder::new().add_subkey(
            KeyFlags::empty().set_signing(),
            Some(DAY * 335),
            None,
        ))
    }

    /// A key whose only subkey is for logging in, not for signing files.
    pub fn authentication_subkey() -> Self {
        Self::built(CertBuilder::new().add_authentication_subkey())
    }

    fn built(builder: CertBuilder<'_>) -> Self {
        let (cert, _) = builder
            .add_userid("nestlab's tests <tests@example.org>")
            .set_creation_time(days_ago(365))
            .generate()
            .expect("a key is made");
        PgpKey { cert }
    }

    /// This key, revoked so many days ago, for `why`.
    pub fn revoked(mut self, why: ReasonForRevocation, days: u32) -> Self {
        let mut signer = self.primary();
        let revocation = CertRevocationBuilder::new()
            .set_reason_for_revocation(why, b"test")
            .and_then(|builder| builder.set_signature_creation_time(days_ago(days)))
            .and_then(|builder| builder.build(&mut signer, &self.cert, None))
            .expect("a revocation is made");
        self.cert = self.with(vec![revocation.into()]);
        self
    }

    /// This key, with its subkey revoked.
    pub fn revoked_subkey(mut self) -> Self {
        let mut signer = self.primary();
        let subkey = self.cert.keys().subkeys().next().expect("a subkey").key().clone();
        let revocation = SubkeyRevocationBuilder::new()
            .set_reason_for_revocation(ReasonForRevocation::KeyCompromised, b"test")
            .and_then(|builder| builder.set_signature_creation_time(days_ago(30)))
            .and_then(|builder| builder.build(&mut signer, &self.cert, &subkey, None))
            .expect("a revocation is made");
        self.cert = self.with(vec![revocation.into()]);
        self
    }

    /// This key with another's subkey bound to it as a signing one, without that subkey's consent (the
    /// back signature): what an attacker does who wants another's signatures to count as his.
    pub fn with_stolen_subkey(mut self, other: &PgpKey) -> Self {
        let subkey = other.cert.keys().subkeys().next().expect("a subkey").key().clone();
        let mut signer = self.primary();
        let public = subkey.clone().parts_into_public().role_into_subordinate();
        let binding = SignatureBuilder::new(SignatureType::SubkeyBinding)
            .set_signature_creation_time(days_ago(100))
            .and_then(|builder| builder.set_key_flags(KeyFlags::empty().set_signing()))
            .and_then(|builder| {
                builder.sign_subkey_binding(&mut signer, self.cert.primary_key().key(), &public)
            })
            .expect("a binding is made");
        let secret: Key<key::SecretParts, key::SubordinateRole> =
            subkey.parts_into_secret().expect("with its secret").role_into_subordinate();
        self.cert = self.with(vec![secret.into(), binding.into()]);
        self
    }

    fn with(&self, packets: Vec<Packet>) -> Cert {
        self.cert.clone().insert_packets(packets).expect("packets that belong").0
    }

    fn primary(&self) -> KeyPair {
        let key = self.cert.primary_key().key().clone();
        key.parts_into_secret().expect("with its secret").into_keypair().expect("unencrypted")
    }

    fn signer(&self, by_primary: bool) -> KeyPair {
        let subkey = self.cert.keys().subkeys().last().filter(|_| !by_primary);
        match subkey {
            None => self.primary(),
            Some(subkey) => subkey
                .key()
                .clone()
                .parts_into_secret()
                .expect("with its secret")
                .into_keypair()
                .expect("unencrypted"),
        }
    }

    /// The fingerprint of the primary key.
    pub fn fingerprint(&self) -> String {
        self.cert.fingerprint().to_hex()
    }

    /// The public key file, armored.
    pub fn file(&self) -> Vec<u8> {
        self.cert.armored().to_vec().expect("serializes")
    }

    /// A detached signature packet over `data`.
    pub fn packet(&self, data: &[u8], how: &Signing) -> Packet {
        let mut signer = self.signer(how.by_primary);
        let mut builder = SignatureBuilder::new(how.kind)
            .set_hash_algo(how.hash)
            .set_signature_creation_time(how.time)
            .expect("a time");
        if let Some(lives) = how.lives {
            builder = builder.set_signature_validity_period(lives).expect("a period");
        }
        for (name, value) in &how.notations {
            builder = builder
                .add_notation(name, value, NotationDataFlags::empty().set_human_readable(), false)
                .expect("a notation");
        }
        builder.sign_message(&mut signer, data).expect("signs").into()
    }

    /// A detached signature file over `data`, armored.
    pub fn sign(&self, data: &[u8], how: &Signing) -> Vec<u8> {
        armored(&[self.packet(data, how)])
    }
}

/// A signature file with these packets.
pub fn armored(packets: &[Packet]) -> Vec<u8> {
    use std::io::Write as _;
    let mut writer =
        sequoia_openpgp::armor::Writer::new(Vec::new(), Kind::Signature).expect("a writer");
    for packet in packets {
        writer.write_all(&packet.to_vec().expect("serializes")).expect("writes");
    }
    writer.finalize().expect("finishes")
}

/// A signify key pair.
#[derive(Clone)]
pub struct SignifyKey {
    pub number: [u8; 8],
    pub secret: ed25519_dalek::SigningKey,
}

impl SignifyKey {
    /// A new key pair.
    pub fn new() -> Self {
        let mut bytes = [0; 40];
        sequoia_openpgp::crypto::random(&mut bytes).expect("randomness");
        let (number, seed) = bytes.split_first_chunk().expect("forty bytes");
        let seed: &[u8; 32] = seed.try_into().expect("the rest");
        SignifyKey { number: *number, secret: ed25519_dalek::SigningKey::from_bytes(seed) }
    }

    fn encoded(&self, payload: &[u8]) -> String {
        let bytes = [b"Ed", &self.number[..], payload].concat();
        base64::engine::general_purpose::STANDARD.encode(bytes)
    }

    /// The public key: the base64 line.
    pub fn public(&self) -> String {
        self.encoded(self.secret.verifying_key().as_bytes())
    }

    /// A signature file over `data`.
    pub fn sign(&self, data: &[u8]) -> Vec<u8> {
        let made = self.secret.sign(data).to_bytes();
        format!("untrusted comment: verify with test.pub\n{}\n", self.encoded(&made)).into_bytes()
    }
}
