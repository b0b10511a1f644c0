//! Host names, each one SPIFFE path segment, and patterns over them.

use super::parse;
use crate::limits::MAX_HOST_NAME_LEN;

/// A host's name: one SPIFFE path segment of at most 253 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

/// A text that is no host name or host pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{shown}` is no {what}: 1 to 253 of a-z, A-Z, 0-9, '.', '_', '-'{extra}, and not '.' or '..'"
)]
pub struct BadHost {
    shown: String,
    what: &'static str,
    extra: &'static str,
}

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for HostName {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        if text.len() > MAX_HOST_NAME_LEN || parse::segment(text).is_err() {
            let shown = text.chars().take(80).collect();
            return Err(BadHost {
                shown,
                what: "host name",
                extra: "",
            });
        }
        Ok(Self(text.to_owned()))
    }
}

/// A pattern over host names; `*` stands for any run of characters, the empty one included.
///
/// A host name has no '/', so a pattern can never reach across one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPattern(String);

impl HostPattern {
    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the pattern covers this host.
    pub fn matches(&self, host: &HostName) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else {
            return self.0 == host.0;
        };
        let Some(mut left) = host.0.strip_prefix(first) else {
            return false;
        };
        // Leftmost match of each middle part is enough: parts are literals, so taking an
        // earlier place never removes a later choice. Linear, unlike backtracking.
        let mut parts = rest.split('*');
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            let Some((_, after)) = left.split_once(part) else {
                return false;
            };
            left = after;
        }
        left.ends_with(last)
    }
}

impl std::str::FromStr for HostPattern {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        // With its stars replaced a pattern must itself be a name.
        let name = text.replace('*', "x");
        if text.len() > MAX_HOST_NAME_LEN || parse::segment(&name).is_err() {
            let shown = text.chars().take(80).collect();
            return Err(BadHost {
                shown,
                what: "host pattern",
                extra: ", '*'",
            });
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covers(pattern: &str, host: &str) -> bool {
        pattern
            .parse::<HostPattern>()
            .unwrap()
            .matches(&host.parse().unwrap())
    }

    #[test]
    fn stars_match_runs() {
        for (pattern, host, expected) in [
            ("web-1", "web-1", true),
            ("web-1", "web-11", false),
            ("web-*", "web-", true),
            ("web-*", "web-3.prod", true),
            ("web-*", "dbweb-3", false),
            ("*", "anything", true),
            ("*-db", "x-db", true),
            ("*-db", "x-db2", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("**", "x", true),
            ("ab*bc", "abc", false),
        ] {
            assert_eq!(covers(pattern, host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in ["", ".", "..", "a/b", "a b", "a*", "\u{e9}"] {
            assert!(text.parse::<HostName>().is_err(), "{text}");
        }
        for text in ["", ".", "a/*", "web-?", "[ab]"] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
        assert!("a".repeat(254).parse::<HostName>().is_err());
    }

    /// The plain recursive definition, as a second opinion.
    fn slow(pattern: &[u8], host: &[u8]) -> bool {
        match (pattern.split_first(), host.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), None) => slow(rest, host),
            (Some((b'*', rest)), Some((_, tail))) => slow(rest, host) || slow(pattern, tail),
            (Some((p, rest)), Some((h, tail))) => p == h && slow(rest, tail),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*]{1,7}", host in "[ab]{1,9}") {
            prop_assert_eq!(covers(&pattern, &host), slow(pattern.as_bytes(), host.as_bytes()));
        }
    }
}
