//! Who answers for a role, by the comment on it: the only place where PostgreSQL keeps such a thing.

/// Who answers for a role, by its comment: `owner: team:orders` or `owner=...` anywhere in it, or
/// nothing but such a name or a mail address.
pub fn owner(comment: &str) -> Option<&str> {
    let mut words = comment.split(|c: char| c.is_whitespace() || c == ',' || c == ';');
    let mut only = words.clone().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let Some(key) = word
            .get(..5)
            .filter(|key| key.eq_ignore_ascii_case("owner"))
        else {
            continue;
        };
        let named = match word.get(key.len()..) {
            Some(":" | "=") => words.find(|word| !word.is_empty()),
            Some(rest) => rest.strip_prefix([':', '=']),
            None => None,
        };
        if named.is_some() {
            return named;
        }
    }
    let is_name =
        |word: &&str| word.starts_with("team:") || word.starts_with("group:") || word.contains('@');
    match (only.next().filter(is_name), only.next()) {
        (Some(name), None) => Some(name),
        (Some(_) | None, Some(_) | None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_in_comments() {
        for (comment, named) in [
            ("owner: team:orders", Some("team:orders")),
            (
                "Read-only for BI. Owner=bo@example.com, until March",
                Some("bo@example.com"),
            ),
            ("OWNER:dba", Some("dba")),
            ("team:orders", Some("team:orders")),
            ("bo@example.com", Some("bo@example.com")),
            ("asks bo@example.com", None),
            ("owner:", None),
            ("owner of all tables", None),
            ("ownership: none", None),
            ("the owner", None),
            ("", None),
            ("é", None),
            ("ownér: x", None),
        ] {
            assert_eq!(owner(comment), named, "{comment}");
        }
    }
}
