//! `bench-proxy proxy PORT UPSTREAM_PORT CERT KEY`: Pingora and nothing else between TLS and an upstream.
//! `bench-proxy upstream PORT`: an upstream that costs next to nothing, the same for everyone.

use std::error::Error;

use async_trait::async_trait;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const USAGE: &str = "usage: bench-proxy proxy PORT UPSTREAM_PORT CERT KEY | upstream PORT";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["proxy", port, upstream, cert, key] => proxy(port.parse()?, upstream.parse()?, cert, key),
        ["upstream", port] => upstream(port.parse()?),
        _ => Err(USAGE.into()),
    }
}

/// Where everything goes.
struct Bare(u16);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(
        &self,
        _session: &mut Session,
        (): &mut (),
    ) -> pingora_core::Result<Box<HttpPeer>> {
        let address = ("127.0.0.1", self.0);
        Ok(Box::new(HttpPeer::new(address, false, String::new())))
    }
}

fn proxy(port: u16, upstream: u16, cert: &str, key: &str) -> Result<(), Box<dyn Error>> {
    let conf = ServerConf {
        threads: 1,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare(upstream));
    let mut tls = TlsSettings::intermediate(cert, key)?;
    tls.enable_h2();
    service.add_tls_with_settings(&format!("127.0.0.1:{port}"), None, tls);
    server.add_service(service);
    server.run_forever()
}

/// Answers every request that has no body with 13 bytes.
fn upstream(port: u16) -> Result<(), Box<dyn Error>> {
    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!";
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_io().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (mut socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut got = Vec::with_capacity(4096);
                while let Ok(1..) = socket.read_buf(&mut got).await {
                    if got.ends_with(b"\r\n\r\n") {
                        got.clear();
                        if socket.write_all(ANSWER).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    })
}
