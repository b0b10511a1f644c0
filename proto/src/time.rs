//! Wall time and boot time, kept apart by type.
//!
//! Expiries and audit use wall time; deadlines of things that run use `CLOCK_BOOTTIME`, which
//! counts through a suspend. Nothing here reads a clock: a [`Clock`] is handed in.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::ttl::Ttl;

/// 9999-12-31T23:59:59.999Z, the last instant that RFC 3339 can write.
const MAX_WALL_MILLIS: u64 = 253_402_300_799_999;

/// Wall time in milliseconds since 1970, never later than the year 9999; RFC 3339 in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(u64);

/// A text that is no RFC 3339 time in UTC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no RFC 3339 time in UTC (such as 2027-01-31T12:00:00Z)")]
pub struct BadTime(String);

impl UnixMillis {
    /// The latest time that can be written.
    pub const MAX: Self = Self(MAX_WALL_MILLIS);

    /// From milliseconds since 1970; later than the year 9999 becomes [`Self::MAX`].
    pub const fn from_millis(millis: u64) -> Self {
        if millis > MAX_WALL_MILLIS {
            return Self::MAX;
        }
        Self(millis)
    }

    /// From whole seconds since 1970, saturating.
    pub const fn from_unix_seconds(seconds: u64) -> Self {
        Self::from_millis(seconds.saturating_mul(1000))
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since 1970, rounded down (a JWT's NumericDate, RFC 7519 §2).
    pub const fn as_unix_seconds(self) -> u64 {
        self.0 / 1000
    }

    /// The same time with its milliseconds cut off.
    pub const fn floor_second(self) -> Self {
        Self(self.0 - self.0 % 1000)
    }

    /// Later by a TTL, at most [`Self::MAX`].
    pub const fn saturating_add(self, ttl: Ttl) -> Self {
        self.saturating_add_millis(ttl.as_seconds().saturating_mul(1000))
    }

    /// Later by a TTL, or `None` past the year 9999.
    pub const fn checked_add(self, ttl: Ttl) -> Option<Self> {
        let Some(millis) = ttl.as_seconds().checked_mul(1000) else {
            return None;
        };
        match self.0.checked_add(millis) {
            Some(sum) if sum <= MAX_WALL_MILLIS => Some(Self(sum)),
            Some(_) | None => None,
        }
    }

    /// Later by milliseconds, at most [`Self::MAX`].
    pub const fn saturating_add_millis(self, millis: u64) -> Self {
        Self::from_millis(self.0.saturating_add(millis))
    }

    /// Earlier by milliseconds, at least 1970.
    pub const fn saturating_sub_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_sub(millis))
    }

    /// Milliseconds since `earlier`; 0 when it is not earlier.
    pub const fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = UNIX_EPOCH
            .checked_add(Duration::from_millis(self.0))
            .ok_or(std::fmt::Error)?;
        humantime::format_rfc3339_millis(time).fmt(f)
    }
}

impl std::str::FromStr for UnixMillis {
    type Err = BadTime;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadTime(text.to_owned());
        let time: SystemTime = humantime::parse_rfc3339(text).map_err(|_| bad())?;
        let since = time.duration_since(UNIX_EPOCH).map_err(|_| bad())?;
        let millis = u64::try_from(since.as_millis()).map_err(|_| bad())?;
        Ok(Self::from_millis(millis))
    }
}

impl Serialize for UnixMillis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnixMillis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A reading of `CLOCK_BOOTTIME` in milliseconds; means nothing on another boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Boottime(u64);

impl Boottime {
    /// From milliseconds since boot.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since boot.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Later by a duration, saturating.
    pub fn saturating_add(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// Later by a duration, or `None` on overflow.
    pub fn checked_add(self, by: Duration) -> Option<Self> {
        let millis = u64::try_from(by.as_millis()).ok()?;
        self.0.checked_add(millis).map(Self)
    }

    /// Milliseconds since `earlier`; 0 when it is not earlier.
    pub const fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Where time comes from; tests hand in a virtual one.
pub trait Clock {
    /// Wall time now.
    fn wall(&self) -> UnixMillis;
    /// `CLOCK_BOOTTIME` now.
    fn boottime(&self) -> Boottime;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wall_time_is_rfc3339_with_milliseconds() {
        let time = UnixMillis::from_millis(1_795_269_129_042);
        assert_eq!(
            serde_json::to_string(&time).unwrap(),
            "\"2026-11-21T13:52:09.042Z\""
        );
        assert_eq!(
            "2026-11-21T13:52:09Z"
                .parse::<UnixMillis>()
                .unwrap()
                .as_millis()
                % 1000,
            0
        );
        assert!("yesterday".parse::<UnixMillis>().is_err());
        assert!("1969-12-31T23:59:59Z".parse::<UnixMillis>().is_err());
    }

    #[test]
    fn the_end_of_time_saturates_and_still_prints() {
        let end = UnixMillis::from_millis(u64::MAX);
        assert_eq!(end.to_string(), "9999-12-31T23:59:59.999Z");
        assert_eq!(
            end.saturating_add(Ttl::from_seconds(u64::MAX)),
            UnixMillis::MAX
        );
        assert_eq!(end.checked_add(Ttl::from_seconds(1)), None);
        assert_eq!(
            Boottime::from_millis(u64::MAX).checked_add(Duration::from_millis(1)),
            None
        );
    }

    proptest! {
        #[test]
        fn text_round_trips(millis in 0..=MAX_WALL_MILLIS) {
            let time = UnixMillis::from_millis(millis);
            prop_assert_eq!(time.to_string().parse::<UnixMillis>(), Ok(time));
        }
    }
}
