//! Ids as people type them: whole, or as a letter and a suffix.

use super::{EntityId, SHORT_MAX, SHORT_MIN, suffix};

/// A typed id that may match several entities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdQuery {
    /// A whole UUID, or the serial of a certificate, which begins with one; matches an entity of
    /// any kind.
    Full(uuid::Uuid),
    /// A kind letter and a suffix of the random bits.
    Short {
        /// The kind letter, lower case.
        letter: char,
        /// 4 to 15 Crockford characters, lower case, aliases resolved.
        suffix: String,
    },
}

/// A text that is neither a whole nor a short id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no id: write a UUID, a certificate's serial, or a letter and at least 4 characters such as t-7kq2"
)]
pub struct BadQuery(String);

impl IdQuery {
    /// Whether this query names that id.
    pub fn matches<I: EntityId>(&self, id: &I) -> bool {
        match self {
            Self::Full(uuid) => *uuid.as_bytes() == id.to_bytes(),
            Self::Short {
                letter,
                suffix: typed,
            } => *letter == I::LETTER && suffix(id.to_bytes(), typed.len()) == *typed,
        }
    }
}

/// Crockford's aliases: i and l read as 1, o as 0; u is not in the alphabet.
fn crockford(c: char) -> Option<char> {
    match c.to_ascii_lowercase() {
        'i' | 'l' => Some('1'),
        'o' => Some('0'),
        'u' => None,
        c if c.is_ascii_alphanumeric() => Some(c),
        _ => None,
    }
}

fn parse_short(text: &str) -> Option<IdQuery> {
    let (letter, rest) = text.split_once('-')?;
    let mut letters = letter.chars();
    let letter = letters.next().filter(char::is_ascii_alphabetic)?;
    if letters.next().is_some() || !(SHORT_MIN..=SHORT_MAX).contains(&rest.len()) {
        return None;
    }
    let suffix = rest.chars().map(crockford).collect::<Option<String>>()?;
    Some(IdQuery::Short {
        letter: letter.to_ascii_lowercase(),
        suffix,
    })
}

/// A certificate's serial in hex, as `openssl x509 -serial` or `-text` shows it: 16 bytes of the
/// credential's id, and 2 that count its certificates.
fn parse_serial(text: &str) -> Option<uuid::Uuid> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    if digits.len() != 36 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    digits
        .get(..32)
        .and_then(|id| uuid::Uuid::try_parse(id).ok())
}

impl std::str::FromStr for IdQuery {
    type Err = BadQuery;

    fn from_str(text: &str) -> Result<Self, BadQuery> {
        if text.len() == 36
            && let Ok(uuid) = uuid::Uuid::try_parse(text)
        {
            return Ok(Self::Full(uuid));
        }
        if let Some(uuid) = parse_serial(text) {
            return Ok(Self::Full(uuid));
        }
        parse_short(text).ok_or_else(|| BadQuery(text.chars().take(64).collect()))
    }
}

/// The shortest form (at least 4 characters) of `id` that no other of `ids` shares;
/// the whole UUID when even all random bits are shared.
pub fn shortest_unique<'a, I: EntityId + 'a>(
    ids: impl IntoIterator<Item = &'a I>,
    id: I,
) -> String {
    let others: Vec<String> = ids
        .into_iter()
        .filter(|other| **other != id)
        .map(|other| suffix(other.to_bytes(), SHORT_MAX))
        .collect();
    let own = suffix(id.to_bytes(), SHORT_MAX);
    let shared = others
        .iter()
        .map(|other| common_end(other, &own))
        .max()
        .unwrap_or(0);
    if shared >= SHORT_MAX {
        return id.to_string();
    }
    id.short_with(shared + 1)
}

fn common_end(a: &str, b: &str) -> usize {
    a.bytes()
        .rev()
        .zip(b.bytes().rev())
        .take_while(|(x, y)| x == y)
        .count()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::id::{CredentialId, TaskId};
    use proptest::prelude::*;

    fn task(low: u8) -> TaskId {
        TaskId::from_parts(7, [0, 0, 0, 0, 0, 0, 0, 0, 0, low])
    }

    #[test]
    fn aliases_and_case_are_forgiven() {
        let id = task(0b00001); // ...0001
        for text in ["t-0001", "T-OOOL", "t-oo0i"] {
            assert!(text.parse::<IdQuery>().unwrap().matches(&id), "{text}");
        }
    }

    #[test]
    fn the_letter_and_the_kind_must_agree() {
        let id = CredentialId::from_parts(7, [0; 10]);
        assert!(!"t-0000".parse::<IdQuery>().unwrap().matches(&id));
        assert!("k-0000".parse::<IdQuery>().unwrap().matches(&id));
        assert!(id.to_string().parse::<IdQuery>().unwrap().matches(&id));
    }

    #[test]
    fn a_certificates_serial_leads_to_its_credential() {
        let id = CredentialId::from_parts(1_800_000_000_000, [0xf3; 10]);
        let hex: String = id.to_bytes().iter().map(|b| format!("{b:02X}")).collect();
        let whole = format!("{hex}0007");
        let pairs: Vec<&str> = (0..18).map(|n| &whole[2 * n..2 * n + 2]).collect();
        for text in [whole.clone(), pairs.join(":").to_lowercase()] {
            assert!(text.parse::<IdQuery>().unwrap().matches(&id), "{text}");
        }
        assert!(format!("{hex}00zz").parse::<IdQuery>().is_err());
    }

    #[test]
    fn what_is_no_id_says_how_one_looks() {
        for text in [
            "",
            "t-",
            "t-7kq",
            "t-7kqu",
            "tt-7kq2",
            "7kq2",
            "t-7kq2!",
            "t-0123456789abcdef",
            "-7kq2",
            "t-é123",
        ] {
            let error = text.parse::<IdQuery>().unwrap_err().to_string();
            assert!(
                error.contains("t-7kq2 ") || error.ends_with("t-7kq2"),
                "{error}"
            );
        }
    }

    #[test]
    fn shortest_unique_grows_only_as_needed() {
        let ids = [task(1), task(2)];
        assert_eq!(shortest_unique(&ids, task(1)), "t-0001");
        let far = TaskId::from_parts(7, [0, 0, 0, 0, 0, 0, 0, 0xf0, 0, 1]);
        let ids = [task(1), far];
        let (a, b) = (shortest_unique(&ids, task(1)), shortest_unique(&ids, far));
        assert_ne!(a, b);
        assert_eq!(a.len(), b.len());
        assert_eq!(a, "t-00001", "4 characters are shared, the fifth differs");
        let twin = TaskId::from_parts(8, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(shortest_unique(&[task(1), twin], twin), twin.to_string());
    }

    proptest! {
        #[test]
        fn a_shortest_form_finds_its_id_alone(seeds in proptest::collection::vec(any::<[u8; 10]>(), 1..40)) {
            let ids: Vec<TaskId> = seeds.iter().map(|s| TaskId::from_parts(1, *s)).collect();
            for id in &ids {
                let query: IdQuery = shortest_unique(&ids, *id).parse().unwrap();
                prop_assert!(ids.iter().all(|other| query.matches(other) == (other == id)));
            }
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<IdQuery>();
        }
    }
}
