//! HTTP/2 to upstreams, as gRPC needs it: streams both ways, and trailers that arrive.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use serde_json::json;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::support::gateway::{Gateway, gateway};

/// An HTTP/2 server without TLS: sends each piece of the body back, then trailers.
async fn h2_upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket));
        }
    });
    format!("http://{address}")
}

/// Serves one HTTP/2 connection of any kind.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(socket: S) {
    let Ok(mut connection) = h2::server::handshake(socket).await else {
        return;
    };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(answer(request, respond));
    }
}

async fn answer(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let head = Response::builder()
        .header("content-type", "application/grpc")
        .header(
            "x-te",
            request
                .headers()
                .get("te")
                .map_or("none", |v| v.to_str().unwrap()),
        )
        .header(
            "x-authority",
            request.uri().authority().map_or("none", |a| a.as_str()),
        )
        .header("x-target", request.uri().path())
        .body(())
        .unwrap();
    let fails = request.uri().path().ends_with("/Fails");
    let mut trailers = HeaderMap::new();
    trailers.insert(
        "grpc-status",
        if fails { "5" } else { "0" }.parse().unwrap(),
    );
    trailers.insert("grpc-message", "done".parse().unwrap());
    if fails {
        // Trailers alone, as a gRPC server refuses.
        let (mut parts, ()) = head.into_parts();
        parts.headers.extend(trailers);
        let _ = respond.send_response(Response::from_parts(parts, ()), true);
        return;
    }
    let Ok(mut stream) = respond.send_response(head, false) else {
        return;
    };
    let mut body = request.into_body();
    while let Some(Ok(piece)) = body.data().await {
        let _ = body.flow_control().release_capacity(piece.len());
        let _ = stream.send_data(piece, false);
    }
    let _ = stream.send_trailers(trailers);
}

async fn client(gateway: &Gateway) -> h2::client::SendRequest<Bytes> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(gateway.dir().join("certs/development.crt")).unwrap();
    let cert = rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
    roots.add(cert).unwrap();
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let socket = TcpStream::connect(("127.0.0.1", gateway.https))
        .await
        .unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let socket = connector.connect(name, socket).await.unwrap();
    let (send, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    send.ready().await.unwrap()
}

fn call(gateway: &Gateway, path: &str) -> Request<()> {
    Request::post(gateway.url(path))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

async fn next(body: &mut h2::RecvStream) -> Option<Bytes> {
    let piece = body.data().await?.unwrap();
    let _ = body.flow_control().release_capacity(piece.len());
    Some(piece)
}

#[tokio::test]
async fn streams_go_both_ways_and_trailers_arrive() {
    let url = h2_upstream().await;
    let gateway = gateway()
        .route(
            json!({ "name": "grpc", "match": { "path": "/pkg.Service/*" }, "auth": "none",
            "proxy": { "upstreams": [url], "protocol": "http2" } }),
        )
        .start();
    let mut send = client(&gateway).await;
    for _ in 0..3 {
        let (response, mut stream) = send
            .send_request(call(&gateway, "/pkg.Service/Echo"), false)
            .unwrap();
        // The answer's head comes before the request's end: neither side waits for the other.
        stream.send_data(Bytes::from_static(b"one"), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-te"], "trailers");
        assert_eq!(response.headers()["x-target"], "/pkg.Service/Echo");
        let authority = format!("localhost:{}", gateway.https);
        assert_eq!(response.headers()["x-authority"], authority.as_str());
        let mut body = response.into_body();
        assert_eq!(next(&mut body).await.unwrap(), "one");
        stream.send_data(Bytes::from_static(b"two"), true).unwrap();
        assert_eq!(next(&mut body).await.unwrap(), "two");
        while let Some(piece) = next(&mut body).await {
            assert!(piece.is_empty());
        }
        let trailers = body.trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers["grpc-message"], "done");
    }
    let (response, _) = send
        .send_request(call(&gateway, "/pkg.Service/Fails"), true)
        .unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "5");
    assert!(response.into_body().is_end_stream());
}

#[tokio::test]
async fn http1_clients_reach_http2_upstreams_and_many_calls_share_a_connection() {
    let url = h2_upstream().await;
    let gateway = gateway()
        .route(json!({ "name": "h2", "match": { "path": "/h2/*" }, "auth": "none",
            "proxy": { "upstreams": [url], "protocol": "http2", "preserve_host": false,
                "rewrite": "/pkg{rest}", "health_check": { "path": "/Health", "interval": "100ms" } } }))
        .start();
    let client = gateway.client_builder().http1_only().build().unwrap();
    let calls = (0..50).map(|i| {
        let request = client
            .post(gateway.url("/h2/Echo"))
            .body(format!("body {i}"));
        async move {
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["x-te"], "none");
            assert_eq!(answer.headers()["x-target"], "/pkg/Echo");
            assert_ne!(answer.headers()["x-authority"], "localhost");
            assert_eq!(answer.text().await.unwrap(), format!("body {i}"));
        }
    });
    futures_util::future::join_all(calls).await;
}
