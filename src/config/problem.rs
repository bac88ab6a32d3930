//! What is wrong with a configuration, and where.

use std::fmt;

use super::tree::Position;

/// More problems than this are not listed: whoever fixes these sees the rest.
pub const PROBLEMS_MAX: usize = 100;

/// One thing that is wrong, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub origin: Origin,
    /// The place in the configuration, such as `routes[2].execute`; empty for the whole file.
    pub path: String,
    pub message: String,
    pub hint: Option<String>,
}

/// What has to be edited.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    File {
        name: String,
        at: Option<Position>,
    },
    /// An environment variable.
    Variable(String),
}

/// Everything that is wrong, in the order of the file, variables last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// A place in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Index(usize),
}

impl Path {
    #[must_use]
    pub fn key(&self, key: &str) -> Path {
        self.step(Step::Key(key.to_string()))
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Path {
        self.step(Step::Index(index))
    }

    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    pub(super) fn step(&self, step: Step) -> Path {
        let mut steps = self.0.clone();
        steps.push(step);
        Path(steps)
    }

    /// Whether one of the two is the other or contains it.
    pub(super) fn touches(&self, other: &Path) -> bool {
        self.0
            .iter()
            .zip(&other.0)
            .all(|(mine, theirs)| mine == theirs)
    }

    pub(super) fn contains(&self, other: &Path) -> bool {
        self.0.len() <= other.0.len() && self.touches(other)
    }
}

/// A path from its own notation, for the constants of this crate: `server.https[0].address`.
impl From<&str> for Path {
    fn from(text: &str) -> Path {
        let mut path = Path::default();
        for part in text.split('.').filter(|part| !part.is_empty()) {
            let (key, indexes) = part.split_once('[').unwrap_or((part, ""));
            path.0.push(Step::Key(key.to_string()));
            let numbers = indexes
                .split(['[', ']'])
                .filter_map(|number| number.parse().ok());
            path.0.extend(numbers.map(Step::Index));
        }
        path
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) => write!(f, "{}{}", if index == 0 { "" } else { "." }, shown(key))?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { name, at: Some(at) } => write!(f, "{name}:{}:{}", at.line, at.column),
            Origin::File { name, at: None } => f.write_str(name),
            Origin::Variable(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " — {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Text from a file or a variable, fit for a terminal and a log: one line, bounded, without
/// control characters.
pub fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let mut shown: String = text
        .chars()
        .take(CHARS_MAX)
        .flat_map(char::escape_debug)
        .collect();
    // `escape_debug` also escapes quotes, which are harmless and common.
    shown = shown.replace("\\'", "'").replace("\\\"", "\"");
    if text.chars().nth(CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// The known name that is meant, if one is near.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The distance is quadratic in the lengths; no name of ours is that long.
    if name.len() > 64 {
        return None;
    }
    let name = name.to_ascii_lowercase();
    // Jaro-Winkler knows words that begin alike, the edit distance short ones with two letters swapped.
    let likeness = |candidate: &str| {
        let candidate = candidate.to_ascii_lowercase();
        let edits = strsim::osa_distance(&name, &candidate);
        let is_slip = edits <= 1.max(candidate.len() / 4);
        strsim::jaro_winkler(&name, &candidate).max(if is_slip { 0.9 } else { 0.0 })
    };
    known
        .into_iter()
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
