//! `wasm-wizard health`: the exit code that an orchestrator acts on.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::free_port;
use crate::support::gateway::{gateway, run};

/// Exit code, standard output and standard error.
fn health(args: &[&str]) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let args: Vec<_> = ["health"].iter().chain(args).copied().collect();
    let output = run(dir.path(), &args, &[]);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn a_gateway_is_asked_at_the_admin_address_of_its_file() {
    let gateway = gateway().start();
    let file = gateway.file().to_str().unwrap();
    for (probe, status) in [("full", "healthy"), ("live", "alive"), ("ready", "ready")] {
        let (code, out, err) = health(&["--config", file, "--probe", probe]);
        assert_eq!(code, 0, "{err}");
        assert!(out.contains(&format!("\"status\":\"{status}\"")), "{out}");
    }
    let (code, _, err) = health(&[&gateway.admin_url("/nothing")]);
    assert_eq!(
        (code, err.trim()),
        (1, "error: the answer has the status 404")
    );
    // The listener that redirects answers health itself; anything else there is a redirect, which is
    // not followed.
    let (code, _, err) = health(&[&gateway.http_url("/x")]);
    assert_eq!(
        (code, err.trim()),
        (1, "error: the answer has the status 308")
    );
}

#[test]
fn a_certificate_is_always_verified() {
    let gateway = gateway().start();
    let certificate = gateway.dir().join("certs/development.crt");
    let certificate = certificate.to_str().unwrap();
    let (code, out, err) = health(&[&gateway.url(""), "--ca", certificate]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("\"status\":\"ready\""), "{out}");
    let (code, out, err) = health(&[&gateway.url("")]);
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("certificate"), "{err}");
    // A right certificate, for another name.
    let url = format!("https://ip6-localhost:{}", gateway.https);
    let (code, _, err) = health(&[&url, "--ca", certificate]);
    assert_eq!(code, 1, "{err}");
    let (code, _, err) = health(&[&gateway.url(""), "--ca", "nothing.pem"]);
    assert_eq!(code, 1);
    assert!(err.contains("reading nothing.pem"), "{err}");
}

/// A server of one connection, that does with it what it likes.
fn server(serve: impl FnOnce(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 1024];
        let _ = stream.read(&mut head);
        serve(stream);
    });
    url
}

#[test]
fn nobody_there_and_nobody_that_speaks_http() {
    let (code, _, err) = health(&[&format!("http://127.0.0.1:{}", free_port())]);
    assert_eq!(code, 1);
    assert!(err.contains("refused"), "{err}");
    let (code, _, err) = health(&[&server(|mut stream| {
        let _ = stream.write_all(b"220 mail.example ESMTP\r\n\r\n");
    })]);
    assert_eq!(code, 1);
    assert!(err.contains("not HTTP"), "{err}");
    let (code, _, _) = health(&[&server(drop)]);
    assert_eq!(code, 1);
}

/// The deadline is for all of it, also where each byte comes soon after the last.
#[test]
fn a_slow_answer_ends_at_the_deadline() {
    for delay in [None, Some(Duration::from_millis(20))] {
        let url = server(move |mut stream| {
            let Some(delay) = delay else {
                let _ = stream.read(&mut [0; 1]);
                return;
            };
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            while stream.write_all(b"a").is_ok() {
                std::thread::sleep(delay);
            }
        });
        let begun = Instant::now();
        let (code, _, err) = health(&[&url, "--timeout", "500ms"]);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("no answer within 500ms"), "{err}");
        assert!(begun.elapsed() >= Duration::from_millis(500));
    }
}

#[test]
fn an_endless_answer_is_cut() {
    let url = server(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'a'; 4096]).is_ok() {}
    });
    let (code, out, err) = health(&[&url, "--timeout", "1m"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.len() <= 64 << 10, "{}", out.len());
}

#[test]
fn bad_usage_says_what_to_write() {
    for (args, says) in [
        (&["localhost:9091"][..], "name a URL"),
        (&["ftp://localhost"], "only http:// and https://"),
        (&["http://me:pw@localhost"], "a user in it"),
    ] {
        let (code, _, err) = health(args);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains(says), "{err}");
    }
    let (code, _, _) = health(&["--timeout", "soon"]);
    assert_eq!(code, 2);
}
