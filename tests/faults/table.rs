//! The table of cases and tests, in `README.md`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use super::rows::{NOT_APPLICABLE, OWED, ROWS};

/// At most so many cases may be not applicable.
const MOST_NOT_APPLICABLE: usize = 8;
const BEGIN: &str = "<!-- begin: table -->\n";
const END: &str = "<!-- end: table -->";

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// All test functions whose names carry a case: by case in small letters, `file: name`.
fn covering() -> BTreeMap<String, Vec<(String, String)>> {
    let mut found: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut folders = vec![tests()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of tests").map(|e| e.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
                continue;
            }
            let prefix = match entry.extension().and_then(|e| e.to_str()) {
                Some("rs") => "fn row_",
                Some("py") => "def test_row_",
                _ => continue,
            };
            let file = entry.strip_prefix(tests()).expect("below").display().to_string();
            for line in fs::read_to_string(&entry).expect("text").lines() {
                let Some((_, rest)) = line.split_once(prefix) else { continue };
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if let Some((id, told)) = name.split_once('_') {
                    found.entry(id.to_owned()).or_default().push((file.clone(), told.replace('_', " ")));
                }
            }
        }
    }
    for tests in found.values_mut() {
        tests.sort();
    }
    found
}

fn reason(list: &[(&'static str, &'static str)], id: &str) -> Option<&'static str> {
    list.iter().find(|(of, _)| *of == id).map(|(_, why)| *why)
}

fn table() -> String {
    let covering = covering();
    let mut text =
        String::from("| case | what goes wrong | what is expected | where it is shown |\n|---|---|---|---|\n");
    for row in ROWS {
        let shown = match covering.get(&row.id.to_lowercase()) {
            Some(tests) => {
                let shown = |(file, name): &(String, String)| format!("`{file}`: {name}");
                tests.iter().map(shown).collect::<Vec<_>>().join("<br>")
            }
            None => match (reason(NOT_APPLICABLE, row.id), reason(OWED, row.id)) {
                (Some(why), _) => format!("not applicable: {why}"),
                (_, Some(why)) => format!("owed: {why}"),
                _ => "**nowhere**".into(),
            },
        };
        let _ = writeln!(text, "| {} | {} | {} | {shown} |", row.id, row.fault, row.expected);
    }
    text
}

#[test]
fn every_case_is_shown_by_a_test_or_says_why_not() {
    let covering = covering();
    let excused = |id| reason(NOT_APPLICABLE, id).or_else(|| reason(OWED, id)).is_some();
    for row in ROWS {
        let shown = covering.contains_key(&row.id.to_lowercase());
        assert!(shown || excused(row.id), "{}: {} is shown by no test", row.id, row.fault);
        assert!(!(shown && excused(row.id)), "{} is shown, and excused too", row.id);
    }
    for id in covering.keys() {
        assert!(ROWS.iter().any(|row| row.id.to_lowercase() == *id), "a test speaks of {id}, which is no case");
    }
    assert!(NOT_APPLICABLE.len() <= MOST_NOT_APPLICABLE, "too many are not applicable");
}

#[test]
fn the_table_is_that_of_the_tests() {
    let file = tests().join("faults/README.md");
    let text = fs::read_to_string(&file).expect("the page");
    let (before, rest) = text.split_once(BEGIN).expect("the table begins");
    let (_, after) = rest.split_once(END).expect("the table ends");
    let right = format!("{before}{BEGIN}{}{END}{after}", table());
    if std::env::var_os("UPDATE_FAULTS").is_some() {
        fs::write(&file, right).expect("written");
        return;
    }
    assert!(text == right, "tests/faults/README.md is stale: run UPDATE_FAULTS=1 cargo test --test faults the_table");
}
