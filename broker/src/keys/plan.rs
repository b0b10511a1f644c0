//! What is to be done about the keys now: a pure function of their rows, the schedule and the time.
//!
//! A key is published before it is used and trusted after it was, so nobody ever meets one that
//! they could not know. Nothing here touches a key.

use ephor_proto::time::UnixMillis;

use super::state::{KeyKind, KeyState};
use crate::limits;

/// When keys follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// How long a token key or log key is published before it is used, in milliseconds.
    pub lead: u64,
    /// The same for a CA.
    pub ca_lead: u64,
    /// How long a token key is used, in milliseconds.
    pub token: u64,
    /// How long a CA issues, in milliseconds; at most two thirds of its life.
    pub ca: u64,
    /// How long a CA for databases is published before it is used, in milliseconds: people take it to
    /// the servers.
    pub database_lead: u64,
    /// How long a CA for databases issues, in milliseconds.
    pub database: u64,
    /// How long a log key signs, in milliseconds; `None`: until someone rotates it.
    pub log: Option<u64>,
    /// How long a log key signs beside its successor, in milliseconds.
    pub log_overlap: u64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            lead: limits::KEY_LEAD_SECONDS * 1000,
            ca_lead: limits::CA_LEAD_SECONDS * 1000,
            token: limits::TOKEN_KEY_SECONDS * 1000,
            ca: limits::CA_ISSUING_SECONDS * 1000,
            database_lead: limits::DATABASE_CA_LEAD_SECONDS * 1000,
            database: limits::DATABASE_CA_ISSUING_SECONDS * 1000,
            log: None,
            log_overlap: limits::LOG_OVERLAP_SECONDS * 1000,
        }
    }
}

impl Schedule {
    /// How long a key of this kind is published before it is used, in milliseconds.
    #[must_use]
    pub fn lead(&self, kind: KeyKind) -> u64 {
        match kind {
            KeyKind::Ca => self.ca_lead,
            KeyKind::Database => self.database_lead,
            KeyKind::Token | KeyKind::Log => self.lead,
        }
    }

    fn period(&self, kind: KeyKind) -> Option<u64> {
        match kind {
            KeyKind::Ca => Some(self.ca),
            KeyKind::Token => Some(self.token),
            KeyKind::Log => self.log,
            KeyKind::Database => Some(self.database),
        }
    }

    /// How long a verifier may go on with its copy of the published keys, in seconds: a third of
    /// the lead, so that a copy is renewed at least twice before a new key is used.
    #[must_use]
    pub fn refresh_hint_seconds(&self) -> u64 {
        (self.lead / 3000).clamp(1, limits::KEYS_REFRESH_SECONDS)
    }

    /// When this version becomes active, if it is prepared.
    #[must_use]
    pub fn active_from(&self, key: &Held) -> UnixMillis {
        key.since.saturating_add_millis(self.lead(key.kind))
    }

    /// When the successor of this version, if it is active, becomes active.
    #[must_use]
    pub fn due(&self, key: &Held) -> Option<UnixMillis> {
        // A certificate that was signed elsewhere is followed by one that is signed elsewhere.
        let period = self.period(key.kind).filter(|_| !key.is_from_elsewhere)?;
        let due = key.since.saturating_add_millis(period);
        let ends = key.ends.map(|ends| {
            let life = ends.millis_since(key.since);
            key.since.saturating_add_millis(life / 3 * 2)
        });
        Some(ends.map_or(due, |ends| due.min(ends)))
    }
}

/// One version of a key, as far as planning goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What it is for.
    pub kind: KeyKind,
    /// Which version.
    pub version: u32,
    /// Where it is in its life.
    pub state: KeyState,
    /// Since when.
    pub since: UnixMillis,
    /// Of a retired key: until when it is trusted; `None` until that was found out.
    pub until: Option<UnixMillis>,
    /// End of its certificate.
    pub ends: Option<UnixMillis>,
    /// Whether its certificate was signed elsewhere.
    pub is_from_elsewhere: bool,
}

/// One thing to do; each is one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make and publish the next one.
    Prepare(KeyKind),
    /// Use this prepared one from now on; the active one retires.
    Activate(KeyKind, u32),
    /// Find out until when this retired one is needed.
    Settle(KeyKind, u32),
    /// Trust this one no longer.
    Destroy(KeyKind, u32),
}

/// What is due at `now`, in the order in which it is to be done.
#[must_use]
pub fn plan(keys: &[Held], schedule: &Schedule, now: UnixMillis) -> Vec<Step> {
    let mut steps = Vec::new();
    for kind in KeyKind::ALL {
        let of = |state| {
            keys.iter()
                .filter(move |key| key.kind == kind && key.state == state)
        };
        for key in of(KeyState::Retired) {
            steps.extend(after_use(key, now));
        }
        match of(KeyState::Prepared).min_by_key(|key| key.version) {
            Some(next) if now >= schedule.active_from(next) => {
                steps.push(Step::Activate(kind, next.version));
            }
            Some(_) => {}
            None => {
                let lead = schedule.lead(kind);
                let due = of(KeyState::Active).find_map(|key| schedule.due(key));
                if due.is_some_and(|due| now.saturating_add_millis(lead) >= due) {
                    steps.push(Step::Prepare(kind));
                }
            }
        }
    }
    steps
}

fn after_use(key: &Held, now: UnixMillis) -> Option<Step> {
    let settled = key.since.saturating_add_millis(limits::KEY_SETTLE_MILLIS);
    match key.until {
        None if now >= settled => Some(Step::Settle(key.kind, key.version)),
        Some(until) if now >= until => Some(Step::Destroy(key.kind, key.version)),
        None | Some(_) => None,
    }
}

/// Until when a retired key is needed, given when the last thing that may be signed with it expires.
#[must_use]
pub fn needed_until(
    key: &Held,
    schedule: &Schedule,
    last_expiry: UnixMillis,
    now: UnixMillis,
) -> UnixMillis {
    let leeway = limits::KEY_LEEWAY_MILLIS;
    match key.kind {
        KeyKind::Ca | KeyKind::Token | KeyKind::Database => {
            let needed = last_expiry.max(now).saturating_add_millis(leeway);
            key.ends.map_or(needed, |ends| needed.min(ends))
        }
        KeyKind::Log => key.since.saturating_add_millis(schedule.log_overlap),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;
    const START: u64 = 1_800_000_000_000;

    fn at(millis: u64) -> UnixMillis {
        UnixMillis::from_millis(START + millis)
    }

    fn held(kind: KeyKind, version: u32, state: KeyState, since: u64) -> Held {
        Held {
            kind,
            version,
            state,
            since: at(since),
            until: None,
            ends: None,
            is_from_elsewhere: false,
        }
    }

    fn schedule() -> Schedule {
        Schedule {
            lead: 900_000,
            ca_lead: DAY,
            token: 30 * DAY,
            ca: 240 * DAY,
            database_lead: 30 * DAY,
            database: 3 * 365 * DAY,
            log: None,
            log_overlap: 30 * DAY,
        }
    }

    /// Keys, time, steps: one row a rule.
    #[test]
    fn what_is_due() {
        use KeyKind::{Ca, Log, Token};
        use KeyState::{Active, Destroyed, Prepared, Requested, Retired};
        let until = |key: Held, until: u64| Held {
            until: Some(at(until)),
            ..key
        };
        let ends = |key: Held, ends: u64| Held {
            ends: Some(at(ends)),
            ..key
        };
        let active = |kind| held(kind, 1, Active, 0);
        let elsewhere = Held {
            is_from_elsewhere: true,
            ..ends(active(Ca), 300 * DAY)
        };
        let settle = limits::KEY_SETTLE_MILLIS;
        let lead = 900_000;
        let rows: Vec<(&str, Vec<Held>, u64, Vec<Step>)> = vec![
            (
                "nothing at first",
                vec![active(Ca), active(Token), active(Log)],
                0,
                vec![],
            ),
            (
                "not before the lead",
                vec![active(Token)],
                30 * DAY - lead - 1,
                vec![],
            ),
            (
                "published ahead",
                vec![active(Token)],
                30 * DAY - lead,
                vec![Step::Prepare(Token)],
            ),
            (
                "late is due",
                vec![active(Token)],
                99 * DAY,
                vec![Step::Prepare(Token)],
            ),
            (
                "one successor",
                vec![active(Token), held(Token, 2, Prepared, 99)],
                lead + 98,
                vec![],
            ),
            (
                "used after its lead",
                vec![active(Token), held(Token, 2, Prepared, 99)],
                lead + 99,
                vec![Step::Activate(Token, 2)],
            ),
            (
                "a late one still gets its whole lead",
                vec![active(Token), held(Token, 2, Prepared, 99 * DAY)],
                99 * DAY + lead - 1,
                vec![],
            ),
            ("a log key stays", vec![active(Log)], 9_999 * DAY, vec![]),
            (
                "a log key that someone prepared goes on",
                vec![active(Log), held(Log, 2, Prepared, 0)],
                lead,
                vec![Step::Activate(Log, 2)],
            ),
            (
                "a CA has its own lead",
                vec![active(Ca)],
                239 * DAY,
                vec![Step::Prepare(Ca)],
            ),
            (
                "a CA for databases has a longer one",
                vec![held(KeyKind::Database, 1, Active, 0)],
                (3 * 365 - 30) * DAY,
                vec![Step::Prepare(KeyKind::Database)],
            ),
            (
                "and is not used before people can have copied it",
                vec![
                    held(KeyKind::Database, 1, Active, 0),
                    held(KeyKind::Database, 2, Prepared, 0),
                ],
                30 * DAY - 1,
                vec![],
            ),
            (
                "a short CA is followed after two thirds",
                vec![ends(active(Ca), 30 * DAY)],
                19 * DAY,
                vec![Step::Prepare(Ca)],
            ),
            (
                "and not before",
                vec![ends(active(Ca), 30 * DAY)],
                19 * DAY - 1,
                vec![],
            ),
            (
                "no root of ours follows another's",
                vec![elsewhere.clone()],
                299 * DAY,
                vec![],
            ),
            (
                "what is being signed elsewhere is nothing yet",
                vec![elsewhere, held(Ca, 2, Requested, 0)],
                299 * DAY,
                vec![],
            ),
            (
                "work in flight ends first",
                vec![held(Token, 1, Retired, 0)],
                settle - 1,
                vec![],
            ),
            (
                "then its end is found",
                vec![held(Token, 1, Retired, 0)],
                settle,
                vec![Step::Settle(Token, 1)],
            ),
            (
                "trusted until then",
                vec![until(held(Ca, 1, Retired, 0), DAY)],
                DAY - 1,
                vec![],
            ),
            (
                "and no longer",
                vec![until(held(Ca, 1, Retired, 0), DAY)],
                DAY,
                vec![Step::Destroy(Ca, 1)],
            ),
            (
                "gone is gone",
                vec![held(Ca, 1, Destroyed, 0)],
                9_999 * DAY,
                vec![],
            ),
        ];
        for (name, keys, time, wanted) in rows {
            assert_eq!(plan(&keys, &schedule(), at(time)), wanted, "{name}");
        }
    }

    /// Two years, minute by minute, by nothing but the plan.
    #[test]
    fn a_verifier_with_a_stale_copy_always_knows_the_key_in_use() {
        let schedule = schedule();
        let hint = schedule.refresh_hint_seconds() * 1000;
        assert_eq!(hint, 300_000);
        let mut keys = vec![held(KeyKind::Token, 1, KeyState::Active, 0)];
        let mut copy = (0, vec![1]);
        let mut rotated = 0;
        for minute in 0..2 * 365 * 24 * 60 {
            let now = minute * 60_000;
            // A verifier fetches as rarely as it is allowed to.
            if now >= copy.0 + hint {
                let published = keys.iter().filter(|key| key.state.is_trusted());
                copy = (now, published.map(|key| key.version).collect());
            }
            for step in plan(&keys, &schedule, at(now)) {
                match step {
                    Step::Prepare(kind) => {
                        let version = keys.len() as u32 + 1;
                        keys.push(held(kind, version, KeyState::Prepared, now));
                    }
                    Step::Activate(_, version) => {
                        rotated += 1;
                        for key in &mut keys {
                            if key.state == KeyState::Active {
                                (key.state, key.since) = (KeyState::Retired, at(now));
                            }
                            if key.version == version {
                                (key.state, key.since) = (KeyState::Active, at(now));
                            }
                        }
                    }
                    Step::Settle(_, version) => {
                        let key = keys.iter_mut().find(|key| key.version == version).unwrap();
                        let last = at(now + 3_600_000);
                        key.until = Some(needed_until(key, &schedule, last, at(now)));
                    }
                    Step::Destroy(_, version) => {
                        let key = keys.iter_mut().find(|key| key.version == version).unwrap();
                        assert!(at(now) >= key.since.saturating_add_millis(3_600_000));
                        key.state = KeyState::Destroyed;
                    }
                }
            }
            let active: Vec<_> = keys
                .iter()
                .filter(|key| key.state == KeyState::Active)
                .collect();
            assert_eq!(active.len(), 1);
            assert!(copy.1.contains(&active[0].version), "minute {minute}");
        }
        assert_eq!(rotated, 2 * 365 / 30);
        let trusted = keys.iter().filter(|key| key.state.is_trusted()).count();
        assert!(trusted <= 2, "{trusted}");
    }

    #[test]
    fn a_copy_is_renewed_twice_within_the_lead() {
        for (lead, hint) in [(3_000, 1), (9_000, 3), (900_000, 300), (DAY, 300), (1, 1)] {
            let schedule = Schedule { lead, ..schedule() };
            assert_eq!(schedule.refresh_hint_seconds(), hint, "{lead}");
        }
    }
}
