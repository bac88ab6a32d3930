//! What validation works in: it knows where each value was written, and collects what is wrong.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;

use super::de::Misfit;
use super::problem::{Origin, PROBLEMS_MAX, Path, Problem, Problems, Step};
use super::tree::{Flaw, Kind, Node, Position};
use super::values::{Period, Size};

/// Problems, and warnings, that are placed in the file. To place one takes time in proportion to the
/// file, so a file made of mistakes must not have all of them placed.
const NOTED_MAX: usize = 10 * PROBLEMS_MAX;

/// Where the values came from.
#[derive(Debug, Default)]
pub struct Source {
    /// The file as it is shown.
    pub name: String,
    pub root: Option<Node>,
    /// Nodes that were not taken over.
    pub left_out: HashSet<usize>,
    /// Values that a variable gave.
    pub overrides: Vec<(Path, &'static str)>,
}

/// The source, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Context {
    pub source: Source,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    /// Problems beyond [`NOTED_MAX`], which are only counted.
    more: usize,
    /// Places, as numbered in the file, about which enough has been said.
    silenced: Vec<Path>,
    /// Every range that was checked, so that tests can hold the documentation to them.
    #[cfg(test)]
    pub ranges: Vec<(String, String, String)>,
}

/// A value's place in the file.
struct Place {
    at: Option<Position>,
    /// Differs from the path of the value where elements before it were left out.
    path: Path,
}

impl Source {
    fn place(&self, path: &Path) -> Place {
        let mut place = Place {
            at: None,
            path: Path::default(),
        };
        let mut node = self.root.as_ref();
        for step in path.steps() {
            let found = node.and_then(|node| self.child(node, step));
            place.path = place.path.step(
                found
                    .as_ref()
                    .map_or_else(|| step.clone(), |(step, _, _)| step.clone()),
            );
            if let Some((_, at, _)) = &found {
                place.at = Some(*at);
            }
            node = found.map(|(_, _, child)| child);
        }
        place
    }

    fn child<'n>(&self, node: &'n Node, step: &Step) -> Option<(Step, Position, &'n Node)> {
        match (&node.kind, step) {
            (Kind::Mapping(entries), Step::Key(key)) => entries
                .iter()
                .find(|entry| entry.key == *key && !self.left_out.contains(&entry.value.id))
                .map(|entry| (step.clone(), entry.key_at, &entry.value)),
            (Kind::Sequence(items), Step::Index(index)) => items
                .iter()
                .enumerate()
                .filter(|(_, item)| !self.left_out.contains(&item.id))
                .nth(*index)
                .map(|(original, item)| (Step::Index(original), item.at, item)),
            _ => None,
        }
    }

    fn variable(&self, path: &Path) -> Option<&'static str> {
        self.overrides
            .iter()
            .rev()
            .find(|(overridden, _)| overridden.contains(path))
            .map(|(_, name)| *name)
    }

    /// A problem with the value at this path, as it is after the variables.
    pub fn problem(&self, path: &Path, message: impl Display, hint: &str) -> Problem {
        let message = bounded(message.to_string());
        let hint = (!hint.is_empty()).then(|| hint.to_string());
        if let Some(variable) = self.variable(path) {
            return Problem {
                origin: Origin::Variable(variable.to_string()),
                path: String::new(),
                message,
                hint,
            };
        }
        let place = self.place(path);
        let origin = Origin::File {
            name: self.name.clone(),
            at: place.at,
        };
        Problem {
            origin,
            path: place.path.to_string(),
            message,
            hint,
        }
    }

    /// The place of every node, by id: its path, and where its key or itself stands.
    fn index(&self) -> HashMap<usize, (Path, Position)> {
        let mut index = HashMap::new();
        let mut open: Vec<(&Node, Path, Position)> = self
            .root
            .iter()
            .map(|root| (root, Path::default(), root.at))
            .collect();
        while let Some((node, path, at)) = open.pop() {
            match &node.kind {
                Kind::Sequence(items) => {
                    open.extend(
                        items
                            .iter()
                            .enumerate()
                            .map(|(i, item)| (item, path.index(i), item.at)),
                    );
                }
                Kind::Mapping(entries) => {
                    open.extend(
                        entries
                            .iter()
                            .map(|entry| (&entry.value, path.key(&entry.key), entry.key_at)),
                    );
                }
                Kind::Null
                | Kind::Bool(_)
                | Kind::Unsigned(_)
                | Kind::Signed(_)
                | Kind::Float(_)
                | Kind::Text(_) => {}
            }
            index.insert(node.id, (path, at));
        }
        index
    }
}

impl Context {
    pub fn new(name: String) -> Context {
        Context {
            source: Source {
                name,
                ..Source::default()
            },
            ..Context::default()
        }
    }

    /// Something is wrong with the value at this path. An empty hint is none.
    pub fn problem(&mut self, path: &Path, message: impl Display, hint: &str) {
        if self.problems.len() >= NOTED_MAX {
            self.more += 1;
            return;
        }
        let original = self.source.place(path).path;
        self.silenced.push(original);
        self.problems.push(self.source.problem(path, message, hint));
    }

    /// The value at this path is missing; not said again where something is wrong with it, or in
    /// it, or around it.
    pub fn missing(&mut self, path: &Path, message: impl Display, hint: &str) {
        if !self.is_silenced(path) {
            self.problem(path, message, hint);
        }
    }

    /// Whether something was already said about this place, or what is in it or around it.
    pub fn is_silenced(&self, path: &Path) -> bool {
        let original = self.source.place(path).path;
        self.silenced
            .iter()
            .any(|silenced| silenced.touches(&original))
    }

    /// Something that may be meant, but should be known.
    pub fn warning(&mut self, path: &Path, message: impl Display, hint: &str) {
        if self.warnings.len() < NOTED_MAX {
            self.warnings.push(self.source.problem(path, message, hint));
        }
    }

    /// A variable can't be used.
    pub fn variable_problem(&mut self, name: &str, message: impl Display, hint: &str) {
        self.problems.push(variable(name, message, hint));
    }

    /// The whole file can't be used.
    pub fn file_problem(&mut self, message: impl Display, hint: &str) {
        self.problem(&Path::default(), message, hint);
        self.silenced.clear();
    }

    pub fn flaws(&mut self, flaws: Vec<Flaw>) {
        for flaw in flaws {
            let origin = Origin::File {
                name: self.source.name.clone(),
                at: Some(flaw.at),
            };
            self.problems.push(Problem {
                origin,
                path: String::new(),
                message: flaw.message,
                hint: flaw.hint,
            });
        }
    }

    pub fn misfits(&mut self, misfits: Vec<Misfit>) {
        if misfits.is_empty() {
            return;
        }
        let index = self.source.index();
        for misfit in misfits {
            let (path, at) = index.get(&misfit.node).cloned().unzip();
            let path = path.unwrap_or_default();
            let at = misfit
                .entry
                .and_then(|entry| index.get(&entry))
                .map(|(_, at)| *at)
                .or(at);
            match (misfit.entry, misfit.meant) {
                (None, _) => self.silenced.push(path.clone()),
                (Some(_), Some(meant)) => self.silenced.push(path.key(meant)),
                (Some(_), None) => {}
            }
            self.problems.push(Problem {
                origin: Origin::File {
                    name: self.source.name.clone(),
                    at,
                },
                path: path.to_string(),
                message: misfit.message,
                hint: misfit.hint,
            });
        }
    }

    /// Whether a size is in its range, ends included.
    pub fn size(&mut self, path: &Path, value: Size, min: Size, max: Size) {
        let hint = if value < min {
            "a bare number is bytes: write a unit, such as 128MiB"
        } else {
            ""
        };
        self.range(path, value, min, max, hint);
    }

    /// Whether a duration is in its range, ends included.
    pub fn period(&mut self, path: &Path, value: Period, min: Period, max: Period) {
        let hint = if value > max {
            "a bare number is seconds: write a unit, such as 200ms"
        } else {
            ""
        };
        self.range(path, value, min, max, hint);
    }

    /// Whether a count is in its range, ends included.
    pub fn count(&mut self, path: &Path, value: u32, min: u32, max: u32) {
        self.range(path, value, min, max, "");
    }

    /// Whether a number is a share: from none to all.
    pub fn share(&mut self, path: &Path, value: f64) {
        // What is not a number is in no range, and out of none.
        let value = if value.is_nan() { f64::INFINITY } else { value };
        self.range(path, value, 0.0, 1.0, "");
    }

    fn range<T: Display + PartialOrd>(
        &mut self,
        path: &Path,
        value: T,
        min: T,
        max: T,
        hint: &str,
    ) {
        #[cfg(test)]
        self.ranges
            .push((path.to_string(), min.to_string(), max.to_string()));
        if value < min || value > max {
            self.problem(
                path,
                format_args!("must be between {min} and {max}, not {value}"),
                hint,
            );
        }
    }

    pub fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// The source and the warnings, or every problem, in the order of the file.
    pub fn finish(mut self) -> Result<(Source, Vec<Problem>), Problems> {
        if self.problems.is_empty() {
            return Ok((self.source, self.warnings));
        }
        self.problems.sort_by(|a, b| a.origin.cmp(&b.origin));
        self.problems.dedup();
        let more = self.more + self.problems.len().saturating_sub(PROBLEMS_MAX);
        self.problems.truncate(PROBLEMS_MAX);
        if more > 0 {
            self.file_problem(
                format_args!("there are {more} more problems"),
                "fix these first",
            );
        }
        Err(Problems(self.problems))
    }
}

/// Messages of other modules quote what they were given, however long it is.
fn bounded(mut message: String) -> String {
    const CHARS_MAX: usize = 400;
    if let Some((end, _)) = message.char_indices().nth(CHARS_MAX) {
        message.truncate(end);
        message.push('…');
    }
    message.replace(char::is_control, " ")
}

fn variable(name: &str, message: impl Display, hint: &str) -> Problem {
    Problem {
        origin: Origin::Variable(name.to_string()),
        path: String::new(),
        message: message.to_string(),
        hint: (!hint.is_empty()).then(|| hint.to_string()),
    }
}
