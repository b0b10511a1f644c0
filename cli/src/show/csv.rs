//! RFC 4180, for spreadsheets that must not run what they open.

use super::Column;

/// A title line and one line an item, ended by CRLF.
pub(super) fn csv<T>(items: &[T], columns: &[Column<T>]) -> String {
    let titles = record(columns.iter().map(|column| column.title().to_owned()));
    let rows = items
        .iter()
        .map(|item| record(columns.iter().map(|column| column.cell(item))));
    std::iter::once(titles).chain(rows).collect()
}

fn record(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.map(|cell| field(&cell)).collect();
    format!("{}\r\n", cells.join(","))
}

/// A cell that begins like a formula gets an apostrophe in front (OWASP, "CSV Injection"); quotes
/// are doubled, and a cell with a comma or a quote stands in quotes.
fn field(cell: &str) -> String {
    let formula = cell.starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    let safe = if formula {
        format!("'{cell}")
    } else {
        cell.to_owned()
    };
    if safe.contains(['"', ',', '\r', '\n', '\'']) {
        format!("\"{}\"", safe.replace('"', "\"\""))
    } else {
        safe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_rfc_4180_says() {
        type Row = (&'static str, &'static str);
        let columns = [
            Column::new("name", |row: &Row| row.0.to_owned()),
            Column::new("why", |row: &Row| row.1.to_owned()),
        ];
        let shown = csv(&[("a", "say \"hi\", bo"), ("b", "")], &columns);
        assert_eq!(shown, "name,why\r\na,\"say \"\"hi\"\", bo\"\r\nb,\r\n");
    }

    #[test]
    fn formulas_are_text() {
        for evil in ["=1+1", "+1", "-1", "@SUM(A1)", "＝1"] {
            assert_eq!(field(evil), format!("\"'{evil}\""));
        }
        assert_eq!(field("=cmd|' /C calc'!A0"), "\"'=cmd|' /C calc'!A0\"");
        assert_eq!(field("a=b"), "a=b");
    }

    #[test]
    fn what_control_characters_could_hide_is_seen() {
        let columns = [Column::new("x", |row: &&str| (*row).to_owned())];
        // A tab or line break before the sign would otherwise be dropped by the spreadsheet.
        assert_eq!(
            csv(&["\t=1", "a\r\nb"], &columns),
            "x\r\n\\t=1\r\na\\r\\nb\r\n"
        );
    }
}
