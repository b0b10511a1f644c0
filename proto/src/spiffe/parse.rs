//! The grammar of SPIFFE-ID §2, byte by byte, so that an error can point at its byte.

use crate::limits::{MAX_SPIFFE_ID_LEN, MAX_TRUST_DOMAIN_LEN};

const SCHEME: &str = "spiffe://";

/// What is wrong with a SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It does not begin with `spiffe://`.
    #[error("must begin with spiffe:// in lower case")]
    Scheme,
    /// The trust domain is empty.
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    /// The trust domain is longer than 255 bytes.
    #[error("the trust domain is longer than 255 bytes")]
    LongTrustDomain,
    /// A byte that a trust domain may not have.
    #[error("a trust domain may only have a-z, 0-9, '.', '_' and '-'")]
    TrustDomainChar,
    /// A byte that a path segment may not have.
    #[error("a path segment may only have a-z, A-Z, 0-9, '.', '_' and '-'")]
    PathChar,
    /// An empty path segment.
    #[error("a path segment is empty")]
    EmptySegment,
    /// A segment `.` or `..`.
    #[error("a path segment may not be '.' or '..'")]
    DotSegment,
    /// The path ends in a slash.
    #[error("the path ends in a slash")]
    TrailingSlash,
    /// The id is longer than 2048 bytes.
    #[error("longer than 2048 bytes")]
    Long,
}

/// A text that is no SPIFFE ID or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{shown}` is no SPIFFE name: {problem} (byte {at})")]
pub struct BadSpiffeId {
    /// What is wrong.
    pub problem: Problem,
    /// The offset of the first wrong byte.
    pub at: usize,
    /// The beginning of the text.
    shown: String,
}

/// A problem and the byte it is at.
pub(super) struct At(Problem, usize);

impl At {
    pub(super) fn within(self, text: &str) -> BadSpiffeId {
        let shown = text.chars().take(80).collect();
        BadSpiffeId {
            problem: self.0,
            at: self.1,
            shown,
        }
    }
}

/// Checks a trust domain whose first byte is at `base` of the whole text.
pub(super) fn trust_domain(name: &str, base: usize) -> Result<(), At> {
    if name.is_empty() {
        return Err(At(Problem::EmptyTrustDomain, base));
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    if let Some(at) = name.bytes().position(|b| !allowed(b)) {
        return Err(At(Problem::TrustDomainChar, base + at));
    }
    if name.len() > MAX_TRUST_DOMAIN_LEN {
        return Err(At(Problem::LongTrustDomain, base + MAX_TRUST_DOMAIN_LEN));
    }
    Ok(())
}

/// Checks a whole id and returns where its path begins.
pub(super) fn spiffe_id(text: &str) -> Result<usize, At> {
    let rest = text
        .strip_prefix(SCHEME)
        .ok_or_else(|| At(Problem::Scheme, common_start(text)))?;
    if text.len() > MAX_SPIFFE_ID_LEN {
        return Err(At(Problem::Long, MAX_SPIFFE_ID_LEN));
    }
    let (name, path) = match rest.split_once('/') {
        Some((name, path)) => (name, Some(path)),
        None => (rest, None),
    };
    trust_domain(name, SCHEME.len())?;
    let path_at = SCHEME.len() + name.len();
    if let Some(path) = path {
        segments(path, path_at + 1)?;
    }
    Ok(path_at)
}

fn segments(path: &str, base: usize) -> Result<(), At> {
    let mut at = base;
    for part in path.split('/') {
        let last = at + part.len() == base + path.len();
        if part.is_empty() && last {
            return Err(At(Problem::TrailingSlash, at - 1));
        }
        segment(part).map_err(|At(problem, inner)| At(problem, at + inner))?;
        at += part.len() + 1;
    }
    Ok(())
}

/// Checks one path segment; the offset is within it.
pub(super) fn segment(part: &str) -> Result<(), At> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match part {
        "" => Err(At(Problem::EmptySegment, 0)),
        "." | ".." => Err(At(Problem::DotSegment, 0)),
        part => match part.bytes().position(|b| !allowed(b)) {
            Some(at) => Err(At(Problem::PathChar, at)),
            None => Ok(()),
        },
    }
}

fn common_start(text: &str) -> usize {
    text.bytes()
        .zip(SCHEME.bytes())
        .take_while(|(a, b)| a == b)
        .count()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::spiffe::SpiffeId;

    #[test]
    fn every_fault_names_its_byte() {
        let long_domain = format!("spiffe://{}/x", "a".repeat(256));
        let long = format!("spiffe://td/{}", "a".repeat(2048));
        let faults = [
            ("", Problem::Scheme, 0),
            ("SPIFFE://td/x", Problem::Scheme, 0),
            ("spiffe:/td", Problem::Scheme, 8),
            ("https://td/x", Problem::Scheme, 0),
            ("spiffe://", Problem::EmptyTrustDomain, 9),
            ("spiffe:///x", Problem::EmptyTrustDomain, 9),
            ("spiffe://TD/x", Problem::TrustDomainChar, 9),
            ("spiffe://t:80/x", Problem::TrustDomainChar, 10),
            ("spiffe://u@t/x", Problem::TrustDomainChar, 10),
            ("spiffe://t%61/x", Problem::TrustDomainChar, 10),
            ("spiffe://td?q", Problem::TrustDomainChar, 11),
            ("spiffe://td/", Problem::TrailingSlash, 11),
            ("spiffe://td/a/", Problem::TrailingSlash, 13),
            ("spiffe://td//a", Problem::EmptySegment, 12),
            ("spiffe://td/a/./b", Problem::DotSegment, 14),
            ("spiffe://td/..", Problem::DotSegment, 12),
            ("spiffe://td/a b", Problem::PathChar, 13),
            ("spiffe://td/a?b", Problem::PathChar, 13),
            ("spiffe://td/a#b", Problem::PathChar, 13),
            ("spiffe://td/%41", Problem::PathChar, 12),
            ("spiffe://td/\u{e9}", Problem::PathChar, 12),
            (long_domain.as_str(), Problem::LongTrustDomain, 264),
            (long.as_str(), Problem::Long, 2048),
        ];
        for (text, problem, at) in faults {
            let error = text.parse::<SpiffeId>().unwrap_err();
            assert_eq!((error.problem, error.at), (problem, at), "{text}");
        }
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        let domain = format!("spiffe://{}/x", "a".repeat(255));
        let long = format!("spiffe://td/{}", "a".repeat(2048 - 12));
        for text in [
            domain.as_str(),
            long.as_str(),
            "spiffe://td",
            "spiffe://1.2.3.4/...",
            "spiffe://a_b-c/.x",
        ] {
            assert!(text.parse::<SpiffeId>().is_ok(), "{text}");
        }
    }
}
