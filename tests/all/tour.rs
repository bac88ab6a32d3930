//! The README's tour, command by command: what it says is what happens.

use std::process::Command;

use crate::support::gateway::gateway;
use crate::support::root;

/// A command of a `console` block with the output shown under it.
struct Step {
    command: String,
    expected: String,
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                command: command.to_owned(),
                expected: String::new(),
            });
        } else if inside && let Some(step) = steps.last_mut() {
            step.expected.push_str(line);
            step.expected.push('\n');
        }
    }
    steps
}

/// Whether `text` is `pattern`, in which `…` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let parts: Vec<&str> = pattern.trim_end().split('…').collect();
    let text = text.trim_end();
    let Some(mut rest) = text.strip_prefix(parts[0]) else {
        return false;
    };
    for part in &parts[1..] {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
        || parts.len() > 1 && parts[parts.len() - 1].is_empty()
        || parts.len() > 1 && text.ends_with(parts[parts.len() - 1])
}

#[test]
fn every_command_of_the_tour_does_what_the_readme_shows() {
    let gateway = gateway().start();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let steps = steps(&readme);
    assert!(steps.len() >= 10, "the tour has lost its commands");
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_wasm-wizard"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let scratch = tempfile::tempdir().unwrap();
    for step in steps {
        let command = step
            .command
            .replace("localhost:8443", &format!("localhost:{}", gateway.https))
            .replace("127.0.0.1:9091", &format!("127.0.0.1:{}", gateway.admin))
            .replace("/tmp/", &format!("{}/", scratch.path().display()));
        let output = Command::new("bash")
            .args(["-c", &format!("({command}) 2>&1")])
            .current_dir(root())
            .env("PATH", &path)
            .env("KEY", gateway.admin_key())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "$ {}\n{text}", step.command);
        assert!(
            matches(&step.expected, &text),
            "$ {}\nshown:\n{}\ngot:\n{text}",
            step.command,
            step.expected
        );
    }
}

#[test]
fn the_pattern_is_not_too_kind() {
    assert!(matches("401\n", "401\n"));
    assert!(!matches("401", "4011"));
    assert!(!matches("401", "200"));
    assert!(matches("{…\"a\":1…}", "{\"x\":0,\"a\":1,\"b\":2}\n"));
    assert!(!matches("{…\"a\":1…}", "{\"x\":0}"));
}
