//! The PROXY protocol, versions 1 and 2: a load balancer's word on where a connection comes from,
//! sent before anything else (haproxy's `proxy-protocol.txt`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest header of version 1, its CRLF included.
const V1_BYTES_MAX: usize = 107;
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Addresses and extensions of version 2. The format allows 64 KiB; real ones have a few hundred bytes.
const V2_BYTES_MAX: usize = 4096;

/// What a load balancer says of whom it speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxied {
    Client(SocketAddr),
    /// The connection is its own, or of a kind that has no address.
    Unknown,
}

/// Reads the header and not a byte more.
///
/// # Errors
/// Of the stream; `InvalidData` for anything that is not such a header.
pub async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Proxied> {
    let mut begin = [0; V2_SIGNATURE.len()];
    io.read_exact(&mut begin).await?;
    if begin == V2_SIGNATURE {
        return read_v2(io).await;
    }
    if !begin.starts_with(b"PROXY ") {
        return Err(invalid());
    }
    let mut line = begin.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= V1_BYTES_MAX {
            return Err(invalid());
        }
        line.push(io.read_u8().await?);
    }
    line.truncate(line.len() - 2);
    let text = std::str::from_utf8(&line).map_err(|_| invalid())?;
    parse_v1(text).ok_or_else(invalid)
}

async fn read_v2(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Proxied> {
    let mut head = [0; 4];
    io.read_exact(&mut head).await?;
    let [command, family, high, low] = head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > V2_BYTES_MAX {
        return Err(invalid());
    }
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await?;
    match (command, family) {
        // LOCAL: the addresses mean nothing.
        (0x20, _) => Ok(Proxied::Unknown),
        (0x21, 0x00) => Ok(Proxied::Unknown),
        (0x21, 0x11) => {
            let [a, b, c, d, _, _, _, _, high, low, ..] = payload[..] else {
                return Err(invalid());
            };
            let ip = IpAddr::V4(Ipv4Addr::new(a, b, c, d));
            address(ip, u16::from_be_bytes([high, low]), length >= 12)
        }
        (0x21, 0x21) => {
            let ip = payload.first_chunk::<16>().ok_or_else(invalid)?;
            let port = payload.get(32..34).unwrap_or_default();
            let port = port.first_chunk::<2>().ok_or_else(invalid)?;
            let ip = IpAddr::V6(Ipv6Addr::from(*ip));
            address(ip, u16::from_be_bytes(*port), length >= 36)
        }
        _ => Err(invalid()),
    }
}

fn address(ip: IpAddr, port: u16, is_whole: bool) -> io::Result<Proxied> {
    if !is_whole {
        return Err(invalid());
    }
    Ok(Proxied::Client(SocketAddr::new(ip, port)))
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443`; none for a malformed line.
fn parse_v1(line: &str) -> Option<Proxied> {
    let mut words = line.split(' ');
    if words.next() != Some("PROXY") {
        return None;
    }
    let family = words.next()?;
    if family == "UNKNOWN" {
        // Whatever follows is to be ignored.
        return Some(Proxied::Unknown);
    }
    let (source, destination) = (words.next()?, words.next()?);
    let (port, other) = (port(words.next()?)?, port(words.next()?));
    if words.next().is_some() || other.is_none() {
        return None;
    }
    let ip = match family {
        "TCP4" => {
            destination.parse::<Ipv4Addr>().ok()?;
            IpAddr::V4(source.parse().ok()?)
        }
        "TCP6" => {
            destination.parse::<Ipv6Addr>().ok()?;
            IpAddr::V6(source.parse().ok()?)
        }
        _ => return None,
    };
    Some(Proxied::Client(SocketAddr::new(ip, port)))
}

fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a PROXY protocol header")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The address, and what is left behind the header.
    fn parse(bytes: &[u8]) -> io::Result<(Proxied, usize)> {
        let mut rest = bytes;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let address = runtime.block_on(read(&mut rest))?;
        Ok((address, rest.len()))
    }

    fn v2(command: u8, family: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn both_versions_are_read_and_not_a_byte_more() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0x12, 0x34, 1, 187];
        let mut v6 = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        v6.extend([0; 16]);
        v6.extend([0x12, 0x34, 1, 187]);
        let mut extended = v4.to_vec();
        extended.extend([0x01, 0, 2, b'h', b'2']);
        for (bytes, expected) in [
            (
                &b"PROXY TCP4 192.0.2.1 198.51.100.1 4660 443\r\n"[..],
                Some("192.0.2.1:4660"),
            ),
            (
                b"PROXY TCP6 2001:db8::1 ::1 4660 443\r\n",
                Some("[2001:db8::1]:4660"),
            ),
            (b"PROXY UNKNOWN\r\n", None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
            (&v2(0x21, 0x11, &v4), Some("192.0.2.1:4660")),
            (&v2(0x21, 0x11, &extended), Some("192.0.2.1:4660")),
            (&v2(0x21, 0x21, &v6), Some("[2001:db8::1]:4660")),
            (&v2(0x20, 0x00, &[]), None),
            (&v2(0x20, 0x11, &v4), None),
            (&v2(0x21, 0x00, &[1, 2, 3]), None),
        ] {
            let expected = expected.map_or(Proxied::Unknown, |text| {
                Proxied::Client(text.parse().unwrap())
            });
            let followed = [bytes, b"GET /"].concat();
            assert_eq!(
                parse(&followed).unwrap(),
                (expected, 5),
                "{}",
                bytes.escape_ascii()
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(200));
        for bytes in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.1 198.51.100.1 4660\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 4660 443 1\r\n",
            b"PROXY TCP4 2001:db8::1 ::1 4660 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 04660 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 +466 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 99999 443\r\n",
            b"PROXY TCP4  192.0.2.1 198.51.100.1 1 443\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.1 1 443\r\n",
            b"PROXY TCP4 \xff\xff 198.51.100.1 1 443\r\n",
            b"PROXY TCP4 192.0.2.1",
            long.as_bytes(),
            &v2(0x21, 0x11, &[1, 2, 3]),
            &v2(0x21, 0x11, &[1; 10]),
            &v2(0x21, 0x21, &[1; 35]),
            &v2(0x21, 0x12, &[1; 12]),
            &v2(0x21, 0x31, &[0; 216]),
            &v2(0x11, 0x11, &[1; 12]),
            &v2(0x22, 0x11, &[1; 12]),
            &v2(0x21, 0x11, &[1; 5000]),
            &v2(0x21, 0x11, &[1; 12])[..20],
        ] {
            assert!(parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            version in prop::bool::ANY,
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let begin = if version { &V2_SIGNATURE[..] } else { b"PROXY TCP4 " };
            let _ = parse(&[begin, &rest].concat());
            let _ = parse(&rest);
        }
    }
}
