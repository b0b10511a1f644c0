//! The one way to name a credential: `cred://ENTITLEMENT[/ITEM][?as=env|file|fd]`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_AUDIENCE_LEN, MAX_CRED_REF_LEN, MAX_ENTITLEMENT_LEN};

/// The built-in entitlement that gives a workload its own SPIFFE identity.
pub const IDENTITY: &str = "identity";

/// How a child process gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum As {
    /// The value in the environment variable.
    #[default]
    Env,
    /// A path in the variable; the file is kept fresh and removed at the end.
    File,
    /// A descriptor number in the variable.
    Fd,
}

impl As {
    /// The word after `as=`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Env => "env",
            Self::File => "file",
            Self::Fd => "fd",
        }
    }
}

/// A parsed reference.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CredRef {
    entitlement: String,
    item: Option<String>,
    delivery: As,
}

/// A text that is no credential reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCredRef {
    /// Another scheme, or none.
    #[error("`{0}` must begin with cred:// (such as cred://orders-db)")]
    Scheme(String),
    /// The entitlement is missing or has other characters.
    #[error(
        "entitlement `{0}` must be 1 to 64 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit"
    )]
    Entitlement(String),
    /// The item is empty, too long or not escaped.
    #[error("item `{item}` {problem}")]
    Item {
        /// What was written.
        item: String,
        /// What is wrong and how to write it.
        problem: &'static str,
    },
    /// A query that is not `as=env`, `as=file` or `as=fd`.
    #[error("`?{0}` is unknown: only ?as=env, ?as=file or ?as=fd")]
    Query(String),
    /// Longer than 2048 bytes.
    #[error("a credential reference is at most 2048 bytes long")]
    Long,
}

impl CredRef {
    /// From its parts; `item` is plain text, not escaped.
    ///
    /// # Errors
    /// When a part is empty, too long or has characters that it may not have.
    pub fn new(entitlement: &str, item: Option<&str>, delivery: As) -> Result<Self, BadCredRef> {
        check_entitlement(entitlement)?;
        if let Some(item) = item {
            check_item(item)?;
        }
        let item = item.map(str::to_owned);
        Ok(Self {
            entitlement: entitlement.to_owned(),
            item,
            delivery,
        })
    }

    /// `cred://identity/AUDIENCE`.
    ///
    /// # Errors
    /// When the audience is empty, too long or has control characters.
    pub fn identity(audience: &str) -> Result<Self, BadCredRef> {
        Self::new(IDENTITY, Some(audience), As::Env)
    }

    /// The entitlement's name.
    pub fn entitlement(&self) -> &str {
        &self.entitlement
    }

    /// The item, unescaped: an audience for `identity`.
    pub fn item(&self) -> Option<&str> {
        self.item.as_deref()
    }

    /// How it is delivered.
    pub const fn delivery(&self) -> As {
        self.delivery
    }

    /// Whether this names the built-in identity.
    pub fn is_identity(&self) -> bool {
        self.entitlement == IDENTITY
    }
}

/// Whether a text may be an entitlement's name.
///
/// # Errors
/// When it may not.
pub fn check_entitlement(name: &str) -> Result<(), BadCredRef> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    let first = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if first && name.len() <= MAX_ENTITLEMENT_LEN && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(BadCredRef::Entitlement(shown(name)))
}

fn check_item(item: &str) -> Result<(), BadCredRef> {
    let problem = match item {
        "" => "is empty: leave the slash out, or name one",
        item if item.len() > MAX_AUDIENCE_LEN => "is longer than 512 bytes",
        item if item.chars().any(char::is_control) => "has control characters",
        _ => return Ok(()),
    };
    Err(BadCredRef::Item {
        item: shown(item),
        problem,
    })
}

fn shown(text: &str) -> String {
    text.chars()
        .take(80)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// What stands for itself in an item (RFC 3986 unreserved, and ':' for readable URNs).
const fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':')
}

fn escape(item: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for byte in item.bytes() {
        if plain(byte) {
            write!(f, "{}", char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

fn unescape(raw: &str) -> Result<String, BadCredRef> {
    let bad = |problem| BadCredRef::Item {
        item: shown(raw),
        problem,
    };
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
                let pair = digit()
                    .zip(digit())
                    .and_then(|(a, b)| u8::try_from(a * 16 + b).ok());
                bytes.push(pair.ok_or_else(|| bad("has a '%' without two hex digits: write %25"))?);
            }
            b'/' => return Err(bad("has a '/': write %2F")),
            b'#' => return Err(bad("has a '#': write %23")),
            b if b <= b' ' || b == 0x7f => {
                return Err(bad("has a blank or control character: write it as %XX"));
            }
            b => bytes.push(b),
        }
    }
    String::from_utf8(bytes).map_err(|_| bad("is not UTF-8 once unescaped"))
}

fn parse_query(query: Option<&str>) -> Result<As, BadCredRef> {
    match query {
        None => Ok(As::Env),
        Some("as=env") => Ok(As::Env),
        Some("as=file") => Ok(As::File),
        Some("as=fd") => Ok(As::Fd),
        Some(other) => Err(BadCredRef::Query(shown(other))),
    }
}

impl std::str::FromStr for CredRef {
    type Err = BadCredRef;

    fn from_str(text: &str) -> Result<Self, BadCredRef> {
        if text.len() > MAX_CRED_REF_LEN {
            return Err(BadCredRef::Long);
        }
        let rest = text
            .strip_prefix("cred://")
            .ok_or_else(|| BadCredRef::Scheme(shown(text)))?;
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let delivery = parse_query(query)?;
        let (entitlement, item) = match path.split_once('/') {
            Some((entitlement, raw)) => (entitlement, Some(unescape(raw)?)),
            None => (path, None),
        };
        Self::new(entitlement, item.as_deref(), delivery)
    }
}

impl fmt::Display for CredRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cred://{}", self.entitlement)?;
        if let Some(item) = &self.item {
            f.write_str("/")?;
            escape(item, f)?;
        }
        match self.delivery {
            As::Env => Ok(()),
            As::File | As::Fd => write!(f, "?as={}", self.delivery.as_str()),
        }
    }
}

impl fmt::Debug for CredRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for CredRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CredRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts() {
        for (text, entitlement, item, delivery) in [
            ("cred://orders-db", "orders-db", None, As::Env),
            ("cred://billing-api?as=file", "billing-api", None, As::File),
            (
                "cred://identity/billing",
                "identity",
                Some("billing"),
                As::Env,
            ),
            (
                "cred://identity/https:%2F%2Fapi.example%2Fv1?as=fd",
                "identity",
                Some("https://api.example/v1"),
                As::Fd,
            ),
        ] {
            let cred: CredRef = text.parse().unwrap();
            assert_eq!(
                (cred.entitlement(), cred.item(), cred.delivery()),
                (entitlement, item, delivery)
            );
            assert_eq!(cred.to_string(), text);
        }
        assert_eq!(
            "cred://a?as=env".parse::<CredRef>().unwrap().to_string(),
            "cred://a"
        );
        assert!(CredRef::identity("billing").unwrap().is_identity());
    }

    #[test]
    fn errors_say_what_to_write() {
        for (text, hint) in [
            ("orders-db", "cred://"),
            ("CRED://x", "cred://"),
            ("cred://", "1 to 64"),
            ("cred:///x", "1 to 64"),
            ("cred://Orders", "a-z"),
            ("cred://-x", "letter or digit"),
            ("cred://identity/", "empty"),
            ("cred://identity/https://x", "%2F"),
            ("cred://identity/a#b", "%23"),
            ("cred://identity/a b", "%XX"),
            ("cred://identity/%zz", "%25"),
            ("cred://identity/%4", "%25"),
            ("cred://identity/%ff", "UTF-8"),
            ("cred://identity/%0a", "control"),
            ("cred://a?as=socket", "?as=env"),
            ("cred://a?", "?as=env"),
            ("cred://a?as=file&x=1", "?as=env"),
        ] {
            let error = text.parse::<CredRef>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert!(CredRef::identity(&"a".repeat(513)).is_err());
        assert!(
            CredRef::identity(&"/".repeat(512))
                .unwrap()
                .to_string()
                .parse::<CredRef>()
                .is_ok()
        );
    }

    proptest! {
        #[test]
        fn any_audience_round_trips(audience in "\\PC{1,60}") {
            let cred = CredRef::identity(&audience).unwrap();
            let again: CredRef = cred.to_string().parse().unwrap();
            prop_assert_eq!(again.item(), Some(audience.as_str()));
        }

        #[test]
        fn parsing_never_panics(text in "(cred://)?\\PC{0,40}") {
            let _ = text.parse::<CredRef>();
        }
    }
}
