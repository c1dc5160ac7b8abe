//! Files of checksums, as `sha512sum` (GNU) and `sha512 -r`/`--tag` (BSD) write them.

use crate::error::{Error, Kind, Result};
use crate::image::digest::{Sha256, Sha512};

/// One file's checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sum {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

/// Returns the sum that the checksum file `text` gives for the file called `file`.
///
/// The file may name others too, but this one exactly once, by its name alone. A line that is not a
/// checksum makes the whole file refused: what cannot be read cannot be vouched for.
///
/// # Errors
/// [`Kind::Untrusted`], with the line, for anything else.
pub fn of_file(text: &[u8], file: &str) -> Result<Sum> {
    let refused = |why: String| Error::new(Kind::Untrusted, format!("checksum file: {why}"));
    let text = std::str::from_utf8(text).map_err(|_| refused("it is not text".to_owned()))?;
    let mut found = None;
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let (sum, name) = bsd(line)
            .or_else(|| gnu(line))
            .ok_or_else(|| refused(format!("line {} is not a checksum", number + 1)))?;
        if name.contains(['/', '\\']) || name.chars().any(char::is_control) {
            return Err(refused(format!("line {} names a path, not a file", number + 1)));
        }
        if name == file && found.replace(sum).is_some() {
            return Err(refused(format!("it names {file} more than once")));
        }
    }
    found.ok_or_else(|| refused(format!("it does not name {file}")))
}

/// `<hex>  name`, or `<hex> *name` for binary mode.
fn gnu(line: &str) -> Option<(Sum, &str)> {
    let (digest, rest) = line.split_once(' ')?;
    let name = rest.strip_prefix([' ', '*'])?;
    (!name.is_empty()).then_some(())?;
    Some((sum(digest)?, name))
}

/// `SHA512 (name) = <hex>`.
fn bsd(line: &str) -> Option<(Sum, &str)> {
    let (algorithm, rest) = line.split_once(" (")?;
    let (name, digest) = rest.rsplit_once(") = ")?;
    (!name.is_empty()).then_some(())?;
    let sum = sum(digest)?;
    match (algorithm, sum) {
        ("SHA256", Sum::Sha256(_)) | ("SHA512", Sum::Sha512(_)) => Some((sum, name)),
        _ => None,
    }
}

fn sum(hex: &str) -> Option<Sum> {
    match hex.len() {
        64 => hex.parse().ok().map(Sum::Sha256),
        128 => hex.parse().ok().map(Sum::Sha512),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex512(c: char) -> String {
        c.to_string().repeat(128)
    }

    #[test]
    fn both_forms_are_read() {
        let want = Sum::Sha512(hex512('a').parse().expect("hex"));
        for text in [
            format!("{}  a.ova\n", hex512('a')),
            format!("{} *a.ova", hex512('a')),
            format!("SHA512 (a.ova) = {}\n", hex512('a')),
            format!("{}  b.ova\n\n{}  a.ova\n", hex512('b'), hex512('a')),
        ] {
            assert_eq!(of_file(text.as_bytes(), "a.ova").expect("names it once"), want, "{text}");
        }
        let short = format!("SHA256 (a.ova) = {}", "c".repeat(64));
        assert!(matches!(of_file(short.as_bytes(), "a.ova"), Ok(Sum::Sha256(_))));
    }

    #[test]
    fn what_is_not_one_plain_entry_is_refused() {
        let line = format!("{}  a.ova\n", hex512('a'));
        for (text, part) in [
            (String::new(), "does not name"),
            (format!("{line}{line}"), "more than once"),
            (format!("{line}{}  a.ova\n", hex512('b')), "more than once"),
            (format!("{}  /tmp/a.ova\n", hex512('a')), "path"),
            (format!("{}  ../a.ova\n{line}", hex512('a')), "path"),
            (format!("\\{}  a\\n.ova\n", hex512('a')), "not a checksum"),
            (format!("{}  a.ova\n", "a".repeat(127)), "not a checksum"),
            (format!("SHA256 (a.ova) = {}\n", hex512('a')), "not a checksum"),
            (format!("<html>\n{line}"), "not a checksum"),
            (format!("{}  a.ova.old\n", hex512('a')), "does not name"),
        ] {
            let error = of_file(text.as_bytes(), "a.ova").expect_err(part);
            assert_eq!(error.kind(), Kind::Untrusted);
            assert!(error.message().contains(part), "{text:?}: {error}");
        }
        assert!(of_file(b"\xff\xfe", "a.ova").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = of_file(&text, "a.ova");
        }
    }
}
