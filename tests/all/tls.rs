//! Certificates, client certificates and sessions, with `openssl` as the client that knows all of them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway, gateway, run};

const REQUEST: &[u8] = b"GET /who HTTP/1.1\r\nHost: localhost\r\nX-Client-Subject: CN=forged\r\n\
    X_Client_Subject: CN=forged\r\nConnection: close\r\n\r\n";

pub fn openssl(dir: &Path, args: &str) {
    let output = Command::new("openssl")
        .current_dir(dir)
        .args(args.split(' '))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {args}\n{said}");
}

/// What `openssl s_client` shows of a connection on which it sends a request.
fn client(dir: &Path, port: u16, args: &str) -> String {
    client_with(dir, port, args, REQUEST)
}

/// The same with another request, after which the connection is closed.
pub fn client_with(dir: &Path, port: u16, args: &str, request: &[u8]) -> String {
    let mut child = Command::new("timeout")
        .current_dir(dir)
        .args(["60", "openssl", "s_client", "-ign_eof", "-connect"])
        .arg(format!("127.0.0.1:{port}"))
        .args(args.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A handshake that fails ends it before it reads.
    let _ = child.stdin.take().unwrap().write_all(request);
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A gateway in a directory where `openssl` has made certificates before.
pub fn with_certificates(make: impl Fn(&Path), builder: impl Fn(Builder) -> Builder) -> Gateway {
    let dir = crate::support::gateway::workdir();
    make(dir.path());
    builder(gateway().in_dir(dir)).start()
}

/// No extensions but those that are asked for.
fn plain_config(dir: &Path) {
    std::fs::write(
        dir.join("req.cnf"),
        "[req]\ndistinguished_name = dn\n[dn]\n",
    )
    .unwrap();
    std::fs::write(dir.join("client.cnf"), "subjectAltName = DNS:client\n").unwrap();
}

pub fn self_signed(dir: &Path, stem: &str, kind: &str, name: &str) {
    plain_config(dir);
    openssl(
        dir,
        &format!(
            "req -config req.cnf -x509 -newkey {kind} -nodes -keyout {stem}.key -out {stem}.crt -days 30 \
             -subj /CN={stem} -addext subjectAltName=DNS:{name}"
        ),
    );
}

pub const ECDSA: &str = "ec -pkeyopt ec_paramgen_curve:P-256";

fn who(builder: Builder) -> Builder {
    // A guest that shows what it gets.
    builder.route(
        json!({ "name": "who", "match": { "path": "/who" }, "auth": "none",
            "respond": { "body": "reached" } }),
    )
}

#[tokio::test]
async fn the_certificate_suits_the_name_and_the_client() {
    let make = |dir: &Path| {
        self_signed(dir, "ecdsa", ECDSA, "localhost");
        self_signed(dir, "rsa", "rsa:2048", "localhost");
        self_signed(dir, "other", ECDSA, "*.other.test");
    };
    let gateway = with_certificates(make, |builder| {
        who(builder).listener(
            "https",
            json!({ "certificates": [
                { "cert": "ecdsa.crt", "key": "ecdsa.key" },
                { "cert": "rsa.crt", "key": "rsa.key" },
                { "cert": "other.crt", "key": "other.key" },
            ]}),
        )
    });
    let dir = gateway.dir();
    for (args, subject) in [
        ("-servername localhost", "CN = ecdsa"),
        ("-servername localhost -tls1_2", "CN = ecdsa"),
        ("-servername localhost -sigalgs RSA-PSS+SHA256", "CN = rsa"),
        (
            "-servername localhost -tls1_2 -sigalgs RSA-PSS+SHA256",
            "CN = rsa",
        ),
        (
            "-servername localhost -tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256",
            "CN = rsa",
        ),
        ("-servername x.other.test", "CN = other"),
        ("-servername x.y.other.test", "CN = ecdsa"),
        ("-noservername", "CN = ecdsa"),
        ("-noservername -sigalgs RSA-PSS+SHA256", "CN = rsa"),
    ] {
        let shown = client(&dir, gateway.https, args);
        assert!(
            shown.contains(&format!("subject={subject}\n")),
            "{args}\n{shown}"
        );
        assert!(shown.contains("reached"), "{args}\n{shown}");
    }
    for args in [
        "-tls1_1",
        "-tls1",
        "-tls1_2 -cipher AES128-SHA:@SECLEVEL=0",
        "-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0",
    ] {
        let shown = client(&dir, gateway.https, args);
        assert!(!shown.contains("reached"), "{args}\n{shown}");
    }
}

#[tokio::test]
async fn certificates_are_taken_over_when_their_files_change() {
    let make = |dir: &Path| self_signed(dir, "a", ECDSA, "localhost");
    let gateway = with_certificates(make, |builder| {
        who(builder).listener(
            "https",
            json!({ "certificates": [{ "cert": "a.crt", "key": "a.key" }] }),
        )
    });
    let dir = gateway.dir();
    let metrics = async || {
        let page = reqwest::Client::new()
            .get(gateway.admin_url("/metrics"))
            .send()
            .await
            .ok()?;
        page.text().await.ok()
    };
    assert!(client(&dir, gateway.https, "").contains("subject=CN = a\n"));
    // A connection that is there lives on.
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", gateway.https))
        .await
        .unwrap();
    let mut old = gateway.tls_trusting(tcp, &dir.join("a.crt"), &[]).await;

    std::fs::write(dir.join("a.crt"), "broken").unwrap();
    let refused = "wasmwiz_tls_certificate_reloads_total{result=\"refused\"} 1";
    eventually(refused, async || {
        metrics().await?.contains(refused).then_some(())
    })
    .await;
    assert!(
        client(&dir, gateway.https, "").contains("subject=CN = a\n"),
        "the old one stays"
    );
    let log = gateway.stderr();
    assert!(log.contains("changed certificates can't be used"), "{log}");

    self_signed(&dir, "b", ECDSA, "localhost");
    std::fs::rename(dir.join("b.key"), dir.join("a.key")).unwrap();
    std::fs::rename(dir.join("b.crt"), dir.join("a.crt")).unwrap();
    eventually("the new certificate", async || {
        let shown = client(&dir, gateway.https, "");
        shown.contains("subject=CN = b\n").then_some(())
    })
    .await;
    let page = metrics().await.unwrap();
    assert!(
        page.contains("wasmwiz_tls_certificate_expiry_timestamp_seconds{file=\"a.crt\""),
        "{page}"
    );
    let answer = {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        old.write_all(REQUEST).await.unwrap();
        let mut answer = String::new();
        let _ = old.read_to_string(&mut answer).await;
        answer
    };
    assert!(answer.contains("reached"), "{answer}");
}

/// An authority, a client's certificate signed by it, and one signed by nobody.
pub fn make_clients(dir: &Path) {
    self_signed(dir, "server", ECDSA, "localhost");
    openssl(
        dir,
        &format!(
            "req -config req.cnf -x509 -newkey {ECDSA} -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=authority -addext basicConstraints=critical,CA:TRUE"
        ),
    );
    openssl(
        dir,
        &format!(
            "req -config req.cnf -newkey {ECDSA} -nodes -keyout client.key -out client.csr -subj /O=Example/CN=client"
        ),
    );
    openssl(
        dir,
        "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -set_serial 7 -extfile client.cnf -out client.crt -days 30",
    );
    self_signed(dir, "stranger", ECDSA, "stranger");
}

pub const CLIENT: &str = "-cert client.crt -key client.key";
const STRANGER: &str = "-cert stranger.crt -key stranger.key";

pub fn mutual(mode: &str) -> serde_json::Value {
    json!({ "certificates": [{ "cert": "server.crt", "key": "server.key" }],
        "client_certificates": { "ca": "ca.crt", "mode": mode } })
}

#[tokio::test]
async fn clients_show_their_certificates() {
    let upstream = crate::support::recorder::Recorder::start();
    let proxied = |builder: Builder| {
        builder
            .route(
                json!({ "name": "who", "match": { "path": "/who" }, "auth": "none",
            "proxy": { "upstreams": [upstream.url()] } }),
            )
            .set(
                "server.client_certificate_header",
                json!("X-Client-Subject"),
            )
    };
    let required = with_certificates(make_clients, |b| {
        proxied(b).listener("https", mutual("required"))
    });
    let dir = required.dir();
    for version in ["-tls1_2", "-tls1_3"] {
        let shown = client(&dir, required.https, &format!("{version} {CLIENT}"));
        assert!(shown.contains("HTTP/1.1 200"), "{version}\n{shown}");
        for args in ["", STRANGER] {
            let shown = client(&dir, required.https, &format!("{version} {args}"));
            assert!(!shown.contains("HTTP/1.1 200"), "{version} {args}\n{shown}");
        }
    }
    let seen = upstream.text().to_ascii_lowercase();
    assert_eq!(
        seen.matches("x-client-subject: o=example, cn=client\r\n")
            .count(),
        2,
        "{seen}"
    );
    assert!(!seen.contains("forged"), "{seen}");
    eventually("the subject in the log", async || {
        required
            .stderr()
            .contains("\"client_subject\":\"O=Example, CN=client\"")
            .then_some(())
    })
    .await;

    let optional = with_certificates(make_clients, |b| {
        proxied(b).listener("https", mutual("optional"))
    });
    let before = upstream.text().len();
    let shown = client(&optional.dir(), optional.https, "");
    assert!(shown.contains("HTTP/1.1 200"), "{shown}");
    let seen = upstream.text()[before..].to_ascii_lowercase();
    assert!(!seen.contains("subject"), "{seen}");
    let shown = client(&optional.dir(), optional.https, CLIENT);
    assert!(shown.contains("HTTP/1.1 200"), "{shown}");
    let shown = client(&optional.dir(), optional.https, STRANGER);
    assert!(
        !shown.contains("HTTP/1.1 200"),
        "one that is shown must be good\n{shown}"
    );
}

#[tokio::test]
async fn sessions_are_resumed_on_their_own_listener_only() {
    let gateway = with_certificates(make_clients, |builder| {
        who(builder).listener("https", mutual("required")).listener(
            "second",
            json!({ "certificates": [{ "cert": "server.crt", "key": "server.key" }] }),
        )
    });
    let dir = gateway.dir();
    for version in ["-tls1_2", "-tls1_3"] {
        let again = format!("{version} -servername localhost -sess_in session");
        let keep = format!("{version} -servername localhost -sess_out session");
        let shown = client(&dir, gateway.second, &keep);
        assert!(
            shown.contains("New, TLS") && shown.contains("reached"),
            "{shown}"
        );
        let shown = client(&dir, gateway.second, &again);
        assert!(
            shown.contains("Reused, TLS") && shown.contains("reached"),
            "{version}\n{shown}"
        );
        // A ticket is no way around the question for a certificate.
        let shown = client(&dir, gateway.https, &again);
        assert!(
            !shown.contains("Reused, TLS") && !shown.contains("reached"),
            "{version}\n{shown}"
        );
        // Who has shown one is known again.
        let shown = client(&dir, gateway.https, &format!("{keep} {CLIENT}"));
        assert!(shown.contains("reached"), "{version}\n{shown}");
        let shown = client(&dir, gateway.https, &format!("{again} {CLIENT}"));
        assert!(
            shown.contains("Reused, TLS") && shown.contains("reached"),
            "{version}\n{shown}"
        );
    }
}

#[tokio::test]
async fn a_staple_is_sent_along() {
    let make = |dir: &Path| {
        make_clients(dir);
        std::fs::write(
            dir.join("index.txt"),
            "V\t391231235959Z\t\t07\tunknown\t/O=Example/CN=client\n",
        )
        .unwrap();
        openssl(
            dir,
            "ocsp -index index.txt -rsigner ca.crt -rkey ca.key -CA ca.crt -issuer ca.crt \
             -serial 7 -respout staple.der -ndays 7 -noverify"
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .as_str(),
        );
    };
    let gateway = with_certificates(make, |builder| {
        who(builder).listener(
            "https",
            json!({ "certificates": [{ "cert": "client.crt", "key": "client.key", "ocsp": "staple.der" }] }),
        )
    });
    for version in ["-tls1_2", "-tls1_3"] {
        let shown = client(&gateway.dir(), gateway.https, &format!("{version} -status"));
        assert!(
            shown.contains("OCSP Response Status: successful"),
            "{version}\n{shown}"
        );
    }
}

#[test]
fn a_certificate_of_version_1_is_said_to_be_one() {
    let dir = crate::support::gateway::workdir();
    plain_config(dir.path());
    openssl(
        dir.path(),
        "req -new -newkey rsa:2048 -nodes -config req.cnf -subj /CN=localhost -keyout one.key -out one.csr",
    );
    openssl(
        dir.path(),
        "x509 -req -in one.csr -signkey one.key -days 90 -out one.crt",
    );
    std::fs::write(
        dir.path().join("one.yaml"),
        "server:\n  https: [{ address: \"127.0.0.1:0\", certificates: [{ cert: one.crt, key: one.key }] }]\n",
    )
    .unwrap();
    for command in ["check", "serve"] {
        let output = run(dir.path(), &[command, "--config", "one.yaml"], &[]);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("one.crt") && said.contains("version 1"),
            "{said}"
        );
        assert!(said.contains("subjectAltName"), "{said}");
    }
    // One of version 3 that is for nobody works, for clients that do not look.
    std::fs::write(dir.path().join("ext.cnf"), "basicConstraints = CA:FALSE\n").unwrap();
    openssl(
        dir.path(),
        "x509 -req -in one.csr -signkey one.key -days 90 -extfile ext.cnf -out one.crt",
    );
    let output = run(dir.path(), &["check", "--config", "one.yaml"], &[]);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("one.crt has no subjectAltName"), "{said}");
}
