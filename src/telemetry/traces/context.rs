//! To which trace a request belongs: `traceparent` and `tracestate` (W3C Trace Context, level 1).

use http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId, TraceState};

pub const TRACEPARENT: &str = "traceparent";
pub const TRACESTATE: &str = "tracestate";

/// Longer ones are dropped, as the specification allows from 512 on (section 3.3.1.5).
const STATE_BYTES_MAX: usize = 512;

/// What the caller says of the trace.
#[derive(Debug, PartialEq)]
pub struct Parent {
    pub trace: TraceId,
    pub span: SpanId,
    pub is_sampled: bool,
    /// As it goes on to whoever is asked next.
    pub state: Option<HeaderValue>,
}

impl Parent {
    /// `None` where there is no parent, or one that breaks the rules: then the trace begins anew
    /// (section 4.3).
    pub fn read(headers: &HeaderMap) -> Option<Parent> {
        let mut lines = headers.get_all(TRACEPARENT).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else {
            return None;
        };
        let (trace, span, flags) = fields(line.as_bytes())?;
        Some(Parent {
            trace,
            span,
            is_sampled: flags & 1 == 1,
            state: state(headers),
        })
    }
}

/// `00-<32 digits>-<16 digits>-<2 digits>`, all of them lower-case hexadecimal; later versions may have
/// more behind a hyphen (section 3.2).
fn fields(line: &[u8]) -> Option<(TraceId, SpanId, u8)> {
    let (known, more) = line.split_at_checked(55)?;
    let version = hex::<1>(&known[..2])?;
    let follows_rules = match version {
        [0xff] => false,
        [0] => more.is_empty(),
        [_] => more.is_empty() || more.first() == Some(&b'-'),
    };
    let hyphens = [2, 35, 52].iter().all(|at| known[*at] == b'-');
    if !follows_rules || !hyphens {
        return None;
    }
    let trace = TraceId::from_bytes(hex(&known[3..35])?);
    let span = SpanId::from_bytes(hex(&known[36..52])?);
    let [flags] = hex(&known[53..55])?;
    (trace != TraceId::INVALID && span != SpanId::INVALID).then_some((trace, span, flags))
}

fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    (digits.len() == 2 * N).then_some(bytes)
}

/// Several lines are one list (section 3.3.1.1). One that breaks the rules is dropped alone.
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut all = String::new();
    for line in headers.get_all(TRACESTATE) {
        if !all.is_empty() {
            all.push(',');
        }
        all.push_str(line.to_str().ok()?);
        if all.len() > STATE_BYTES_MAX {
            return None;
        }
    }
    let state: TraceState = all.parse().ok()?;
    let text = state.header();
    if text.is_empty() {
        return None;
    }
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn read(parents: &[&str], states: &[&str]) -> Option<Parent> {
        let mut headers = HeaderMap::new();
        for parent in parents {
            headers.append(
                TRACEPARENT,
                HeaderValue::from_bytes(parent.as_bytes()).unwrap(),
            );
        }
        for state in states {
            headers.append(
                TRACESTATE,
                HeaderValue::from_bytes(state.as_bytes()).unwrap(),
            );
        }
        Parent::read(&headers)
    }

    #[test]
    fn a_parent_is_read() {
        let parent = read(&[GOOD], &["a=1, b=2", "c=3"]).unwrap();
        assert_eq!(parent.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parent.span.to_string(), "b7ad6b7169203331");
        assert!(parent.is_sampled);
        let state = parent.state.unwrap();
        let members: Vec<&str> = state.to_str().unwrap().split(',').map(str::trim).collect();
        assert_eq!(members, ["a=1", "b=2", "c=3"]);
        for (flags, is_sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            let line = format!("{}{flags}", &GOOD[..53]);
            assert_eq!(
                read(&[&line], &[]).unwrap().is_sampled,
                is_sampled,
                "{flags}"
            );
        }
        // A later version may have more to say.
        for line in [
            format!("cc{}", &GOOD[2..]),
            format!("01{}-what", &GOOD[2..]),
        ] {
            assert!(read(&[&line], &[]).is_some(), "{line}");
        }
    }

    #[test]
    fn what_breaks_the_rules_is_as_if_it_were_not_there() {
        let long = "0".repeat(8000);
        for line in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-00"),
            &format!("{GOOD} "),
            &format!(" {GOOD}"),
            &format!("01{}x", &GOOD[2..]),
            &format!("ff{}", &GOOD[2..]),
            &format!("0g{}", &GOOD[2..]),
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            &GOOD.replace("b7ad", "b7é"),
            &format!("{}0x", &GOOD[..53]),
            &long,
        ] {
            assert_eq!(read(&[line], &["a=1"]), None, "{line}");
        }
        assert_eq!(read(&[], &["a=1"]), None);
        assert_eq!(read(&[GOOD, GOOD], &[]), None);
    }

    #[test]
    fn a_bad_state_does_not_take_the_parent_along() {
        let long = format!("a={}", "x".repeat(600));
        for state in ["", "novalue", "A=1", "a=1=2,", "é=1", "=1", &long] {
            let parent = read(&[GOOD], &[state]).unwrap();
            assert!(
                parent.state.is_none_or(|s| s.len() <= STATE_BYTES_MAX),
                "{state}"
            );
        }
        assert_eq!(read(&[GOOD], &[&long]).unwrap().state, None);
        assert_eq!(read(&[GOOD], &["novalue"]).unwrap().state, None);
    }
}
