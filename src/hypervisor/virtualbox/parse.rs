//! What VBoxManage prints, as data. Pure: text in, values out; whatever the text, no panic.

use std::collections::BTreeMap;

/// A VM as a line of `list vms` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name; two VMs may have the same. `<inaccessible>` if its settings file cannot be read.
    pub name: String,
    /// Its UUID, without braces, in lower case.
    pub uuid: String,
}

impl Listed {
    /// Returns whether its settings file cannot be read.
    pub fn is_inaccessible(&self) -> bool {
        self.name == "<inaccessible>"
    }
}

/// Returns standard output without the warnings that the wrapper scripts of Debian and of Oracle put in
/// front of every answer while the kernel driver is missing.
///
/// A warning is a line that starts with `WARNING:` and the blank or indented lines after it. No answer
/// of VBoxManage itself starts like that.
pub fn without_warnings(stdout: &str) -> &str {
    let mut rest = stdout;
    while rest.starts_with("WARNING:") {
        rest = after_line(rest);
        while rest.starts_with([' ', '\t', '\n', '\r']) {
            rest = after_line(rest);
        }
    }
    rest
}

fn after_line(text: &str) -> &str {
    text.find('\n').map_or("", |end| &text[end + 1..])
}

/// Returns the VMs of `list vms`. Names are not escaped there, so that a line counts as an entry's end
/// when it ends with a quote and a UUID in braces.
pub fn list_vms(text: &str) -> Vec<Listed> {
    let mut listed = Vec::new();
    let mut entry = String::new();
    for line in text.lines() {
        if !entry.is_empty() {
            entry.push('\n');
        }
        entry.push_str(line);
        if let Some(vm) = list_entry(&entry) {
            listed.push(vm);
            entry.clear();
        } else if !entry.starts_with('"') {
            entry.clear();
        }
    }
    listed
}

fn list_entry(entry: &str) -> Option<Listed> {
    let (name, uuid) = entry.strip_suffix('}')?.rsplit_once("\" {")?;
    let uuid = uuid::Uuid::try_parse(uuid).ok()?;
    Some(Listed { name: name.strip_prefix('"')?.to_owned(), uuid: uuid.to_string() })
}

/// Returns the settings files of the VMs in `list --long vms`, by UUID; also of those whose file cannot
/// be read, which nothing else tells.
pub fn settings_files(text: &str) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut uuid = None;
    for line in text.lines() {
        if let Some(value) = field(line, "UUID") {
            uuid = uuid::Uuid::try_parse(value).ok().map(|uuid| uuid.to_string());
        } else if let Some(value) = field(line, "Config file")
            && let Some(uuid) = uuid.take()
        {
            files.entry(uuid).or_insert_with(|| value.to_owned());
        }
    }
    files
}

/// Returns the value of a line `NAME:   value`.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    Some(line.strip_prefix(name)?.strip_prefix(':')?.trim())
}

/// Returns the `Name: value` lines of an answer such as `list hostinfo` or `showmediuminfo`; of a name
/// that comes twice the first.
pub fn fields(text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, value)) = line.split_once(':') {
            fields.entry(name.trim().to_owned()).or_insert_with(|| value.trim().to_owned());
        }
    }
    fields
}

/// Returns the paths of the media in `list hdds` or `list dvds`.
pub fn media(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| field(line, "Location")).map(str::to_owned).collect()
}

/// Returns the capacity that `showmediuminfo` tells, in MiB, which it calls MBytes.
pub fn capacity_mib(text: &str) -> Option<u64> {
    fields(text).get("Capacity")?.strip_suffix(" MBytes")?.trim().parse().ok()
}

/// Returns the value that `getextradata` or `guestproperty get` answered; `None` for `No value set!`.
pub fn value(text: &str) -> Option<String> {
    let value = text.strip_prefix("Value: ").or_else(|| text.strip_prefix("Value:"))?;
    Some(value.trim_end_matches(['\r', '\n']).to_owned())
}

/// Returns the settings in `showvminfo --machinereadable`, by name.
///
/// - Of a name that comes twice the first counts: text that a user wrote freely (a snapshot's
///   description) comes after the settings and cannot override one.
/// - What belongs to a network adapter but does not say to which gets its number: `mtu1`.
/// - A port forward `Forwarding(0)="ssh,tcp,127.0.0.1,2222,,22"` becomes
///   `natpf1/ssh` = `tcp,127.0.0.1,2222,,22`.
pub fn machine_readable(text: &str) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut adapter = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let Some((key, value, after)) = assignment(rest) else {
            rest = after_line(rest);
            continue;
        };
        rest = after;
        if let Some(number) = numbered(&key, "nic") {
            adapter = number.to_owned();
        }
        let (key, value) = if key.starts_with("Forwarding(") {
            match value.split_once(',') {
                Some((name, rule)) => (format!("natpf{adapter}/{name}"), rule.to_owned()),
                None => continue,
            }
        } else if ADAPTER_KEYS.contains(&key.as_str()) {
            (format!("{key}{adapter}"), value)
        } else {
            (key, value)
        };
        settings.entry(key).or_insert(value);
    }
    settings
}

/// Names that come once for each NAT adapter, without its number.
const ADAPTER_KEYS: [&str; 8] = [
    "mtu",
    "sockSnd",
    "sockRcv",
    "tcpWndSnd",
    "tcpWndRcv",
    "localhostReachable",
    "forwardBroadcast",
    "enableTFTP",
];

/// Returns the number of `key` if it is `prefix` and a number.
fn numbered<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    let number = key.strip_prefix(prefix)?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(number)
}

/// Whether VBoxManage prints this value as it is, without escaping quotes and backslashes.
fn is_raw(key: &str) -> bool {
    key.starts_with("Forwarding(")
        || key.starts_with("SnapshotName")
        || key.starts_with("SnapshotDescription")
        || key == "CurrentSnapshotName"
        || numbered(key, "intnet").is_some()
        || numbered(key, "uartmode").is_some()
}

/// Reads `key=value`, `key="value"` or `"key"="value"` at the start of `text`; returns key, value and
/// what follows.
fn assignment(text: &str) -> Option<(String, String, &str)> {
    let line_end = text.find('\n').unwrap_or(text.len());
    let (key, value_at) = if text.starts_with('"') {
        // A storage slot, called after its controller: an escaped name, a port and a device.
        let end = text[..line_end].find("\"=")?;
        (unescape(&text[1..end.max(1)]), end + 2)
    } else {
        let end = text[..line_end].find('=')?;
        (text[..end].to_owned(), end + 1)
    };
    let after = |end: usize| after_line(&text[end..]);
    let value = &text[value_at..];
    let Some(quoted) = value.strip_prefix('"') else {
        let value = text[value_at..line_end].trim_end_matches('\r');
        return Some((key, value.to_owned(), after(line_end)));
    };
    if is_raw(&key) {
        let line = text[value_at + 1..line_end.max(value_at + 1)].trim_end_matches('\r');
        let value = line.strip_suffix('"').unwrap_or(line);
        return Some((key, value.to_owned(), after(line_end)));
    }
    let end = value_end(quoted);
    Some((key, unescape(&quoted[..end]), after(value_at + 1 + end)))
}

/// Returns where an escaped value ends: before the first quote that is not escaped and is the last
/// character of its line, else at the end of its first line.
fn value_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        let rest = &text[at + c.len_utf8()..];
        let ends = rest.is_empty() || rest.starts_with('\n') || rest.starts_with("\r\n");
        if c == '"' && !escaped && ends {
            return at;
        }
        escaped = c == '\\' && !escaped;
    }
    text.lines().next().unwrap_or_default().len()
}

/// Returns `text` with `\\` and `\"` undone. Other backslashes stay: versions before 7.0 do not escape
/// everything.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let escaped = if c == '\\' { chars.next_if(|c| matches!(c, '\\' | '"')) } else { None };
        plain.push(escaped.unwrap_or(c));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::super::transcript::printed;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_recorded_vm_with_odd_names_is_read_exactly() {
        let settings = machine_readable(without_warnings(&printed("odd-vm")));
        let expected = [
            ("name", "we\"ird \\ näme"),
            ("description", "line 1\nVMState=\"running\"\nline \"3\" \\"),
            ("VMState", "poweroff"),
            ("cpus", "2"),
            ("memory", "2048"),
            ("firmware", "EFI64"),
            ("nested-hw-virt", "on"),
            ("natpf1/a\"b", "tcp,127.0.0.1,2222,,22"),
            ("natpf3/ssh", "tcp,127.0.0.1,2223,,22"),
            ("natnet1", "10.0.3.0/24"),
            ("natnet3", "nat"),
            ("intnet2", "my\"net"),
            ("uartmode1", "file,/srv/se\"r.log"),
            ("storagecontrollername0", "SATA \"1\""),
            ("SATA \"1\"-1-0", "none"),
            ("SnapshotName", "sn\"ap\\"),
            ("SnapshotDescription", "taken"),
            ("CurrentSnapshotName", "sn\"ap\\"),
        ];
        for (key, value) in expected {
            assert_eq!(settings.get(key).map(String::as_str), Some(value), "{key}");
        }
        let disk = &settings["SATA \"1\"-0-0"];
        assert!(disk.contains("/Snapshots/{") && disk.ends_with("}.vdi"), "{disk}");
    }

    #[test]
    fn recorded_lists_give_every_vm_by_uuid_also_two_of_one_name_and_a_dead_one() {
        let vms = list_vms(without_warnings(&printed("list-vms")));
        let names: Vec<_> = vms.iter().map(|vm| vm.name.as_str()).collect();
        assert_eq!(names, ["we\"ird \\ näme", "we\"ird \\ näme", "plain", "<inaccessible>"]);
        assert_eq!(vms[1].uuid, "00000000-0000-4000-8000-000000000002");
        assert!(vms[3].is_inaccessible());

        let files = settings_files(without_warnings(&printed("list-long-vms")));
        assert_eq!(files.len(), 4);
        assert!(files[&vms[3].uuid].ends_with("/vms/dead/dead.vbox"), "{files:?}");
    }

    #[test]
    fn recorded_answers_of_one_value_are_read() {
        let read = |name: &str| value(without_warnings(&printed(name)));
        assert_eq!(read("host-key-set").as_deref(), Some("65507,65513"));
        assert_eq!(read("host-key-unset"), None);
        assert_eq!(read("no-guest-property"), None);
        assert_eq!(capacity_mib(without_warnings(&printed("medium-info"))), Some(64));
        assert_eq!(media(without_warnings(&printed("list-hdds"))).len(), 2);
        let host = fields(without_warnings(&printed("hostinfo")));
        assert_eq!(host["Processor supports nested HW virtualization"], "no");
    }

    #[test]
    fn the_wrappers_warnings_go_and_nothing_else() {
        for (text, rest) in [
            ("WARNING: a\n\t b\n\n\t c\n\"x\" {y}\n", "\"x\" {y}\n"),
            // Oracle's own wrapper, from its source (src/VBox/Installer/linux/VBox.sh).
            (
                "WARNING: The vboxdrv kernel module is not loaded. Either there is no module\n         \
                 available for the current kernel (6.1) or it failed to\n         load.\n\n           \
                 sudo /sbin/vboxconfig\n\nWARNING: The second\n7.0.20r163906\n",
                "7.0.20r163906\n",
            ),
            ("WARNING: a", ""),
            ("Value: WARNING: a\n", "Value: WARNING: a\n"),
            ("", ""),
        ] {
            assert_eq!(without_warnings(text), rest);
        }
    }

    /// Writes a value as VBoxManage does.
    fn escaped(value: &str) -> String {
        value.replace('\\', "\\\\").replace('"', "\\\"")
    }

    proptest! {
        #[test]
        fn any_escaped_value_comes_back_and_hides_nothing_after_it(
            value in "[^\r]*", name in "[^\r]*",
        ) {
            let text = format!(
                "name=\"{}\"\ndescription=\"{}\"\ncpus=3\nVMState=\"poweroff\"\n",
                escaped(&name), escaped(&value),
            );
            let settings = machine_readable(&text);
            prop_assert_eq!(&settings["name"], &name);
            prop_assert_eq!(&settings["description"], &value);
            prop_assert_eq!(&settings["cpus"], "3");
            prop_assert_eq!(&settings["VMState"], "poweroff");
        }

        #[test]
        fn any_raw_value_of_one_line_comes_back(value in "[^\r\n]*") {
            let settings = machine_readable(&format!("intnet2=\"{value}\"\nnic2=\"intnet\"\n"));
            prop_assert_eq!(&settings["intnet2"], &value);
            prop_assert_eq!(&settings["nic2"], "intnet");
        }

        #[test]
        fn what_stands_further_down_never_overrides_a_setting(tail in "(?s).*") {
            let settings = machine_readable(&format!("VMState=\"poweroff\"\nSnapshotDescription=\"{tail}"));
            prop_assert_eq!(&settings["VMState"], "poweroff");
        }

        #[test]
        fn any_name_in_a_list_comes_back(name in "[^\r\n]*") {
            let uuid = "00000000-0000-4000-8000-000000000001";
            let listed = list_vms(&format!("\"{name}\" {{{uuid}}}\n\"b\" {{{uuid}}}\n"));
            prop_assert_eq!(listed.len(), 2);
            prop_assert_eq!(&listed[0].name, &name);
        }

        #[test]
        fn no_text_makes_a_parser_panic(text in "(?s).{0,300}", lines in "([\"=\\\\a\\n{}:WARNING, ]{0,40})") {
            for text in [&text, &lines] {
                let plain = without_warnings(text);
                let _ = (machine_readable(plain), list_vms(plain), settings_files(plain));
                let _ = (fields(plain), media(plain), capacity_mib(plain), value(plain));
            }
        }
    }
}
