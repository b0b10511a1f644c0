//! The minimum of all caps.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Ttl;
use crate::kind::Kind;
use crate::time::UnixMillis;

/// What set the end of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CappedBy {
    /// The caller asked for no more.
    Request,
    /// `[ttl] default`: the caller asked for nothing.
    TtlDefault,
    /// `[ttl] max`.
    TtlMax,
    /// `[ttl.kind]` of this kind.
    TtlKind(Kind),
    /// `[ttl] task`: the task's own deadline.
    TtlTask,
    /// The entitlement's `ttl`.
    Entitlement,
    /// What people approved.
    Approval,
    /// The end of the issuing CA or key.
    Ca,
}

/// A word that names no cap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no cap (request, ttl.default, ttl.max, ttl.kind.K, ttl.task, entitlement, approval, ca)"
)]
pub struct UnknownCap(String);

impl std::fmt::Display for CappedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Request => f.write_str("request"),
            Self::TtlDefault => f.write_str("ttl.default"),
            Self::TtlMax => f.write_str("ttl.max"),
            Self::TtlKind(kind) => write!(f, "ttl.kind.{kind}"),
            Self::TtlTask => f.write_str("ttl.task"),
            Self::Entitlement => f.write_str("entitlement"),
            Self::Approval => f.write_str("approval"),
            Self::Ca => f.write_str("ca"),
        }
    }
}

impl std::str::FromStr for CappedBy {
    type Err = UnknownCap;

    fn from_str(text: &str) -> Result<Self, UnknownCap> {
        let unknown = || UnknownCap(text.to_owned());
        if let Some(kind) = text.strip_prefix("ttl.kind.") {
            return kind.parse().map(Self::TtlKind).map_err(|_| unknown());
        }
        match text {
            "request" => Ok(Self::Request),
            "ttl.default" => Ok(Self::TtlDefault),
            "ttl.max" => Ok(Self::TtlMax),
            "ttl.task" => Ok(Self::TtlTask),
            "entitlement" => Ok(Self::Entitlement),
            "approval" => Ok(Self::Approval),
            "ca" => Ok(Self::Ca),
            _ => Err(unknown()),
        }
    }
}

impl Serialize for CappedBy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CappedBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// One ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cap {
    /// A span from now.
    For(Ttl),
    /// An instant, such as a task's deadline or a CA's end.
    Until(UnixMillis),
}

/// What a credential gets. All times are whole seconds, since that is what tokens and
/// certificates can say; rounding is always down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Now, rounded down to the second.
    pub issued_at: UnixMillis,
    /// `issued_at + ttl`; later than now, never later than any cap.
    pub expires_at: UnixMillis,
    /// At least one second.
    pub ttl: Ttl,
    /// The cap that set `expires_at`.
    pub capped_by: CappedBy,
}

/// Why no lifetime can be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TtlError {
    /// The caller asked for 0 seconds.
    #[error("ttl_seconds is 0: ask for at least 1, or leave it out for the default")]
    RequestedZero,
    /// A ceiling of 0 seconds.
    #[error("the ttl of {0} is 0: nothing can be issued under it")]
    ZeroCap(CappedBy),
    /// An absolute ceiling that has passed, or does so within this second.
    #[error("{by} ended at {at}: nothing can be issued under it")]
    AlreadyEnded {
        /// The ceiling.
        by: CappedBy,
        /// When it ended.
        at: UnixMillis,
    },
    /// No ceiling beside the caller's own wish: refused, since nothing may be unbounded.
    #[error("no policy ceiling applies: refusing an unbounded lifetime")]
    Unbounded,
}

/// The smallest of the request and all caps, and which one it was; on a tie the request,
/// then the first in `caps`. `ttl.default` holds only when nothing was requested.
///
/// # Errors
/// A request of 0, a cap of 0, a cap that has passed, or no cap at all.
pub fn effective(
    now: UnixMillis,
    requested: Option<Ttl>,
    caps: &[(CappedBy, Cap)],
) -> Result<Granted, TtlError> {
    let issued_at = now.floor_second();
    let mut least = match requested {
        Some(ttl) if ttl.as_seconds() == 0 => return Err(TtlError::RequestedZero),
        Some(ttl) => Some((
            ttl.min(left_until(issued_at, UnixMillis::MAX)),
            CappedBy::Request,
        )),
        None => None,
    };
    let mut bounded = false;
    for (by, cap) in caps {
        if *by == CappedBy::TtlDefault && requested.is_some() {
            continue;
        }
        bounded = true;
        let ttl = span(issued_at, *by, *cap)?;
        if least.is_none_or(|(smallest, _)| ttl < smallest) {
            least = Some((ttl, *by));
        }
    }
    match least {
        Some((ttl, capped_by)) if bounded => {
            let expires_at = issued_at.saturating_add(ttl);
            Ok(Granted {
                issued_at,
                expires_at,
                ttl,
                capped_by,
            })
        }
        Some(_) | None => Err(TtlError::Unbounded),
    }
}

fn span(issued_at: UnixMillis, by: CappedBy, cap: Cap) -> Result<Ttl, TtlError> {
    match cap {
        Cap::For(ttl) if ttl.as_seconds() == 0 => Err(TtlError::ZeroCap(by)),
        Cap::For(ttl) => Ok(ttl.min(left_until(issued_at, UnixMillis::MAX))),
        Cap::Until(at) => match left_until(issued_at, at) {
            left if left.as_seconds() == 0 => Err(TtlError::AlreadyEnded { by, at }),
            left => Ok(left),
        },
    }
}

/// Whole seconds from one instant to another, 0 when it is not later.
fn left_until(from: UnixMillis, to: UnixMillis) -> Ttl {
    Ttl::from_seconds(to.millis_since(from) / 1000)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis::from_millis(1_700_000_000_750);

    fn secs(seconds: u64) -> Ttl {
        Ttl::from_seconds(seconds)
    }

    #[test]
    fn words_round_trip() {
        let mut all = vec![
            CappedBy::Request,
            CappedBy::TtlDefault,
            CappedBy::TtlMax,
            CappedBy::TtlTask,
            CappedBy::Entitlement,
            CappedBy::Approval,
            CappedBy::Ca,
        ];
        all.extend(Kind::ALL.map(CappedBy::TtlKind));
        for cap in all {
            assert_eq!(cap.to_string().parse(), Ok(cap));
        }
        let kind = CappedBy::TtlKind(Kind::Jwt);
        assert_eq!(serde_json::to_string(&kind).unwrap(), "\"ttl.kind.jwt\"");
        assert!("ttl.kind.pigeon".parse::<CappedBy>().is_err());
    }

    #[test]
    fn the_default_holds_only_without_a_request() {
        let caps = [
            (CappedBy::TtlDefault, Cap::For(secs(900))),
            (CappedBy::TtlMax, Cap::For(secs(3600))),
        ];
        let silent = effective(NOW, None, &caps).unwrap();
        assert_eq!(
            (silent.ttl, silent.capped_by),
            (secs(900), CappedBy::TtlDefault)
        );
        let asked = effective(NOW, Some(secs(1800)), &caps).unwrap();
        assert_eq!(
            (asked.ttl, asked.capped_by),
            (secs(1800), CappedBy::Request)
        );
        let greedy = effective(NOW, Some(secs(u64::MAX)), &caps).unwrap();
        assert_eq!(
            (greedy.ttl, greedy.capped_by),
            (secs(3600), CappedBy::TtlMax)
        );
        assert_eq!(greedy.expires_at.millis_since(greedy.issued_at), 3_600_000);
    }

    #[test]
    fn what_cannot_be_granted_says_why() {
        let max = (CappedBy::TtlMax, Cap::For(secs(60)));
        assert_eq!(
            effective(NOW, Some(secs(0)), &[max]),
            Err(TtlError::RequestedZero)
        );
        assert_eq!(effective(NOW, Some(secs(5)), &[]), Err(TtlError::Unbounded));
        assert_eq!(effective(NOW, None, &[]), Err(TtlError::Unbounded));
        let zero = (CappedBy::Entitlement, Cap::For(secs(0)));
        let refused = Err(TtlError::ZeroCap(CappedBy::Entitlement));
        assert_eq!(effective(NOW, None, &[max, zero]), refused);
        for at in [
            UnixMillis::from_millis(0),
            NOW,
            NOW.saturating_add_millis(249),
        ] {
            let ended = Err(TtlError::AlreadyEnded {
                by: CappedBy::Ca,
                at,
            });
            assert_eq!(
                effective(NOW, None, &[max, (CappedBy::Ca, Cap::Until(at))]),
                ended
            );
        }
    }

    #[test]
    fn at_the_end_of_time_nothing_wraps() {
        let caps = [(CappedBy::TtlMax, Cap::For(secs(u64::MAX)))];
        let granted = effective(NOW, Some(secs(1 << 63)), &caps).unwrap();
        assert!(granted.expires_at <= UnixMillis::MAX && granted.expires_at > NOW);
        assert_eq!(
            granted.issued_at.saturating_add(granted.ttl),
            granted.expires_at
        );
    }

    fn caps() -> impl Strategy<Value = Vec<(CappedBy, Cap)>> {
        let by = prop_oneof![
            Just(CappedBy::TtlDefault),
            Just(CappedBy::TtlMax),
            Just(CappedBy::TtlKind(Kind::Jwt)),
            Just(CappedBy::TtlTask),
            Just(CappedBy::Entitlement),
            Just(CappedBy::Approval),
            Just(CappedBy::Ca),
        ];
        let seconds = prop_oneof![1u64..100_000, any::<u64>()];
        let millis = prop_oneof![2_000_000_000_000u64..4_000_000_000_000, any::<u64>()];
        let cap = prop_oneof![
            seconds.prop_map(|s| Cap::For(Ttl::from_seconds(s))),
            millis.prop_map(|m| Cap::Until(UnixMillis::from_millis(m))),
        ];
        proptest::collection::vec((by, cap), 0..8)
    }

    fn end(now: UnixMillis, cap: Cap) -> UnixMillis {
        match cap {
            Cap::For(ttl) => now.saturating_add(ttl),
            Cap::Until(at) => at,
        }
    }

    fn now() -> impl Strategy<Value = UnixMillis> {
        (0u64..3_000_000_000_000).prop_map(UnixMillis::from_millis)
    }

    proptest! {
        #[test]
        fn no_cap_is_exceeded_and_the_named_one_binds(
            now in now(), asked in proptest::option::of(any::<u64>()), caps in caps(),
        ) {
            let requested = asked.map(Ttl::from_seconds);
            let Ok(granted) = effective(now, requested, &caps) else { return Ok(()) };
            prop_assert!(granted.expires_at > now);
            prop_assert_eq!(granted.issued_at.saturating_add(granted.ttl), granted.expires_at);
            let holds = |by: CappedBy| by != CappedBy::TtlDefault || requested.is_none();
            for (_, cap) in caps.iter().filter(|(by, _)| holds(*by)) {
                prop_assert!(granted.expires_at <= end(now, *cap));
            }
            if let Some(ttl) = requested {
                prop_assert!(granted.ttl <= ttl);
            }
            let from = granted.issued_at;
            let named: Vec<UnixMillis> = match (granted.capped_by, requested) {
                (CappedBy::Request, Some(ttl)) => vec![end(from, Cap::For(ttl))],
                (by, _) => caps.iter().filter(|c| c.0 == by).map(|c| end(from, c.1)).collect(),
            };
            prop_assert!(named.iter().any(|e| e.floor_second() == granted.expires_at));
        }

        #[test]
        fn one_more_cap_never_widens(
            now in now(), asked in 1u64.., caps in caps(), extra in caps(),
        ) {
            let requested = Some(Ttl::from_seconds(asked));
            let more = [caps.clone(), extra].concat();
            let wide = effective(now, requested, &caps);
            if let (Ok(wide), Ok(narrow)) = (wide, effective(now, requested, &more)) {
                prop_assert!(narrow.expires_at <= wide.expires_at);
            }
        }

        #[test]
        fn asking_for_more_never_gives_less(
            now in now(), a in 1u64.., b in 1u64.., caps in caps(),
        ) {
            let less = effective(now, Some(Ttl::from_seconds(a.min(b))), &caps);
            let more = effective(now, Some(Ttl::from_seconds(a.max(b))), &caps);
            if let (Ok(less), Ok(more)) = (less, more) {
                prop_assert!(less.ttl <= more.ttl);
            }
        }
    }
}
