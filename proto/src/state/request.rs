//! Request: `pending → approved → consumed`, or `denied`, `expired`, `cancelled`.

use serde::{Deserialize, Serialize};

use super::{Effect, Effects, Illegal};
use crate::time::UnixMillis;

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestState {
    /// Waiting for a rule or people.
    Pending,
    /// May be consumed once.
    Approved,
    /// Its one grant is open; a retry gets that grant.
    Consumed,
    /// Refused.
    Denied,
    /// Not approved or not consumed in time.
    Expired,
    /// Taken back by who asked.
    Cancelled,
}

impl RequestState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Approved,
        Self::Consumed,
        Self::Denied,
        Self::Expired,
        Self::Cancelled,
    ];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Consumed => "consumed",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::str::FromStr for RequestState {
    type Err = super::UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        super::word(&Self::ALL, Self::as_str, text)
    }
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestEvent {
    /// The last threshold is met.
    Approve,
    /// Refused by policy or a person.
    Deny,
    /// Taken back.
    Cancel,
    /// Its first use.
    Consume,
    /// Time passed.
    Tick {
        /// When it stops waiting.
        expires_at: UnixMillis,
    },
}

/// One step of a request.
///
/// # Errors
/// `Consume` on a pending request: a grant without an approval.
pub fn step(
    state: RequestState,
    event: RequestEvent,
    now: UnixMillis,
) -> Result<(RequestState, Effects), Illegal> {
    use RequestState::{Approved, Cancelled, Consumed, Denied, Expired, Pending};
    let none = |state| Ok((state, Effects::NONE));
    match (state, event) {
        (Pending, RequestEvent::Approve) => none(Approved),
        (Pending, RequestEvent::Deny) => none(Denied),
        (Pending | Approved, RequestEvent::Cancel) => none(Cancelled),
        (Pending | Approved, RequestEvent::Tick { expires_at }) if now >= expires_at => {
            none(Expired)
        }
        (Approved, RequestEvent::Consume) => Ok((Consumed, Effects::of(&[Effect::OpenGrant]))),
        (Pending, RequestEvent::Consume) => Err(Illegal {
            machine: "request",
            state: "pending",
            event: "consume",
        }),
        (Pending | Approved, RequestEvent::Tick { .. })
        | (Approved, RequestEvent::Approve | RequestEvent::Deny)
        | (Consumed | Denied | Expired | Cancelled, _) => none(state),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis::from_millis(100);

    fn events() -> [RequestEvent; 6] {
        [
            RequestEvent::Approve,
            RequestEvent::Deny,
            RequestEvent::Cancel,
            RequestEvent::Consume,
            RequestEvent::Tick {
                expires_at: UnixMillis::from_millis(101),
            },
            RequestEvent::Tick { expires_at: NOW },
        ]
    }

    #[test]
    fn every_pair_is_as_in_the_table() {
        use RequestState::{Approved, Cancelled, Consumed, Denied, Expired, Pending};
        // One row for each state, one column for each of `events()`; None is illegal.
        let table = [
            (
                Pending,
                [
                    Some(Approved),
                    Some(Denied),
                    Some(Cancelled),
                    None,
                    Some(Pending),
                    Some(Expired),
                ],
            ),
            (
                Approved,
                [
                    Some(Approved),
                    Some(Approved),
                    Some(Cancelled),
                    Some(Consumed),
                    Some(Approved),
                    Some(Expired),
                ],
            ),
            (Consumed, [Some(Consumed); 6]),
            (Denied, [Some(Denied); 6]),
            (Expired, [Some(Expired); 6]),
            (Cancelled, [Some(Cancelled); 6]),
        ];
        for (state, row) in table {
            for (event, expected) in events().into_iter().zip(row) {
                let stepped = step(state, event, NOW).ok();
                assert_eq!(stepped.map(|s| s.0), expected, "{state:?} {event:?}");
                let opens = state == Approved && event == RequestEvent::Consume;
                let effects = stepped.map(|s| s.1).unwrap_or_default();
                assert_eq!(effects.contains(Effect::OpenGrant), opens);
                assert_eq!(effects.is_empty(), !opens);
            }
        }
        assert_eq!(table.map(|row| row.0), RequestState::ALL);
    }

    proptest! {
        #[test]
        fn one_grant_at_most_and_only_after_approval(picks in proptest::collection::vec(0usize..6, 0..30)) {
            let (mut state, mut grants, mut approved) = (RequestState::Pending, 0, false);
            for pick in picks {
                let event = events().get(pick).copied().unwrap();
                let Ok((next, effects)) = step(state, event, NOW) else { continue };
                approved |= next == RequestState::Approved;
                grants += usize::from(effects.contains(Effect::OpenGrant));
                state = next;
            }
            prop_assert!(grants <= 1 && (grants == 0 || approved));
        }
    }
}
