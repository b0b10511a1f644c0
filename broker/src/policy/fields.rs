//! Fields that several tables share: who answers, what for, for how long, for whom.

use ephor_proto::limits::MAX_AUDIENCE_LEN;
use ephor_proto::ttl::Ttl;

use super::limits::{MAX_EMAIL_BYTES, MAX_PURPOSE_BYTES, MAX_TEAM_BYTES};
use super::reader::{Reader, Section, Text, shown};

/// `owner = "team:NAME"`; until people exist it is checked for form only.
pub(super) fn owner(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<String> {
    const HINT: &str = "Write owner = \"team:NAME\", a team that answers for it.";
    let text = section.required(reader, "owner", HINT)?;
    if text.value.strip_prefix("team:").is_some_and(is_team) {
        return Some(text.value.to_owned());
    }
    let hint = match text.value.contains('@') {
        true => "A person only as deputy; write owner = \"team:NAME\".",
        false => HINT,
    };
    reader.refuse(
        text.at,
        format!("owner {} is no team", shown(text.value)),
        hint,
    );
    None
}

fn is_team(name: &str) -> bool {
    let first = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    first && name.len() <= MAX_TEAM_BYTES && name.bytes().all(allowed)
}

/// `deputy = "alice@example.com"`
pub(super) fn deputy(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<String> {
    let text = section.text(reader, "deputy")?;
    if is_email(text.value) {
        return Some(text.value.to_owned());
    }
    let what = format!("deputy {} is no e-mail address", shown(text.value));
    reader.refuse(
        text.at,
        what,
        "Write one person's address, such as alice@example.com.",
    );
    None
}

fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else {
        return false;
    };
    let local_ok = |b: u8| b.is_ascii_graphic() && !b"\"(),:;<>@[\\]".contains(&b);
    let domain_ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    let label = |l: &str| !l.is_empty() && l.bytes().all(domain_ok);
    let parts = !local.is_empty() && local.bytes().all(local_ok) && domain.split('.').all(label);
    parts && text.len() <= MAX_EMAIL_BYTES
}

/// The hint of a missing purpose.
pub(super) const PURPOSE_HINT: &str = "Say in a few words what it is for.";

/// `purpose`, when it is there.
pub(super) fn purpose(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<String> {
    let text = section.text(reader, "purpose")?;
    let problem = match text.value {
        value if value.trim().is_empty() => "is empty",
        value if value.len() > MAX_PURPOSE_BYTES => "is longer than 512 bytes",
        value if value.chars().any(char::is_control) => "has control characters",
        value => return Some(value.to_owned()),
    };
    reader.refuse(text.at, format!("purpose {problem}"), PURPOSE_HINT);
    None
}

/// A TTL in a table, with where it is written.
pub(super) fn ttl(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
    key: &str,
) -> Option<(usize, Ttl)> {
    let text = section.text(reader, key)?;
    parsed(reader, key, text).map(|ttl| (text.at, ttl))
}

/// A value that its own type parses, reported when it does not.
pub(super) fn parsed<T>(reader: &mut Reader<'_>, key: &str, text: Text<'_>) -> Option<T>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.value
        .parse()
        .map_err(|problem: T::Err| reader.refuse(text.at, format!("{key}: {problem}"), ""))
        .ok()
}

/// Why a text is no audience, if it is none: 1 to 512 bytes, no control characters.
pub(crate) fn audience_problem(audience: &str) -> Option<&'static str> {
    match audience {
        "" => Some("is empty"),
        long if long.len() > MAX_AUDIENCE_LEN => Some("is longer than 512 bytes"),
        odd if odd.chars().any(char::is_control) => Some("has control characters"),
        _ => None,
    }
}

/// A DNS name written in policy: one host, in the form that stands in a certificate.
pub(super) fn dns_name(reader: &mut Reader<'_>, text: Text<'_>) -> Option<String> {
    if let Some(problem) = dns_problem(text.value) {
        let what = format!("dns {} {problem}", shown(text.value));
        reader.refuse(text.at, what, "Write a name such as \"orders.internal\".");
        return None;
    }
    Some(text.value.to_owned())
}

/// Why a text is no DNS name for a certificate, if it is none: labels of a-z, 0-9 and '-'
/// (RFC 5890 A-labels), no wildcard, nothing that reads as an address.
fn dns_problem(name: &str) -> Option<&'static str> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(allowed)
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    match name {
        name if name.contains('*') => Some("is a wildcard; name each host"),
        name if name.bytes().any(|b| b.is_ascii_uppercase()) => Some("has upper-case letters"),
        name if !name.is_ascii() => Some("is not in its ASCII form (xn--…)"),
        name if name.len() > 253 => Some("is longer than 253 bytes"),
        name if name.ends_with('.') => Some("ends with a dot"),
        name if !name.split('.').all(label) => Some("is no DNS name"),
        _ if last.bytes().all(|b| b.is_ascii_digit()) => Some("reads as an address"),
        _ => None,
    }
}

/// An audience written in policy.
pub(super) fn audience(reader: &mut Reader<'_>, text: Text<'_>) -> Option<String> {
    if let Some(problem) = audience_problem(text.value) {
        let what = format!("audience {} {problem}", shown(text.value));
        reader.refuse(
            text.at,
            what,
            "Write who the token is for, such as \"billing\".",
        );
        return None;
    }
    Some(text.value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names_by_form() {
        for good in [
            "orders",
            "a.b",
            "orders-1.prod.internal",
            "xn--bcher-kva.example",
        ] {
            assert_eq!(dns_problem(good), None, "{good}");
        }
        let long = [
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(63),
        ]
        .join(".");
        for bad in [
            "",
            ".",
            "a..b",
            "a.",
            "-a",
            "a-",
            "a_b",
            "a b",
            "a\0",
            "a\n",
            "*.a",
            "A.b",
            "é.a",
            "10.0.0.1",
            "a.1",
            &"a".repeat(64),
            &long,
        ] {
            assert!(dns_problem(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn teams_and_addresses_by_form() {
        for good in ["orders", "a", "sre-2", "A.b_c"] {
            assert!(is_team(good), "{good}");
        }
        for bad in ["", "-a", "a b", "a/b", "alice@example.com", "é"] {
            assert!(!is_team(bad), "{bad}");
        }
        assert!(!is_team(&"a".repeat(65)));
        for good in ["alice@example.com", "a.b+c@x", "o'neil@example.co.uk"] {
            assert!(is_email(good), "{good}");
        }
        for bad in [
            "", "alice", "@x", "a@", "a@b@c", "a b@x", "<a@x>", "a@x..y", "a@x,b@y",
        ] {
            assert!(!is_email(bad), "{bad}");
        }
    }

    #[test]
    fn audiences() {
        assert_eq!(audience_problem("billing"), None);
        assert_eq!(audience_problem("https://x.example/a b?c=ü"), None);
        assert_eq!(audience_problem(&"a".repeat(512)), None);
        for bad in ["", "a\nb", "a\u{7f}", "a\u{85}b", &"a".repeat(513)] {
            assert!(audience_problem(bad).is_some(), "{bad:?}");
        }
    }
}
