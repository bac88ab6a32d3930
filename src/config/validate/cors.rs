//! What pages of other origins may do.

use http::{HeaderName, HeaderValue, Method};

use super::routes;
use crate::config::context::Context;
use crate::config::file;
use crate::config::problem::{Path, shown};
use crate::config::values::Period;
use crate::route::{Cors, Match, OriginPattern, Origins};

const LIST_MAX: usize = 64;

pub fn cors(
    cors: &file::Cors,
    matcher: Option<&Match>,
    at: &Path,
    cx: &mut Context,
) -> Option<Cors> {
    let origins = origins(cors, at, cx);
    let methods = methods(cors, matcher, &at.key("methods"), cx);
    let request_headers = names(&cors.headers, &at.key("headers"), cx);
    let exposed_headers = names(&cors.expose, &at.key("expose"), cx);
    let max_age = at.key("max_age");
    cx.period(
        &max_age,
        cors.max_age,
        Period::secs(0),
        Period::secs(86_400),
    );
    Some(Cors {
        origins: origins?,
        methods: methods?,
        request_headers: request_headers?,
        exposed_headers: exposed_headers?,
        credentials: cors.credentials,
        max_age: HeaderValue::from(cors.max_age.0.as_secs()),
    })
}

fn origins(cors: &file::Cors, at: &Path, cx: &mut Context) -> Option<Origins> {
    let path = at.key("origins");
    if cors.origins.is_empty() {
        cx.missing(
            &path,
            "needs at least one origin",
            "add https://example.com",
        );
        return None;
    }
    if cors.origins.len() > LIST_MAX {
        let hint = "use patterns such as https://*.example.com";
        cx.problem(
            &path,
            format_args!("has more than {LIST_MAX} origins"),
            hint,
        );
        return None;
    }
    if cors.origins.iter().any(|origin| origin == "*") {
        if cors.origins.len() > 1 {
            cx.problem(&path, "'*' is any origin already", "remove the others");
            return None;
        }
        if cors.credentials {
            let hint = "list the origins: else any page could act for its visitors";
            cx.problem(&at.key("credentials"), "can't be given to any origin", hint);
            return None;
        }
        return Some(Origins::Any);
    }
    let mut patterns = Vec::with_capacity(cors.origins.len());
    for (index, text) in cors.origins.iter().enumerate() {
        match OriginPattern::parse(text) {
            Ok(pattern) if patterns.contains(&pattern) => {
                cx.problem(
                    &path.index(index),
                    format_args!("'{}' is given twice", shown(text)),
                    "remove it",
                );
            }
            Ok(pattern) => patterns.push(pattern),
            Err(error) => cx.problem(
                &path.index(index),
                error,
                "use https://example.com, https://*.example.com, or '*' alone",
            ),
        }
    }
    (patterns.len() == cors.origins.len()).then_some(Origins::Listed(patterns))
}

/// The list as browsers read it. A method that the route does not answer would only promise what does
/// not work.
fn methods(
    cors: &file::Cors,
    matcher: Option<&Match>,
    path: &Path,
    cx: &mut Context,
) -> Option<HeaderValue> {
    let given = routes::methods(&cors.methods, path, cx)?;
    let own = matcher.map(|matcher| matcher.methods.as_slice());
    let own = own.unwrap_or_default();
    for (index, method) in given.iter().enumerate() {
        let is_answered = own.is_empty()
            || own.contains(method)
            || (*method == Method::HEAD && own.contains(&Method::GET));
        if !is_answered {
            cx.problem(
                &path.index(index),
                format_args!("{method} is not a method of this route"),
                "add it to match.methods, or remove it here",
            );
        }
    }
    const SIMPLE: [Method; 3] = [Method::GET, Method::HEAD, Method::POST];
    let list = match (given.as_slice(), own) {
        ([], []) => &SIMPLE[..],
        ([], own) => own,
        (given, _) => given,
    };
    let list: Vec<&str> = list.iter().map(Method::as_str).collect();
    HeaderValue::from_str(&list.join(", ")).ok()
}

/// A list of names, as one value; the inner `None` is an empty list.
fn names(names: &[String], path: &Path, cx: &mut Context) -> Option<Option<HeaderValue>> {
    if names.len() > LIST_MAX {
        cx.problem(path, format_args!("has more than {LIST_MAX} headers"), "");
        return None;
    }
    let mut parsed = Vec::with_capacity(names.len());
    for (index, text) in names.iter().enumerate() {
        match HeaderName::from_bytes(text.as_bytes()) {
            Ok(name) if text != "*" => parsed.push(name),
            Ok(_) | Err(_) => {
                let message = format!("'{}' is not a header name", shown(text));
                cx.problem(&path.index(index), message, "use letters, digits and '-'");
            }
        }
    }
    if parsed.len() != names.len() {
        return None;
    }
    if parsed.is_empty() {
        return Some(None);
    }
    let list: Vec<&str> = parsed.iter().map(HeaderName::as_str).collect();
    HeaderValue::from_str(&list.join(", ")).ok().map(Some)
}
