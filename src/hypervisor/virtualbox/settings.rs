//! A VM's settings: what a [`GuestSpec`] wants of them, in VirtualBox's own names and values, and the
//! arguments of `modifyvm` that set each. Pure.

use std::collections::BTreeMap;

use super::version::Spelling;
use crate::hypervisor::spec::mac;
use crate::hypervisor::{Firmware, Forward, GuestSpec, Media, Subnet, VmOrigin};
use crate::recipe::{Cpus, Mebibytes};

/// A VM's settings as `showvminfo --machinereadable` names them; see [`super::parse::machine_readable`].
pub(crate) type Settings = BTreeMap<String, String>;

/// One setting, its wanted value, and the arguments after `modifyvm VM` that set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedSetting {
    pub(crate) setting: String,
    pub(crate) value: String,
    pub(crate) args: Vec<String>,
}

impl WantedSetting {
    fn new(setting: impl Into<String>, value: impl Into<String>, spelling: Spelling) -> Self {
        let (setting, value) = (setting.into(), value.into());
        let args = arguments(&setting, &value, spelling)
            .expect("only settings that have an option are wanted");
        WantedSetting { setting, value, args }
    }
}

/// Returns the NAT network that settings call `nat`.
fn default_nat() -> Subnet {
    Subnet::new(10, 0, 2)
}

/// VirtualBox's word for UEFI, 64-bit.
const EFI: &str = "EFI64";

/// The network adapters that a VM may have on every chipset.
pub(crate) const ADAPTERS: std::ops::RangeInclusive<u32> = 1..=8;

/// Returns the arguments after `modifyvm VM` that give `setting` the `value`; `None` if it is not a
/// setting that nestlab changes.
pub(crate) fn arguments(setting: &str, value: &str, spelling: Spelling) -> Option<Vec<String>> {
    let one = |option: String, value: &str| Some(vec![option, value.to_owned()]);
    let number =
        |prefix: &str| setting.strip_prefix(prefix).and_then(|rest| rest.parse::<u32>().ok());
    match setting {
        "cpus" | "memory" | "vram" | "ioapic" | "acpi" | "hwvirtex" | "nested-hw-virt"
        | "graphicscontroller" | "boot1" | "boot2" | "boot3" | "boot4" => {
            one(format!("--{setting}"), value)
        }
        "nestedpaging" => one(spelling.nested_paging(), value),
        "paravirtprovider" => one(spelling.paravirt_provider(), value),
        "firmware" => one("--firmware".to_owned(), &value.to_ascii_lowercase()),
        "uart1" => {
            let (base, irq) = value.split_once(',').unwrap_or((value, ""));
            let words = ["--uart1", base, irq];
            Some(words.into_iter().filter(|w| !w.is_empty()).map(str::to_owned).collect())
        }
        "uartmode1" => {
            let (kind, target) = value.split_once(',').unwrap_or((value, ""));
            let words = [spelling.uart_mode(), kind.to_owned(), target.to_owned()];
            Some(words.into_iter().filter(|word| !word.is_empty()).collect())
        }
        _ => {
            if let Some(adapter) = number("nic") {
                one(format!("--nic{adapter}"), value)
            } else if let Some(adapter) = number("natnet") {
                let network = if value == "nat" { "default" } else { value };
                one(spelling.nat_net(adapter), network)
            } else if let Some(adapter) = number("intnet") {
                one(format!("--intnet{adapter}"), value)
            } else if let Some(adapter) = number("macaddress") {
                one(spelling.mac_address(adapter), value)
            } else {
                None
            }
        }
    }
}

/// Returns whether two values of `setting` mean the same.
pub(crate) fn same(setting: &str, a: &str, b: &str) -> bool {
    match setting {
        "firmware" => {
            // `EFI` means the one that fits the guest, and every guest here is 64-bit.
            let width = |value: &str| value.to_ascii_lowercase().replace("efi64", "efi");
            width(a) == width(b)
        }
        "uart1" | "ioapic" | "acpi" => a.eq_ignore_ascii_case(b),
        _ if setting.starts_with("macaddress") => a.eq_ignore_ascii_case(b),
        _ if setting.starts_with("natnet") => {
            let subnet = |value: &str| match value {
                "nat" => default_nat().to_string(),
                other => other.to_owned(),
            };
            subnet(a) == subnet(b)
        }
        _ => a == b,
    }
}

/// Returns what `modifyvm` can set of what `spec` wants, in order. Networks come at the adapters that
/// [`adapters`] chooses in `actual`.
pub(crate) fn wanted(
    spec: &GuestSpec,
    actual: Option<&Settings>,
    spelling: Spelling,
) -> Vec<WantedSetting> {
    let mut wanted = Vec::new();
    let mut want =
        |setting: &str, value: &str| wanted.push(WantedSetting::new(setting, value, spelling));
    if let Some(cpus) = spec.cpus.instead_of(number(actual, "cpus").and_then(Cpus::new)) {
        want("cpus", &cpus.to_string());
    }
    let memory = number(actual, "memory").and_then(Mebibytes::new);
    if let Some(memory) = spec.memory.instead_of(memory) {
        want("memory", &memory.get().to_string());
    }
    want("acpi", "on");
    want("ioapic", "on");
    want("hwvirtex", "on");
    want("nestedpaging", "on");
    if let Some(nested) = spec.nested {
        want("nested-hw-virt", if nested { "on" } else { "off" });
    }
    if let VmOrigin::Made(media) = &spec.origin {
        want("graphicscontroller", "vmsvga");
        if !matches!(media, Media::Ova(_)) {
            want("vram", "16");
            let has = actual.and_then(|actual| actual.get("firmware"));
            let has = has.is_some_and(|has| same("firmware", has, EFI)).then_some(Firmware::Efi);
            want(
                "firmware",
                match spec.firmware_after(has) {
                    Firmware::Efi => EFI,
                    Firmware::Bios => "BIOS",
                },
            );
            let first = if matches!(media, Media::Iso(_)) { "dvd" } else { "disk" };
            want("boot1", first);
            (2..=4).for_each(|place| want(&format!("boot{place}"), "none"));
        }
        want("nic1", "nat");
        let network =
            if spec.subnet == default_nat() { "nat".into() } else { spec.subnet.to_string() };
        want("natnet1", &network);
        want("uart1", "0x03f8,4");
        want("uartmode1", &format!("file,{}", super::serial_log(spec)));
    }
    for (adapter, network) in adapters(spec, actual).into_iter().zip(&spec.networks) {
        want(&format!("nic{adapter}"), "intnet");
        want(&format!("intnet{adapter}"), network);
        if spec.seed.is_some() {
            // The seed calls the card by this address.
            let address = mac(spec.uuid(), network).replace(':', "").to_ascii_uppercase();
            want(&format!("macaddress{adapter}"), &address);
        }
    }
    wanted
}

fn number<T: std::str::FromStr>(actual: Option<&Settings>, setting: &str) -> Option<T> {
    actual?.get(setting)?.parse().ok()
}

/// Returns the adapters for the networks of `spec`, in their order: the one that is on a network
/// already, else the next that is free. The first is for NAT.
fn adapters(spec: &GuestSpec, actual: Option<&Settings>) -> Vec<u32> {
    let at = |adapter: u32, network: &str| {
        actual.is_some_and(|vm| {
            is(vm, &format!("nic{adapter}"), "intnet")
                && is(vm, &format!("intnet{adapter}"), network)
        })
    };
    let unused = |adapter: u32| {
        actual.is_none_or(|vm| {
            vm.get(&format!("nic{adapter}")).is_none_or(|kind| kind == "none" || kind == "null")
        })
    };
    let mut taken = vec![1];
    for network in &spec.networks {
        let free = |adapter: &u32| !taken.contains(adapter);
        let chosen = ADAPTERS
            .filter(free)
            .find(|adapter| at(*adapter, network))
            .or_else(|| ADAPTERS.filter(free).find(|adapter| unused(*adapter)));
        taken.extend(chosen);
    }
    taken.split_off(1)
}

fn is(settings: &Settings, setting: &str, value: &str) -> bool {
    settings.get(setting).is_some_and(|actual| actual == value)
}

/// Returns the first adapter of a VM that is a NAT adapter: where its ports are forwarded.
pub(crate) fn nat_adapter(settings: &Settings) -> Option<u32> {
    nat_adapters(settings).next()
}

/// Returns every adapter of a VM that is a NAT adapter.
pub(crate) fn nat_adapters(settings: &Settings) -> impl Iterator<Item = u32> {
    ADAPTERS.filter(|adapter| is(settings, &format!("nic{adapter}"), "nat"))
}

/// A port forward of a NAT adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) adapter: u32,
    pub(crate) name: String,
    /// The rule without its name: `tcp,127.0.0.1,2222,,22`.
    pub(crate) text: String,
}

impl Rule {
    /// Returns the rule's setting, `natpf1/nestlab-ssh`.
    pub(crate) fn setting(&self) -> String {
        format!("natpf{}/{}", self.adapter, self.name)
    }

    /// Returns the rule as `--nat-pf1` and `natpf1` take it.
    pub(crate) fn argument(&self) -> String {
        format!("{},{}", self.name, self.text)
    }

    /// Returns the TCP port on 127.0.0.1 that it forwards to the guest's `guest_port`.
    pub(crate) fn host_port(&self, guest_port: u16) -> Option<u16> {
        let [protocol, host, port, _, to] =
            self.text.split(',').collect::<Vec<_>>().try_into().ok()?;
        let right = protocol == "tcp" && host == "127.0.0.1" && to.parse() == Ok(guest_port);
        port.parse().ok().filter(|port| right && *port > 0)
    }
}

/// Returns a VM's port forwards.
pub(crate) fn rules(settings: &Settings) -> impl Iterator<Item = Rule> {
    settings.iter().filter_map(|(setting, text)| {
        let (adapter, name) = setting.strip_prefix("natpf")?.split_once('/')?;
        Some(Rule { adapter: adapter.parse().ok()?, name: name.to_owned(), text: text.clone() })
    })
}

/// Returns the port on 127.0.0.1 at which `forward` is reached, if the VM has it.
pub(crate) fn forwarded(settings: &Settings, forward: &Forward) -> Option<u16> {
    rules(settings)
        .find(|rule| rule.name == forward.name)
        .and_then(|rule| rule.host_port(forward.guest_port))
}

#[cfg(test)]
mod tests {
    use super::super::parse::{machine_readable, without_warnings};
    use super::super::test_support::{existing, made, spec};
    use super::super::transcript::{printed, transcript};
    use super::*;
    use crate::recipe::Constraint;
    use semver::Version;

    fn spelling() -> Spelling {
        Spelling::of(&Version::new(7, 2, 22))
    }

    #[test]
    fn a_vm_that_was_made_for_uefi_keeps_it_unless_the_recipe_says_otherwise() {
        let mut spec = made(Media::Disk("/labs/demo/l2/l2.raw".into()));
        let now = |spec: &GuestSpec, has: &str| {
            let actual = Settings::from([("firmware".to_owned(), has.to_owned())]);
            value(&wanted(spec, Some(&actual), spelling()), "firmware").map(str::to_owned)
        };
        assert_eq!(now(&spec, "EFI").as_deref(), Some("EFI64"));
        assert_eq!(now(&spec, "BIOS").as_deref(), Some("BIOS"));
        spec.firmware_given = true;
        assert_eq!(now(&spec, "EFI64").as_deref(), Some("BIOS"));
        spec.firmware = Firmware::Efi;
        assert_eq!(now(&spec, "BIOS").as_deref(), Some("EFI64"));
    }

    fn odd() -> Settings {
        machine_readable(without_warnings(&printed("odd-vm")))
    }

    fn value<'a>(wanted: &'a [WantedSetting], setting: &str) -> Option<&'a str> {
        wanted.iter().find(|one| one.setting == setting).map(|one| one.value.as_str())
    }

    #[test]
    fn a_guest_that_hosts_gets_nesting_apic_acpi_and_nested_paging() {
        let mut spec = spec();
        spec.nested = Some(true);
        let wanted = wanted(&spec, None, spelling());
        for (setting, expected) in [
            ("nested-hw-virt", "on"),
            ("nestedpaging", "on"),
            ("ioapic", "on"),
            ("acpi", "on"),
            ("cpus", "1"),
            ("memory", "512"),
            ("nic1", "nat"),
            ("natnet1", "10.0.3.0/24"),
            ("uart1", "0x03f8,4"),
        ] {
            assert_eq!(value(&wanted, setting), Some(expected), "{setting}");
        }
        let args: Vec<_> = wanted.iter().flat_map(|one| one.args.clone()).collect();
        let line = args.join(" ");
        assert!(
            line.contains("--uart1 0x03f8 4 --uart-mode1 file /labs/demo/l2/serial.log"),
            "{line}"
        );
        assert!(line.contains("--nat-net1 10.0.3.0/24"), "{line}");
    }

    #[test]
    fn an_existing_vm_keeps_its_screen_firmware_serial_port_and_nat_network() {
        let wanted = wanted(&existing("x"), Some(&odd()), spelling());
        let settings: Vec<_> = wanted.iter().map(|one| one.setting.as_str()).collect();
        assert_eq!(settings, ["cpus", "memory", "acpi", "ioapic", "hwvirtex", "nestedpaging"]);
    }

    #[test]
    fn what_a_recipe_leaves_out_of_an_existing_vm_is_not_wanted_unless_its_guests_demand_it() {
        let mut spec = existing("x");
        // The recorded VM has 2 CPUs and 2048 MB.
        let own = |spec: &GuestSpec| -> Vec<String> {
            let wanted = wanted(spec, Some(&odd()), spelling()).into_iter();
            let sizes = wanted.filter(|one| ["cpus", "memory"].contains(&one.setting.as_str()));
            sizes.map(|one| format!("{} {}", one.setting, one.value)).collect()
        };
        (spec.cpus, spec.memory) = (Constraint::Unchanged, Constraint::Unchanged);
        assert!(own(&spec).is_empty());
        spec.cpus = Constraint::AtMost { most: Cpus::ONE };
        spec.memory = Constraint::AtLeast { least: Mebibytes::gib(3) };
        assert_eq!(own(&spec), ["cpus 1", "memory 3072"]);
        spec.cpus = Constraint::AtMost { most: Cpus::new(3).expect("not zero") };
        spec.memory = Constraint::AtLeast { least: Mebibytes::new(512).expect("not zero") };
        assert!(own(&spec).is_empty());
    }

    #[test]
    fn an_existing_vm_loses_nesting_only_if_the_recipe_says_so() {
        let mut spec = existing("x");
        let nesting = |spec: &GuestSpec| {
            value(&wanted(spec, Some(&odd()), spelling()), "nested-hw-virt").map(str::to_owned)
        };
        spec.nested = None;
        assert_eq!(nesting(&spec), None);
        spec.nested = Some(false);
        assert_eq!(nesting(&spec).as_deref(), Some("off"));
    }

    #[test]
    fn a_network_takes_the_next_free_adapter_and_stays_where_it_is() {
        let mut spec = spec();
        spec.networks = vec!["my\"net".into(), "other".into()];
        // The recorded VM has `my"net` at its second adapter and NAT at its third.
        let second = wanted(&spec, Some(&odd()), spelling());
        assert_eq!(value(&second, "intnet2"), Some("my\"net"));
        assert_eq!(value(&second, "intnet4"), Some("other"));
        spec.networks.reverse();
        let turned = wanted(&spec, Some(&odd()), spelling());
        assert_eq!(value(&turned, "intnet2"), Some("my\"net"));
        assert_eq!(value(&turned, "intnet4"), Some("other"));
    }

    #[test]
    fn a_card_has_the_address_by_which_the_seed_calls_it() {
        let mut spec = spec();
        spec.networks = vec!["lan".into()];
        let address = mac(spec.uuid(), "lan").replace(':', "");
        let with_seed = wanted(&spec, None, spelling());
        let found = value(&with_seed, "macaddress2").expect("a card with an address");
        assert!(same("macaddress2", found, &address), "{found} is not {address}");
        spec.seed = None;
        assert_eq!(value(&wanted(&spec, None, spelling()), "macaddress2"), None);
    }

    #[test]
    fn values_are_compared_by_what_they_mean() {
        assert!(same("firmware", "EFI", "EFI64"));
        assert!(!same("firmware", "EFI32", "EFI64"));
        assert!(same("natnet1", "nat", "10.0.2.0/24"));
        assert!(!same("natnet1", "nat", "10.0.3.0/24"));
        assert!(same("uart1", "0x03F8,4", "0x03f8,4"));
        assert!(!same("cpus", "1", "2"));
    }

    #[test]
    fn a_forward_counts_only_on_loopback_over_tcp_and_to_the_right_port() {
        let rule = |text: &str| Rule { adapter: 1, name: "s".into(), text: text.into() };
        assert_eq!(rule("tcp,127.0.0.1,2222,,22").host_port(22), Some(2222));
        for text in [
            "udp,127.0.0.1,2222,,22",
            "tcp,,2222,,22",
            "tcp,0.0.0.0,2222,,22",
            "tcp,127.0.0.1,2222,,23",
            "tcp,127.0.0.1,0,,22",
            "tcp",
        ] {
            assert_eq!(rule(text).host_port(22), None, "{text}");
        }
        assert_eq!(nat_adapter(&odd()), Some(1));
        let names: Vec<_> = rules(&odd()).map(|rule| rule.setting()).collect();
        assert_eq!(names, ["natpf1/a\"b", "natpf3/ssh"]);
    }

    /// VBoxManage 7.2.22 lists its options when it meets one that it does not know.
    #[test]
    fn every_option_is_one_that_the_recorded_vboxmanage_lists() {
        let recorded = transcript("unknown-option").output;
        let usage = String::from_utf8_lossy(&recorded.stderr).into_owned()
            + &String::from_utf8_lossy(&recorded.stdout);
        let spelling = Spelling::of(&Version::new(7, 2, 22));
        let mut spec = spec();
        spec.nested = Some(true);
        spec.networks = vec!["lan".to_owned()];
        for one in wanted(&spec, None, spelling) {
            for option in one.args.iter().filter(|arg| arg.starts_with("--")) {
                let numbered = option.trim_end_matches(|c: char| c.is_ascii_digit());
                let listed = [format!("[{option}="), format!("[{numbered}N=")];
                assert!(listed.iter().any(|entry| usage.contains(entry)), "{option} of {one:?}");
            }
        }
    }

    #[test]
    fn every_setting_that_is_wanted_can_be_set_in_every_version() {
        for version in [Version::new(6, 1, 0), Version::new(7, 0, 0), Version::new(7, 2, 22)] {
            let spelling = Spelling::of(&version);
            for one in wanted(&spec(), None, spelling) {
                assert!(one.args[0].starts_with("--"), "{one:?}");
                assert_eq!(arguments(&one.setting, &one.value, spelling), Some(one.args));
            }
        }
        assert_eq!(arguments("description", "x", spelling()), None);
    }
}
