use proptest::prelude::*;

use super::*;

type Parsed = Result<Option<(Head, Bytes)>, HeadError>;

fn parse_whole(output: &[u8]) -> Parsed {
    HeadParser::default().feed(output)
}

/// The first result that is not "go on", and then the rest of the output as body.
fn parse_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Parsed {
    let mut parser = HeadParser::default();
    let mut pieces = pieces.into_iter();
    while let Some(piece) = pieces.next() {
        if let Some((head, body)) = parser.feed(piece)? {
            let mut body = body.to_vec();
            pieces.for_each(|piece| body.extend_from_slice(piece));
            return Ok(Some((head, body.into())));
        }
    }
    Ok(None)
}

#[track_caller]
fn head_of(output: &str) -> (u16, Vec<(String, String)>, Bytes) {
    let (head, body) = parse_whole(output.as_bytes()).unwrap().unwrap();
    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect();
    (head.status.as_u16(), headers, body)
}

#[track_caller]
fn error_of(output: &[u8]) -> String {
    parse_whole(output).unwrap_err().to_string()
}

fn owned(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn a_document() {
    let (status, headers, body) = head_of("Content-Type: text/plain\n\nhello\n\nthere");
    assert_eq!((status, &body[..]), (200, &b"hello\n\nthere"[..]));
    assert_eq!(headers, owned(&[("content-type", "text/plain")]));
}

#[test]
fn lines_end_with_crlf_or_lf_even_mixed() {
    let (status, headers, body) =
        head_of("Status: 404 Not Found\r\ncontent-type:text/html\nX-A: \t b c \t\r\n\r\n\nrest");
    assert_eq!((status, &body[..]), (404, &b"\nrest"[..]));
    assert_eq!(
        headers,
        owned(&[("content-type", "text/html"), ("x-a", "b c")])
    );
}

#[test]
fn headers_keep_their_order_and_may_repeat() {
    let (_, headers, _) =
        head_of("Set-Cookie: a=1\nContent-Type: a/b\nSet-Cookie: b=2\nX-Empty:\n\n");
    let expected = [
        ("set-cookie", "a=1"),
        ("content-type", "a/b"),
        ("set-cookie", "b=2"),
        ("x-empty", ""),
    ];
    assert_eq!(headers, owned(&expected));
}

#[test]
fn a_location_alone_redirects() {
    for location in ["https://example.com/", "/other"] {
        let (status, headers, _) = head_of(&format!("Location: {location}\n\n"));
        assert_eq!(status, 302);
        assert_eq!(headers, owned(&[("location", location)]));
    }
    assert_eq!(head_of("Status: 303\nLocation: /x\n\n").0, 303);
    assert_eq!(
        head_of("Status: 201 Created\nLocation: /x\nContent-Type: a/b\n\n").0,
        201
    );
}

#[test]
fn a_content_type_is_needed_unless_there_is_no_document() {
    assert_eq!(head_of("Status: 204\n\n").0, 204);
    assert_eq!(head_of("Status: 304 Not Modified\n\n").0, 304);
    for output in [
        "\n",
        "\r\n",
        "Status: 200\n\n",
        "X-A: b\n\nbody",
        "Status: 500\n\n",
    ] {
        assert_eq!(
            error_of(output.as_bytes()),
            "the response has no Content-Type header"
        );
    }
}

#[test]
fn a_status_is_three_digits_from_200_to_599() {
    for status in [
        "100",
        "101",
        "199",
        "600",
        "999",
        "0",
        "20",
        "2000",
        "abc",
        "",
        "-200",
        "+20",
        "２００",
        "200OK",
    ] {
        let output = format!("Status: {status}\nContent-Type: a/b\n\n");
        assert_eq!(
            error_of(output.as_bytes()),
            "header line 1: the status is not a number from 200 to 599",
            "{status:?}"
        );
    }
    assert_eq!(
        head_of("Status: 599 \u{fc}ber\nContent-Type: a/b\n\n").0,
        599
    );
}

#[test]
fn what_concerns_the_connection_is_dropped() {
    let (_, headers, _) = head_of(
        "Content-Type: a/b\nConnection: close\nKeep-Alive: timeout=5\nTransfer-Encoding: chunked\n\
         Upgrade: h2c\nTE: trailers\nTrailer: X\nStrict-Transport-Security: max-age=0\nAlt-Svc: clear\nProxy-Authenticate: Basic\nProxy-Connection: close\n\n",
    );
    assert_eq!(headers, owned(&[("content-type", "a/b")]));
}

#[test]
fn a_content_length_is_one_number() {
    let (_, headers, _) = head_of("Content-Type: a/b\nContent-Length: 5\n\nhello");
    assert_eq!(headers[1], ("content-length".to_owned(), "5".to_owned()));
    for length in [
        "",
        "-1",
        "+5",
        "5, 5",
        "0x5",
        "5 ",
        "18446744073709551616",
        "18446744073709551615",
    ] {
        let output = format!("Content-Length: {length}\nContent-Type: a/b\n\n");
        let expected = "header line 1: the Content-Length is not a number";
        match length {
            "5 " => assert_eq!(head_of(&output).1[0].1, "5"),
            _ => assert_eq!(error_of(output.as_bytes()), expected, "{length:?}"),
        }
    }
    assert_eq!(head_of("Status: 204\nContent-Length: 5\n\n").1, []);
}

#[test]
fn cgi_fields_stand_once() {
    for twice in [
        "Status: 200\nStatus: 200",
        "Content-Type: a/b\nCONTENT-TYPE: a/b",
        "Location: /\nLocation: /",
        "Content-Length: 1\nContent-Length: 1",
    ] {
        assert!(
            error_of(format!("{twice}\n\n").as_bytes()).starts_with("header line 2:"),
            "{twice}"
        );
    }
}

#[test]
fn malformed_lines_are_refused_with_their_number() {
    for (line, problem) in [
        (&b"no colon"[..], "there is no colon"),
        (b": value", "the name is not a header name"),
        (b"X A: b", "the name is not a header name"),
        (b"X-A : b", "the name is not a header name"),
        (b" folded: b", "the name is not a header name"),
        (b"X-\xc3\xa4: b", "the name is not a header name"),
        (b"X-A: b\0c", "the value has control characters"),
        (b"X-A: b\rInjected: c", "the value has control characters"),
        (b"X-A: b\r", "the value has control characters"),
        (
            b"HTTP/1.1 200 OK",
            "a status line is written as \"Status: 200 OK\"",
        ),
    ] {
        let output = [b"Content-Type: a/b\r\n", line, b"\r\n\r\n"].concat();
        assert_eq!(
            error_of(&output),
            format!("header line 2: {problem}"),
            "{}",
            line.escape_ascii()
        );
    }
}

#[test]
fn the_head_is_bounded_to_the_byte() {
    let head_of_bytes = |len: usize| {
        let frame = "Content-Type: a/b\nX: \n\n".len();
        format!("Content-Type: a/b\nX: {}\n\n", "v".repeat(len - frame)).into_bytes()
    };
    for body in [&b""[..], b"body"] {
        let fits = [&head_of_bytes(HEAD_BYTES_MAX), body].concat();
        let over = [&head_of_bytes(HEAD_BYTES_MAX + 1), body].concat();
        for size in [1, 7, 4096, HEAD_BYTES_MAX, fits.len()] {
            let (_, rest) = parse_pieces(fits.chunks(size)).unwrap().unwrap();
            assert_eq!(rest, body);
            let error = parse_pieces(over.chunks(size)).unwrap_err();
            assert_eq!(
                error.0,
                "the response's head does not end within 16384 bytes"
            );
        }
    }
}

#[test]
fn a_flood_without_a_head_keeps_no_more_than_the_bound() {
    let mut parser = HeadParser::default();
    assert!(parser.feed(&vec![b'x'; 100 << 20]).is_err());
    assert!(parser.seen.capacity() <= 2 * HEAD_BYTES_MAX);
}

#[test]
fn at_most_a_hundred_lines() {
    let lines = |count: usize| format!("Content-Type: a/b\n{}\n", "X: y\n".repeat(count - 1));
    assert_eq!(head_of(&lines(100)).1.len(), 100);
    assert_eq!(
        error_of(lines(101).as_bytes()),
        "the response has more than 100 header lines"
    );
}

#[test]
fn output_that_ends_early() {
    assert_eq!(
        HeadParser::default().finish().0,
        "the guest wrote no response"
    );
    let mut parser = HeadParser::default();
    assert_eq!(parser.feed(b"Content-Type: text/plain\nhello"), Ok(None));
    assert!(
        parser
            .finish()
            .0
            .starts_with("the guest's output ended before its headers did")
    );
}

#[test]
fn after_a_result_there_is_no_other() {
    let mut parser = HeadParser::default();
    assert!(parser.feed(b"Content-Type: a/b\n\n").unwrap().is_some());
    assert!(parser.feed(b"more").is_err());
    let mut parser = HeadParser::default();
    assert!(parser.feed(b"bad\n\n").is_err());
    assert!(parser.feed(b"Content-Type: a/b\n\n").is_err());
}

/// Output that looks enough like a head to get far into the parser.
fn output() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        Just(b"Content-Type: a/b".to_vec()),
        Just(b"Status: 404 x".to_vec()),
        Just(b"Location: /x".to_vec()),
        Just(b"Content-Length: 3".to_vec()),
        Just(b"Connection: x".to_vec()),
        Just(b"\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"\n\n".to_vec()),
        Just(b"\r".to_vec()),
        Just(b":".to_vec()),
        Just(vec![b'y'; 9000]),
        proptest::collection::vec(any::<u8>(), 0..12),
    ];
    proptest::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat())
}

proptest! {
    #[test]
    fn the_cut_does_not_matter(output in output(), cuts in proptest::collection::vec(0_usize..30_000, 0..12)) {
        let whole = parse_whole(&output);
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(output.len())).collect();
        cuts.extend([0, output.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &output[pair[0]..pair[1]]);
        prop_assert_eq!(&parse_pieces(pieces), &whole);
        prop_assert_eq!(&parse_pieces(output.chunks(1)), &whole);
        if let Ok(Some((head, body))) = whole {
            prop_assert!((200..600).contains(&head.status.as_u16()));
            prop_assert!(output.ends_with(&body));
        }
    }
}
