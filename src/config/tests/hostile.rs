//! Files that are wrong in every way.

use std::time::{Duration, Instant};

use super::super::problem::PROBLEMS_MAX;
use super::super::tree;
use super::{load, problem, problems};
use crate::config::Config;

#[test]
fn syntax_errors_have_a_place() {
    let problem = problem("server:\n  admin: [\n");
    assert!(problem.contains("not valid YAML"), "{problem}");
    let line: usize = problem.split(':').next().unwrap().parse().unwrap();
    assert!((2..=4).contains(&line), "{problem}");
    for yaml in [
        "a: b: c",
        "\t- x",
        "{",
        "}",
        "'",
        "\"",
        "%",
        "@",
        "`",
        "a: 'b",
        "- a\nb: c",
        "? [a]\n: b",
        "\0",
        "\u{7}",
    ] {
        assert!(load(yaml).is_err(), "{yaml:?}");
    }
}

#[test]
fn unknown_keys_say_what_was_meant() {
    assert_eq!(
        problem("server:\n  threads: 1\n  timouts: {}\n"),
        "3:3: server: unknown key 'timouts' — did you mean 'timeouts'?"
    );
    let far = problem("metrics:\n  zzz: 1\n");
    assert_eq!(
        far,
        "2:3: metrics: unknown key 'zzz' — the keys here are enabled, path, public, backup_stamp"
    );
    assert!(problem("<<: {}\n").contains("unknown key '<<'"));
    assert!(problem("2: {}\n").contains("unknown key '2'"));
}

#[test]
fn wrong_types_say_what_is_expected() {
    for (yaml, expected) in [
        ("server: 5", "1:1: server: must be a mapping, not a number"),
        (
            "routes: { a: b }",
            "1:1: routes: must be a list, not a mapping",
        ),
        (
            "metrics: { enabled: 1 }",
            "1:12: metrics.enabled: must be true or false, not a number",
        ),
        (
            "metrics: { path: 1 }",
            "1:12: metrics.path: must be text, not a number — put it in quotes",
        ),
        (
            "database: { connections_max: -1 }",
            "1:13: database.connections_max: must be a whole number",
        ),
        (
            "database: { connections_max: 1.5 }",
            "1:13: database.connections_max: must be a whole number, not a fraction",
        ),
        (
            "database: { connections_max: 99999999999 }",
            "1:13: database.connections_max: must be a whole number",
        ),
        (
            "sandbox: { memory_max: 10 MB s }",
            "1:12: sandbox.memory_max: has an unknown unit",
        ),
        (
            "sandbox: { memory_max: null }",
            "1:12: sandbox.memory_max: must be a size such as 10MiB",
        ),
        (
            "sandbox: { memory_max: -1 }",
            "1:12: sandbox.memory_max: must be a size",
        ),
        (
            "sandbox: { execution_timeout: 1.5 }",
            "1:12: sandbox.execution_timeout: must be a duration",
        ),
        (
            "sandbox: { execution_timeout: [1] }",
            "1:12: sandbox.execution_timeout: must be a duration",
        ),
        (
            "logging: { format: jsno }",
            "1:12: logging.format: must be 'auto', 'json' or 'pretty', not 'jsno' — did you mean 'json'?",
        ),
        (
            "environment: Production",
            "1:1: environment: must be 'development', 'staging' or 'production', not 'Production' — did you mean 'production'?",
        ),
        (
            "tiers: { free: { per_minute: no } }",
            "1:18: tiers.free.per_minute: must be a whole number or 'unlimited'",
        ),
        (
            "tiers: { free: { per_hour: 1 } }",
            "1:18: tiers.free: unknown key 'per_hour'",
        ),
        ("- a\n- b", "1:1: must be a mapping, not a list"),
        ("just text", "1:1: must be a mapping, not text"),
    ] {
        let problem = problem(yaml);
        assert!(
            problem.starts_with(expected),
            "{yaml}\n{problem}\n{expected}"
        );
    }
}

#[test]
fn duplicate_keys_are_refused_where_they_are() {
    assert_eq!(
        problem("server:\n  threads: 1\n  threads: 2\n"),
        "3:3: the key 'threads' is given twice — remove one of them; the first is on line 2"
    );
}

#[test]
fn a_key_with_nothing_below_it_has_the_defaults() {
    let empty = load("").unwrap().config;
    for yaml in [
        "server:\n",
        "sandbox:\n  compile:\ntiers:\n  free:\n",
        "# only a comment\n",
        "---\n",
        "{}",
        "null",
        "\u{feff}server:\n",
    ] {
        assert!(
            load(yaml)
                .unwrap_or_else(|problems| panic!("{yaml}: {problems}"))
                .config
                == empty,
            "{yaml}"
        );
    }
}

#[test]
fn secrets_are_not_echoed() {
    for yaml in [
        "auth: { salt: [hunter2hunter2] }",
        "auth: hunter2hunter2",
        "auth: { salt: hunter2hunter2 }",
        "auth: { salt: 28282828282828 }",
        "database: hunter2hunter2",
        "database: { url: hunter2hunter2 }",
        "database: { url: 'mysql://u:hunter2hunter2@h/d' }",
        "routes: [{ name: a, match: { path: /a }, headers: { request: { set: { Authorization: \"hunter2hunter2\\n\" } } }, respond: {} }]",
        "routes: [{ name: a, match: { path: /a }, proxy: { upstreams: ['http://u:hunter2hunter2@h'] } }]",
    ] {
        let problem = problem(yaml);
        assert!(
            !problem.contains("hunter2") && !problem.contains("2828"),
            "{problem}"
        );
    }
}

#[test]
fn anchors_aliases_tags_and_second_documents_are_refused() {
    let problem = problems("metrics: &m\n  public: false\nlogging: *m\n").join("\n");
    assert!(
        problem.contains("1:") && problem.contains("anchors are not supported"),
        "{problem}"
    );
    assert!(
        problem.contains("3:10: aliases are not supported"),
        "{problem}"
    );
    assert!(problems("metrics: !!map {}\n")[0].contains("tags are not supported"));
    assert!(
        problems("metrics: {}\n---\nlogging: {}\n")[0]
            .contains("2:1: a second document begins here")
    );
    assert!(problems("[a, b]: c\n")[0].contains("a key must be plain text"));
}

/// Whatever the file, the answer is quick.
#[test]
fn hostile_files_are_refused_quickly() {
    let mut bomb = "a0: &a0 [x]\n".to_string();
    for level in 1..30 {
        bomb.push_str(&format!(
            "a{level}: &a{level} [{}]\n",
            vec![format!("*a{}", level - 1); 9].join(",")
        ));
    }
    let half = tree::FILE_BYTES_MAX / 2;
    let files = [
        bomb,
        "[".repeat(half),
        "{a: ".repeat(half / 4),
        "- ".repeat(half),
        "a".repeat(half),
        "'".repeat(half),
        "? ".repeat(half),
        "a: |\n".to_string() + &"  x\n".repeat(half / 4),
        (0..50_000).map(|i| format!("k{i}: 1\n")).collect(),
        "a: 1\n".repeat(100_000),
        "routes:\n".to_string() + &"- 1\n".repeat(100_000),
        "routes:\n".to_string() + &"- {}\n".repeat(50_000),
        "routes:\n".to_string() + &"- { x: 1, auth: 5 }\n".repeat(20_000),
        "server: { trusted_proxies: [".to_string() + &"x,".repeat(100_000) + "] }",
        "server: { https: [".to_string() + &"{},".repeat(5_000) + "] }",
        "server: { https: [".to_string() + &"{address: '1.1.1.1:1'},".repeat(5_000) + "] }",
        "headers: { set: {".to_string()
            + &(0..50_000)
                .map(|i| format!("'X {i}': a,"))
                .collect::<String>()
            + "} }",
        "routes: [{ proxy: { upstreams: [".to_string() + &"x,".repeat(100_000) + "] } }]",
        "# ".to_string() + &"x".repeat(2 * tree::FILE_BYTES_MAX),
        "\n".repeat(half) + "a: b: c",
        "&a ".repeat(half / 3),
        "!".repeat(half),
        "\u{1f600}".repeat(half / 4),
    ];
    for file in files {
        let start = Instant::now();
        let problems = load(&file).unwrap_err().0;
        let head: String = file.chars().take(20).collect();
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "{head:?} took {:?}",
            start.elapsed()
        );
        assert!(
            !problems.is_empty() && problems.len() <= PROBLEMS_MAX + 1,
            "{head:?}: {}",
            problems.len()
        );
    }
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_a_problem() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none.yaml");
    let text = Config::load(Some(&missing), &super::variables(&[]))
        .unwrap_err()
        .to_string();
    assert!(text.contains("none.yaml: can't be read"), "{text}");
    assert!(Config::load(Some(directory.path()), &super::variables(&[])).is_err());
    let binary = directory.path().join("binary.yaml");
    std::fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
    let text = Config::load(Some(&binary), &super::variables(&[]))
        .unwrap_err()
        .to_string();
    assert!(text.contains("is not UTF-8"), "{text}");
}

#[test]
fn what_is_shown_is_one_safe_line() {
    let problem = problem("\"\\e[31mred\\n\\u202Ex\": 1\n");
    assert!(!problem.contains(['\u{1b}', '\n', '\u{202e}']), "{problem}");
    let long = problems(&format!("{}: 1\n", "k".repeat(900))).join("");
    assert!(long.chars().count() < 400, "{long}");
}

/// What was left out is not also called missing.
#[test]
fn one_mistake_is_one_problem() {
    for yaml in [
        "routes: [{ nam: a, match: { path: /a }, respond: {} }]",
        "routes: [{ name: 5, match: { path: /a }, respond: {} }]",
        "routes: [{ name: a, math: { path: /a }, respond: {} }]",
        "routes: [{ name: a, match: { pth: /a }, respond: {} }]",
        "routes: [{ name: a, match: { path: [] }, respond: {} }]",
        "routes: [{ name: a, match: { path: /a }, respnd: {} }]",
        "routes: [{ name: a, match: { path: /a }, execute: 5 }]",
        "routes: [{ name: a, match: { path: /a }, execute: { fil: x } }]",
        "routes: [{ name: a, match: { path: /a }, proxy: { upstreams: [5] } }]",
        "server: { https: [{ address: 5, certificates: [{ cert: a, key: b }] }] }",
        "server: { https: [{ address: 0.0.0.0:443, certificates: [{ cert: a, kye: b }] }] }",
    ] {
        problem(yaml);
    }
    // A choice that does not fit leaves the rest to be checked.
    let all = problems(
        "routes:\n  - { name: a, match: { path: x }, auth: { role: root }, respond: {} }\nmetrics: { path: x }\n",
    );
    assert_eq!(all.len(), 3, "{all:?}");
    // Elements that were left out don't shift the numbers of the others.
    let problems =
        problems("routes:\n  - 5\n  - { name: '!', match: { path: /a }, respond: {} }\n");
    assert_eq!(
        problems[0],
        "2:5: routes[0]: must be a mapping, not a number"
    );
    assert!(
        problems[1].starts_with("3:7: routes[1].name: '!' can't be a name"),
        "{problems:?}"
    );
}
