//! YAML as a tree whose every node knows where it stands in the file.
//!
//! One parser reads the file, so that a value and its line can't disagree. What a configuration has no use for
//! is refused: anchors, aliases (and with them the documents that grow when they are
//! expanded), tags, further documents, keys that are not plain, and depth.

use std::collections::HashSet;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span};

/// Largest file read, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Deepest nesting. The configuration itself needs seven levels.
const DEPTH_MAX: usize = 32;

/// A place in the file; both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// A value in the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Unique in its tree.
    pub id: usize,
    pub at: Position,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_at: Position,
    pub value: Node,
}

/// Something in the file that is not a configuration, whatever its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    pub at: Position,
    pub message: String,
    pub hint: Option<String>,
}

/// What was read.
#[derive(Debug)]
pub struct Parsed {
    /// `None` when the file can't be read to its end as one document.
    pub root: Option<Node>,
    pub flaws: Vec<Flaw>,
    /// Nodes to leave out: aliases, which are flaws already.
    pub left_out: HashSet<usize>,
}

/// Reads a whole file. Time and memory are linear in its length, which is bounded.
pub fn parse(text: &str) -> Parsed {
    let mut builder = Builder::default();
    if text.len() > FILE_BYTES_MAX {
        builder.flaw(
            Position { line: 1, column: 1 },
            format!("the file has {} bytes", text.len()),
            format!("a configuration may have at most {FILE_BYTES_MAX}"),
        );
        return builder.finish(false);
    }
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let going_on = match event {
            Ok((event, span)) => builder.event(event, span),
            Err(error) => builder.syntax(&error),
        };
        if !going_on {
            return builder.finish(false);
        }
    }
    builder.finish(true)
}

/// A collection that is not complete yet.
enum Open {
    Sequence {
        id: usize,
        at: Position,
        items: Vec<Node>,
    },
    Mapping {
        id: usize,
        at: Position,
        entries: Vec<Entry>,
        keys: HashSet<String>,
        key: Key,
    },
}

/// What a mapping expects next.
enum Key {
    None,
    /// A value for this key.
    Is(String, Position),
    /// A value that is thrown away: its key is a duplicate, or no key at all.
    Refused,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    next_id: usize,
    flaws: Vec<Flaw>,
    left_out: HashSet<usize>,
}

impl Builder {
    /// Takes one event; `false` ends the reading.
    fn event(&mut self, event: Event<'_>, span: Span) -> bool {
        let at = position(span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => true,
            Event::DocumentStart(_) => self.document(at),
            Event::Alias(_) => {
                self.flaw(
                    at,
                    "aliases are not supported".into(),
                    "write the value out where it is used".into(),
                );
                let node = self.node(at, Kind::Null);
                self.left_out.insert(node.id);
                self.value(node)
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.decorations(at, anchor, tag.is_some());
                if self.takes_key(&text, at) {
                    return true;
                }
                let node = self.node(at, scalar(&text, style));
                self.value(node)
            }
            Event::SequenceStart(anchor, tag) => {
                self.decorations(at, anchor, tag.is_some());
                let id = self.id();
                self.descend(Open::Sequence {
                    id,
                    at,
                    items: Vec::new(),
                })
            }
            Event::MappingStart(anchor, tag) => {
                self.decorations(at, anchor, tag.is_some());
                let id = self.id();
                self.descend(Open::Mapping {
                    id,
                    at,
                    entries: Vec::new(),
                    keys: HashSet::new(),
                    key: Key::None,
                })
            }
            Event::SequenceEnd | Event::MappingEnd => self.ascend(),
        }
    }

    fn document(&mut self, at: Position) -> bool {
        self.documents += 1;
        if self.documents > 1 {
            self.flaw(
                at,
                "a second document begins here".into(),
                "a configuration is one YAML document".into(),
            );
            return false;
        }
        true
    }

    fn decorations(&mut self, at: Position, anchor: usize, tagged: bool) {
        if anchor != 0 {
            self.flaw(
                at,
                "anchors are not supported".into(),
                "remove '&name'".into(),
            );
        }
        if tagged {
            self.flaw(at, "tags are not supported".into(), "remove '!tag'".into());
        }
    }

    /// Whether this scalar is a key of the innermost mapping.
    fn takes_key(&mut self, text: &str, at: Position) -> bool {
        let Some(Open::Mapping {
            entries,
            keys,
            key: key @ Key::None,
            ..
        }) = self.open.last_mut()
        else {
            return false;
        };
        if keys.insert(text.to_string()) {
            *key = Key::Is(text.to_string(), at);
            return true;
        }
        *key = Key::Refused;
        let first_line = entries
            .iter()
            .find(|entry| entry.key == text)
            .map_or(at.line, |entry| entry.key_at.line);
        self.flaw(
            at,
            format!("the key '{}' is given twice", super::problem::shown(text)),
            format!("remove one of them; the first is on line {first_line}"),
        );
        true
    }

    fn descend(&mut self, open: Open) -> bool {
        if self.open.len() >= DEPTH_MAX {
            let (Open::Sequence { at, .. } | Open::Mapping { at, .. }) = open;
            self.flaw(
                at,
                "the nesting is too deep".into(),
                format!("at most {DEPTH_MAX} levels are read"),
            );
            return false;
        }
        self.open.push(open);
        true
    }

    fn ascend(&mut self) -> bool {
        match self.open.pop() {
            Some(Open::Sequence { id, at, items }) => self.value(Node {
                id,
                at,
                kind: Kind::Sequence(items),
            }),
            Some(Open::Mapping {
                id, at, entries, ..
            }) => self.value(Node {
                id,
                at,
                kind: Kind::Mapping(entries),
            }),
            None => false,
        }
    }

    /// Puts a complete node where it belongs.
    fn value(&mut self, node: Node) -> bool {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::Sequence { items, .. }) => items.push(node),
            Some(Open::Mapping { entries, key, .. }) => match std::mem::replace(key, Key::None) {
                Key::Is(name, key_at) => entries.push(Entry {
                    key: name,
                    key_at,
                    value: node,
                }),
                Key::Refused => {}
                Key::None => {
                    *key = Key::Refused;
                    self.flaw(
                        node.at,
                        "a key must be plain text".into(),
                        "remove the '?', or the braces".into(),
                    );
                }
            },
        }
        true
    }

    fn node(&mut self, at: Position, kind: Kind) -> Node {
        Node {
            id: self.id(),
            at,
            kind,
        }
    }

    fn id(&mut self) -> usize {
        self.next_id += 1;
        self.next_id
    }

    fn syntax(&mut self, error: &ScanError) -> bool {
        // Mostly a path with a parameter.
        let hint = match error.info().contains("flow mapping") {
            true => "between { and }, put text with braces in quotes: { path: \"/a/{id}\" }",
            false => "check the indentation, colons and quotes on this line and the one before",
        };
        self.flaws.push(Flaw {
            at: position(*error.marker()),
            message: format!("not valid YAML: {}", error.info()),
            hint: Some(hint.into()),
        });
        false
    }

    fn flaw(&mut self, at: Position, message: String, hint: String) {
        if self.flaws.len() < super::problem::PROBLEMS_MAX {
            self.flaws.push(Flaw {
                at,
                message,
                hint: Some(hint),
            });
        }
    }

    fn finish(mut self, complete: bool) -> Parsed {
        if !complete {
            return Parsed {
                root: None,
                flaws: self.flaws,
                left_out: self.left_out,
            };
        }
        // A file of comments alone is the empty configuration.
        let at = Position { line: 1, column: 1 };
        let root = match self.root.take() {
            None => self.node(at, Kind::Mapping(Vec::new())),
            Some(Node {
                id,
                at,
                kind: Kind::Null,
            }) => Node {
                id,
                at,
                kind: Kind::Mapping(Vec::new()),
            },
            Some(root) => root,
        };
        Parsed {
            root: Some(root),
            flaws: self.flaws,
            left_out: self.left_out,
        }
    }
}

fn position(marker: Marker) -> Position {
    Position {
        line: marker.line().max(1),
        column: marker.col() + 1,
    }
}

/// A scalar's type by the core schema of YAML 1.2, section 10.3.2. What is quoted is text.
fn scalar(text: &str, style: ScalarStyle) -> Kind {
    if style != ScalarStyle::Plain {
        return Kind::Text(text.to_string());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" => return Kind::Bool(true),
        "false" | "False" | "FALSE" => return Kind::Bool(false),
        _ => {}
    }
    let radix = |prefix: &str, radix| {
        text.strip_prefix(prefix)
            .and_then(|digits| plain_digits(digits, radix))
    };
    if let Some(number) = radix("0x", 16)
        .or_else(|| radix("0o", 8))
        .or_else(|| plain_digits(text, 10))
    {
        return Kind::Unsigned(number);
    }
    if let Some(number) = text
        .strip_prefix('+')
        .and_then(|digits| plain_digits(digits, 10))
    {
        return Kind::Unsigned(number);
    }
    if let (true, Ok(number)) = (text.starts_with('-'), text.parse()) {
        return Kind::Signed(number);
    }
    // `parse` also takes words such as `inf` and `nan`, which are text here.
    match text.parse::<f64>() {
        Ok(number)
            if text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
                && number.is_finite() =>
        {
            Kind::Float(number)
        }
        _ => Kind::Text(text.to_string()),
    }
}

fn plain_digits(digits: &str, radix: u32) -> Option<u64> {
    // `from_str_radix` takes a sign of its own.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

impl Kind {
    /// What it is, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Kind::Null => "nothing",
            Kind::Bool(_) => "true or false",
            Kind::Unsigned(_) | Kind::Signed(_) => "a number",
            Kind::Float(_) => "a fraction",
            Kind::Text(_) => "text",
            Kind::Sequence(_) => "a list",
            Kind::Mapping(_) => "a mapping",
        }
    }
}
