//! Task: `open → completing → closed`.

use serde::{Deserialize, Serialize};

use super::{Effect, Effects, Illegal};
use crate::time::UnixMillis;

/// Why a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndCause {
    /// Its process or unit ended.
    Exited,
    /// The task asked for its end.
    Released,
    /// Its deadline came.
    Deadline,
    /// Its agent was not heard, or no longer knows it.
    Lost,
    /// By a person, by policy, by offboarding or by a ban.
    Revoked,
}

impl EndCause {
    /// Every cause.
    pub const ALL: [Self; 5] = [
        Self::Exited,
        Self::Released,
        Self::Deadline,
        Self::Lost,
        Self::Revoked,
    ];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Released => "released",
            Self::Deadline => "deadline",
            Self::Lost => "lost",
            Self::Revoked => "revoked",
        }
    }
}

impl std::str::FromStr for EndCause {
    type Err = super::UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        super::word(&Self::ALL, Self::as_str, text)
    }
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Running; credentials may be drawn.
    Open,
    /// Ended; its credentials are being revoked.
    Completing(EndCause),
    /// Nothing of it is live or revoking; its receipt is made.
    Closed {
        /// Why it ended.
        cause: EndCause,
        /// Whether some credential is listed but not yet expired.
        contained: bool,
    },
}

/// What happens to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskEvent {
    /// A credential or renewal is asked for in it.
    Draw,
    /// Its agent says that it is still there.
    Heartbeat,
    /// It ended, as told by whoever noticed.
    Complete(EndCause),
    /// Time passed.
    Tick {
        /// Its deadline.
        deadline: UnixMillis,
    },
    /// Nothing of it is live or revoking any more.
    Settled {
        /// Whether something of it is still contained.
        contained: bool,
    },
}

impl TaskState {
    /// The state's word: `open`, `completing` or `closed`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Completing(_) => "completing",
            Self::Closed { .. } => "closed",
        }
    }

    /// Why it ended.
    pub const fn cause(self) -> Option<EndCause> {
        match self {
            Self::Open => None,
            Self::Completing(cause) | Self::Closed { cause, .. } => Some(cause),
        }
    }
}

/// One step of a task.
///
/// # Errors
/// `Settled` on an open task: nobody may count its credentials before it ended.
pub fn step(
    state: TaskState,
    event: TaskEvent,
    now: UnixMillis,
) -> Result<(TaskState, Effects), Illegal> {
    match state {
        TaskState::Open => open(event, now),
        TaskState::Completing(cause) => Ok(completing(cause, event)),
        TaskState::Closed { cause, contained } => Ok(closed(cause, contained, event)),
    }
}

fn open(event: TaskEvent, now: UnixMillis) -> Result<(TaskState, Effects), Illegal> {
    let end = |cause| {
        let effects = [
            Effect::RevokeCredentials,
            Effect::CloseGrants,
            Effect::WipeHost,
        ];
        (TaskState::Completing(cause), Effects::of(&effects))
    };
    match event {
        TaskEvent::Draw => Ok((TaskState::Open, Effects::of(&[Effect::Admit]))),
        TaskEvent::Complete(cause) => Ok(end(cause)),
        TaskEvent::Tick { deadline } if now >= deadline => Ok(end(EndCause::Deadline)),
        TaskEvent::Tick { .. } | TaskEvent::Heartbeat => Ok((TaskState::Open, Effects::NONE)),
        TaskEvent::Settled { .. } => Err(Illegal {
            machine: "task",
            state: "open",
            event: "settled",
        }),
    }
}

fn completing(cause: EndCause, event: TaskEvent) -> (TaskState, Effects) {
    match event {
        TaskEvent::Settled { contained } => (
            TaskState::Closed { cause, contained },
            Effects::of(&[Effect::WriteReceipt]),
        ),
        TaskEvent::Draw
        | TaskEvent::Heartbeat
        | TaskEvent::Complete(_)
        | TaskEvent::Tick { .. } => (TaskState::Completing(cause), Effects::NONE),
    }
}

fn closed(cause: EndCause, contained: bool, event: TaskEvent) -> (TaskState, Effects) {
    match event {
        TaskEvent::Settled { contained: false } if contained => {
            let effects = Effects::of(&[Effect::WriteClosingLeaf]);
            (
                TaskState::Closed {
                    cause,
                    contained: false,
                },
                effects,
            )
        }
        TaskEvent::Settled { .. }
        | TaskEvent::Draw
        | TaskEvent::Heartbeat
        | TaskEvent::Complete(_)
        | TaskEvent::Tick { .. } => (TaskState::Closed { cause, contained }, Effects::NONE),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis::from_millis(1_000_000);
    const PAST: TaskEvent = TaskEvent::Tick {
        deadline: UnixMillis::from_millis(1_000_000),
    };
    const AHEAD: TaskEvent = TaskEvent::Tick {
        deadline: UnixMillis::from_millis(1_000_001),
    };

    fn events() -> Vec<TaskEvent> {
        let mut all = vec![TaskEvent::Draw, TaskEvent::Heartbeat, AHEAD, PAST];
        all.extend([true, false].map(|contained| TaskEvent::Settled { contained }));
        all.extend(EndCause::ALL.map(TaskEvent::Complete));
        all
    }

    /// The golden table, written as a reader of docs/lifecycle.md would.
    fn golden(state: TaskState, event: TaskEvent) -> Option<(TaskState, Vec<Effect>)> {
        use Effect::{
            Admit, CloseGrants, RevokeCredentials, WipeHost, WriteClosingLeaf, WriteReceipt,
        };
        use TaskState::{Closed, Completing, Open};
        let end = vec![RevokeCredentials, CloseGrants, WipeHost];
        Some(match (state, event) {
            (Open, TaskEvent::Settled { .. }) => return None,
            (Open, TaskEvent::Draw) => (Open, vec![Admit]),
            (Open, TaskEvent::Complete(cause)) => (Completing(cause), end),
            (Open, event) if event == PAST => (Completing(EndCause::Deadline), end),
            (Completing(cause), TaskEvent::Settled { contained }) => {
                (Closed { cause, contained }, vec![WriteReceipt])
            }
            (
                Closed {
                    cause,
                    contained: true,
                },
                TaskEvent::Settled { contained: false },
            ) => (
                Closed {
                    cause,
                    contained: false,
                },
                vec![WriteClosingLeaf],
            ),
            (same, _) => (same, vec![]),
        })
    }

    #[test]
    fn every_pair_is_as_in_the_table() {
        let mut states = vec![TaskState::Open];
        for cause in EndCause::ALL {
            states.push(TaskState::Completing(cause));
            states.extend([true, false].map(|contained| TaskState::Closed { cause, contained }));
        }
        for state in &states {
            for event in events() {
                let stepped = step(*state, event, NOW).ok();
                let expected = golden(*state, event).map(|(s, e)| (s, Effects::of(&e)));
                assert_eq!(stepped, expected, "{state:?} {event:?}");
            }
        }
        assert_eq!((states.len(), events().len()), (16, 11));
    }

    proptest! {
        #[test]
        fn one_receipt_and_never_open_again(picks in proptest::collection::vec(0usize..11, 0..40)) {
            let (mut state, mut receipts, mut closings) = (TaskState::Open, 0, 0);
            for pick in picks {
                let event = events().get(pick).copied().unwrap();
                let Ok((next, effects)) = step(state, event, NOW) else { continue };
                prop_assert!(state == TaskState::Open || next != TaskState::Open);
                prop_assert!(!effects.contains(Effect::Admit) || state == TaskState::Open);
                prop_assert!(state.cause().is_none() || next.cause() == state.cause());
                receipts += usize::from(effects.contains(Effect::WriteReceipt));
                closings += usize::from(effects.contains(Effect::WriteClosingLeaf));
                state = next;
            }
            prop_assert_eq!(receipts, usize::from(state.as_str() == "closed"));
            prop_assert!(closings <= receipts);
        }
    }
}
