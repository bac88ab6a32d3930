//! Where a request comes from: the connection's other end, or, behind proxies that are trusted, whom
//! they say they speak for.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

use super::Settings;
use crate::route::Network;

/// The header in which trusted proxies say whom they speak for. Only one: the other may be the
/// client's own, passed on by a proxy that does not know it.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAddressHeader {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

pub(super) fn is_trusted(peer: Option<IpAddr>, settings: &Settings) -> bool {
    !settings.trusted_proxies.is_empty()
        && peer.is_some_and(|ip| contains(&settings.trusted_proxies, ip))
}

/// The client's address: the connection's, or, where that is a trusted proxy's, the last address of
/// the configured header that is not a trusted proxy itself.
pub(super) fn client(
    peer: Option<IpAddr>,
    peer_trusted: bool,
    headers: &HeaderMap,
    settings: &Settings,
) -> Option<IpAddr> {
    let mut client = peer?;
    if !peer_trusted {
        return peer;
    }
    let name = match settings.client_address_header {
        ClientAddressHeader::XForwardedFor => "x-forwarded-for",
        ClientAddressHeader::Forwarded => "forwarded",
    };
    // A line that is not text ends the chain, as an entry that is no address does.
    let lines: Vec<&str> = headers
        .get_all(name)
        .iter()
        .map(|line| line.to_str().unwrap_or("?"))
        .collect();
    for line in lines.iter().rev() {
        let entries = match settings.client_address_header {
            ClientAddressHeader::XForwardedFor => line.split(',').collect(),
            ClientAddressHeader::Forwarded => split_unquoted(line, ','),
        };
        for entry in entries.iter().rev() {
            let address = match settings.client_address_header {
                ClientAddressHeader::XForwardedFor => node(entry.trim()),
                ClientAddressHeader::Forwarded => forwarded_for(entry),
            };
            let Some(address) = address else {
                return Some(client);
            };
            client = address.to_canonical();
            if !contains(&settings.trusted_proxies, client) {
                return Some(client);
            }
        }
    }
    Some(client)
}

/// The `for` of one element of `Forwarded`: `for="[2001:db8::1]:4711";proto=https`. None where it is
/// absent, hidden (`unknown`, `_hidden`) or malformed.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let mut found = None;
    for pair in split_unquoted(element, ';') {
        let (name, value) = pair.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("for") {
            if found.is_some() {
                return None;
            }
            let value = value.trim();
            let quoted = value.strip_prefix('"').map(|rest| rest.strip_suffix('"'));
            found = Some(node(quoted.unwrap_or(Some(value))?)?);
        }
    }
    found
}

/// `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:4711`.
fn node(text: &str) -> Option<IpAddr> {
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()))
        .or_else(|| in_brackets().map(IpAddr::V6))
}

/// The parts between separators, those in quoted strings not counted.
fn split_unquoted(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if c == separator && !quoted => {
                parts.push(&text[begin..at]);
                begin = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

fn contains(networks: &[Network], ip: IpAddr) -> bool {
    networks.iter().any(|n| n.contains(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Behind proxies in 10.0.0.0/8 and 2001:db8:f::/48.
    fn of(header: ClientAddressHeader, peer: &str, lines: &[(&'static str, &str)]) -> String {
        let settings = Settings {
            trusted_proxies: ["10.0.0.0/8", "2001:db8:f::/48"]
                .map(|n| Network::parse(n).unwrap())
                .to_vec(),
            client_address_header: header,
            ..Settings::for_tests()
        };
        let mut headers = HeaderMap::new();
        for (name, line) in lines {
            headers.append(
                *name,
                http::HeaderValue::from_bytes(line.as_bytes()).unwrap(),
            );
        }
        let peer = Some(peer.parse().unwrap());
        let trusted = is_trusted(peer, &settings);
        client(peer, trusted, &headers, &settings)
            .unwrap()
            .to_string()
    }

    #[test]
    fn the_last_address_that_is_no_proxy_is_the_client() {
        use ClientAddressHeader::XForwardedFor as Header;
        for (peer, lines, expected) in [
            ("192.0.2.1", vec!["198.51.100.1"], "192.0.2.1"),
            ("10.0.0.1", vec![], "10.0.0.1"),
            ("10.0.0.1", vec!["198.51.100.1"], "198.51.100.1"),
            (
                "10.0.0.1",
                vec!["6.6.6.6, 198.51.100.1, 10.1.1.1"],
                "198.51.100.1",
            ),
            (
                "10.0.0.1",
                vec!["6.6.6.6", "198.51.100.1,10.1.1.1"],
                "198.51.100.1",
            ),
            ("10.0.0.1", vec!["6.6.6.6, nonsense, 10.1.1.1"], "10.1.1.1"),
            ("10.0.0.1", vec!["6.6.6.6, "], "10.0.0.1"),
            ("10.0.0.1", vec!["6.6.6.6", "\u{e4}"], "10.0.0.1"),
            ("10.0.0.1", vec!["198.51.100.1:4711"], "198.51.100.1"),
            ("10.0.0.1", vec!["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", vec!["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", vec!["::ffff:198.51.100.1"], "198.51.100.1"),
            (
                "2001:db8:f::1",
                vec!["198.51.100.1, 2001:db8:f::2"],
                "198.51.100.1",
            ),
            ("10.0.0.1", vec!["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ] {
            let lines: Vec<_> = lines.iter().map(|l| ("x-forwarded-for", *l)).collect();
            assert_eq!(of(Header, peer, &lines), expected, "{peer} {lines:?}");
        }
        let other = [("forwarded", "for=6.6.6.6")];
        assert_eq!(
            of(Header, "10.0.0.1", &other),
            "10.0.0.1",
            "only one header is believed"
        );
    }

    #[test]
    fn forwarded_is_read_as_rfc_7239_has_it() {
        use ClientAddressHeader::Forwarded as Header;
        for (lines, expected) in [
            (vec!["for=198.51.100.1"], "198.51.100.1"),
            (
                vec!["For=\"198.51.100.1:4711\";proto=https;by=10.0.0.1"],
                "198.51.100.1",
            ),
            (vec!["proto=http;for=\"[2001:db8::1]:4711\""], "2001:db8::1"),
            (vec!["for=\"[2001:db8::1]\""], "2001:db8::1"),
            (
                vec!["for=6.6.6.6, for=198.51.100.1, for=10.1.1.1"],
                "198.51.100.1",
            ),
            (vec!["for=6.6.6.6", "for=198.51.100.1"], "198.51.100.1"),
            (vec!["for=6.6.6.6, for=unknown"], "10.0.0.1"),
            (vec!["for=6.6.6.6, for=_hidden, for=10.1.1.1"], "10.1.1.1"),
            (vec!["for=6.6.6.6, proto=https"], "10.0.0.1"),
            (vec!["for=6.6.6.6;for=7.7.7.7"], "10.0.0.1"),
            (vec!["for=6.6.6.6, by=\"x, for=7.7.7.7\""], "10.0.0.1"),
            (
                vec!["for=198.51.100.1;host=\"a, for=6.6.6.6\""],
                "198.51.100.1",
            ),
            (vec!["for=\"198.51.100.1"], "10.0.0.1"),
            (vec!["for"], "10.0.0.1"),
            (vec![""], "10.0.0.1"),
        ] {
            let lines: Vec<_> = lines.iter().map(|l| ("forwarded", *l)).collect();
            assert_eq!(of(Header, "10.0.0.1", &lines), expected, "{lines:?}");
        }
        let other = [("x-forwarded-for", "6.6.6.6")];
        assert_eq!(
            of(Header, "10.0.0.1", &other),
            "10.0.0.1",
            "only one header is believed"
        );
    }
}
