//! Clients that say who they are by a certificate, and the routes that go by it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::gateway::{Gateway, gateway, workdir};
use crate::support::recorder::Recorder;
use crate::support::{PATIENCE, eventually};
use crate::tls::{CLIENT, ECDSA, client_with, make_clients, mutual, openssl, with_certificates};

fn get(path: &str, fields: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}\r\n")
        .into_bytes()
}

fn route(name: &str, auth: Value) -> Value {
    json!({ "name": name, "match": { "path": format!("/{name}") }, "auth": auth,
        "respond": { "body": "reached" } })
}

/// A certificate with this subject and alternative name, signed by this authority.
fn signed(dir: &Path, stem: &str, ca: &str, subject: &str, name: &str) {
    openssl(
        dir,
        &format!(
            "req -config req.cnf -newkey {ECDSA} -nodes -keyout {stem}.key -out {stem}.csr -subj {subject}"
        ),
    );
    std::fs::write(dir.join("name.cnf"), format!("subjectAltName = {name}\n")).unwrap();
    openssl(
        dir,
        &format!(
            "x509 -req -in {stem}.csr -CA {ca}.crt -CAkey {ca}.key -set_serial 9 -extfile name.cnf -out {stem}.crt -days 30"
        ),
    );
}

fn authority(dir: &Path, stem: &str) {
    openssl(
        dir,
        &format!(
            "req -config req.cnf -x509 -newkey {ECDSA} -nodes -keyout {stem}.key -out {stem}.crt -days 30 \
             -subj /CN={stem} -addext basicConstraints=critical,CA:TRUE"
        ),
    );
}

#[tokio::test]
async fn a_route_takes_the_clients_that_it_names() {
    let make = |dir: &Path| {
        make_clients(dir);
        authority(dir, "other-ca");
        signed(
            dir,
            "impostor",
            "other-ca",
            "/O=Example/CN=client",
            "DNS:client",
        );
        signed(dir, "nameless", "ca", "/", "URI:spiffe://example.org/ns/a");
        signed(dir, "second", "ca", "/O=Example/CN=second", "DNS:second");
    };
    let of = |rest: Value| {
        let mut rule = json!({ "ca": "ca.crt" });
        rule.as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        json!({ "certificate": rule })
    };
    let mut limited = route("limited", of(json!({})));
    limited["limits"] = json!({ "per_minute": 2 });
    let gateway = with_certificates(make, |builder| {
        builder
            .route(route("any", of(json!({}))))
            .route(route(
                "subject",
                of(json!({ "subjects": ["O=Example, CN=client"] })),
            ))
            .route(route(
                "name",
                of(json!({ "names": ["DNS:*.example.com", "DNS:client"] })),
            ))
            .route(route(
                "uri",
                of(json!({ "names": ["URI:spiffe://example.org/ns/*"] })),
            ))
            .route(limited.clone())
            .listener("https", mutual("required"))
            .listener(
                "second",
                json!({ "certificates": [{ "cert": "server.crt", "key": "server.key" }],
                    "client_certificates": { "ca": "other-ca.crt", "mode": "optional" } }),
            )
    });
    let dir = gateway.dir();
    let as_client = |stem: &str| format!("-cert {stem}.crt -key {stem}.key");
    let (nameless, second) = (as_client("nameless"), as_client("second"));
    for (path, port, who, expected) in [
        ("/any", gateway.https, CLIENT, "200"),
        ("/any", gateway.https, &nameless, "200"),
        ("/subject", gateway.https, CLIENT, "200"),
        ("/subject", gateway.https, &second, "403"),
        ("/name", gateway.https, CLIENT, "200"),
        ("/name", gateway.https, &second, "403"),
        ("/uri", gateway.https, &nameless, "200"),
        ("/uri", gateway.https, CLIENT, "403"),
        // The same name from another authority is another client; and who shows none is nobody.
        ("/any", gateway.second, &as_client("impostor"), "403"),
        ("/subject", gateway.second, &as_client("impostor"), "403"),
        ("/any", gateway.second, "", "403"),
        // Each client has an allowance of its own.
        ("/limited", gateway.https, CLIENT, "200"),
        ("/limited", gateway.https, CLIENT, "200"),
        ("/limited", gateway.https, CLIENT, "429"),
        ("/limited", gateway.https, &second, "200"),
    ] {
        let shown = client_with(&dir, port, who, &get(path, ""));
        assert!(
            shown.contains(&format!("HTTP/1.1 {expected} ")),
            "{path} {who}\n{shown}"
        );
        if who.is_empty() {
            assert!(shown.contains("certificate_required"), "{shown}");
        }
    }
}

#[tokio::test]
async fn nobody_takes_the_subject_away_or_makes_one_up() {
    let upstream = Recorder::start();
    let gateway = with_certificates(make_clients, |builder| {
        builder
            .set(
                "server.client_certificate_header",
                json!("X-Client-Subject"),
            )
            .route(
                json!({ "name": "up", "match": { "path": "/up" }, "auth": "none",
                "proxy": { "upstreams": [upstream.url()] } }),
            )
            .listener("https", mutual("required"))
            .listener(
                "second",
                json!({ "certificates": [{ "cert": "server.crt", "key": "server.key" }] }),
            )
    });
    let dir = gateway.dir();
    for field in [
        "X-Client-Subject",
        "x-client-subject",
        "close, X-Client-Subject",
    ] {
        let fields = format!("Connection: {field}\r\n");
        let shown = client_with(&dir, gateway.https, CLIENT, &get("/up", &fields));
        assert!(shown.contains("HTTP/1.1 400 "), "{field}\n{shown}");
    }
    assert_eq!(upstream.text(), "", "nothing of it was passed on");
    let forged = "X-Client-Subject: CN=forged\r\nX_Client_Subject: CN=forged\r\nX.Client-Subject: CN=forged\r\n";
    for (port, args) in [(gateway.https, CLIENT), (gateway.second, "")] {
        let shown = client_with(&dir, port, args, &get("/up", forged));
        assert!(shown.contains("HTTP/1.1 200 "), "{shown}");
    }
    let seen = upstream.text().to_ascii_lowercase();
    assert!(!seen.contains("forged"), "{seen}");
    assert_eq!(seen.matches("x-client-subject").count(), 1, "{seen}");
}

/// A connection of a client with this certificate, which stays.
async fn connect(gateway: &Gateway, cert: &str, key: &str) -> TlsStream<TcpStream> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = gateway.dir();
    let mut roots = rustls::RootCertStore::empty();
    let server = std::fs::read(dir.join("server.crt")).unwrap();
    roots
        .add(CertificateDer::from_pem_slice(&server).unwrap())
        .unwrap();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let tcp = TcpStream::connect(("127.0.0.1", gateway.https))
        .await
        .unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = "localhost".try_into().unwrap();
    connector.connect(name, tcp).await.unwrap()
}

/// The status of one more request on a connection, and what else was said.
async fn ask(tls: &mut TlsStream<TcpStream>) -> String {
    tls.write_all(b"GET /any HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        loop {
            let n = tls.read(&mut buffer).await.unwrap_or(0);
            answer.extend_from_slice(&buffer[..n]);
            let text = String::from_utf8_lossy(&answer);
            if n == 0 || text.ends_with("reached") || text.ends_with("}\n") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_certificate_is_good_as_long_as_its_authority_is_believed() {
    let make = |dir: &Path| {
        make_clients(dir);
        authority(dir, "other-ca");
    };
    let gateway = with_certificates(make, |builder| {
        builder
            .route(route("any", json!("certificate")))
            .listener("https", mutual("required"))
    });
    let dir = gateway.dir();
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let mut tls = connect(&gateway, &read("client.crt"), &read("client.key")).await;
    assert!(ask(&mut tls).await.starts_with("HTTP/1.1 200"));
    let taken_over = async |count: u32| {
        let name = "wasmwiz_tls_certificate_reloads_total{result=\"ok\"}";
        eventually(name, async || {
            (gateway.metric(name).await? == f64::from(count)).then_some(())
        })
        .await;
    };
    // One more authority changes nothing for those that are there.
    let both = read("ca.crt") + &read("other-ca.crt");
    std::fs::write(dir.join("ca.crt"), both).unwrap();
    taken_over(1).await;
    assert!(ask(&mut tls).await.starts_with("HTTP/1.1 200"));
    std::fs::write(dir.join("ca.crt"), read("other-ca.crt")).unwrap();
    taken_over(2).await;
    let answer = ask(&mut tls).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.contains("certificate_ended"), "{answer}");
    assert_eq!(tls.read(&mut [0; 8]).await.unwrap_or(0), 0, "it is closed");
}

#[tokio::test]
async fn a_certificate_is_good_until_it_ends() {
    let dir = workdir();
    let key = || rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = key();
    let ca = params.self_signed(&ca_key).unwrap();
    std::fs::write(dir.path().join("ca.crt"), ca.pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    crate::tls::self_signed(dir.path(), "server", ECDSA, "localhost");
    let gateway = gateway()
        .in_dir(dir)
        .route(route("any", json!("certificate")))
        .listener("https", mutual("required"))
        .start();
    let mut params = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + Duration::from_secs(10)).into();
    let client_key = key();
    let client = params.signed_by(&client_key, &issuer).unwrap();
    let mut tls = connect(&gateway, &client.pem(), &client_key.serialize_pem()).await;
    assert!(ask(&mut tls).await.starts_with("HTTP/1.1 200"));
    let tls = tokio::sync::Mutex::new(tls);
    let last = eventually("the certificate has ended", async || {
        let answer = ask(&mut *tls.lock().await).await;
        (!answer.starts_with("HTTP/1.1 200")).then_some(answer)
    })
    .await;
    assert!(last.starts_with("HTTP/1.1 403"), "{last}");
    assert!(last.contains("certificate_ended"), "{last}");
}
