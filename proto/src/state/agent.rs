//! Agent: `joined → active → silent → active`, or `banned`.
//!
//! Silence is counted on boot time and only while the broker's listener was ready: a broker that
//! did not listen cannot say that an agent did not speak.

use serde::{Deserialize, Serialize};

use super::{Effect, Effects, Illegal};
use crate::limits::SILENT_AFTER_MILLIS;
use crate::time::Boottime;

/// Where an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentState {
    /// Has a certificate, was not yet heard.
    Joined,
    /// Heard within 15 s.
    Active,
    /// Not heard for 15 s: nothing new, no renewal.
    Silent,
    /// Locked out until it joins again with a new token.
    Banned,
}

impl AgentState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Joined, Self::Active, Self::Silent, Self::Banned];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joined => "joined",
            Self::Active => "active",
            Self::Silent => "silent",
            Self::Banned => "banned",
        }
    }
}

impl std::str::FromStr for AgentState {
    type Err = super::UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        super::word(&Self::ALL, Self::as_str, text)
    }
}

/// What happens to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentEvent {
    /// It spoke, over a connection with its own certificate.
    Heard,
    /// It asks for a credential.
    Draw,
    /// Time passed.
    Tick {
        /// When it last spoke.
        last_heard: Boottime,
        /// Since when the broker's listener is ready.
        ready_since: Boottime,
    },
    /// A person bans it.
    Ban,
    /// A new join token for its name is redeemed.
    Rejoin,
}

/// One step of an agent.
///
/// A `Rejoin` without [`Effect::Admit`] is to be refused: a token never redeems the name of a
/// living agent.
///
/// # Errors
/// None; the form is that of every machine.
pub fn step(
    state: AgentState,
    event: AgentEvent,
    now: Boottime,
) -> Result<(AgentState, Effects), Illegal> {
    use AgentState::{Active, Banned, Joined, Silent};
    let next = match (state, event) {
        (Joined | Active | Silent, AgentEvent::Heard) => (Active, Effects::NONE),
        (Active, AgentEvent::Draw) => (Active, Effects::of(&[Effect::Admit])),
        (
            Active,
            AgentEvent::Tick {
                last_heard,
                ready_since,
            },
        ) => {
            let since = last_heard.max(ready_since);
            let silent = now.millis_since(since) >= SILENT_AFTER_MILLIS;
            (if silent { Silent } else { Active }, Effects::NONE)
        }
        (Joined | Active | Silent, AgentEvent::Ban) => {
            let effects = [
                Effect::CompleteTasks,
                Effect::CloseStreams,
                Effect::VoidTokens,
            ];
            (Banned, Effects::of(&effects))
        }
        // The new holder of the name cannot speak for what the old one held.
        (Joined | Silent | Banned, AgentEvent::Rejoin) => {
            let effects = [Effect::Admit, Effect::CompleteTasks, Effect::CloseStreams];
            (Joined, Effects::of(&effects))
        }
        (Active, AgentEvent::Rejoin)
        | (Joined | Silent | Banned, AgentEvent::Draw | AgentEvent::Tick { .. })
        | (Banned, AgentEvent::Heard | AgentEvent::Ban) => (state, Effects::NONE),
    };
    Ok(next)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Boottime = Boottime::from_millis(100_000);

    fn tick(heard: u64, ready: u64) -> AgentEvent {
        AgentEvent::Tick {
            last_heard: Boottime::from_millis(heard),
            ready_since: Boottime::from_millis(ready),
        }
    }

    fn events() -> [AgentEvent; 7] {
        [
            AgentEvent::Heard,
            AgentEvent::Draw,
            tick(85_000, 0),
            tick(85_001, 0),
            tick(0, 85_001),
            AgentEvent::Ban,
            AgentEvent::Rejoin,
        ]
    }

    #[test]
    fn every_pair_is_as_in_the_table() {
        use AgentState::{Active, Banned, Joined, Silent};
        let none = Effects::NONE;
        let admit = Effects::of(&[Effect::Admit]);
        let ban = Effects::of(&[
            Effect::CompleteTasks,
            Effect::CloseStreams,
            Effect::VoidTokens,
        ]);
        let rejoin = Effects::of(&[Effect::Admit, Effect::CompleteTasks, Effect::CloseStreams]);
        let same = |state| (state, none);
        // One row for each state, one column for each of `events()`.
        let table = [
            (
                Joined,
                [
                    same(Active),
                    same(Joined),
                    same(Joined),
                    same(Joined),
                    same(Joined),
                    (Banned, ban),
                    (Joined, rejoin),
                ],
            ),
            (
                Active,
                [
                    same(Active),
                    (Active, admit),
                    same(Silent),
                    same(Active),
                    same(Active),
                    (Banned, ban),
                    same(Active),
                ],
            ),
            (
                Silent,
                [
                    same(Active),
                    same(Silent),
                    same(Silent),
                    same(Silent),
                    same(Silent),
                    (Banned, ban),
                    (Joined, rejoin),
                ],
            ),
            (
                Banned,
                [
                    same(Banned),
                    same(Banned),
                    same(Banned),
                    same(Banned),
                    same(Banned),
                    same(Banned),
                    (Joined, rejoin),
                ],
            ),
        ];
        for (state, row) in table {
            for (event, expected) in events().into_iter().zip(row) {
                assert_eq!(step(state, event, NOW), Ok(expected), "{state:?} {event:?}");
            }
        }
        assert_eq!(table.map(|row| row.0), AgentState::ALL);
    }

    proptest! {
        #[test]
        fn a_ban_holds_until_a_new_token(picks in proptest::collection::vec(0usize..7, 0..30)) {
            let mut state = AgentState::Joined;
            for pick in picks {
                let event = events().get(pick).copied().unwrap();
                let (next, effects) = step(state, event, NOW).unwrap();
                if state == AgentState::Banned && event != AgentEvent::Rejoin {
                    prop_assert_eq!((next, effects), (AgentState::Banned, Effects::NONE));
                }
                state = next;
            }
        }
    }
}
