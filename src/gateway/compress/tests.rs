use std::io::Read;

use super::*;

fn accept(lines: &[&str]) -> Option<Coding> {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(header::ACCEPT_ENCODING, line.parse().unwrap());
    }
    accepted(&headers)
}

#[test]
fn the_client_chooses_by_weight_and_we_among_equals() {
    use Coding::{Brotli, Gzip, Zstd};
    for (lines, coding) in [
        (&[][..], None),
        (&[""], None),
        (&["gzip"], Some(Gzip)),
        (&["x-gzip"], Some(Gzip)),
        (&["GZip;Q=0.1"], Some(Gzip)),
        (&["gzip, deflate, br, zstd"], Some(Zstd)),
        (&["gzip, br"], Some(Brotli)),
        (&["gzip", "br;q=0.5"], Some(Gzip)),
        (&["gzip;q=0.4, br;q=0.5, zstd;q=0"], Some(Brotli)),
        (&["*"], Some(Zstd)),
        (&["*;q=0.5, zstd;q=0"], Some(Brotli)),
        (&["gzip;q=0"], None),
        (&["*;q=0"], None),
        (&["identity"], None),
        (&["identity;q=1, gzip;q=0.5"], None),
        (&["identity;q=0.5, gzip;q=1"], Some(Gzip)),
        (&["deflate, compress"], None),
        (&["gzip;q=nonsense"], None),
        (&["gzip;q=NaN"], None),
        (&["gzip;q=-1"], None),
        (&["gzip;q=99"], Some(Gzip)),
        (&[",,;;=,gzip"], Some(Gzip)),
    ] {
        assert_eq!(accept(lines), coding, "{lines:?}");
    }
}

fn compression() -> Compression {
    Compression {
        enabled: true,
        bytes_min: 100,
        types: ["text/*", "application/json", "application/*+json"]
            .map(str::to_owned)
            .to_vec(),
    }
}

fn head(status: u16, headers: &[(&'static str, &str)]) -> ResponseHeader {
    let mut head = ResponseHeader::build(status, None).unwrap();
    for (name, value) in headers {
        head.insert_header(*name, *value).unwrap();
    }
    head
}

#[test]
fn only_what_is_worth_it_and_may_be_changed_is_compressed() {
    let text = ("content-type", "text/html; charset=utf-8");
    let fit =
        |status, headers: &[_], length| is_fit(&compression(), &head(status, headers), length);
    for (status, headers) in [
        (200, &[text][..]),
        (404, &[text]),
        (200, &[("content-type", "Application/JSON")]),
        (200, &[("content-type", "application/problem+json")]),
        (
            200,
            &[text, ("cache-control", "max-age=5, must-revalidate")],
        ),
    ] {
        assert!(fit(status, headers, Some(100)), "{status} {headers:?}");
        assert!(fit(status, headers, None), "{status} {headers:?}");
        assert!(!fit(status, headers, Some(99)), "{status} {headers:?}");
    }
    for (status, headers) in [
        (200, &[][..]),
        (200, &[("content-type", "image/png")]),
        (200, &[("content-type", "application/jsonp")]),
        (200, &[("content-type", "+json")]),
        (101, &[text]),
        (204, &[text]),
        (205, &[text]),
        (206, &[text]),
        (304, &[text]),
        (200, &[text, ("content-encoding", "gzip")]),
        (200, &[text, ("content-range", "bytes 0-1/2")]),
        (200, &[text, ("content-digest", "sha-256=:x:")]),
        (200, &[text, ("cache-control", "public,No-Transform")]),
    ] {
        assert!(!fit(status, headers, Some(1000)), "{status} {headers:?}");
    }
    let mut all = compression();
    all.bytes_min = 0;
    assert!(is_fit(&all, &head(200, &[text]), Some(1)));
    assert!(
        !is_fit(&all, &head(200, &[text]), Some(0)),
        "there is nothing to compress"
    );
}

#[test]
fn a_tag_becomes_weak() {
    for (before, after) in [("\"x\"", "W/\"x\""), ("W/\"x\"", "W/\"x\""), ("x", "x")] {
        let mut head = head(
            200,
            &[
                ("etag", before),
                ("content-length", "5"),
                ("accept-ranges", "bytes"),
            ],
        );
        edit_head(&mut head, Coding::Brotli).unwrap();
        assert_eq!(head.headers["etag"], after);
        assert_eq!(head.headers["content-encoding"], "br");
        assert!(!head.headers.contains_key("content-length"));
        assert!(!head.headers.contains_key("accept-ranges"));
    }
}

fn decode(coding: Coding, bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    match coding {
        // A live stream is cut off where it is looked at, which decoders mind.
        Coding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(bytes).unwrap();
            let _ = decoder.read_to_end(&mut plain);
        }
        Coding::Brotli => {
            let _ = brotli::Decompressor::new(bytes, 4096).read_to_end(&mut plain);
        }
        Coding::Gzip => {
            let _ = flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain);
        }
    }
    plain
}

#[test]
fn a_live_body_is_there_after_each_piece() {
    for coding in CODINGS {
        let mut encoder = Encoder::new(coding, true, Slot::take().unwrap()).unwrap();
        let mut sent = Vec::new();
        let mut expected = Vec::new();
        for piece in [&b"data: 1\n\n"[..], b"data: 2\n\n", b"", b"data: 3\n\n"] {
            expected.extend_from_slice(piece);
            sent.extend_from_slice(&encoder.encode(piece, false).unwrap());
            assert_eq!(decode(coding, &sent), expected, "{coding:?}");
        }
        sent.extend_from_slice(&encoder.encode(b"end", true).unwrap());
        expected.extend_from_slice(b"end");
        assert_eq!(decode(coding, &sent), expected, "{coding:?}");
        assert!(
            encoder.encode(b"", true).unwrap().is_empty(),
            "the end comes once"
        );
    }
}

#[test]
fn a_large_body_survives_in_pieces_and_is_smaller() {
    let text: Vec<u8> = (0..200_000u32)
        .flat_map(|n| n.to_string().into_bytes())
        .collect();
    for coding in CODINGS {
        let mut encoder = Encoder::new(coding, false, Slot::take().unwrap()).unwrap();
        let mut sent = Vec::new();
        for piece in text.chunks(PIECE) {
            sent.extend_from_slice(&encoder.encode(piece, false).unwrap());
        }
        sent.extend_from_slice(&encoder.encode(b"", true).unwrap());
        assert!(sent.len() < text.len() / 2, "{coding:?}: {}", sent.len());
        assert!(decode(coding, &sent) == text, "{coding:?}");
    }
}

const PIECE: usize = 64 * 1024;
