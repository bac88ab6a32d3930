//! The query string: `name=value` pairs as forms write them, with values of any bytes.

use crate::failure::Failure;

/// Pairs read at most.
const PAIRS_MAX: usize = 64;

/// A parsed query string. Names a handler does not ask for are ignored.
#[derive(Debug)]
pub(super) struct Query(Vec<(Vec<u8>, Vec<u8>)>);

impl Query {
    /// Parses `application/x-www-form-urlencoded` pairs: `%XX` is a byte, `+` is a space.
    pub(super) fn parse(query: Option<&str>) -> Result<Query, Failure> {
        let mut pairs = Vec::new();
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            if pairs.len() == PAIRS_MAX {
                return Err(Failure::bad_request(format!(
                    "the query string has more than {PAIRS_MAX} parameters"
                )));
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decoded(name)?, decoded(value)?));
        }
        Ok(Query(pairs))
    }

    /// The value of a parameter; one that is given twice is an error.
    pub(super) fn value(&self, name: &str) -> Result<Option<&[u8]>, Failure> {
        let mut values = self.0.iter().filter(|(found, _)| found == name.as_bytes());
        let first = values.next().map(|(_, value)| value.as_slice());
        match values.next() {
            Some(_) => Err(Failure::bad_request(format!(
                "`{name}` is given more than once"
            ))),
            None => Ok(first),
        }
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => hex_digit(rest.next())? << 4 | hex_digit(rest.next())?,
            other => other,
        });
    }
    Ok(bytes)
}

fn hex_digit(byte: Option<u8>) -> Result<u8, Failure> {
    match byte {
        Some(digit @ b'0'..=b'9') => Ok(digit - b'0'),
        Some(digit @ b'a'..=b'f') => Ok(digit - b'a' + 10),
        Some(digit @ b'A'..=b'F') => Ok(digit - b'A' + 10),
        Some(_) | None => Err(Failure::bad_request(
            "the query string has a `%` without two hexadecimal digits",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(query: &str, name: &str) -> Result<Option<Vec<u8>>, Failure> {
        Query::parse(Some(query)).and_then(|query| Ok(query.value(name)?.map(<[u8]>::to_vec)))
    }

    #[test]
    fn values_are_any_bytes() {
        assert_eq!(
            value("input=a%00%fF+b%2B", "input"),
            Ok(Some(b"a\0\xff b+".to_vec()))
        );
        assert_eq!(value("x=1&input=", "input"), Ok(Some(vec![])));
        assert_eq!(value("input", "input"), Ok(Some(vec![])));
        assert_eq!(value("inp%75t=a=b", "input"), Ok(Some(b"a=b".to_vec())));
        assert_eq!(value("&&", "input"), Ok(None));
        assert!(
            Query::parse(None)
                .unwrap()
                .value("input")
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn what_can_not_be_read_is_refused() {
        for query in ["input=%", "input=%1", "input=%zz", "input=%é", "%=1"] {
            assert!(value(query, "input").is_err(), "{query}");
        }
        assert!(value("input=1&input=1", "input").is_err());
        assert!(value(&"a&".repeat(PAIRS_MAX), "b").is_ok());
        assert!(value(&"a&".repeat(PAIRS_MAX + 1), "b").is_err());
    }
}
