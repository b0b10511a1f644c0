//! Names at a PostgreSQL server: those of our logins, those that policy gives, and how any of them
//! is quoted.
//!
//! A name over 63 bytes is cut silently by the server, and two may become one; so the length is
//! checked here, always, and never left to the server.

use std::fmt;

use ephor_proto::postgres::check_identifier;
use serde::{Deserialize, Serialize};

/// A name that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// Not made by [`crate::kind::name::make`].
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

impl RoleName {
    /// A name that was made by [`crate::kind::name::make`].
    ///
    /// # Errors
    /// [`BadName::NotOurs`].
    pub fn parse(text: &str) -> Result<Self, BadName> {
        match crate::kind::name::parse(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(BadName::NotOurs(text.chars().take(80).collect())),
        }
    }

    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
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
        let good = check_identifier(text).is_ok()
            && !text.starts_with("pg_")
            && !text.starts_with(crate::kind::name::PREFIX)
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

/// `text` as a literal of SQL, whatever `standard_conforming_strings` says. It holds no `$`, so that it
/// ends no text that is quoted with dollars around it.
pub(super) fn literal(text: &str) -> String {
    let quotes = text.replace('\'', "''");
    if quotes.contains(['\\', '$']) {
        let escaped = quotes.replace('\\', "\\\\").replace('$', "\\x24");
        format!("E'{escaped}'")
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
    fn attack_113_hostile_names_are_refused_or_quoted() {
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
        assert_eq!(literal("$x$"), "E'\\x24x\\x24'");
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
        fn whatever_is_quoted_is_one_word(name in ".{0,60}") {
            let inner = quoted(&name);
            let inner = &inner[1..inner.len() - 1];
            prop_assert!(!inner.replace("\"\"", "").contains('"'));
        }
    }
}
