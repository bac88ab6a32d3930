//! What may not go to production. Staging is held to the same, but may run on SQLite and a
//! development certificate with a warning.

use crate::config::Environment;
use crate::config::context::Context;
use crate::config::file::{Certificate, File, Serve};
use crate::config::problem::Path;
use crate::config::secret::{SALT_CHARS_MIN, salt_weakness};

/// How much a finding matters here.
#[derive(Clone, Copy)]
enum Gravity {
    Problem,
    Warning,
    Nothing,
}

const NEW_SALT: &str = "set API_SALT, or API_SALT_FILE, to the output of: openssl rand -hex 32";

const NEW_TOKEN_SECRET: &str = "set JWT_SECRET, or JWT_SECRET_FILE, to the output of: openssl rand -hex 32; or auth.tokens.enabled to false";

pub fn rules(file: &File, cx: &mut Context) {
    let (salt, rest) = match file.environment {
        Environment::Development => (Gravity::Warning, Gravity::Nothing),
        Environment::Staging => (Gravity::Problem, Gravity::Warning),
        Environment::Production => (Gravity::Problem, Gravity::Problem),
    };
    salt_rule(file, salt, cx);
    token_secret_rule(file, salt, cx);
    database_rule(file, rest, cx);
    certificate_rule(file, rest, cx);
    plain_http_rule(file, rest, cx);
    redis_rule(file, rest, cx);
}

fn name(environment: Environment) -> &'static str {
    match environment {
        Environment::Development => "development",
        Environment::Staging => "staging",
        Environment::Production => "production",
    }
}

fn report(gravity: Gravity, path: &Path, message: &str, hint: &str, cx: &mut Context) {
    match gravity {
        Gravity::Problem => cx.missing(path, message, hint),
        Gravity::Warning => cx.warning(path, message, hint),
        Gravity::Nothing => {}
    }
}

fn salt_rule(file: &File, gravity: Gravity, cx: &mut Context) {
    let path = Path::from("auth.salt");
    match &file.auth.salt {
        None => {
            if !matches!(file.environment, Environment::Development) {
                let message = format!("is required in {}", name(file.environment));
                report(gravity, &path, &message, NEW_SALT, cx);
            }
        }
        Some(salt) => {
            // One that is too short is refused everywhere.
            let is_long_enough = salt.reveal().chars().count() >= SALT_CHARS_MIN;
            if let (true, Some(weakness)) = (is_long_enough, salt_weakness(salt.reveal())) {
                report(gravity, &path, weakness, NEW_SALT, cx);
            }
        }
    }
}

fn token_secret_rule(file: &File, gravity: Gravity, cx: &mut Context) {
    let path = Path::from("auth.tokens.secret");
    let tokens = &file.auth.tokens;
    match &tokens.secret {
        _ if !tokens.enabled => {}
        None => {
            if !matches!(file.environment, Environment::Development) {
                let message = format!("is required in {}", name(file.environment));
                report(gravity, &path, &message, NEW_TOKEN_SECRET, cx);
            }
        }
        Some(secret) => {
            // Those that are too short are refused everywhere.
            let weakness = secret
                .reveal()
                .lines()
                .map(str::trim)
                .filter(|line| line.chars().count() >= SALT_CHARS_MIN)
                .find_map(salt_weakness);
            if let Some(weakness) = weakness {
                report(gravity, &path, weakness, NEW_TOKEN_SECRET, cx);
            }
        }
    }
}

fn database_rule(file: &File, gravity: Gravity, cx: &mut Context) {
    if file.database.url.reveal().starts_with("sqlite:") {
        let message = format!("SQLite is not for {}", name(file.environment));
        let hint = "set DATABASE_URL, or DATABASE_URL_FILE, to postgres://user:password@host/name";
        report(gravity, &Path::from("database.url"), &message, hint, cx);
    }
}

fn certificate_rule(file: &File, gravity: Gravity, cx: &mut Context) {
    for (index, https) in file.server.https.iter().enumerate() {
        let path = Path::from("server.https").index(index).key("certificates");
        for (number, certificate) in https.certificates.iter().enumerate() {
            if is_development(certificate) {
                let message = format!(
                    "a development certificate is not for {}",
                    name(file.environment)
                );
                let hint = "set TLS_CERT_PATH and TLS_KEY_PATH to a certificate that clients trust";
                report(gravity, &path.index(number), &message, hint, cx);
            }
        }
    }
}

/// Marked as one, or one that was made here and whose mark was dropped when it was copied.
fn is_development(certificate: &Certificate) -> bool {
    let named = certificate
        .cert
        .as_deref()
        .is_some_and(|path| path.ends_with("development.crt"));
    certificate.development || named
}

/// A password that travels in the clear; in a network of one's own that may be meant.
fn redis_rule(file: &File, gravity: Gravity, cx: &mut Context) {
    let Some(url) = &file.limits.redis.url else {
        return;
    };
    let is_plain = url.reveal().starts_with("redis://") && url.reveal().contains('@');
    if matches!(gravity, Gravity::Warning | Gravity::Problem) && is_plain {
        let path = Path::from("limits.redis.url");
        let hint = "use rediss://, or trust this network";
        cx.warning(&path, "the password travels without encryption", hint);
    }
}

/// Keys that travel in the clear; behind another proxy that may be meant.
fn plain_http_rule(file: &File, gravity: Gravity, cx: &mut Context) {
    for (index, http) in file.server.http.iter().enumerate() {
        let is_local = http
            .address
            .is_some_and(|address| address.0.ip().is_loopback());
        if matches!(
            (http.serve, gravity),
            (Serve::Routes, Gravity::Warning | Gravity::Problem)
        ) && !is_local
        {
            let path = Path::from("server.http").index(index).key("serve");
            cx.warning(
                &path,
                "API keys travel without encryption here",
                "use 'redirect', or trust this network",
            );
        }
    }
}
