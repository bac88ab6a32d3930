//! From the tree to types, with every problem found.
//!
//! Serde stops at the first error. So unknown keys are noted on the way and skipped, and a value
//! that has the wrong type is noted, left out, and the whole is read again.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor,
};

use super::problem::{PROBLEMS_MAX, nearest, shown};
use super::tree::{Entry, Kind, Node};

/// A value that was not taken, or a key nobody knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Misfit {
    pub node: usize,
    pub message: String,
    pub hint: Option<String>,
    /// The key that was probably meant; it is not to be reported as missing.
    pub meant: Option<&'static str>,
    /// For an unknown key: the key's own node, where `node` is the mapping.
    pub entry: Option<usize>,
}

/// Reads `T` from the tree. Nodes that don't fit are added to `left_out`; where even the root does
/// not, the result is `None`.
pub fn read<T: DeserializeOwned>(
    root: &Node,
    left_out: &mut HashSet<usize>,
) -> (Option<T>, Vec<Misfit>) {
    let mut misfits = Vec::new();
    loop {
        let unknown = RefCell::new(Vec::new());
        let reading = Reading {
            left_out,
            unknown: &unknown,
        };
        match T::deserialize(Reader {
            node: root,
            reading,
        }) {
            Ok(value) => {
                misfits.extend(unknown.into_inner());
                return (Some(value), misfits);
            }
            Err(error) => {
                let node = error.node.unwrap_or(root.id);
                if !error.is_noted {
                    misfits.push(Misfit {
                        node,
                        message: error.message,
                        hint: error.hint,
                        meant: None,
                        entry: None,
                    });
                }
                let is_new = left_out.insert(node);
                if node == root.id || !is_new || misfits.len() >= PROBLEMS_MAX {
                    misfits.extend(unknown.into_inner());
                    return (None, misfits);
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Reading<'t> {
    left_out: &'t HashSet<usize>,
    unknown: &'t RefCell<Vec<Misfit>>,
}

#[derive(Clone, Copy)]
struct Reader<'t> {
    node: &'t Node,
    reading: Reading<'t>,
}

/// Why a value does not fit. The value itself is never part of it: it may be a secret.
#[derive(Debug)]
pub struct Error {
    node: Option<usize>,
    message: String,
    hint: Option<String>,
    /// Follows from a misfit that was noted before.
    is_noted: bool,
}

impl Error {
    fn new(message: impl fmt::Display) -> Error {
        Error {
            node: None,
            message: message.to_string(),
            hint: None,
            is_noted: false,
        }
    }

    fn at(mut self, node: &Node) -> Error {
        self.node.get_or_insert(node.id);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Error {
        Error::new(message)
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Error {
        let found = match unexpected {
            Unexpected::Bool(_) => "true or false",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => "a number",
            Unexpected::Float(_) => "a fraction",
            Unexpected::Char(_) | Unexpected::Str(_) | Unexpected::Bytes(_) => "text",
            Unexpected::Unit | Unexpected::Option => "nothing",
            Unexpected::Seq => "a list",
            Unexpected::Map => "a mapping",
            Unexpected::NewtypeStruct
            | Unexpected::Enum
            | Unexpected::UnitVariant
            | Unexpected::NewtypeVariant
            | Unexpected::TupleVariant
            | Unexpected::StructVariant
            | Unexpected::Other(_) => "something else",
        };
        let expected = plain(&expected.to_string());
        let mut error = Error::new(format_args!("must be {expected}, not {found}"));
        if expected == "text" && matches!(found, "a number" | "a fraction" | "true or false") {
            error.hint = Some("put it in quotes".to_string());
        }
        error
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Error {
        Error::new(format_args!("must be {}", plain(&expected.to_string())))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Error {
        let mut error = Error::new(format_args!(
            "must be {}, not '{}'",
            list(expected),
            shown(variant)
        ));
        error.hint = did_you_mean(variant, expected).map(|(_, hint)| hint);
        error
    }
}

/// Serde's words for what it expects, in the words of the documentation.
fn plain(expected: &str) -> String {
    match expected {
        "a string" => "text".to_string(),
        "a boolean" => "true or false".to_string(),
        "a sequence" => "a list".to_string(),
        "a map" => "a mapping".to_string(),
        "u16" | "u32" | "u64" | "usize" => "a whole number".to_string(),
        expected if expected.starts_with("struct ") => "a mapping".to_string(),
        expected if expected.starts_with("enum ") => "one of its words".to_string(),
        expected => expected.to_string(),
    }
}

fn list(words: &[&str]) -> String {
    match words {
        [] => "absent".to_string(),
        [word] => format!("'{word}'"),
        [words @ .., last] => {
            let words: Vec<String> = words.iter().map(|word| written(word)).collect();
            format!("{} or {}", words.join(", "), written(last))
        }
    }
}

/// A word of the file as it is written: some need a value.
fn written(word: &str) -> String {
    match word {
        "role" | "hash_header" | "hash_cookie" => format!("{{ {word}: … }}"),
        _ => format!("'{word}'"),
    }
}

fn did_you_mean(name: &str, known: &'static [&'static str]) -> Option<(&'static str, String)> {
    let meant = nearest(name, known.iter().copied())?;
    Some((meant, format!("did you mean '{meant}'?")))
}

impl<'t> Reader<'t> {
    fn child(self, node: &'t Node) -> Reader<'t> {
        Reader { node, ..self }
    }

    fn kept<'a>(self, nodes: &'a [Node]) -> impl Iterator<Item = &'a Node> + use<'a, 't> {
        nodes
            .iter()
            .filter(move |node| !self.reading.left_out.contains(&node.id))
    }

    fn entries(self, entries: &'t [Entry]) -> Entries<'t> {
        let kept = entries
            .iter()
            .filter(|entry| !self.reading.left_out.contains(&entry.value.id))
            .collect::<Vec<_>>();
        Entries {
            reader: self,
            entries: kept.into_iter(),
            value: None,
        }
    }

    /// The entries whose keys are fields; the others are noted.
    fn fields(self, entries: &'t [Entry], fields: &'static [&'static str]) -> Entries<'t> {
        let mut known = self.entries(entries);
        let (kept, unknown): (Vec<_>, Vec<_>) = known
            .entries
            .partition(|entry| fields.contains(&entry.key.as_str()));
        for entry in unknown {
            let (meant, hint) = did_you_mean(&entry.key, fields).unzip();
            let mut noted = self.reading.unknown.borrow_mut();
            if noted.len() < PROBLEMS_MAX {
                noted.push(Misfit {
                    node: self.node.id,
                    message: format!("unknown key '{}'", shown(&entry.key)),
                    hint: hint.or_else(|| Some(format!("the keys here are {}", fields.join(", ")))),
                    meant,
                    entry: Some(entry.value.id),
                });
            }
        }
        known.entries = kept.into_iter();
        known
    }
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Unsigned(value) => visitor.visit_u64(*value),
            Kind::Signed(value) => visitor.visit_i64(*value),
            Kind::Float(value) => visitor.visit_f64(*value),
            Kind::Text(value) => visitor.visit_str(value),
            Kind::Sequence(items) => visitor.visit_seq(Items {
                reader: self,
                items: self.kept(items),
            }),
            Kind::Mapping(entries) => visitor.visit_map(self.entries(entries)),
        }
        .map_err(|error| error.at(self.node))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Null => visitor.visit_none(),
            Kind::Bool(_)
            | Kind::Unsigned(_)
            | Kind::Signed(_)
            | Kind::Float(_)
            | Kind::Text(_)
            | Kind::Sequence(_)
            | Kind::Mapping(_) => visitor.visit_some(self),
        }
    }

    /// `key:` with everything below it commented out leaves every default.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Null => visitor.visit_map(self.entries(&[])),
            Kind::Mapping(entries) => visitor.visit_map(self.fields(entries, fields)),
            kind @ (Kind::Bool(_)
            | Kind::Unsigned(_)
            | Kind::Signed(_)
            | Kind::Float(_)
            | Kind::Text(_)
            | Kind::Sequence(_)) => Err(Error::new(format_args!(
                "must be a mapping, not {}",
                kind.name()
            ))),
        }
        .map_err(|error| error.at(self.node))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Null => visitor.visit_seq(Items {
                reader: self,
                items: [].iter(),
            }),
            Kind::Bool(_)
            | Kind::Unsigned(_)
            | Kind::Signed(_)
            | Kind::Float(_)
            | Kind::Text(_)
            | Kind::Sequence(_)
            | Kind::Mapping(_) => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Null => visitor.visit_map(self.entries(&[])),
            Kind::Bool(_)
            | Kind::Unsigned(_)
            | Kind::Signed(_)
            | Kind::Float(_)
            | Kind::Text(_)
            | Kind::Sequence(_)
            | Kind::Mapping(_) => self.deserialize_any(visitor),
        }
    }

    /// A word, or a mapping of one word to its value.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.kind {
            Kind::Text(word) => visitor.visit_enum(Choice {
                word,
                value: None,
                reader: self,
            }),
            Kind::Mapping(entries) => match entries.as_slice() {
                // A choice whose value was left out is no choice.
                [entry] if self.reading.left_out.contains(&entry.value.id) => Err(Error {
                    is_noted: true,
                    ..Error::new("has no value")
                }),
                [entry] => visitor.visit_enum(Choice {
                    word: &entry.key,
                    value: Some(&entry.value),
                    reader: self,
                }),
                _ => Err(Error::new(format_args!(
                    "must be one of {}",
                    list(variants)
                ))),
            },
            Kind::Null
            | Kind::Bool(_)
            | Kind::Unsigned(_)
            | Kind::Signed(_)
            | Kind::Float(_)
            | Kind::Sequence(_) => Err(Error::new(format_args!(
                "must be {}, not {}",
                list(variants),
                self.node.kind.name()
            ))),
        }
        .map_err(|error| error.at(self.node))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}

struct Items<'t, I> {
    reader: Reader<'t>,
    items: I,
}

impl<'de, 't, I: Iterator<Item = &'t Node>> de::SeqAccess<'de> for Items<'t, I> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        match self.items.next() {
            Some(node) => seed
                .deserialize(self.reader.child(node))
                .map(Some)
                .map_err(|error| error.at(node)),
            None => Ok(None),
        }
    }
}

struct Entries<'t> {
    reader: Reader<'t>,
    entries: std::vec::IntoIter<&'t Entry>,
    value: Option<&'t Node>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some(entry) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some(&entry.value);
        let key: StrDeserializer<'_, Error> = entry.key.as_str().into_deserializer();
        seed.deserialize(key)
            .map(Some)
            .map_err(|error| error.at(&entry.value))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let node = self
            .value
            .take()
            .ok_or_else(|| Error::new("a key has no value"))?;
        seed.deserialize(self.reader.child(node))
            .map_err(|error| error.at(node))
    }
}

struct Choice<'t> {
    word: &'t str,
    value: Option<&'t Node>,
    reader: Reader<'t>,
}

impl<'de, 't> de::EnumAccess<'de> for Choice<'t> {
    type Error = Error;
    type Variant = Choice<'t>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Choice<'t>), Error> {
        let word: StrDeserializer<'_, Error> = self.word.into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'de> de::VariantAccess<'de> for Choice<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.value {
            None => Ok(()),
            Some(_) => Err(Error::new(format_args!(
                "'{}' takes no value",
                shown(self.word)
            ))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        match self.value {
            Some(node) => seed
                .deserialize(self.reader.child(node))
                .map_err(|error| error.at(node)),
            None => Err(Error::new(format_args!(
                "'{0}' needs a value: {{ {0}: … }}",
                shown(self.word)
            ))),
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::new("must be a single value"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value {
            Some(node) => {
                de::Deserializer::deserialize_struct(self.reader.child(node), "", fields, visitor)
            }
            // A word alone is the choice with all its defaults.
            None => visitor.visit_map(self.reader.fields(&[], fields)),
        }
    }
}
