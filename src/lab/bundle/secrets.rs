//! Removes secrets from what goes into a bundle. The keys' files are never read into it; this is for
//! what a program may have printed.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::bytes::{Captures, Regex};

use crate::error::Result;
use crate::lab::Lab;

/// What stands where a secret was.
pub(super) const MARK: &str = "[removed]";

/// Any private key in PEM, whole or cut off at the end.
static PRIVATE_KEY: LazyLock<Regex> = LazyLock::new(|| {
    let pattern =
        "(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\\z)";
    Regex::new(pattern).expect("a sound pattern")
});

/// The user and password in a URL.
static USER_INFO: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r#"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@"'<>]+@"#).expect("a sound pattern")
});

/// The least length of a line of a key that is looked for: shorter ones are its last, or its frame.
const LINE: usize = 32;

/// Knows the lab's secrets.
pub(super) struct Secrets {
    lines: Vec<Vec<u8>>,
}

impl Secrets {
    /// Reads the private keys of `lab`.
    pub(super) fn of(lab: &Lab) -> Result<Self> {
        let mut lines = Vec::new();
        for entry in fs_err::read_dir(lab.keys_directory())? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "pub") {
                continue;
            }
            let key = fs_err::read(path)?;
            let body = key.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"-----"));
            lines.extend(body.filter(|line| line.len() >= LINE).map(<[u8]>::to_vec));
        }
        Ok(Secrets { lines })
    }

    /// Returns `bytes` without secrets.
    pub(super) fn removed_from<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if bytes.contains(&0) {
            // A picture or another binary: no text to look through.
            return Cow::Borrowed(bytes);
        }
        let mut text = PRIVATE_KEY.replace_all(bytes, MARK.as_bytes()).into_owned();
        for line in &self.lines {
            let line = regex::escape(&String::from_utf8_lossy(line));
            let line = Regex::new(&line).expect("an escaped text is a sound pattern");
            text = line.replace_all(&text, MARK.as_bytes()).into_owned();
        }
        let without_user = |found: &Captures<'_>| [&found[1], MARK.as_bytes(), b"@"].concat();
        Cow::Owned(USER_INFO.replace_all(&text, without_user).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(text: &str) -> String {
        let clean = Secrets { lines: vec![b"b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAA".to_vec()] };
        String::from_utf8(clean.removed_from(text.as_bytes()).into_owned()).expect("UTF-8")
    }

    #[test]
    fn keys_whole_cut_off_and_in_pieces_are_removed() {
        let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----";
        assert_eq!(removed(&format!("a {key} b {key}")), "a [removed] b [removed]");
        assert_eq!(removed(&key[..50]), "[removed]");
        assert_eq!(removed("x b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAA y"), "x [removed] y");
    }

    #[test]
    fn passwords_in_urls_are_removed_and_the_rest_of_the_url_is_kept() {
        assert_eq!(
            removed("get http://me:pw@mirror.example/x and user@host"),
            "get http://[removed]@mirror.example/x and user@host"
        );
        assert_eq!(removed("https://mirror.example/a@b"), "https://mirror.example/a@b");
    }

    #[test]
    fn pictures_stay_as_they_are() {
        let picture = b"\x89PNG\0\x01http://a:b@c/";
        assert_eq!(&*Secrets { lines: Vec::new() }.removed_from(picture), picture);
    }
}
