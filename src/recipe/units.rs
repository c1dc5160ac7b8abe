//! The amounts and names of a recipe as types: what is built here is valid, and nothing checks it
//! again.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A number of virtual CPUs, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Cpus(NonZeroU32);

impl Cpus {
    /// One CPU, what a deeper guest starts with.
    pub const ONE: Cpus = Cpus(NonZeroU32::MIN);

    /// Returns `count` CPUs, or `None` for zero.
    pub fn new(count: u32) -> Option<Self> {
        NonZeroU32::new(count).map(Cpus)
    }

    /// Returns the count.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Returns one CPU fewer, never under one: what a guest gets on a host with this many.
    #[must_use]
    pub fn one_fewer(self) -> Self {
        Cpus::new(self.get() - 1).unwrap_or(Cpus::ONE)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let count = i64::deserialize(deserializer)?;
        u32::try_from(count).ok().and_then(Cpus::new).ok_or_else(|| {
            serde::de::Error::custom(format_args!("a machine cannot have {count} CPUs"))
        })
    }
}

impl JsonSchema for Cpus {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Cpus".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": u32::MAX })
    }
}

/// An amount of memory or disk in MiB (2^20 bytes), at least one.
///
/// Reads `512MiB`, `6GiB`, `1TiB`, and `512M`/`6G`/`1T` as the same binary units; a decimal unit
/// (`6GB`) is refused, since it is not clear which one was meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub struct Mebibytes(u64);

impl Mebibytes {
    /// Returns `mib` MiB, or `None` for zero or for more than fits into a byte count.
    pub fn new(mib: u64) -> Option<Self> {
        (mib > 0 && mib.checked_mul(1 << 20).is_some()).then_some(Mebibytes(mib))
    }

    /// Returns `gib` GiB; for constants, `gib` is small and not zero.
    pub const fn gib(gib: u32) -> Self {
        assert!(gib > 0, "an amount is at least one");
        Mebibytes(gib as u64 * 1024)
    }

    /// Returns the amount in MiB.
    pub fn get(self) -> u64 {
        self.0
    }

    /// Returns the amount in bytes.
    pub fn bytes(self) -> u64 {
        self.0 << 20
    }
}

impl FromStr for Mebibytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number
            .parse()
            .map_err(|_| format!("`{text}` is not an amount; write it like `512MiB` or `6GiB`"))?;
        let factor = match unit.trim() {
            "MiB" | "M" => 1,
            "GiB" | "G" => 1 << 10,
            "TiB" | "T" => 1 << 20,
            "" => return Err(format!("`{text}` has no unit; write `{text}MiB` or `{text}GiB`")),
            other => {
                return Err(format!("`{other}` is not a unit nestlab knows; use MiB, GiB or TiB"));
            }
        };
        number
            .checked_mul(factor)
            .and_then(Mebibytes::new)
            .ok_or_else(|| format!("`{text}` is not an amount that a machine can have"))
    }
}

impl fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1024) {
            write!(f, "{}GiB", self.0 / 1024)
        } else {
            write!(f, "{}MiB", self.0)
        }
    }
}

impl From<Mebibytes> for String {
    fn from(amount: Mebibytes) -> String {
        amount.to_string()
    }
}

impl<'de> Deserialize<'de> for Mebibytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AmountVisitor)
    }
}

/// Reads an amount; a bare number, the likeliest slip, is told how to be written.
struct AmountVisitor;

impl serde::de::Visitor<'_> for AmountVisitor {
    type Value = Mebibytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an amount like \"512MiB\" or \"6GiB\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Mebibytes, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Mebibytes, E> {
        Err(E::custom(format_args!(
            "`{number}` has no unit; write \"{number}MiB\" or \"{number}GiB\", with the quotes"
        )))
    }
}

impl JsonSchema for Mebibytes {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Amount".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+ *(MiB|M|GiB|G|TiB|T)$",
            "examples": ["512MiB", "6GiB"]
        })
    }
}

/// Defines a name type: lower-case letters, digits and inner hyphens, as RFC 1123 has host names.
macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                valid_name(text, $what, $max).map(|()| $name(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
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
                json_schema!({
                    "type": "string",
                    "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
                    "maxLength": $max
                })
            }
        }
    };
}

name_type! {
    /// A guest's name in its recipe; also its host name inside.
    GuestName, "a guest's name", 32
}
name_type! {
    /// A lab's name; also a folder's, and part of its VMs' names.
    LabName, "a lab's name", 48
}
name_type! {
    /// An image manifest's name.
    ImageName, "an image's name", 48
}
name_type! {
    /// The name of a network that guests of one host share.
    NetworkName, "a network's name", 32
}

fn valid_name(text: &str, what: &str, max: usize) -> Result<(), String> {
    let ok = !text.is_empty()
        && text.len() <= max
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if ok {
        Ok(())
    } else {
        Err(format!(
            "`{}` cannot be {what}: use 1 to {max} lower-case letters, digits and inner hyphens",
            text.escape_debug()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_in_binary_units_and_shown_short() {
        for (text, mib, shown) in [
            ("512MiB", 512, "512MiB"),
            ("6GiB", 6144, "6GiB"),
            ("2G", 2048, "2GiB"),
            ("1TiB", 1 << 20, "1024GiB"),
        ] {
            let amount: Mebibytes = text.parse().expect(text);
            assert_eq!((amount.get(), amount.to_string().as_str()), (mib, shown));
        }
    }

    #[test]
    fn an_amount_without_or_with_a_decimal_unit_is_refused_with_the_way_to_write_it() {
        for (text, part) in [
            ("6", "6GiB"),
            ("6GB", "GiB"),
            ("GiB", "6GiB"),
            ("0GiB", "machine"),
            ("99999999999999TiB", "machine"),
        ] {
            let error = text.parse::<Mebibytes>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn one_fewer_never_goes_under_one() {
        assert_eq!(Cpus::new(4).map(|c| c.one_fewer().get()), Some(3));
        assert_eq!(Cpus::ONE.one_fewer(), Cpus::ONE);
        assert_eq!(Cpus::new(0), None);
    }

    #[test]
    fn names_that_could_mean_something_to_a_shell_or_a_path_are_refused() {
        for bad in ["", "-rf", "a b", "../x", "$(id)", "A", "x\n", "a-", &"a".repeat(33)] {
            assert!(bad.parse::<GuestName>().is_err(), "{bad:?}");
        }
        assert!("l1".parse::<GuestName>().is_ok());
    }
}
