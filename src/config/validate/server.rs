//! Listeners, their timeouts and bounds.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::Server;
use crate::config::context::Context;
use crate::config::file::{self, Serve};
use crate::config::problem::Path;
use crate::config::values::{Period, Size};
use crate::gateway::{Bounds, Listener, Timeouts};
use crate::route::{Access, Network};
use crate::tls::{CertificateFiles, Challenges, ClientCertificates, TlsFiles};

const LISTENERS_MAX: usize = 64;
const NETWORKS_MAX: usize = 1_024;

pub fn server(server: &file::Server, cx: &mut Context) -> Option<Server> {
    let at = Path::from("server");
    let mut listeners = Vec::new();
    let mut taken = Vec::new();
    for (index, https) in server.https.iter().enumerate() {
        listeners.extend(self::https(
            https,
            !server.trusted_proxies.is_empty(),
            &at.key("https").index(index),
            &mut taken,
            cx,
        ));
    }
    // Clients are redirected to the port of the first HTTPS listener.
    let https_port = server
        .https
        .first()
        .and_then(|first| first.address)
        .map(|address| address.0.port());
    for (index, http) in server.http.iter().enumerate() {
        listeners.extend(self::http(
            http,
            https_port,
            !server.trusted_proxies.is_empty(),
            &at.key("http").index(index),
            &mut taken,
            cx,
        ));
    }
    let admin = server
        .admin
        .as_ref()
        .map(|admin| self::admin(admin, &at.key("admin"), &mut taken, cx));
    if server.https.is_empty() && server.http.is_empty() {
        cx.missing(
            &at.key("https"),
            "there is no listener",
            "add one with an address and a certificate",
        );
    } else if listeners.len() > LISTENERS_MAX {
        cx.problem(
            &at.key("https"),
            format_args!("there are more than {LISTENERS_MAX} listeners"),
            "",
        );
    }
    if let Some(threads) = server.threads.0 {
        cx.count(&at.key("threads"), threads, 1, 1_024);
    }
    cx.period(
        &at.key("shutdown_grace"),
        server.shutdown_grace,
        Period::secs(0),
        Period::secs(3_600),
    );
    cx.count(
        &at.key("upstream_idle_max"),
        server.upstream_idle_max,
        1,
        65_536,
    );
    let upgrade_socket = upgrade_socket(server, &at, cx);
    Some(Server {
        listeners,
        admin: match admin {
            Some(admin) => Some(admin?),
            None => None,
        },
        threads: threads(server),
        shutdown_grace: server.shutdown_grace.0,
        upgrade_socket,
        reload_on_change: server.reload_on_change,
        upstream_idle_max: server.upstream_idle_max as usize,
    })
}

/// Threads of each listener: as configured, else as many as there are processors.
fn threads(server: &file::Server) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    // A number out of bounds has been refused elsewhere.
    server
        .threads
        .0
        .map_or(cpus, |threads| threads.max(1) as usize)
}

fn upgrade_socket(server: &file::Server, at: &Path, cx: &mut Context) -> Option<PathBuf> {
    /// A Unix socket's path has at most 107 bytes; a process number is appended while it is made.
    const BYTES_MAX: usize = 96;
    let path = at.key("upgrade_socket");
    let text = server.upgrade_socket.as_deref()?;
    if text.len() > BYTES_MAX {
        cx.problem(
            &path,
            format_args!("has more than {BYTES_MAX} bytes"),
            "name one nearer to the working directory",
        );
    }
    file_path(Some(text), &path, cx)
}

fn https(
    https: &file::Https,
    has_trusted: bool,
    at: &Path,
    taken: &mut Vec<SocketAddr>,
    cx: &mut Context,
) -> Option<Listener> {
    let path = at.key("certificates");
    if https.certificates.is_empty() {
        cx.missing(
            &path,
            "an HTTPS listener needs a certificate",
            "add { cert: FILE, key: FILE }",
        );
    }
    let mut certificates = Vec::new();
    for (index, certificate) in https.certificates.iter().enumerate() {
        certificates.extend(self::certificate(certificate, &path.index(index), cx));
    }
    let proxy_protocol = proxy_protocol(https.proxy_protocol, has_trusted, at, cx);
    let address = address(https.address, at, taken, cx)?;
    let clients = match &https.client_certificates {
        Some(clients) => {
            let at = at.key("client_certificates");
            let ca = file_path(clients.ca.as_deref(), &at.key("ca"), cx)?;
            let mode = clients.mode;
            Some(ClientCertificates { ca, mode })
        }
        None => None,
    };
    Some(Listener::Https {
        address,
        files: TlsFiles {
            certificates,
            clients,
        },
        proxy_protocol,
    })
}

fn certificate(
    certificate: &file::Certificate,
    at: &Path,
    cx: &mut Context,
) -> Option<CertificateFiles> {
    let cert = file_path(certificate.cert.as_deref(), &at.key("cert"), cx);
    let key = file_path(certificate.key.as_deref(), &at.key("key"), cx);
    let (cert, key) = (cert?, key?);
    if certificate.development && cert == key {
        cx.problem(
            &at.key("key"),
            "is the certificate's own file",
            "name two files",
        );
    }
    let ocsp = match &certificate.ocsp {
        Some(path) => Some(file_path(Some(path), &at.key("ocsp"), cx)?),
        None => None,
    };
    Some(CertificateFiles {
        cert,
        key,
        ocsp,
        development: certificate.development,
    })
}

/// A path that could exist.
pub fn file_path(text: Option<&str>, path: &Path, cx: &mut Context) -> Option<PathBuf> {
    match text {
        None => {
            cx.missing(path, "is required", "name a file");
            None
        }
        Some(text) if text.is_empty() || text.contains('\0') => {
            cx.problem(path, "must name a file", "");
            None
        }
        Some(text) => Some(PathBuf::from(text)),
    }
}

fn http(
    http: &file::Http,
    https_port: Option<u16>,
    has_trusted: bool,
    at: &Path,
    taken: &mut Vec<SocketAddr>,
    cx: &mut Context,
) -> Option<Listener> {
    let proxy_protocol = proxy_protocol(http.proxy_protocol, has_trusted, at, cx);
    let address = address(http.address, at, taken, cx)?;
    match (http.serve, https_port) {
        (Serve::Routes, _) => Some(Listener::Http {
            address,
            proxy_protocol,
        }),
        (Serve::Redirect, Some(listener_port)) => Some(Listener::HttpRedirect {
            address,
            https_port: redirect_port(http.https_port, at, cx)?.unwrap_or(listener_port),
            proxy_protocol,
        }),
        (Serve::Redirect, None) => {
            if !cx.is_silenced(&Path::from("server.https")) {
                let hint = "add one to server.https, or set serve: routes";
                cx.problem(
                    &at.key("serve"),
                    "there is no HTTPS listener to redirect to",
                    hint,
                );
            }
            None
        }
    }
}

/// Behind a port mapping, clients see another port than the listener has.
fn redirect_port(port: Option<u16>, at: &Path, cx: &mut Context) -> Option<Option<u16>> {
    if port == Some(0) {
        let hint = "name the port that clients use, such as 443";
        cx.problem(
            &at.key("https_port"),
            "must be from 1 to 65535, not 0",
            hint,
        );
        return None;
    }
    Some(port)
}

fn admin(
    admin: &file::Admin,
    at: &Path,
    taken: &mut Vec<SocketAddr>,
    cx: &mut Context,
) -> Option<SocketAddr> {
    let address = address(admin.address, at, taken, cx)?;
    if !address.ip().is_loopback() && admin.allow.is_empty() {
        let hint = "keep it on 127.0.0.1 or a private network, or name who is let in with allow";
        cx.warning(
            &at.key("address"),
            "whoever reaches the admin listener can read the metrics",
            hint,
        );
    }
    Some(address)
}

/// An address that is given, and that no other listener has.
fn address(
    address: Option<crate::config::values::Address>,
    at: &Path,
    taken: &mut Vec<SocketAddr>,
    cx: &mut Context,
) -> Option<SocketAddr> {
    let path = at.key("address");
    let Some(address) = address else {
        cx.missing(
            &path,
            "is required",
            "an IP address and a port, such as 0.0.0.0:8443",
        );
        return None;
    };
    if let Some(other) = taken.iter().find(|other| overlap(**other, address.0)) {
        cx.problem(
            &path,
            format_args!("{address} is taken by another listener, at {other}"),
            "choose another port",
        );
    }
    taken.push(address.0);
    Some(address.0)
}

/// Whether both can't be bound. Port 0 is any free port.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_family = a.is_ipv4() == b.is_ipv4();
    let same_ip =
        a.ip() == b.ip() || (same_family && (a.ip().is_unspecified() || b.ip().is_unspecified()));
    a.port() != 0 && a.port() == b.port() && same_ip
}

pub fn timeouts(timeouts: &file::Timeouts, cx: &mut Context) -> Timeouts {
    let at = Path::from("server.timeouts");
    let hour = Period::secs(3_600);
    cx.period(
        &at.key("tls_handshake"),
        timeouts.tls_handshake,
        Period::ms(100),
        Period::secs(60),
    );
    cx.period(
        &at.key("request_head"),
        timeouts.request_head,
        Period::ms(100),
        Period::secs(300),
    );
    cx.period(
        &at.key("request_body"),
        timeouts.request_body,
        Period::ms(100),
        hour,
    );
    cx.period(&at.key("write"), timeouts.write, Period::ms(100), hour);
    cx.period(
        &at.key("keepalive"),
        timeouts.keepalive,
        Period::ms(100),
        hour,
    );
    Timeouts {
        tls_handshake: timeouts.tls_handshake.0,
        request_head: timeouts.request_head.0,
        request_body: timeouts.request_body.0,
        write: timeouts.write.0,
        keepalive: timeouts.keepalive.0,
    }
}

pub fn bounds(server: &file::Server, cx: &mut Context) -> Bounds {
    let (at, bounds) = (Path::from("server.bounds"), &server.bounds);
    cx.count(
        &Path::from("server.connections_max"),
        server.connections_max,
        1,
        1_000_000,
    );
    cx.count(
        &Path::from("server.connections_per_address_max"),
        server.connections_per_address_max,
        1,
        1_000_000,
    );
    cx.count(
        &Path::from("server.requests_max"),
        server.requests_max,
        1,
        10_000_000,
    );
    cx.count(
        &Path::from("server.requests_per_address_max"),
        server.requests_per_address_max,
        1,
        10_000_000,
    );
    cx.count(
        &at.key("h2_resets_per_second_max"),
        bounds.h2_resets_per_second_max,
        1,
        100_000,
    );
    cx.count(
        &at.key("requests_per_connection_max"),
        bounds.requests_per_connection_max,
        1,
        1_000_000_000,
    );
    cx.size(
        &at.key("body_rate_min"),
        bounds.body_rate_min,
        Size::kib(1),
        Size::gib(1),
    );
    cx.size(
        &at.key("head_size_max"),
        bounds.head_size_max,
        Size::kib(1),
        Size::mib(1),
    );
    cx.count(&at.key("headers_max"), bounds.headers_max, 1, 256);
    cx.size(
        &at.key("uri_size_max"),
        bounds.uri_size_max,
        Size(64),
        Size::kib(64),
    );
    cx.count(&at.key("h2_streams_max"), bounds.h2_streams_max, 1, 10_000);
    cx.size(
        &at.key("body_size_max"),
        bounds.body_size_max,
        Size(1),
        Size::gib(1),
    );
    if bounds.uri_size_max > bounds.head_size_max {
        let message = format!(
            "may not exceed server.bounds.head_size_max, which is {}",
            bounds.head_size_max
        );
        cx.missing(
            &at.key("uri_size_max"),
            message,
            "the URI is part of the head",
        );
    }
    Bounds {
        connections_max: server.connections_max as usize,
        connections_per_address_max: server.connections_per_address_max,
        requests_max: server.requests_max as usize,
        requests_per_address_max: server.requests_per_address_max,
        requests_per_connection_max: bounds.requests_per_connection_max,
        h2_resets_per_second_max: bounds.h2_resets_per_second_max,
        body_rate_min: bounds.body_rate_min.0,
        head_bytes_max: bounds.head_size_max.as_usize(),
        headers_max: bounds.headers_max as usize,
        uri_bytes_max: bounds.uri_size_max.as_usize(),
        h2_streams_max: bounds.h2_streams_max,
        upstream_idle_per_thread: (server.upstream_idle_max as usize).div_ceil(threads(server)),
    }
}

pub fn trusted_proxies(texts: &[String], cx: &mut Context) -> Option<Vec<Network>> {
    let at = Path::from("server.trusted_proxies");
    let parsed = networks(texts, &at, cx)?;
    for (index, network) in parsed.iter().enumerate() {
        if network.prefix_len == 0 {
            cx.warning(
                &at.index(index),
                "every client can claim any address",
                "name your proxies' networks",
            );
        }
    }
    Some(parsed)
}

/// Who knows the answers to challenges of authorities. An authority asks on port 80 of a name, and
/// follows redirects, also to HTTPS with any certificate.
pub fn challenges(server: &file::Server, cx: &mut Context) -> Option<Challenges> {
    let Some(webroot) = server.acme_webroot.as_deref() else {
        return Some(Challenges::None);
    };
    let path = Path::from("server.acme_webroot");
    file_path(Some(webroot), &path, cx).map(Challenges::Webroot)
}

/// Who is let in by each listener, in their order, the admin listener last.
pub fn listener_access(server: &file::Server, cx: &mut Context) -> Option<Vec<Access>> {
    let at = Path::from("server");
    let https = server.https.iter().enumerate().map(|(index, https)| {
        let at = at.key("https").index(index);
        (&https.allow, &https.deny, at)
    });
    let http = server.http.iter().enumerate().map(|(index, http)| {
        let at = at.key("http").index(index);
        (&http.allow, &http.deny, at)
    });
    let admin = server.admin.iter();
    let admin = admin.map(|admin| (&admin.allow, &admin.deny, at.key("admin")));
    let lists: Vec<_> = https.chain(http).chain(admin).collect();
    let parsed: Vec<Option<Access>> = lists
        .into_iter()
        .map(|(allow, deny, at)| access(allow, deny, &at, cx))
        .collect();
    parsed.into_iter().collect()
}

/// Lists of client networks.
pub fn access(allow: &[String], deny: &[String], at: &Path, cx: &mut Context) -> Option<Access> {
    let allow = networks(allow, &at.key("allow"), cx);
    let deny = networks(deny, &at.key("deny"), cx);
    let (allow, deny) = (allow?, deny?);
    for (index, network) in allow.iter().enumerate() {
        if deny.contains(network) {
            cx.warning(
                &at.key("allow").index(index),
                format_args!("{network} is denied too, which counts"),
                "remove one of them",
            );
        }
    }
    Some(Access { allow, deny })
}

fn networks(texts: &[String], at: &Path, cx: &mut Context) -> Option<Vec<Network>> {
    if texts.len() > NETWORKS_MAX {
        cx.problem(
            at,
            format_args!("has more than {NETWORKS_MAX} networks"),
            "name larger ones",
        );
        return None;
    }
    let mut parsed = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match Network::parse(text) {
            Ok(network) => parsed.push(network),
            Err(error) => {
                cx.problem(
                    &at.index(index),
                    error,
                    "use CIDR notation, such as 10.0.0.0/8",
                );
            }
        }
    }
    (parsed.len() == texts.len()).then_some(parsed)
}

/// Whoever may send the header of the PROXY protocol may claim any address.
fn proxy_protocol(is_on: bool, has_trusted: bool, at: &Path, cx: &mut Context) -> bool {
    if is_on && !has_trusted {
        cx.problem(
            &at.key("proxy_protocol"),
            "nobody is trusted to say where a connection comes from",
            "name the load balancers' networks in server.trusted_proxies",
        );
    }
    is_on
}
