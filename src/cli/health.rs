//! `health`: asks a gateway how it is. It is what a container's health check runs, where there is no
//! shell and no curl: one request, one deadline, an exit code.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http::Uri;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::config::Period;

const EXAMPLES: &str = "\
Examples:
  wasm-wizard health                                  the gateway on this machine: is it ready?
  wasm-wizard health --probe live                     should it be restarted?
  wasm-wizard health --config wasm-wizard.yaml        at the admin address of this file
  wasm-wizard health https://gateway.example.com      any gateway, its certificate verified

The answer goes to standard output. Exits with 0 when it is good (200), and with 1 when it is another one, when
there is none in time, or when the certificate is not the right one.";

/// Longest answer that is read; a gateway's own has a few hundred bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Where the admin listener is when no file says otherwise.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);

#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where to ask; without it, the admin listener on this machine. A path in it replaces the probe's.
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// What to ask: everything (full), whether to restart it (live), whether to send it requests (ready).
    #[arg(long, value_enum, default_value_t = Probe::Ready)]
    probe: Probe,
    /// For everything together: finding the address, connecting, TLS and the answer.
    #[arg(long, value_name = "DURATION", value_parser = Period::parse, default_value = "3s")]
    timeout: Period,
    /// The only authorities, or the very certificate, to believe (PEM); without it, the system's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Probe {
    Full,
    Live,
    Ready,
}

impl Probe {
    fn path(self) -> &'static str {
        match self {
            Probe::Full => "/health",
            Probe::Live => "/health/live",
            Probe::Ready => "/health/ready",
        }
    }
}

/// Asks once. `admin` is where a configuration file puts the admin listener: `None` where no file was
/// given, `Some(None)` where the file has no such listener.
pub(super) fn run(
    args: &Args,
    admin: Option<Option<SocketAddr>>,
    out: &mut dyn Write,
) -> anyhow::Result<i32> {
    let target = Target::read(args, admin)?;
    let Period(timeout) = args.timeout;
    let answer = within(timeout, move || target.ask())?;
    writeln!(out, "{}", printable(&answer.body))?;
    if answer.status == 200 {
        return Ok(0);
    }
    eprintln!("error: the answer has the status {}", answer.status);
    Ok(1)
}

/// Whom to ask for what.
struct Target {
    /// As it stands in a URL: with brackets around an IPv6 address, and the port if it was given.
    authority: String,
    host: String,
    port: u16,
    path: String,
    tls: Option<Arc<ClientConfig>>,
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Target {
    fn read(args: &Args, admin: Option<Option<SocketAddr>>) -> anyhow::Result<Target> {
        let url = match (&args.url, admin) {
            (Some(url), _) => url.clone(),
            (None, None) => format!("http://{ADMIN}"),
            (None, Some(Some(address))) => format!("http://{}", reachable(address)),
            (None, Some(None)) => bail!("the configuration has no admin listener; name a URL"),
        };
        let uri: Uri = url
            .parse()
            .with_context(|| format!("'{}' is no URL", url.escape_debug()))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            bail!("name a URL such as http://127.0.0.1:9091 or https://example.com");
        };
        if authority.as_str().contains('@') {
            bail!("a URL with a user in it is not supported");
        }
        let port = match scheme {
            "http" => 80,
            "https" => 443,
            other => bail!("the URL begins with {other}://; only http:// and https:// are known"),
        };
        let is_bare = authority.as_str() == authority.host();
        if !is_bare && authority.port_u16().is_none() {
            bail!("the port of the URL must be a number up to 65535");
        }
        let path = match uri.path_and_query().map_or("/", |path| path.as_str()) {
            "/" => args.probe.path(),
            path => path,
        };
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        Ok(Target {
            authority: authority.to_string(),
            host: bare.unwrap_or(host).to_owned(),
            port: authority.port_u16().unwrap_or(port),
            path: path.to_owned(),
            tls: match scheme {
                "https" => Some(believing(args.ca.as_deref())?),
                _ => None,
            },
        })
    }

    fn ask(self) -> anyhow::Result<Answer> {
        let addresses = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .with_context(|| format!("'{}' has no address", self.host))?;
        let stream = connect(addresses)?;
        match self.tls.clone() {
            None => self.exchange(stream),
            Some(config) => {
                let name = ServerName::try_from(self.host.clone())
                    .with_context(|| format!("'{}' can be in no certificate", self.host))?;
                let connection = ClientConnection::new(config, name)?;
                self.exchange(StreamOwned::new(connection, stream))
            }
        }
    }

    fn exchange(&self, mut stream: impl Read + Write) -> anyhow::Result<Answer> {
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: wasm-wizard health\r\nAccept: application/json\r\nConnection: close\r\n\r\n",
            self.path, self.authority
        );
        stream.write_all(request.as_bytes()).context("asking")?;
        stream.flush().context("asking")?;
        let mut bytes = Vec::new();
        let read = stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes);
        // A server that closes without saying so in TLS may have said all there was to say; what was
        // read decides.
        match read {
            Err(error) if bytes.is_empty() => Err(error).context("reading the answer"),
            Ok(_) | Err(_) => parse(&bytes),
        }
    }
}

/// Tries one address after the other, as a name may have some that nobody listens on.
fn connect(addresses: impl Iterator<Item = SocketAddr>) -> anyhow::Result<TcpStream> {
    let mut failed = anyhow!("the name has no address");
    for address in addresses {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = anyhow!("{address}: {error}"),
        }
    }
    Err(failed)
}

/// A client that verifies the certificate, by the file or by the system's authorities. There is no
/// way not to: a check that anybody can answer says nothing.
fn believing(ca: Option<&Path>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let pem = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate =
                    certificate.map_err(|e| anyhow!("{} is not PEM: {e}", file.display()))?;
                roots
                    .add(certificate)
                    .with_context(|| format!("{} has a bad certificate", file.display()))?;
            }
        }
        None => {
            let (_, _) =
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        bail!("there is no authority to believe; name a file with --ca");
    }
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Does it on a thread of its own, so that no name server and no slow answer can outlast the deadline.
/// The process ends right after, and that thread with it.
fn within<T: Send + 'static>(
    timeout: Duration,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (done, result) = mpsc::channel();
    std::thread::Builder::new()
        .name("health".to_owned())
        .spawn(move || done.send(work()))
        .context("starting a thread")?;
    match result.recv_timeout(timeout) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => bail!("no answer within {timeout:?}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the request ended without an answer"),
    }
}

/// Where a listener on this address is reached from this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The status and the body of an answer. The body is for people alone, so its framing is not looked at.
fn parse(bytes: &[u8]) -> anyhow::Result<Answer> {
    let status = bytes
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| bytes.strip_prefix(b"HTTP/1.0 "))
        .and_then(|rest| rest.split_at_checked(3))
        .filter(|(_, rest)| matches!(rest.first(), Some(b' ' | b'\r')))
        .filter(|(status, _)| status.iter().all(u8::is_ascii_digit))
        .and_then(|(status, _)| std::str::from_utf8(status).ok()?.parse().ok())
        .context("the answer is not HTTP/1.1")?;
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("the answer ends too early")?;
    Ok(Answer {
        status,
        body: bytes[end + 4..].to_vec(),
    })
}

/// The body, without anything that a terminal would take for a command.
fn printable(body: &[u8]) -> String {
    String::from_utf8_lossy(body)
        .chars()
        .filter(|c| !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: Option<&str>, admin: Option<Option<SocketAddr>>) -> anyhow::Result<Target> {
        let args = Args {
            url: url.map(str::to_owned),
            probe: Probe::Live,
            timeout: Period(Duration::from_secs(1)),
            ca: None,
        };
        Target::read(&args, admin)
    }

    fn shown(target: &Target) -> String {
        format!(
            "{} {} {} {}",
            target.authority, target.host, target.port, target.path
        )
    }

    #[test]
    fn the_admin_listener_is_asked_unless_a_url_is_given() {
        let read = |url, admin| shown(&target(url, admin).unwrap());
        assert_eq!(
            read(None, None),
            "127.0.0.1:9091 127.0.0.1 9091 /health/live"
        );
        let any = Some(Some("0.0.0.0:9".parse().unwrap()));
        assert_eq!(read(None, any), "127.0.0.1:9 127.0.0.1 9 /health/live");
        let any = Some(Some("[::]:9".parse().unwrap()));
        assert_eq!(read(None, any), "[::1]:9 ::1 9 /health/live");
        assert_eq!(
            read(Some("http://example.com/x?y"), any),
            "example.com example.com 80 /x?y"
        );
        assert!(target(None, Some(None)).is_err());
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for url in [
            "",
            "localhost",
            "/health",
            "ftp://localhost",
            "http://user:secret@localhost",
            "http://",
            "http://a b",
            "http://localhost:99999",
        ] {
            assert!(target(Some(url), None).is_err(), "{url}");
        }
    }

    #[test]
    fn only_http_is_taken_for_an_answer() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n\r\nfine").unwrap().status, 200);
        assert_eq!(parse(b"HTTP/1.1 503\r\nA: b\r\n\r\n").unwrap().status, 503);
        for bytes in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1 +20 OK\r\n\r\n",
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 ",
            b"HTTP/1.1 20",
        ] {
            assert!(parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        assert_eq!(printable(b"a\x1b[2Jb\xff"), "a[2Jb\u{fffd}");
    }
}
