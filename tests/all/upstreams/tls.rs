//! TLS to upstreams: whom the gateway believes, and who it is to them.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;

use super::{get, route};
use crate::support::gateway::gateway;
use crate::support::upstream::{mirror, serve};

/// An authority and what it issues, as PEM.
struct Authority {
    cert: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap().pem();
        Authority {
            cert,
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }
}

/// An upstream with this certificate, which mirrors requests; with `clients`, only for those that
/// this authority knows.
async fn tls_upstream(pair: &(String, String), clients: Option<&Authority>) -> String {
    listen(pair, clients, "http/1.1").await
}

async fn listen(pair: &(String, String), clients: Option<&Authority>, alpn: &str) -> String {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let chain = vec![CertificateDer::from_pem_slice(pair.0.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.1.as_bytes()).unwrap();
    let builder = rustls::ServerConfig::builder();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            let cert = CertificateDer::from_pem_slice(authority.cert.as_bytes()).unwrap();
            roots.add(cert).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots));
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = builder.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                match acceptor.accept(socket).await {
                    Ok(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => {
                        crate::grpc::serve(tls).await;
                    }
                    Ok(tls) => serve(tls, Arc::new(mirror), Arc::new(AtomicUsize::new(0))).await,
                    Err(_) => {}
                }
            });
        }
    });
    format!("https://localhost:{port}")
}

#[tokio::test]
async fn certificates_are_verified_and_shown() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let url = tls_upstream(&ours.issue("localhost"), None).await;
    let internal = tls_upstream(&ours.issue("app.internal"), None).await;
    let strict = tls_upstream(&ours.issue("localhost"), Some(&ours)).await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ca, other) = (file("ca.pem", &ours.cert), file("other.pem", &theirs.cert));
    let (cert, key) = ours.issue("gateway.internal");
    let (cert, key) = (file("client.crt", &cert), file("client.key", &key));
    let off = json!({ "enabled": false });
    let with = |path: &str, url: &str, tls: serde_json::Value| {
        route(
            path,
            json!({ "upstreams": [url], "tls": tls, "ejection": off }),
        )
    };
    let gateway = gateway()
        .route(with("/believed", &url, json!({ "ca": ca })))
        .route(with("/unknown", &url, json!({})))
        .route(with("/other", &url, json!({ "ca": other })))
        .route(with("/insecure", &url, json!({ "insecure": true })))
        .route(with("/misnamed", &internal, json!({ "ca": ca })))
        .route(with(
            "/named",
            &internal,
            json!({ "ca": ca, "server_name": "app.internal" }),
        ))
        .route(with(
            "/shown",
            &strict,
            json!({ "ca": ca, "client_cert": cert, "client_key": key }),
        ))
        .route(with("/nobody", &strict, json!({ "ca": ca })))
        .start();
    // Twice and mixed, so that no connection serves a route with other rules.
    for _ in 0..2 {
        for path in ["/believed", "/insecure", "/named", "/shown"] {
            let (status, text) = get(&gateway, path).await;
            assert_eq!(status, 200, "{path}: {text}");
            assert!(text.starts_with(&format!("GET {path} HTTP/1.1\r\n")));
        }
        for path in ["/unknown", "/other", "/misnamed", "/nobody"] {
            let (status, text) = get(&gateway, path).await;
            assert!(
                matches!(status.as_u16(), 502 | 503),
                "{path}: {status} {text}"
            );
        }
    }
}

#[tokio::test]
async fn http2_is_negotiated_and_checks_verify_as_requests_do() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let h2 = listen(&ours.issue("localhost"), Some(&ours), "h2").await;
    let checked = tls_upstream(&ours.issue("localhost"), None).await;
    let misled = tls_upstream(&theirs.issue("localhost"), None).await;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let ca = file("ca.pem", &ours.cert);
    let (cert, key) = ours.issue("gateway.internal");
    let (cert, key) = (file("client.crt", &cert), file("client.key", &key));
    let check = json!({ "path": "/healthz", "interval": "100ms" });
    let gateway = gateway()
        .route(route(
            "/h2",
            json!({ "upstreams": [h2], "protocol": "http2",
                "tls": { "ca": ca, "client_cert": cert, "client_key": key } }),
        ))
        .route(route(
            "/checked",
            json!({ "upstreams": [checked, misled], "tls": { "ca": ca }, "health_check": check }),
        ))
        .start();
    let answer = gateway
        .client()
        .post(gateway.url("/h2"))
        .body("echo")
        .send();
    let answer = answer.await.unwrap();
    assert_eq!(answer.headers()["x-target"], "/h2");
    assert_eq!(answer.text().await.unwrap(), "echo");
    for (upstream, up) in [(&checked, 1.0), (&misled, 0.0)] {
        let name = format!("wasmwiz_upstream_up{{upstream=\"{upstream}\"}}");
        crate::support::eventually(&name, async || {
            (gateway.metric(&name).await == Some(up)).then_some(())
        })
        .await;
    }
    for _ in 0..4 {
        assert_eq!(get(&gateway, "/checked").await.0, 200);
    }
}
