//! TTLs as people and programs write them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Limit, Ttl};

/// A text that is no TTL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTtl {
    /// Not a duration.
    #[error("`{0}` is no duration (such as 15m, 1h or 90d)")]
    Form(String),
    /// Less than a second, or not a whole number of them.
    #[error("`{0}` is not a whole number of seconds above 0")]
    Fraction(String),
    /// Not a number of seconds.
    #[error("ttl_seconds is `{0}`: it must be a whole number above 0")]
    Seconds(String),
}

impl std::str::FromStr for Ttl {
    type Err = BadTtl;

    /// Parses a policy's duration; zero and fractions of a second are refused.
    fn from_str(text: &str) -> Result<Self, BadTtl> {
        let shown = || text.chars().take(40).collect();
        let span = humantime::parse_duration(text).map_err(|_| BadTtl::Form(shown()))?;
        if span.subsec_nanos() != 0 || span.as_secs() == 0 {
            return Err(BadTtl::Fraction(shown()));
        }
        Ok(Self::from_seconds(span.as_secs()))
    }
}

impl std::str::FromStr for Limit {
    type Err = BadTtl;

    fn from_str(text: &str) -> Result<Self, BadTtl> {
        match text {
            "none" => Ok(Self::None),
            text => text.parse().map(Self::Within),
        }
    }
}

macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Ttl, Limit);

/// Parses `ttl_seconds` of a query: decimal digits. Too large a number saturates, and is then
/// capped by policy; 0 is kept for [`super::effective()`] to refuse by name.
///
/// # Errors
/// A negative number, a fraction, or no number.
pub fn parse_seconds(text: &str) -> Result<Ttl, BadTtl> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(BadTtl::Seconds(text.chars().take(40).collect()));
    }
    // All digits, so the only failure left is overflow.
    Ok(Ttl::from_seconds(text.parse().unwrap_or(u64::MAX)))
}

/// For `#[serde(default, deserialize_with = "…")]` on an optional `ttl_seconds` in JSON;
/// the same rules as [`parse_seconds`].
///
/// # Errors
/// A negative number, a fraction, or no number.
pub fn deserialize_seconds<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Ttl>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else {
        return Ok(None);
    };
    from_number(&number).map(Some).map_err(de::Error::custom)
}

fn from_number(number: &serde_json::Number) -> Result<Ttl, BadTtl> {
    if let Some(seconds) = number.as_u64() {
        return Ok(Ttl::from_seconds(seconds));
    }
    // JSON numbers beyond 2^64 arrive as floats; nothing that large is a fraction.
    match number.as_f64() {
        Some(seconds) if seconds >= 9.0e15 => Ok(Ttl::from_seconds(u64::MAX)),
        Some(_) | None => Err(BadTtl::Seconds(number.to_string())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Deserialize)]
    struct Body {
        #[serde(default, deserialize_with = "deserialize_seconds")]
        ttl_seconds: Option<Ttl>,
    }

    fn body(json: &str) -> Result<Option<u64>, serde_json::Error> {
        serde_json::from_str::<Body>(json).map(|b| b.ttl_seconds.map(Ttl::as_seconds))
    }

    #[test]
    fn durations_of_policy() {
        for (text, seconds, shown) in [
            ("15m", 900, "15m"),
            ("1h", 3600, "1h"),
            ("90d", 7_776_000, "90d"),
            ("1h 30m", 5400, "1h30m"),
            ("200s", 200, "3m20s"),
            ("12h", 43_200, "12h"),
        ] {
            let ttl: Ttl = text.parse().unwrap();
            assert_eq!(
                (ttl.as_seconds(), ttl.to_string().as_str()),
                (seconds, shown)
            );
        }
        for text in [
            "",
            "0s",
            "15",
            "-5m",
            "1500ms",
            "5m!",
            "none",
            "99999999999999999999d",
        ] {
            assert!(text.parse::<Ttl>().is_err(), "{text}");
        }
        assert_eq!("none".parse(), Ok(Limit::None));
        assert_eq!("12h".parse(), Ok(Limit::Within(Ttl::from_seconds(43_200))));
        assert_eq!(serde_json::to_string(&Limit::None).unwrap(), "\"none\"");
    }

    #[test]
    fn seconds_on_the_wire() {
        assert_eq!(body("{}").unwrap(), None);
        assert_eq!(body(r#"{"ttl_seconds":null}"#).unwrap(), None);
        assert_eq!(body(r#"{"ttl_seconds":300}"#).unwrap(), Some(300));
        assert_eq!(body(r#"{"ttl_seconds":0}"#).unwrap(), Some(0));
        assert_eq!(
            body(r#"{"ttl_seconds":9223372036854775808}"#).unwrap(),
            Some(1 << 63)
        );
        assert_eq!(body(r#"{"ttl_seconds":1e300}"#).unwrap(), Some(u64::MAX));
        let beyond = r#"{"ttl_seconds":99999999999999999999999}"#;
        assert_eq!(body(beyond).unwrap(), Some(u64::MAX));
        for bad in ["-1", "-9223372036854775809", "1.5", "\"300\"", "true", "[]"] {
            assert!(
                body(&format!(r#"{{"ttl_seconds":{bad}}}"#)).is_err(),
                "{bad}"
            );
        }
        assert_eq!(
            parse_seconds("18446744073709551616"),
            Ok(Ttl::from_seconds(u64::MAX))
        );
        for bad in ["", "-1", "+1", "1.5", " 1", "1e3", "\u{664}"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(seconds in 1u64..) {
            let ttl = Ttl::from_seconds(seconds);
            prop_assert_eq!(ttl.to_string().parse::<Ttl>(), Ok(ttl));
        }
    }
}
