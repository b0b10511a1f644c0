//! TTL arithmetic: a credential lives no longer than the smallest of all caps, and the answer
//! says which one that was (promise P4).
//!
//! Nothing here panics, wraps or widens: too large a number saturates at the caps.

mod effective;
mod wire;

pub use effective::{Cap, CappedBy, Granted, TtlError, UnknownCap, effective};
pub use wire::{BadTtl, deserialize_seconds, parse_seconds};

/// A span in whole seconds. Written as `15m` or `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(u64);

impl Ttl {
    /// From whole seconds. Zero is representable so that [`effective()`] can refuse it by name.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds)
    }

    /// From `ttl_seconds` of a request body. Too large a number saturates, and is then capped
    /// by policy; 0 is kept for [`effective()`] to refuse by name.
    ///
    /// # Errors
    /// A negative number.
    pub fn from_wire(seconds: i128) -> Result<Self, BadTtl> {
        if seconds < 0 {
            return Err(BadTtl::Seconds(seconds.to_string()));
        }
        Ok(Self(u64::try_from(seconds).unwrap_or(u64::MAX)))
    }

    /// Whole seconds.
    pub const fn as_seconds(self) -> u64 {
        self.0
    }

    /// As a standard duration.
    pub const fn as_duration(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0)
    }

    /// The smaller one.
    pub fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }
}

impl std::fmt::Display for Ttl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
        let mut left = self.0;
        for (size, unit) in units {
            if left >= size {
                write!(f, "{}{unit}", left / size)?;
                left %= size;
            }
        }
        Ok(())
    }
}

/// A ceiling that may be absent, as `[ttl] service = "none"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// No longer than this.
    Within(Ttl),
    /// No ceiling of its own; others still hold.
    None,
}

impl Limit {
    /// The ceiling, if there is one.
    pub const fn ttl(self) -> Option<Ttl> {
        match self {
            Self::Within(ttl) => Some(ttl),
            Self::None => None,
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Within(ttl) => ttl.fmt(f),
            Self::None => f.write_str("none"),
        }
    }
}
