//! Tests of the configuration as a whole.

mod default_file;
mod environment;
mod hostile;
mod production;
mod reload;
mod routes;
mod salt;
mod server;

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Config, Loaded, Problems};

pub fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

/// Loads this text as `config.yaml`, under these variables.
pub fn load_with(yaml: &str, pairs: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("config.yaml");
    std::fs::write(&path, yaml).unwrap();
    Config::load(Some(&path), &variables(pairs))
}

pub fn load(yaml: &str) -> Result<Loaded, Problems> {
    load_with(yaml, &[])
}

/// Each problem as `LINE:COLUMN: …` or `VARIABLE: …`.
pub fn problems_with(yaml: &str, pairs: &[(&str, &str)]) -> Vec<String> {
    let problems = load_with(yaml, pairs).expect_err("there is a problem");
    problems.0.iter().map(shown).collect()
}

pub fn problems(yaml: &str) -> Vec<String> {
    problems_with(yaml, &[])
}

pub fn warnings_with(yaml: &str, pairs: &[(&str, &str)]) -> Vec<String> {
    load_with(yaml, pairs)
        .unwrap()
        .warnings
        .iter()
        .map(shown)
        .collect()
}

/// Without the directory, which differs from run to run.
fn shown(problem: &super::Problem) -> String {
    let text = problem.to_string();
    text.split_once("config.yaml:")
        .map_or(text.clone(), |(_, rest)| rest.trim_start().to_string())
}

/// The only problem there is.
pub fn problem(yaml: &str) -> String {
    let mut all = problems(yaml);
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}
