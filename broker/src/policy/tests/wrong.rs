//! Every way to be wrong, with the exact words and place.
//!
//! `wrong.txt` holds the cases: a line that begins with `workload`, `run`, `entitlement`,
//! `target`, `login` or `file` and a bar is what somebody writes (`\n` for a new line), the indented lines after
//! it are all errors that it gets.

use super::*;

/// The errors of `orders.toml` beside a good `ephor.toml`.
fn errors(orders: &str) -> Vec<String> {
    let refused = with(orders).expect_err(orders);
    refused.iter().map(ToString::to_string).collect()
}

/// A table whose second line is `line`, and otherwise good.
fn table(header: &str, line: &str, good: &[&str]) -> String {
    let key = |line: &str| line.split([' ', '=']).next().unwrap_or_default().to_owned();
    let others = good.iter().filter(|other| key(other) != key(line));
    let lines: Vec<&str> = [header, line].into_iter().chain(others.copied()).collect();
    lines.join("\n") + "\n"
}

fn case(kind: &str, text: &str) -> String {
    let text = text.replace("\\n", "\n");
    let workload = ["owner = \"team:a\"", "runs = [{ user = \"a\" }]"];
    match kind {
        "workload" => table("[workload.\"a/b\"]", &text, &workload),
        "run" => table("[workload.\"a/b\"]", &format!("runs = [{text}]"), &workload),
        "entitlement" => {
            let good = [
                "owner = \"team:a\"",
                "purpose = \"p\"",
                "who = [\"a/b\"]",
                "gives = [{ jwt = { audience = \"x\" } }]",
                "[workload.\"a/b\"]",
                workload[0],
                workload[1],
            ];
            let mut text = table("[entitlement.e]", &text, &good[..4]);
            text.push_str(&good[4..].join("\n"));
            text
        }
        "target" => format!("[target.db]\nowner = \"team:a\"\npostgres = {{ {text} }}\n"),
        "login" => {
            let give = format!("gives = [{{ postgres = {{ {text} }} }}]");
            let target = "\n[target.db]\nowner = \"team:a\"\n\
                          postgres = { url = \"postgres://ephor@db1/orders\", databases = [\"orders\", \"bills\"] }\n";
            case("entitlement", &give) + target
        }
        "file" => text,
        other => panic!("{other}"),
    }
}

#[test]
fn each_wrong_line_gets_its_words_and_place() {
    let (mut cases, mut wrong) = (0, Vec::new());
    let mut lines = include_str!("wrong.txt").lines().peekable();
    while let Some(line) = lines.next() {
        let (kind, text) = line.split_once('|').expect(line);
        let mut expected = Vec::new();
        while let Some(error) = lines.peek().and_then(|line| line.strip_prefix("    ")) {
            expected.push(format!("invalid: {error}"));
            lines.next();
        }
        let found = errors(&case(kind, text));
        if found != expected {
            let found: String = found
                .iter()
                .map(|error| format!("\n    {}", error.trim_start_matches("invalid: ")))
                .collect();
            wrong.push(format!("{line}{found}"));
        }
        cases += 1;
    }
    assert!(wrong.is_empty(), "not as written:\n{}", wrong.join("\n"));
    assert!(cases > 100, "{cases}");
}
