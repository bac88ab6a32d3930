//! WebSockets through `proxy` routes (RFC 6455): which handshakes pass, and how long a socket may stay.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use http::{HeaderMap, Method, StatusCode, Version, header};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;
use tokio::sync::watch;

use crate::failure::{Failure, code};
use crate::route::{Proxy, WebSocket};
use crate::telemetry::metrics::metrics;
use crate::upstream::{Tether, Turn};

/// A WebSocket that is open, counted.
pub(super) struct Open;

impl Open {
    pub fn new() -> Open {
        metrics().websockets.inc();
        metrics().websockets_active.inc();
        Open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics().websockets_active.dec();
    }
}

/// Whether the request is a WebSocket's handshake that may pass. Any other wish to upgrade is taken
/// away, as a server may ignore it (RFC 9110 section 7.8): `h2c` would carry requests past every check.
pub(super) fn check(session: &mut Session, proxy: &Proxy) -> Result<bool, Failure> {
    let head = session.req_header();
    if !head.headers.contains_key(header::UPGRADE) {
        return Ok(false);
    }
    let wanted = has_token(&head.headers, &header::UPGRADE, b"websocket")
        && has_token(&head.headers, &header::CONNECTION, b"upgrade")
        && head.version == Version::HTTP_11;
    if !wanted {
        session.req_header_mut().remove_header(&header::UPGRADE);
        return Ok(false);
    }
    if proxy.websocket.is_none() {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            code::WEBSOCKET_NOT_ALLOWED,
            "this path does not take WebSockets",
        ));
    }
    check_handshake(&head.method, &head.headers)?;
    // Tokens beside it are no longer offered, and its spelling is the one Pingora looks for.
    let head = session.req_header_mut();
    let set = head.insert_header(header::UPGRADE, "websocket");
    set.map_err(|_| Failure::internal())?;
    // Nor does it name headers of the handshake to be taken away.
    let set = head.insert_header(header::CONNECTION, "Upgrade");
    set.map_err(|_| Failure::internal())?;
    Ok(true)
}

/// RFC 6455 section 4.2.1.
fn check_handshake(method: &Method, headers: &HeaderMap) -> Result<(), Failure> {
    if method != Method::GET {
        return Err(Failure::bad_request("a WebSocket's handshake is a GET"));
    }
    let length = headers.get(header::CONTENT_LENGTH);
    if headers.contains_key(header::TRANSFER_ENCODING)
        || length.is_some_and(|length| length.as_bytes() != b"0")
    {
        return Err(Failure::bad_request("a WebSocket's handshake has no body"));
    }
    let one = |name| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    let version = one(header::SEC_WEBSOCKET_VERSION);
    if version.is_none_or(|version| version.as_bytes() != b"13") {
        return Err(Failure::new(
            StatusCode::UPGRADE_REQUIRED,
            code::UPGRADE_REQUIRED,
            "only version 13 of WebSocket is understood",
        ));
    }
    let key = one(header::SEC_WEBSOCKET_KEY);
    let decoded = key.map(|k| base64::engine::general_purpose::STANDARD.decode(k.as_bytes()));
    if !matches!(decoded, Some(Ok(nonce)) if nonce.len() == 16) {
        return Err(Failure::bad_request(
            "Sec-WebSocket-Key must be 16 bytes in base64, once",
        ));
    }
    Ok(())
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &[u8]) -> bool {
    let lines = headers.get_all(name).iter();
    let mut tokens = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    tokens.any(|found| found.trim_ascii().eq_ignore_ascii_case(token))
}

/// Whether a 101 agrees to what was asked. Pingora has refused one that nobody asked for.
pub(super) fn check_agreed(session: &Session, response: &ResponseHeader) -> Result<(), Box<Error>> {
    let agreed = session.is_upgrade_req()
        && has_token(&response.headers, &header::UPGRADE, b"websocket")
        && has_token(&response.headers, &header::CONNECTION, b"upgrade")
        && response.headers.contains_key(header::SEC_WEBSOCKET_ACCEPT);
    if agreed {
        return Ok(());
    }
    let mut error = Error::explain(
        ErrorType::InvalidHTTPHeader,
        "the upstream's 101 is not that of a WebSocket",
    );
    error.as_up();
    Err(error)
}

/// Gives the connection its own limits: Pingora's timeouts look at one direction alone, and would end
/// a socket on which only the other side speaks. It ends when `stopped` is true.
pub(super) fn tether(
    peer: &mut HttpPeer,
    times: WebSocket,
    stopped: Option<watch::Receiver<bool>>,
) -> Arc<Turn> {
    let answer_timeout = peer.options.read_timeout.take();
    let tether = Tether::new(
        answer_timeout.unwrap_or(times.idle_timeout),
        times.idle_timeout,
        times.lifetime_max,
        stopped,
    );
    let turn = tether.turn();
    // What ends as a plain answer is not kept: its socket has a lifetime. (The pool could not tell such
    // sockets from each other either, and would keep them without a bound.)
    peer.options.idle_timeout = Some(Duration::ZERO);
    peer.group_key ^= tether.key();
    peer.options.custom_l4 = Some(Arc::new(tether));
    peer.options.set_http_version(1, 1);
    turn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const VERSION: (&str, &str) = ("sec-websocket-version", "13");

    #[test]
    fn handshakes_are_read_strictly() {
        let status = |method: Method, fields: &[(&'static str, &str)]| {
            check_handshake(&method, &headers(fields)).map_err(|failure| failure.status.as_u16())
        };
        assert_eq!(status(Method::GET, &[KEY, VERSION]), Ok(()));
        assert_eq!(status(Method::POST, &[KEY, VERSION]), Err(400));
        assert_eq!(status(Method::GET, &[KEY]), Err(426));
        assert_eq!(
            status(Method::GET, &[KEY, ("sec-websocket-version", "8")]),
            Err(426)
        );
        assert_eq!(status(Method::GET, &[VERSION]), Err(400));
        assert_eq!(status(Method::GET, &[KEY, KEY, VERSION]), Err(400));
        for key in [
            "",
            "dGhl",
            "dGhlIHNhbXBsZSBub25jZQ",
            "!!!!IHNhbXBsZSBub25jZQ==",
        ] {
            let fields = [("sec-websocket-key", key), VERSION];
            assert_eq!(status(Method::GET, &fields), Err(400), "{key}");
        }
        for body in [("content-length", "5"), ("transfer-encoding", "chunked")] {
            assert_eq!(status(Method::GET, &[KEY, VERSION, body]), Err(400));
        }
    }

    #[test]
    fn tokens_are_whole_words_in_any_case() {
        let connection = |value| headers(&[("connection", value)]);
        for value in ["upgrade", "keep-alive, Upgrade", "UPGRADE ,x"] {
            assert!(has_token(
                &connection(value),
                &header::CONNECTION,
                b"upgrade"
            ));
        }
        for value in ["", "upgraded", "x-upgrade", "keep-alive"] {
            assert!(!has_token(
                &connection(value),
                &header::CONNECTION,
                b"upgrade"
            ));
        }
    }
}
