//! `conf/wasm-wizard.yaml` and `docs/CONFIGURATION.md` say what the code does.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::context::Context;
use super::super::file::File;
use super::super::{BUILT_IN, Config, VARIABLES, env, read_text, validate};
use super::{load, variables};

const DOCUMENTATION: &str = include_str!("../../../docs/CONFIGURATION.md");

fn parsed(yaml: &str) -> File {
    let mut cx = Context::new("test".to_string());
    let file = read_text(yaml, &mut cx).unwrap();
    cx.finish().unwrap();
    file
}

/// The built-in file with its commented keys switched on: `#key: …` and `#- key: …`, where a
/// sentence has a space after the `#`; the lines of a commented route after its first, too.
fn uncommented() -> String {
    let mut in_item = false;
    let mut lines = Vec::new();
    for line in BUILT_IN.lines() {
        let body = line.trim_start();
        let indent = &line[..line.len() - body.len()];
        let code = body
            .strip_prefix('#')
            .filter(|rest| !rest.starts_with(' ') || (in_item && rest.starts_with("  ")));
        match code {
            Some(code) if !code.is_empty() => {
                in_item |= code.starts_with("- ");
                lines.push(format!("{indent}{code}"));
            }
            _ => {
                in_item = false;
                lines.push(line.to_string());
            }
        }
    }
    lines.join("\n")
}

fn default_keys(value: &Value, path: &str, keys: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                keys.insert(path.clone());
                default_keys(value, &path, keys);
            }
        }
        Value::Array(items) => {
            for item in items {
                default_keys(item, &format!("{path}[]"), keys);
            }
        }
        _ => {}
    }
}

/// Every key that the schema knows: `routes[].match.path`.
fn schema_keys(schema: &Value, root: &Value, path: &str, keys: &mut BTreeSet<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.trim_start_matches("#/$defs/");
        schema_keys(&root["$defs"][name], root, path, keys);
    }
    for part in ["anyOf", "oneOf", "allOf"] {
        for option in schema[part].as_array().into_iter().flatten() {
            schema_keys(option, root, path, keys);
        }
    }
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        keys.insert(path.clone());
        schema_keys(property, root, &path, keys);
    }
    if schema["items"].is_object() {
        schema_keys(&schema["items"], root, &format!("{path}[]"), keys);
    }
}

fn all_schema_keys() -> BTreeSet<String> {
    let schema: Value = serde_json::from_str(&super::super::json_schema()).unwrap();
    let mut keys = BTreeSet::new();
    schema_keys(&schema, &schema, "", &mut keys);
    assert!(keys.contains("routes[].proxy.upstreams"), "{keys:#?}");
    keys
}

#[test]
fn the_built_in_file_is_the_default() {
    let mut file = parsed(BUILT_IN);
    let names: Vec<_> = file
        .routes
        .iter()
        .filter_map(|route| route.name.as_deref())
        .collect();
    assert_eq!(names, ["hello", "echo"]);
    file.routes.clear();
    assert_eq!(file, File::default());
    assert_eq!(parsed(""), File::default());
}

#[test]
fn the_built_in_file_has_every_key() {
    let yaml: Value =
        serde_json::to_value(serde_yaml::from_str::<serde_yaml::Value>(&uncommented()).unwrap())
            .unwrap();
    let mut present = BTreeSet::new();
    default_keys(&yaml, "", &mut present);
    let missing: Vec<_> = all_schema_keys()
        .into_iter()
        .filter(|key| !present.contains(key))
        .collect();
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn the_keys_that_are_commented_out_work() {
    let loaded = load(&uncommented()).unwrap();
    let names: Vec<_> = loaded
        .config
        .routes
        .iter()
        .map(|route| route.name.as_str())
        .collect();
    assert_eq!(
        names,
        ["hello", "echo", "stored", "app", "users", "moved", "robots"]
    );
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn without_a_file_the_built_in_one_is_used() {
    let loaded = Config::load(None, &variables(&[])).unwrap();
    assert_eq!(loaded.config.routes.len(), 2);
    assert!(loaded.config == load(BUILT_IN).unwrap().config);
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn what_is_printed_is_the_same_configuration() {
    let loaded = load(&uncommented()).unwrap();
    let printed = loaded.to_yaml().unwrap();
    let again = load(&printed).unwrap_or_else(|problems| panic!("{problems}\n{printed}"));
    assert!(again.config == loaded.config, "{printed}");
}

/// The tree reads scalars as another YAML parser does.
#[test]
fn the_built_in_file_means_the_same_to_serde_yaml() {
    let ours = parsed(&uncommented());
    let text =
        serde_yaml::to_string(&serde_yaml::from_str::<serde_yaml::Value>(&uncommented()).unwrap())
            .unwrap();
    assert_eq!(ours, parsed(&text));
}

/// Every range that is enforced stands in the file at its key, and in the documentation.
#[test]
fn ranges_are_documented() {
    let mut file = parsed(&uncommented());
    // A number where the default is a word has its range checked too.
    file.server.threads = super::super::values::Threads(Some(1));
    let mut cx = Context::new("test".to_string());
    env::apply(&mut file, &variables(&[]), &mut cx);
    validate::config(&file, &mut cx).unwrap();
    assert!(cx.ranges.len() > 40, "{:?}", cx.ranges);
    for (path, min, max) in &cx.ranges {
        let key = path.rsplit('.').next().unwrap();
        let range = format!("{min} to {max}");
        let in_file = BUILT_IN
            .lines()
            .collect::<Vec<_>>()
            .windows(4)
            .any(|lines| {
                lines.iter().any(|line| line.contains(&format!("{key}:")))
                    && lines.concat().replace("  # ", " ").contains(&range)
            });
        let is_tier = path.starts_with("tiers.");
        assert!(
            in_file || is_tier,
            "{path} should say '{range}' in conf/wasm-wizard.yaml"
        );
        let in_documentation = DOCUMENTATION
            .lines()
            .any(|line| line.contains(&format!("{key}`")) && line.contains(&range));
        assert!(
            in_documentation,
            "{path} should say '{range}' in docs/CONFIGURATION.md"
        );
    }
}

#[test]
fn every_key_and_variable_is_documented() {
    for key in all_schema_keys() {
        let leaf = key.rsplit('.').next().unwrap();
        let stands = [format!("`{key}`"), format!("`{leaf}`"), format!(".{leaf}`")];
        assert!(
            stands.iter().any(|text| DOCUMENTATION.contains(text)),
            "{key} is not in docs/CONFIGURATION.md"
        );
    }
    for variable in VARIABLES {
        assert!(
            DOCUMENTATION.contains(&format!("`{}`", variable.name)),
            "{}",
            variable.name
        );
        if variable.secret {
            assert!(
                DOCUMENTATION.contains(&format!("`{}_FILE`", variable.name)),
                "{}_FILE",
                variable.name
            );
        }
    }
}

/// Every property of the schema by its key; some have more than one form.
fn schema_properties<'s>(
    schema: &'s Value,
    root: &'s Value,
    path: &str,
    found: &mut Vec<(String, &'s Value)>,
) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.trim_start_matches("#/$defs/");
        schema_properties(&root["$defs"][name], root, path, found);
    }
    for part in ["anyOf", "oneOf", "allOf"] {
        for option in schema[part].as_array().into_iter().flatten() {
            schema_properties(option, root, path, found);
        }
    }
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        found.push((path.clone(), property));
        schema_properties(property, root, &path, found);
    }
    if schema["items"].is_object() {
        schema_properties(&schema["items"], root, &format!("{path}[]"), found);
    }
}

/// The words that a property may be.
fn words(schema: &Value, root: &Value, found: &mut BTreeSet<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.trim_start_matches("#/$defs/");
        words(&root["$defs"][name], root, found);
    }
    for part in ["anyOf", "oneOf"] {
        for option in schema[part].as_array().into_iter().flatten() {
            words(option, root, found);
        }
    }
    let listed = schema["enum"].as_array().into_iter().flatten();
    let words = listed.chain([&schema["const"]]).filter_map(Value::as_str);
    found.extend(words.map(str::to_owned));
}

/// The rows of the documentation's tables by the keys in their first cell.
fn documented_rows() -> Vec<(String, Vec<&'static str>)> {
    let mut rows = Vec::new();
    for line in DOCUMENTATION.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" |").map(str::trim).collect();
        for key in cells[0].split('`').skip(1).step_by(2) {
            rows.push((key.to_owned(), cells.clone()));
        }
    }
    rows
}

/// The tables of the documentation have a row for each key, with its default and the words it may be.
#[test]
fn the_documentation_has_the_defaults_and_words_of_the_schema() {
    use super::super::values::Period;
    let schema: Value = serde_json::from_str(&super::super::json_schema()).unwrap();
    let mut properties = Vec::new();
    schema_properties(&schema, &schema, "", &mut properties);
    let rows = documented_rows();
    let mut compared = 0;
    for (key, property) in properties {
        // The tiers have a table of their own, and a section stands for its parts.
        if key.starts_with("tiers") || !key.contains('.') || key == "routes[].auth.role" {
            continue;
        }
        let row = rows.iter().find(|(documented, _)| *documented == key);
        let (_, cells) = row.unwrap_or_else(|| panic!("{key} has no row"));
        let mut known = BTreeSet::new();
        words(property, &schema, &mut known);
        for word in known {
            assert!(
                cells.concat().contains(&format!("`{word}`")),
                "{key}: {word}"
            );
        }
        let default = match &property["default"] {
            Value::Bool(flag) => flag.to_string(),
            Value::Number(number) => number.to_string().trim_end_matches(".0").to_owned(),
            Value::String(text) if !text.is_empty() => text.clone(),
            Value::String(_) | Value::Null | Value::Array(_) | Value::Object(_) => continue,
        };
        let shown = cells.last().unwrap().replace('`', "");
        let is_same = shown == default
            || Period::parse(&shown).is_ok_and(|shown| Period::parse(&default) == Ok(shown));
        // What is as of a sibling has no cells of its own.
        assert!(
            is_same || shown.is_empty() && cells[1].starts_with("as of"),
            "{key}: {default}, not {shown}"
        );
        compared += 1;
    }
    assert!(compared > 80, "{compared}");
}

#[test]
fn the_defaults_are_those_of_the_product() {
    let config = Config::load(None, &variables(&[])).unwrap().config;
    assert_eq!(config.api.wasm_bytes_max, 10 << 20);
    assert_eq!(config.api.input_bytes_max, 1 << 20);
    assert_eq!(config.api.guest.deadline.as_secs(), 5);
    assert_eq!(config.api.guest.memory_bytes_max, 128 << 20);
    assert_eq!(config.api.guest.stdout_bytes_max, 8 << 20);
    assert_eq!(config.api.guest.stderr_bytes_max, 64 << 10);
    let tiers = &config.limits.tiers;
    let rows = [&tiers.free, &tiers.basic, &tiers.pro, &tiers.enterprise].map(|tier| {
        (
            tier.rate.per_minute,
            tier.rate.per_day,
            tier.memory_bytes_max >> 20,
            tier.deadline.as_secs(),
        )
    });
    assert_eq!(
        rows,
        [
            (Some(10), Some(500), 128, 5),
            (Some(100), Some(10_000), 256, 10),
            (Some(500), Some(50_000), 512, 30),
            (None, None, 1024, 60),
        ]
    );
}
