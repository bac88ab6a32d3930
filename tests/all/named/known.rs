//! What there is: read off the code, or asked of the program.

use std::collections::BTreeSet;

use serde_json::Value;

use super::texts::readers;

pub struct Known;

/// Paths that look like ours and belong to another program of a deployment.
const FOREIGN: [(&str, &str); 4] = [
    ("/api/health", "Grafana's health"),
    (
        "/api/this/is/not/there",
        "what a script asks for to see a 404",
    ),
    ("/api/v1/", "Prometheus' API"),
    ("/api/v2/", "Alertmanager's API"),
];

/// Names in capitals that documents mention and nothing here reads.
const EXPLAINED: [(&str, &str); 2] = [
    (
        "KEY_ID",
        "a variable of the reader's own shell, in an example",
    ),
    ("X_A", "a header's name in an example"),
];

/// Names that begin as those of metrics do, and are something else.
const OTHERS: [(&str, &str); 2] = [
    ("wasmwiz_changes", "PostgreSQL's channel for changes"),
    ("wasmwiz_owner", "a role of PostgreSQL, in an example"),
];

/// How names begin that are Linux' own.
const SYSTEM: [&str; 4] = ["MADV_", "MAP_", "O_", "SCHED_"];

/// Directories that programs make, and that are not part of the tree.
const MADE: [&str; 4] = [
    "benches/peers/target",
    "fuzz/artifacts",
    "fuzz/corpus",
    "fuzz/target",
];

impl Known {
    /// Every metric without its prefix, and the rows of a histogram.
    pub fn metrics() -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for text in readers() {
            if !text.path.starts_with("src/telemetry/") {
                continue;
            }
            let code = without_tests(&text.body);
            for (name, next) in literals(code) {
                // A metric's name is followed by its help, which begins as a sentence does.
                let next = next.trim_start_matches([')', ',', ' ', '\n']);
                let has_help = next
                    .strip_prefix('"')
                    .is_some_and(|h| h.starts_with(char::is_uppercase) || h.starts_with("1 "));
                let is_name = !name.is_empty()
                    && name
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                if has_help && is_name {
                    for row in ["", "_bucket", "_sum", "_count"] {
                        found.insert(format!("{name}{row}"));
                    }
                }
            }
        }
        found
    }

    /// Paths that the program answers itself. `{x}` is any one segment.
    pub fn endpoints() -> Vec<String> {
        let mut found: Vec<String> = ["/metrics", "/health"].map(str::to_owned).into();
        for text in readers() {
            let is_api = text.path.starts_with("src/api/");
            let is_gateway =
                text.path.starts_with("src/gateway/") || text.path == "src/telemetry/health.rs";
            if !is_api && !is_gateway {
                continue;
            }
            let code = without_tests(&text.body);
            for (literal, _) in literals(code) {
                let begins = match is_api {
                    true => ["/api/", "/.well-known/"]
                        .iter()
                        .any(|b| literal.starts_with(b)),
                    false => ["/health/", "/healthz", "/readyz", "/.well-known/"]
                        .iter()
                        .any(|b| literal.starts_with(b)),
                };
                if begins && !literal.contains(' ') {
                    found.push(literal.to_owned());
                }
            }
        }
        found
    }

    /// Variables of the gateway, and any other name that code, a script or a manifest has.
    pub fn variables() -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for variable in wasm_wizard::config::VARIABLES {
            found.insert(variable.name.to_owned());
            if variable.secret {
                found.insert(format!("{}_FILE", variable.name));
            }
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        for text in readers() {
            // These tests' own examples are no reader.
            if !text.path.starts_with("tests/all/named") {
                found.extend(text.words(is_part).into_iter().map(|(_, word, _)| word));
            }
        }
        found.extend(EXPLAINED.map(|(name, _)| name.to_owned()));
        found
    }
}

/// Whether it is no metric, though it looks like one.
pub fn is_no_metric(name: &str) -> bool {
    OTHERS.iter().any(|(other, _)| *other == name)
}

/// What rules of Prometheus record.
pub fn recorded() -> BTreeSet<String> {
    let texts = super::texts::everything();
    let lines = texts.iter().flat_map(|text| text.body.lines());
    let names = lines.filter_map(|line| line.split_once("record: "));
    names.map(|(_, name)| name.trim().to_owned()).collect()
}

/// Unit tests may name what is not there.
fn without_tests(code: &str) -> &str {
    let tests = code.find("#[cfg(test)]\nmod tests {");
    &code[..tests.unwrap_or(code.len())]
}

/// String literals of Rust code without escapes, each with the code behind it.
fn literals(code: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for line_begin in code.match_indices('"').map(|(at, _)| at) {
        let rest = &code[line_begin + 1..];
        let end = rest.find(['"', '\n']).unwrap_or(rest.len());
        if rest[end..].starts_with('"') {
            found.push((&rest[..end], &rest[end + 1..]));
        }
    }
    found
}

pub fn is_command(word: &str) -> bool {
    wasm_wizard::cli::command().find_subcommand(word).is_some()
}

pub fn is_flag(word: &str) -> bool {
    let name = word.trim_start_matches('-');
    word.starts_with('-') && name.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Whether a call with these words names a command and flags that there are.
pub fn call(program: &clap::Command, words: &[String]) -> Result<(), String> {
    let mut command = program;
    let mut may_be_command = true;
    for word in words {
        if word == "--" {
            break;
        }
        if !is_flag(word) {
            let next = command.find_subcommand(word).filter(|_| may_be_command);
            // A name in lower case where a command is expected; anything else is a value.
            let is_name = word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            if next.is_none() && may_be_command && is_name && command.has_subcommands() {
                return Err(format!("{} has no command {word}", command.get_name()));
            }
            match next {
                Some(next) => command = next,
                None => may_be_command = false,
            }
            continue;
        }
        let flag = word.split('=').next().unwrap_or(word);
        let flag = flag.trim_end_matches(['.', ':', ']', '}']);
        let exists = flag == "--help"
            || flag == "-h"
            || flag == "--version"
            || flag == "-V"
            || command.get_arguments().any(|argument| {
                let long = argument.get_long().map(|long| format!("--{long}"));
                let short = argument.get_short().map(|short| format!("-{short}"));
                long.as_deref() == Some(flag) || short.as_deref() == Some(flag)
            });
        if !exists {
            return Err(format!(
                "wasm-wizard {} has no flag {flag}",
                command.get_name()
            ));
        }
    }
    Ok(())
}

/// Whether a script handles this flag: it stands there by itself.
pub fn takes(script: &str, flag: &str) -> bool {
    script.match_indices(flag).any(|(at, _)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        let before = script[..at].chars().next_back();
        let after = script[at + flag.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
        // `getopts c:n: name` takes `-c` and `-n`.
        || (flag.len() == 2 && script.lines().any(|line| line.contains("getopts") && line.contains(&flag[1..])))
}

/// The path of a URL, of `$VARIABLE/path`, or the path itself.
pub fn path_of(word: &str) -> Option<&str> {
    if word.starts_with('/') && !word.starts_with("//") {
        return Some(word);
    }
    let rest = match word.split_once("://") {
        Some((_, rest)) => rest,
        None => word.strip_prefix('$')?,
    };
    rest.find('/').map(|at| &rest[at..])
}

/// Whether it is a constant of the system, or a cipher suite, rather than a variable.
pub fn is_constant(name: &str) -> bool {
    let is_suite = name.starts_with("TLS_") && name.contains("_SHA");
    is_suite || SYSTEM.iter().any(|begin| name.starts_with(begin))
}

pub fn is_foreign(path: &str) -> bool {
    FOREIGN.iter().any(|(begin, _)| path.starts_with(begin))
}

/// Whether one of the routes is this path, or begins with it where it ends in `*` or `…`.
pub fn serves(routes: &[String], path: &str) -> bool {
    let wanted: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    routes.iter().any(|route| {
        let route: Vec<&str> = route.trim_end_matches('/').split('/').collect();
        for (at, part) in wanted.iter().enumerate() {
            if matches!(*part, "*" | "…") || part.ends_with('*') || part.ends_with('…') {
                return true;
            }
            match route.get(at) {
                Some(other) if other == part || other.starts_with('{') => {}
                _ => return false,
            }
        }
        wanted.len() == route.len()
    })
}

/// Whether this is in the tree, or below what a program makes.
pub fn is_there(path: &str) -> bool {
    let is_made = MADE.iter().any(|made| path.starts_with(made));
    is_made || crate::support::root().join(path).exists()
}

/// The first level of the configuration.
pub fn sections() -> BTreeSet<String> {
    let schema: Value = serde_json::from_str(&wasm_wizard::config::json_schema()).unwrap();
    let sections = schema["properties"].as_object().unwrap();
    sections.keys().cloned().collect()
}

/// Whether the schema has this key, through lists and references.
pub fn has_key(root: &Value, schema: &Value, key: &[String]) -> bool {
    if let Some(to) = schema["$ref"].as_str() {
        return has_key(root, root.pointer(&to[1..]).unwrap_or(&Value::Null), key);
    }
    let Some((first, rest)) = key.split_first() else {
        return true;
    };
    let alternatives = ["anyOf", "oneOf", "allOf"];
    let alternatives = alternatives
        .iter()
        .filter_map(|name| schema[*name].as_array());
    let mut alternatives = alternatives.flatten();
    if alternatives.any(|other| has_key(root, other, key)) {
        return true;
    }
    if schema["items"].is_object() {
        return has_key(root, &schema["items"], key);
    }
    match &schema["properties"][first] {
        Value::Null => {
            let others = &schema["additionalProperties"];
            others.is_object() || *others == Value::Bool(true)
        }
        found => has_key(root, found, rest),
    }
}
