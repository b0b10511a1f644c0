//! One thing shown as labelled lines.

use super::{WIDTH, value};

/// Where the values begin.
const INDENT: usize = 15;

/// A headline and labelled values below it; an empty value leaves its line out.
pub struct Fields {
    text: String,
    fit: Option<usize>,
}

impl Fields {
    /// Begins with what it is, and on the right how it stands.
    pub fn new(what: &str, state: &str, to_terminal: bool) -> Self {
        let headline = format!("{:<40} {}", value(what), value(state));
        Self {
            text: format!("{}\n", headline.trim_end()),
            fit: to_terminal.then_some(WIDTH),
        }
    }

    /// One labelled value; nothing when the value is empty or not known.
    #[must_use]
    pub fn line(mut self, label: &str, told: impl Into<Option<String>>) -> Self {
        let told: Option<String> = told.into();
        let Some(told) = told.filter(|told| !told.is_empty()) else {
            return self;
        };
        let mut lines = wrapped(
            &value(&told),
            self.fit.map(|fit| fit.saturating_sub(INDENT)),
        )
        .into_iter();
        let first = lines.next().unwrap_or_default();
        self.text.push_str(&format!("  {label:<12} {first}\n"));
        for line in lines {
            self.text.push_str(&format!("{:INDENT$}{line}\n", ""));
        }
        self
    }

    /// The whole text.
    pub fn text(self) -> String {
        self.text
    }
}

/// Broken at blanks so that no line is longer than `fit`, unless a word is.
fn wrapped(text: &str, fit: Option<usize>) -> Vec<String> {
    let Some(fit) = fit else {
        return vec![text.to_owned()];
    };
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= fit => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_align_and_what_is_not_known_is_left_out() {
        let shown = Fields::new("token k-7q2m for billing", "LISTED", false)
            .line("because", None)
            .line("ended", String::new())
            .line("asked by", "orders/web".to_owned())
            .text();
        assert_eq!(
            shown,
            "token k-7q2m for billing                 LISTED\n  asked by     orders/web\n"
        );
    }

    #[test]
    fn long_values_wrap_below_themselves_on_a_terminal_only() {
        let long = "word ".repeat(30);
        let shown = Fields::new("x", "", true)
            .line("because", long.trim().to_owned())
            .text();
        assert!(
            shown.lines().count() > 2 && shown.lines().all(|line| line.chars().count() <= WIDTH),
            "{shown}"
        );
        assert!(
            shown
                .lines()
                .skip(2)
                .all(|line| line.starts_with(&" ".repeat(INDENT)))
        );
        let piped = Fields::new("x", "", false)
            .line("because", long.trim().to_owned())
            .text();
        assert_eq!(piped.lines().count(), 2);
    }

    #[test]
    fn a_reason_cannot_forge_a_line() {
        let shown = Fields::new("x", "", false)
            .line("because", "a\n  approved by  ana".to_owned())
            .text();
        assert_eq!(shown.lines().count(), 2, "{shown}");
    }
}
