//! State machines as pure functions `step(state, event, now) -> Result<(State, Effects), Illegal>`.
//!
//! Late and repeated events are ordinary inputs: they change nothing and have no effects.
//! [`Illegal`] is for defects of the calling code only. Nothing here ever brings a credential
//! back to life, and a task has one receipt.

pub mod agent;
pub mod credential;
pub mod grant;
pub mod request;
pub mod task;

/// What the caller of a step must do, in the same transaction or after it as the effect says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Effect {
    /// The thing asked for may go ahead.
    Admit,
    /// Revoke every credential of it.
    RevokeCredentials,
    /// Close its grants.
    CloseGrants,
    /// Complete its tasks.
    CompleteTasks,
    /// Have the host's copies wiped.
    WipeHost,
    /// Make the task's one receipt.
    WriteReceipt,
    /// Make the leaf that closes a task whose last contained credential is dead.
    WriteClosingLeaf,
    /// Publish it on the lists of its kind.
    List,
    /// Commit the new expiry, then have the target extend it.
    ExtendAtTarget,
    /// Revoke it at its target, behind the fence.
    RevokeAtTarget,
    /// Check at the target that it is dead.
    Prove,
    /// Record that it is overdue.
    ReportOverdue,
    /// Open the one grant of this approval.
    OpenGrant,
    /// Close the agent's streams.
    CloseStreams,
    /// Void join tokens for this host.
    VoidTokens,
}

impl Effect {
    /// Every effect.
    pub const ALL: [Self; 15] = [
        Self::Admit,
        Self::RevokeCredentials,
        Self::CloseGrants,
        Self::CompleteTasks,
        Self::WipeHost,
        Self::WriteReceipt,
        Self::WriteClosingLeaf,
        Self::List,
        Self::ExtendAtTarget,
        Self::RevokeAtTarget,
        Self::Prove,
        Self::ReportOverdue,
        Self::OpenGrant,
        Self::CloseStreams,
        Self::VoidTokens,
    ];
}

/// A set of effects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Effects(u16);

impl Effects {
    /// No effects.
    pub const NONE: Self = Self(0);

    /// These effects.
    pub fn of(effects: &[Effect]) -> Self {
        effects
            .iter()
            .fold(Self::NONE, |set, effect| set.with(*effect))
    }

    /// With one more.
    #[must_use]
    pub const fn with(self, effect: Effect) -> Self {
        Self(self.0 | (1 << effect as u16))
    }

    /// Whether it holds this one.
    pub const fn contains(self, effect: Effect) -> bool {
        self.0 & (1 << effect as u16) != 0
    }

    /// Whether there is nothing to do.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its effects in their order.
    pub fn iter(self) -> impl Iterator<Item = Effect> {
        Effect::ALL
            .into_iter()
            .filter(move |effect| self.contains(*effect))
    }
}

impl std::fmt::Debug for Effects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// An event that cannot occur in this state unless the calling code has a defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{machine}: `{event}` cannot occur in state `{state}`; this is a defect in the caller")]
pub struct Illegal {
    /// Which machine.
    pub machine: &'static str,
    /// The state it is in.
    pub state: &'static str,
    /// The event.
    pub event: &'static str,
}

/// A stored word that names no state or cause of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no state or cause of this version")]
pub struct UnknownWord(String);

fn word<T: Copy>(all: &[T], as_str: fn(T) -> &'static str, text: &str) -> Result<T, UnknownWord> {
    let found = all.iter().copied().find(|item| as_str(*item) == text);
    found.ok_or_else(|| UnknownWord(text.chars().take(64).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        for effect in Effect::ALL {
            let set = Effects::of(&[effect, effect]);
            assert_eq!(set.iter().collect::<Vec<_>>(), [effect]);
        }
        assert_eq!(Effects::of(&Effect::ALL).iter().count(), Effect::ALL.len());
        assert!(Effects::NONE.is_empty());
    }
}
