//! What routes do: exactly one target each.

use std::path::PathBuf;

use http::StatusCode;

use super::{headers, proxy, server};
use crate::config::context::Context;
use crate::config::file;
use crate::config::problem::{Path, shown};
use crate::route::{Execute, Match, ModuleSource, Redirect, Respond, Segment, Target};
use crate::sandbox::abi::Abi;

const ARGS_MAX: usize = 64;
const TEXT_BYTES_MAX: usize = 4 << 10;
const BODY_BYTES_MAX: usize = 64 << 10;

/// The route's one target.
pub fn target(
    route: &file::Route,
    matcher: Option<&Match>,
    at: &Path,
    cx: &mut Context,
) -> Option<Target> {
    const TARGETS: [&str; 4] = ["execute", "proxy", "redirect", "respond"];
    let given = [
        route.execute.is_some(),
        route.proxy.is_some(),
        route.redirect.is_some(),
        route.respond.is_some(),
    ];
    let mut given = TARGETS
        .into_iter()
        .zip(given)
        .filter(|(_, is_given)| *is_given)
        .map(|(name, _)| name);
    match (given.next(), given.next()) {
        (None, _) => {
            if !TARGETS.iter().any(|target| cx.is_silenced(&at.key(target))) {
                cx.problem(
                    at,
                    "the route has no target",
                    "add one of execute, proxy, redirect and respond",
                );
            }
        }
        (Some(first), Some(second)) => {
            cx.problem(
                &at.key(second),
                format_args!("the route already has the target '{first}'"),
                "make two routes",
            );
        }
        (Some(_), None) => {}
    }
    let execute = route
        .execute
        .as_ref()
        .map(|execute| self::execute(execute, &at.key("execute"), cx));
    let proxy = route
        .proxy
        .as_ref()
        .map(|proxy| proxy::proxy(proxy, matcher, &at.key("proxy"), cx));
    let redirect = route
        .redirect
        .as_ref()
        .map(|redirect| self::redirect(redirect, matcher, &at.key("redirect"), cx));
    let respond = route
        .respond
        .as_ref()
        .map(|respond| self::respond(respond, &at.key("respond"), cx));
    execute
        .map(|target| target.map(Target::Execute))
        .or(proxy.map(|target| target.map(|proxy| Target::Proxy(Box::new(proxy)))))
        .or(redirect.map(|target| target.map(Target::Redirect)))
        .or(respond.map(|target| target.map(Target::Respond)))
        .flatten()
}

fn execute(execute: &file::Execute, at: &Path, cx: &mut Context) -> Option<Execute> {
    let module = module(execute, at, cx);
    let abi = execute.abi.unwrap_or(Abi::Command);
    match abi {
        Abi::Command => {}
        Abi::Wagi => {
            if !execute.args.is_empty() {
                cx.problem(
                    &at.key("args"),
                    "a wagi guest's arguments are those of its request",
                    "remove it",
                );
            }
            if execute.content_type.is_some() {
                cx.problem(
                    &at.key("content_type"),
                    "a wagi guest sends its own",
                    "remove it",
                );
            }
        }
    }
    arguments(&execute.args, &at.key("args"), cx);
    environment(execute, &at.key("env"), cx);
    let files = execute.files.as_deref();
    if let Some(files) = files
        && (files.is_empty() || files.contains('\0'))
    {
        cx.problem(&at.key("files"), "must name a directory", "");
    }
    let content_type = execute.content_type.as_deref().unwrap_or(file::TEXT);
    let content_type = self::content_type(content_type, &at.key("content_type"), cx);
    Some(Execute {
        module: module?,
        abi,
        args: execute.args.clone(),
        env: execute
            .env
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        files: files.map(PathBuf::from),
        content_type: content_type?,
    })
}

fn module(execute: &file::Execute, at: &Path, cx: &mut Context) -> Option<ModuleSource> {
    match (&execute.file, &execute.module) {
        (Some(file), None) => {
            server::file_path(Some(file), &at.key("file"), cx).map(ModuleSource::File)
        }
        (None, Some(id)) => match id.parse() {
            Ok(id) => Some(ModuleSource::Stored(id)),
            Err(_) => {
                let hint = "use the id that the upload answered, such as 018f4d5e-8b1a-7c3d-9e2f-0123456789ab";
                cx.problem(
                    &at.key("module"),
                    format_args!("'{}' is not a module's id", shown(id)),
                    hint,
                );
                None
            }
        },
        (Some(_), Some(_)) => {
            cx.problem(
                &at.key("module"),
                "there is a file already",
                "give 'file' or 'module'",
            );
            None
        }
        (None, None) => {
            if !cx.is_silenced(&at.key("module")) {
                cx.missing(&at.key("file"), "is required", "give 'file' or 'module'");
            }
            None
        }
    }
}

fn arguments(args: &[String], at: &Path, cx: &mut Context) {
    if args.len() > ARGS_MAX {
        cx.problem(at, format_args!("has more than {ARGS_MAX} arguments"), "");
    }
    for (index, arg) in args.iter().enumerate() {
        guest_text(arg, &at.index(index), cx);
    }
}

fn environment(execute: &file::Execute, at: &Path, cx: &mut Context) {
    if execute.env.len() > ARGS_MAX {
        cx.problem(at, format_args!("has more than {ARGS_MAX} variables"), "");
    }
    for (name, value) in &execute.env {
        let path = at.key(name);
        let mut chars = name.chars();
        let is_name = chars
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            let message = format!("'{}' is not a variable's name", shown(name));
            cx.problem(
                &path,
                message,
                "use letters, digits and '_', no digit first",
            );
        }
        guest_text(value, &path, cx);
    }
}

/// WASI hands arguments and variables over as strings that end with NUL.
fn guest_text(text: &str, path: &Path, cx: &mut Context) {
    if text.contains('\0') {
        cx.problem(path, "has a NUL character", "remove it");
    }
    if text.len() > TEXT_BYTES_MAX {
        cx.problem(
            path,
            format_args!("has more than {TEXT_BYTES_MAX} bytes"),
            "",
        );
    }
}

fn content_type(text: &str, path: &Path, cx: &mut Context) -> Option<http::HeaderValue> {
    let (kind, subtype) = text
        .split(';')
        .next()
        .unwrap_or_default()
        .split_once('/')
        .unwrap_or_default();
    if kind.is_empty() || subtype.trim().is_empty() {
        cx.problem(
            path,
            format_args!("'{}' is not a media type", shown(text)),
            "use text/plain; charset=utf-8",
        );
        return None;
    }
    headers::value(text, path, cx)
}

fn redirect(
    redirect: &file::Redirect,
    matcher: Option<&Match>,
    at: &Path,
    cx: &mut Context,
) -> Option<Redirect> {
    let status = match redirect.status {
        301 | 302 | 303 | 307 | 308 => StatusCode::from_u16(redirect.status).ok(),
        status => {
            let message = format!("{status} is not the status of a redirect");
            cx.problem(&at.key("status"), message, "use 301, 302, 303, 307 or 308");
            None
        }
    };
    let path = at.key("to");
    let Some(location) = redirect.to.as_deref() else {
        cx.missing(
            &path,
            "is required",
            "where to, such as https://example.com{path}",
        );
        return None;
    };
    let params = matcher.map(|matcher| &matcher.path.segments);
    if let Err((message, hint)) = location_template(location, params.map(Vec::as_slice)) {
        cx.problem(&path, message, hint);
        return None;
    }
    Some(Redirect {
        status: status?,
        location: location.to_string(),
    })
}

/// Whether the client can't choose where the redirect leads: what is put in comes after the host,
/// and can't turn a path into a host.
fn location_template(
    location: &str,
    params: Option<&[Segment]>,
) -> Result<(), (String, &'static str)> {
    const SHAPE: &str = "use https://host/…, https://host{path} or /path";
    if location.len() > TEXT_BYTES_MAX || !location.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err((
            "must be a URL in printable ASCII without spaces".to_string(),
            SHAPE,
        ));
    }
    let rest = match location
        .strip_prefix("https://")
        .or_else(|| location.strip_prefix("http://"))
    {
        Some(rest) => {
            let end = rest
                .find(['/', '?', '#', '{', '\\', '@'])
                .unwrap_or(rest.len());
            let (host, rest) = rest.split_at(end);
            let is_host = !host.is_empty() && host.parse::<http::uri::Authority>().is_ok();
            let is_closed =
                rest.is_empty() || rest.starts_with(['/', '?', '#']) || rest.starts_with("{path}");
            if !is_host || !is_closed {
                return Err(("must name its host in full".to_string(), SHAPE));
            }
            rest
        }
        None if location.starts_with('/') => {
            if location.starts_with("//")
                || location.starts_with("/\\")
                || location.starts_with("/{path}")
            {
                return Err((
                    "would let the client choose the host".to_string(),
                    "{path} begins with '/' itself",
                ));
            }
            location
        }
        None => return Err(("is neither a URL nor a path".to_string(), SHAPE)),
    };
    placeholders(rest, params)
}

fn placeholders(template: &str, params: Option<&[Segment]>) -> Result<(), (String, &'static str)> {
    const KNOWN: &str = "use {path}, {query} and the {parameters} of match.path";
    let mut rest = template;
    while let Some(open) = rest.find(['{', '}']) {
        let after = rest.get(open..).unwrap_or_default();
        let Some((name, tail)) = after
            .strip_prefix('{')
            .and_then(|after| after.split_once('}'))
        else {
            return Err(("has a brace without its pair".to_string(), KNOWN));
        };
        // Without a path that could be read, its parameters are not known.
        let is_param = params.is_none_or(|segments| {
            segments
                .iter()
                .any(|segment| matches!(segment, Segment::Param(param) if param == name))
        });
        if !matches!(name, "path" | "query") && !is_param {
            return Err((
                format!("'{{{}}}' is not part of the request", shown(name)),
                KNOWN,
            ));
        }
        rest = tail;
    }
    Ok(())
}

fn respond(respond: &file::Respond, at: &Path, cx: &mut Context) -> Option<Respond> {
    let path = at.key("status");
    cx.count(&path, u32::from(respond.status), 200, 599);
    let status = StatusCode::from_u16(respond.status).ok();
    if matches!(respond.status, 204 | 205 | 304) && !respond.body.is_empty() {
        cx.problem(
            &at.key("body"),
            format_args!("a {} response has no body", respond.status),
            "remove it",
        );
    }
    if respond.body.len() > BODY_BYTES_MAX {
        let hint = "serve it from an upstream";
        cx.problem(
            &at.key("body"),
            format_args!("has more than {BODY_BYTES_MAX} bytes"),
            hint,
        );
    }
    let content_type = content_type(&respond.content_type, &at.key("content_type"), cx);
    Some(Respond {
        status: status?,
        body: respond.body.clone().into(),
        content_type: content_type?,
    })
}
