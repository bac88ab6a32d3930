use proptest::prelude::*;

use super::*;

fn framing() -> Framing {
    Framing::new(&Bounds {
        head_bytes_max: 1024,
        headers_max: 8,
        uri_bytes_max: 64,
        ..Bounds::for_tests()
    })
}

/// What comes of these bytes, sent in two parts.
fn read(bytes: &[u8], cut: usize) -> Result<(), (usize, Refusal)> {
    let mut framing = framing();
    let cut = cut.min(bytes.len());
    framing.accept(&bytes[..cut])?;
    framing
        .accept(&bytes[cut..])
        .map_err(|(at, refusal)| (cut + at, refusal))
}

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\n";

#[test]
fn what_is_fine_passes_however_it_is_cut() {
    for text in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        format!("{POST}Content-Length: 5\r\n\r\nhe\nlo{POST}content-length:0\r\n\r\n"),
        format!("{POST}Transfer-Encoding: Chunked\r\n\r\n5\r\nh\re\nl\r\n0\r\n\r\n{POST}\r\n"),
        format!(
            "{POST}Transfer-Encoding: chunked\r\n\r\nA;x=\"y z\"\r\n0123456789\r\n0;x\r\nX-T: v\r\n\r\n"
        ),
        format!("{POST}X-Content-Length: 5\r\nContent-LengthX: 5\r\n\r\n"),
    ] {
        for cut in 0..=text.len() {
            assert_eq!(read(text.as_bytes(), cut), Ok(()), "{text:?} cut at {cut}");
        }
        let mut framing = framing();
        for byte in text.as_bytes() {
            framing.accept(&[*byte]).unwrap();
        }
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_refused_however_it_is_cut() {
    let post = |rest: &str| format!("{POST}{rest}");
    for text in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\n\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n".to_owned(),
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET / a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /\tHTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /\r\nHost: a\r\n\r\n".to_owned(),
        "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET a/b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET http:/a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "G(T / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        " GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n".to_owned(),
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(),
        "GET / http/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        post("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
        post("Content-Length: 5, 5\r\n\r\nhello"),
        post("Content-Length: +5\r\n\r\nhello"),
        post("Content-Length: -0\r\n\r\n"),
        post("Content-Length:\r\n\r\n"),
        post("Content-Length: 99999999999999999999\r\n\r\n"),
        post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\ncontent-LENGTH: 5\r\n\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        post("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        post("Transfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
        post("Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
        post("Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n5;\0\r\nhello\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n5g\r\nhello\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n0\r\nno field\r\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n"),
        post("Transfer-Encoding: chunked\r\n\r\n0\r\n folded: y\r\n\r\n"),
    ] {
        for cut in 0..=text.len() {
            let (_, refusal) = read(text.as_bytes(), cut).expect_err(&text);
            assert!(
                matches!(refusal, Refusal::Malformed(_)),
                "{text:?}: {refusal:?}"
            );
        }
    }
}

#[test]
fn nothing_behind_the_fault_is_taken() {
    let text = format!("{POST}Content-Length: 2\r\n\r\nokGET /next HTTP/1.1\nHost: a\r\n\r\n");
    let (at, _) = read(text.as_bytes(), 0).unwrap_err();
    assert!(at <= text.find("GET /next").unwrap());
}

#[test]
fn heads_are_bounded_before_they_end() {
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(64));
    let endless = format!("GET /{}", "x".repeat(2000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(9));
    let large = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(1024));
    let blank = "\r\n".repeat(600);
    for (text, expected) in [
        (long, Refusal::Target),
        (endless, Refusal::Target),
        (many, Refusal::Head),
        (large, Refusal::Head),
        (blank, Refusal::Head),
    ] {
        for cut in [0, 1, 10, 70, 500] {
            assert_eq!(read(text.as_bytes(), cut).unwrap_err().1, expected, "{cut}");
        }
    }
}

#[test]
fn chunks_and_trailers_are_bounded() {
    let chunked = format!("{POST}Transfer-Encoding: chunked\r\n\r\n");
    for text in [
        format!("{chunked}{}", "1".repeat(300)),
        format!("{chunked}1;{}\r\n", "x".repeat(300)),
        format!(
            "{chunked}{}",
            format!("1;{}\r\nx\r\n", "x".repeat(200)).repeat(100)
        ),
        format!("{chunked}0\r\n{}", "X-T: trailer\r\n".repeat(1000)),
        format!("{chunked}0\r\nX-T: {}", "x".repeat(9000)),
    ] {
        assert!(read(text.as_bytes(), 0).is_err());
        assert!(read(text.as_bytes(), 90).is_err());
    }
    let fair = format!("{chunked}{}0\r\n\r\n", "1\r\nx\r\n".repeat(100_000));
    assert_eq!(read(fair.as_bytes(), 100), Ok(()));
}

#[test]
fn another_protocol_is_left_alone() {
    let mut framing = framing();
    framing
        .accept(b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n")
        .unwrap();
    framing.switch_protocol();
    framing.accept(b"\n\n\0\x81\x05").unwrap();
}

proptest! {
    /// Where the bytes are cut makes no difference to what is made of them.
    #[test]
    fn cuts_do_not_matter(
        parts in prop::collection::vec(prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST /x HTTP/1.1\r\n", "Host: a\r\n", "Content-Length: 3\r\n",
            "Transfer-Encoding: chunked\r\n", "\r\n", "\n", "\r", "3\r\n", "0\r\n", "abc", "3;x\r\n",
            " ", "X: y\r\n", "\r\n\r\n",
        ]), 0..16),
        cuts in prop::collection::vec(0usize..200, 0..8),
    ) {
        let text = parts.concat().into_bytes();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let mut framing = framing();
        let pieces = cuts.windows(2).map(|w| framing.accept(&text[w[0]..w[1]]).map_err(|(_, r)| r));
        let pieces: Result<Vec<()>, Refusal> = pieces.collect();
        prop_assert_eq!(pieces.map(|_| ()), read(&text, 0).map_err(|(_, r)| r));
    }
}
