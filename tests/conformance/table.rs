//! Which cases there are: `<letter><two digits>_` begins the name of the test of each.
use std::{collections::BTreeMap, path::Path};

/// The last number of each letter; they begin with 1.
const CASES: [(char, u32); 4] = [('c', 14), ('s', 19), ('r', 24), ('p', 15)];

#[test]
fn every_case_has_one_test() {
    let mut found: BTreeMap<String, u32> = BTreeMap::new();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    for file in std::fs::read_dir(directory).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for name in test_names(&text) {
            if let Some((case, _)) = name.split_once('_').filter(|(case, _)| is_case(case)) {
                *found.entry(case.to_owned()).or_default() += 1;
            }
        }
    }
    let all = CASES.into_iter().flat_map(|(letter, last)| {
        (1..=last).map(move |number| (format!("{letter}{number:02}"), 1))
    });
    let all: BTreeMap<String, u32> = all.collect();
    assert_eq!(found, all);
}

/// Names of functions that the line above marks as tests that are run.
fn test_names(text: &str) -> impl Iterator<Item = &str> {
    let lines: Vec<&str> = text.lines().collect();
    let name = |two: &[&str]| -> Option<(usize, usize)> {
        let marked = two[0].starts_with("#[test") || two[0].starts_with("#[tokio::test");
        let start = two[1].find("fn ")? + 3;
        let end = start + two[1][start..].find('(')?;
        marked.then_some((start, end))
    };
    let found: Vec<&str> = lines
        .windows(2)
        .filter_map(|two| name(two).map(|(start, end)| &two[1][start..end]))
        .collect();
    found.into_iter()
}

fn is_case(text: &str) -> bool {
    let mut chars = text.chars();
    let letter = chars
        .next()
        .is_some_and(|c| CASES.iter().any(|(letter, _)| *letter == c));
    letter && text.len() == 3 && chars.all(|c| c.is_ascii_digit())
}
