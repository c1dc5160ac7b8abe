//! Texts of a recipe that reach other programs: addresses, users, names that are not nestlab's to
//! choose. Each is a type that cannot hold what a shell, an option parser or a log would trip over.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use url::Url;

/// Gives a type that reads itself from text (`FromStr`) and shows itself (`Display`) its place in
/// TOML, JSON and the JSON Schema.
macro_rules! text_type {
    ($name:ident, $schema:tt) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}
pub(crate) use text_type;

/// Shows a value in a message, with nothing in it that could drive a terminal.
fn shown(text: &str) -> impl fmt::Display + '_ {
    text.escape_debug()
}

fn url_of(text: &str, what: &str, example: &str, schemes: &[&str]) -> Result<Url, String> {
    let bad = || format!("`{}` is not {what}; write it like `{example}`", shown(text));
    let url = Url::parse(text).map_err(|_| bad())?;
    if !schemes.contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) {
        return Err(bad());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!(
            "{what} in a recipe cannot carry a user or password: a recipe is shared"
        ));
    }
    Ok(url)
}

/// The URL of a Debian mirror, such as `https://mirror.example/debian`; http(s), since the archive's own signature
/// is what is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorUrl(Url);

impl MirrorUrl {
    /// Returns the URL.
    pub fn as_url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for MirrorUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        url_of(text, "a mirror's URL", "https://mirror.example/debian", &["http", "https"])
            .map(MirrorUrl)
    }
}

impl fmt::Display for MirrorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

text_type!(MirrorUrl, { "type": "string", "pattern": "^https?://[^@]+$" });

/// The URL of a proxy for downloads: http, https, socks5, or socks5h, which lets the proxy look names
/// up (what Tor needs).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    /// Returns the URL.
    pub fn as_url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for ProxyUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let schemes = ["http", "https", "socks5", "socks5h"];
        url_of(text, "a proxy's URL", "socks5h://127.0.0.1:9050", &schemes).map(ProxyUrl)
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

text_type!(ProxyUrl, { "type": "string", "pattern": "^(https?|socks5h?)://[^@]+$" });

/// A user's name on a machine that is reached over SSH.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UserName(String);

impl UserName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ok = text.len() <= 32
            && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if ok {
            Ok(UserName(text.to_owned()))
        } else {
            Err(format!(
                "`{}` cannot be a user's name: use letters, digits, `_`, `.` and `-`",
                shown(text)
            ))
        }
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_type!(UserName, { "type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$" });

/// A TCP port that a server listens at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port(std::num::NonZeroU16);

impl Port {
    /// Where SSH servers listen (RFC 4253, 4.1).
    pub const SSH: Port = Port(std::num::NonZeroU16::new(22).expect("22 is not zero"));

    /// Returns the number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Port)
            .map_err(|_| format!("`{}` is not a port; ports are 1 to 65535", shown(text)))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        i64::deserialize(deserializer)?.to_string().parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Port {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Port".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": u16::MAX })
    }
}

/// Where an SSH server is: `user@host:port`, the user and the port left out for ssh's own defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshDestination {
    /// The user, if named.
    pub user: Option<UserName>,
    /// The host's name or IP address, an IPv6 address without its brackets.
    pub host: String,
    /// The port, 22 if left out.
    pub port: Port,
}

impl FromStr for SshDestination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("`{}` is not an SSH host; write it like `user@runner:22`", shown(text));
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user.parse()?), rest),
            None => (None, text),
        };
        let (host, port) = match rest.strip_prefix('[') {
            Some(v6) => {
                let (address, after) = v6.split_once(']').ok_or_else(bad)?;
                address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
                match after.strip_prefix(':') {
                    Some(port) => (address, Some(port)),
                    None if after.is_empty() => (address, None),
                    None => return Err(bad()),
                }
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        if !rest.starts_with('[') && (host.len() > 253 || !host.split('.').all(label)) {
            return Err(bad());
        }
        let port = match port {
            Some(port) => port.parse()?,
            None => Port::SSH,
        };
        Ok(SshDestination { user, host: host.to_owned(), port })
    }
}

impl fmt::Display for SshDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        let v6 = self.host.contains(':');
        if v6 {
            write!(f, "[{}]", self.host)?
        } else {
            f.write_str(&self.host)?
        }
        if self.port == Port::SSH { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

text_type!(SshDestination, { "type": "string", "examples": ["user@runner", "runner:2222"] });

/// The name or UUID of a VM that exists already.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VmName(String);

impl VmName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ok = !text.trim().is_empty()
            && text.len() <= 255
            && !text.starts_with('-')
            && !text.chars().any(char::is_control);
        if ok {
            Ok(VmName(text.to_owned()))
        } else {
            Err(format!(
                "`{}` cannot be a VM's name: it is empty, too long, begins with `-` or holds control characters",
                shown(text)
            ))
        }
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_type!(VmName, { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[^-]" });

/// The name of a Debian package (Debian Policy, 5.6.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageName(String);

impl PackageName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PackageName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ok = text.len() >= 2
            && text.bytes().next().is_some_and(lower)
            && text.bytes().all(|b| lower(b) || b"+-.".contains(&b));
        if ok {
            Ok(PackageName(text.to_owned()))
        } else {
            Err(format!("`{}` is not a Debian package's name", shown(text)))
        }
    }
}

impl fmt::Display for PackageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_type!(PackageName, { "type": "string", "pattern": "^[a-z0-9][a-z0-9+.-]+$" });

/// A regular expression in the `regex` crate's syntax.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Returns the expression as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match regex::Regex::new(text) {
            Ok(pattern) if pattern.is_match("") => {
                Err(format!("`{}` matches an empty line, which proves nothing", shown(text)))
            }
            Ok(_) => Ok(Pattern(text.to_owned())),
            Err(error) => {
                let text = error.to_string();
                let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                Err(format!("this is not a regular expression: {reason}"))
            }
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

text_type!(Pattern, { "type": "string", "format": "regex", "minLength": 1 });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ssh_destination_reads_what_it_shows() {
        for text in [
            "runner",
            "user@runner",
            "user@runner:2222",
            "10.0.0.5:23",
            "u@[::1]:2222",
            "[fe80::1]",
        ] {
            let destination: SshDestination = text.parse().expect(text);
            assert_eq!(destination.to_string(), text);
        }
    }

    #[test]
    fn a_destination_that_a_program_could_take_for_an_option_is_refused() {
        for bad in [
            "",
            "@",
            "-oProxyCommand=id",
            "user@-x",
            "user@",
            "a b",
            "$(id)@host",
            "-u@host",
            "host:",
            "host:0",
            "host:70000",
            "::1",
            "[::1",
            "[::1]x",
            "host\n",
            "user@a..b",
        ] {
            assert!(bad.parse::<SshDestination>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_url_with_a_password_or_another_scheme_is_refused() {
        assert!("socks5h://127.0.0.1:9050".parse::<ProxyUrl>().is_ok());
        let error = "http://me:secret@proxy.example".parse::<ProxyUrl>().expect_err("refused");
        assert!(!error.contains("secret"), "{error}");
        for bad in ["file:///debian", "ftp://mirror.example/debian", "mirror.example/debian", ""] {
            assert!(bad.parse::<MirrorUrl>().is_err(), "{bad:?}");
        }
        let mirror: MirrorUrl = "https://mirror.example/debian/".parse().expect("a mirror");
        assert_eq!(mirror.to_string(), "https://mirror.example/debian");
    }

    #[test]
    fn names_of_others_may_be_odd_but_not_dangerous() {
        assert!("Whonix-Workstation-XFCE".parse::<VmName>().is_ok());
        assert!("it's \"mine\" $(id)".parse::<VmName>().is_ok(), "an argument vector carries it");
        for bad in ["", " ", "--help", "a\nb", "a\0"] {
            assert!(bad.parse::<VmName>().is_err(), "{bad:?}");
        }
        for bad in ["", "a", "-y", "foo bar", "Foo", "foo=1.0", "foo/sid"] {
            assert!(bad.parse::<PackageName>().is_err(), "{bad:?}");
        }
        assert!("libstdc++6".parse::<PackageName>().is_ok());
        for bad in ["", "-l", "a b", "a@b", "a;b", "$x"] {
            assert!(bad.parse::<UserName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pattern_that_proves_nothing_is_refused() {
        assert!("login:".parse::<Pattern>().is_ok());
        for (bad, part) in
            [("", "proves nothing"), (".*", "proves nothing"), ("(", "unclosed group")]
        {
            let error = bad.parse::<Pattern>().expect_err(bad);
            assert!(error.contains(part), "{bad}: {error}");
        }
    }
}
