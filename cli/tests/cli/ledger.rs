//! The ledger of attacks in docs/threat-model.md is whole: every number of the corpus has a row and
//! a verdict, every test it names is in the sources, and what is open is said in SECURITY.md.

use std::collections::{BTreeMap, BTreeSet};

use super::examples::files;
use super::wire::workspace;

/// Sections A to C and G of the corpus; it has no 5, 12, 35, 37, 118 and 120.
fn corpus() -> BTreeSet<u32> {
    (1..=51)
        .chain(113..=126)
        .filter(|n| ![5, 12, 35, 37, 118, 120].contains(n))
        .collect()
}

/// One row.
#[derive(Debug)]
struct Row {
    verdict: String,
    tests: Vec<String>,
}

fn read(name: &str) -> String {
    std::fs::read_to_string(workspace().join(name)).unwrap()
}

/// Names of tests in backquotes: words in small letters with lines between.
fn named(text: &str) -> Vec<String> {
    let is_test = |name: &&str| {
        name.matches('_').count() > 2
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(is_test).map(str::to_owned).collect()
}

fn rows(model: &str) -> BTreeMap<u32, Row> {
    let mut rows = BTreeMap::new();
    for line in model.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let Ok(number) = cells[0].trim().parse() else {
            continue;
        };
        if cells.len() == 5 {
            // The table by trust boundary begins with a number, too.
            continue;
        }
        assert_eq!(cells.len(), 4, "{line}");
        let verdict = cells[3].trim().to_owned();
        let tests = named(cells[3]);
        let before = rows.insert(number, Row { verdict, tests });
        assert!(before.is_none(), "{number} has two rows");
    }
    rows
}

/// The numbers in a test's name: `attack_15_and_41_…`, `attack_27_to_31_…`.
fn numbers(test: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let (mut last, mut is_range) = (None, false);
    for word in test.strip_prefix("attack_").unwrap_or_default().split('_') {
        match (word.parse::<u32>(), last) {
            (Ok(number), Some(from)) if is_range => found.extend(from..=number),
            (Ok(number), _) => {
                found.insert(number);
            }
            (Err(_), _) if word == "and" || word == "to" => {}
            (Err(_), _) => break,
        }
        is_range = word == "to";
        last = word.parse().ok().or(last);
    }
    found
}

/// Every function of the Rust sources.
pub(super) fn functions() -> BTreeSet<String> {
    let folders = [
        "proto", "crypto", "confine", "broker", "agent", "client", "cli", "testkit",
    ];
    let sources = folders
        .iter()
        .flat_map(|folder| files(&workspace().join(folder)));
    let mut found = BTreeSet::new();
    for file in sources.filter(|file| file.extension().is_some_and(|end| end == "rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        let after = text.split("fn ").skip(1);
        let names = after.filter_map(|rest| rest.split_once('('));
        found.extend(names.map(|(name, _)| name.to_owned()));
    }
    found
}

#[test]
fn numbers_in_the_name_of_a_test() {
    let of = |name| numbers(name).into_iter().collect::<Vec<_>>();
    assert_eq!(of("attack_07_a_program_of_2_kinds"), [7]);
    assert_eq!(of("attack_15_and_41_the_same"), [15, 41]);
    assert_eq!(of("attack_27_to_31_a_browser"), [27, 28, 29, 30, 31]);
    assert_eq!(of("attack_39_42_and_50_no"), [39, 42, 50]);
    assert_eq!(of("an_attack_7_named"), [0_u32; 0]);
}

#[test]
fn attack_ledger_is_whole() {
    let model = read("docs/threat-model.md");
    let rows = rows(&model);
    assert_eq!(rows.keys().copied().collect::<BTreeSet<_>>(), corpus());
    let there = functions();
    let missing: Vec<String> = named(&model)
        .into_iter()
        .filter(|name| !there.contains(name))
        .collect();
    assert_eq!(missing, [""; 0], "named, but no test");
    for (number, row) in &rows {
        let says = |word: &str| row.verdict.starts_with(word);
        let shown = || row.tests.iter().any(|test| numbers(test).contains(number));
        match () {
            () if says("covered: ") || says("documented: ") => {
                assert!(
                    shown(),
                    "no test of row {number} carries its number: {row:?}"
                );
            }
            () if says("not applicable: ") || says("open: ") => {}
            () => panic!("row {number} has no verdict: {row:?}"),
        }
    }
    let of_attacks = there.iter().filter(|name| !numbers(name).is_empty());
    let untold: Vec<_> = of_attacks
        .filter(|name| !model.contains(name.as_str()))
        .collect();
    assert_eq!(untold, [""; 0], "tests of attacks that no row names");
}

#[test]
fn what_is_open_is_said_in_security_md() {
    let rows = rows(&read("docs/threat-model.md"));
    let open: Vec<u32> = rows
        .iter()
        .filter(|(_, row)| row.verdict.starts_with("open: "))
        .map(|(number, _)| *number)
        .collect();
    let security = read("SECURITY.md");
    let section = security.split("## Open cases").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let said: Vec<u32> = section
        .lines()
        .filter_map(|line| line.strip_prefix("- **")?.split_once(':')?.0.parse().ok())
        .collect();
    assert_eq!(said, open);
}
