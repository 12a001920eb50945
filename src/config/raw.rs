//! The file as written, with the place of everything in it, and the environment laid over it.

use std::collections::BTreeMap;

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::error::{Fault, Origin};

/// Variables with this prefix and at least one [`LEVEL`] in their name override a key.
pub(super) const PREFIX: &str = "WECHSLER_";
/// Between two levels of a variable's name.
const LEVEL: &str = "__";
/// No key lies so deep: what follows is of an unknown name.
const DEEPEST: usize = 8;

/// A table: what stands under which key.
pub(super) type Table = BTreeMap<String, Entry>;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Where.
    pub at: Origin,
    /// What.
    pub value: Value,
}

/// A value, as far as a configuration needs them.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Text in quotes.
    Text(String),
    /// Text without a type, from the environment or a default: read as whatever is wanted.
    Loose(String),
    /// An integer.
    Integer(i64),
    /// A boolean.
    Bool(bool),
    /// A list.
    List(Vec<Self>),
    /// A table.
    Table(Table),
    /// What no key wants, by its name: a float, a date, an integer out of range.
    Other(&'static str),
}

/// Reads the file's text; every error of the grammar is a fault.
pub(super) fn parse(text: &str) -> Result<Entry, Vec<Fault>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let lines = Lines::of(text);
    if errors.is_empty() {
        let value = Value::Table(table_of(table.get_ref(), &lines));
        return Ok(Entry { at: Origin::File, value });
    }
    let fault = |error: toml::de::Error| Fault {
        at: error.span().map_or(Origin::File, |span| lines.at(span.start)),
        key: String::new(),
        message: error.message().to_owned(),
    };
    let mut faults: Vec<_> = errors.into_iter().map(fault).collect();
    faults.sort();
    Err(faults)
}

fn table_of(table: &DeTable<'_>, lines: &Lines) -> Table {
    let entry = |(key, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
        let entry = Entry { at: lines.at(key.span().start), value: value_of(value.get_ref(), lines) };
        (key.get_ref().to_string(), entry)
    };
    table.iter().map(entry).collect()
}

fn value_of(value: &DeValue<'_>, lines: &Lines) -> Value {
    match value {
        DeValue::String(s) => Value::Text(s.to_string()),
        DeValue::Integer(n) => {
            i64::from_str_radix(n.as_str(), n.radix()).map_or(Value::Other("integer out of range"), Value::Integer)
        }
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Array(list) => Value::List(list.iter().map(|v| value_of(v.get_ref(), lines)).collect()),
        DeValue::Table(table) => Value::Table(table_of(table, lines)),
        DeValue::Float(_) | DeValue::Datetime(_) => Value::Other(value.type_str()),
    }
}

/// Where the lines of a text end: found once, for a file may have a fault in every byte.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// The line, counted from 1, that the byte `offset` is in.
    fn at(&self, offset: usize) -> Origin {
        Origin::Line(1 + self.0.partition_point(|end| *end < offset))
    }
}

/// Lays `WECHSLER_A__B=...` over the key `a.b`. Variables without `__` are none of the file's business.
pub(super) fn overlay(root: &mut Entry, env: impl IntoIterator<Item = (String, String)>) {
    for (name, value) in env {
        if let Some(path) = name.strip_prefix(PREFIX)
            && path.contains(LEVEL)
        {
            let steps: Vec<String> = path.splitn(DEEPEST, LEVEL).map(str::to_lowercase).collect();
            let at = Origin::Variable(name.clone());
            put(root, &steps, &at, value, false);
        }
    }
}

/// Puts a loose value under `steps`. `named`: the next step is somebody's own name, which has dashes and no underscores.
fn put(under: &mut Entry, steps: &[String], at: &Origin, text: String, named: bool) {
    let Some((step, rest)) = steps.split_first() else {
        *under = Entry { at: at.clone(), value: Value::Loose(text) };
        return;
    };
    if !matches!(under.value, Value::Table(_)) {
        // The section reader then says that something else than a table stands (or is unknown) there.
        under.at = at.clone();
        under.value = Value::Table(Table::new());
    }
    if let Value::Table(table) = &mut under.value {
        let name = if named { step.replace('_', "-") } else { step.clone() };
        let named = !named && step == "backends";
        let entry = table.entry(name).or_insert_with(|| Entry { at: at.clone(), value: Value::Table(Table::new()) });
        put(entry, rest, at, text, named);
    }
}
