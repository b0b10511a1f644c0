//! Identifiers: UUIDv7-form 128-bit values (RFC 9562 §5.7), one type per entity.
//!
//! Time and randomness are handed in. A short form (`t-7kq2`) is for people only: it is
//! never stored and never sent where a machine reads it.

mod query;

use std::fmt;

pub use query::{BadQuery, IdQuery, shortest_unique};

/// Crockford base32, lower case.
const ALPHABET: [char; 32] = [
    '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'j',
    'k', 'm', 'n', 'p', 'q', 'r', 's', 't', 'v', 'w', 'x', 'y', 'z',
];

/// Fewest characters of a short form after its letter.
pub const SHORT_MIN: usize = 4;
/// Most characters of a short form: all 74 random bits.
pub const SHORT_MAX: usize = 15;

/// A value that is not in UUIDv7 form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    /// The text is no UUID.
    #[error("`{0}` is no id (a UUID such as 0193e4a6-7c11-7d3a-9b52-5f2a1c0e7d44)")]
    Text(String),
    /// A UUID, but not version 7 of RFC 9562.
    #[error("{0} is not in the form of UUID version 7")]
    Form(uuid::Uuid),
}

/// What all id types share.
pub trait EntityId: Copy + Ord + std::hash::Hash + fmt::Display + fmt::Debug {
    /// The letter before a short form.
    const LETTER: char;

    /// The 16 bytes, in the order that sorts by time.
    fn to_bytes(self) -> [u8; 16];

    /// The last `len` (4 to 15, clamped) base32 characters of the random bits, after the letter.
    fn short_with(self, len: usize) -> String {
        format!("{}-{}", Self::LETTER, suffix(self.to_bytes(), len))
    }
}

/// The 74 random bits: 12 before the variant, 62 after it.
fn random_bits(bytes: [u8; 16]) -> u128 {
    let value = u128::from_be_bytes(bytes);
    let high = (value >> 64) & 0xfff;
    let low = value & ((1 << 62) - 1);
    (high << 62) | low
}

fn suffix(bytes: [u8; 16], len: usize) -> String {
    let bits = random_bits(bytes);
    (0..len.clamp(SHORT_MIN, SHORT_MAX))
        .rev()
        .filter_map(|place| ALPHABET.get(((bits >> (5 * place)) & 31) as usize))
        .collect()
}

fn assemble(unix_millis: u64, random: [u8; 10]) -> u128 {
    let mut padded = [0; 16];
    for (to, from) in padded.iter_mut().skip(6).zip(random) {
        *to = from;
    }
    let random = u128::from_be_bytes(padded);
    let time = u128::from(unix_millis & ((1 << 48) - 1)) << 80;
    let high = ((random >> 68) & 0xfff) << 64;
    let low = random & ((1 << 62) - 1);
    time | (7 << 76) | high | (0b10 << 62) | low
}

fn check(uuid: uuid::Uuid) -> Result<uuid::Uuid, BadId> {
    let value = uuid.as_u128();
    if (value >> 76) & 0xf != 7 || (value >> 62) & 0b11 != 0b10 {
        return Err(BadId::Form(uuid));
    }
    Ok(uuid)
}

fn parse(text: &str) -> Result<uuid::Uuid, BadId> {
    // Only the hyphenated form: ids are compared as text by people and by grep.
    if text.len() != 36 {
        return Err(BadId::Text(text.chars().take(64).collect()));
    }
    let uuid = uuid::Uuid::try_parse(text).map_err(|_| BadId::Text(text.to_owned()))?;
    check(uuid)
}

macro_rules! entity_ids {
    ($($(#[$doc:meta])* $name:ident $letter:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(uuid::Uuid);

        impl $name {
            /// From wall time in milliseconds (48 bits are kept) and 10 random bytes (74 bits are kept).
            pub fn from_parts(unix_millis: u64, random: [u8; 10]) -> Self {
                Self(uuid::Uuid::from_u128(assemble(unix_millis, random)))
            }

            /// From stored bytes.
            ///
            /// # Errors
            /// When they are not in UUIDv7 form.
            pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, BadId> {
                check(uuid::Uuid::from_bytes(bytes)).map(Self)
            }

            /// From stored bytes of unknown length.
            ///
            /// # Errors
            /// When they are not 16 bytes in UUIDv7 form.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, BadId> {
                let uuid = uuid::Uuid::from_slice(bytes)
                    .map_err(|_| BadId::Text(format!("{} bytes", bytes.len())))?;
                check(uuid).map(Self)
            }

            /// The 16 bytes, in the order that sorts by time.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }

            /// Milliseconds since 1970 at which it was made.
            pub fn unix_millis(self) -> u64 {
                (self.0.as_u128() >> 80) as u64
            }

            /// Letter and last 4 base32 characters of the random bits: `t-7kq2`.
            pub fn short(self) -> String {
                EntityId::short_with(self, SHORT_MIN)
            }

            /// Letter and last `len` (4 to 15, clamped) base32 characters.
            pub fn short_with(self, len: usize) -> String {
                EntityId::short_with(self, len)
            }
        }

        impl EntityId for $name {
            const LETTER: char = $letter;

            fn to_bytes(self) -> [u8; 16] {
                Self::to_bytes(self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0.as_hyphenated())
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                parse(text).map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
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

entity_ids! {
    /// A task: what credentials are bound to.
    TaskId 't';
    /// A request; also its idempotency key.
    RequestId 'q';
    /// A decision.
    DecisionId 'd';
    /// A grant.
    GrantId 'g';
    /// A credential; a token's `jti`.
    CredentialId 'k';
    /// An audit event.
    EventId 'e';
    /// A receipt: the bits of its task.
    ReceiptId 'r';
    /// A join token.
    JoinTokenId 'j';
    /// One start of an agent process.
    InstanceId 'i';
    /// One call, across processes and logs.
    CorrelationId 'c';
}

impl TaskId {
    /// The id of this task's one receipt: the same bits, so that neither needs a look-up.
    pub fn receipt(self) -> ReceiptId {
        ReceiptId(self.0)
    }
}

impl ReceiptId {
    /// The task that this receipt closes.
    pub fn task(self) -> TaskId {
        TaskId(self.0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_is_a_uuid_of_version_7() {
        let id = TaskId::from_parts(0x0193_e4a6_7c11, [0xff; 10]);
        assert_eq!(id.to_string(), "0193e4a6-7c11-7fff-bfff-ffffffffffff");
        assert_eq!(id.short(), "t-zzzz");
        assert_eq!(id.receipt().short(), "r-zzzz");
        assert_eq!(id.receipt().task(), id);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
    }

    #[test]
    fn other_forms_are_refused() {
        let v4 = "7f7a0a1c-0f0b-4c3a-9d52-0f2a1c0e7d44";
        assert!(matches!(v4.parse::<TaskId>(), Err(BadId::Form(_))));
        for text in [
            "",
            "t-7kq2",
            "0193e4a67c117fffbfffffffffffffff",
            "0193e4a6-7c11-7fff-bfff-fffffffffffg",
        ] {
            assert!(
                matches!(text.parse::<TaskId>(), Err(BadId::Text(_))),
                "{text}"
            );
        }
        assert!(TaskId::from_slice(&[0; 15]).is_err());
    }

    proptest! {
        #[test]
        fn bytes_and_text_round_trip_and_sort_by_time(a in 0u64..1 << 48, b in 0u64..1 << 48, x: [u8; 10], y: [u8; 10]) {
            let (p, q) = (EventId::from_parts(a, x), EventId::from_parts(b, y));
            prop_assert_eq!(p.to_string().parse::<EventId>().unwrap(), p);
            prop_assert_eq!(EventId::from_bytes(p.to_bytes()).unwrap(), p);
            prop_assert_eq!(p.unix_millis(), a);
            if a != b {
                prop_assert_eq!(a.cmp(&b), p.cmp(&q));
            }
        }

        #[test]
        fn the_short_form_grows_to_the_left(x: [u8; 10], len in 4usize..15) {
            let id = TaskId::from_parts(1, x);
            let (short, long) = (id.short_with(len), id.short_with(len + 1));
            prop_assert!(long.ends_with(short.trim_start_matches("t-")));
            prop_assert_eq!(long.len(), short.len() + 1);
        }

        #[test]
        fn all_random_bits_count(mut x: [u8; 10], bit in 0usize..62) {
            let id = TaskId::from_parts(1, x);
            if let Some(byte) = x.get_mut(9 - bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
            prop_assert_ne!(TaskId::from_parts(1, x), id);
        }
    }
}
