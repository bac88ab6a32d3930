//! `proxy` targets.

use std::path::PathBuf;

use http::HeaderName;

use super::server;
use crate::config::context::Context;
use crate::config::file;
use crate::config::problem::{Path, shown};
use crate::config::values::Period;
use crate::route::{Forwarded, Match, Proxy, Rewrite, RewriteError, WebSocket, normalize};
use crate::upstream::{self, Balance, HashOn, Probe, Weighted};

const STATUSES_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 64;

pub fn proxy(
    proxy: &file::Proxy,
    matcher: Option<&Match>,
    at: &Path,
    cx: &mut Context,
) -> Option<Proxy> {
    let servers = servers(&proxy.upstreams, &at.key("upstreams"), cx);
    timeouts(proxy, at, cx);
    let rewrite = proxy
        .rewrite
        .as_deref()
        .map(|template| rewrite(template, matcher, &at.key("rewrite"), cx));
    let balance = balance(&proxy.balance, &at.key("balance"), cx);
    let tls = tls(proxy, &at.key("tls"), cx);
    let capacity = capacity(&proxy.capacity, &at.key("capacity"), cx);
    let retries = retries(&proxy.retries, &at.key("retries"), cx);
    let ejection = ejection(&proxy.ejection, &at.key("ejection"), cx);
    let health_check = proxy
        .health_check
        .as_ref()
        .map(|check| health_check(check, &at.key("health_check"), cx));
    if proxy.websocket && proxy.protocol == file::Protocol::Http2 {
        cx.problem(
            &at.key("websocket"),
            "a WebSocket begins with HTTP/1.1",
            "make a route of its own for it, with protocol: http1",
        );
    }
    Some(Proxy {
        upstreams: upstream::Settings {
            servers: servers?,
            balance: balance?,
            protocol: match proxy.protocol {
                file::Protocol::Http1 => upstream::Protocol::Http1,
                file::Protocol::Http2 => upstream::Protocol::Http2,
            },
            tls: tls?,
            connect_timeout: proxy.connect_timeout.0,
            read_timeout: proxy.read_timeout.0,
            write_timeout: proxy.write_timeout.0,
            keepalive_timeout: proxy.keepalive_timeout.0,
            preserve_host: proxy.preserve_host,
            capacity,
            retries: retries?,
            ejection: if proxy.ejection.enabled {
                Some(ejection?)
            } else {
                None
            },
            health_check: match health_check {
                Some(check) => Some(check?),
                None => None,
            },
        },
        rewrite: match rewrite {
            Some(rewrite) => rewrite?,
            None => None,
        },
        forwarded: match proxy.forwarded {
            file::Forwarded::X => Forwarded {
                x: true,
                standard: false,
            },
            file::Forwarded::Standard => Forwarded {
                x: false,
                standard: true,
            },
            file::Forwarded::Both => Forwarded {
                x: true,
                standard: true,
            },
            file::Forwarded::None => Forwarded {
                x: false,
                standard: false,
            },
        },
        websocket: proxy.websocket.then_some(WebSocket {
            idle_timeout: proxy.websocket_idle_timeout.0,
            lifetime_max: proxy.websocket_lifetime_max.0,
        }),
    })
}

fn servers(upstreams: &[file::Upstream], path: &Path, cx: &mut Context) -> Option<Vec<Weighted>> {
    if upstreams.is_empty() {
        cx.missing(
            path,
            "needs at least one upstream",
            "add http://host:port or https://host:port",
        );
    } else if upstreams.len() > upstream::SERVERS_MAX {
        cx.problem(
            path,
            format_args!("has more than {} upstreams", upstream::SERVERS_MAX),
            "",
        );
    }
    let mut servers: Vec<Weighted> = Vec::with_capacity(upstreams.len().min(64));
    for (index, upstream) in upstreams.iter().enumerate() {
        let path = path.index(index);
        let (text, weight, path) = match upstream {
            file::Upstream::Url(url) => (Some(url), 1, path),
            file::Upstream::Weighted(weighted) => {
                cx.count(&path.key("weight"), weighted.weight, 1, 100);
                (weighted.url.as_ref(), weighted.weight, path.key("url"))
            }
        };
        let Some(text) = text else {
            cx.missing(
                &path,
                "is required",
                "add http://host:port or https://host:port",
            );
            continue;
        };
        if let Some(server) = server(text, &servers, &path, cx) {
            servers.push(Weighted { server, weight });
        }
    }
    (servers.len() == upstreams.len() && !servers.is_empty()).then_some(servers)
}

fn server(
    text: &str,
    others: &[Weighted],
    path: &Path,
    cx: &mut Context,
) -> Option<upstream::Server> {
    const HINT: &str = "use http://host:port or https://host:port";
    // What stands before the '@' may be a password: it is not shown.
    if text.contains('@') {
        cx.problem(
            path,
            "an upstream can't have credentials",
            "set an Authorization header in headers.request",
        );
        return None;
    }
    match upstream::Server::parse(text) {
        Ok(server) if others.iter().any(|other| other.server == server) => {
            cx.problem(
                path,
                format_args!("'{}' is given twice", shown(text)),
                "remove it",
            );
            None
        }
        Ok(server) => Some(server),
        Err(error) => {
            cx.problem(path, error, HINT);
            None
        }
    }
}

fn timeouts(proxy: &file::Proxy, at: &Path, cx: &mut Context) {
    let (least, minute, hour) = (Period::ms(10), Period::secs(60), Period::secs(3_600));
    let day = Period::secs(86_400);
    for (key, period, least, most) in [
        ("connect_timeout", proxy.connect_timeout, least, minute),
        ("read_timeout", proxy.read_timeout, least, hour),
        ("write_timeout", proxy.write_timeout, least, hour),
        (
            "keepalive_timeout",
            proxy.keepalive_timeout,
            Period::secs(0),
            hour,
        ),
        (
            "websocket_idle_timeout",
            proxy.websocket_idle_timeout,
            Period::ms(100),
            day,
        ),
        (
            "websocket_lifetime_max",
            proxy.websocket_lifetime_max,
            Period::ms(100),
            Period::secs(604_800),
        ),
    ] {
        cx.period(&at.key(key), period, least, most);
    }
}

/// `None` where there is a problem; `Some(None)` where the path it is about could not be read.
fn rewrite(
    template: &str,
    matcher: Option<&Match>,
    path: &Path,
    cx: &mut Context,
) -> Option<Option<Rewrite>> {
    let Some(matcher) = matcher else {
        return Some(None);
    };
    match Rewrite::parse(template, &matcher.path) {
        Ok(rewrite) => Some(Some(rewrite)),
        Err(error) => {
            let hint = match &error {
                RewriteError::Start | RewriteError::Brace | RewriteError::Unknown(_) => {
                    "use {rest}, {path} and the {parameters} of match.path, as in /v2{rest}"
                }
                RewriteError::Hidden(_) => "rename the parameter in match.path",
                RewriteError::Query => "leave it out",
                RewriteError::Path(_) => "",
            };
            cx.problem(path, error, hint);
            None
        }
    }
}

fn balance(balance: &file::Balance, at: &Path, cx: &mut Context) -> Option<Balance> {
    match balance {
        file::Balance::RoundRobin => Some(Balance::RoundRobin),
        file::Balance::LeastConnections => Some(Balance::LeastConnections),
        file::Balance::HashAddress => Some(Balance::Hash(HashOn::Address)),
        file::Balance::HashHeader(text) => {
            let name = HeaderName::from_bytes(text.as_bytes());
            if name.is_err() {
                let message = format!("'{}' is not a header name", shown(text));
                cx.problem(
                    &at.key("hash_header"),
                    message,
                    "use letters, digits and '-'",
                );
            }
            name.ok().map(|name| Balance::Hash(HashOn::Header(name)))
        }
        file::Balance::HashCookie(name) => {
            let is_name = HeaderName::from_bytes(name.as_bytes()).is_ok();
            if !is_name || name.len() > NAME_BYTES_MAX {
                let message = format!("'{}' is not a cookie's name", shown(name));
                cx.problem(
                    &at.key("hash_cookie"),
                    message,
                    "use letters, digits, '-' and '_'",
                );
                return None;
            }
            Some(Balance::Hash(HashOn::Cookie(name.clone())))
        }
    }
}

fn tls(proxy: &file::Proxy, at: &Path, cx: &mut Context) -> Option<upstream::Tls> {
    let tls = &proxy.tls;
    let mut file = |key: &str, text: &Option<String>| -> Option<Option<PathBuf>> {
        match text.as_deref() {
            None => Some(None),
            some => server::file_path(some, &at.key(key), cx).map(Some),
        }
    };
    let ca = file("ca", &tls.ca);
    let cert = file("client_cert", &tls.client_cert);
    let key = file("client_key", &tls.client_key);
    let (ca, cert, key) = (ca?, cert?, key?);
    let client = match (cert, key) {
        (Some(cert), Some(key)) => Some(upstream::ClientFiles { cert, key }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            cx.problem(at, "needs both client_cert and client_key, or none", "");
            return None;
        }
    };
    if let Some(name) = &tls.server_name {
        let is_name = rustls::pki_types::ServerName::try_from(name.as_str()).is_ok();
        if !is_name {
            let message = format!("'{}' is not a host's name or address", shown(name));
            cx.problem(&at.key("server_name"), message, "use app.internal");
            return None;
        }
    }
    if tls.insecure && tls.ca.is_some() {
        cx.problem(
            &at.key("insecure"),
            "believes everyone, whatever tls.ca says",
            "remove one of them",
        );
    } else if tls.insecure {
        cx.warning(
            &at.key("insecure"),
            "anyone between the gateway and the upstream can read and change what passes",
            "set tls.ca to the upstream's authority",
        );
    }
    Some(upstream::Tls {
        ca,
        client,
        server_name: tls.server_name.clone(),
        insecure: tls.insecure,
    })
}

fn capacity(capacity: &file::Capacity, at: &Path, cx: &mut Context) -> upstream::Capacity {
    if let Some(max) = capacity.requests_max {
        cx.count(&at.key("requests_max"), max, 1, 1_000_000);
    }
    cx.count(&at.key("pending_max"), capacity.pending_max, 0, 100_000);
    cx.period(
        &at.key("pending_timeout"),
        capacity.pending_timeout,
        Period::ms(10),
        Period::secs(60),
    );
    upstream::Capacity {
        requests_max: capacity.requests_max,
        pending_max: capacity.pending_max,
        pending_timeout: capacity.pending_timeout.0,
    }
}

fn retries(retries: &file::Retries, at: &Path, cx: &mut Context) -> Option<upstream::Retries> {
    cx.count(
        &at.key("tries_max"),
        retries.tries_max,
        1,
        upstream::TRIES_MAX,
    );
    cx.count(&at.key("budget_percent"), retries.budget_percent, 0, 100);
    cx.count(
        &at.key("budget_per_second"),
        retries.budget_per_second,
        0,
        1_000,
    );
    Some(upstream::Retries {
        tries_max: retries.tries_max,
        statuses: statuses(&retries.statuses, &at.key("statuses"), cx)?,
        budget_percent: retries.budget_percent,
        budget_per_second: retries.budget_per_second,
    })
}

/// Statuses of failures: others are answers that a client is owed.
fn statuses(statuses: &[u16], path: &Path, cx: &mut Context) -> Option<Vec<u16>> {
    if statuses.len() > STATUSES_MAX {
        cx.problem(
            path,
            format_args!("has more than {STATUSES_MAX} statuses"),
            "",
        );
        return None;
    }
    for (index, status) in statuses.iter().enumerate() {
        if !matches!(status, 408 | 425 | 429 | 500..=599) {
            cx.problem(
                &path.index(index),
                format_args!("{status} is not the status of a failure"),
                "use 500 to 599, 408, 425 or 429",
            );
            return None;
        }
    }
    Some(statuses.to_vec())
}

fn ejection(ejection: &file::Ejection, at: &Path, cx: &mut Context) -> Option<upstream::Ejection> {
    cx.count(&at.key("failures"), ejection.failures, 1, 1_000);
    cx.count(&at.key("percent_max"), ejection.percent_max, 0, 100);
    let day = Period::secs(86_400);
    cx.period(
        &at.key("time"),
        ejection.time,
        Period::ms(100),
        Period::secs(3_600),
    );
    cx.period(&at.key("time_max"), ejection.time_max, Period::ms(100), day);
    if ejection.time_max < ejection.time {
        cx.missing(
            &at.key("time_max"),
            "is shorter than ejection.time",
            "raise it",
        );
    }
    Some(upstream::Ejection {
        failures: ejection.failures,
        statuses: statuses(&ejection.statuses, &at.key("statuses"), cx)?,
        time: ejection.time.0,
        time_max: ejection.time_max.0,
        percent_max: ejection.percent_max,
    })
}

fn health_check(
    check: &file::HealthCheck,
    at: &Path,
    cx: &mut Context,
) -> Option<upstream::HealthCheck> {
    cx.period(
        &at.key("interval"),
        check.interval,
        Period::ms(100),
        Period::secs(3_600),
    );
    cx.period(
        &at.key("timeout"),
        check.timeout,
        Period::ms(10),
        Period::secs(60),
    );
    cx.count(&at.key("healthy_after"), check.healthy_after, 1, 100);
    cx.count(&at.key("unhealthy_after"), check.unhealthy_after, 1, 100);
    cx.count(&at.key("status"), u32::from(check.status), 200, 599);
    let probe = match &check.path {
        None if check.host.is_some() => {
            cx.missing(
                &at.key("host"),
                "is sent with a request, and without a path there is none",
                "add path",
            );
            return None;
        }
        None => Probe::Tcp,
        Some(path) => {
            let before_query = path.split('?').next().unwrap_or_default();
            let is_path = normalize(before_query).is_ok()
                && path.parse::<http::uri::PathAndQuery>().is_ok()
                && path.len() <= 1024;
            if !is_path {
                let message = format!("'{}' is not a path", shown(path));
                cx.problem(&at.key("path"), message, "use /healthz");
                return None;
            }
            let is_host = |host: &String| host.parse::<http::uri::Authority>().is_ok();
            if check.host.as_ref().is_some_and(|host| !is_host(host)) {
                cx.problem(&at.key("host"), "is not a host", "use app.internal");
                return None;
            }
            Probe::Http {
                path: path.clone(),
                host: check.host.clone(),
                status: check.status,
            }
        }
    };
    Some(upstream::HealthCheck {
        probe,
        interval: check.interval.0,
        timeout: check.timeout.0,
        healthy_after: check.healthy_after,
        unhealthy_after: check.unhealthy_after,
    })
}
