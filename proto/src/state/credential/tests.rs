//! Every state and every event, for a signed kind and for one with an effect.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::CredentialState::{Contained, Dead, Intended, Live, Replacing, Revoking};
use super::*;
use proptest::prelude::*;

const NOW: UnixMillis = UnixMillis::from_millis(1_000_000);
const EXPIRY: UnixMillis = UnixMillis::from_millis(1_100_000);
const LATER: UnixMillis = UnixMillis::from_millis(1_200_000);
const NEVER: CredentialEvent = CredentialEvent::Tick {
    outcome_due: UnixMillis::MAX,
};
const DUE: CredentialEvent = CredentialEvent::Tick { outcome_due: NOW };

const EVENTS: [CredentialEvent; 16] = [
    CredentialEvent::Minted,
    CredentialEvent::MintFailed,
    CredentialEvent::Renewed { expires_at: LATER },
    CredentialEvent::ReplaceBegan,
    CredentialEvent::Replaced { expires_at: LATER },
    CredentialEvent::Revoke,
    CredentialEvent::Listed,
    CredentialEvent::Proven(Proof::Refused),
    CredentialEvent::Proven(Proof::Absent),
    CredentialEvent::Proven(Proof::Expired),
    CredentialEvent::Proven(Proof::Dropped),
    CredentialEvent::Proven(Proof::Wiped),
    CredentialEvent::Overdue,
    CredentialEvent::Reopened,
    NEVER,
    DUE,
];

fn at(kind: Kind, state: CredentialState) -> Credential {
    let proof = (state == Dead).then_some(Proof::Refused);
    Credential {
        kind,
        state,
        expires_at: EXPIRY,
        overdue: false,
        proof,
    }
}

/// The golden table: one row for each state, one letter for each of `EVENTS`:
/// `=` nothing, `!` illegal, else the first letter of the next state
/// (i, l, p for replacing, r, c, d), upper case where there are effects.
const SIGNED: [(CredentialState, &str); 6] = [
    (Intended, "!!===R!!!!!!!!=R"),
    (Live, "!!lp=R!!!!!!!!=="),
    (Replacing, "!!==lR!!!!!!!!=="),
    (Revoking, "!!====C!!!!!R!=="),
    (Contained, "!!=====!!!!!=!=="),
    (Dead, "!!=====!!!!!=!=="),
];
const EFFECT: [(CredentialState, &str); 6] = [
    (Intended, "lR===R!!!!!!!!=R"),
    (Live, "=RLp=R!!!!!!!!=="),
    (Replacing, "=R==LR!!!!!!!!=="),
    (Revoking, "======!dd!ddR==="),
    (Contained, "======!==!======"),
    (Dead, "======!==!===R=="),
];

fn letter(before: Credential, event: CredentialEvent) -> char {
    let Ok((after, effects)) = step(before, event, NOW) else {
        return '!';
    };
    if after == before {
        assert!(
            effects.is_empty(),
            "{before:?} {event:?} changes nothing but has effects"
        );
        return '=';
    }
    let letter = match after.state {
        Intended => 'i',
        Live => 'l',
        Replacing => 'p',
        Revoking => 'r',
        Contained => 'c',
        Dead => 'd',
    };
    if effects.is_empty() {
        letter
    } else {
        letter.to_ascii_uppercase()
    }
}

#[test]
fn every_pair_is_as_in_the_table() {
    for kind in Kind::ALL {
        let table = if kind.is_signed() { SIGNED } else { EFFECT };
        assert_eq!(table.map(|row| row.0), CredentialState::ALL);
        for (state, expected) in table {
            let row: String = EVENTS
                .iter()
                .map(|event| letter(at(kind, state), *event))
                .collect();
            assert_eq!(row, expected, "{kind} {state:?}");
        }
    }
}

#[test]
fn effects_fit_the_kind() {
    let revoke = |kind| {
        step(at(kind, Live), CredentialEvent::Revoke, NOW)
            .unwrap()
            .1
    };
    assert_eq!(
        revoke(Kind::Jwt),
        Effects::of(&[Effect::List, Effect::WipeHost])
    );
    assert_eq!(
        revoke(Kind::Postgres),
        Effects::of(&[Effect::RevokeAtTarget, Effect::WipeHost])
    );
    let listed = step(at(Kind::Jwt, Revoking), CredentialEvent::Listed, NOW)
        .unwrap()
        .1;
    assert_eq!(listed, Effects::of(&[Effect::Prove]));
    let renewed = CredentialEvent::Renewed { expires_at: LATER };
    let (longer, effects) = step(at(Kind::Postgres, Live), renewed, NOW).unwrap();
    assert_eq!(
        (longer.expires_at, effects),
        (LATER, Effects::of(&[Effect::ExtendAtTarget]))
    );
}

#[test]
fn an_intent_starts_where_its_kind_says() {
    for kind in Kind::ALL {
        let expected = if kind.is_signed() { Live } else { Intended };
        assert_eq!(Credential::intended(kind, EXPIRY).state, expected);
    }
}

#[test]
fn expiry_ends_a_signature_and_revokes_an_effect() {
    let after = |credential: Credential, now| step(credential, NEVER, now).unwrap().0;
    let jwt = at(Kind::Jwt, Live);
    assert_eq!(after(jwt, EXPIRY).state, Live, "verifiers grant leeway");
    let dead = after(jwt, jwt.dead_at());
    assert_eq!((dead.state, dead.proof), (Dead, Some(Proof::Expired)));
    let listed = at(Kind::Jwt, Contained);
    assert_eq!(after(listed, EXPIRY).state, Contained);
    assert_eq!(after(listed, listed.dead_at()).proof, Some(Proof::Expired));
    assert_eq!(after(at(Kind::Postgres, Live), EXPIRY).state, Revoking);
    assert_eq!(after(at(Kind::Postgres, Intended), EXPIRY).state, Revoking);
    assert_eq!(
        after(at(Kind::Jwt, Revoking), UnixMillis::MAX).state,
        Revoking
    );
}

#[test]
fn a_renewal_never_shortens_and_never_wakes_the_expired() {
    let live = at(Kind::Jwt, Live);
    let earlier = CredentialEvent::Renewed { expires_at: NOW };
    assert_eq!(step(live, earlier, NOW), Ok((live, Effects::NONE)));
    let late = CredentialEvent::Renewed { expires_at: LATER };
    assert_eq!(step(live, late, EXPIRY), Ok((live, Effects::NONE)));
}

#[test]
fn overdue_is_reported_once_and_cleared_at_the_end() {
    let (flagged, effects) = step(at(Kind::Jwt, Revoking), CredentialEvent::Overdue, NOW).unwrap();
    assert!(flagged.overdue && effects.contains(Effect::ReportOverdue));
    assert_eq!(
        step(flagged, CredentialEvent::Overdue, NOW),
        Ok((flagged, Effects::NONE))
    );
    assert!(
        !step(flagged, CredentialEvent::Listed, NOW)
            .unwrap()
            .0
            .overdue
    );
}

#[test]
fn words_are_those_of_serde() {
    for state in CredentialState::ALL {
        assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        assert_eq!(state.as_str().parse(), Ok(state));
    }
    for proof in Proof::ALL {
        assert_eq!(serde_json::to_value(proof).unwrap(), proof.as_str());
    }
}

fn any_event() -> impl Strategy<Value = CredentialEvent> {
    let time = || (900_000u64..1_400_000).prop_map(UnixMillis::from_millis);
    prop_oneof![
        (0..EVENTS.len()).prop_map(|n| EVENTS[n]),
        time().prop_map(|expires_at| CredentialEvent::Renewed { expires_at }),
        time().prop_map(|expires_at| CredentialEvent::Replaced { expires_at }),
        time().prop_map(|outcome_due| CredentialEvent::Tick { outcome_due }),
    ]
}

proptest! {
    #[test]
    fn never_live_again(
        kind in (0..Kind::ALL.len()).prop_map(|n| Kind::ALL[n]),
        // Times in any order: the clock may step back between two events.
        events in proptest::collection::vec((any_event(), 900_000u64..1_400_000), 0..60),
    ) {
        let mut credential = Credential::intended(kind, EXPIRY);
        let mut ended = false;
        for (event, now) in events {
            let before = credential;
            let now = UnixMillis::from_millis(now);
            let Ok((next, effects)) = step(credential, event, now) else { continue };
            credential = next;
            ended |= matches!(credential.state, Revoking | Contained | Dead);
            prop_assert!(!(ended && credential.state.is_usable()), "{before:?} {event:?}");
            prop_assert!(!(ended && credential.state == Intended));
            prop_assert!(!(ended && credential.expires_at != before.expires_at));
            prop_assert!(credential.expires_at >= before.expires_at);
            prop_assert!(!(ended && effects.contains(Effect::ExtendAtTarget)));
            prop_assert_eq!(credential.proof.is_some(), credential.state == Dead);
            prop_assert!(!credential.overdue || credential.state == Revoking);
        }
    }
}
