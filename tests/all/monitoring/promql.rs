//! As much of PromQL as it takes to find what an expression asks for. Whether it is one, promtool says.

/// What an expression asks for.
#[derive(Debug, Default, PartialEq)]
pub struct Expression {
    pub selectors: Vec<Selector>,
    /// Labels after `by`, `on` and the like.
    pub grouped_by: Vec<String>,
}

#[derive(Debug, PartialEq)]
pub struct Selector {
    pub metric: String,
    pub matchers: Vec<Matcher>,
}

#[derive(Debug, PartialEq)]
pub struct Matcher {
    pub label: String,
    /// The values it names; none where it is a pattern or a variable.
    pub values: Vec<String>,
}

const GROUPING: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];
const OPERATORS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];
const AGGREGATES: [&str; 7] = ["sum", "min", "max", "avg", "count", "topk", "bottomk"];

pub fn parse(text: &str) -> Expression {
    let mut found = Expression::default();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first == '[' {
            rest = &rest[rest.find(']').unwrap() + 1..];
        } else if first == '"' {
            rest = &rest[rest[1..].find('"').unwrap() + 2..];
        } else if first.is_ascii_digit() {
            // With its exponent or unit, which is no name.
            rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
        } else if is_name(first) {
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            rest = after.trim_start();
            rest = word(name, rest, &mut found);
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    found
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// Takes what belongs to a word, and returns what comes after.
fn word<'t>(name: &str, rest: &'t str, found: &mut Expression) -> &'t str {
    if GROUPING.contains(&name) {
        let Some(list) = rest.strip_prefix('(') else {
            return rest;
        };
        let (list, rest) = list.split_once(')').unwrap();
        let labels = list.split(',').map(|label| label.trim().to_owned());
        found.grouped_by.extend(labels.filter(|l| !l.is_empty()));
        return rest;
    }
    if rest.starts_with('(') || OPERATORS.contains(&name) || AGGREGATES.contains(&name) {
        return rest;
    }
    let (matchers, rest) = match rest.strip_prefix('{') {
        Some(inside) => {
            let end = end_of_braces(inside);
            (matchers(&inside[..end]), &inside[end + 1..])
        }
        None => (Vec::new(), rest),
    };
    let metric = name.to_owned();
    found.selectors.push(Selector { metric, matchers });
    rest
}

fn end_of_braces(inside: &str) -> usize {
    let mut is_quoted = false;
    let found = inside.char_indices().find(|(_, c)| {
        is_quoted ^= *c == '"';
        *c == '}' && !is_quoted
    });
    found.unwrap().0
}

fn matchers(text: &str) -> Vec<Matcher> {
    let mut parts = text.split('"');
    let mut matchers = Vec::new();
    while let (Some(before), Some(value)) = (parts.next(), parts.next()) {
        let before = before.trim_matches([',', ' ', '\n']);
        let label = before.trim_end_matches(['=', '!', '~']);
        let is_pattern = before.ends_with('~');
        let is_open = value.contains('$') || is_pattern && value.contains(['(', '.', '*', '[']);
        let values = match (is_open, is_pattern) {
            (true, _) => Vec::new(),
            (false, true) => value.split('|').map(str::to_owned).collect(),
            (false, false) => vec![value.to_owned()],
        };
        let label = label.to_owned();
        matchers.push(Matcher { label, values });
    }
    matchers
}

#[test]
fn what_an_expression_asks_for() {
    let selector = |metric: &str, matchers: &[(&str, &[&str])]| Selector {
        metric: metric.to_owned(),
        matchers: matchers
            .iter()
            .map(|(label, values)| Matcher {
                label: (*label).to_owned(),
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            })
            .collect(),
    };
    let text = r#"histogram_quantile(0.95, sum by (le, route) (rate(a_bucket{x="1",y=~"2|3",z!~"b:(c|d)"}[5m])))
        and on (route) (topk(5, b:c) > 1e3) or vector(0) - time() / d{instance=~"$instance"} offset 5m"#;
    let expected = Expression {
        selectors: vec![
            selector("a_bucket", &[("x", &["1"]), ("y", &["2", "3"]), ("z", &[])]),
            selector("b:c", &[]),
            selector("d", &[("instance", &[])]),
        ],
        grouped_by: ["le", "route", "route"].map(str::to_owned).to_vec(),
    };
    assert_eq!(parse(text), expected);
}
