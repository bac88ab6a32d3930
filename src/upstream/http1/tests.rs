use bytes::BytesMut;
use http::{HeaderMap, Method, Version};

use super::framing::{Framing, Piece};
use super::head;

fn parsed(text: &str) -> Result<Option<pingora_http::ResponseHeader>, String> {
    let mut buf = BytesMut::from(text.as_bytes());
    head::parse(&mut buf, &mut 0).map_err(|error| error.to_string())
}

/// The whole body of an answer that comes in these parts, and what is left over; or what is wrong.
fn body(
    method: Method,
    head: &str,
    parts: &[&[u8]],
    closed: bool,
) -> Result<(Vec<u8>, usize), String> {
    let mut buf = BytesMut::from(format!("{head}\r\n\r\n").as_bytes());
    let mut answer = head::parse(&mut buf, &mut 0)
        .map_err(|e| e.to_string())?
        .ok_or("no head")?;
    let mut framing = Framing::of(&mut answer, &method).map_err(|e| e.to_string())?;
    let mut parts = parts.iter();
    let mut body = Vec::new();
    loop {
        match framing.take(&mut buf).map_err(|e| e.to_string())? {
            Piece::Data(data) => body.extend_from_slice(&data),
            Piece::End => return Ok((body, buf.len())),
            Piece::More => match parts.next() {
                Some(part) => buf.extend_from_slice(part),
                None if closed && framing == Framing::UntilClosed => return Ok((body, 0)),
                None => return Err("broke off".to_owned()),
            },
        }
    }
}

#[test]
fn a_head_is_taken_once_it_is_whole() {
    let text = "HTTP/1.1 299 Odd Thing\r\nA: 1\r\nb:  two \r\nA: 3\r\nempty:\r\n\r\n";
    for end in 0..text.len() {
        assert!(parsed(&text[..end]).unwrap().is_none(), "{end}");
    }
    let head = parsed(text).unwrap().unwrap();
    assert_eq!(head.status, 299);
    assert_eq!(head.get_reason_phrase(), Some("Odd Thing"));
    let values: Vec<_> = head.headers.get_all("a").iter().collect();
    assert_eq!(values, ["1", "3"]);
    assert_eq!(head.headers["b"], "two");
    assert_eq!(head.headers["empty"], "");
}

#[test]
fn a_head_that_drips_is_taken_all_the_same() {
    let text = "HTTP/1.1 200 OK\r\nA: 1\r\n\r\nHTTP/1.1 204 No\r\n\r\n";
    let (mut buf, mut seen, mut statuses) = (BytesMut::new(), 0, Vec::new());
    for byte in text.bytes() {
        buf.extend_from_slice(&[byte]);
        if let Some(head) = head::parse(&mut buf, &mut seen).unwrap() {
            statuses.push(head.status.as_u16());
        }
    }
    assert_eq!((statuses, buf.len()), (vec![200, 204], 0));
}

#[test]
fn as_many_fields_as_are_allowed() {
    let many = |count: usize| {
        let fields: String = (0..count).map(|i| format!("f{i}: {i}\r\n")).collect();
        parsed(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"))
    };
    assert_eq!(many(200).unwrap().unwrap().headers.len(), 200);
    assert!(many(257).is_err());
}

#[test]
fn heads_that_could_be_read_differently_are_refused() {
    for head in [
        "HTTP/1.1 200 OK\r\n A: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: 1\r\n\0folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: 1\rB: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: 1\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
    ] {
        assert!(parsed(head).is_err(), "{head:?}");
    }
    let spaced = parsed("HTTP/1.1 200 OK\r\nA : 1\r\n\r\n").unwrap().unwrap();
    assert_eq!(spaced.headers["a"], "1");
    // What a folded field says is on one line behind the gateway, and frames nothing that one line would not.
    let folded = parsed("HTTP/1.1 200 OK\r\nA: 1\r\n \tfolded\r\n twice\r\nB: 2\r\n\r\n");
    let folded = folded.unwrap().unwrap();
    assert_eq!(folded.headers["a"], "1   \tfolded   twice");
    assert_eq!(folded.headers["b"], "2");
    let unsure = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chun\r\n ked";
    assert!(body(Method::GET, unsure, &[b"0\r\n\r\n"], true).is_err());
    for noise in ["\x16\x03\x01", "hello"] {
        assert!(
            parsed(noise).unwrap().is_none(),
            "nothing is said before a line ends"
        );
    }
    let large = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(300 * 1024));
    assert!(parsed(&large).is_err());
    let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(300 * 1024));
    assert!(parsed(&endless).is_err());
}

#[test]
fn bodies_end_where_their_framing_says() {
    let get = |head: &str, parts: &[&[u8]], closed| body(Method::GET, head, parts, closed);
    let ok = "HTTP/1.1 200 OK";
    let long = format!("{ok}\r\nContent-Length: 5");
    assert_eq!(
        get(&long, &[b"he", b"llo"], false),
        Ok((b"hello".to_vec(), 0))
    );
    assert_eq!(
        get(&long, &[b"hello, more"], false),
        Ok((b"hello".to_vec(), 6))
    );
    assert!(get(&long, &[b"hel"], true).is_err(), "broken off");
    let same = format!("{ok}\r\nContent-Length: 2\r\nContent-Length: 2");
    assert_eq!(get(&same, &[b"hi"], false), Ok((b"hi".to_vec(), 0)));
    assert_eq!(
        get(ok, &[b"until", b" closed"], true),
        Ok((b"until closed".to_vec(), 0))
    );
    let listed = format!("{ok}\r\nContent-Length: 2, 2");
    assert_eq!(get(&listed, &[b"hi"], false), Ok((b"hi".to_vec(), 0)));
    for bodiless in [
        "HTTP/1.1 204 No Content",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 9",
    ] {
        assert_eq!(get(bodiless, &[], false), Ok((Vec::new(), 0)));
    }
    assert_eq!(body(Method::HEAD, &long, &[], false), Ok((Vec::new(), 0)));
}

#[test]
fn lengths_that_could_be_read_differently_are_refused() {
    for fields in [
        "Content-Length: 1\r\nContent-Length: 2",
        "Content-Length: 1, 2",
        "Content-Length: +1",
        "Content-Length: 0x1",
        "Content-Length: ",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: \x0bchunked",
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}");
        assert!(
            body(Method::GET, &head, &[b"1\r\na\r\n0\r\n\r\n"], true).is_err(),
            "{fields}"
        );
    }
    let old = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked";
    assert!(body(Method::GET, old, &[b"0\r\n\r\n"], true).is_err());
}

#[test]
fn chunks_are_put_together_however_they_come() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 3";
    let whole: &[u8] =
        b"5;name=\"v\"\r\nhello\r\n00A \r\n, chunked.\r\n0\r\nTrailer: x\r\n\r\nnext";
    let expected = Ok((b"hello, chunked.".to_vec(), 4));
    assert_eq!(body(Method::GET, head, &[whole], false), expected);
    let bytes: Vec<&[u8]> = whole[..whole.len() - 4].chunks(1).collect();
    let expected = Ok((b"hello, chunked.".to_vec(), 0));
    assert_eq!(body(Method::GET, head, &bytes, false), expected);
}

#[test]
fn malformed_chunks_are_refused() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked";
    let long_line = format!("1;{}\r\na\r\n", "x".repeat(5000));
    let long_trailer = format!("0\r\n{}\r\n", "a: b\r\n".repeat(5000));
    for chunks in [
        &b"\r\n"[..],
        b"1\na\r\n0\r\n\r\n",
        b"1\r\na\n0\r\n\r\n",
        b"1\r\nab\r\n0\r\n\r\n",
        b"-1\r\na\r\n0\r\n\r\n",
        b"0x1\r\na\r\n0\r\n\r\n",
        b" 1\r\na\r\n0\r\n\r\n",
        b"1 1\r\na\r\n0\r\n\r\n",
        b"10000000000000000\r\n",
        b"1;a\rb\r\na\r\n0\r\n\r\n",
        long_line.as_bytes(),
        long_trailer.as_bytes(),
    ] {
        let got = body(Method::GET, head, &[chunks], true);
        let broke_off = Err("broke off".to_owned());
        assert!(
            got.is_err() && got != broke_off,
            "{}: {got:?}",
            chunks.escape_ascii()
        );
    }
    assert_eq!(
        body(Method::GET, head, &[b"5\r\nhel"], true),
        Err("broke off".to_owned())
    );
}

#[test]
fn what_keeps_a_connection() {
    let keeps = |text: &str| head::keeps(&parsed(&format!("{text}\r\n\r\n")).unwrap().unwrap());
    assert!(keeps("HTTP/1.1 200 OK").is_some());
    assert!(keeps("HTTP/1.1 200 OK\r\nConnection: x, Close").is_none());
    assert!(keeps("HTTP/1.0 200 OK").is_none());
    assert!(keeps("HTTP/1.0 200 OK\r\nConnection: Keep-Alive").is_some());
    let seconds = keeps("HTTP/1.1 200 OK\r\nKeep-Alive: max=9, timeout=5").unwrap();
    assert_eq!(seconds.as_secs(), 5);
}

#[test]
fn requests_are_written_as_old_servers_know_them() {
    let mut fields = HeaderMap::new();
    fields.insert("host", "a.test".parse().unwrap());
    fields.insert("x-api-key", "1".parse().unwrap());
    let mut out = BytesMut::new();
    head::encode(&mut out, &Method::GET, b"/a?b", &fields).unwrap();
    let text = "GET /a?b HTTP/1.1\r\nHost: a.test\r\nX-Api-Key: 1\r\n\r\n";
    assert_eq!(out, text.as_bytes());
    for target in [&b""[..], b"/a b", b"/a\r\nX: 1", b"/\0"] {
        assert!(head::encode(&mut BytesMut::new(), &Method::GET, target, &fields).is_err());
    }
    assert_eq!(
        parsed("HTTP/1.0 200 OK\r\n\r\n").unwrap().unwrap().version,
        Version::HTTP_10
    );
}
