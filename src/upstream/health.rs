//! Active health checks: each server is asked in the background, whatever its requests do.

use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use pingora_core::connectors::http::Connector;
use pingora_core::protocols::http::client::HttpSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::RequestHeader;

use super::member::State;
use super::{HealthCheck, Probe, peer};

/// One connector for all checks: making one reads the system's certificates.
static CONNECTOR: LazyLock<Connector> = LazyLock::new(|| Connector::new(None));

/// Why a server does not pass. Only for the log.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Http(#[from] Box<pingora_core::Error>),
    #[error("the status is {0}")]
    Status(u16),
    #[error("no answer in time")]
    Timeout,
}

/// Asks the server until it is gone.
pub(super) fn start(state: &Arc<State>, check: HealthCheck, peer: HttpPeer) {
    let task = tokio::spawn(run(Arc::downgrade(state), check, peer));
    state.checked_by(task.abort_handle());
}

async fn run(server: Weak<State>, check: HealthCheck, peer: HttpPeer) {
    let mut verdict = Verdict::default();
    loop {
        let Some(state) = server.upgrade() else {
            return;
        };
        let asked = tokio::time::timeout(check.timeout, ask(&state, &check.probe, &peer)).await;
        let result = asked.unwrap_or(Err(CheckError::Timeout));
        if let Err(error) = &result {
            tracing::debug!(upstream = %state.server(), %error, "a health check failed");
        }
        if let Some(healthy) = verdict.note(result.is_ok(), &check) {
            state.set_healthy(healthy);
        }
        drop(state);
        tokio::time::sleep(jittered(check.interval)).await;
    }
}

/// Up to a tenth off, so that many checks don't come at once, from one gateway or from several.
fn jittered(interval: Duration) -> Duration {
    let random = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
    interval.mul_f64(0.9 + 0.2 * random)
}

async fn ask(state: &State, probe: &Probe, template: &HttpPeer) -> Result<(), CheckError> {
    let address = state.resolve().await?;
    match probe {
        Probe::Tcp => {
            tokio::net::TcpStream::connect(address).await?;
            Ok(())
        }
        Probe::Http { path, host, status } => {
            let peer = peer::at(template, address);
            let (mut session, _) = CONNECTOR.get_http_session(&peer).await?;
            let mut request = RequestHeader::build("GET", path.as_bytes(), Some(2))?;
            let own = || state.server().authority();
            request.insert_header("host", host.clone().unwrap_or_else(own))?;
            request.insert_header("user-agent", "wasm-wizard health check")?;
            let answered = answer(&mut session, request).await?;
            session.shutdown().await;
            if answered == *status {
                Ok(())
            } else {
                Err(CheckError::Status(answered))
            }
        }
    }
}

async fn answer(
    session: &mut HttpSession<()>,
    mut request: RequestHeader,
) -> Result<u16, Box<pingora_core::Error>> {
    if let HttpSession::H2(_) = session {
        // The authority of HTTP/2 is part of its target (RFC 9113 section 8.3.1).
        let host = request.remove_header("host");
        let authority = host.as_ref().and_then(|h| h.to_str().ok()).unwrap_or("");
        let target = format!(
            "http://{authority}{}",
            request.uri.path_and_query().map_or("/", |p| p.as_str())
        );
        if let Ok(uri) = target.parse() {
            request.set_uri(uri);
        }
        request.set_version(http::Version::HTTP_2);
    }
    session.write_request_header(Box::new(request)).await?;
    session.finish_request_body().await?;
    session.read_response_header().await?;
    Ok(session
        .response_header()
        .map_or(0, |head| head.status.as_u16()))
}

/// What a row of results says.
#[derive(Default)]
struct Verdict {
    healthy: Option<bool>,
    /// Results in a row that say otherwise.
    against: u32,
}

impl Verdict {
    /// Takes a result; says what the server now is, where that may have changed.
    fn note(&mut self, passed: bool, check: &HealthCheck) -> Option<bool> {
        let Some(healthy) = self.healthy else {
            self.healthy = Some(passed);
            return self.healthy;
        };
        if passed == healthy {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if passed {
            check.healthy_after
        } else {
            check.unhealthy_after
        };
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.healthy = Some(passed);
        self.healthy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        HealthCheck {
            probe: Probe::Tcp,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            healthy_after: 2,
            unhealthy_after: 3,
        }
    }

    #[test]
    fn the_first_result_decides_and_then_it_takes_several() {
        let mut verdict = Verdict::default();
        let mut note = |passed| verdict.note(passed, &check());
        assert_eq!(note(false), Some(false));
        assert_eq!(note(true), None);
        assert_eq!(note(false), None, "begins anew");
        assert_eq!(note(true), None);
        assert_eq!(note(true), Some(true));
        assert_eq!(note(false), None);
        assert_eq!(note(false), None);
        assert_eq!(note(true), None, "begins anew");
        assert_eq!(
            [note(false), note(false), note(false)],
            [None, None, Some(false)]
        );
    }

    #[test]
    fn checks_are_spread_around_their_interval() {
        let interval = Duration::from_secs(10);
        let all: Vec<Duration> = (0..200).map(|_| jittered(interval)).collect();
        let (least, most) = (all.iter().min().unwrap(), all.iter().max().unwrap());
        assert!(*least >= interval.mul_f64(0.9) && *most <= interval.mul_f64(1.1));
        assert!(*most - *least > interval.mul_f64(0.05));
    }
}
