//! The metrics page, read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Labels whose values are not a closed list, or depend on what happened.
const OPEN: [&str; 8] = [
    "route",
    "upstream",
    "listener",
    "file",
    "module",
    "method",
    "version",
    "directory",
];

pub struct Page(BTreeMap<String, Family>);

#[derive(Default)]
pub struct Family {
    pub kind: String,
    pub help: String,
    /// Each label with its values.
    pub labels: BTreeMap<String, BTreeSet<String>>,
}

impl Family {
    pub fn is_open(label: &str) -> bool {
        OPEN.contains(&label)
    }
}

impl Page {
    pub fn parse(text: &str) -> Page {
        let mut families = BTreeMap::<String, Family>::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                families.entry(name.into()).or_default().help = help.into();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                families.entry(name.into()).or_default().kind = kind.into();
            } else {
                let name = line.split(['{', ' ']).next().unwrap();
                let name = base(&families, name).unwrap_or_else(|| panic!("{line}"));
                let family = families.get_mut(&name).unwrap();
                for (label, value) in labels(line) {
                    family.labels.entry(label).or_default().insert(value);
                }
            }
        }
        assert!(!families.is_empty(), "{text}");
        Page(families)
    }

    /// The family of a metric, which may be a part of a histogram.
    pub fn family(&self, metric: &str) -> Option<&Family> {
        self.0.get(&base(&self.0, metric)?)
    }

    pub fn families(&self) -> impl Iterator<Item = (&String, &Family)> {
        self.0.iter()
    }

    /// As it stands in the documentation.
    pub fn table(&self) -> String {
        let mut table =
            "\n| metric | type | labels | what it says |\n|---|---|---|---|\n".to_owned();
        for (name, family) in &self.0 {
            let labels: Vec<String> = family
                .labels
                .iter()
                .filter(|(label, _)| *label != "le")
                .map(|(label, values)| {
                    let depends = label == "status" && name == "wasmwiz_requests_total";
                    if Family::is_open(label) || depends {
                        return format!("`{label}`");
                    }
                    let values: Vec<&str> = values.iter().map(String::as_str).collect();
                    format!("`{label}` ({})", values.join(", "))
                })
                .collect();
            let (kind, help) = (&family.kind, &family.help);
            let labels = labels.join(", ");
            writeln!(table, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
        }
        table
    }
}

/// The name of the family that a metric belongs to.
fn base(families: &BTreeMap<String, Family>, metric: &str) -> Option<String> {
    if families.contains_key(metric) {
        return Some(metric.to_owned());
    }
    ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
        let name = metric.strip_suffix(suffix)?;
        let family = families.get(name)?;
        (family.kind == "histogram").then(|| name.to_owned())
    })
}

/// The labels of a row; none of our values has a quotation mark in it.
fn labels(line: &str) -> Vec<(String, String)> {
    let Some((_, rest)) = line.split_once('{') else {
        return Vec::new();
    };
    let mut parts = rest.rsplit_once('}').unwrap().0.split('"');
    let mut labels = Vec::new();
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        let name = name.trim_matches([',', '=', ' ']);
        labels.push((name.to_owned(), value.to_owned()));
    }
    labels
}
