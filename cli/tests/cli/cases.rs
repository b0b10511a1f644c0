//! The table of cases in docs/postgres.md is whole: each case has a row, each row a test that reads a
//! receipt or looks at the server, every test it names is in the sources, and no test of a receipt is
//! left out.

use super::ledger::functions;
use super::wire::workspace;

/// What each case must be found by.
const CASES: [&str; 26] = [
    "(a)",
    "(b)",
    "(c)",
    "(d)",
    "(e)",
    "(f)",
    "(g)",
    "open transaction",
    "idle",
    "`LISTEN`",
    "`COPY`",
    "prepared transaction",
    "objects in two databases",
    "default privileges",
    "grants passed on",
    "child role",
    "`SET ROLE`",
    "racing",
    "dropped, or renamed",
    "password changed",
    "standby",
    "in recovery",
    "failover",
    "`max_connections`",
    "restarted in the middle",
    "unreachable for 10 minutes",
];

/// Case, tests, what the receipt says.
fn rows(text: &str) -> Vec<[&str; 3]> {
    let section = text.split("## Cases, and what the receipt says").nth(1);
    let section = section.unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let cells = rows.map(|line| line.trim_matches('|').split(" | ").collect::<Vec<_>>());
    cells
        .skip(1)
        .map(|cells| cells.try_into().unwrap())
        .collect()
}

#[test]
fn every_case_of_a_login_has_a_test_and_what_the_receipt_says() {
    let text = std::fs::read_to_string(workspace().join("docs/postgres.md")).unwrap();
    let rows = rows(&text);
    for case in CASES {
        let found = rows.iter().any(|[name, ..]| name.contains(case));
        assert!(found, "no row for {case}");
    }
    let there = functions();
    for [case, tests, says] in &rows {
        let tests: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test for {case}");
        for test in tests {
            assert!(there.contains(test), "{test} is named, but no test");
        }
        assert!(!says.trim().is_empty(), "no receipt for {case}");
    }
    let receipts = there
        .iter()
        .filter(|name| name.starts_with("receipt_of_") || name.starts_with("receipt_after_"));
    let untold: Vec<_> = receipts
        .filter(|name| !text.contains(name.as_str()))
        .collect();
    assert_eq!(untold, [""; 0], "tests of receipts that no row names");
}
