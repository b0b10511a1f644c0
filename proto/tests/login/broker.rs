//! What a broker does: its store moves by `ephor_proto::state::credential::step` only.

use ephor_proto::state::credential::{CredentialEvent, CredentialState, Proof};

use super::devices::{Devices, Ours};
use super::target;
use super::world::{Call, Fence, Issuing, Phase, Record, What, Who, Work, World};

impl Record {
    pub fn must_be_revoked(&self) -> bool {
        self.state == CredentialState::Revoking && !self.given_up
    }
}

fn runs(world: &World, who: Who) -> bool {
    let broker = world.broker(who);
    let may = who == Who::First || broker.in_charge.is_some();
    broker.running && !broker.superseded && may
}

/// The intent and its event are durable; only that gives a permit.
pub fn intent(devices: &Devices, world: &World) -> Option<World> {
    let broker = world.broker(Who::First);
    let idle = broker.issuing == Issuing::Idle && broker.record.is_none();
    if !runs(world, Who::First) || !idle || world.target.late {
        return None;
    }
    let mut next = *world;
    let broker = next.broker_mut(Who::First);
    broker.issuing = Issuing::Permit;
    broker.record = devices.intent.then_some(Record::INTENDED);
    Some(next)
}

/// Asks for the login; again if a reply was lost.
pub fn mint(devices: &Devices, world: &World) -> Option<World> {
    let broker = world.broker(Who::First);
    let intended = broker.record.map(|record| record.state) == Some(CredentialState::Intended);
    let ready = runs(world, Who::First) && world.target.up && broker.issuing == Issuing::Permit;
    (ready && (intended || !devices.intent)).then(|| called(world, Who::First, What::Mint))
}

fn called(world: &World, who: Who, what: What) -> World {
    let mut next = *world;
    next.broker_mut(who).issuing = Issuing::Calling;
    next.calls[who.index()] = Some(Call {
        what,
        epoch: target::epoch(who),
        holding: false,
    });
    next
}

/// The outcome is stored. Of one that was revoked meanwhile the secret is dropped.
pub fn minted(world: &World) -> Option<World> {
    if !runs(world, Who::First) || world.broker(Who::First).issuing != Issuing::Minted {
        return None;
    }
    let mut next = *world;
    let broker = next.broker_mut(Who::First);
    broker.issuing = Issuing::Idle;
    broker.record.get_or_insert(Record::INTENDED);
    next.drive(Who::First, CredentialEvent::Minted);
    Some(next)
}

/// Refused, or nobody can tell: revoked by id. Nothing leaves.
pub fn mint_failed(world: &World) -> Option<World> {
    let failed = matches!(
        world.broker(Who::First).issuing,
        Issuing::Failed | Issuing::Permit
    );
    if !runs(world, Who::First) || !failed {
        return None;
    }
    let mut next = *world;
    next.broker_mut(Who::First).issuing = Issuing::Idle;
    if world.broker(Who::First).record.is_some() {
        next.drive(Who::First, CredentialEvent::MintFailed);
    }
    Some(next)
}

/// An intent without outcome after its deadline counts as maybe live.
pub fn tick(world: &World) -> Option<World> {
    if !runs(world, Who::First) || world.state(Who::First) != Some(CredentialState::Intended) {
        return None;
    }
    let mut next = *world;
    next.drive(Who::First, World::tick());
    Some(next)
}

/// The task ended, the login expired, somebody revoked it: all the same here.
pub fn revoke(world: &World, who: Who) -> Option<World> {
    let usable = world.state(who).is_some_and(CredentialState::is_usable);
    if !runs(world, who) || !usable {
        return None;
    }
    let mut next = *world;
    next.drive(who, CredentialEvent::Revoke);
    Some(next)
}

/// The later expiry is durable before the target hears of it.
pub fn renew(world: &World, who: Who) -> Option<World> {
    let broker = world.broker(who);
    if !runs(world, who) || broker.issuing != Issuing::Idle || world.used.renewed {
        return None;
    }
    let mut next = *world;
    next.used.renewed = true;
    broker.record?;
    let expires_at = Record::LATER;
    next.drive(who, CredentialEvent::Renewed { expires_at });
    let extended = next.broker(who).record != broker.record;
    next.broker_mut(who).issuing = Issuing::Renewed;
    extended.then_some(next)
}

pub fn extend(world: &World, who: Who) -> Option<World> {
    let renewed = world.broker(who).issuing == Issuing::Renewed;
    let ready = runs(world, who) && world.target.up && renewed;
    ready.then(|| called(world, who, What::Extend))
}

/// The evidence is durable.
pub fn prove(devices: &Devices, world: &World, who: Who) -> Option<World> {
    let Work::Clean(at) = world.broker(who).revoking else {
        return None;
    };
    let mut next = runs(world, who).then_some(*world)?;
    next.drive(who, CredentialEvent::Proven(Proof::Dropped));
    let broker = next.broker_mut(who);
    broker.revoking = Work::Idle;
    if let Some(record) = broker.record.as_mut() {
        record.evidence = at;
        record.look_due = devices.second_look;
    }
    Some(next)
}

/// After `authentication_timeout`: by then every login that was on its way has a role, and those that
/// only `pg_locks` showed have a name or are gone.
pub fn census_again(devices: &Devices, world: &World, who: Who) -> Option<World> {
    let due = world
        .broker(who)
        .record
        .is_some_and(|record| record.look_due);
    let early = world.backend.is_some_and(|backend| match backend.phase {
        Phase::Slipping => true,
        Phase::Hidden => devices.waits_for_hidden,
        Phase::Open => false,
    });
    if !due || early || !target::reachable_by(world, who) {
        return None;
    }
    let mut next = *world;
    if target::shows(devices, world) {
        reopen(&mut next, who);
    }
    next.broker_mut(who).record.as_mut()?.look_due = false;
    Some(next)
}

fn reopen(world: &mut World, who: Who) {
    world.drive(who, CredentialEvent::Reopened);
    if let Some(record) = world.broker_mut(who).record.as_mut() {
        record.look_due = false;
    }
}

/// The reconciler: what is at the target by our name or in our table and not held live is
/// revoked, and a target that is another than in the evidence reopens.
pub fn ours(devices: &Devices, world: &World, who: Who) -> Option<World> {
    if !target::reachable_by(world, who) || world.broker(who).issuing != Issuing::Idle {
        return None;
    }
    let named = world.target.role.is_some_and(|role| !role.renamed);
    let mut next = *world;
    match world.broker(who).record {
        None => {
            let row = world.target.fence != Fence::Absent;
            let noted = match devices.ours {
                Ours::FenceRows => row,
                Ours::Roles => row && world.target.role.is_some(),
                Ours::Names => false,
            };
            if !named && !noted {
                return None;
            }
            next.broker_mut(who).record = Some(Record::INTENDED);
            next.drive(who, CredentialEvent::Revoke);
        }
        Some(record) if record.state == CredentialState::Dead => {
            let open = devices.ours != Ours::Names && world.target.fence == Fence::Open;
            let moved = devices.identity && world.target.identity != record.evidence;
            if !named && !open && !moved {
                return None;
            }
            reopen(&mut next, who);
        }
        Some(_) => return None,
    }
    Some(next)
}

/// What others do after some attempts.
pub fn give_up(devices: &Devices, world: &World, who: Who) -> Option<World> {
    let due = world
        .broker(who)
        .record
        .is_some_and(|record| record.must_be_revoked());
    if devices.for_ever || world.target.up || !due {
        return None;
    }
    let mut next = *world;
    let broker = next.broker_mut(who);
    broker.revoking = Work::Idle;
    broker.record.as_mut()?.given_up = true;
    Some(next)
}

/// At start, an intent without outcome is revoked.
pub fn restart(world: &World, who: Who) -> Option<World> {
    let copied = who == Who::First || world.used.copied;
    if world.broker(who).running || !copied {
        return None;
    }
    let mut next = *world;
    next.broker_mut(who).running = true;
    if world.state(who) == Some(CredentialState::Intended) {
        next.drive(who, CredentialEvent::MintFailed);
    }
    Some(next)
}

/// The second broker takes charge: a new epoch in its store, then at the target, then it looks.
pub fn recover(devices: &Devices, world: &World) -> Option<World> {
    let broker = world.broker(Who::Second);
    if !broker.running || broker.in_charge.is_some() || !world.target.up {
        return None;
    }
    let mut next = *world;
    if devices.epoch {
        next.target.epoch = target::epoch(Who::Second);
        if devices.calls_ended {
            target::end_calls(&mut next, target::epoch(Who::Second));
        }
    }
    next.broker_mut(Who::Second).in_charge = Some(world.target.identity);
    if next.state(Who::Second) == Some(CredentialState::Intended) {
        next.drive(Who::Second, CredentialEvent::MintFailed);
    }
    Some(next)
}
