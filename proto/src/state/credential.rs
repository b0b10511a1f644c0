//! Credential: `intended → live → revoking → contained → dead`.
//!
//! Once it is revoking, contained or dead, no event makes it live or replacing again. That is the
//! one rule here that everything else depends on.

use serde::{Deserialize, Serialize};

use super::{Effect, Effects, Illegal};
use crate::kind::Kind;
use crate::time::UnixMillis;

/// Where a credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialState {
    /// Recorded; its effect outside may or may not have happened.
    Intended,
    /// Usable.
    Live,
    /// Usable, while a successor is being made.
    Replacing,
    /// Revoked here; not yet refused or listed everywhere.
    Revoking,
    /// Revoked and listed; not yet expired for a verifier that never asks.
    Contained,
    /// Refused now and for ever after, with evidence.
    Dead,
}

impl CredentialState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Intended,
        Self::Live,
        Self::Replacing,
        Self::Revoking,
        Self::Contained,
        Self::Dead,
    ];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intended => "intended",
            Self::Live => "live",
            Self::Replacing => "replacing",
            Self::Revoking => "revoking",
            Self::Contained => "contained",
            Self::Dead => "dead",
        }
    }

    /// Whether somebody takes it or may take it: recorded, and not on its way to an end.
    pub const fn is_out(self) -> bool {
        match self {
            Self::Intended | Self::Live | Self::Replacing => true,
            Self::Revoking | Self::Contained | Self::Dead => false,
        }
    }

    /// Whether it may be used: `live` or `replacing`.
    pub const fn is_usable(self) -> bool {
        match self {
            Self::Live | Self::Replacing => true,
            Self::Intended | Self::Revoking | Self::Contained | Self::Dead => false,
        }
    }

    /// Whether a task's receipt may be made while a credential is here.
    pub const fn is_settled(self) -> bool {
        match self {
            Self::Contained | Self::Dead => true,
            Self::Intended | Self::Live | Self::Replacing | Self::Revoking => false,
        }
    }
}

impl std::str::FromStr for CredentialState {
    type Err = super::UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        super::word(&Self::ALL, Self::as_str, text)
    }
}

/// What shows that a credential is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// The target refused it.
    Refused,
    /// The target does not have it.
    Absent,
    /// Its time is over, the leeway of verifiers included.
    Expired,
    /// The target dropped it.
    Dropped,
    /// The only copies were wiped.
    Wiped,
}

impl Proof {
    /// Every proof.
    pub const ALL: [Self; 5] = [
        Self::Refused,
        Self::Absent,
        Self::Expired,
        Self::Dropped,
        Self::Wiped,
    ];

    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Absent => "absent",
            Self::Expired => "expired",
            Self::Dropped => "dropped",
            Self::Wiped => "wiped",
        }
    }
}

impl std::str::FromStr for Proof {
    type Err = super::UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        super::word(&Self::ALL, Self::as_str, text)
    }
}

/// What the machine knows of one credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Its kind.
    pub kind: Kind,
    /// Where it is.
    pub state: CredentialState,
    /// Its committed expiry.
    pub expires_at: UnixMillis,
    /// A flag on `revoking`: not refused or listed within its bound. Cleared when it leaves.
    pub overdue: bool,
    /// What shows that it is dead; set exactly when it is.
    pub proof: Option<Proof>,
}

/// What happens to a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialEvent {
    /// The effect outside happened and its outcome is stored.
    Minted,
    /// The effect outside failed, or nobody can tell; it counts as maybe live.
    MintFailed,
    /// A renewal; the new expiry is committed before its effect.
    Renewed {
        /// The new expiry.
        expires_at: UnixMillis,
    },
    /// A successor is being made.
    ReplaceBegan,
    /// The successor is in place, under the same id.
    Replaced {
        /// The new expiry.
        expires_at: UnixMillis,
    },
    /// It is to end now, whatever the reason.
    Revoke,
    /// It is published on every list of its kind (signed kinds).
    Listed,
    /// Checked at its target (kinds with an effect).
    Proven(Proof),
    /// It was not refused or listed within its bound.
    Overdue,
    /// A later look at the target, or a target that went back in time, found it again.
    Reopened,
    /// Time passed.
    Tick {
        /// When an outcome must be there (kinds with an effect).
        outcome_due: UnixMillis,
    },
}

impl CredentialEvent {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minted => "minted",
            Self::MintFailed => "mint_failed",
            Self::Renewed { .. } => "renewed",
            Self::ReplaceBegan => "replace_began",
            Self::Replaced { .. } => "replaced",
            Self::Revoke => "revoke",
            Self::Listed => "listed",
            Self::Proven(_) => "proven",
            Self::Overdue => "overdue",
            Self::Reopened => "reopened",
            Self::Tick { .. } => "tick",
        }
    }
}

type Stepped = Result<(Credential, Effects), Illegal>;

impl Credential {
    /// A new one at its intent: signed kinds are live with it, the others only intended.
    pub const fn intended(kind: Kind, expires_at: UnixMillis) -> Self {
        let state = if kind.is_signed() {
            CredentialState::Live
        } else {
            CredentialState::Intended
        };
        Self {
            kind,
            state,
            expires_at,
            overdue: false,
            proof: None,
        }
    }

    /// From when on nobody accepts it: its expiry and the leeway of verifiers.
    pub const fn dead_at(&self) -> UnixMillis {
        self.expires_at
            .saturating_add_millis(self.kind.leeway_millis())
    }

    fn same(self) -> Stepped {
        Ok((self, Effects::NONE))
    }

    fn to(self, state: CredentialState, effects: &[Effect]) -> Stepped {
        Ok((
            Self {
                state,
                overdue: false,
                ..self
            },
            Effects::of(effects),
        ))
    }

    fn revoking(self) -> Stepped {
        let first = if self.kind.is_signed() {
            Effect::List
        } else {
            Effect::RevokeAtTarget
        };
        self.to(CredentialState::Revoking, &[first, Effect::WipeHost])
    }

    fn dead(self, proof: Proof, effects: &[Effect]) -> Stepped {
        Self {
            proof: Some(proof),
            ..self
        }
        .to(CredentialState::Dead, effects)
    }

    fn illegal(self, event: CredentialEvent) -> Stepped {
        Err(Illegal {
            machine: "credential",
            state: self.state.as_str(),
            event: event.as_str(),
        })
    }
}

/// One step of a credential.
///
/// # Errors
/// Events that only a defect can cause: an outcome or a check at a target for a signed kind, a
/// list for the others, and listing, proving or flagging what was never revoked.
pub fn step(credential: Credential, event: CredentialEvent, now: UnixMillis) -> Stepped {
    use CredentialEvent as E;
    let signed = credential.kind.is_signed();
    match event {
        E::Minted | E::MintFailed | E::Reopened if signed => return credential.illegal(event),
        E::Proven(_) if signed => return credential.illegal(event),
        E::Proven(Proof::Expired) => return credential.illegal(event),
        E::Listed if !signed => return credential.illegal(event),
        E::Minted
        | E::MintFailed
        | E::Reopened
        | E::Proven(_)
        | E::Listed
        | E::Renewed { .. }
        | E::ReplaceBegan
        | E::Replaced { .. }
        | E::Revoke
        | E::Overdue
        | E::Tick { .. } => {}
    }
    match credential.state {
        CredentialState::Intended => intended(credential, event, now),
        CredentialState::Live | CredentialState::Replacing => usable(credential, event, now),
        CredentialState::Revoking => revoking(credential, event),
        CredentialState::Contained => contained(credential, event, now),
        CredentialState::Dead => dead(credential, event),
    }
}

fn intended(credential: Credential, event: CredentialEvent, now: UnixMillis) -> Stepped {
    use CredentialEvent as E;
    match event {
        E::Minted => credential.to(CredentialState::Live, &[]),
        // Even a failure may have had its effect: it is revoked by id.
        E::MintFailed | E::Revoke => credential.revoking(),
        E::Tick { outcome_due } if now >= outcome_due || now >= credential.expires_at => {
            credential.revoking()
        }
        E::Tick { .. } | E::Renewed { .. } | E::ReplaceBegan | E::Replaced { .. } => {
            credential.same()
        }
        E::Listed | E::Proven(_) | E::Overdue | E::Reopened => credential.illegal(event),
    }
}

fn usable(credential: Credential, event: CredentialEvent, now: UnixMillis) -> Stepped {
    use CredentialEvent as E;
    let replacing = credential.state == CredentialState::Replacing;
    match event {
        E::Renewed { expires_at } if !replacing => renewed(credential, expires_at, now),
        E::ReplaceBegan if !replacing && now < credential.expires_at => {
            credential.to(CredentialState::Replacing, &[])
        }
        E::Replaced { expires_at } if replacing => {
            let (next, effects) = renewed(credential, expires_at, now)?;
            Ok((
                Credential {
                    state: CredentialState::Live,
                    ..next
                },
                effects,
            ))
        }
        E::MintFailed | E::Revoke => credential.revoking(),
        E::Tick { .. } => expired(credential, now),
        E::Minted | E::Renewed { .. } | E::ReplaceBegan | E::Replaced { .. } => credential.same(),
        E::Listed | E::Proven(_) | E::Overdue | E::Reopened => credential.illegal(event),
    }
}

/// A renewal moves the expiry forward only, and only while there is something to renew.
fn renewed(credential: Credential, expires_at: UnixMillis, now: UnixMillis) -> Stepped {
    if now >= credential.expires_at || expires_at <= credential.expires_at {
        return credential.same();
    }
    let later = Credential {
        expires_at,
        ..credential
    };
    let effects: &[Effect] = if credential.kind.is_signed() {
        &[]
    } else {
        &[Effect::ExtendAtTarget]
    };
    Ok((later, Effects::of(effects)))
}

/// A signed kind is dead when its time is over; an effect has to be undone at its target even then.
fn expired(credential: Credential, now: UnixMillis) -> Stepped {
    if credential.kind.is_signed() {
        if now >= credential.dead_at() {
            return credential.dead(Proof::Expired, &[Effect::WipeHost]);
        }
        return credential.same();
    }
    if now >= credential.expires_at {
        credential.revoking()
    } else {
        credential.same()
    }
}

fn revoking(credential: Credential, event: CredentialEvent) -> Stepped {
    use CredentialEvent as E;
    match event {
        E::Listed => credential.to(CredentialState::Contained, &[Effect::Prove]),
        E::Proven(proof) => credential.dead(proof, &[]),
        E::Overdue if !credential.overdue => {
            let flagged = Credential {
                overdue: true,
                ..credential
            };
            Ok((flagged, Effects::of(&[Effect::ReportOverdue])))
        }
        E::Overdue
        | E::Minted
        | E::MintFailed
        | E::Renewed { .. }
        | E::ReplaceBegan
        | E::Replaced { .. }
        | E::Revoke
        | E::Reopened
        | E::Tick { .. } => credential.same(),
    }
}

fn contained(credential: Credential, event: CredentialEvent, now: UnixMillis) -> Stepped {
    use CredentialEvent as E;
    match event {
        E::Tick { .. } if now >= credential.dead_at() => credential.dead(Proof::Expired, &[]),
        E::Tick { .. }
        | E::Listed
        | E::Proven(_)
        | E::Overdue
        | E::Reopened
        | E::Minted
        | E::MintFailed
        | E::Renewed { .. }
        | E::ReplaceBegan
        | E::Replaced { .. }
        | E::Revoke => credential.same(),
    }
}

fn dead(credential: Credential, event: CredentialEvent) -> Stepped {
    use CredentialEvent as E;
    match event {
        // Back to revoking, never to live: only kinds with an effect get here.
        E::Reopened => Credential {
            proof: None,
            ..credential
        }
        .revoking(),
        E::Tick { .. }
        | E::Listed
        | E::Proven(_)
        | E::Overdue
        | E::Minted
        | E::MintFailed
        | E::Renewed { .. }
        | E::ReplaceBegan
        | E::Replaced { .. }
        | E::Revoke => credential.same(),
    }
}

#[cfg(test)]
mod tests;
