//! Credential kinds: a closed set, matched exhaustively at every stage.

use serde::{Deserialize, Serialize};

/// What sort of thing a credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A signed token.
    Jwt,
    /// An X.509 certificate.
    X509,
    /// An SSH user certificate.
    Ssh,
    /// A PostgreSQL login.
    Postgres,
    /// Elevation on a host.
    Sudo,
    /// A static secret checked out for a task.
    Secret,
    /// A credential made by an operator's own commands.
    Exec,
}

/// A word that names no credential kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no credential kind (jwt, x509, ssh, postgres, sudo, secret, exec)")]
pub struct UnknownKind(String);

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Jwt,
        Self::X509,
        Self::Ssh,
        Self::Postgres,
        Self::Sudo,
        Self::Secret,
        Self::Exec,
    ];

    /// The word used everywhere for this kind.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::X509 => "x509",
            Self::Ssh => "ssh",
            Self::Postgres => "postgres",
            Self::Sudo => "sudo",
            Self::Secret => "secret",
            Self::Exec => "exec",
        }
    }

    /// True for kinds that are only a signature: live from the intent on, and verified
    /// by holders of a public key who may never ask us. The others have an effect at a target.
    pub const fn is_signed(self) -> bool {
        match self {
            Self::Jwt | Self::X509 | Self::Ssh => true,
            Self::Postgres | Self::Sudo | Self::Secret | Self::Exec => false,
        }
    }

    /// How long after expiry a verifier may still accept it, in milliseconds.
    pub const fn leeway_millis(self) -> u64 {
        match self {
            Self::Jwt => crate::limits::VERIFIER_LEEWAY_MILLIS,
            Self::X509 | Self::Ssh | Self::Postgres | Self::Sudo | Self::Secret | Self::Exec => 0,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip_and_match_serde() {
        for kind in Kind::ALL {
            assert_eq!(kind.as_str().parse::<Kind>(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert!("JWT".parse::<Kind>().is_err());
    }
}
