//! Which form of an execution's answer the client wants (RFC 9110 §12.5.1).

use axum::http::{HeaderMap, header};

/// The form of a successful execution's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The whole receipt, with the output as a string.
    Json,
    /// The guest's standard output as it is.
    Raw,
}

/// How much the client wants a media type: the quality of the most specific range that matches,
/// in thousandths, and how specific that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Weight {
    quality: u16,
    specificity: u8,
}

/// Media ranges read at most; what comes after is ignored.
const RANGES_MAX: usize = 64;

/// Raw when the client wants `application/octet-stream` more than `application/json`, or as much
/// but names it more specifically. A client that wants neither gets JSON.
pub(super) fn form(headers: &HeaderMap) -> Form {
    let mut json = Weight::default();
    let mut raw = Weight::default();
    let values = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    for range in values.flat_map(|value| value.split(',')).take(RANGES_MAX) {
        let (media_range, quality) = parsed(range);
        json.consider(media_range, quality, "json");
        raw.consider(media_range, quality, "octet-stream");
    }
    let raw_wanted = raw.quality > json.quality
        || (raw.quality == json.quality && raw.quality > 0 && raw.specificity > json.specificity);
    if raw_wanted { Form::Raw } else { Form::Json }
}

impl Weight {
    fn consider(&mut self, media_range: &str, quality: u16, subtype: &str) {
        let specificity = match media_range.split_once('/') {
            Some(("*", "*")) => 1,
            Some((kind, rest)) if kind.eq_ignore_ascii_case("application") => {
                if rest == "*" {
                    2
                } else if rest.eq_ignore_ascii_case(subtype) {
                    3
                } else {
                    return;
                }
            }
            Some(_) | None => return,
        };
        if specificity > self.specificity {
            *self = Weight {
                quality,
                specificity,
            };
        }
    }
}

/// A media range and its quality. One that can't be read is not wanted.
fn parsed(range: &str) -> (&str, u16) {
    let mut parameters = range.split(';').map(str::trim);
    let media_range = parameters.next().unwrap_or_default();
    let quality = parameters
        .find_map(|parameter| {
            parameter
                .strip_prefix("q=")
                .or(parameter.strip_prefix("Q="))
        })
        .map_or(1000, thousandths);
    (media_range, quality)
}

/// A qvalue (RFC 9110 §12.4.2): 0 to 1 with at most three decimals.
fn thousandths(qvalue: &str) -> u16 {
    let (whole, decimals) = qvalue.split_once('.').unwrap_or((qvalue, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    match whole {
        "1" => 1000,
        "0" => format!("{decimals:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(accept: &[&str]) -> Form {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, value.parse().unwrap());
        }
        form(&headers)
    }

    #[test]
    fn raw_must_be_wanted_more() {
        for accept in [
            "application/octet-stream",
            "Application/Octet-Stream;q=0.5",
            "application/octet-stream, application/json;q=0.9",
            "application/octet-stream, */*",
            "application/octet-stream, application/*;q=0.5, */*;q=0.1",
            "application/json;q=0.001, application/octet-stream; q=0.002",
            "text/html, application/octet-stream;q=1.000",
        ] {
            assert_eq!(chosen(&[accept]), Form::Raw, "{accept}");
        }
        assert_eq!(
            chosen(&["application/json;q=0.1", "application/octet-stream"]),
            Form::Raw
        );
    }

    #[test]
    fn json_is_the_default() {
        assert_eq!(chosen(&[]), Form::Json);
        for accept in [
            "",
            "*/*",
            "application/*",
            "text/html",
            "application/json",
            "application/octet-stream;q=0",
            "application/octet-stream;q=0.000, text/html",
            "application/json, application/octet-stream",
            "application/octet-stream;q=0.5, */*",
            "application/octet-stream;q=2",
            "application/octet-stream;q=0.1234, text/html",
            "application/octet-stream;q=-1",
            "application/octet-streams",
            "octet-stream",
            "application/octet-stream;q=",
            ",;,/,;q=,*/",
        ] {
            assert_eq!(chosen(&[accept]), Form::Json, "{accept}");
        }
        assert_eq!(chosen(&[&"x/y,".repeat(1000)]), Form::Json);
    }
}
