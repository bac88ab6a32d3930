use proptest::prelude::*;

use super::*;

fn decoded(raw: &str) -> Result<String, PathError> {
    normalize(raw).map(|path| path.decoded().to_owned())
}

#[test]
fn ordinary_paths_pass() {
    for (raw, expected) in [
        ("/", "/"),
        ("/a", "/a"),
        ("/a/", "/a/"),
        ("/a/b.c/d..e/...", "/a/b.c/d..e/..."),
        (
            "/.well-known/acme-challenge/x",
            "/.well-known/acme-challenge/x",
        ),
        ("/%41%2d%7E", "/A-~"),
        ("/caf%c3%A9", "/café"),
        ("/a%20b+c", "/a b+c"),
        ("/100%25", "/100%"),
        ("/100%25zz", "/100%zz"),
        ("/what%3F%23", "/what?#"),
        ("/a:b@c!$&'()*,=|{}\"", "/a:b@c!$&'()*,=|{}\""),
    ] {
        assert_eq!(decoded(raw).as_deref(), Ok(expected), "{raw}");
    }
}

#[test]
fn nothing_is_copied_where_nothing_is_escaped() {
    assert!(matches!(
        normalize("/a/b").unwrap().decoded,
        Cow::Borrowed(_)
    ));
}

#[test]
fn whatever_could_be_read_in_two_ways_is_refused() {
    use PathError::*;
    for (raw, expected) in [
        ("", NotRooted),
        ("*", NotRooted),
        ("a/b", NotRooted),
        ("http://example.com/", NotRooted),
        ("/%", InvalidEscape),
        ("/%4", InvalidEscape),
        ("/%4g", InvalidEscape),
        ("/%%41", InvalidEscape),
        ("/%+1", InvalidEscape),
        ("/a%2fb", EncodedSlash),
        ("/a%2F..%2Fb", EncodedSlash),
        ("/a\\b", Backslash),
        ("/a%5cb", Backslash),
        ("/a%5C..%5Cb", Backslash),
        ("/a%00", Control),
        ("/a%0d%0aSet-Cookie:x", Control),
        ("/a%7f", Control),
        ("/a%c2%85", Control),
        ("/a\tb", Control),
        ("/a\r\nb", Control),
        ("/.", DotSegment),
        ("/..", DotSegment),
        ("/a/./b", DotSegment),
        ("/a/../b", DotSegment),
        ("/a/..", DotSegment),
        ("/a/%2e", DotSegment),
        ("/a/%2E%2e/b", DotSegment),
        ("/a/.%2e/b", DotSegment),
        ("/a/%2e./", DotSegment),
        ("/admin;x", Semicolon),
        ("/a/..;/b", Semicolon),
        ("/a/%3b", Semicolon),
        ("/a/%252e%252e/b", DoubleEscape),
        ("/a%252fb", DoubleEscape),
        ("/%25%34%31", DoubleEscape),
        ("/a b", Unencoded),
        ("/a?b", Unencoded),
        ("/a#b", Unencoded),
        ("/café", Unencoded),
        ("/%c0%af", NotUtf8),
        ("/%c0%ae%c0%ae/", NotUtf8),
        ("/%ff", NotUtf8),
        ("/%c3", NotUtf8),
        ("/%ed%a0%80", NotUtf8),
    ] {
        assert_eq!(decoded(raw), Err(expected), "{raw}");
    }
}

#[test]
fn a_long_path_is_read_in_one_go() {
    let raw = "/%41".repeat(100_000);
    assert_eq!(decoded(&raw).unwrap().len(), 200_000);
    assert_eq!(normalize(&raw).unwrap().segments().count(), 100_000);
}

#[test]
fn the_split_is_of_the_path_as_received() {
    let path = normalize("/a%41/b/c%20d").unwrap();
    assert_eq!(path.split_after(0), ("", "/a%41/b/c%20d"));
    assert_eq!(path.split_after(1), ("/a%41", "/b/c%20d"));
    assert_eq!(path.split_after(2), ("/a%41/b", "/c%20d"));
    assert_eq!(path.split_after(3), ("/a%41/b/c%20d", ""));
    assert_eq!(path.split_after(9), ("/a%41/b/c%20d", ""));
    assert_eq!(normalize("/a/").unwrap().split_after(1), ("/a", "/"));
    assert_eq!(normalize("/").unwrap().split_after(0), ("", "/"));
}

#[test]
fn one_slash_at_the_end_begins_no_segment() {
    let segments = |raw: &'static str| {
        let path = normalize(raw).unwrap();
        path.segments().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(segments("/").is_empty());
    assert_eq!(segments("/a"), ["a"]);
    assert_eq!(segments("/a/"), ["a"]);
    assert_eq!(segments("/a/b"), ["a", "b"]);
    for raw in ["//", "//a", "/a//b", "/a//"] {
        assert!(normalize(raw).unwrap().has_empty_segment(), "{raw}");
    }
}

proptest! {
    #[test]
    fn no_input_panics(raw in ".*") {
        let _ = normalize(&raw);
    }

    /// What passes holds nothing that a lenient reader could take for something else, and its
    /// segments as received and as decoded are the same in number.
    #[test]
    fn what_passes_is_unambiguous(raw in "/([a-c./%;\\\\]|%(2[ef5]|5c|00|41|c3%a9)|é|[\\x00-\\x20]){0,12}") {
        if let Ok(path) = normalize(&raw) {
            let decoded = path.decoded();
            prop_assert!(!decoded.contains(['\\', ';', '\0', '\r', '\n']));
            prop_assert!(decoded.split('/').all(|segment| segment != "." && segment != ".."));
            prop_assert_eq!(decoded.matches('/').count(), raw.matches('/').count());
            // Decoding once more changes nothing: a server that decodes twice reads the same.
            let again = decode(decoded);
            prop_assert!(again.is_err() || again.as_deref() == Ok(decoded));
            prop_assert!(raw.bytes().all(|byte| (0x21..0x7f).contains(&byte)));
        }
    }

    #[test]
    fn the_split_loses_nothing(raw in "(/[a-c]{0,2}){1,6}", count in 0usize..8) {
        let path = normalize(&raw).unwrap();
        let (matched, rest) = path.split_after(count);
        prop_assert_eq!(format!("{matched}{rest}"), raw.as_str());
        prop_assert!(rest.is_empty() || rest.starts_with('/'));
    }
}
