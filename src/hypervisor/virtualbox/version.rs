//! VirtualBox's versions, and how each spells the options that nestlab uses.

use semver::Version;

/// Returns the version in what `VBoxManage --version` printed, such as `7.2.22_Debianr175245` or
/// `6.1.50r161033`.
pub(crate) fn parse(text: &str) -> Option<Version> {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let number = |c: char| c.is_ascii_digit() || c == '.';
    let end = line.find(|c| !number(c)).unwrap_or(line.len());
    Version::parse(&line[..end]).ok()
}

/// Names of options that changed between versions. 7.0 gave them hyphens; what is not here is spelled
/// alike in 6.0 to 7.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spelling {
    hyphens: bool,
    platform: bool,
}

impl Spelling {
    /// Returns the spelling of `version`.
    pub(crate) fn of(version: &Version) -> Self {
        Spelling {
            hyphens: *version >= Version::new(7, 0, 0),
            platform: *version >= Version::new(7, 1, 0),
        }
    }

    fn pick(self, hyphens: &str, plain: &str, number: Option<u32>) -> String {
        let name = if self.hyphens { hyphens } else { plain };
        number.map_or_else(|| name.to_owned(), |number| format!("{name}{number}"))
    }

    /// Returns the option for nested paging.
    pub(crate) fn nested_paging(self) -> String {
        self.pick("--nested-paging", "--nestedpaging", None)
    }

    /// Returns the option for the paravirtualization interface.
    pub(crate) fn paravirt_provider(self) -> String {
        self.pick("--paravirt-provider", "--paravirtprovider", None)
    }

    /// Returns the option for the network of the NAT adapter `adapter`.
    pub(crate) fn nat_net(self, adapter: u32) -> String {
        self.pick("--nat-net", "--natnet", Some(adapter))
    }

    /// Returns the option for a port forward of the NAT adapter `adapter`.
    pub(crate) fn nat_pf(self, adapter: u32) -> String {
        self.pick("--nat-pf", "--natpf", Some(adapter))
    }

    /// Returns the option for the MAC address of the adapter `adapter`.
    pub(crate) fn mac_address(self, adapter: u32) -> String {
        self.pick("--mac-address", "--macaddress", Some(adapter))
    }

    /// Returns the option for where the first serial port goes.
    pub(crate) fn uart_mode(self) -> String {
        self.pick("--uart-mode1", "--uartmode1", None)
    }

    /// Returns the arguments that make `createvm` make a VM for x86. 7.1 and later also make VMs for
    /// ARM, on an ARM host by default.
    pub(crate) fn x86(self) -> &'static [&'static str] {
        if self.platform { &["--platform-architecture", "x86"] } else { &[] }
    }
}

#[cfg(test)]
mod tests {
    use super::super::transcript::{printed, transcript};
    use super::*;

    #[test]
    fn versions_are_read_as_distributions_print_them() {
        for (text, version) in [
            ("7.2.22_Debianr175245\n", Some(Version::new(7, 2, 22))),
            ("6.1.50r161033\n", Some(Version::new(6, 1, 50))),
            ("7.0.20_Ubuntur163906", Some(Version::new(7, 0, 20))),
            ("7.1.0_BETA2r164000\n", Some(Version::new(7, 1, 0))),
            ("WARNING: x\n\t y\n7.2.0r1\n", Some(Version::new(7, 2, 0))),
            ("", None),
            ("r1", None),
        ] {
            assert_eq!(parse(text), version, "{text:?}");
        }
        assert_eq!(parse(&printed("version")), Some(Version::new(7, 2, 22)));
        assert_eq!(transcript("version").version, "7.2.22_Debianr175245");
    }

    #[test]
    fn each_version_gets_its_own_spelling() {
        let old = Spelling::of(&Version::new(6, 1, 50));
        assert_eq!(old.nat_net(1), "--natnet1");
        assert_eq!(old.nat_pf(2), "--natpf2");
        assert_eq!(old.uart_mode(), "--uartmode1");
        assert_eq!(old.mac_address(2), "--macaddress2");
        assert_eq!(old.nested_paging(), "--nestedpaging");
        assert_eq!(old.paravirt_provider(), "--paravirtprovider");
        assert!(old.x86().is_empty());

        let seven = Spelling::of(&Version::new(7, 0, 0));
        assert_eq!(seven.nat_net(1), "--nat-net1");
        assert_eq!(seven.nat_pf(2), "--nat-pf2");
        assert_eq!(seven.uart_mode(), "--uart-mode1");
        assert_eq!(seven.mac_address(2), "--mac-address2");
        assert!(seven.x86().is_empty());
        assert_eq!(Spelling::of(&Version::new(7, 1, 4)).x86(), ["--platform-architecture", "x86"]);
    }
}
