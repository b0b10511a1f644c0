//! The life of one version of a key, and what each part of it allows.
//!
//! A version only ever goes forward. Its row stays for ever, so that an auditor can tell which key
//! signed what; its private half is wiped as soon as nothing is signed with it any more.

use ephor_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::ledger::KeyRow;

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// Issues certificates: of agents, of the broker, of workloads.
    Ca,
    /// Signs tokens and status lists.
    Token,
    /// Signs the audit log's checkpoints.
    Log,
    /// Issues the client certificates of database logins, and nothing else.
    Database,
}

impl KeyKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ca, Self::Token, Self::Log, Self::Database];

    /// As stored and as typed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::Token => "token",
            Self::Log => "log",
            Self::Database => "database",
        }
    }

    /// Whether a retired key still signs: a CA its revocation lists, a log key beside its
    /// successor. A retired token key signs nothing.
    #[must_use]
    pub const fn signs_while_retired(self) -> bool {
        match self {
            Self::Ca | Self::Log => true,
            Self::Token | Self::Database => false,
        }
    }
}

impl std::fmt::Display for KeyKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no kind of key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of ca, token, log, database")]
pub struct UnknownKind(String);

impl std::str::FromStr for KeyKind {
    type Err = UnknownKind;

    fn from_str(word: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == word)
            .ok_or_else(|| UnknownKind(word.chars().take(40).collect()))
    }
}

/// Where a version of a key is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// A CA key whose certificate is being signed elsewhere.
    Requested,
    /// Published, so that everyone has it before it is used.
    Prepared,
    /// In use. One of each kind.
    Active,
    /// No longer used for anything new; trusted until what it signed has expired.
    Retired,
    /// No longer trusted or published, and its private half is gone.
    Destroyed,
}

impl KeyState {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [
        Self::Requested,
        Self::Prepared,
        Self::Active,
        Self::Retired,
        Self::Destroyed,
    ];

    /// As stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Prepared => "prepared",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Destroyed => "destroyed",
        }
    }

    /// Whether it is published and what it signed is trusted.
    #[must_use]
    pub const fn is_trusted(self) -> bool {
        match self {
            Self::Prepared | Self::Active | Self::Retired => true,
            Self::Requested | Self::Destroyed => false,
        }
    }
}

impl std::fmt::Display for KeyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no state of a key")]
pub struct UnknownState(String);

impl std::str::FromStr for KeyState {
    type Err = UnknownState;

    fn from_str(word: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == word)
            .ok_or_else(|| UnknownState(word.chars().take(40).collect()))
    }
}

/// The row of the version after the newest of `kind` in `rows`.
#[must_use]
pub fn next_version(rows: &[KeyRow], kind: KeyKind) -> u32 {
    let newest = rows.iter().filter(|row| row.name == kind.as_str());
    newest
        .map(|row| row.version)
        .max()
        .unwrap_or(0)
        .saturating_add(1)
}

/// The row in its next state. The private half goes when nothing is signed with it any more.
#[must_use]
pub fn moved(row: &KeyRow, kind: KeyKind, to: KeyState, now: UnixMillis) -> KeyRow {
    let wiped = match to {
        KeyState::Destroyed => true,
        KeyState::Retired => !kind.signs_while_retired(),
        KeyState::Requested | KeyState::Prepared | KeyState::Active => false,
    };
    KeyRow {
        state: to,
        since: now,
        until: None,
        sealed: if wiped {
            Vec::new()
        } else {
            row.sealed.clone()
        },
        ..row.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back_and_others_are_refused() {
        for kind in KeyKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        for state in KeyState::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert!("CA".parse::<KeyKind>().is_err());
        assert!("".parse::<KeyState>().is_err());
    }

    #[test]
    fn the_private_half_goes_with_its_last_signature() {
        let row = KeyRow {
            name: "x".to_owned(),
            version: 1,
            sealed: vec![1],
            public: vec![2],
            chain: Vec::new(),
            state: KeyState::Active,
            created_at: UnixMillis::from_millis(1),
            since: UnixMillis::from_millis(1),
            until: Some(UnixMillis::from_millis(9)),
        };
        let now = UnixMillis::from_millis(5);
        for (kind, kept) in [
            (KeyKind::Ca, true),
            (KeyKind::Log, true),
            (KeyKind::Token, false),
            (KeyKind::Database, false),
        ] {
            let retired = moved(&row, kind, KeyState::Retired, now);
            assert_eq!(!retired.sealed.is_empty(), kept, "{kind}");
            assert_eq!((retired.since, retired.until), (now, None));
            let gone = moved(&row, kind, KeyState::Destroyed, now);
            assert!(
                gone.sealed.is_empty() && gone.public == row.public,
                "{kind}"
            );
        }
    }
}
