//! What we call things at a target: `eph_ENTITLEMENT_INSTALLATION_RANDOM`, so that a look there tells
//! ours from those of people and of other installations.
//!
//! Only `a-z`, `0-9` and `_`, at most 63 bytes: no quoting rule of any target has a say in it.

use ephor_crypto::digest;

/// How every name begins.
pub const PREFIX: &str = "eph_";
/// Letters of an installation's part.
const INSTALLATION: usize = 6;
/// Letters of the random part: 128 bits.
const RANDOM: usize = 26;
/// Most bytes of the entitlement's part.
const ENTITLEMENT: usize = 20;
/// Crockford base32, lower case.
const LETTERS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A name of this form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// Whose it is; see [`installation_part`].
    pub installation: &'a str,
}

/// A new name.
#[must_use]
pub fn make(entitlement: &str, installation_id: &str, random: [u8; 16]) -> String {
    let plain = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '_',
    };
    let entitlement: String = entitlement.chars().take(ENTITLEMENT).map(plain).collect();
    let installation = installation_part(installation_id);
    let random = letters(&random, RANDOM);
    format!("{PREFIX}{entitlement}_{installation}_{random}")
}

/// What tells this installation's names from another's.
#[must_use]
pub fn installation_part(installation_id: &str) -> String {
    letters(&digest::sha256(installation_id.as_bytes()), INSTALLATION)
}

/// Reads a name; `None` when it is not of this form.
#[must_use]
pub fn parse(name: &str) -> Option<Parsed<'_>> {
    let rest = name.strip_prefix(PREFIX)?;
    let (rest, random) = rest.rsplit_once('_')?;
    let (entitlement, installation) = rest.rsplit_once('_')?;
    let ours = |text: &str, len| text.len() == len && text.bytes().all(|b| LETTERS.contains(&b));
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    let is_whole = ours(random, RANDOM)
        && ours(installation, INSTALLATION)
        && entitlement.len() <= ENTITLEMENT
        && entitlement.bytes().all(is_plain);
    is_whole.then_some(Parsed { installation })
}

/// The first `count` letters of these bits, five at a time.
fn letters(bytes: &[u8], count: usize) -> String {
    let bit = |at: usize| {
        let byte = bytes.get(at / 8).copied().unwrap_or_default();
        usize::from(byte >> (7 - at % 8) & 1)
    };
    let letter = |n: usize| {
        let value = (0..5).fold(0, |value, k| value << 1 | bit(n * 5 + k));
        LETTERS.get(value).map_or('0', |letter| char::from(*letter))
    };
    (0..count).map(letter).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_whose_they_are_and_fit_every_target() {
        for entitlement in [
            "orders-db",
            "x",
            "A\"; DROP ROLE--\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}",
        ] {
            let name = make(entitlement, "inst-1", [0xff; 16]);
            assert!(name.len() <= 63, "{name}");
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            assert!(name.bytes().all(plain), "{name}");
            let parsed = parse(&name).unwrap();
            assert_eq!(parsed.installation, installation_part("inst-1"));
            assert_ne!(parsed.installation, installation_part("inst-2"));
            assert!(parse(&name.to_uppercase()).is_none());
            assert!(parse(&format!("{name}x")).is_none());
        }
        let one = make("orders-db", "inst-1", [1; 16]);
        assert!(one.starts_with("eph_orders_db_"), "{one}");
        assert_ne!(one, make("orders-db", "inst-1", [2; 16]));
        for other in [
            "eph_x",
            "postgres",
            "eph_orders_db_abcdef_short",
            "v-token-orders",
        ] {
            assert!(parse(other).is_none(), "{other}");
        }
    }
}
