//! The example guests, on these functions.

use std::path::Path;

use super::*;

fn wasm(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples/guests")
        .join(name);
    wat::parse_file(path).unwrap()
}

/// Runs a guest; gives its exit code, standard output and standard error.
fn run(name: &str, stdin: &[u8], env: &[(&str, &str)]) -> (i32, String, String) {
    let mut config = config();
    config.stdin = Bytes::copy_from_slice(stdin).into();
    config.env = Strings::variables(env.iter().copied());
    let mut guest = Guest::new(&wasm(name), Some(config));
    let code = match guest.call("_start") {
        Ok(_) => 0,
        Err(Stop::Exit(code)) => code,
        Err(stop) => panic!("{name}: {stop}"),
    };
    let output = guest.finish();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (code, text(output.stdout), text(output.stderr))
}

#[track_caller]
fn prints(name: &str, stdin: &str, stdout: &str) {
    let expected = (0, stdout.to_owned(), String::new());
    assert_eq!(
        run(name, stdin.as_bytes(), &[]),
        expected,
        "{name} {stdin:?}"
    );
}

#[test]
fn echo_gives_back_what_it_gets() {
    let large = "wizard \u{1f9d9} ".repeat(20_000);
    for name in ["echo.wasm", "echo.wat"] {
        for input in ["", "hello", "\0\n\0", large.as_str()] {
            prints(name, input, input);
        }
    }
}

#[test]
fn hello_in_text_format() {
    prints("hello.wat", "", "Hello, wizard\n");
    prints(
        "hello_wagi.wat",
        "",
        "Status: 200 OK\nContent-Type: text/plain\n\nHello from wagi.\n",
    );
}

#[test]
fn wordcount_counts() {
    for (input, lines, words) in [
        ("", 0, 0),
        ("hello there", 0, 2),
        ("hello there\n", 1, 2),
        ("  a\tb\r\nc\n\n ", 3, 3),
        ("größe 魔法", 0, 2),
    ] {
        let bytes = input.len();
        prints(
            "wordcount.wasm",
            input,
            &format!("{{\"lines\":{lines},\"words\":{words},\"bytes\":{bytes}}}\n"),
        );
    }
    // A word across the guest's buffer is one word.
    let long = "x".repeat(100_000);
    prints(
        "wordcount.wasm",
        &long,
        "{\"lines\":0,\"words\":1,\"bytes\":100000}\n",
    );
}

#[test]
fn sum_adds_and_refuses() {
    for (input, sum) in [
        ("", "0"),
        (" \n", "0"),
        ("1 2\n3", "6"),
        ("-5 +7\t", "2"),
        ("0012", "12"),
        ("9223372036854775807", "9223372036854775807"),
        ("-9223372036854775808", "-9223372036854775808"),
    ] {
        prints("sum.wasm", input, &format!("{sum}\n"));
    }
    for (input, message) in [
        ("1 two 3", "sum: number 2: not an integer\n"),
        ("1.5", "sum: number 1: not an integer\n"),
        ("4-", "sum: number 1: not an integer\n"),
        ("-", "sum: number 1: not an integer\n"),
        ("\0", "sum: number 1: not an integer\n"),
        (
            "9223372036854775808",
            "sum: number 1: does not fit in 64 bits\n",
        ),
        (
            "9223372036854775807 1",
            "sum: number 2: the sum does not fit in 64 bits\n",
        ),
    ] {
        let expected = (1, String::new(), message.to_owned());
        assert_eq!(
            run("sum.wasm", input.as_bytes(), &[]),
            expected,
            "{input:?}"
        );
    }
}

#[test]
fn hello_greets_and_escapes() {
    for (query, name) in [
        (None, "world"),
        (Some(""), "world"),
        (Some("name="), "world"),
        (Some("name=you"), "you"),
        (Some("a=b&&name=J%C3%B6rg+M&name=other"), "Jörg M"),
        (Some("name=%3Cb%3E%26%22%27"), "&lt;b&gt;&amp;&quot;&#39;"),
        (Some("name=<script>"), "&lt;script&gt;"),
        (Some("name=100%&x"), "100%"),
        (Some("name=%4"), "%4"),
        (Some("name=a%0d%0ab%00"), "a??b?"),
        (Some("names=x&nam=y&name"), "world"),
    ] {
        let env: Vec<_> = query
            .into_iter()
            .map(|query| ("QUERY_STRING", query))
            .collect();
        let (code, stdout, stderr) = run("hello.wasm", b"", &env);
        let expected = format!(
            "Content-Type: text/html; charset=utf-8\n\n<!doctype html>\n<title>Hello</title>\n<p>Hello, {name}!</p>\n"
        );
        assert_eq!(
            (code, stdout, stderr),
            (0, expected, String::new()),
            "{query:?}"
        );
    }
}

#[test]
fn page_shows_the_request_escaped() {
    let env = [
        ("REQUEST_METHOD", "POST"),
        ("QUERY_STRING", "a=%3Cb%3E&c"),
        ("HTTP_ACCEPT_LANGUAGE", "de"),
        ("HTTP_X", "<i>"),
        ("REMOTE_USER", "not shown"),
    ];
    let (code, stdout, _) = run("page.wasm", &[b'x'; 5000], &env);
    assert_eq!(code, 0);
    assert!(stdout.starts_with(
        "Content-Type: text/html; charset=utf-8\nCache-Control: no-store\n\n<!doctype html>"
    ));
    for part in [
        "<tr><th>REQUEST_METHOD<td>POST\n",
        "<tr><th>QUERY_STRING<td>a=%3Cb%3E&amp;c\n",
        "<tr><th>a<td>&lt;b&gt;\n<tr><th>c<td>\n",
        "<tr><th>accept-language<td>de\n<tr><th>x<td>&lt;i&gt;\n</table>",
        "<p>5000 bytes</p>\n",
    ] {
        assert!(stdout.contains(part), "{part:?} is not in {stdout}");
    }
    assert!(!stdout.contains("not shown"));
    let (code, stdout, _) = run("page.wasm", b"", &[("REQUEST_METHOD", "DELETE")]);
    assert_eq!(code, 0);
    assert!(stdout.starts_with(
        "Status: 405 Method Not Allowed\nAllow: GET, HEAD, POST\nContent-Type: text/plain\n\n"
    ));
}

#[test]
fn the_web_guests_write_heads_that_parse() {
    use crate::sandbox::abi::wagi::HeadParser;
    for name in ["hello.wasm", "page.wasm", "hello_wagi.wat"] {
        let (_, stdout, _) = run(name, b"", &[("REQUEST_METHOD", "GET")]);
        let (head, body) = HeadParser::default()
            .feed(stdout.as_bytes())
            .unwrap()
            .unwrap();
        assert_eq!(head.status, 200, "{name}");
        assert!(!body.is_empty());
    }
}

#[test]
fn prebuilt_guests_are_small() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/guests");
    let sizes: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| {
            entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "wasm")
        })
        .map(|entry| (entry.file_name(), entry.metadata().unwrap().len()))
        .collect();
    assert_eq!(sizes.len(), 6);
    assert!(
        sizes.iter().all(|(_, bytes)| *bytes < 64 * 1024),
        "{sizes:?}"
    );
}
