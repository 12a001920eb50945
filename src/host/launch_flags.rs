//! What llama-server was started with, as far as it decides which saved slots fit and `/props` does not tell.
//!
//! Read from its command line. Only the flags of a closed list are taken out of it: others may be secrets. What came by the
//! environment (`LLAMA_ARG_…`) does not show there, and is not known.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The flags that were given, by their long names without the dashes, in one spelling. A flag without a value has "on" or
/// "off"; one whose value is the default is as if it were not given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LaunchFlags(BTreeMap<String, String>);

/// What follows a flag.
#[derive(Clone, Copy)]
enum Takes {
    /// Nothing: it stands for this value.
    Nothing(&'static str),
    /// One value.
    Value,
    /// One value, each time one more.
    Values,
    /// A value and, in older builds as a word of its own, a number.
    Scaled,
    /// Two numbers.
    Range,
    /// "on", "off" or "auto", or nothing in older builds.
    Choice,
}

use Takes::{Choice, Nothing, Range, Scaled, Value, Values};

/// What it is called here, what llama-server calls it, and what follows it.
const FLAGS: [(&str, &[&str], Takes); 23] = [
    ("cache-type-k", &["-ctk", "--cache-type-k"], Value),
    ("cache-type-v", &["-ctv", "--cache-type-v"], Value),
    ("flash-attn", &["-fa", "--flash-attn"], Choice),
    ("kv-unified", &["-kvu", "--kv-unified"], Nothing("on")),
    ("kv-unified", &["-no-kvu", "--no-kv-unified"], Nothing("off")),
    ("parallel", &["-np", "--parallel"], Value),
    ("swa-full", &["--swa-full"], Nothing("on")),
    ("lora", &["--lora"], Values),
    ("lora-scaled", &["--lora-scaled"], Scaled),
    ("control-vector", &["--control-vector"], Values),
    ("control-vector-scaled", &["--control-vector-scaled"], Scaled),
    ("control-vector-layer-range", &["--control-vector-layer-range"], Range),
    ("rope-scaling", &["--rope-scaling"], Value),
    ("rope-scale", &["--rope-scale"], Value),
    ("rope-freq-base", &["--rope-freq-base"], Value),
    ("rope-freq-scale", &["--rope-freq-scale"], Value),
    ("yarn-orig-ctx", &["--yarn-orig-ctx"], Value),
    ("yarn-ext-factor", &["--yarn-ext-factor"], Value),
    ("yarn-attn-factor", &["--yarn-attn-factor"], Value),
    ("yarn-beta-slow", &["--yarn-beta-slow"], Value),
    ("yarn-beta-fast", &["--yarn-beta-fast"], Value),
    ("override-kv", &["--override-kv"], Values),
    ("mmproj", &["-mm", "--mmproj"], Value),
];

/// A value that is the same as none.
const DEFAULTS: [(&str, &str); 4] =
    [("cache-type-k", "f16"), ("cache-type-v", "f16"), ("flash-attn", "auto"), ("parallel", "-1")];

impl LaunchFlags {
    /// A longer command line is not read.
    pub const MOST_BYTES: usize = 4096;

    /// The flags in a command line as `/proc/PID/cmdline` holds it, each word ended by a zero byte. `None` where there is no
    /// llama-server in it, or it may be cut off.
    #[must_use]
    pub fn of_command_line(bytes: &[u8]) -> Option<Self> {
        if bytes.len() >= Self::MOST_BYTES {
            return None;
        }
        let words: Vec<String> =
            bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into()).collect();
        // It may be the last of several: behind an interpreter, or in a container.
        let program = words.iter().position(|word| is_server(word))?;
        let mut words = words[program + 1..].iter().map(String::as_str).peekable();
        let mut flags = Self::default();
        while let Some(word) = words.next() {
            let (flag, mut joined) = match word.split_once('=') {
                Some((flag, value)) => (flag, Some(value)),
                None => (word, None),
            };
            // llama-server takes both.
            let flag = if flag.starts_with("--") { flag.replace('_', "-") } else { flag.to_owned() };
            let Some((name, _, takes)) = FLAGS.iter().find(|(_, spellings, _)| spellings.contains(&flag.as_str()))
            else {
                continue;
            };
            let mut next = |fits: fn(&str) -> bool| joined.take().or_else(|| words.next_if(|word| fits(word)));
            match takes {
                Nothing(value) => flags.set(name, value),
                Value => flags.set(name, next(|_| true).unwrap_or_default()),
                Values => flags.add(name, next(|_| true).unwrap_or_default()),
                Scaled => {
                    let file = next(|_| true).unwrap_or_default();
                    match next(is_number) {
                        Some(scale) => flags.add(name, &format!("{file}:{scale}")),
                        None => flags.add(name, file),
                    }
                }
                Range => {
                    let (from, to) = (next(|_| true).unwrap_or_default(), next(is_number).unwrap_or_default());
                    flags.set(name, &format!("{from} {to}"));
                }
                Choice => flags.set(name, next(|word| choice(word).is_some()).and_then(choice).unwrap_or("on")),
            }
        }
        flags.0.retain(|name, value| !DEFAULTS.contains(&(name.as_str(), value.as_str())));
        Some(flags)
    }

    /// The last one counts.
    fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    /// All of them count.
    fn add(&mut self, name: &str, value: &str) {
        let values = self.0.entry(name.to_owned()).or_default();
        if !values.is_empty() {
            values.push(',');
        }
        values.push_str(value);
    }

    /// Each slot has a cache of its own: several were asked for, and not that they share one, as they do where nothing is said.
    pub(super) fn splits_cache(&self) -> bool {
        self.0.contains_key("parallel") && self.0.get("kv-unified").is_none_or(|value| value != "on")
    }

    /// What `now` has otherwise, for people.
    pub(super) fn differences(&self, now: &Self) -> Vec<String> {
        let shown = |name: &str, value: &str| match value {
            "on" => format!("--{name}"),
            value => format!("--{name} {value}"),
        };
        let mut found = vec![];
        for (name, value) in &now.0 {
            match self.0.get(name) {
                Some(then) if then == value => {}
                Some(then) => found.push(format!("{} instead of {then}", shown(name, value))),
                None => found.push(format!("{}, which was not given", shown(name, value))),
            }
        }
        let gone = self.0.iter().filter(|(name, _)| !now.0.contains_key(*name));
        found.extend(gone.map(|(name, value)| format!("without {}", shown(name, value))));
        found
    }
}

/// `llama-server`, also as a script or as the image of a container; but no model file.
fn is_server(word: &str) -> bool {
    let name = word.rsplit('/').next().unwrap_or_default();
    let model = std::path::Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    name.starts_with("llama") && !model
}

fn is_number(word: &str) -> bool {
    word.parse::<f64>().is_ok()
}

fn choice(word: &str) -> Option<&'static str> {
    match word {
        "on" | "enabled" | "true" | "1" => Some("on"),
        "off" | "disabled" | "false" | "0" => Some("off"),
        "auto" | "-1" => Some("auto"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Option<LaunchFlags> {
        let words = line.split(' ').flat_map(|word| [word, "\0"]);
        LaunchFlags::of_command_line(words.collect::<String>().as_bytes())
    }

    fn given(line: &str) -> String {
        let given = flags(&format!("/usr/bin/llama-server {line}")).expect("it is one").0;
        given.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_spelling_of_a_flag_is_the_same_flag_whatever_the_order() {
        for line in [
            "-ctk q8_0 --swa-full -np 4 -kvu -fa on",
            "--flash-attn --kv-unified --parallel 4 --cache-type-k q8_0 --swa-full",
            "--kv_unified --parallel=4 -np 4 --cache_type_k=q8_0 --swa-full --flash-attn=enabled",
        ] {
            assert_eq!(given(line), "cache-type-k=q8_0 flash-attn=on kv-unified=on parallel=4 swa-full=on", "{line}");
        }
    }

    #[test]
    fn what_is_the_default_is_as_if_it_were_not_given() {
        assert_eq!(given("-ctk f16 --cache-type-v f16 -fa auto -np -1 --port 8080"), "");
    }

    #[test]
    fn slots_share_one_cache_unless_several_were_asked_for_and_no_more() {
        let splits = |line: &str| flags(&format!("llama-server {line}")).expect("it is one").splits_cache();
        assert!(splits("-np 4") && splits("--parallel 4 --no-kv-unified"));
        assert!(!splits("") && !splits("-np 4 -kvu") && !splits("-np -1") && !splits("-no-kvu"));
    }

    #[test]
    fn of_what_may_be_given_once_the_last_counts_and_of_the_rest_all() {
        assert_eq!(given("-ctk q4_0 -ctk q8_0"), "cache-type-k=q8_0");
        assert_eq!(given("--lora a.gguf --lora b.gguf"), "lora=a.gguf,b.gguf");
        assert_eq!(given("--lora-scaled a.gguf 0.5 --lora-scaled b.gguf:2"), "lora-scaled=a.gguf:0.5,b.gguf:2");
        assert_eq!(given("--control-vector-layer-range 3 7 --swa-full"), "control-vector-layer-range=3 7 swa-full=on");
    }

    #[test]
    fn secrets_and_all_the_rest_stay_where_they_are() {
        assert_eq!(given("--api-key swa-full --hf-token hf_x --api-key-file /k -hf a/b --host 0.0.0.0"), "");
    }

    #[test]
    fn the_server_is_found_behind_an_interpreter_and_in_a_container() {
        for line in [
            "python3 /opt/lab/llama_server.py --swa-full",
            "/usr/bin/docker run --rm -v /models:/m ghcr.io/ggml-org/llama.cpp:server-cuda --swa-full -m /m/x.gguf",
        ] {
            assert_eq!(flags(line).map(|flags| flags.0.len()), Some(1), "{line}");
        }
    }

    #[test]
    fn where_there_is_no_server_nothing_is_known() {
        let long = format!("llama-server --swa-full {}", "x".repeat(LaunchFlags::MOST_BYTES));
        for line in ["", "(a-server)", "python3 serve.py -m /m/llama-3.gguf -fa", "/bin/sh -c true", &long] {
            assert_eq!(flags(line), None, "{line}");
        }
    }

    #[test]
    fn differences_name_the_flag() {
        let [then, now] = ["-ctk q8_0 --swa-full -np 2", "-ctk q4_0 --lora a.gguf -np 2"]
            .map(|line| flags(&format!("llama-server {line}")).expect("one"));
        assert_eq!(
            then.differences(&now),
            ["--cache-type-k q4_0 instead of q8_0", "--lora a.gguf, which was not given", "without --swa-full"]
        );
        assert!(then.differences(&then).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_command_line_makes_it_panic(bytes: Vec<u8>, flag in 0..FLAGS.len()) {
            let line = [b"llama-server\0".as_slice(), FLAGS[flag].1[0].as_bytes(), b"\0", &bytes].concat();
            let _ = LaunchFlags::of_command_line(&line);
        }
    }
}
