//! Addresses with placeholders, and what they stand for.

use std::fmt;

use camino::Utf8PathBuf;
use serde::Serialize;
use url::Url;

use super::ImageVersion;
use crate::error::{Error, Kind, Result};

/// Text with the placeholders `{version}`, `{url}` and `{file}`, and no others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Template(String);

/// What the placeholders stand for while one address of an image is in use.
#[derive(Debug, Clone, Copy)]
pub struct Placeholders<'a> {
    /// `{version}`.
    pub version: &'a str,
    /// `{url}`: the address in use.
    pub url: &'a str,
    /// `{file}`: the last part of its path.
    pub file: &'a str,
}

const KNOWN: [&str; 3] = ["version", "url", "file"];

impl Template {
    /// Returns `text` as a template in which only the placeholders `allowed` may stand.
    ///
    /// # Errors
    /// The words for a person, if another placeholder or an unpaired brace is in it.
    pub(super) fn new(text: &str, allowed: &[&str]) -> Result<Self, String> {
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let inner = rest[at..].strip_prefix('{').and_then(|rest| rest.split_once('}'));
            match inner {
                Some((name, after)) if allowed.contains(&name) => rest = after,
                Some((name, _)) if KNOWN.contains(&name) => {
                    return Err(format!("`{{{name}}}` has no meaning here"));
                }
                Some((name, _)) => {
                    return Err(format!(
                        "`{{{}}}` is not a placeholder; there are {{version}}, {{url}} and {{file}}",
                        name.escape_debug()
                    ));
                }
                None => return Err("a brace without its other half".to_owned()),
            }
        }
        Ok(Template(text.to_owned()))
    }

    /// Returns the text with every placeholder replaced.
    pub fn expand(&self, with: Placeholders<'_>) -> String {
        let mut out = String::with_capacity(self.0.len() + with.url.len());
        let mut rest = self.0.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').expect("a template's braces are paired");
            out.push_str(before);
            out.push_str(match name {
                "version" => with.version,
                "url" => with.url,
                _ => with.file,
            });
            rest = after;
        }
        out + rest
    }

    /// Returns the template as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the address that this template gives for `version`, and the file's name.
    ///
    /// # Errors
    /// [`Kind::Recipe`] if what comes out is not an `http` or `https` address of a file whose name is
    /// plain: it becomes a file's name here, and what a signature's notation is compared with.
    pub fn image_url(&self, version: Option<&ImageVersion>) -> Result<(Url, String)> {
        let version = version.map_or("", ImageVersion::as_str);
        let text = self.expand(Placeholders { version, url: "", file: "" });
        let bad = |why: &str| Error::new(Kind::Recipe, format!("`{text}` {why}"));
        let url = Url::parse(&text).map_err(|error| bad("is not an address").with_source(error))?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err(bad("is neither an https nor an http address"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad("has a query or fragment; `{url}.asc` would not be a file beside it"));
        }
        let file = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or("");
        if !is_plain_file_name(file) {
            return Err(bad("does not end in a plain file name"));
        }
        let file = file.to_owned();
        Ok((url, file))
    }
}

/// Returns whether `name` can be a file's name anywhere: letters, digits and `._+~-`, not hidden.
pub(in crate::image) fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b))
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Where a small file beside an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Location {
    /// An address.
    Url(Template),
    /// An absolute path on this machine.
    Path(Utf8PathBuf),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Url(template) => write!(f, "{template}"),
            Location::Path(path) => write!(f, "{path}"),
        }
    }
}
