//! What is read: documents, scripts, manifests; and the names in them.

use std::path::Path;

use crate::support::root;

/// A file of the tree, by its path from the root.
pub struct Text {
    pub path: String,
    pub body: String,
}

/// Directories whose files are held to what they name, and which other texts name files of.
const DIRECTORIES: [&str; 14] = [
    ".ci",
    ".github",
    "benches",
    "conf",
    "docker",
    "docs",
    "examples",
    "fuzz",
    "k8s",
    "migrations",
    "monitoring",
    "scripts",
    "src",
    "tests",
];

/// Those of them that are code of ours: it names what it likes, and the compiler looks at it.
const CODE: [&str; 6] = ["benches", "examples", "fuzz", "migrations", "src", "tests"];

/// What is written for people.
pub fn documents() -> Vec<Text> {
    let mut texts = everything();
    texts.retain(|text| text.path.ends_with(".md"));
    texts
}

/// Documents, scripts, manifests, dashboards, rules.
pub fn everything() -> Vec<Text> {
    let mut found = Vec::new();
    let listed = std::fs::read_dir(root()).unwrap();
    for entry in listed {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && DIRECTORIES.contains(&name.as_str()) && !CODE.contains(&name.as_str()) {
            walk(&path, &mut found);
        }
        // The change log tells of what may be gone again.
        let is_manifest = [".md", ".yml", ".yaml", ".toml"]
            .iter()
            .any(|e| name.ends_with(e));
        if path.is_file() && (is_manifest || name == "Dockerfile") && name != "CHANGELOG.md" {
            found.push(path);
        }
    }
    let texts: Vec<Text> = found.iter().filter_map(|path| Text::of(path)).collect();
    assert!(texts.len() > 20);
    texts
}

/// Every text of the directories of code, and of all others: where a name may be read.
pub fn readers() -> Vec<Text> {
    let mut found = Vec::new();
    for directory in CODE.into_iter().filter(|d| *d != "migrations") {
        walk(&root().join(directory), &mut found);
    }
    let code = found.iter().filter_map(|path| Text::of(path));
    let others = everything()
        .into_iter()
        .filter(|text| !text.path.ends_with(".md"));
    others.chain(code).collect()
}

fn walk(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => walk(&path, found),
            false => found.push(path),
        }
    }
}

impl Text {
    pub fn read(path: &str) -> Option<Text> {
        Text::of(&root().join(path))
    }

    /// `None` for what is not text.
    fn of(path: &Path) -> Option<Text> {
        let body = std::fs::read_to_string(path).ok()?;
        let path = path
            .strip_prefix(root())
            .ok()?
            .to_string_lossy()
            .into_owned();
        Some(Text { path, body })
    }

    /// The runs of such characters: line, run, and the character after it.
    pub fn words(&self, is_part: impl Fn(char) -> bool) -> Vec<(usize, String, Option<char>)> {
        let mut found = Vec::new();
        for (at, line) in self.body.lines().enumerate() {
            let mut rest = line;
            while let Some(begin) = rest.find(&is_part) {
                rest = &rest[begin..];
                let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
                found.push((at + 1, rest[..end].to_owned(), rest[end..].chars().next()));
                rest = &rest[end..];
            }
        }
        found
    }

    /// Lines, with those that end in a backslash joined to the next.
    fn lines(&self) -> Vec<(usize, String)> {
        let mut found: Vec<(usize, String)> = Vec::new();
        let mut goes_on = false;
        for (at, line) in self.body.lines().enumerate() {
            let (text, more) = match line.strip_suffix('\\') {
                Some(text) => (text, true),
                None => (line, false),
            };
            match found.last_mut() {
                Some((_, last)) if goes_on => last.push_str(text.trim_start()),
                _ => found.push((at + 1, text.to_owned())),
            }
            goes_on = more;
        }
        found
    }

    /// Where this program is called, or named with a command: the words behind its name.
    pub fn calls(&self, program: &str) -> Vec<(usize, Vec<String>)> {
        let mut found = Vec::new();
        for (line, text) in self.lines() {
            for (at, _) in text.match_indices(&format!("{program} ")) {
                let before = text[..at].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || "-_.".contains(c)) {
                    continue;
                }
                let in_code = before == Some('`');
                let words = call(&text[at + program.len()..]);
                // Prose goes on with anything; a call begins with a command.
                let is_call = words
                    .first()
                    .is_some_and(|w| in_code || super::known::is_command(w));
                if is_call {
                    found.push((line, words));
                }
            }
        }
        found
    }

    /// Where a script is called or named: line, path, and the words behind it.
    pub fn scripts(&self) -> Vec<(usize, String, Vec<String>)> {
        let mut found = Vec::new();
        for (line, text) in self.lines() {
            for (at, _) in text.match_indices("scripts/") {
                let is_end = |c: char| !(c.is_ascii_alphanumeric() || "_./-".contains(c));
                let end = text[at..].find(is_end).map_or(text.len(), |end| at + end);
                let path = &text[at..end];
                let before = text[..at].strip_suffix("./").unwrap_or(&text[..at]);
                let is_ours =
                    before.is_empty() || before.ends_with([' ', '`', '"', '\'', '(', '/', '[']);
                if path.ends_with(".sh") && is_ours && !before.ends_with("//") {
                    // As a variable's value it is not what is called here.
                    let word = before.rsplit(' ').next().unwrap_or(before);
                    let words = match word.contains('=') {
                        true => Vec::new(),
                        false => call(&text[end..]),
                    };
                    found.push((line, path.to_owned(), words));
                }
            }
        }
        found
    }

    /// The gateway's own endpoints: paths that belong to it, alone or in a URL.
    pub fn endpoints(&self) -> Vec<(usize, String)> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "_./:{}$*…~%-".contains(c);
        let mut found = Vec::new();
        for (line, word, _) in self.words(is_part) {
            let Some(path) = super::known::path_of(&word) else {
                continue;
            };
            let path = path.trim_end_matches(['.', ':', '-']);
            let owned = ["/api/", "/health", "/readyz", "/metrics", "/.well-known/"];
            if owned.iter().any(|begin| path.starts_with(begin)) && !super::known::is_foreign(path)
            {
                found.push((line, path.to_owned()));
            }
        }
        found
    }

    /// Files of this tree that are named.
    pub fn paths(&self) -> Vec<(usize, String)> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
        let mut found = Vec::new();
        for (line, word, next) in self.words(is_part) {
            let word = word.strip_prefix("./").unwrap_or(&word);
            let Some((first, rest)) = word.split_once('/') else {
                continue;
            };
            if rest.is_empty() || !DIRECTORIES.contains(&first) {
                continue;
            }
            // Of a name with a part that stands for several, the directory is looked for.
            let path = match next {
                Some('*' | '{' | '$' | '<' | '…') => {
                    word.rsplit_once('/').map_or(word, |(d, _)| d)
                }
                _ => word,
            };
            found.push((line, path.trim_end_matches(['.', '-']).to_owned()));
        }
        found
    }

    /// Keys of the configuration that stand in code spans, such as `server.https[].address`.
    pub fn keys(&self) -> Vec<(usize, Vec<String>)> {
        let sections = super::known::sections();
        let mut found = Vec::new();
        for (at, line) in self.body.lines().enumerate() {
            for span in line.split('`').skip(1).step_by(2) {
                let span = span.split([' ', ':', '=']).next().unwrap_or(span);
                let is_key =
                    |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.[]".contains(c);
                let (section, rest) = span.split_once('.').unwrap_or((span, ""));
                let section = section.trim_end_matches("[]");
                let is_file = [".rs", ".yaml", ".yml", ".toml", ".md"]
                    .iter()
                    .any(|e| span.ends_with(e));
                if rest.is_empty()
                    || !span.chars().all(is_key)
                    || is_file
                    || !sections.contains(section)
                {
                    continue;
                }
                let key = span
                    .split('.')
                    .map(|k| k.split('[').next().unwrap_or(k).to_owned());
                found.push((at + 1, key.collect()));
            }
        }
        found
    }
}

/// The words of a call, up to where the shell, or the text around it, ends it.
fn call(rest: &str) -> Vec<String> {
    let end = rest.find(['|', '&', ';', '`', '#', ')', '<', '>', ',', '"', '\'']);
    let call = &rest[..end.unwrap_or(rest.len())];
    // Two spaces separate a command from what a table says of it.
    let call = call.trim_start();
    let call = call.split("   ").next().unwrap_or(call);
    call.split_whitespace().map(str::to_owned).collect()
}
