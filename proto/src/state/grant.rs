//! Grant: `open → closed`.

use serde::{Deserialize, Serialize};

use super::{Effect, Effects, Illegal};
use crate::time::UnixMillis;

/// Why a grant closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantEnd {
    /// Its window ended.
    Expired,
    /// Its task ended.
    TaskEnded,
    /// A newer policy no longer gives it.
    Narrowed,
    /// By a person.
    Revoked,
}

impl GrantEnd {
    /// Every end.
    pub const ALL: [Self; 4] = [
        Self::Expired,
        Self::TaskEnded,
        Self::Narrowed,
        Self::Revoked,
    ];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::TaskEnded => "task_ended",
            Self::Narrowed => "narrowed",
            Self::Revoked => "revoked",
        }
    }
}

impl std::str::FromStr for GrantEnd {
    type Err = super::UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        super::word(&Self::ALL, Self::as_str, text)
    }
}

/// Where a grant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantState {
    /// Credentials may be drawn until its end; the end is never moved.
    Open {
        /// The smallest cap at the time it was opened.
        until: UnixMillis,
    },
    /// Nothing may be drawn.
    Closed(GrantEnd),
}

/// What happens to a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantEvent {
    /// A credential or renewal draws on it.
    Draw,
    /// Time passed.
    Tick,
    /// It is closed.
    Close(GrantEnd),
}

/// One step of a grant. No event is illegal.
///
/// # Errors
/// None; the form is that of every machine.
pub fn step(
    state: GrantState,
    event: GrantEvent,
    now: UnixMillis,
) -> Result<(GrantState, Effects), Illegal> {
    let GrantState::Open { until } = state else {
        return Ok((state, Effects::NONE));
    };
    let next = match event {
        // Time decides before the event does: a late draw finds the window shut.
        GrantEvent::Draw | GrantEvent::Tick if now >= until => close(GrantEnd::Expired),
        GrantEvent::Draw => (state, Effects::of(&[Effect::Admit])),
        GrantEvent::Tick => (state, Effects::NONE),
        GrantEvent::Close(end) => close(end),
    };
    Ok(next)
}

fn close(end: GrantEnd) -> (GrantState, Effects) {
    let effects = match end {
        // What was drawn had its expiry capped by the window.
        GrantEnd::Expired => Effects::NONE,
        GrantEnd::TaskEnded | GrantEnd::Narrowed | GrantEnd::Revoked => {
            Effects::of(&[Effect::RevokeCredentials])
        }
    };
    (GrantState::Closed(end), effects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_as_in_the_table() {
        let now = UnixMillis::from_millis(100);
        let open = GrantState::Open {
            until: UnixMillis::from_millis(101),
        };
        let over = GrantState::Open { until: now };
        let closed = |end| GrantState::Closed(end);
        let revoke = Effects::of(&[Effect::RevokeCredentials]);
        let expired = (closed(GrantEnd::Expired), Effects::NONE);
        let mut table = vec![
            (
                open,
                GrantEvent::Draw,
                (open, Effects::of(&[Effect::Admit])),
            ),
            (open, GrantEvent::Tick, (open, Effects::NONE)),
            (over, GrantEvent::Draw, expired),
            (over, GrantEvent::Tick, expired),
        ];
        for end in GrantEnd::ALL {
            let effects = if end == GrantEnd::Expired {
                Effects::NONE
            } else {
                revoke
            };
            for state in [open, over] {
                table.push((state, GrantEvent::Close(end), (closed(end), effects)));
            }
            for event in [GrantEvent::Draw, GrantEvent::Tick] {
                table.push((closed(end), event, (closed(end), Effects::NONE)));
            }
            for again in GrantEnd::ALL {
                let same = (closed(end), Effects::NONE);
                table.push((closed(end), GrantEvent::Close(again), same));
            }
        }
        for (state, event, expected) in &table {
            assert_eq!(
                step(*state, *event, now),
                Ok(*expected),
                "{state:?} {event:?}"
            );
        }
        assert_eq!(table.len(), (2 + 4) * (2 + 4));
    }
}
