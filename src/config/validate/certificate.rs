//! Which client certificates a route takes.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::PathBuf;

use crate::config::context::Context;
use crate::config::file::File;
use crate::config::problem::Path;
use crate::route::{CertificateRule, NamePattern, SubjectPattern};

const PATTERNS_MAX: usize = 256;

/// What a route says about them.
pub struct Given<'f> {
    pub ca: Option<&'f str>,
    pub subjects: &'f [String],
    pub names: &'f [String],
}

pub fn rule(
    given: &Given<'_>,
    at: &Path,
    file: &File,
    cx: &mut Context,
) -> Option<CertificateRule> {
    let believed: BTreeSet<&str> = file
        .server
        .https
        .iter()
        .filter_map(|https| https.client_certificates.as_ref()?.ca.as_deref())
        .collect();
    let ca = match given.ca {
        _ if believed.is_empty() => {
            let hint = "add client_certificates to a listener in server.https";
            cx.problem(at, "no listener asks for certificates", hint);
            return None;
        }
        Some(ca) if !believed.contains(ca) => {
            let message = format!("no listener's client_certificates have the ca '{ca}'");
            cx.problem(&at.key("ca"), message, "name the file as it is named there");
            return None;
        }
        // The same name may be given to different clients by different authorities.
        None if believed.len() > 1 => {
            let message = "listeners believe different authorities";
            cx.missing(&at.key("ca"), message, "name the file of one of them");
            return None;
        }
        ca => ca.map(PathBuf::from),
    };
    let subjects = patterns(
        given.subjects,
        &at.key("subjects"),
        SubjectPattern::parse,
        cx,
    );
    let names = patterns(given.names, &at.key("names"), NamePattern::parse, cx);
    Some(CertificateRule {
        ca,
        subjects: subjects?,
        names: names?,
    })
}

fn patterns<P, E: Display>(
    texts: &[String],
    at: &Path,
    parse: impl Fn(&str) -> Result<P, E>,
    cx: &mut Context,
) -> Option<Vec<P>> {
    if texts.len() > PATTERNS_MAX {
        cx.problem(at, format_args!("has more than {PATTERNS_MAX} of them"), "");
        return None;
    }
    let mut parsed = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match parse(text) {
            Ok(pattern) => parsed.push(pattern),
            Err(error) => cx.problem(&at.index(index), error, ""),
        }
    }
    (parsed.len() == texts.len()).then_some(parsed)
}
