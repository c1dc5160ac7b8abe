//! VirtualBox's Host Key, the key that frees keyboard and mouse from a VM's window. Where VMs nest,
//! every level's must differ from those around it, or the inner VM cannot be left.
//!
//! VirtualBox keeps it as extra data `GUI/Input/HostKeyCombination`: one to three native key codes,
//! comma-separated (`UIHostCombo`, `m_iMaxComboSize = 3`), `0` for none. Native means X11 keysyms on
//! Linux, virtual-key codes on Windows, Carbon key codes on macOS; unset means Right Ctrl, on macOS
//! Left Cmd (`VBoxGlobalSettingsData`). Which keys are allowed is `UINativeHotKey::isValidKey`:
//! modifiers and function keys, on macOS modifiers only.

use std::fmt;
use std::str::FromStr;

use super::types::text_type;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The most keys of a combination.
const MAX_KEYS: usize = 3;

/// Whose key codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// X11 keysyms.
    Linux,
    /// Windows virtual-key codes.
    Windows,
    /// macOS (Carbon) key codes.
    MacOs,
}

impl Platform {
    /// Returns the platform that nestlab was built for; other Unix systems count as Linux.
    pub fn current() -> Self {
        if cfg!(windows) {
            Platform::Windows
        } else if cfg!(target_os = "macos") {
            Platform::MacOs
        } else {
            Platform::Linux
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Platform::Linux => "Linux",
            Platform::Windows => "Windows",
            Platform::MacOs => "macOS",
        })
    }
}

/// A key that VirtualBox accepts, with its code on each platform that has it.
struct KeyRow {
    /// The name in recipes and messages.
    name: &'static str,
    /// Other names for the same key.
    aliases: &'static [&'static str],
    /// X11 keysym (X11/keysymdef.h).
    x11: Option<u32>,
    /// Windows virtual-key code (winuser.h).
    windows: Option<u32>,
    /// Carbon key code (`DarwinKeyboard.cpp`).
    mac: Option<u32>,
}

const fn key(
    name: &'static str,
    aliases: &'static [&'static str],
    x11: u32,
    windows: u32,
    mac: u32,
) -> KeyRow {
    /// Zero, no key's code anywhere here, stands for "no such key".
    const fn known(code: u32) -> Option<u32> {
        if code == 0 { None } else { Some(code) }
    }
    KeyRow { name, aliases, x11: known(x11), windows: known(windows), mac: known(mac) }
}

/// The keys, by name. `Alt Gr` is the right Alt key under a layout with a third level.
const KEYS: &[KeyRow] = &[
    key("Right Ctrl", &["Right Control"], 65508, 163, 62),
    key("Left Ctrl", &["Left Control"], 65507, 162, 59),
    key("Right Alt", &["Right Option"], 65514, 165, 61),
    key("Left Alt", &["Left Option"], 65513, 164, 58),
    key("Right Shift", &[], 65506, 161, 60),
    key("Left Shift", &[], 65505, 160, 56),
    key("Right Win", &["Right Cmd", "Right Super", "Right Command", "Right WinKey"], 65516, 92, 54),
    key("Left Win", &["Left Cmd", "Left Super", "Left Command", "Left WinKey"], 65515, 91, 55),
    key("Menu", &["Menu key", "Apps"], 65383, 93, 0),
    key("Alt Gr", &["AltGr"], 65027, 0, 0),
    key("Caps Lock", &[], 65509, 20, 0),
    key("Num Lock", &[], 65407, 144, 0),
    key("Scroll Lock", &[], 65300, 145, 0),
    key("F1", &[], 65470, 112, 0),
    key("F2", &[], 65471, 113, 0),
    key("F3", &[], 65472, 114, 0),
    key("F4", &[], 65473, 115, 0),
    key("F5", &[], 65474, 116, 0),
    key("F6", &[], 65475, 117, 0),
    key("F7", &[], 65476, 118, 0),
    key("F8", &[], 65477, 119, 0),
    key("F9", &[], 65478, 120, 0),
    key("F10", &[], 65479, 121, 0),
    key("F11", &[], 65480, 122, 0),
    key("F12", &[], 65481, 123, 0),
];

impl KeyRow {
    fn code(&self, platform: Platform) -> Option<u32> {
        match platform {
            Platform::Linux => self.x11,
            Platform::Windows => self.windows,
            Platform::MacOs => self.mac,
        }
    }

    fn is_called(&self, name: &str) -> bool {
        let plain = |text: &str| text.replace([' ', '_', '-'], "").to_lowercase();
        let wanted = plain(name);
        plain(self.name) == wanted || self.aliases.iter().any(|alias| plain(alias) == wanted)
    }
}

/// One key of a combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    /// A row of [`KEYS`].
    Named(usize),
    /// A code that is not in [`KEYS`], as read from a machine.
    Other(u32),
}

impl Key {
    /// The same value for two names of one physical key.
    fn physical(self) -> Self {
        match self {
            Key::Named(row) if KEYS[row].name == "Alt Gr" => {
                Key::Named(KEYS.iter().position(|k| k.name == "Right Alt").unwrap_or(row))
            }
            other => other,
        }
    }
}

/// A Host Key: one to three keys pressed together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostKey {
    /// Sorted, no key twice, one at least.
    keys: Vec<Key>,
}

impl HostKey {
    /// Returns what VirtualBox uses on `platform` where nobody has chosen.
    pub fn default_on(platform: Platform) -> Self {
        let name = if platform == Platform::MacOs { "Left Cmd" } else { "Right Ctrl" };
        name.parse().expect("the default keys are in the table")
    }

    /// Reads VirtualBox's value of `GUI/Input/HostKeyCombination`, `None` if it is unset: the platform's default. `0` is
    /// no Host Key at all, `Ok(None)`.
    ///
    /// # Errors
    /// A message, if the value is not one to three key codes.
    pub fn from_codes(value: Option<&str>, platform: Platform) -> Result<Option<Self>, String> {
        let Some(value) = value else { return Ok(Some(HostKey::default_on(platform))) };
        if value.trim() == "0" {
            return Ok(None);
        }
        let bad = || format!("`{}` is not a Host Key combination", value.escape_debug());
        let mut keys = Vec::new();
        for code in value.split(',') {
            let code: u32 = code.trim().parse().map_err(|_| bad())?;
            if code == 0 {
                return Err(bad());
            }
            let row = KEYS.iter().position(|key| key.code(platform) == Some(code));
            keys.push(row.map_or(Key::Other(code), Key::Named));
        }
        HostKey::of(keys).map(Some).ok_or_else(bad)
    }

    /// Returns the value of `GUI/Input/HostKeyCombination` on `platform`, or `None` if that platform
    /// does not have one of the keys, or VirtualBox does not accept it there.
    pub fn codes(&self, platform: Platform) -> Option<String> {
        let codes: Option<Vec<String>> = self
            .keys
            .iter()
            .map(|key| match *key {
                Key::Named(row) => KEYS[row].code(platform).map(|code| code.to_string()),
                Key::Other(code) => Some(code.to_string()),
            })
            .collect();
        Some(codes?.join(","))
    }

    /// Returns whether one of the two, pressed, also presses the other: they are the same, or one's
    /// keys are among the other's. The outer level would take it, and the inner never see it.
    pub fn clashes_with(&self, other: &HostKey) -> bool {
        let physical = |key: &HostKey| key.keys.iter().map(|k| k.physical()).collect::<Vec<_>>();
        let (a, b) = (physical(self), physical(other));
        a.iter().all(|key| b.contains(key)) || b.iter().all(|key| a.contains(key))
    }

    /// Returns the first key, of those that every keyboard has and a Linux guest needs least, that
    /// clashes with none of `around`; `None` after a dozen levels.
    pub fn free(around: &[&HostKey]) -> Option<Self> {
        ["Right Ctrl", "F12", "F11", "F10", "F9", "F8", "F7", "F6", "F5", "F4", "F3", "F2", "F1"]
            .iter()
            .map(|name| name.parse::<HostKey>().expect("the free keys are in the table"))
            .find(|key| !around.iter().any(|other| key.clashes_with(other)))
    }

    fn of(mut keys: Vec<Key>) -> Option<Self> {
        keys.sort();
        keys.dedup();
        (1..=MAX_KEYS).contains(&keys.len()).then_some(HostKey { keys })
    }
}

impl FromStr for HostKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut keys = Vec::new();
        for name in text.split('+').map(str::trim) {
            let row = KEYS.iter().position(|key| key.is_called(name)).ok_or_else(|| {
                let near = super::diagnostic::nearest(name, KEYS.iter().map(|key| key.name));
                let hint = near.map_or_else(
                    || "use a modifier or function key, such as `Right Ctrl` or `F12`".to_owned(),
                    |near| format!("did you mean `{near}`?"),
                );
                format!(
                    "`{}` is not a key that VirtualBox takes as Host Key; {hint}",
                    name.escape_debug()
                )
            })?;
            keys.push(Key::Named(row));
        }
        HostKey::of(keys).ok_or_else(|| format!("a Host Key is at most {MAX_KEYS} keys"))
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self
            .keys
            .iter()
            .map(|key| match *key {
                Key::Named(row) => KEYS[row].name.to_owned(),
                Key::Other(code) => format!("key {code}"),
            })
            .collect();
        f.pad(&names.join(" + "))
    }
}

text_type!(HostKey, { "type": "string", "examples": ["Right Ctrl", "F12", "Left Ctrl + Left Alt"] });

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLATFORMS: [Platform; 3] = [Platform::Linux, Platform::Windows, Platform::MacOs];

    fn key(name: &str) -> HostKey {
        name.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_key_has_the_code_that_virtualbox_uses_on_each_platform() {
        for (name, linux, windows, mac) in [
            ("Right Ctrl", "65508", Some("163"), Some("62")),
            ("Left Cmd", "65515", Some("91"), Some("55")),
            ("Menu", "65383", Some("93"), None),
            ("F12", "65481", Some("123"), None),
            ("Alt Gr", "65027", None, None),
        ] {
            assert_eq!(key(name).codes(Platform::Linux).as_deref(), Some(linux), "{name}");
            assert_eq!(key(name).codes(Platform::Windows).as_deref(), windows, "{name}");
            assert_eq!(key(name).codes(Platform::MacOs).as_deref(), mac, "{name}");
        }
    }

    #[test]
    fn unset_is_the_platform_s_default_and_zero_is_none() {
        let unset = |platform| HostKey::from_codes(None, platform).expect("good").expect("a key");
        assert_eq!(unset(Platform::Linux).codes(Platform::Linux).as_deref(), Some("65508"));
        assert_eq!(unset(Platform::Windows).codes(Platform::Windows).as_deref(), Some("163"));
        assert_eq!(unset(Platform::MacOs).codes(Platform::MacOs).as_deref(), Some("55"));
        assert_eq!(HostKey::from_codes(Some("0"), Platform::Linux), Ok(None));
        for bad in ["", "0,1", "x", "1,2,3,4", "65508,", "-1"] {
            assert!(HostKey::from_codes(Some(bad), Platform::Linux).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_is_known_by_any_of_its_names_and_case() {
        assert_eq!(key("right ctrl"), key("RIGHT_CONTROL"));
        assert_eq!(key("Left Super"), key("Left Cmd"));
        assert_eq!(key("Left Alt + Left Ctrl"), key("left ctrl+left alt"), "order means nothing");
        let error = "Rigth Ctrl".parse::<HostKey>().expect_err("misspelt");
        assert!(error.contains("did you mean `Right Ctrl`"), "{error}");
        for bad in ["", "+", "Q", "Space", "Ctrl"] {
            assert!(bad.parse::<HostKey>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn keys_clash_when_pressing_one_presses_the_other() {
        assert!(key("Right Ctrl").clashes_with(&key("Right Ctrl")));
        assert!(key("Left Ctrl").clashes_with(&key("Left Ctrl + Left Alt")));
        assert!(key("Left Ctrl + Left Alt").clashes_with(&key("Left Ctrl")));
        assert!(key("Alt Gr").clashes_with(&key("Right Alt")), "one physical key");
        assert!(!key("Left Ctrl + Left Alt").clashes_with(&key("Left Ctrl + Left Shift")));
        assert!(!key("Right Ctrl").clashes_with(&key("Left Ctrl")));
    }

    #[test]
    fn a_code_that_is_not_in_the_table_is_kept_and_counts() {
        let odd = HostKey::from_codes(Some("65514,99999"), Platform::Linux).expect("good");
        let odd = odd.expect("a key");
        assert_eq!(odd.codes(Platform::Linux).as_deref(), Some("65514,99999"));
        assert_eq!(odd.to_string(), "Right Alt + key 99999");
        assert!(odd.clashes_with(&key("Right Alt")));
    }

    #[test]
    fn a_dozen_nested_levels_find_a_key_each() {
        let mut taken: Vec<HostKey> = Vec::new();
        while let Some(key) = HostKey::free(&taken.iter().collect::<Vec<_>>()) {
            assert!(taken.iter().all(|other| !other.clashes_with(&key)));
            assert!(key.codes(Platform::Linux).is_some());
            taken.push(key);
        }
        assert!(taken.len() as u32 > crate::recipe::MAX_LEVEL, "{} levels", taken.len());
    }

    proptest! {
        #[test]
        fn a_combination_reads_back_from_its_name_and_its_codes(
            rows in prop::collection::btree_set(0..KEYS.len(), 1..=MAX_KEYS),
        ) {
            let combination =
                HostKey::of(rows.into_iter().map(Key::Named).collect()).expect("one to three keys");
            prop_assert_eq!(&combination.to_string().parse::<HostKey>().expect("named"), &combination);
            for platform in PLATFORMS {
                if let Some(codes) = combination.codes(platform) {
                    let read = HostKey::from_codes(Some(&codes), platform).expect("good");
                    prop_assert_eq!(read.as_ref(), Some(&combination));
                }
            }
        }
    }
}
