//! What there is: one credential, two brokers with a store each, the target, the tenant's
//! backend. Everything is small and `Copy`: the checker makes hundreds of thousands of these.

use ephor_proto::kind::Kind;
use ephor_proto::state::credential::{Credential, CredentialEvent, CredentialState, Proof, step};
use ephor_proto::time::UnixMillis;

/// When an outcome must be there, and until when the target makes the login.
const OUTCOME_DUE: UnixMillis = UnixMillis::from_millis(10_000);

/// One broker or the other. The second is a process over a copy of the first one's store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Who {
    First,
    Second,
}

impl Who {
    pub const BOTH: [Self; 2] = [Self::First, Self::Second];

    pub const fn index(self) -> usize {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct World {
    pub brokers: [Broker; 2],
    pub target: Target,
    /// What the target was asked and has not answered: by the first broker, by the second, and
    /// by one that died or lost its connection. Nobody waits for the last.
    pub calls: [Option<Call>; 3],
    /// The tenant's backend on the primary.
    pub backend: Option<Backend>,
    /// The tenant has a session on a standby that no policy lists.
    pub standby: bool,
    pub logins_left: u8,
    pub faults_left: u8,
    pub used: Used,
    pub broken: Broken,
    /// Nothing more happens unless something breaks. Properties of the end look here.
    pub at_rest: bool,
}

/// Single faults, so that none happens twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Used {
    pub copied: bool,
    pub stopped: bool,
    pub dba: bool,
    pub renewed: bool,
    /// The role was there at some time, so an earlier state of the target may hold it.
    pub made: bool,
}

/// What must never be seen, remembered when it was.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Broken {
    pub unrecorded: bool,
    pub revived: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Broker {
    pub running: bool,
    /// Told by the target that a newer epoch is in charge: it asks nothing more.
    pub superseded: bool,
    /// Of the second one: the identity of the target at which it raised the epoch.
    pub in_charge: Option<u8>,
    /// In its store; what follows is in memory and lost in a crash.
    pub record: Option<Record>,
    pub issuing: Issuing,
    pub revoking: Work,
}

/// The row of the credential.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    pub state: CredentialState,
    pub renewed: bool,
    /// The identity (system id, timeline) in the evidence of a dead one.
    pub evidence: u8,
    /// `census_again` is due.
    pub look_due: bool,
    pub given_up: bool,
}

/// Where issuing or renewing is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Issuing {
    Idle,
    /// The intent is durable; also: the call's fate is unknown and it may be repeated.
    Permit,
    Calling,
    Minted,
    Failed,
    /// The new expiry is durable, the target does not know it.
    Renewed,
}

/// How far a revocation came, with the identity of the target that its fence is at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Work {
    Idle,
    Fenced(u8),
    Ended(u8),
    Dropped(u8),
    Clean(u8),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    pub up: bool,
    /// Changes when it goes back in time or another server takes its place.
    pub identity: u8,
    pub epoch: u8,
    pub fence: Fence,
    pub role: Option<Role>,
    /// Its clock is past the intent's deadline.
    pub late: bool,
    /// A tenant has the advisory lock of this credential, for ever.
    pub advisory_held: bool,
}

/// The credential's row in the fence table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fence {
    Absent,
    Open,
    Closed,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Role {
    pub login: bool,
    pub renamed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Call {
    pub what: What,
    pub epoch: u8,
    /// Its transaction has checked, holds the fence row and has not committed.
    pub holding: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum What {
    Mint,
    Extend,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Backend {
    pub phase: Phase,
    /// It had no name yet when sessions were ended: what `census_again` is for.
    pub missed: bool,
    /// It holds its own row of `pg_authid` in an open transaction.
    pub holds_row: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Phase {
    /// Past the check of LOGIN, not yet attributed to a role.
    Slipping,
    /// In `pg_locks`, not in `pg_stat_activity`; whoever may end it can tell whose it is.
    Hidden,
    Open,
}

impl World {
    pub const fn new(logins: u8, faults: u8) -> Self {
        const BROKER: Broker = Broker {
            running: true,
            superseded: false,
            in_charge: None,
            record: None,
            issuing: Issuing::Idle,
            revoking: Work::Idle,
        };
        Self {
            brokers: [
                BROKER,
                Broker {
                    running: false,
                    ..BROKER
                },
            ],
            target: Target {
                up: true,
                identity: 0,
                epoch: 1,
                fence: Fence::Absent,
                role: None,
                late: false,
                advisory_held: false,
            },
            calls: [None; 3],
            backend: None,
            standby: false,
            logins_left: logins,
            faults_left: faults,
            used: Used {
                copied: false,
                stopped: false,
                dba: false,
                renewed: false,
                made: false,
            },
            broken: Broken {
                unrecorded: false,
                revived: false,
            },
            at_rest: false,
        }
    }

    pub fn broker(&self, who: Who) -> &Broker {
        &self.brokers[who.index()]
    }

    pub fn broker_mut(&mut self, who: Who) -> &mut Broker {
        &mut self.brokers[who.index()]
    }

    /// Whose store counts: the second's once it has recovered.
    pub fn in_charge(&self) -> Who {
        match self.brokers[1].in_charge {
            Some(_) => Who::Second,
            None => Who::First,
        }
    }

    pub fn resting(&self) -> Self {
        Self {
            at_rest: true,
            ..*self
        }
    }

    /// Somebody can use the login, or has a session of it that may write.
    pub fn can_act(&self) -> bool {
        self.backend.is_some() || self.target.role.is_some_and(|role| role.login)
    }

    pub fn state(&self, who: Who) -> Option<CredentialState> {
        self.broker(who).record.map(|record| record.state)
    }

    /// Moves a record by the machine that the broker uses. An illegal event is a defect and
    /// fails the test.
    pub fn drive(&mut self, who: Who, event: CredentialEvent) {
        let now = if self.target.late { 11_000 } else { 1_000 };
        let record = self.broker(who).record.expect("a record");
        let (next, _) = step(record.machine(), event, UnixMillis::from_millis(now)).unwrap();
        let ended = matches!(
            record.state,
            CredentialState::Revoking | CredentialState::Contained | CredentialState::Dead
        );
        self.broken.revived |= ended && next.state.is_usable();
        self.broker_mut(who).record = Some(Record {
            state: next.state,
            renewed: next.expires_at > Record::EXPIRES,
            ..record
        });
    }

    pub const fn tick() -> CredentialEvent {
        CredentialEvent::Tick {
            outcome_due: OUTCOME_DUE,
        }
    }
}

impl Record {
    const EXPIRES: UnixMillis = UnixMillis::from_millis(60_000);
    pub const LATER: UnixMillis = UnixMillis::from_millis(120_000);

    pub const INTENDED: Self = Self {
        state: CredentialState::Intended,
        renewed: false,
        evidence: 0,
        look_due: false,
        given_up: false,
    };

    fn machine(self) -> Credential {
        let expires_at = if self.renewed {
            Self::LATER
        } else {
            Self::EXPIRES
        };
        Credential {
            state: self.state,
            proof: (self.state == CredentialState::Dead).then_some(Proof::Dropped),
            ..Credential::intended(Kind::Postgres, expires_at)
        }
    }
}
