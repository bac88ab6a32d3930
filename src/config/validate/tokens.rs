//! Access and refresh tokens.

use crate::auth::{ACCESS_TTL_MAX, TOKEN_SECRETS_MAX, TokenSecret};
use crate::config::context::Context;
use crate::config::file::{self, File};
use crate::config::problem::Path;
use crate::config::secret::{SALT_CHARS_MIN, SECRET_BYTES_MAX, TokenSecretSource};
use crate::config::values::Period;
use crate::config::{Environment, Tokens, development_token_secret};

/// Longest issuer or audience, in bytes: they are in every token.
const NAME_BYTES_MAX: usize = 255;

/// Longest life of what can be refreshed.
const TTL_MAX: Period = Period::secs(366 * 86_400);

const NEW_SECRET: &str =
    "set JWT_SECRET, or JWT_SECRET_FILE, to the output of: openssl rand -hex 32";

/// The settings, `Some(None)` where there are to be no tokens, or `None` with a problem noted.
pub fn tokens(file: &File, cx: &mut Context) -> Option<Option<Tokens>> {
    let (at, tokens) = (Path::from("auth.tokens"), &file.auth.tokens);
    let are_named = [
        name(&tokens.issuer, &at.key("issuer"), cx),
        name(&tokens.audience, &at.key("audience"), cx),
    ];
    lives(tokens, &at, cx);
    if !tokens.enabled {
        return are_named.iter().all(|is_named| *is_named).then_some(None);
    }
    let secrets = secrets(file, &at.key("secret"), cx)?;
    are_named.iter().all(|is_named| *is_named).then(|| {
        Some(Tokens {
            secrets,
            issuer: tokens.issuer.clone(),
            audience: tokens.audience.clone(),
            access_ttl: tokens.access_ttl.0,
            refresh_ttl: tokens.refresh_ttl.0,
            session_ttl: tokens.session_ttl.0,
        })
    })
}

/// Each in its range, and at least as long as the one before.
fn lives(tokens: &file::Tokens, at: &Path, cx: &mut Context) {
    let shortest = Period::secs(1);
    let access_max = Period(ACCESS_TTL_MAX);
    cx.period(
        &at.key("access_ttl"),
        tokens.access_ttl,
        shortest,
        access_max,
    );
    for (name, life, other, least) in [
        (
            "refresh_ttl",
            tokens.refresh_ttl,
            "access_ttl",
            tokens.access_ttl,
        ),
        (
            "session_ttl",
            tokens.session_ttl,
            "refresh_ttl",
            tokens.refresh_ttl,
        ),
    ] {
        let path = at.key(name);
        cx.period(&path, life, shortest, TTL_MAX);
        if life < least {
            cx.missing(
                &path,
                format_args!("must be at least {other}, which is {least}"),
                "",
            );
        }
    }
}

/// A `StringOrURI` (RFC 7519 section 2) that needs no escapes and can be told apart by eye.
fn name(text: &str, path: &Path, cx: &mut Context) -> bool {
    let is_plain = text
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
    let is_one = (1..=NAME_BYTES_MAX).contains(&text.len()) && is_plain;
    if !is_one {
        cx.problem(
            path,
            format_args!(
                "must have 1 to {NAME_BYTES_MAX} printable ASCII characters, without spaces"
            ),
            "use a short name, or the URL that clients know the gateway by",
        );
    }
    is_one
}

/// A secret a line.
fn secrets(file: &File, path: &Path, cx: &mut Context) -> Option<TokenSecretSource> {
    let Some(secret) = &file.auth.tokens.secret else {
        return match file.environment {
            Environment::Development => Some(TokenSecretSource::File(development_token_secret())),
            // The rules of production have said that it is missing.
            Environment::Staging | Environment::Production => None,
        };
    };
    let secret = secret.reveal();
    if secret.len() > SECRET_BYTES_MAX {
        cx.problem(
            path,
            format_args!("must have at most {SECRET_BYTES_MAX} bytes"),
            "",
        );
        return None;
    }
    let lines: Vec<&str> = secret
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() || lines.len() > TOKEN_SECRETS_MAX {
        cx.problem(
            path,
            format_args!("must have 1 to {TOKEN_SECRETS_MAX} secrets, one a line"),
            "put the one that signs first, and remove those whose tokens have expired",
        );
        return None;
    }
    if lines
        .iter()
        .any(|line| line.chars().count() < SALT_CHARS_MIN)
    {
        cx.problem(
            path,
            format_args!("each secret must have at least {SALT_CHARS_MIN} characters"),
            NEW_SECRET,
        );
        return None;
    }
    let salt = file.auth.salt.as_ref().map(|salt| salt.reveal());
    if lines.iter().any(|line| Some(*line) == salt) {
        cx.problem(path, "is the salt of API keys too (API_SALT)", NEW_SECRET);
        return None;
    }
    Some(TokenSecretSource::Given(
        lines.into_iter().map(TokenSecret::new).collect(),
    ))
}
