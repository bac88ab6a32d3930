//! Values as people write them: `10MiB`, `200ms`, `unlimited`, `auto`, `0.0.0.0:8443`.
//!
//! Each type reads what it displays, and says in its schema what it reads.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes: `10MiB`, `64KiB`, `1GB`, `512B`, or a bare number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// A length of time: `5s`, `200ms`, `1m`, `2h`, `30d`, or a bare number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

/// Requests in a window: a number, or `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Requests(pub Option<u32>);

/// A number of threads, or `auto`: one for each CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Threads(pub Option<u32>);

/// An IP address and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Address(pub SocketAddr);

/// Text that is never shown: not by `Debug`, not in a problem.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

const PERIOD_UNITS_MS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];

impl Size {
    pub const fn kib(count: u64) -> Size {
        Size(count << 10)
    }

    pub const fn mib(count: u64) -> Size {
        Size(count << 20)
    }

    pub const fn gib(count: u64) -> Size {
        Size(count << 30)
    }

    /// Reads what [`Size`] displays. The unit's case does not matter.
    pub fn parse(text: &str) -> Result<Size, String> {
        let (count, unit) = split_number(text)
            .ok_or("must be a size such as 10MiB, 64KiB, 1GB or a number of bytes")?;
        let factor = match unit {
            "" => 1,
            unit => match SIZE_UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            {
                Some((_, factor)) => *factor,
                None => {
                    return Err(
                        "has an unknown unit; the units are B, KiB, MiB, GiB, KB, MB and GB"
                            .to_string(),
                    );
                }
            },
        };
        count
            .checked_mul(factor)
            .map(Size)
            .ok_or_else(|| "is too large".to_string())
    }

    /// As a `usize`: all settings are bounded far below what a 32-bit one holds, or saturate.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Period {
    pub const fn ms(count: u64) -> Period {
        Period(Duration::from_millis(count))
    }

    pub const fn secs(count: u64) -> Period {
        Period(Duration::from_secs(count))
    }

    /// Reads what [`Period`] displays.
    pub fn parse(text: &str) -> Result<Period, String> {
        let (count, unit) = split_number(text)
            .ok_or("must be a duration such as 5s, 200ms, 1m or a number of seconds")?;
        let unit = if unit.is_empty() { "s" } else { unit };
        let Some((_, factor)) = PERIOD_UNITS_MS.iter().find(|(name, _)| *name == unit) else {
            return Err("has an unknown unit; the units are ms, s, m, h and d".to_string());
        };
        count
            .checked_mul(*factor)
            .map(Period::ms)
            .ok_or_else(|| "is too long".to_string())
    }
}

impl Requests {
    pub const UNLIMITED: Requests = Requests(None);

    pub const fn of(count: u32) -> Requests {
        Requests(Some(count))
    }

    pub fn parse(text: &str) -> Result<Requests, String> {
        number_or_word(text, "unlimited").map(Requests)
    }
}

impl Threads {
    pub const AUTO: Threads = Threads(None);

    pub fn parse(text: &str) -> Result<Threads, String> {
        number_or_word(text, "auto").map(Threads)
    }
}

impl Address {
    pub fn parse(text: &str) -> Result<Address, String> {
        text.parse().map(Address).map_err(|_| {
            "must be an IP address and a port, such as 0.0.0.0:8443 or [::]:8443".to_string()
        })
    }
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself; the name makes each use stand out in review.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Result<Secret, String> {
        Ok(Secret::new(text))
    }
}

/// The leading digits and the trimmed rest; `None` when there are no digits, or too many for a
/// `u64`.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits_end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    Some((digits.parse().ok()?, unit.trim_start()))
}

fn number_or_word(text: &str, word: &str) -> Result<Option<u32>, String> {
    let text = text.trim();
    if text == word {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| format!("must be a whole number or '{word}'"))
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIZE_UNITS
            .iter()
            .find(|(unit, factor)| *unit != "B" && self.0 != 0 && self.0.is_multiple_of(*factor))
        {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match PERIOD_UNITS_MS
            .iter()
            .find(|(_, factor)| ms != 0 && ms.is_multiple_of(u128::from(*factor)))
        {
            Some((unit, factor)) => write!(f, "{}{unit}", ms / u128::from(*factor)),
            None => write!(f, "0s"),
        }
    }
}

impl fmt::Display for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(count) => write!(f, "{count}"),
            None => f.write_str("unlimited"),
        }
    }
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(count) => write!(f, "{count}"),
            None => f.write_str("auto"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// Reads a value written as text or as a whole number. Nothing that was read is echoed, so that
/// the same visitor serves secrets.
struct Human<T> {
    expecting: &'static str,
    parse: fn(&str) -> Result<T, String>,
    number: Option<fn(u64) -> Result<T, String>>,
}

impl<T> Visitor<'_> for Human<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        match self.number {
            Some(from) => from(number).map_err(E::custom),
            None => Err(E::custom(format_args!(
                "must be {}: put it in quotes",
                self.expecting
            ))),
        }
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<T, E> {
        Err(E::custom(format_args!(
            "must be {}, not a negative number",
            self.expecting
        )))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<T, E> {
        Err(E::custom(format_args!(
            "must be {}, not a fraction",
            self.expecting
        )))
    }
}

fn count(number: u64) -> Result<Option<u32>, String> {
    u32::try_from(number)
        .map(Some)
        .map_err(|_| format!("must be at most {}", u32::MAX))
}

macro_rules! human_value {
    ($type:ident, $expecting:literal, $number:expr, $schema:tt) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                deserializer.deserialize_any(Human {
                    expecting: $expecting,
                    parse: $type::parse,
                    number: $number,
                })
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

human_value!(Size, "a size such as 10MiB or a number of bytes", Some(|n| Ok(Size(n))), {
    "description": "10MiB, 64KiB, 1GB, or a number of bytes",
    "anyOf": [
        { "type": "string", "pattern": "^[0-9]+ ?([KMG]i?)?B$" },
        { "type": "integer", "minimum": 0 }
    ]
});
human_value!(Period, "a duration such as 5s or a number of seconds", Some(|n| Period::parse(&n.to_string())), {
    "description": "5s, 200ms, 1m, 2h, or a number of seconds",
    "anyOf": [
        { "type": "string", "pattern": "^[0-9]+ ?(ms|s|m|h|d)$" },
        { "type": "integer", "minimum": 0 }
    ]
});
human_value!(Requests, "a whole number or 'unlimited'", Some(|n| count(n).map(Requests)), {
    "description": "a number of requests, or 'unlimited'",
    "anyOf": [{ "const": "unlimited" }, { "type": "integer", "minimum": 1, "maximum": u32::MAX }]
});
human_value!(Threads, "a whole number or 'auto'", Some(|n| count(n).map(Threads)), {
    "description": "a number of threads, or 'auto': one for each CPU",
    "anyOf": [{ "const": "auto" }, { "type": "integer", "minimum": 1, "maximum": 1024 }]
});
human_value!(Address, "an IP address and a port, such as 0.0.0.0:8443", None, {
    "description": "an IP address and a port: 0.0.0.0:8443, [::]:8443",
    "type": "string"
});
human_value!(Secret, "text", None, {
    "description": "a secret: better set as a variable, or as NAME_FILE",
    "type": "string"
});

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.to_string();
        if text.ends_with('B') {
            serializer.serialize_str(&text)
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Requests {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(count) => serializer.serialize_u32(count),
            None => serializer.serialize_str("unlimited"),
        }
    }
}

impl Serialize for Threads {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(count) => serializer.serialize_u32(count),
            None => serializer.serialize_str("auto"),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("10MiB", 10 << 20),
            ("64KiB", 64 << 10),
            ("1GB", 1_000_000_000),
            ("1 gib", 1 << 30),
            ("0", 0),
            ("512B", 512),
            (" 7 ", 7),
        ] {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
        for text in [
            "",
            "MiB",
            "-1",
            "1.5MiB",
            "10M",
            "10 TiB",
            "18446744073709551616",
            "18446744073709551615KiB",
            "1e3",
        ] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn periods_are_read_with_their_units() {
        for (text, ms) in [
            ("5s", 5_000),
            ("200ms", 200),
            ("1m", 60_000),
            ("3", 3_000),
            ("2h", 7_200_000),
            ("0", 0),
        ] {
            assert_eq!(Period::parse(text), Ok(Period::ms(ms)), "{text}");
        }
        for text in [
            "",
            "s",
            "1.5s",
            "-5s",
            "5sec",
            "5 M",
            "18446744073709551615d",
        ] {
            assert!(Period::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words_stand_for_no_number() {
        assert_eq!(Requests::parse("unlimited"), Ok(Requests::UNLIMITED));
        assert_eq!(Requests::parse("12"), Ok(Requests::of(12)));
        assert!(Requests::parse("auto").is_err());
        assert_eq!(Threads::parse("auto"), Ok(Threads::AUTO));
        assert!(Threads::parse("4294967296").is_err());
    }

    #[test]
    fn a_secret_shows_nothing() {
        let secret = Secret::new("hunter2");
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&secret).unwrap().contains("hunter2"));
    }

    proptest! {
        #[test]
        fn what_a_size_displays_it_reads(bytes in any::<u64>(), shift in 0_u32..40) {
            let size = Size(bytes >> shift << (shift / 2));
            prop_assert_eq!(Size::parse(&size.to_string()), Ok(size));
        }

        #[test]
        fn what_a_period_displays_it_reads(ms in 0_u64..1 << 50) {
            let period = Period::ms(ms);
            prop_assert_eq!(Period::parse(&period.to_string()), Ok(period));
        }

        #[test]
        fn no_text_is_too_strange_to_refuse(text in "\\PC*") {
            drop((Size::parse(&text), Period::parse(&text), Requests::parse(&text), Address::parse(&text)));
        }
    }
}
