//! Environment variables, put over the file.

mod collector;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};

use super::Environment;
use super::context::Context;
use super::file::{Certificate, File};
use super::problem::{Path, nearest, shown};
use super::secret::SECRET_BYTES_MAX;
use super::values::{Address, Period, Requests, Secret, Size};

/// A variable that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variable {
    pub name: &'static str,
    /// The key it overrides; empty where it overrides none.
    pub path: &'static str,
    /// Whether it may also be given as the name of a file, in `NAME_FILE`.
    pub secret: bool,
}

const fn variable(name: &'static str, path: &'static str) -> Variable {
    Variable {
        name,
        path,
        secret: false,
    }
}

const fn secret(name: &'static str, path: &'static str) -> Variable {
    Variable {
        name,
        path,
        secret: true,
    }
}

/// Every variable that is read.
pub const VARIABLES: [Variable; 37] = [
    variable("ENVIRONMENT", "environment"),
    secret("DATABASE_URL", "database.url"),
    secret("REDIS_URL", "limits.redis.url"),
    secret("API_SALT", "auth.salt"),
    secret("JWT_SECRET", "auth.tokens.secret"),
    secret("ARTIFACT_KEY", "sandbox.artifacts.key"),
    variable("SERVER_HOST", "server.https[0].address"),
    variable("SERVER_PORT", "server.https[0].address"),
    variable("TLS_CERT_PATH", "server.https[0].certificates"),
    variable("TLS_KEY_PATH", "server.https[0].certificates"),
    variable("LOG_LEVEL", "logging.level"),
    variable("MAX_WASM_SIZE", "sandbox.wasm_size_max"),
    variable("MAX_INPUT_SIZE", "sandbox.input_size_max"),
    variable("EXECUTION_TIMEOUT", "sandbox.execution_timeout"),
    variable("MEMORY_LIMIT", "sandbox.memory_max"),
    variable("PROMETHEUS_ENABLED", "metrics.enabled"),
    variable("METRICS_ENDPOINT", "metrics.path"),
    variable("BACKUP_STAMP", "metrics.backup_stamp"),
    variable("FREE_TIER_RATE_MINUTE", "tiers.free.per_minute"),
    variable("FREE_TIER_RATE_DAY", "tiers.free.per_day"),
    variable("BASIC_TIER_RATE_MINUTE", "tiers.basic.per_minute"),
    variable("BASIC_TIER_RATE_DAY", "tiers.basic.per_day"),
    variable("PRO_TIER_RATE_MINUTE", "tiers.pro.per_minute"),
    variable("PRO_TIER_RATE_DAY", "tiers.pro.per_day"),
    variable("ENTERPRISE_TIER_RATE_MINUTE", "tiers.enterprise.per_minute"),
    variable("ENTERPRISE_TIER_RATE_DAY", "tiers.enterprise.per_day"),
    variable("OTEL_EXPORTER_OTLP_ENDPOINT", "tracing.endpoint"),
    variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "tracing.endpoint"),
    variable("OTEL_EXPORTER_OTLP_CERTIFICATE", "tracing.ca"),
    variable("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "tracing.ca"),
    secret("OTEL_EXPORTER_OTLP_HEADERS", "tracing.headers"),
    secret("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "tracing.headers"),
    variable("OTEL_EXPORTER_OTLP_TIMEOUT", "tracing.timeout"),
    variable("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "tracing.timeout"),
    variable("OTEL_EXPORTER_OTLP_PROTOCOL", ""),
    variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", ""),
    variable("OTEL_SERVICE_NAME", "tracing.service_name"),
];

/// The variables of this process. What is not Unicode is read lossily, and refused where it is
/// parsed.
pub fn process_variables() -> BTreeMap<String, String> {
    std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .collect()
}

/// Puts the variables over the file. Those that can't be used are problems, by name.
pub fn apply(file: &mut File, variables: &BTreeMap<String, String>, cx: &mut Context) {
    let mut over = Over { variables, cx };
    over.set("ENVIRONMENT", &mut file.environment, environment);
    over.secrets(file);
    over.https(file);
    over.set("LOG_LEVEL", &mut file.logging.level, |text| {
        Ok(log_level(text))
    });
    let sandbox = &mut file.sandbox;
    over.set("MAX_WASM_SIZE", &mut sandbox.wasm_size_max, Size::parse);
    over.set("MAX_INPUT_SIZE", &mut sandbox.input_size_max, Size::parse);
    over.set(
        "EXECUTION_TIMEOUT",
        &mut sandbox.execution_timeout,
        Period::parse,
    );
    over.set("MEMORY_LIMIT", &mut sandbox.memory_max, Size::parse);
    over.set("PROMETHEUS_ENABLED", &mut file.metrics.enabled, switch);
    over.set("METRICS_ENDPOINT", &mut file.metrics.path, |text| {
        Ok(text.to_string())
    });
    over.set("BACKUP_STAMP", &mut file.metrics.backup_stamp, |text| {
        Ok(Some(text.to_string()))
    });
    over.collector(&mut file.tracing);
    let tiers = &mut file.tiers;
    over.set(
        "FREE_TIER_RATE_MINUTE",
        &mut tiers.free.per_minute,
        Requests::parse,
    );
    over.set(
        "FREE_TIER_RATE_DAY",
        &mut tiers.free.per_day,
        Requests::parse,
    );
    over.set(
        "BASIC_TIER_RATE_MINUTE",
        &mut tiers.basic.per_minute,
        Requests::parse,
    );
    over.set(
        "BASIC_TIER_RATE_DAY",
        &mut tiers.basic.per_day,
        Requests::parse,
    );
    over.set(
        "PRO_TIER_RATE_MINUTE",
        &mut tiers.pro.per_minute,
        Requests::parse,
    );
    over.set("PRO_TIER_RATE_DAY", &mut tiers.pro.per_day, Requests::parse);
    over.set(
        "ENTERPRISE_TIER_RATE_MINUTE",
        &mut tiers.enterprise.per_minute,
        Requests::parse,
    );
    over.set(
        "ENTERPRISE_TIER_RATE_DAY",
        &mut tiers.enterprise.per_day,
        Requests::parse,
    );
}

struct Over<'a> {
    variables: &'a BTreeMap<String, String>,
    cx: &'a mut Context,
}

impl<'a> Over<'a> {
    /// A variable's text; an empty one counts as unset.
    fn get(&self, name: &str) -> Option<&'a str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    }

    fn set<T>(
        &mut self,
        name: &'static str,
        target: &mut T,
        parse: impl Fn(&str) -> Result<T, String>,
    ) {
        let Some(text) = self.get(name) else {
            return;
        };
        match parse(text) {
            Ok(value) => {
                *target = value;
                self.overridden(name);
            }
            Err(message) => self.cx.variable_problem(name, message, ""),
        }
    }

    /// Notes whose value it is now, for problems with it.
    fn overridden(&mut self, name: &'static str) {
        if let Some(variable) = VARIABLES.iter().find(|variable| variable.name == name) {
            self.cx
                .source
                .overrides
                .push((Path::from(variable.path), name));
        }
    }

    fn secrets(&mut self, file: &mut File) {
        if let Some(url) = self.secret("DATABASE_URL", "DATABASE_URL_FILE") {
            file.database.url = Secret::new(url);
        }
        if let Some(salt) = self.secret("API_SALT", "API_SALT_FILE") {
            file.auth.salt = Some(Secret::new(salt));
        }
        if let Some(secret) = self.secret("JWT_SECRET", "JWT_SECRET_FILE") {
            file.auth.tokens.secret = Some(Secret::new(secret));
        }
        if let Some(key) = self.secret("ARTIFACT_KEY", "ARTIFACT_KEY_FILE") {
            file.sandbox.artifacts.key = Some(Secret::new(key));
        }
        if let Some(url) = self.secret("REDIS_URL", "REDIS_URL_FILE") {
            file.limits.redis.url = Some(Secret::new(url));
        }
    }

    /// A secret from its variable, or from the file that `NAME_FILE` names. Never echoed.
    fn secret(&mut self, name: &'static str, file_name: &'static str) -> Option<String> {
        let (text, path) = (self.get(name), self.get(file_name));
        if text.is_some() && path.is_some() {
            self.cx.variable_problem(
                file_name,
                format_args!("is set, and so is {name}"),
                "unset one of them",
            );
            return None;
        }
        let (text, origin) = match (text, path) {
            (Some(text), _) => (text.to_string(), name),
            (None, Some(path)) => match secret_file(path) {
                Ok(text) => (text, file_name),
                Err(message) => {
                    self.cx.variable_problem(file_name, message, "");
                    return None;
                }
            },
            (None, None) => return None,
        };
        let key = VARIABLES
            .iter()
            .find(|variable| variable.name == name)
            .map_or("", |variable| variable.path);
        self.cx.source.overrides.push((Path::from(key), origin));
        Some(text)
    }

    fn https(&mut self, file: &mut File) {
        const NAMES: [&str; 4] = [
            "SERVER_HOST",
            "SERVER_PORT",
            "TLS_CERT_PATH",
            "TLS_KEY_PATH",
        ];
        if file.server.https.is_empty() {
            for name in NAMES {
                if self.get(name).is_none() {
                    continue;
                }
                let hint = "unset it, or add a listener to server.https";
                self.cx.variable_problem(
                    name,
                    "there is no HTTPS listener that it could change",
                    hint,
                );
            }
            return;
        }
        if let Some(Address(address)) = file
            .server
            .https
            .first_mut()
            .and_then(|first| first.address.as_mut())
        {
            let mut ip = address.ip();
            self.set("SERVER_HOST", &mut ip, host);
            let mut port = address.port();
            self.set("SERVER_PORT", &mut port, |text| {
                text.parse()
                    .map_err(|_| "must be a port: a number from 0 to 65535".to_string())
            });
            *address = SocketAddr::new(ip, port);
        }
        self.certificates(file);
    }

    fn certificates(&mut self, file: &mut File) {
        match (self.get("TLS_CERT_PATH"), self.get("TLS_KEY_PATH")) {
            (Some(cert), Some(key)) => {
                for (index, https) in file.server.https.iter_mut().enumerate() {
                    let (cert, key) = (Some(cert.to_string()), Some(key.to_string()));
                    https.certificates = vec![Certificate {
                        cert,
                        key,
                        ocsp: None,
                        development: false,
                    }];
                    let path = Path::from("server.https").index(index).key("certificates");
                    self.cx
                        .source
                        .overrides
                        .push((path.clone(), "TLS_CERT_PATH"));
                    self.cx
                        .source
                        .overrides
                        .push((path.index(0).key("key"), "TLS_KEY_PATH"));
                }
            }
            (Some(_), None) => {
                self.cx.variable_problem(
                    "TLS_CERT_PATH",
                    "is set, but not TLS_KEY_PATH",
                    "set both or neither",
                );
            }
            (None, Some(_)) => {
                self.cx.variable_problem(
                    "TLS_KEY_PATH",
                    "is set, but not TLS_CERT_PATH",
                    "set both or neither",
                );
            }
            (None, None) => {}
        }
    }
}

fn secret_file(path: &str) -> Result<String, String> {
    let unread = |error: std::io::Error| format!("'{}' can't be read: {error}", shown(path));
    let file = std::fs::File::open(path).map_err(unread)?;
    let mut bytes = Vec::new();
    file.take(SECRET_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unread)?;
    if bytes.len() > SECRET_BYTES_MAX {
        return Err(format!(
            "'{}' has more than {SECRET_BYTES_MAX} bytes",
            shown(path)
        ));
    }
    let text =
        String::from_utf8(bytes).map_err(|_| format!("'{}' is not UTF-8 text", shown(path)))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(format!("'{}' is empty", shown(path)));
    }
    Ok(text.to_string())
}

fn environment(text: &str) -> Result<Environment, String> {
    match text {
        "development" => Ok(Environment::Development),
        "staging" => Ok(Environment::Staging),
        "production" => Ok(Environment::Production),
        other => {
            let known = ["development", "staging", "production"];
            let meant = nearest(other, known)
                .map_or(String::new(), |meant| format!("; did you mean '{meant}'?"));
            Err(format!(
                "must be development, staging or production, not '{}'{meant}",
                shown(other)
            ))
        }
    }
}

fn host(text: &str) -> Result<IpAddr, String> {
    let text = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    text.parse()
        .map_err(|_| "must be an IP address to listen on, such as 0.0.0.0 or ::".to_string())
}

/// `INFO` is common in environments; the filter's own levels are lower case.
fn log_level(text: &str) -> String {
    let is_word = text.chars().all(|c| c.is_ascii_alphabetic());
    if is_word {
        text.to_ascii_lowercase()
    } else {
        text.to_string()
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("must be true or false".to_string()),
    }
}
