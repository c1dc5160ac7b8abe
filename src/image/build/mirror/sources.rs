//! apt's own list of sources, in both of its formats: see sources.list(5).

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::Result;

/// One archive and suite that apt reads binary packages from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AptSource {
    pub(super) uri: String,
    suite: String,
    components: Vec<String>,
    architectures: Vec<String>,
    signed_by: Option<String>,
}

/// Debian's suites by class and by code name; newer ones first.
const SUITES: &[&str] = &[
    "sid",
    "unstable",
    "testing",
    "stable",
    "oldstable",
    "forky",
    "trixie",
    "bookworm",
    "bullseye",
];

impl AptSource {
    /// Returns whether it looks like Debian's main archive, or a mirror of it.
    pub(super) fn is_debian_archive(&self) -> bool {
        let suite = self.suite.strip_suffix("-updates").unwrap_or(&self.suite);
        let suite = suite.strip_suffix("-backports").unwrap_or(suite);
        SUITES.contains(&suite) && !self.uri.contains("debian-security") && self.can_be_debian()
    }

    /// Returns whether it looks like Debian's archive of security updates.
    pub(super) fn is_debian_security(&self) -> bool {
        self.suite.strip_suffix("-security").is_some_and(|suite| SUITES.contains(&suite))
            && self.can_be_debian()
    }

    /// Returns whether the entry itself says that Debian's keyring signs it.
    pub(super) fn signed_by_debian(&self) -> bool {
        self.signed_by.as_deref().is_some_and(|keyring| keyring.contains("/debian-archive-"))
    }

    fn can_be_debian(&self) -> bool {
        let for_this_machine =
            self.architectures.is_empty() || self.architectures.iter().any(|arch| arch == "amd64");
        self.components.iter().any(|component| component == "main")
            && for_this_machine
            && (self.signed_by.is_none() || self.signed_by_debian())
    }
}

/// Reads what apt under `root` uses: `sources.list`, then the files in `sources.list.d` by name.
pub(super) fn read(root: &Utf8Path) -> Result<Vec<AptSource>> {
    let folder = root.join("etc/apt/sources.list.d");
    let mut files = vec![root.join("etc/apt/sources.list")];
    if folder.is_dir() {
        let mut more = folder
            .read_dir_utf8()?
            .map(|entry| entry.map(|entry| entry.path().to_owned()))
            .collect::<std::io::Result<Vec<Utf8PathBuf>>>()?;
        more.sort();
        files.extend(more);
    }
    let mut sources = Vec::new();
    for file in files {
        let parse = match (file.extension(), file.exists()) {
            (Some("list"), true) => one_line_entries,
            (Some("sources"), true) => stanzas,
            _ => continue,
        };
        // apt's files are ASCII; what is not must not hide what is.
        sources.extend(parse(&String::from_utf8_lossy(&fs_err::read(&file)?)));
    }
    Ok(sources)
}

/// Returns the address to use for `uri`: itself, or the first in the file that `mirror+file:` names.
pub(super) fn followed(root: &Utf8Path, uri: &str) -> Option<String> {
    let Some(list) = uri.strip_prefix("mirror+file:") else { return Some(uri.to_owned()) };
    let text = fs_err::read_to_string(root.join(list.trim_start_matches('/'))).ok()?;
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
}

/// Parses `deb [options] uri suite component…` lines.
fn one_line_entries(text: &str) -> Vec<AptSource> {
    text.lines().filter_map(one_line_entry).collect()
}

fn one_line_entry(line: &str) -> Option<AptSource> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    let rest = rest.starts_with(char::is_whitespace).then(|| rest.trim_start())?;
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let option = |name: &str| {
        options.split_whitespace().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(AptSource {
        uri: words.next()?,
        suite: words.next()?,
        components: words.collect(),
        architectures: option("arch").unwrap_or_default().split(',').filter_map(word).collect(),
        signed_by: option("signed-by").map(str::to_owned),
    })
}

/// Parses deb822 stanzas.
fn stanzas(text: &str) -> Vec<AptSource> {
    // A line of a comment does not end a stanza.
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut sources = Vec::new();
    let mut fields = BTreeMap::<String, String>::new();
    let mut last = None;
    for line in lines.chain([""]) {
        if line.trim().is_empty() {
            sources.extend(stanza(&std::mem::take(&mut fields)));
            last = None;
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = last.as_ref().and_then(|name| fields.get_mut(name)) {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            let name = name.trim().to_ascii_lowercase();
            fields.insert(name.clone(), value.trim().to_owned());
            last = Some(name);
        }
    }
    sources
}

fn stanza(fields: &BTreeMap<String, String>) -> Vec<AptSource> {
    let words = |name: &str| -> Vec<String> {
        fields
            .get(name)
            .map(String::as_str)
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(word)
            .collect()
    };
    let disabled = fields.get("enabled").is_some_and(|value| {
        ["no", "false", "without", "off", "disable", "0"]
            .contains(&value.to_ascii_lowercase().as_str())
    });
    if disabled || !words("types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    let mut sources = Vec::new();
    for uri in words("uris") {
        for suite in words("suites") {
            sources.push(AptSource {
                uri: uri.clone(),
                suite,
                components: words("components"),
                architectures: words("architectures"),
                signed_by: fields.get("signed-by").map(|value| value.trim().to_owned()),
            });
        }
    }
    sources
}

fn word(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
