//! Removes secrets from what goes into a bundle. The keys' files are never read into it; this is for
//! what a program may have printed, and looks at bytes: a log with a NUL in it is still a log.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use regex::bytes::Regex;

use crate::error::Result;
use crate::lab::Lab;

/// What stands where a secret was.
pub(super) const MARK: &str = "[removed]";

/// How many characters of a key in a row are removed: 12 of its bytes.
const RUN: usize = 16;

/// What is a secret whoever's it is. Where a pattern has a group, that is the secret, else all of it.
static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let patterns = [
        // A private key in PEM, whole or cut off at the end.
        r"(?s-u)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)",
        // One that is cut off at its beginning.
        r"(?m-u)(?:^[A-Za-z0-9+/=]{1,80}\r?\n)*[A-Za-z0-9+/=]*-----END [A-Z0-9 ]*PRIVATE KEY-----",
        // User and password in a URL.
        r#"(?-u)[A-Za-z][A-Za-z0-9+.-]*://([^\s/@"'<>\x00-\x1f\x7f]+)@"#,
        // Headers whose value lets somebody in.
        r#"(?i-u)\b(?:proxy-)?authorization\\*["']?[ \t]*[:=][ \t]*([^\r\n]+)"#,
        r#"(?i-u)\b(?:set-)?cookie\\*["']?[ \t]*[:=][ \t]*([^\r\n]+)"#,
        r"(?i-u)\bbearer[ \t]+([a-z0-9._~+/=-]{8,})",
        // What is called a secret where it is assigned.
        r#"(?i-u)(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key)\\*["']?[ \t]*[:=][ \t]*\\*["']?([^\s"'\\,;&<>]{3,})"#,
        // Tokens that are known by how they begin.
        r"(?-u)\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[A-Za-z0-9_-]{16,}",
        r"(?-u)\bAKIA[0-9A-Z]{16}\b",
        r"(?-u)\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+",
    ];
    patterns.map(|pattern| Regex::new(pattern).expect("a sound pattern")).into()
});

/// Knows the lab's secrets.
pub(super) struct Secrets {
    /// Every run of [`RUN`] characters in the spellings of a key.
    runs: HashSet<u128>,
    /// The same of the keys' own bytes, as they are in memory.
    bare: HashSet<u128>,
}

impl Secrets {
    /// Reads the private keys of `lab`.
    pub(super) fn of(lab: &Lab) -> Result<Self> {
        let mut secrets = Secrets { runs: HashSet::new(), bare: HashSet::new() };
        for entry in fs_err::read_dir(lab.keys_directory())? {
            let entry = entry?;
            let path = entry.path();
            let is_public = path.extension().is_some_and(|ending| ending == "pub");
            if entry.file_type()?.is_file() && !is_public {
                secrets.know(&fs_err::read(path)?);
            }
        }
        Ok(secrets)
    }

    /// Remembers the private key with this text in every spelling that a program may have given it.
    fn know(&mut self, pem: &[u8]) {
        let lines = pem.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"-----"));
        self.know_spelling(&lines.collect::<Vec<_>>().concat());
        self.know_in_base64(pem);
        let key = ssh_key::PrivateKey::from_openssh(pem).ok();
        if let Some(pair) = key.as_ref().and_then(|key| key.key_data().ed25519()) {
            let bytes = pair.private.to_bytes();
            self.know_in_base64(&bytes);
            self.know_spelling(hex::encode(bytes).as_bytes());
            self.know_spelling(hex::encode_upper(bytes).as_bytes());
            self.bare.extend(bytes.windows(RUN).map(run));
        }
        // The public half is in the private key too, and is to be seen.
        let public = key.and_then(|key| key.public_key().to_bytes().ok()).unwrap_or_default();
        for public in in_base64(&public) {
            for run in runs_of(&public) {
                self.runs.remove(&run);
            }
        }
    }

    fn know_in_base64(&mut self, bytes: &[u8]) {
        in_base64(bytes).iter().for_each(|text| self.know_spelling(text));
    }

    fn know_spelling(&mut self, text: &[u8]) {
        self.runs.extend(runs_of(text));
    }

    /// Returns `bytes` without secrets.
    pub(super) fn removed_from(&self, bytes: &[u8]) -> Vec<u8> {
        let mut secret = self.pieces_of_keys(bytes);
        let text = View::of(bytes, |_| true);
        for pattern in PATTERNS.iter() {
            for found in pattern.captures_iter(&text.kept) {
                let what = found.get(1).or(found.get(0)).expect("the whole is always there");
                secret.extend(text.place(what.range()));
            }
        }
        without(bytes, secret)
    }

    /// Finds where the lab's keys are, also across line breaks, NULs and whatever else is no part of a key.
    fn pieces_of_keys(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let view = View::of(bytes, is_of_key);
        let spelled = runs_in(&view.kept, &self.runs).filter_map(|range| view.place(range));
        spelled.chain(runs_in(bytes, &self.bare)).collect()
    }
}

/// Returns where one of `runs` is in `bytes`.
fn runs_in(bytes: &[u8], runs: &HashSet<u128>) -> impl Iterator<Item = Range<usize>> {
    let mut last = 0;
    bytes.iter().enumerate().filter_map(move |(at, byte)| {
        last = last << 8 | u128::from(*byte);
        (at + 1 >= RUN && runs.contains(&last)).then(|| at + 1 - RUN..at + 1)
    })
}

/// Base64 spells bytes in three ways, depending on what is in front of them.
fn in_base64(bytes: &[u8]) -> [Vec<u8>; 3] {
    [0, 1, 2].map(|skipped| BASE64.encode(&bytes[skipped.min(bytes.len())..]).into_bytes())
}

fn runs_of(text: &[u8]) -> impl Iterator<Item = u128> {
    text.windows(RUN).map(run)
}

fn run(window: &[u8]) -> u128 {
    window.iter().fold(0, |run, byte| run << 8 | u128::from(*byte))
}

/// Returns whether `byte` can be a part of a key in base64 or hex.
fn is_of_key(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/'
}

/// Bytes as they read without what a terminal, a log or JSON put between them.
struct View {
    kept: Vec<u8>,
    /// Where each of them was.
    places: Vec<usize>,
}

impl View {
    /// Leaves out NULs, terminal sequences, JSON's escapes of line breaks if those are left out as well,
    /// and all that `wanted` does not want.
    fn of(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> Self {
        let mut view = View { kept: Vec::new(), places: Vec::new() };
        let mut at = 0;
        while at < bytes.len() {
            let skipped = match bytes[at..] {
                [0, ..] => 1,
                [0x1b, b'[', ref rest @ ..] => {
                    2 + rest.iter().take_while(|byte| !(0x40..0x7f).contains(*byte)).count() + 1
                }
                [b'\\', b'n' | b'r' | b't', ..] if !wanted(b'\n') => 2,
                [b'\\', b'u', b'0', b'0', _, _, ..] if !wanted(b'\n') => 6,
                [byte, ..] if !wanted(byte) => 1,
                _ => 0,
            };
            if skipped == 0 {
                view.kept.push(bytes[at]);
                view.places.push(at);
            }
            at += skipped.max(1);
        }
        view
    }

    /// Returns where a range of what is kept was; `None` for an empty one.
    fn place(&self, range: Range<usize>) -> Option<Range<usize>> {
        let first = *self.places.get(range.start)?;
        let last = *self.places.get(range.end.checked_sub(1)?)?;
        (first <= last).then(|| first..last + 1)
    }
}

/// Returns `bytes` with [`MARK`] in the place of each of these ranges.
fn without(bytes: &[u8], mut ranges: Vec<Range<usize>>) -> Vec<u8> {
    ranges.sort_by_key(|range| range.start);
    let mut ranges = ranges.into_iter().peekable();
    let (mut clean, mut done) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(mut range) = ranges.next() {
        while let Some(next) = ranges.next_if(|next| next.start <= range.end) {
            range.end = range.end.max(next.end);
        }
        clean.extend_from_slice(&bytes[done..range.start]);
        clean.extend_from_slice(MARK.as_bytes());
        done = range.end;
    }
    clean.extend_from_slice(&bytes[done..]);
    clean
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ssh_key::{Algorithm, LineEnding, PrivateKey};

    use super::*;

    fn knowing(pem: &str) -> Secrets {
        let mut secrets = Secrets { runs: HashSet::new(), bare: HashSet::new() };
        secrets.know(pem.as_bytes());
        secrets
    }

    fn removed(text: &str) -> String {
        let clean = knowing("b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAA").removed_from(text.as_bytes());
        String::from_utf8(clean).expect("UTF-8")
    }

    fn a_key() -> PrivateKey {
        PrivateKey::random(&mut ssh_key::rand_core::OsRng, Algorithm::Ed25519).expect("a key")
    }

    fn pem(key: &PrivateKey) -> String {
        key.to_openssh(LineEnding::LF).expect("encodes").to_string()
    }

    #[test]
    fn keys_whole_cut_off_and_in_pieces_are_removed() {
        let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----";
        assert_eq!(removed(&format!("a {key} b {key}")), "a [removed] b [removed]");
        assert_eq!(removed(&key[..50]), "[removed]");
        assert_eq!(removed(&format!("said:\n{}", &key[36..])), "said:\n[removed]");
        assert_eq!(removed("x b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAA y"), "x [removed] y");
        assert_eq!(removed("x b3BlbnNzaC1r\0ZXktdjEA\r\nAAAABG5v y"), "x [removed] y");
    }

    #[test]
    fn a_key_is_found_in_every_spelling_and_as_bare_bytes() {
        let key = a_key();
        let bytes = key.key_data().ed25519().expect("is one").private.to_bytes();
        let secrets = knowing(&pem(&key));
        let inside = |text: &[u8]| BASE64.encode([b"ab", text].concat());
        for said in [
            inside(pem(&key).as_bytes()).into_bytes(),
            inside(&bytes).into_bytes(),
            hex::encode(bytes).into_bytes(),
            [&b"\x00\xff memory: "[..], &bytes[..]].concat(),
        ] {
            let clean = secrets.removed_from(&said);
            assert!(clean.len() < said.len() / 2 + MARK.len() + 8, "{clean:?} of {said:?}");
        }
    }

    #[test]
    fn public_keys_stay() {
        let key = a_key();
        let line = key.public_key().to_openssh().expect("encodes");
        let clean = knowing(&pem(&key)).removed_from(line.as_bytes());
        assert_eq!(String::from_utf8(clean).expect("UTF-8"), line);
    }

    #[test]
    fn passwords_in_urls_are_removed_and_the_rest_of_the_url_is_kept() {
        assert_eq!(
            removed("get http://me:pw@mirror.example/x and user@host"),
            "get http://[removed]@mirror.example/x and user@host"
        );
        assert_eq!(removed("https://mirror.example/a@b"), "https://mirror.example/a@b");
        assert_eq!(removed("ftp://me:p\0w@mirror.example"), "ftp://[removed]@mirror.example");
    }

    #[test]
    fn tokens_cookies_and_what_is_called_a_secret_are_removed() {
        for (said, left) in [
            (
                "> Authorization: Basic bWU6cHc=\r\n> Accept: *",
                "> Authorization: [removed]\r\n> Accept: *",
            ),
            ("Set-Cookie: id=1; Path=/\nnext", "Set-Cookie: [removed]\nnext"),
            ("curl -H 'x' bearer abcdef.12345", "curl -H 'x' bearer [removed]"),
            ("GET /x?access_token=abc123&page=2", "GET /x?access_token=[removed]&page=2"),
            (r#"{"password":"hunter2","n":1}"#, r#"{"password":"[removed]","n":1}"#),
            (r#"{\"token\": \"hunter2\"}"#, r#"{\"token\": \"[removed]\"}"#),
            ("clone with ghp_0123456789abcdefghij now", "clone with [removed] now"),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmVk", "[removed]"),
            ("p\0assword=hun\0ter2", "p\0assword=[removed]"),
        ] {
            assert_eq!(removed(said), left, "{said:?}");
        }
        for harmless in
            ["l1 login: \nPassword: \nLogin incorrect", "started Forward Password Requests"]
        {
            assert_eq!(removed(harmless), harmless);
        }
    }

    #[test]
    fn a_picture_without_secrets_stays_as_it_is() {
        let picture: Vec<u8> =
            (0..100_000_u32).map(|at| (at.wrapping_mul(at) >> 3) as u8).collect();
        assert!(knowing(&pem(&a_key())).removed_from(&picture) == picture);
    }

    proptest! {
        #[test]
        fn no_part_of_a_key_is_left_whatever_stands_around_and_between_its_characters(
            before in prop::collection::vec(any::<u8>(), 0..200),
            after in prop::collection::vec(any::<u8>(), 0..200),
            between in prop::collection::vec((0..400_usize, "[\0\r\n \t|]{1,4}"), 0..30),
        ) {
            let key = a_key();
            let pem = pem(&key);
            let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
            let mut said = body.clone().into_bytes();
            for (at, junk) in between {
                let at = at % said.len();
                said.splice(at..at, junk.bytes());
            }
            let said = [before, vec![b'\n'], said, vec![b'\n'], after].concat();
            let clean = knowing(&pem).removed_from(&said);
            let left: Vec<u8> = clean.into_iter().filter(|byte| is_of_key(*byte)).collect();
            let public = in_base64(&key.public_key().to_bytes().expect("encodes"));
            let is_public = |piece: &[u8]| public.iter().any(|text| text.windows(RUN).any(|p| p == piece));
            for piece in body.as_bytes().windows(RUN).filter(|piece| !is_public(piece)) {
                prop_assert!(!left.windows(RUN).any(|window| window == piece));
            }
        }
    }
}
