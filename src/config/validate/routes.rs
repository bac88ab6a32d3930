//! Routes.

use std::collections::{HashMap, HashSet};

use http::{HeaderName, Method};

use super::{DEADLINE, MEMORY, RATE, STDOUT, guests, headers, targets};
use crate::config::context::Context;
use crate::config::file::{self, File, RouteAuth};
use crate::config::problem::{Path, shown};
use crate::config::values::{Period, Size};
use crate::limits::{Rate, Tiers};
use crate::route::{Auth, HostPattern, Limits, Match, PathPattern, Route, Segment};

const ROUTES_MAX: usize = 4_096;
const HOSTS_MAX: usize = 64;

/// Paths that the gateway answers itself. Where `true`, with everything below.
const RESERVED: [(&[&str], bool, &str); 6] = [
    (&["api"], true, "/api/*"),
    (&["health"], true, "/health*"),
    (&["healthz"], false, "/healthz"),
    (&["readyz"], false, "/readyz"),
    (
        &[".well-known", "acme-challenge"],
        true,
        "/.well-known/acme-challenge/*",
    ),
    (
        &[".well-known", "jwks.json"],
        false,
        "/.well-known/jwks.json",
    ),
];

/// The largest that any caller can have.
struct Ceilings {
    memory: Size,
    deadline: Period,
    stdout: Size,
}

pub fn routes(file: &File, tiers: &Tiers, cx: &mut Context) -> Option<Vec<Route>> {
    let at = Path::from("routes");
    if file.routes.len() > ROUTES_MAX {
        cx.problem(
            &at,
            format_args!("there are more than {ROUTES_MAX} routes"),
            "use prefixes and parameters",
        );
        return None;
    }
    let mut names = HashMap::new();
    let mut parsed = Vec::with_capacity(file.routes.len());
    for (index, route) in file.routes.iter().enumerate() {
        let path = at.index(index);
        unique_name(route, index, &mut names, &path, cx);
        parsed.extend(self::route(route, &path, file, tiers, cx));
    }
    (parsed.len() == file.routes.len()).then_some(parsed)
}

fn unique_name<'f>(
    route: &'f file::Route,
    index: usize,
    names: &mut HashMap<&'f str, usize>,
    at: &Path,
    cx: &mut Context,
) {
    if let Some(name) = &route.name
        && let Some(first) = names.insert(name, index)
    {
        let message = format!("'{}' is the name of routes[{first}] too", shown(name));
        cx.problem(
            &at.key("name"),
            message,
            "give each route a name of its own",
        );
    }
}

fn route(
    route: &file::Route,
    at: &Path,
    file: &File,
    tiers: &Tiers,
    cx: &mut Context,
) -> Option<Route> {
    let name = name(route.name.as_deref(), &at.key("name"), cx);
    let matcher = matcher(route.matcher.as_ref(), &at.key("match"), file, cx);
    let auth = auth(&route.auth, &at.key("auth"), file, cx);
    let access = super::server::access(&route.allow, &route.deny, at, cx);
    let limits = limits(route, at, file, tiers, cx);
    let headers = headers::route(route, &at.key("headers"), cx);
    let cors = route.cors.as_ref();
    let cors = cors.map(|cors| super::cors::cors(cors, matcher.as_ref(), &at.key("cors"), cx));
    let target = targets::target(route, matcher.as_ref(), at, cx);
    Some(Route {
        name: name?,
        matcher: matcher?,
        access: access?,
        auth: auth?,
        limits,
        headers: headers?,
        cors: match cors {
            Some(cors) => Some(cors?),
            None => None,
        },
        compress: route.compress,
        target: target?,
    })
}

fn auth(auth: &RouteAuth, at: &Path, file: &File, cx: &mut Context) -> Option<Auth> {
    Some(match auth {
        RouteAuth::None => Auth::None,
        RouteAuth::Key => Auth::Key,
        RouteAuth::Role(role) => Auth::Role(*role),
        RouteAuth::Certificate {
            ca,
            subjects,
            names,
        } => {
            let given = super::certificate::Given {
                ca: ca.as_deref(),
                subjects,
                names,
            };
            let rule = super::certificate::rule(&given, &at.key("certificate"), file, cx);
            Auth::Certificate(Box::new(rule?))
        }
    })
}

fn name(name: Option<&str>, path: &Path, cx: &mut Context) -> Option<String> {
    const CHARS_MAX: usize = 64;
    let Some(name) = name else {
        cx.missing(
            path,
            "is required",
            "a route's name stands in logs and metrics",
        );
        return None;
    };
    let is_plain = name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if name.is_empty() || name.len() > CHARS_MAX || !is_plain {
        let message = format!("'{}' can't be a name", shown(name));
        cx.problem(
            path,
            message,
            "use 1 to 64 letters, digits, '.', '_' and '-'",
        );
        return None;
    }
    Some(name.to_string())
}

fn matcher(
    matcher: Option<&file::RouteMatch>,
    at: &Path,
    file: &File,
    cx: &mut Context,
) -> Option<Match> {
    let Some(matcher) = matcher else {
        cx.missing(&at.key("path"), "is required", "add match: { path: /… }");
        return None;
    };
    let hosts = hosts(&matcher.hosts, &at.key("hosts"), cx);
    let path = path_pattern(matcher.path.as_deref(), &at.key("path"), file, cx);
    let methods = methods(&matcher.methods, &at.key("methods"), cx);
    let headers = match_headers(matcher, &at.key("headers"), cx);
    Some(Match {
        hosts: hosts?,
        path: path?,
        methods: methods?,
        headers: headers?,
    })
}

fn hosts(hosts: &[String], at: &Path, cx: &mut Context) -> Option<Vec<HostPattern>> {
    if hosts.len() > HOSTS_MAX {
        cx.problem(at, format_args!("has more than {HOSTS_MAX} hosts"), "");
        return None;
    }
    let mut parsed: Vec<HostPattern> = Vec::with_capacity(hosts.len());
    for (index, text) in hosts.iter().enumerate() {
        match HostPattern::parse(text) {
            Ok(host) if parsed.contains(&host) => {
                cx.problem(
                    &at.index(index),
                    format_args!("'{}' is given twice", shown(text)),
                    "remove it",
                );
            }
            Ok(host) => parsed.push(host),
            Err(error) => {
                cx.problem(
                    &at.index(index),
                    error,
                    "use example.com or *.example.com, without a port",
                );
            }
        }
    }
    (parsed.len() == hosts.len()).then_some(parsed)
}

fn path_pattern(
    text: Option<&str>,
    path: &Path,
    file: &File,
    cx: &mut Context,
) -> Option<PathPattern> {
    let Some(text) = text else {
        cx.missing(path, "is required", "use /exact, /prefix/* or /a/{id}");
        return None;
    };
    match PathPattern::parse(text) {
        Ok(pattern) => {
            let metrics = PathPattern::parse(&file.metrics.path)
                .ok()
                .filter(|_| file.metrics.enabled);
            if let Some(reserved) = reserved(&pattern) {
                cx.problem(
                    path,
                    format_args!("{reserved} belongs to the gateway"),
                    "choose another path",
                );
            } else if metrics.is_some_and(|metrics| metrics == pattern) {
                cx.problem(
                    path,
                    "is the path of the metrics page",
                    "choose another path, or another metrics.path",
                );
            }
            Some(pattern)
        }
        Err(error) => {
            cx.problem(path, error, "use /exact, /prefix/* or /a/{id}");
            None
        }
    }
}

/// The reserved path that this one lies in, if any. One that merely covers it, such as `/*`, is
/// fine: the gateway comes first.
pub fn reserved(pattern: &PathPattern) -> Option<&'static str> {
    let literals = |count: usize| {
        pattern
            .segments
            .iter()
            .take(count)
            .map(|segment| match segment {
                Segment::Literal(text) => Some(text.as_str()),
                Segment::Param(_) => None,
            })
    };
    RESERVED
        .iter()
        .find(|(reserved, below, _)| {
            let is_long_enough = if *below {
                pattern.segments.len() >= reserved.len()
            } else {
                pattern.segments.len() == reserved.len()
            };
            is_long_enough && literals(reserved.len()).eq(reserved.iter().copied().map(Some))
        })
        .map(|(_, _, name)| *name)
}

pub fn methods(methods: &[file::Method], at: &Path, cx: &mut Context) -> Option<Vec<Method>> {
    let mut parsed = Vec::with_capacity(methods.len());
    for (index, method) in methods.iter().enumerate() {
        let method = match method {
            file::Method::Get => Method::GET,
            file::Method::Head => Method::HEAD,
            file::Method::Post => Method::POST,
            file::Method::Put => Method::PUT,
            file::Method::Patch => Method::PATCH,
            file::Method::Delete => Method::DELETE,
            file::Method::Options => Method::OPTIONS,
        };
        if parsed.contains(&method) {
            cx.problem(
                &at.index(index),
                format_args!("{method} is given twice"),
                "remove it",
            );
        } else {
            parsed.push(method);
        }
    }
    (parsed.len() == methods.len()).then_some(parsed)
}

fn match_headers(
    matcher: &file::RouteMatch,
    at: &Path,
    cx: &mut Context,
) -> Option<Vec<(HeaderName, Option<String>)>> {
    let mut seen = HashSet::new();
    let mut parsed = Vec::with_capacity(matcher.headers.len());
    for (text, wanted) in &matcher.headers {
        let path = at.key(text);
        let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
            let message = format!("'{}' is not a header name", shown(text));
            cx.problem(&path, message, "use letters, digits and '-'");
            continue;
        };
        let Some(_valid) = headers::value(wanted, &path, cx) else {
            continue;
        };
        if seen.insert(name.clone()) {
            parsed.push((name, (wanted != "*").then(|| wanted.clone())));
        } else {
            cx.problem(
                &path,
                "is given twice: a header's name has no case",
                "remove one of them",
            );
        }
    }
    (parsed.len() == matcher.headers.len()).then_some(parsed)
}

fn limits(route: &file::Route, at: &Path, file: &File, tiers: &Tiers, cx: &mut Context) -> Limits {
    let (limits, at) = (&route.limits, at.key("limits"));
    for (key, count) in [
        ("per_minute", limits.per_minute),
        ("per_day", limits.per_day),
    ] {
        if let Some(count) = count {
            cx.count(&at.key(key), count, RATE.0, RATE.1);
        }
    }
    let rate = Rate {
        per_minute: limits.per_minute,
        per_day: limits.per_day,
    };
    guests::rate_order(rate, &at, cx);
    if let Some(size) = limits.body_size_max {
        cx.size(&at.key("body_size_max"), size, Size(0), Size::gib(1));
    }
    if let Some(period) = limits.body_timeout {
        let path = at.key("body_timeout");
        cx.period(&path, period, Period::ms(100), Period::secs(7 * 86_400));
    }
    if route.execute.is_some() {
        guest_limits(route, &at, file, tiers, cx);
    } else {
        let guest_keys = [
            ("memory_max", limits.memory_max.is_some()),
            ("execution_timeout", limits.execution_timeout.is_some()),
            ("stdout_max", limits.stdout_max.is_some()),
        ];
        for (key, _) in guest_keys.into_iter().filter(|(_, is_set)| *is_set) {
            cx.missing(
                &at.key(key),
                "only limits a guest, and this route runs none",
                "remove it",
            );
        }
    }
    Limits {
        rate,
        body_bytes_max: limits.body_size_max.map(|size| size.0),
        body_timeout: limits.body_timeout.map(|period| period.0),
        memory_bytes_max: limits.memory_max.map(|size| size.0),
        deadline: limits.execution_timeout.map(|period| period.0),
        stdout_bytes_max: limits.stdout_max.map(|size| size.0),
        on_redis_loss: limits.on_redis_loss.unwrap_or(file.limits.redis.on_loss),
    }
}

/// A route's limits tighten what the caller has; one that nobody can reach is a mistake.
fn guest_limits(route: &file::Route, at: &Path, file: &File, tiers: &Tiers, cx: &mut Context) {
    let limits = &route.limits;
    let ceilings = ceilings(&route.auth, file, tiers);
    if let Some(size) = limits.memory_max {
        let path = at.key("memory_max");
        cx.size(&path, size, MEMORY.0, MEMORY.1);
        at_most(&path, &size, &ceilings.memory, cx);
    }
    if let Some(period) = limits.execution_timeout {
        let path = at.key("execution_timeout");
        cx.period(&path, period, DEADLINE.0, DEADLINE.1);
        at_most(&path, &period, &ceilings.deadline, cx);
    }
    if let Some(size) = limits.stdout_max {
        let path = at.key("stdout_max");
        cx.size(&path, size, STDOUT.0, STDOUT.1);
        at_most(&path, &size, &ceilings.stdout, cx);
    }
}

fn ceilings(auth: &RouteAuth, file: &File, tiers: &Tiers) -> Ceilings {
    let mut ceilings = Ceilings {
        memory: file.sandbox.memory_max,
        deadline: file.sandbox.execution_timeout,
        stdout: file.sandbox.stdout_max,
    };
    match auth {
        RouteAuth::None | RouteAuth::Certificate { .. } => {}
        RouteAuth::Key | RouteAuth::Role(_) => {
            for tier in [&tiers.free, &tiers.basic, &tiers.pro, &tiers.enterprise] {
                ceilings.memory = ceilings.memory.max(Size(tier.memory_bytes_max));
                ceilings.deadline = ceilings.deadline.max(Period(tier.deadline));
                ceilings.stdout.0 = ceilings.stdout.0.max(tier.stdout_bytes_max.unwrap_or(0));
            }
        }
    }
    ceilings
}

fn at_most<T: PartialOrd + std::fmt::Display>(
    path: &Path,
    value: &T,
    ceiling: &T,
    cx: &mut Context,
) {
    if value > ceiling {
        let message = format!("no caller of this route gets more than {ceiling}");
        cx.missing(
            path,
            message,
            "lower it, or raise the limits in 'sandbox' or 'tiers'",
        );
    }
}
