//! Names at a PostgreSQL server: those of our logins, those that policy gives, and how any of them
//! is quoted.
//!
//! A name over 63 bytes is cut silently by the server, and two may become one; so the length is
//! checked here, always, and never left to the server.

use std::fmt;

use ephor_crypto::digest::sha256;
use serde::{Deserialize, Serialize};

/// What every login of every installation begins with.
pub const PREFIX: &str = "eph_";
/// Most bytes of a name at a PostgreSQL server (`NAMEDATALEN - 1`).
pub const NAME_BYTES: usize = 63;
/// Most characters of the entitlement in a login's name.
const ENTITLEMENT: usize = 20;
/// Characters that tell one installation from another.
const INSTALLATION: usize = 6;
/// Characters for 128 random bits.
const RANDOM: usize = 26;

/// RFC 4648 base32, lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Crockford base32, lower case.
const CROCKFORD: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A name that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Not made by [`RoleName::make`].
    #[error("`{0}` is no login of ours (eph_ENTITLEMENT_INSTALLATION_RANDOM)")]
    NotOurs(String),
    /// Nothing that a role or database should be called.
    #[error(
        "`{0}` cannot be a name at a database: 1 to 63 bytes without control characters, and no server's own (pg_...) or ours (eph_...)"
    )]
    NoName(String),
}

/// The name of one of our logins: `eph_ENTITLEMENT_INSTALLATION_RANDOM`, only `[a-z0-9_]`, at most
/// 58 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoleName(String);

/// What a login's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// The entitlement, shortened.
    pub entitlement: &'a str,
    /// Whose it is; see [`installation_part`].
    pub installation: &'a str,
    /// 128 random bits.
    pub random: &'a str,
}

/// The part of a name that tells `installation` (its id, any text) from another.
#[must_use]
pub fn installation_part(installation: &str) -> String {
    let digest = sha256(installation.as_bytes());
    let value = digest
        .iter()
        .take(4)
        .fold(0_u128, |sum, byte| (sum << 8) | u128::from(*byte));
    encode(value >> 2, INSTALLATION, BASE32)
}

/// The lowest `5 * length` bits of `value`, highest first.
fn encode(value: u128, length: usize, alphabet: &[u8; 32]) -> String {
    let digit = |place: usize| alphabet.get(((value >> (5 * place)) & 31) as usize);
    (0..length)
        .rev()
        .filter_map(digit)
        .map(|byte| char::from(*byte))
        .collect()
}

impl RoleName {
    /// A new name. `installation` is what [`installation_part`] gave.
    ///
    /// # Errors
    /// [`BadName::NotOurs`] when `installation` is not of that form.
    pub fn make(entitlement: &str, installation: &str, random: [u8; 16]) -> Result<Self, BadName> {
        let plain = |c: char| match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => c,
            _ => '_',
        };
        let mut short: String = entitlement.chars().map(plain).take(ENTITLEMENT).collect();
        if short.is_empty() {
            short.push('x');
        }
        let random = encode(u128::from_be_bytes(random), RANDOM, CROCKFORD);
        Self::parse(&format!("{PREFIX}{short}_{installation}_{random}"))
    }

    /// A name that was made by [`Self::make`].
    ///
    /// # Errors
    /// [`BadName::NotOurs`].
    pub fn parse(text: &str) -> Result<Self, BadName> {
        match split(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(BadName::NotOurs(text.chars().take(80).collect())),
        }
    }

    /// Its parts.
    #[must_use]
    pub fn parsed(&self) -> Parsed<'_> {
        // It was split once when it was made.
        split(&self.0).unwrap_or(Parsed {
            entitlement: "",
            installation: "",
            random: "",
        })
    }

    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn split(text: &str) -> Option<Parsed<'_>> {
    let rest = text.strip_prefix(PREFIX)?;
    let (rest, random) = rest.rsplit_once('_')?;
    let (entitlement, installation) = rest.rsplit_once('_')?;
    let of = |part: &str, alphabet: &[u8; 32]| part.bytes().all(|byte| alphabet.contains(&byte));
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let good = (1..=ENTITLEMENT).contains(&entitlement.len())
        && entitlement.bytes().all(plain)
        && installation.len() == INSTALLATION
        && of(installation, BASE32)
        && random.len() == RANDOM
        && of(random, CROCKFORD);
    good.then_some(Parsed {
        entitlement,
        installation,
        random,
    })
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RoleName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        Self::parse(&text)
    }
}

impl From<RoleName> for String {
    fn from(name: RoleName) -> Self {
        name.0
    }
}

/// A role or database that somebody else made: any name that the server takes whole, but neither one of
/// the server's own nor of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ident(String);

impl Ident {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`BadName::NoName`].
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let reserved = [
            "public",
            "none",
            "current_user",
            "session_user",
            "current_role",
        ];
        let good = (1..=NAME_BYTES).contains(&text.len())
            && !text.chars().any(char::is_control)
            && !text.starts_with("pg_")
            && !text.starts_with(PREFIX)
            && !["ephor_owner", "ephor_signal"].contains(&text)
            && !reserved.contains(&text);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            let shown = text.chars().take(80).flat_map(char::escape_debug);
            Err(BadName::NoName(shown.collect()))
        }
    }

    /// The name as it is, not quoted.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As SQL takes it.
    #[must_use]
    pub fn quoted(&self) -> String {
        quoted(&self.0)
    }
}

impl fmt::Display for Ident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Ident {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        Self::parse(&text)
    }
}

impl From<Ident> for String {
    fn from(name: Ident) -> Self {
        name.0
    }
}

/// `name` as a quoted identifier of SQL. The one place where that is done outside the server.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as a literal of SQL, whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    let quotes = text.replace('\'', "''");
    if quotes.contains('\\') {
        format!("E'{}'", quotes.replace('\\', "\\\\"))
    } else {
        format!("'{quotes}'")
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_made_name_is_short_plain_and_says_whose_it_is() {
        let part = installation_part("0193e4a6-7c11-7d3a-9b52-5f2a1c0e7d44");
        let name = RoleName::make("Orders-DB.Production (europe)", &part, [0xff; 16]).unwrap();
        assert!(
            name.as_str().starts_with("eph_orders_db_production_"),
            "{name}"
        );
        assert_eq!(name.as_str().len(), 58);
        assert_eq!(name.parsed().installation, part);
        assert_eq!(name.parsed().random, "7zzzzzzzzzzzzzzzzzzzzzzzzz");
        assert_ne!(part, installation_part("another"));
        assert!(
            RoleName::make("", &part, [0; 16])
                .unwrap()
                .as_str()
                .starts_with("eph_x_")
        );
    }

    #[test]
    fn attack_113_hostile_names_are_refused() {
        let hostile = [
            "",
            "a\0b",
            "a\nb",
            "pg_monitor",
            "eph_x",
            "public",
            "none",
            "ephor_owner",
            "ein_sehr_langer_name_der_ueber_dreiundsechzig_bytes_hinausgeht_und_dann",
        ];
        for name in hostile {
            assert!(Ident::parse(name).is_err(), "{name:?}");
        }
        for name in [
            "orders_rw",
            "Orders RW",
            "a\"b",
            "a'b",
            "a\\b",
            "$$",
            "Größe",
        ] {
            assert!(Ident::parse(name).is_ok(), "{name:?}");
        }
        assert_eq!(quoted("a\"b; drop role x"), "\"a\"\"b; drop role x\"");
        assert_eq!(literal("a'b\\"), "E'a''b\\\\'");
        for name in [
            "eph_x_abcdef_0",
            "eph_X_abcdef_00000000000000000000000000",
            "eph_",
        ] {
            assert!(RoleName::parse(name).is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_made_is_parsed(entitlement in ".{0,60}", random: [u8; 16]) {
            let name = RoleName::make(&entitlement, "abcdef", random).unwrap();
            prop_assert_eq!(RoleName::parse(name.as_str()).unwrap(), name.clone());
            prop_assert!(name.as_str().len() <= NAME_BYTES);
            prop_assert_eq!(name.parsed().installation, "abcdef");
        }

        #[test]
        fn whatever_is_quoted_is_one_word(name in ".{0,60}") {
            let inner = quoted(&name);
            let inner = &inner[1..inner.len() - 1];
            prop_assert!(!inner.replace("\"\"", "").contains('"'));
        }
    }
}
