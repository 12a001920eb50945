//! Changes that keep the structure of what is fuzzed: a field that is missing, of another type, from elsewhere, by another name.
//! Changed byte by byte, hardly any JSON stays JSON, and what is behind its reading is never met.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Map, Value, json};

/// How text is taken apart into a tree, and put together again.
struct Format {
    take_apart: fn(&str) -> Option<Value>,
    put_together: fn(&Value) -> Option<String>,
}

/// One JSON document, or one a line; lines of something else are kept as they are.
const JSON: Format = Format {
    take_apart: |text| {
        let read = |text| serde_json::from_str(text).ok().filter(|tree: &Value| tree.is_object() || tree.is_array());
        if let Some(document) = read(text) {
            return Some(json!([document]));
        }
        let lines: Vec<Value> = text.lines().map(|line| read(line).unwrap_or_else(|| line.into())).collect();
        lines.iter().any(|line| !line.is_string()).then_some(Value::Array(lines))
    },
    put_together: |tree| {
        let line = |document: &Value| match document {
            Value::String(line) => format!("{line}\n"),
            document => format!("{document}\n"),
        };
        Some(tree.as_array().map_or_else(|| tree.to_string(), |documents| documents.iter().map(line).collect()))
    },
};

/// TOML.
const TOML: Format =
    Format { take_apart: |text| toml::from_str(text).ok(), put_together: |tree| toml::to_string(tree).ok() };

/// Lines of words and of what separates them.
const LINES: Format = Format {
    take_apart: |text| {
        const SEPARATORS: [char; 7] = [' ', '=', ',', ':', ';', '\0', '\n'];
        let words = |line: &str| -> Value {
            let pieces = line.split_inclusive(SEPARATORS);
            let pieces = pieces.map(|piece| piece.split_at(piece.trim_end_matches(SEPARATORS).len()));
            pieces.flat_map(|(word, separator)| [word, separator]).filter(|text| !text.is_empty()).collect()
        };
        Some(text.split_inclusive('\n').map(words).collect())
    },
    put_together: |tree| {
        fn write(node: &Value, text: &mut String) {
            match node {
                Value::Array(nodes) => nodes.iter().for_each(|node| write(node, text)),
                Value::String(word) => text.push_str(word),
                other => *text += &other.to_string(),
            }
        }
        let mut text = String::new();
        write(tree, &mut text);
        Some(text)
    },
};

/// What a target reads.
fn formats(target: &str) -> &'static [Format] {
    match target {
        "backends" | "journal" | "protocol" => &[JSON],
        "config" => &[TOML, LINES],
        "slots" => &[JSON, LINES],
        _ => &[LINES],
    }
}

/// Changes `data[..size]` and returns its new size: one time out of two in the format of the target, else as libFuzzer does.
pub fn mutate(target: &str, data: &mut [u8], size: usize, most: usize, seed: u32) -> usize {
    let mut dice = Dice(seed);
    if dice.below(2) == 0 {
        let formats = formats(target);
        let format = &formats[dice.below(formats.len())];
        let tree = std::str::from_utf8(&data[..size]).ok().and_then(format.take_apart);
        let changed = tree.and_then(|mut tree| {
            let mut met = MET.lock().unwrap_or_else(PoisonError::into_inner);
            for _ in 0..=dice.below(3) {
                change(&mut tree, &mut met, &mut dice);
            }
            (format.put_together)(&tree)
        });
        if let Some(text) = changed.filter(|text| text.len() <= most) {
            data[..text.len()].copy_from_slice(text.as_bytes());
            return text.len();
        }
    }
    fuzzer_mutate(data, size, most)
}

/// What fields held in whatever input, by their name.
static MET: Mutex<Met> = Mutex::new(Met(BTreeMap::new()));

struct Met(BTreeMap<String, Vec<Value>>);

impl Met {
    /// So many names are remembered, and so many values of each; then any one gives way.
    const MOST: usize = 256;
    /// Values of more nodes are not.
    const LARGEST: usize = 64;

    /// What another field of this name held, instead of what this one holds.
    fn exchange(&mut self, name: &str, value: &mut Value, dice: &mut Dice) {
        if !self.0.contains_key(name) && self.0.len() == Self::MOST {
            let gives_way = self.0.keys().nth(dice.below(Self::MOST)).cloned();
            gives_way.and_then(|name| self.0.remove(&name));
        }
        let values = self.0.entry(name.into()).or_default();
        let held = value.clone();
        if !values.is_empty() {
            value.clone_from(&values[dice.below(values.len())]);
        }
        if count(&held) <= Self::LARGEST && !values.contains(&held) {
            values.push(held);
            if values.len() > Self::MOST {
                values.swap_remove(dice.below(values.len()));
            }
        }
    }
}

/// Chance that a seed decides, so that a run can be had again.
struct Dice(u32);

impl Dice {
    /// One of the numbers below `end`, which is not zero.
    fn below(&mut self, end: usize) -> usize {
        // A linear congruential generator; its high bits are the good ones.
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((u64::from(self.0) * end as u64) >> 32) as usize
    }

    /// The name of one of the fields, if there is one.
    fn name_of(&mut self, fields: &Map<String, Value>) -> Option<String> {
        if fields.is_empty() { None } else { fields.keys().nth(self.below(fields.len())).cloned() }
    }
}

/// One change somewhere in a tree.
fn change(tree: &mut Value, met: &mut Met, dice: &mut Dice) {
    let nodes = count(tree);
    let elsewhere = node_at(tree, &mut dice.below(nodes)).cloned().unwrap_or_default();
    let Some(node) = node_at(tree, &mut dice.below(nodes)) else { return };
    match (dice.below(5), node) {
        (0, node) => *node = elsewhere,
        (1, Value::Array(items)) if !items.is_empty() => {
            items.remove(dice.below(items.len()));
        }
        (2, Value::Array(items)) => items.insert(dice.below(items.len() + 1), elsewhere),
        (1, Value::Object(fields)) => {
            dice.name_of(fields).and_then(|name| fields.shift_remove(&name));
        }
        (2, Value::Object(fields)) => {
            let name = match elsewhere {
                Value::Object(others) if dice.below(2) == 0 => return fields.extend(others),
                Value::Object(others) => dice.name_of(&others),
                Value::String(text) => Some(text),
                _ => None,
            };
            let value = dice.name_of(fields).and_then(|name| fields.shift_remove(&name)).unwrap_or_else(|| json!(0));
            fields.insert(name.unwrap_or_else(|| "other".into()), value);
        }
        (1, Value::String(text)) => {
            let mut bytes = std::mem::take(text).into_bytes();
            let size = bytes.len();
            bytes.resize(size + 32, 0);
            let size = fuzzer_mutate(&mut bytes, size, size + 32);
            *text = String::from_utf8_lossy(&bytes[..size]).into_owned();
        }
        (1 | 2, Value::Number(number)) => {
            // Its neighbour; of what is no such number, that of zero.
            let near = number.as_i64().unwrap_or_default().wrapping_add(if dice.below(2) == 0 { 1 } else { -1 });
            *number = near.into();
        }
        // As a sequence, which is another way to read the same fields.
        (3, node @ Value::Object(_)) if dice.below(2) == 0 => {
            if let Value::Object(fields) = node.take() {
                *node = fields.into_iter().map(|(_, value)| value).collect();
            }
        }
        (4, Value::Object(fields)) if !fields.is_empty() => {
            let place = dice.below(fields.len());
            if let Some((name, value)) = fields.iter_mut().nth(place) {
                met.exchange(name, value, dice);
            }
        }
        (_, node) => {
            *node = match dice.below(16) {
                0 => Value::Null,
                1 => json!(false),
                2 => json!(true),
                3 => json!(0),
                4 => json!(-1),
                5 => json!(u8::MAX),
                6 => json!(u32::MAX),
                7 => json!(1_u64 << 53),
                8 => json!(i64::MAX),
                9 => json!(u64::MAX),
                10 => json!(0.5),
                11 => json!(1e300),
                12 => json!(""),
                13 => json!([]),
                14 => json!([node.take()]),
                _ => json!({}),
            }
        }
    }
}

/// How many nodes a tree has, itself included.
fn count(tree: &Value) -> usize {
    1 + match tree {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// The node so many places behind the root.
fn node_at<'a>(tree: &'a mut Value, place: &mut usize) -> Option<&'a mut Value> {
    if *place == 0 {
        return Some(tree);
    }
    *place -= 1;
    match tree {
        Value::Array(items) => items.iter_mut().find_map(|item| node_at(item, place)),
        Value::Object(fields) => fields.values_mut().find_map(|value| node_at(value, place)),
        _ => None,
    }
}
