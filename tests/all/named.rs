//! Whatever a document, a script or a manifest names must be there: metrics, variables, commands and flags,
//! endpoints, files, keys of the configuration. A name that is only nearly right fails here, not in production.

mod known;
mod texts;

use known::Known;
use texts::{Text, documents, everything};

fn holds(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs a check over texts, and says where each thing it finds stands.
fn check(texts: &[Text], find: impl Fn(&Text) -> Vec<(usize, String)>) {
    let mut wrong = Vec::new();
    for text in texts {
        for (line, problem) in find(text) {
            wrong.push(format!("{}:{line}: {problem}", text.path));
        }
    }
    wrong.sort();
    wrong.dedup();
    holds(wrong);
}

#[test]
fn metrics_exist() {
    let known = Known::metrics();
    let recorded = known::recorded();
    check(&everything(), |text| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let mut wrong = Vec::new();
        for (line, word, next) in text.words(is_part) {
            let word = word.trim_end_matches(':');
            if !word.starts_with("wasmwiz") || known::is_no_metric(word) {
                continue;
            }
            // What a rule of Prometheus makes of others has colons in its name.
            let exists = match word.strip_prefix("wasmwiz_") {
                _ if word.contains(':') => recorded.contains(word),
                // `wasmwiz_upstream_*` stands for several.
                Some(name) if name.is_empty() || name.ends_with('_') || next == Some('*') => {
                    known.iter().any(|metric| metric.starts_with(name))
                }
                Some(name) => known.contains(name),
                None => true,
            };
            if !exists {
                wrong.push((line, format!("there is no metric {word}")));
            }
        }
        wrong
    });
}

#[test]
fn commands_and_flags_exist() {
    let program = wasm_wizard::cli::command();
    check(&everything(), |text| {
        let mut wrong = Vec::new();
        for (line, words) in text.calls("wasm-wizard") {
            if let Err(problem) = known::call(&program, &words) {
                wrong.push((line, problem));
            }
        }
        wrong
    });
}

#[test]
fn scripts_and_their_flags_exist() {
    check(&everything(), |text| {
        let mut wrong = Vec::new();
        for (line, script, words) in text.scripts() {
            if text.path == script {
                continue;
            }
            let Some(code) = Text::read(&script) else {
                wrong.push((line, format!("there is no {script}")));
                continue;
            };
            for flag in words.iter().filter(|word| known::is_flag(word)) {
                let flag = flag.split('=').next().unwrap_or(flag);
                if !known::takes(&code.body, flag) {
                    wrong.push((line, format!("{script} knows no {flag}")));
                }
            }
        }
        wrong
    });
}

#[test]
fn endpoints_exist() {
    let routes = Known::endpoints();
    check(&everything(), |text| {
        let mut wrong = Vec::new();
        // Paths in examples of configurations are routes of the operator's own.
        let found = match text.path.starts_with("conf/examples/") {
            true => Vec::new(),
            false => text.endpoints(),
        };
        for (line, path) in found {
            if !known::serves(&routes, &path) {
                wrong.push((line, format!("there is no endpoint {path}")));
            }
        }
        wrong
    });
}

#[test]
fn files_exist() {
    check(&everything(), |text| {
        let mut wrong = Vec::new();
        for (line, path) in text.paths() {
            if !known::is_there(&path) {
                wrong.push((line, format!("there is no file {path}")));
            }
        }
        wrong
    });
}

#[test]
fn variables_exist() {
    let known = Known::variables();
    check(&documents(), |text| {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut wrong = Vec::new();
        for (line, word, next) in text.words(is_part) {
            let is_variable = word.contains('_')
                && word.starts_with(|c: char| c.is_ascii_uppercase())
                && !word.chars().any(|c| c.is_ascii_lowercase());
            // `GF_…` and `POSTGRES_*` stand for several, `BASIC_…` for a name with another beginning.
            let is_family = word.ends_with('_') || matches!(next, Some('*' | '…'));
            if is_variable && !known::is_constant(&word) && !is_family && !known.contains(&word) {
                wrong.push((line, format!("nothing reads a variable {word}")));
            }
        }
        wrong
    });
}

#[test]
fn keys_of_the_configuration_exist() {
    let schema = wasm_wizard::config::json_schema();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    check(&documents(), |text| {
        let mut wrong = Vec::new();
        for (line, key) in text.keys() {
            // What is said of one route names its keys without `routes[]`.
            let of_route: Vec<String> = ["routes".to_owned()]
                .into_iter()
                .chain(key.clone())
                .collect();
            let exists = known::has_key(&schema, &schema, &key)
                || known::has_key(&schema, &schema, &of_route);
            if !exists {
                let key = key.join(".");
                wrong.push((line, format!("the configuration has no key {key}")));
            }
        }
        wrong
    });
}

/// The checks themselves: each finds a name that is not there.
#[test]
fn what_is_not_there_is_found() {
    let text = |body: &str| Text {
        path: "docs/x.md".into(),
        body: body.into(),
    };
    let program = wasm_wizard::cli::command();
    let calls = |body: &str| -> Vec<bool> {
        let calls = text(body).calls("wasm-wizard");
        calls
            .iter()
            .map(|(_, words)| known::call(&program, words).is_ok())
            .collect()
    };
    assert_eq!(
        calls("`wasm-wizard check --config FILE && true --nothing`"),
        [true]
    );
    assert_eq!(calls("/usr/bin/wasm-wizard check --confg FILE"), [false]);
    assert_eq!(calls("wasm-wizard serve \\\n  --nothing"), [false]);
    assert_eq!(calls("`wasm-wizard chekc`"), [false]);
    let prose = calls("Start wasm-wizard and --wait. A my-wasm-wizard check --x");
    assert!(prose.is_empty());
    let routes = Known::endpoints();
    let endpoints = |body: &str| -> Vec<bool> {
        let found = text(body).endpoints();
        found
            .iter()
            .map(|(_, path)| known::serves(&routes, path))
            .collect()
    };
    assert_eq!(
        endpoints(
            "GET /health, /healthy; https://x:1/api/wasm/modules/7?page=2 \"$u/api/auth/kies\""
        ),
        [true, false, true, false]
    );
    assert_eq!(
        text("see `conf/nothing.yaml`, src/cli/{a,b}.rs")
            .paths()
            .len(),
        2
    );
    let schema = wasm_wizard::config::json_schema();
    let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
    let keys = |body: &str| -> Vec<bool> {
        let found = text(body).keys();
        found
            .iter()
            .map(|(_, key)| known::has_key(&schema, &schema, key))
            .collect()
    };
    assert_eq!(
        keys(
            "`server.https[].certificates` `sandbox.compile.timeout` `tiers.free.per_day` `server.htps`"
        ),
        [true, true, true, false]
    );
    let script = Text::read("scripts/test.sh").unwrap();
    assert!(known::takes(&script.body, "--no-install") && !known::takes(&script.body, "--no"));
    assert!(Known::metrics().contains("requests_total") && !Known::metrics().contains("request"));
    assert!(Known::metrics().contains("request_duration_seconds_bucket"));
}
