//! The gRPC contract `ephor.v1` between agents and the broker.
//!
//! Generated from `proto/ephor/v1/ephor.proto` and checked in, so that a build needs
//! neither `protoc` nor a build script; the test `generated_code_is_current` makes it
//! again and compares. Messages that carry a secret have no derived `Debug`.

/// Generated messages, clients and servers.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
#[rustfmt::skip]
pub mod v1 {
    include!("grpc/ephor.v1.rs");
}

use std::fmt;

/// Version this build speaks; see [`compatible`].
pub const VERSION: v1::Version = v1::Version { major: 1, minor: 0 };

/// Name of the metadata entry that holds a refusal's RFC 9457 problem JSON.
pub const PROBLEM_METADATA: &str = "ephor-problem-bin";

/// Whether a peer of version `theirs` can be spoken to by one of version `ours`:
/// same major, and at most one minor version apart.
#[must_use]
pub fn compatible(ours: v1::Version, theirs: v1::Version) -> bool {
    ours.major == theirs.major && ours.minor.abs_diff(theirs.minor) <= 1
}

impl fmt::Debug for v1::JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest")
            .field("version", &self.version)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("kind", &self.kind)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("target", &self.target)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{VERSION, compatible, v1};

    #[test]
    fn one_minor_version_of_skew_works_and_more_is_refused() {
        let at = |major, minor| v1::Version { major, minor };
        assert!(compatible(VERSION, VERSION));
        assert!(compatible(at(1, 3), at(1, 4)));
        assert!(compatible(at(1, 4), at(1, 3)));
        assert!(!compatible(at(1, 3), at(1, 5)));
        assert!(!compatible(at(1, 3), at(2, 3)));
    }

    #[test]
    fn attack_44_debug_of_secret_bearing_messages_shows_no_secret() {
        let join = v1::JoinRequest {
            token: "marker-secret".into(),
            ..Default::default()
        };
        let login = || v1::Login {
            password: "marker-secret".into(),
            ..Default::default()
        };
        let credential = v1::Credential {
            token: "marker-secret".into(),
            login: Some(login()),
            ..Default::default()
        };
        let shown = format!("{join:?} {credential:?} {:?}", login());
        assert!(!shown.contains("marker-secret"), "{shown}");
    }
}
