//! `explain`: which route a request would take, why no other, and what applies to it. Starts nothing
//! and opens nothing but the configuration file.

use std::fmt::Write as _;
use std::io::Write;
use std::net::IpAddr;

use anyhow::{Context, bail};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::{Value, json};

use crate::auth::Role;
use crate::config::Config;
use crate::gateway::Settings;
use crate::limits;
use crate::route::{
    self, Asked, Auth, Candidate, CertificateRule, Cors, Found, HeaderEdits, ModuleSource, Origins,
    Route, Table, Target,
};

/// Say which route a request would take, and why no other
///
/// Exits with 0 when a route, or the gateway itself, would answer, and with 1 when none would.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// GET, POST and so on
    method: String,

    /// `https://example.com/path`, or only `/path` for a host that no route names
    url: String,

    /// A header of the request, as `Name: value`; may be repeated
    #[arg(long, short = 'H', value_name = "NAME: VALUE")]
    header: Vec<String>,

    /// The client's address
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, config: &Config, out: &mut dyn Write) -> anyhow::Result<i32> {
    let request = Request::read(args)?;
    let table = Table::build(config.routes.clone())
        .map_err(|errors| anyhow::anyhow!("the routes are not valid: {}", errors[0]))?;
    let (answered, report) = explain(&request, config, &table);
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(out, "{}", text(&report))?;
    }
    Ok(i32::from(!answered))
}

/// The request that is asked about.
struct Request {
    method: Method,
    host: String,
    path: String,
    headers: HeaderMap,
    address: Option<IpAddr>,
}

impl Request {
    fn read(args: &Args) -> anyhow::Result<Request> {
        let method = Method::from_bytes(args.method.as_bytes()).context("this is no method")?;
        let uri: Uri = args.url.parse().context("this is no URL")?;
        let host = uri.authority().map_or("", |authority| authority.as_str());
        if uri.path().is_empty() || (host.is_empty() && !args.url.starts_with('/')) {
            bail!("name a URL such as https://example.com/path, or a path such as /path");
        }
        let mut headers = HeaderMap::new();
        for line in &args.header {
            let parts = line.split_once(':');
            let (name, value) = parts.with_context(|| format!("-H '{line}': write Name: value"))?;
            let name = HeaderName::from_bytes(name.trim().as_bytes())
                .with_context(|| format!("-H '{line}': this is no header's name"))?;
            let value = HeaderValue::from_str(value.trim())
                .with_context(|| format!("-H '{line}': this is no header's value"))?;
            headers.append(name, value);
        }
        Ok(Request {
            method,
            host: host.to_owned(),
            path: uri.path().to_owned(),
            headers,
            address: args.address,
        })
    }
}

/// Whether anything answers, and all there is to say.
fn explain(request: &Request, config: &Config, table: &Table) -> (bool, Value) {
    let mut report = json!({
        "request": { "method": request.method.as_str(), "host": request.host, "path": request.path },
    });
    if let Some(address) = request.address {
        report["client"] = client(address, &config.gateway);
    }
    if matches!(request.method, Method::TRACE | Method::CONNECT) {
        report["outcome"] = json!("405, before any route: the method is refused everywhere");
        return (false, report);
    }
    let path = match route::normalize(&request.path) {
        Ok(path) => path,
        Err(error) => {
            report["outcome"] = json!(format!("400, before any route: {error}"));
            return (false, report);
        }
    };
    if let Some(owner) = own(path.decoded(), config) {
        report["outcome"] = json!(format!("answered by the gateway itself: {owner}"));
        return (true, report);
    }
    let found = table.find(&request.host, &path, &request.method, &request.headers);
    let candidates = table.explain(Asked {
        host: &request.host,
        path: &path,
        method: &request.method,
        headers: &request.headers,
    });
    let near = candidates
        .iter()
        .filter(|candidate| candidate.verdict.is_near());
    let near: Vec<Value> = near.map(|candidate| other(candidate, table)).collect();
    report["routes"] = json!({ "near": near, "in_all": candidates.len() });
    match found {
        Found::Route { route, params, .. } => {
            let is_refused = request.address.is_some() && !route.access.permits(request.address);
            report["outcome"] = json!(match is_refused {
                true => format!("403: the route `{}` is not for this address", route.name),
                false => format!("the route `{}`", route.name),
            });
            report["route"] = details(route, &params, config);
            (!is_refused, report)
        }
        Found::MethodNotAllowed { allow } => {
            let allow: Vec<&str> = allow.iter().map(Method::as_str).collect();
            let allow = allow.join(", ");
            if request.method == Method::OPTIONS {
                report["outcome"] = json!(format!("204 with Allow: {allow}, OPTIONS"));
                return (true, report);
            }
            report["outcome"] = json!(format!("405: routes are there for {allow} only"));
            (false, report)
        }
        Found::NotFound => {
            report["outcome"] = json!("404: no route matches");
            (false, report)
        }
    }
}

/// What belongs to the gateway and comes before all routes.
fn own(path: &str, config: &Config) -> Option<&'static str> {
    match path {
        "/health" | "/health/live" | "/health/ready" | "/healthz" | "/readyz" => Some("health"),
        "/api" => Some("the API"),
        path if path.starts_with("/api/") => Some("the API"),
        path if config.gateway.public_metrics_path.as_deref() == Some(path) => {
            Some("the metrics page")
        }
        _ => None,
    }
}

fn client(address: IpAddr, settings: &Settings) -> Value {
    let trusted = settings.trusted_proxies.iter();
    let trusted = trusted.clone().any(|network| network.contains(address));
    json!({
        "address": address,
        "trusted_proxy": trusted,
        "counted_as": limits::subscriber(address),
    })
}

fn other(candidate: &Candidate, table: &Table) -> Value {
    let route = table.routes().get(candidate.index as usize);
    json!({
        "name": route.map(|route| route.name.as_str()),
        "path": route.map(|route| route.matcher.path.to_string()),
        "verdict": candidate.verdict.to_string(),
    })
}

fn details(route: &Route, params: &[(String, String)], config: &Config) -> Value {
    let matcher = &route.matcher;
    let list = |items: Vec<String>, none: &str| {
        if items.is_empty() {
            none.to_owned()
        } else {
            items.join(", ")
        }
    };
    let hosts = matcher.hosts.iter().map(ToString::to_string).collect();
    let methods = matcher.methods.iter().map(ToString::to_string).collect();
    let headers = matcher.headers.iter().map(|(name, value)| match value {
        Some(value) => format!("{name}: {value}"),
        None => format!("{name}: anything"),
    });
    let params: serde_json::Map<String, Value> = params
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    json!({
        "name": route.name,
        "match": {
            "hosts": list(hosts, "any"),
            "path": matcher.path.to_string(),
            "methods": list(methods, "any"),
            "headers": list(headers.collect(), "none asked for"),
        },
        "parameters": params,
        "allow": list(route.access.allow.iter().map(ToString::to_string).collect(), "any address"),
        "deny": list(route.access.deny.iter().map(ToString::to_string).collect(), "none"),
        "auth": match &route.auth {
            Auth::Certificate(rule) => certificates(rule),
            Auth::None => "anyone".to_owned(),
            Auth::Key => "an API key with the scope execute".to_owned(),
            Auth::Role(role) => {
                let name = format!("{role:?}").to_lowercase();
                let scopes = if *role > Role::User {
                    "scopes execute and admin"
                } else {
                    "scope execute"
                };
                format!("an API key with the {scopes}, of a user with the role {name} or a higher one")
            }
        },
        "limits": limits_of(route, config),
        "target": target(&route.target),
        "request_headers": edits(&route.headers, true),
        "response_headers": edits(&route.headers, false),
        "cors": route.cors.as_ref().map_or("what the target says".to_owned(), cors),
        "compress": route.compress.unwrap_or(config.gateway.compression.enabled),
    })
}

fn certificates(rule: &CertificateRule) -> String {
    let subjects = rule.subjects.iter().map(ToString::to_string);
    let names = rule.names.iter().map(ToString::to_string);
    let some: Vec<String> = subjects.chain(names).collect();
    let of = match some.is_empty() {
        true => "of anyone".to_owned(),
        false => format!("of {}", some.join(" or ")),
    };
    let by = rule.ca.as_ref();
    let by = by.map_or(String::new(), |ca| {
        format!(", signed by an authority in {}", ca.display())
    });
    format!("a client certificate {of}{by}")
}

fn limits_of(route: &Route, config: &Config) -> Value {
    let (own, global) = (&route.limits, &config.gateway);
    let count =
        |count: Option<u32>| count.map_or("no limit of its own".to_owned(), |n| n.to_string());
    let mut limits = json!({
        "per_minute": count(own.rate.per_minute),
        "per_day": count(own.rate.per_day),
        "body_bytes_max": own.body_bytes_max.unwrap_or(global.body_bytes_max),
    });
    match &route.target {
        // What a caller without a key gets; a tier may give more.
        Target::Execute(_) => {
            let guest = own.guest(global.guest);
            limits["guest_ms"] = json!(guest.deadline.as_millis() as u64);
            limits["guest_memory_bytes_max"] = json!(guest.memory_bytes_max);
            limits["guest_stdout_bytes_max"] = json!(guest.stdout_bytes_max);
        }
        Target::Proxy(_) | Target::Redirect(_) | Target::Respond(_) => {}
    }
    limits
}

fn target(target: &Target) -> String {
    match target {
        Target::Execute(execute) => {
            let abi = format!("{:?}", execute.abi).to_lowercase();
            match &execute.module {
                ModuleSource::File(path) => format!("execute {} ({abi})", path.display()),
                ModuleSource::Stored(id) => format!("execute the stored module {id} ({abi})"),
            }
        }
        Target::Proxy(proxy) => {
            let servers = proxy.upstreams.servers.iter();
            let servers: Vec<String> = servers.map(|server| server.server.to_string()).collect();
            format!("proxy to {}", servers.join(", "))
        }
        Target::Redirect(redirect) => {
            format!(
                "redirect to {} ({})",
                redirect.location,
                redirect.status.as_u16()
            )
        }
        Target::Respond(respond) => {
            format!(
                "respond {} with {} bytes",
                respond.status.as_u16(),
                respond.body.len()
            )
        }
    }
}

/// The names alone: values may be secrets.
fn edits(edits: &HeaderEdits, request: bool) -> String {
    let (removed, set, added) = if request {
        (
            &edits.request_remove,
            &edits.request_set,
            &edits.request_add,
        )
    } else {
        (
            &edits.response_remove,
            &edits.response_set,
            &edits.response_add,
        )
    };
    let changes: Vec<String> = removed
        .iter()
        .map(|name| format!("remove {name}"))
        .chain(set.iter().map(|(name, _)| format!("set {name}")))
        .chain(added.iter().map(|(name, _)| format!("add {name}")))
        .collect();
    if changes.is_empty() {
        "as they are".to_owned()
    } else {
        changes.join(", ")
    }
}

fn cors(cors: &Cors) -> String {
    let origins = match &cors.origins {
        Origins::Any => "any origin".to_owned(),
        Origins::Listed(origins) => {
            let origins: Vec<String> = origins.iter().map(ToString::to_string).collect();
            origins.join(", ")
        }
    };
    let with = if cors.credentials {
        ", with credentials"
    } else {
        ""
    };
    format!("{origins}{with}")
}

/// The report for people: a line for each value, those in others indented.
fn text(report: &Value) -> String {
    let mut lines = String::new();
    let request = &report["request"];
    let asked = |key: &str| request[key].as_str().unwrap_or_default().to_owned();
    // Writing to a string does not fail.
    let _ = writeln!(
        lines,
        "{} {}{}",
        asked("method"),
        asked("host"),
        asked("path")
    );
    let _ = writeln!(lines, "→ {}", plain(&report["outcome"]));
    for (key, value) in report["route"].as_object().into_iter().flatten() {
        line(&mut lines, key, value);
    }
    if let Some(client) = report.get("client") {
        line(&mut lines, "client", client);
    }
    let near = report["routes"]["near"].as_array().into_iter().flatten();
    let others: Vec<&Value> = near.filter(|other| other["verdict"] != "wins").collect();
    if !others.is_empty() {
        let _ = writeln!(lines, "other routes for this host and path:");
    }
    for other in others {
        let (name, path) = (plain(&other["name"]), plain(&other["path"]));
        let _ = writeln!(lines, "  {name} ({path}): {}", plain(&other["verdict"]));
    }
    lines
}

fn line(lines: &mut String, key: &str, value: &Value) {
    let key = key.replace('_', " ");
    let shown = match value {
        Value::Object(map) if map.is_empty() => return,
        Value::Object(map) => {
            let parts = map
                .iter()
                .map(|(k, v)| format!("{} {}", k.replace('_', " "), plain(v)));
            parts.collect::<Vec<_>>().join("; ")
        }
        other => plain(other),
    };
    let _ = writeln!(lines, "  {key:<17} {shown}");
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
