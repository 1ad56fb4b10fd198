//! Reads a type from the tree, again and again, until every mistake is known.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use serde::de::{self, DeserializeOwned, IntoDeserializer as _, Unexpected, Visitor};
use toml::{Spanned, de::DeValue};

use super::{
    ConfigError, ERRORS_MAX,
    tree::{KeyPath, Step, Tree},
};

/// What came of reading a type from a tree.
pub(super) struct Reading<T> {
    /// The value, with defaults where keys were taken out; `None` if not even that can be had.
    pub(super) value: Option<T>,
    pub(super) errors: Vec<ConfigError>,
    /// The keys that were at fault.
    pub(super) taken_out: BTreeSet<KeyPath>,
    tables_gone: bool,
}

impl<T: DeserializeOwned> Reading<T> {
    /// Reads a `T`; `is_broken` says that the text was not all TOML, so that keys may be missing.
    pub(super) fn of<'t>(tree: &'t Tree<'t>, is_broken: bool) -> Self {
        let mut reading = Self { value: None, errors: Vec::new(), taken_out: BTreeSet::new(), tables_gone: false };
        while reading.errors.len() < ERRORS_MAX {
            let root = Node { value: &tree.root, path: KeyPath::default(), taken_out: &reading.taken_out };
            match T::deserialize(root) {
                Ok(value) => {
                    reading.value = Some(value);
                    break;
                }
                Err(fault) => {
                    if !reading.take_out(tree, fault, is_broken) {
                        break;
                    }
                }
            }
        }
        reading
    }
}

impl<T> Reading<T> {
    /// True if a check of the value would mostly report what the removals did.
    pub(super) fn whole_tables_gone(&self) -> bool {
        self.tables_gone
    }

    /// Records the fault and takes its key out; false if there is nothing left to take out.
    fn take_out(&mut self, tree: &Tree<'_>, fault: Fault, is_broken: bool) -> bool {
        let at = fault.path.unwrap_or_default();
        let (target, error) = match fault.kind {
            FaultKind::UnknownKey { key, expected } => {
                let target = find_key(tree, &at, &key, &self.taken_out);
                let hint = suggestion(&key, expected, "the keys here are");
                let message = format!("unknown key `{key}`");
                let error = tree.error_at_key(&target, message, hint);
                (target, Some(error))
            }
            FaultKind::MissingKey { key } => {
                let is_own_doing = self
                    .taken_out
                    .iter()
                    .any(|gone| gone.starts_with(&at) && matches!(gone.steps.last(), Some(Step::Key(last)) if last == key));
                let error = (!is_own_doing && !is_broken).then(|| {
                    let place = if at.steps.is_empty() { "the file" } else { "this table" };
                    let hint = format!("add `{key} = ...` to {place}");
                    tree.error_at_value(&at, format!("the key `{key}` is missing"), hint)
                });
                (at, error)
            }
            FaultKind::Length { message } => {
                let is_own_doing = self.taken_out.iter().any(|gone| gone.starts_with(&at));
                let error = (!is_own_doing).then(|| tree.error_at_value(&at, message, String::new()));
                (at, error)
            }
            FaultKind::UnknownVariant { value, expected } => {
                let hint = suggestion(&value, expected, "it can be");
                let message = format!("unknown value `{value}`");
                let error = tree.error_at_value(&at, message, hint);
                (at, Some(error))
            }
            FaultKind::Text { message, hint } => {
                let error = tree.error_at_value(&at, message, hint);
                (at, Some(error))
            }
        };
        let is_table_or_item = matches!(target.steps.last(), Some(Step::Index(_)) | None)
            || tree.node(&target).is_some_and(|node| node.get_ref().is_table());
        let is_unknown_key = error.as_ref().is_some_and(|error| error.message.starts_with("unknown key"));
        self.tables_gone |= is_table_or_item && !is_unknown_key;
        self.errors.extend(error);
        !target.steps.is_empty() && self.taken_out.insert(target)
    }
}

/// The path of `key` at `at`, or of the first such key below it: an internally tagged enum reports
/// the faults of its inside at its own place.
fn find_key(tree: &Tree<'_>, at: &KeyPath, key: &str, taken_out: &BTreeSet<KeyPath>) -> KeyPath {
    let direct = at.key(key);
    let mut candidates = vec![at.clone()];
    while let Some(path) = candidates.pop() {
        let candidate = path.key(key);
        if tree.node(&candidate).is_some() && !taken_out.contains(&candidate) {
            return candidate;
        }
        match tree.node(&path).map(Spanned::get_ref) {
            Some(DeValue::Table(table)) => {
                candidates.extend(table.keys().map(|key| path.key(key.get_ref())));
            }
            Some(DeValue::Array(array)) => {
                candidates.extend((0..array.len()).map(|index| path.index(index)));
            }
            _ => {}
        }
    }
    if tree.node(&direct).is_some() { direct } else { at.clone() }
}

/// "did you mean" if a name is near, else all there are.
fn suggestion(given: &str, expected: &[&str], intro: &str) -> String {
    let near = expected
        .iter()
        .map(|name| (distance(given, name), name))
        .min()
        .filter(|(distance, name)| *distance <= name.len().max(given.len()).div_ceil(3));
    match near {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None if expected.is_empty() => String::new(),
        None => format!("{intro} {}", expected.join(", ")),
    }
}

/// Edits (insert, delete, replace, swap of neighbours) between two names.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

/// Why a value cannot be read, and where.
#[derive(Debug)]
struct Fault {
    path: Option<KeyPath>,
    kind: FaultKind,
}

#[derive(Debug)]
enum FaultKind {
    Text { message: String, hint: String },
    UnknownKey { key: String, expected: &'static [&'static str] },
    UnknownVariant { value: String, expected: &'static [&'static str] },
    MissingKey { key: &'static str },
    Length { message: String },
}

impl Fault {
    fn new(kind: FaultKind) -> Self {
        Self { path: None, kind }
    }

    fn at(mut self, path: &KeyPath) -> Self {
        self.path.get_or_insert_with(|| path.clone());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(text: T) -> Self {
        let text = text.to_string();
        let (message, hint) = text.split_once('\n').unwrap_or((text.as_str(), ""));
        Self::new(FaultKind::Text { message: message.to_owned(), hint: hint.to_owned() })
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = expected.to_string();
        let hint = match found {
            Unexpected::Str(text) if text.parse::<f64>().is_ok() || text.parse::<bool>().is_ok() => {
                format!("write {text} without quotes")
            }
            Unexpected::Signed(number) if expected.contains("string") => {
                format!("write \"{number}\", with quotes")
            }
            _ => String::new(),
        };
        let message = format!("expected {expected}, found {}", plain(&found));
        Self::new(FaultKind::Text { message, hint })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let message = format!("{} is not {expected}", plain(&found));
        Self::new(FaultKind::Text { message, hint: String::new() })
    }

    fn invalid_length(len: usize, expected: &dyn de::Expected) -> Self {
        Self::new(FaultKind::Length { message: format!("{len} items, expected {expected}") })
    }

    fn unknown_field(key: &str, expected: &'static [&'static str]) -> Self {
        Self::new(FaultKind::UnknownKey { key: key.to_owned(), expected })
    }

    fn unknown_variant(value: &str, expected: &'static [&'static str]) -> Self {
        Self::new(FaultKind::UnknownVariant { value: value.to_owned(), expected })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(FaultKind::MissingKey { key })
    }
}

/// What was found, in the words of the file's author.
fn plain(found: &Unexpected<'_>) -> String {
    match found {
        Unexpected::Str(text) => format!("the text \"{text}\""),
        Unexpected::Signed(number) => format!("the number {number}"),
        Unexpected::Unsigned(number) => format!("the number {number}"),
        Unexpected::Float(number) => format!("the number {number}"),
        Unexpected::Bool(value) => format!("{value}"),
        Unexpected::Map => "a table".to_owned(),
        Unexpected::Seq => "an array".to_owned(),
        other => other.to_string(),
    }
}

/// A value of the tree as a source for `serde`; keys taken out are not there.
#[derive(Clone)]
struct Node<'t> {
    value: &'t Spanned<DeValue<'t>>,
    path: KeyPath,
    taken_out: &'t BTreeSet<KeyPath>,
}

impl<'t> Node<'t> {
    fn child(&self, value: &'t Spanned<DeValue<'t>>, path: KeyPath) -> Option<Self> {
        let is_there = !self.taken_out.contains(&path);
        is_there.then_some(Self { value, path, taken_out: self.taken_out })
    }

    fn visit<'de, V: Visitor<'de>>(&self, visitor: V) -> Result<V::Value, Fault> {
        match self.value.get_ref() {
            DeValue::String(text) => visitor.visit_str(text),
            DeValue::Boolean(value) => visitor.visit_bool(*value),
            DeValue::Datetime(value) => visitor.visit_string(value.to_string()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => visitor.visit_i64(number),
                Err(_) => match u64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => visitor.visit_u64(number),
                    Err(_) => Err(de::Error::custom(format!("{number} exceeds 64 bits"))),
                },
            },
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => visitor.visit_f64(number),
                Err(_) => Err(de::Error::custom(format!("{number} is not a number"))),
            },
            DeValue::Array(array) => {
                let items: Vec<Node<'t>> =
                    array.iter().enumerate().filter_map(|(index, value)| self.child(value, self.path.index(index))).collect();
                visitor.visit_seq(Items { items: items.into_iter() })
            }
            DeValue::Table(_) => visitor.visit_map(self.entries()),
        }
    }

    fn entries(&self) -> Entries<'t> {
        let mut entries: Vec<(Cow<'t, str>, Node<'t>)> = Vec::new();
        if let DeValue::Table(table) = self.value.get_ref() {
            entries.extend(table.iter().filter_map(|(key, value)| {
                let key = key.get_ref();
                Some((Cow::Borrowed(key.as_ref()), self.child(value, self.path.key(key))?))
            }));
        }
        Entries { table: self.path.clone(), entries: entries.into_iter(), value: None }
    }
}

impl<'de> de::Deserializer<'de> for Node<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.visit(visitor).map_err(|fault| fault.at(&self.path))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let path = self.path.clone();
        visitor.visit_some(self).map_err(|fault| fault.at(&path))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Fault> {
        let path = self.path.clone();
        visitor.visit_newtype_struct(self).map_err(|fault| fault.at(&path))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let outcome = match self.value.get_ref() {
            DeValue::String(text) => visitor.visit_enum(text.as_ref().into_deserializer()),
            DeValue::Table(table) if table.len() == 1 => {
                visitor.visit_enum(de::value::MapAccessDeserializer::new(self.entries()))
            }
            DeValue::Table(table) => Err(de::Error::custom(format!("{} keys where exactly one is expected", table.len()))),
            other => Err(de::Error::custom(format!("expected text or a table with one key, found {}", other.type_str()))),
        };
        outcome.map_err(|fault| fault.at(&self.path))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'t> {
    items: std::vec::IntoIter<Node<'t>>,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        self.items.next().map(|item| seed.deserialize(item)).transpose()
    }
}

struct Entries<'t> {
    table: KeyPath,
    entries: std::vec::IntoIter<(Cow<'t, str>, Node<'t>)>,
    value: Option<Node<'t>>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        let path = value.path.clone();
        self.value = Some(value);
        let key = seed.deserialize(de::value::CowStrDeserializer::<Fault>::new(key));
        key.map(Some).map_err(|fault| match fault.kind {
            FaultKind::UnknownKey { .. } => fault.at(&self.table),
            _ => fault.at(&path),
        })
    }

    fn next_value_seed<S: de::DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        match self.value.take() {
            Some(value) => seed.deserialize(value),
            None => Err(de::Error::custom("a value was read before its key")),
        }
    }
}
