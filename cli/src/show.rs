//! What reaches the terminal: the only writers to standard output and error, and how values,
//! times, tables, JSON and CSV look.
//!
//! Names, reasons and errors come from callers, hosts and brokers. None of them may command
//! the reader's terminal or spreadsheet: whatever could is written as an escape.

mod credential;
mod csv;
mod ended;
mod fields;
mod table;
mod time;

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};

use ephor_broker::limits::ADMIN_ROWS;
use serde::Serialize;

use crate::args::Output;
use crate::exit::{Failure, UNREACHABLE};

pub use credential::{credential_line, kind_word, path_of, state_word, unsettled};
pub use ended::{Ended, ended};
pub use fields::Fields;
pub use table::{Column, table};
pub use time::{brief, moment};

/// Columns that a terminal is taken to have.
pub const WIDTH: usize = 80;

/// Writes what was asked for to standard output. A reader that went away (`| head`) is nobody's error.
///
/// # Errors
/// When it cannot be written, such as to a file on a full disk.
pub fn to_stdout(text: &str) -> Result<(), Failure> {
    write_out(visible(text).as_bytes())
}

/// Writes a text to standard error, if anybody takes it.
pub fn to_stderr(text: &str) {
    let _ = std::io::stderr().lock().write_all(visible(text).as_bytes());
}

/// Whether standard output is a terminal: only then lines are cut or wrapped to fit.
pub fn to_terminal() -> bool {
    std::io::stdout().is_terminal()
}

fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(why) if why.kind() != ErrorKind::BrokenPipe => Err(Failure::new(
            UNREACHABLE,
            format!("unreachable: standard output cannot be written: {why}."),
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Characters that move the cursor, start escape sequences, or change the order or the look of what
/// stands beside them (Unicode TR 36 §2.10, "Trojan Source" CVE-2021-42574).
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn escaped(text: &str, keep: fn(char) -> bool) -> Cow<'_, str> {
    let bad = |c: char| is_unsafe(c) && !keep(c);
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if bad(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// A text of several lines with everything escaped that could command a terminal.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n' || c == '\t')
}

/// One value: as [`visible`], and no line breaks or tabs either, so that it cannot pass for two.
pub fn value(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// Pretty JSON on standard output.
///
/// # Errors
/// When it cannot be written.
pub fn json<T: Serialize + ?Sized>(what: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(what)
        .map_err(|why| Failure::local("cannot be written as JSON", why))?;
    write_out(format!("{}\n", json_visible(&text)).as_bytes())
}

/// JSON allows these characters raw in its strings, and nowhere else: escaping keeps its meaning.
fn json_visible(text: &str) -> Cow<'_, str> {
    let bad = |c: char| is_unsafe(c) && c != '\n';
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if bad(c) {
            let mut units = [0; 2];
            out.extend(
                c.encode_utf16(&mut units)
                    .iter()
                    .map(|unit| format!("\\u{unit:04x}")),
            );
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// A listing in the form asked for: `short` columns for people, all of `whole` for CSV, the items
/// themselves for JSON. `none` is said when there is nothing to list, to people only.
///
/// # Errors
/// When it cannot be written.
pub fn listing<T: Serialize>(
    output: Output,
    items: &[T],
    short: &[Column<T>],
    whole: &[Column<T>],
    none: &str,
) -> Result<(), Failure> {
    if items.len() >= ADMIN_ROWS {
        to_stderr(&format!("ephor: only the first {ADMIN_ROWS} are shown.\n"));
    }
    match output {
        Output::Json => json(items),
        Output::Csv => write_out(csv::csv(items, whole).as_bytes()),
        Output::Table if items.is_empty() => to_stdout(&format!("{none}\n")),
        Output::Table => to_stdout(&table(items, short, to_terminal().then_some(WIDTH))),
    }
}

/// As [`listing`], of one item: an object in JSON, labelled lines for people.
///
/// # Errors
/// When it cannot be written.
pub fn single<T: Serialize>(
    output: Output,
    item: &T,
    whole: &[Column<T>],
    text: &str,
) -> Result<(), Failure> {
    group(output, item, std::slice::from_ref(item), whole, text)
}

/// As [`listing`], of something with parts: JSON of all of it, CSV of its parts, `text` for people.
///
/// # Errors
/// When it cannot be written.
pub fn group<T: Serialize, P>(
    output: Output,
    all: &T,
    parts: &[P],
    whole: &[Column<P>],
    text: &str,
) -> Result<(), Failure> {
    match output {
        Output::Json => json(all),
        Output::Csv => write_out(csv::csv(parts, whole).as_bytes()),
        Output::Table => to_stdout(text),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shown_can_command_a_terminal() {
        let evil = "a\u{1b}[2Jb\u{9b}31mc\rd\u{202e}e\u{7}\u{2066}\u{200b}";
        let shown = visible(evil);
        assert!(!shown.contains(is_unsafe), "{shown:?}");
        assert_eq!(visible("a\u{1b}[2J"), "a\\u{1b}[2J");
        assert_eq!(
            visible("two\nlines\tand umlauts: äöü, 日本"),
            "two\nlines\tand umlauts: äöü, 日本"
        );
        assert_eq!(value("two\nlines"), "two\\nlines");
    }

    #[test]
    fn json_keeps_its_meaning_when_made_visible() {
        let evil = serde_json::json!({"a": "x\u{9b}31m\u{202e}\n\u{e0001}", "b": ["\u{7f}"]});
        let text = serde_json::to_string_pretty(&evil).unwrap();
        let shown = json_visible(&text);
        assert!(!shown.contains(|c| is_unsafe(c) && c != '\n'));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
            evil
        );
    }
}
