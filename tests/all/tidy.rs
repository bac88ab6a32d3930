//! The rules of the source tree, held by reading it.

use std::path::{Path, PathBuf};

use crate::support::root;

fn files(dir: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut stack = vec![root().join(dir)];
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "{dir} holds no .{extension} file");
    found
}

/// The crate's module a source file belongs to: `src/gateway/body.rs` → `gateway`.
fn module(path: &Path) -> String {
    let first = path
        .strip_prefix("src")
        .unwrap()
        .components()
        .next()
        .unwrap();
    first
        .as_os_str()
        .to_str()
        .unwrap()
        .trim_end_matches(".rs")
        .to_owned()
}

/// The code of a file without its unit tests and comments.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    body.lines()
        .filter(|l| !l.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A line of code without what stands in its string literals.
fn without_strings(line: &str) -> String {
    line.split('"').step_by(2).collect()
}

fn is_test_file(path: &Path) -> bool {
    path.iter()
        .any(|part| part == "tests.rs" || part == "tests")
}

/// Which modules of ours each module may import.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "api",
            "auth",
            "config",
            "gateway",
            "limits",
            "modules",
            "route",
            "sandbox",
            "server",
            "store",
            "telemetry",
            "tls",
            "upstream",
        ],
    ),
    (
        "server",
        &[
            "api",
            "auth",
            "config",
            "gateway",
            "limits",
            "modules",
            "sandbox",
            "store",
            "telemetry",
            "tls",
            "upstream",
            "usage",
        ],
    ),
    (
        "config",
        &[
            "api",
            "auth",
            "gateway",
            "limits",
            "route",
            "sandbox",
            "store",
            "telemetry",
            "tls",
            "upstream",
            "usage",
        ],
    ),
    (
        "gateway",
        &[
            "api",
            "auth",
            "failure",
            "limits",
            "modules",
            "route",
            "sandbox",
            "telemetry",
            "tls",
            "upstream",
            "usage",
        ],
    ),
    (
        "api",
        &[
            "auth",
            "failure",
            "limits",
            "modules",
            "sandbox",
            "store",
            "telemetry",
            "usage",
        ],
    ),
    ("usage", &["failure", "sandbox", "store", "telemetry"]),
    (
        "modules",
        &["lives", "route", "sandbox", "store", "telemetry"],
    ),
    ("route", &["auth", "limits", "sandbox", "upstream"]),
    (
        "auth",
        &["account", "limits", "lives", "store", "telemetry"],
    ),
    ("limits", &["account", "sandbox", "telemetry"]),
    ("upstream", &["telemetry"]),
    ("tls", &["telemetry"]),
    ("store", &["account", "sandbox", "telemetry"]),
    ("sandbox", &["telemetry"]),
    ("telemetry", &[]),
    ("account", &[]),
    ("lives", &[]),
    ("failure", &[]),
    ("lib", &[]),
];

#[test]
fn dependencies_point_one_way() {
    let mut wrong = Vec::new();
    for (path, text) in files("src", "rs") {
        if is_test_file(&path) {
            continue;
        }
        let module = module(&path);
        let allowed = MAY_IMPORT.iter().find(|(m, _)| *m == module);
        let allowed = allowed
            .unwrap_or_else(|| panic!("{module} has no row in MAY_IMPORT"))
            .1;
        for (at, _) in code(&text).match_indices("crate::") {
            let code = code(&text);
            let rest = &code[at + "crate::".len()..];
            let names: Vec<&str> = match rest.strip_prefix('{') {
                Some(group) => group
                    .split('}')
                    .next()
                    .unwrap()
                    .split(',')
                    .map(str::trim)
                    .collect(),
                None => vec![rest],
            };
            for name in names {
                let name = name
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next()
                    .unwrap();
                if !name.is_empty() && name != module && !allowed.contains(&name) {
                    wrong.push(format!("{}: {module} imports {name}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn libraries_stay_where_they_belong() {
    let rules: &[(&str, &[&str])] = &[
        ("wasmer", &["src/sandbox"]),
        ("sqlx", &["src/store"]),
        ("redis::", &["src/limits/store/redis.rs"]),
        (
            "pingora",
            &[
                "src/server.rs",
                "src/server",
                "src/tls",
                "src/gateway",
                "src/upstream",
            ],
        ),
        (
            "anyhow",
            &["src/main.rs", "src/cli", "src/server.rs", "src/server"],
        ),
    ];
    let mut wrong = Vec::new();
    for (path, text) in files("src", "rs") {
        for (library, places) in rules {
            // Our own module is not the library.
            let bare = |l: &str| without_strings(l).replace("store::redis::", "");
            let uses = code(&text).lines().map(bare).any(|l| {
                l.contains(&format!("{}::", library.trim_end_matches("::")))
                    || l.contains(&format!("{library}_")) && l.contains("::")
            });
            if uses && !places.iter().any(|p| path.starts_with(p)) {
                wrong.push(format!("{} uses {library}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_is_only_in_named_files_and_justified() {
    const NAMED: &[&str] = &["src/sandbox/"];
    let mut wrong = Vec::new();
    for (path, text) in files("src", "rs") {
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let bare = line.split("//").next().unwrap();
            let block = bare.contains("unsafe {") || bare.contains("unsafe impl");
            if !block {
                continue;
            }
            let place = path.to_str().unwrap();
            if !NAMED.iter().any(|named| place.starts_with(named)) {
                wrong.push(format!(
                    "{place}:{}: unsafe code outside the sandbox",
                    n + 1
                ));
            }
            let before = &lines[n.saturating_sub(12)..=n];
            if !before.iter().any(|l| l.contains("SAFETY:")) {
                wrong.push(format!("{place}:{}: no SAFETY comment", n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_undone() {
    // Written in pieces, so that this file does not find itself.
    let marks = ["to", "fix", "ha", "xx"].map(|m| m.to_uppercase());
    let marks = [
        format!("{}DO", marks[0]),
        format!("{}ME", marks[1]),
        format!("{}CK:", marks[2]),
        format!("{}X:", marks[3]),
    ];
    let macros = ["todo", "unimplemented", "dbg"].map(|m| format!("{m}!("));
    let mut wrong = Vec::new();
    for dir in ["src", "tests"] {
        for (path, text) in files(dir, "rs") {
            for (n, line) in text.lines().enumerate() {
                if marks
                    .iter()
                    .chain(&macros)
                    .any(|m| line.contains(m.as_str()))
                {
                    wrong.push(format!("{}:{}: {}", path.display(), n + 1, line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_fit_in_the_head() {
    const LINES_MAX: usize = 600;
    let long: Vec<String> = files("src", "rs")
        .into_iter()
        .chain(files("tests", "rs"))
        .filter(|(_, text)| text.lines().count() > LINES_MAX)
        .map(|(path, text)| format!("{} has {} lines", path.display(), text.lines().count()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn names_say_what_things_are() {
    for (path, _) in files("src", "rs") {
        for part in &path {
            let part = part.to_str().unwrap().trim_end_matches(".rs");
            assert!(
                !["utils", "util", "helpers", "common", "manager", "misc"].contains(&part),
                "{}",
                path.display()
            );
        }
    }
}

#[test]
fn every_dependency_is_accounted_for() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let documented = std::fs::read_to_string(root().join("docs/DEPENDENCIES.md")).unwrap();
    let mut in_dependencies = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies = line == "[dependencies]" || line == "[dev-dependencies]";
        } else if in_dependencies && let Some((name, _)) = line.split_once(" = ") {
            assert!(
                documented.contains(&format!("`{name}`")),
                "docs/DEPENDENCIES.md does not mention {name}"
            );
        }
    }
}

#[test]
fn documents_link_to_what_exists() {
    let mut documents = files("docs", "md");
    for name in [
        "README.md",
        "CHANGELOG.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
    ] {
        documents.push((
            name.into(),
            std::fs::read_to_string(root().join(name)).unwrap(),
        ));
    }
    for (path, text) in documents {
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', '#', ' ']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let from = root().join(&path).parent().unwrap().to_owned();
            assert!(
                from.join(target).exists(),
                "{} links to {target}",
                path.display()
            );
        }
    }
}
