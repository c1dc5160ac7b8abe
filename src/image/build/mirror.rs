//! Where Debian packages come from: the Debian mirror that this host's own apt uses, or one that the
//! recipe names.
//!
//! A wrong guess here cannot let a wrong package in: whatever the mirror, packages count only with a
//! signature of Debian's archive keys.

mod sources;

use std::fmt;

use camino::Utf8Path;
use url::Url;

use self::sources::AptSource;
use crate::error::{Error, Kind, Result};

/// A Debian mirror over HTTP or HTTPS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    archive: String,
    security: Option<String>,
}

impl Mirror {
    /// Returns the mirror at `url`, without an archive of security updates.
    ///
    /// # Errors
    /// What is wrong with it, for a mirror that a guest could not use: another scheme than `http`
    /// or `https`, or a name and password, which would end up in the image.
    pub fn new(url: &str) -> Result<Self, String> {
        Ok(Mirror { archive: usable(url)?, security: None })
    }

    /// Returns the mirror that this host's apt uses for Debian.
    ///
    /// # Errors
    /// [`Kind::HostCannot`] where there is none, as on Ubuntu or Fedora.
    pub fn of_this_host() -> Result<Self> {
        Mirror::of_root(Utf8Path::new("/"))
    }

    fn of_root(root: &Utf8Path) -> Result<Self> {
        let sources = sources::read(root)?;
        let archive = best(root, &sources, |source| source.is_debian_archive());
        let security = best(root, &sources, |source| source.is_debian_security());
        let Some(archive) = archive else {
            return Err(Error::new(
                Kind::HostCannot,
                "apt on this machine names no Debian mirror to build a Debian image from",
            )
            .hint("name one: `mirror = \"https://…/debian\"` under `[host]` in the recipe"));
        };
        Ok(Mirror { archive, security })
    }

    /// Returns the address of the archive, without a slash at its end.
    pub fn archive(&self) -> &str {
        &self.archive
    }

    /// Returns the address of the archive of security updates, if the host's apt names one.
    pub fn security(&self) -> Option<&str> {
        self.security.as_deref()
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.archive)
    }
}

/// Returns the address of the best of the sources that are `wanted`: one that Debian's own keyring
/// vouches for before any other, one under `…/debian` before others, then the first.
fn best(
    root: &Utf8Path,
    sources: &[AptSource],
    wanted: impl Fn(&AptSource) -> bool,
) -> Option<String> {
    let mut found: Vec<(bool, bool, String)> = sources
        .iter()
        .filter(|source| wanted(source))
        .filter_map(|source| {
            let address = usable(&sources::followed(root, &source.uri)?).ok()?;
            let named = address.ends_with("/debian");
            Some((!source.signed_by_debian(), !named, address))
        })
        .collect();
    // A stable sort: the first of equals stays the first.
    found.sort_by_key(|(unsigned, unnamed, _)| (*unsigned, *unnamed));
    found.into_iter().next().map(|(_, _, address)| address)
}

/// Returns the address in the one form in which it is compared and written down.
fn usable(address: &str) -> Result<String, String> {
    let url = Url::parse(address).map_err(|error| format!("`{address}` is no address: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("`{address}` is not an http or https address"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a mirror's address cannot hold a name or password".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() || address.contains(char::is_whitespace) {
        return Err(format!("`{address}` is not the address of a mirror"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what is found on a host with these files.
    fn on_a_host_with(files: &[(&str, &str)]) -> Result<Mirror> {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        for (path, text) in files {
            let path = root.join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        Mirror::of_root(root)
    }

    fn archive(files: &[(&str, &str)]) -> String {
        on_a_host_with(files).unwrap().archive().to_owned()
    }

    const LIST: &str = "etc/apt/sources.list";
    const DEB822: &str = "etc/apt/sources.list.d/debian.sources";

    #[test]
    fn a_one_line_entry_is_read_whatever_its_options_look_like() {
        for line in [
            "deb http://m.example/debian bookworm main",
            "deb http://m.example/debian/ bookworm main contrib # a comment",
            "deb [arch=amd64,i386 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
             http://m.example/debian bookworm main",
            "deb [ arch=amd64 ] http://m.example/debian bookworm main",
            "\tdeb\t[trusted=no]\thttp://m.example/debian\tstable\tmain",
        ] {
            assert_eq!(archive(&[(LIST, line)]), "http://m.example/debian", "{line}");
        }
    }

    #[test]
    fn deb822_stanzas_are_read_and_the_security_archive_is_kept_apart() {
        let text = "# a comment\nTypes: deb deb-src\nURIs: https://m.example/debian-security\n\
                    Suites: trixie-security\nComponents: main\n\n\
                    types: deb\nuris:\n http://m.example/debian\n http://other.example/debian\n\
                    suites: trixie trixie-updates\ncomponents: main\n\
                    Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ==\n";
        let mirror = on_a_host_with(&[(DEB822, text)]).unwrap_err();
        assert_eq!(mirror.kind(), Kind::HostCannot, "an inline key is not Debian's keyring");

        let text = text.split("Signed-By").next().unwrap();
        let mirror = on_a_host_with(&[(DEB822, text)]).unwrap();
        assert_eq!(mirror.archive(), "http://m.example/debian");
        assert_eq!(mirror.security(), Some("https://m.example/debian-security"));
    }

    #[test]
    fn entries_that_are_disabled_or_for_another_machine_do_not_count() {
        let files = [
            (
                LIST,
                "# deb http://off.example/debian bookworm main\ndeb-src http://src.example/debian bookworm main\ndeb [arch=arm64] http://arm.example/debian bookworm main\n",
            ),
            (
                DEB822,
                "Types: deb\nURIs: http://disabled.example/debian\nSuites: sid\nComponents: main\nEnabled: no\n\nTypes: deb\nURIs: http://on.example/debian\nSuites: sid\nComponents: main\nArchitectures: amd64\n",
            ),
            ("etc/apt/sources.list.d/old.list.save", "deb http://save.example/debian sid main"),
        ];
        assert_eq!(archive(&files), "http://on.example/debian");
    }

    #[test]
    fn another_publisher_that_calls_its_suites_like_debian_is_not_taken_for_debian() {
        let files = [
            (
                LIST,
                "deb [signed-by=/usr/share/keyrings/vpn.gpg] https://vpn.example/stable/debian bookworm main\ndeb https://browser.example/chrome/deb stable main\n",
            ),
            (
                DEB822,
                "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
            ),
        ];
        assert_eq!(archive(&files), "http://m.example/debian");
    }

    #[test]
    fn a_list_of_mirrors_in_a_file_is_followed_and_what_a_guest_cannot_reach_is_passed_over() {
        let files = [
            (
                LIST,
                "deb cdrom:[Debian GNU/Linux 12]/ bookworm main\ndeb file:/srv/debian bookworm main\ndeb http://user:secret@m.example/debian bookworm main\ndeb mirror+file:/etc/apt/mirrors/debian.list bookworm main\n",
            ),
            (
                "etc/apt/mirrors/debian.list",
                "# in order\nhttps://first.example/debian\tpriority:1\nhttps://second.example/debian\n",
            ),
        ];
        assert_eq!(archive(&files), "https://first.example/debian");
    }

    #[test]
    fn on_a_host_without_debian_the_error_says_what_to_write_where() {
        let ubuntu = [(LIST, "deb http://a.example/ubuntu noble main universe\n")];
        for files in [&ubuntu[..], &[]] {
            let error = on_a_host_with(files).unwrap_err();
            assert_eq!(error.kind(), Kind::HostCannot);
            assert!(error.hints()[0].contains("mirror ="), "{error:?}");
        }
    }

    #[test]
    fn a_mirror_that_a_guest_could_not_use_is_refused() {
        for bad in [
            "debian",
            "ftp://m.example/debian",
            "https://a:b@m.example/debian",
            "file:/srv",
            "http://m.example/a b",
            "http://m.example/?x",
        ] {
            assert!(Mirror::new(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Mirror::new("http://m.example/debian/").unwrap().archive(),
            "http://m.example/debian"
        );
    }
}
