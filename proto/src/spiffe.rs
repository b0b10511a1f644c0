//! SPIFFE IDs by the exact grammar of the SPIFFE-ID standard, and host names.
//!
//! Parsed once at the edge; a value of these types cannot be malformed. Nothing is normalised:
//! two ids are equal when their bytes are.

mod host;
mod parse;

use std::fmt;

pub use host::{BadHost, HostName, HostPattern};
pub use parse::{BadSpiffeId, Problem};

/// The first path segments that policy may not give to workloads.
const RESERVED: [&str; 4] = ["agent", "ci", "person", "broker"];

/// A trust domain name: `[a-z0-9._-]`, 1 to 255 bytes (SPIFFE-ID §2.1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Parses a bare name such as `prod.example`.
    ///
    /// # Errors
    /// Says what is wrong and at which byte.
    pub fn new(name: &str) -> Result<Self, BadSpiffeId> {
        parse::trust_domain(name, 0).map_err(|problem| problem.within(name))?;
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself.
    pub fn id(&self) -> SpiffeId {
        SpiffeId {
            text: format!("spiffe://{}", self.0),
            path_at: 9 + self.0.len(),
        }
    }
}

/// A SPIFFE ID, at most 2048 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: String,
    /// Where the path begins: at its slash, or at the end.
    path_at: usize,
}

impl SpiffeId {
    /// From a trust domain and a path without its leading slash, such as `orders/web`.
    ///
    /// # Errors
    /// Says what is wrong and at which byte of the whole id.
    pub fn new(trust_domain: &TrustDomain, path: &str) -> Result<Self, BadSpiffeId> {
        format!("spiffe://{trust_domain}/{path}").parse()
    }

    /// The id of the agent on a host.
    pub fn agent(trust_domain: &TrustDomain, host: &HostName) -> Self {
        let path_at = 9 + trust_domain.0.len();
        Self {
            text: format!("spiffe://{trust_domain}/agent/{host}"),
            path_at,
        }
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(
            self.text
                .get(9..self.path_at)
                .unwrap_or_default()
                .to_owned(),
        )
    }

    /// Whether it is of this trust domain.
    pub fn is_member_of(&self, trust_domain: &TrustDomain) -> bool {
        self.text.get(9..self.path_at) == Some(trust_domain.as_str())
    }

    /// The path without its leading slash; empty for the trust domain itself.
    pub fn path(&self) -> &str {
        let path = self.text.get(self.path_at..).unwrap_or_default();
        path.strip_prefix('/').unwrap_or(path)
    }

    /// The path's segments, none for the trust domain itself.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path().split('/').filter(|segment| !segment.is_empty())
    }

    /// Whether the first segment is one that only Ephor gives: `agent`, `ci`, `person`, `broker`.
    pub fn is_reserved(&self) -> bool {
        self.segments()
            .next()
            .is_some_and(|first| RESERVED.contains(&first))
    }

    /// Whether this is a person, whose name may not stand in a leaf in clear.
    pub fn is_person(&self) -> bool {
        self.segments().next() == Some("person")
    }

    /// The host, when this is an agent's id.
    pub fn agent_host(&self) -> Option<HostName> {
        let host = self.path().strip_prefix("agent/")?;
        host.parse().ok()
    }
}

impl std::str::FromStr for SpiffeId {
    type Err = BadSpiffeId;

    fn from_str(text: &str) -> Result<Self, BadSpiffeId> {
        let path_at = parse::spiffe_id(text).map_err(|problem| problem.within(text))?;
        Ok(Self {
            text: text.to_owned(),
            path_at,
        })
    }
}

impl std::str::FromStr for TrustDomain {
    type Err = BadSpiffeId;

    fn from_str(text: &str) -> Result<Self, BadSpiffeId> {
        Self::new(text)
    }
}

macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(TrustDomain, SpiffeId, HostName, HostPattern);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn domain() -> TrustDomain {
        TrustDomain::new("prod.example").unwrap()
    }

    #[test]
    fn parts_of_an_id() {
        let id = SpiffeId::new(&domain(), "orders/web").unwrap();
        assert_eq!(id.as_str(), "spiffe://prod.example/orders/web");
        assert_eq!(id.trust_domain(), domain());
        assert_eq!(id.path(), "orders/web");
        assert_eq!(id.segments().collect::<Vec<_>>(), ["orders", "web"]);
        assert!(id.is_member_of(&domain()) && !id.is_reserved() && id.agent_host().is_none());
        assert_eq!(
            domain().id().to_string().parse::<SpiffeId>().unwrap(),
            domain().id()
        );
        assert_eq!(domain().id().segments().count(), 0);
    }

    #[test]
    fn reserved_first_segments() {
        for path in [
            "agent/web-1",
            "ci/deploy",
            "person/alice",
            "broker",
            "broker/x",
        ] {
            assert!(
                SpiffeId::new(&domain(), path).unwrap().is_reserved(),
                "{path}"
            );
        }
        for path in ["agents/x", "orders/agent", "Person/alice"] {
            assert!(
                !SpiffeId::new(&domain(), path).unwrap().is_reserved(),
                "{path}"
            );
        }
        let host: HostName = "web-3".parse().unwrap();
        let agent = SpiffeId::agent(&domain(), &host);
        assert_eq!(agent.as_str(), "spiffe://prod.example/agent/web-3");
        assert_eq!(agent.as_str().parse::<SpiffeId>().unwrap(), agent);
        assert_eq!(agent.agent_host(), Some(host));
    }

    #[test]
    fn a_path_cannot_smuggle_another_id() {
        for path in [
            "", "/a", "a/", "../b", "a//b", "a?b", "a#b", "a%2fb", "a b", "é",
        ] {
            assert!(SpiffeId::new(&domain(), path).is_err(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_bytes(text in "(spiffe://)?\\PC{0,60}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), text.as_str());
            }
        }

        #[test]
        fn what_the_grammar_allows_is_accepted(td in "[a-z0-9._-]{1,20}", path in "[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,8}(/[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,8}){0,4}") {
            let id: SpiffeId = format!("spiffe://{td}/{path}").parse().unwrap();
            prop_assert_eq!(id.path(), path.as_str());
            prop_assert_eq!(id.trust_domain(), TrustDomain::new(&td).unwrap());
        }
    }
}
