//! Aligned columns.

use super::value;

/// A column: its title and how an item looks in it.
pub struct Column<T> {
    title: &'static str,
    cell: Box<dyn Fn(&T) -> String>,
    may_shrink: bool,
}

impl<T> Column<T> {
    /// A column that is always shown whole.
    pub fn new(title: &'static str, cell: impl Fn(&T) -> String + 'static) -> Self {
        Self {
            title,
            cell: Box::new(cell),
            may_shrink: false,
        }
    }

    /// A column that may be cut, with `…`, where the line would not fit.
    pub fn elastic(title: &'static str, cell: impl Fn(&T) -> String + 'static) -> Self {
        Self {
            may_shrink: true,
            ..Self::new(title, cell)
        }
    }

    pub(super) const fn title(&self) -> &'static str {
        self.title
    }

    pub(super) fn cell(&self, item: &T) -> String {
        value(&(self.cell)(item)).into_owned()
    }
}

/// Between two columns.
const GAP: &str = "  ";
/// An elastic column is never made narrower.
const NARROWEST: usize = 8;

/// Title line and one line an item, cut to `fit` characters where elastic columns allow.
pub fn table<T>(items: &[T], columns: &[Column<T>], fit: Option<usize>) -> String {
    let titles: Vec<String> = columns
        .iter()
        .map(|column| column.title.to_owned())
        .collect();
    let cells = items
        .iter()
        .map(|item| columns.iter().map(|column| column.cell(item)).collect());
    let rows: Vec<Vec<String>> = std::iter::once(titles).chain(cells).collect();
    let mut widths: Vec<usize> = (0..columns.len())
        .map(|n| {
            rows.iter()
                .filter_map(|row| row.get(n))
                .map(|cell| width(cell))
                .max()
                .unwrap_or(0)
        })
        .collect();
    if let Some(fit) = fit {
        shrink(&mut widths, columns, fit);
    }
    rows.iter().map(|row| line(row, &widths)).collect()
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// Takes from the widest elastic column until the line fits.
fn shrink<T>(widths: &mut [usize], columns: &[Column<T>], fit: usize) {
    let gaps = GAP.len() * columns.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > fit {
        let elastic = widths
            .iter_mut()
            .zip(columns)
            .filter(|(_, column)| column.may_shrink);
        match elastic.map(|(width, _)| width).max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            Some(_) | None => return,
        }
    }
}

fn line(row: &[String], widths: &[usize]) -> String {
    let mut out = String::new();
    for (n, (cell, width)) in row.iter().zip(widths).enumerate() {
        if n > 0 {
            out.push_str(GAP);
        }
        out.push_str(&format!("{:<width$}", cut(cell, *width)));
    }
    format!("{}\n", out.trim_end())
}

fn cut(text: &str, to: usize) -> String {
    if width(text) <= to {
        return text.to_owned();
    }
    let kept: String = text.chars().take(to.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row = (&'static str, u32);

    fn columns() -> [Column<Row>; 2] {
        [
            Column::elastic("NAME", |row: &Row| row.0.to_owned()),
            Column::new("TASKS", |row: &Row| row.1.to_string()),
        ]
    }

    #[test]
    fn columns_align_and_lines_end_without_blanks() {
        let shown = table(&[("web-1", 12), ("x", 3)], &columns(), Some(80));
        assert_eq!(shown, "NAME   TASKS\nweb-1  12\nx      3\n");
    }

    #[test]
    fn only_elastic_columns_are_cut_and_only_to_fit() {
        let long = [("a-very-long-name-of-a-host", 1)];
        assert_eq!(
            table(&long, &columns(), Some(20)),
            "NAME           TASKS\na-very-long-…  1\n"
        );
        assert_eq!(
            table(&long, &columns(), Some(3)),
            "NAME      TASKS\na-very-…  1\n"
        );
        assert!(table(&long, &columns(), None).contains("a-very-long-name-of-a-host  1"));
    }

    #[test]
    fn a_cell_cannot_pass_for_two_lines() {
        let shown = table(&[("x\ny\u{1b}[1m", 1)], &columns(), None);
        assert_eq!(shown.lines().count(), 2, "{shown}");
    }
}
