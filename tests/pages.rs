//! `tests/README.md` is complete: every test is in its table, and its list of laws is that of the specification.

mod spec;

use std::{fmt::Write as _, fs, path::Path};

use spec::laws::LAWS;

const BEGIN: &str = "<!-- begin: laws -->\n";
const END: &str = "<!-- end: laws -->";

fn tests() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests"))
}

#[test]
fn the_list_of_laws_is_that_of_the_specification() {
    let file = tests().join("README.md");
    let text = fs::read_to_string(&file).expect("the page");
    let (before, rest) = text.split_once(BEGIN).expect("the list begins");
    let (_, after) = rest.split_once(END).expect("the list ends");
    let laws = LAWS.iter().zip(1..).fold(String::new(), |mut list, (law, number)| {
        let _ = writeln!(list, "{number}. {}", law.name);
        list
    });
    let right = format!("{before}{BEGIN}{laws}{END}{after}");
    if std::env::var_os("UPDATE_PAGES").is_some() {
        // At once, for others read it meanwhile.
        let new = file.with_extension("new");
        fs::write(&new, right).and_then(|()| fs::rename(&new, &file)).expect("written");
        return;
    }
    assert!(text == right, "tests/README.md is stale: run UPDATE_PAGES=1 cargo test --test pages");
}

#[test]
fn the_page_of_the_specification_says_how_much_is_explored() {
    let read = |file| fs::read_to_string(tests().join("spec").join(file)).expect("a page");
    let (mut worlds, mut states, mut edges) = (0, 0, 0);
    for line in read("matrix.txt").lines().take_while(|line| !line.starts_with("== ")) {
        if let Some((world, rest)) = line.split_once(" states, ") {
            let number = |text: &str| text.rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).expect("a number");
            (worlds, states, edges) =
                (worlds + 1, states + number(world), edges + number(rest.split(' ').next().unwrap_or_default()));
        }
    }
    let said = format!("| {worlds} worlds, {states} states, {edges} edges, {} laws |", LAWS.len());
    assert!(read("README.md").contains(&said), "tests/spec/README.md should say: {said}");
}

#[test]
fn every_test_and_what_it_is_made_of_is_on_the_page() {
    let text = fs::read_to_string(tests().join("README.md")).expect("the page");
    for entry in fs::read_dir(tests()).expect("the folder of tests") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        let shown = match path.extension().and_then(|e| e.to_str()) {
            Some("rs") => name,
            None => format!("{name}/"),
            // Pages, and what a test keeps beside it.
            Some(_) => continue,
        };
        assert!(text.contains(&format!("`{shown}`")), "{shown} is not on the page");
    }
}
