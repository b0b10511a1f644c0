//! The nearest right name to a wrong one.

use super::limits::MAX_SUGGEST_BYTES;

/// The candidate nearest to `wrong` when it is near enough to be what was meant: at most a
/// third of its characters mistyped, left out, added or swapped with a neighbour.
pub(crate) fn nearest<'a>(
    wrong: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if wrong.len() > MAX_SUGGEST_BYTES {
        return None;
    }
    let letters: Vec<char> = wrong.chars().collect();
    let tolerance = (letters.len() / 3).max(1);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        // A difference in length alone is that many edits; skips most of a large policy.
        if candidate.len().abs_diff(wrong.len()) > 4 * tolerance {
            continue;
        }
        let edits = distance(&letters, &candidate.chars().collect::<Vec<_>>(), tolerance);
        if edits <= tolerance && best.is_none_or(|(least, _)| edits < least) {
            best = Some((edits, candidate));
        }
    }
    best.map(|(_, name)| name)
}

/// Edits between two words (optimal string alignment); anything above `tolerance` is
/// reported as `tolerance + 1`.
fn distance(a: &[char], b: &[char], tolerance: usize) -> usize {
    if a.len().abs_diff(b.len()) > tolerance {
        return tolerance + 1;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut last_a = None;
    for (i, &from) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        let mut last_b = None;
        for (j, &to) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX - 1);
            let mut least = (at(&row, j) + usize::from(from != to))
                .min(at(&row, j + 1) + 1)
                .min(at(&next, j) + 1);
            if last_a == Some(to) && last_b == Some(from) {
                least = least.min(at(&before, j.saturating_sub(1)) + 1);
            }
            next.push(least);
            last_b = Some(to);
        }
        before = std::mem::replace(&mut row, next);
        last_a = Some(from);
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(a: &str, b: &str) -> usize {
        let letters = |s: &str| s.chars().collect::<Vec<_>>();
        distance(&letters(a), &letters(b), 20)
    }

    #[test]
    fn counts_edits() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("owner", "owner", 0),
            ("ownr", "owner", 1),
            ("onwer", "owner", 1),
            ("kitten", "sitting", 3),
            ("ab", "ba", 1),
            ("gruß", "grub", 1),
        ] {
            assert_eq!(edits(a, b), expected, "{a} {b}");
            assert_eq!(edits(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn only_what_is_near_is_proposed() {
        let names = ["owner", "deputy", "runs", "identity"];
        assert_eq!(nearest("ownre", names), Some("owner"));
        assert_eq!(nearest("run", names), Some("runs"));
        assert_eq!(nearest("idenity", names), Some("identity"));
        assert_eq!(nearest("password", names), None);
        assert_eq!(nearest(&"owner".repeat(50), names), None);
        assert_eq!(nearest("x", []), None);
    }
}
