//! The line of the log that ends every request.
//!
//! It is written straight into the log where that is JSON: as an event, visited field by field by
//! whoever listens, it costs several times as much, and every request pays for it.

use std::cell::RefCell;
use std::fmt::Display;
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use tracing::Level;
use uuid::Uuid;

use super::writer::Lines;

/// What lines are filtered by, and say where they come from.
const TARGET: &str = "wasm_wizard::gateway::access";

/// Where lines go as JSON, once the log is such.
static JSON: OnceLock<Lines> = OnceLock::new();

/// What the line of a request says, besides when.
#[derive(Serialize)]
pub struct RequestLine<'a, E: Display> {
    pub request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_address")]
    pub client: Option<IpAddr>,
    pub method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<&'a str>,
    pub path: &'a str,
    pub route: &'a str,
    pub status: u16,
    pub duration_us: u64,
    pub bytes_out: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<&'a str>,
    /// Of the trace, where there are traces, whether or not the collector is told of this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub error: Option<E>,
}

/// Sends lines straight to `lines` from now on. The first call decides.
pub(super) fn write_json_to(lines: Lines) {
    // A second log of the process was refused before it came here.
    let _ = JSON.set(lines);
}

impl<E: Display> RequestLine<'_, E> {
    /// Writes the line, where the log's filter lets it pass.
    pub fn write(&self, is_warning: bool) {
        let passes = if is_warning {
            tracing::enabled!(target: TARGET, Level::WARN)
        } else {
            tracing::enabled!(target: TARGET, Level::INFO)
        };
        if !passes {
            return;
        }
        match JSON.get() {
            Some(lines) => self.write_json(lines, is_warning),
            None => self.write_event(is_warning),
        }
    }

    fn write_json(&self, lines: &Lines, is_warning: bool) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            self.render(line, SystemTime::now(), is_warning);
            lines.put(line);
        });
    }

    fn render(&self, line: &mut Vec<u8>, at: SystemTime, is_warning: bool) {
        line.extend_from_slice(b"{\"timestamp\":\"");
        put_time(line, at);
        let level = if is_warning { "WARN" } else { "INFO" };
        line.extend_from_slice(b"\",\"level\":\"");
        line.extend_from_slice(level.as_bytes());
        line.extend_from_slice(b"\",\"message\":\"request\"");
        let fields_begin = line.len();
        // Nothing here can fail to be written to memory as JSON.
        let _ = serde_json::to_writer(&mut *line, self);
        if let Some(brace) = line.get_mut(fields_begin) {
            *brace = b',';
        }
        line.pop();
        line.extend_from_slice(b",\"target\":\"");
        line.extend_from_slice(TARGET.as_bytes());
        line.extend_from_slice(b"\"}\n");
    }

    fn write_event(&self, is_warning: bool) {
        // A macro, because the level of an event is part of its static description.
        macro_rules! event {
            ($level:expr) => {
                tracing::event!(
                    target: TARGET,
                    $level,
                    request_id = self.request_id,
                    client = self.client.map(tracing::field::display),
                    method = self.method,
                    host = self.host,
                    path = self.path,
                    route = self.route,
                    status = self.status,
                    duration_us = self.duration_us,
                    bytes_out = self.bytes_out,
                    client_subject = self.client_subject,
                    key_id = self.key_id.map(tracing::field::display),
                    code = self.code,
                    guest = self.guest,
                    guest_us = self.guest_us,
                    upstream = self.upstream,
                    trace_id = self.trace_id,
                    error = self.error.as_ref().map(tracing::field::display),
                    "request"
                )
            };
        }
        if is_warning {
            event!(Level::WARN);
        } else {
            event!(Level::INFO);
        }
    }
}

fn as_address<S: Serializer>(value: &Option<IpAddr>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(address) => serializer.serialize_str(&address_text(*address)),
        None => serializer.serialize_none(),
    }
}

/// An address as text: what `Display` writes, which takes several times as long for IPv4.
pub fn address_text(address: IpAddr) -> String {
    let IpAddr::V4(v4) = address else {
        return address.to_string();
    };
    let mut text = String::with_capacity("255.255.255.255".len());
    for (place, octet) in v4.octets().into_iter().enumerate() {
        if place > 0 {
            text.push('.');
        }
        let digit = |digit: u8| char::from(b'0' + digit);
        if octet >= 100 {
            text.push(digit(octet / 100));
        }
        if octet >= 10 {
            text.push(digit(octet / 10 % 10));
        }
        text.push(digit(octet % 10));
    }
    text
}

fn as_text<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// The time as the rest of the log has it (RFC 3339, in UTC, to the microsecond). The date and the
/// second are formatted once for all lines of a second.
fn put_time(line: &mut Vec<u8>, at: SystemTime) {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    // A clock before 1970 is wrong in any case.
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() || text.is_empty() {
            *second = since.as_secs();
            let at: DateTime<Utc> = at.into();
            *text = at.format("%Y-%m-%dT%H:%M:%S.").to_string();
        }
        line.extend_from_slice(text.as_bytes());
    });
    let mut micros = since.subsec_micros();
    let mut digits = *b"000000Z";
    for digit in digits[..6].iter_mut().rev() {
        *digit = b'0' + (micros % 10) as u8;
        micros /= 10;
    }
    line.extend_from_slice(&digits);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line() -> RequestLine<'static, &'static str> {
        RequestLine {
            request_id: "id-1",
            client: Some([192, 0, 2, 1].into()),
            method: "GET",
            host: Some("a.test"),
            path: "/a\"b\\c\u{7}",
            route: "r",
            status: 200,
            duration_us: 15,
            bytes_out: 3,
            client_subject: None,
            key_id: Some(Uuid::nil()),
            code: None,
            guest: None,
            guest_us: None,
            upstream: Some("http://u:80"),
            trace_id: None,
            error: Some("broke \"off\"\n"),
        }
    }

    fn rendered(at: SystemTime, is_warning: bool) -> String {
        let mut bytes = Vec::new();
        line().render(&mut bytes, at, is_warning);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_is_one_json_object_whatever_the_client_sends() {
        let at = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_042);
        let text = rendered(at, false);
        assert_eq!(text.matches('\n').count(), 1);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            read,
            serde_json::json!({
                "timestamp": "2023-11-14T22:13:20.000042Z", "level": "INFO", "message": "request",
                "request_id": "id-1", "client": "192.0.2.1", "method": "GET", "host": "a.test",
                "path": "/a\"b\\c\u{7}", "route": "r", "status": 200, "duration_us": 15,
                "bytes_out": 3, "key_id": "00000000-0000-0000-0000-000000000000",
                "upstream": "http://u:80", "error": "broke \"off\"\n", "target": TARGET,
            })
        );
        assert!(rendered(at, true).contains("\"level\":\"WARN\""));
    }

    #[test]
    fn addresses_are_written_as_ever() {
        for octet in 0..=255 {
            let address = IpAddr::from([octet, 255 - octet, octet / 3, 7]);
            assert_eq!(address_text(address), address.to_string());
        }
        let v6 = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]);
        assert_eq!(address_text(v6), "2001:db8::1");
    }

    #[test]
    fn the_second_is_kept_up() {
        for (micros, expected) in [
            (1_700_000_000_999_999, "2023-11-14T22:13:20.999999Z"),
            (1_700_000_001_000_000, "2023-11-14T22:13:21.000000Z"),
            (0, "1970-01-01T00:00:00.000000Z"),
        ] {
            let text = rendered(UNIX_EPOCH + Duration::from_micros(micros), false);
            assert!(text.contains(expected), "{text}");
        }
    }
}
