//! Changes that keep the structure of what is fuzzed: a field that is missing, doubled, of another type, from elsewhere. Changed
//! byte by byte, hardly any JSON stays JSON, and what is behind its reading is never met.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Deserializer, Map, Value, json};

/// How bytes are taken apart into a tree, and put together again.
struct Format {
    take_apart: fn(&str) -> Option<Value>,
    put_together: fn(&Value) -> Option<String>,
}

/// One JSON document after the other.
const JSON: Format = Format {
    take_apart: |text| {
        let documents: Vec<Value> = Deserializer::from_str(text).into_iter().map_while(Result::ok).collect();
        (!documents.is_empty()).then_some(Value::Array(documents))
    },
    put_together: |tree| match tree {
        Value::Array(documents) => Some(documents.iter().map(|document| format!("{document}\n")).collect()),
        document => Some(document.to_string()),
    },
};

/// TOML.
const TOML: Format =
    Format { take_apart: |text| toml::from_str(text).ok(), put_together: |tree| toml::to_string(tree).ok() };

/// Lines of words, each with what separates it from the next.
const LINES: Format = Format {
    take_apart: |text| {
        let words =
            |line: &str| line.split_inclusive([' ', '=', ',', ':', ';', '\0']).map(Value::from).collect::<Value>();
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
            for _ in 0..=dice.below(3) {
                change(&mut tree, &mut dice);
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

/// Chance that a seed decides, so that a run can be had again.
struct Dice(u32);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        // A linear congruential generator; its high bits are the good ones.
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as usize % end
    }
}

/// One change somewhere in a tree.
fn change(tree: &mut Value, dice: &mut Dice) {
    let nodes = count(tree);
    let mut at = dice.below(nodes);
    let elsewhere = node(tree, &mut at).cloned().unwrap_or_default();
    let mut at = dice.below(nodes);
    let Some(node) = node(tree, &mut at) else { return };
    match (dice.below(4), node) {
        (0, node) => *node = elsewhere,
        (1, Value::Array(nodes)) if !nodes.is_empty() => {
            nodes.remove(dice.below(nodes.len()));
        }
        (2, Value::Array(nodes)) => nodes.insert(dice.below(nodes.len() + 1), elsewhere),
        (1, Value::Object(fields)) if !fields.is_empty() => {
            let name = fields.keys().nth(dice.below(fields.len())).cloned();
            name.and_then(|name| fields.remove(&name));
        }
        (2, Value::Object(fields)) => match elsewhere {
            Value::Object(others) => fields.extend(others),
            Value::String(name) => drop(fields.insert(name, Value::Null)),
            other => {
                let name = fields.keys().nth(dice.below(fields.len().max(1))).cloned();
                drop(fields.insert(name.unwrap_or_default(), other));
            }
        },
        (1, Value::String(text)) => {
            let mut bytes = text.clone().into_bytes();
            let size = bytes.len();
            bytes.resize(size + 32, 0);
            let size = fuzzer_mutate(&mut bytes, size, size + 32);
            *text = String::from_utf8_lossy(&bytes[..size]).into_owned();
        }
        (1 | 2, Value::Number(number)) => {
            let near = number.as_i64().unwrap_or_default().wrapping_add(if dice.below(2) == 0 { 1 } else { -1 });
            *number = near.into();
        }
        // As a sequence, which is another way to read the same fields.
        (3, node @ Value::Object(_)) if dice.below(2) == 0 => {
            if let Value::Object(fields) = node.take() {
                *node = fields.into_iter().map(|(_, value)| value).collect();
            }
        }
        (_, node) => {
            *node = match dice.below(12) {
                0 => Value::Null,
                1 => json!(false),
                2 => json!(true),
                3 => json!(0),
                4 => json!(-1),
                5 => json!(u64::MAX),
                6 => json!(0.5),
                7 => json!(1e300),
                8 => json!(""),
                9 => json!([]),
                10 => json!([node.take()]),
                _ => Value::Object(Map::new()),
            }
        }
    }
}

fn count(tree: &Value) -> usize {
    1 + match tree {
        Value::Array(nodes) => nodes.iter().map(count).sum(),
        Value::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    }
}

/// The node at a place, counted from the root.
fn node<'a>(tree: &'a mut Value, at: &mut usize) -> Option<&'a mut Value> {
    if *at == 0 {
        return Some(tree);
    }
    *at -= 1;
    match tree {
        Value::Array(nodes) => nodes.iter_mut().find_map(|child| node(child, at)),
        Value::Object(fields) => fields.values_mut().find_map(|child| node(child, at)),
        _ => None,
    }
}
