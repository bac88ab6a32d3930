//! Small values that clients write as text, and times as we write them.

use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};

use crate::failure::Failure;

/// RFC 3339, UTC, microseconds, with `Z`.
pub(super) fn timestamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A flag as forms and queries write it.
pub(super) fn flag(name: &str, value: &[u8]) -> Result<bool, Failure> {
    match value {
        b"true" | b"1" | b"on" => Ok(true),
        b"false" | b"0" | b"off" => Ok(false),
        _ => Err(Failure::bad_request(format!(
            "`{name}` must be true, 1, on, false, 0 or off"
        ))),
    }
}

/// UTF-8 text of at most `bytes_max` bytes.
pub(super) fn text<'a>(name: &str, value: &'a [u8], bytes_max: usize) -> Result<&'a str, Failure> {
    if value.len() > bytes_max {
        return Err(too_long(name, bytes_max as u64));
    }
    std::str::from_utf8(value)
        .map_err(|_| Failure::bad_request(format!("`{name}` must be UTF-8 text")))
}

/// A name that people read: 1 to `bytes_max` bytes of UTF-8 without control characters.
pub(super) fn name<'a>(name: &str, value: &'a [u8], bytes_max: usize) -> Result<&'a str, Failure> {
    let text = text(name, value, bytes_max)?;
    if text.trim().is_empty() {
        return Err(Failure::bad_request(format!(
            "`{name}` must have 1 to {bytes_max} bytes, not all of them blank"
        )));
    }
    // Characters that turn the direction of text could make one name look like another.
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if text.chars().any(|c| c.is_control() || turns(c)) {
        return Err(Failure::bad_request(format!(
            "`{name}` must not hold control or text-direction characters"
        )));
    }
    Ok(text)
}

/// A decimal whole number from `range`.
pub(super) fn number(
    name: &str,
    value: &[u8],
    range: std::ops::RangeInclusive<u32>,
) -> Result<u32, Failure> {
    // A sign is no digit, so that what `parse` sees can only be a number or too large.
    let digits = value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value)
        .ok()
        .filter(|_| digits)
        .and_then(|text| text.parse().ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            Failure::bad_request(format!(
                "`{name}` must be a number from {} to {}",
                range.start(),
                range.end()
            ))
        })
}

/// A day of UTC, as 2026-01-31.
pub(super) fn day(name: &str, value: &[u8]) -> Result<NaiveDate, Failure> {
    use chrono::Datelike;
    // Exactly this form: the parser itself would take signs, blanks and other numbers of digits too.
    let has_form = value.len() == 10
        && value.iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        });
    std::str::from_utf8(value)
        .ok()
        .filter(|_| has_form)
        .and_then(|text| text.parse::<NaiveDate>().ok())
        .filter(|day| day.year() >= 1)
        .ok_or_else(|| Failure::bad_request(format!("`{name}` must be a day such as 2026-01-31")))
}

pub(super) fn too_long(name: &str, bytes_max: u64) -> Failure {
    Failure::bad_request(format!("`{name}` is longer than {bytes_max} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_end_in_z() {
        let time = DateTime::from_timestamp(1_700_000_000, 123_456_789).unwrap();
        assert_eq!(timestamp(time), "2023-11-14T22:13:20.123456Z");
    }

    #[test]
    fn flags_are_six_words() {
        for word in ["true", "1", "on"] {
            assert_eq!(flag("f", word.as_bytes()), Ok(true));
        }
        for word in ["false", "0", "off"] {
            assert_eq!(flag("f", word.as_bytes()), Ok(false));
        }
        for word in ["", "yes", "TRUE", " true", "\u{0}", "11"] {
            let failure = flag("is_public", word.as_bytes()).unwrap_err();
            assert!(failure.message.contains("is_public"), "{word:?}");
        }
    }

    #[test]
    fn numbers_are_digits_in_range() {
        assert_eq!(number("limit", b"1", 1..=100), Ok(1));
        assert_eq!(number("limit", b"100", 1..=100), Ok(100));
        for word in [
            "",
            "0",
            "101",
            "-1",
            "+1",
            "1.0",
            "1e1",
            "0x1",
            " 1",
            "99999999999999999999",
        ] {
            let failure = number("limit", word.as_bytes(), 1..=100).unwrap_err();
            assert_eq!(
                failure.message, "`limit` must be a number from 1 to 100",
                "{word:?}"
            );
        }
        assert!(number("limit", &[0xff], 1..=100).is_err());
    }

    #[test]
    fn days_have_one_form() {
        let day_of = |text: &str| day("from", text.as_bytes());
        assert_eq!(
            day_of("2026-01-31"),
            Ok(NaiveDate::from_ymd_opt(2026, 1, 31).unwrap())
        );
        for text in [
            "",
            "2026-02-30",
            "2026-1-31",
            "20260131",
            "+026-01-31",
            "2026-01-31 ",
            "0000-01-01",
            "2026-01-31T00:00:00Z",
            "today",
        ] {
            let failure = day_of(text).unwrap_err();
            assert_eq!(
                failure.message, "`from` must be a day such as 2026-01-31",
                "{text:?}"
            );
        }
    }

    #[test]
    fn names_have_bounds_and_no_control_characters() {
        assert_eq!(name("name", "größe 1".as_bytes(), 255), Ok("größe 1"));
        assert_eq!(name("name", &[b'a'; 255], 255).map(str::len), Ok(255));
        for bad in [
            &[b'a'; 256][..],
            b"",
            b"  ",
            b"a\nb",
            b"a\0b",
            b"\x7f",
            b"\xff",
            "\u{85}".as_bytes(),
            "a\u{202e}b".as_bytes(),
        ] {
            assert!(name("name", bad, 255).is_err(), "{bad:?}");
        }
    }
}
