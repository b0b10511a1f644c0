//! What the functions in the target do, as one transaction each unless it says otherwise.

use super::devices::{Devices, Exclusion};
use super::world::{Backend, Call, Fence, Issuing, Phase, Role, What, Who, Work, World};

/// The broker that may ask the target something now.
fn asks(world: &World, who: Who) -> bool {
    let broker = world.broker(who);
    let may = who == Who::First || broker.in_charge.is_some();
    broker.running && !broker.superseded && may && world.target.up
}

/// The epoch that the calls of a broker carry.
pub fn epoch(who: Who) -> u8 {
    match who {
        Who::First => 1,
        Who::Second => 2,
    }
}

/// Refuses a lower epoch, keeps a higher one.
fn admits(devices: &Devices, world: &mut World, epoch: u8) -> bool {
    if devices.epoch {
        if epoch < world.target.epoch {
            return false;
        }
        world.target.epoch = epoch;
    }
    true
}

fn answer(world: &mut World, place: usize, issuing: Issuing) {
    world.calls[place] = None;
    if let Some(who) = Who::BOTH.into_iter().find(|who| who.index() == place) {
        world.broker_mut(who).issuing = issuing;
    }
}

fn refuse_epoch(world: &mut World, place: usize) {
    answer(world, place, Issuing::Idle);
    if let Some(who) = Who::BOTH.into_iter().find(|who| who.index() == place) {
        superseded(world, who);
    }
}

fn superseded(world: &mut World, who: Who) {
    let broker = world.broker_mut(who);
    broker.superseded = true;
    broker.issuing = Issuing::Idle;
    broker.revoking = Work::Idle;
}

/// Whether another call keeps this one waiting.
fn waits(devices: &Devices, world: &World, for_mint: bool) -> bool {
    let held = world.calls.iter().flatten().any(|call| call.holding);
    match devices.exclusion {
        Exclusion::FenceRow => held,
        Exclusion::AdvisoryLock => held || world.target.advisory_held,
        Exclusion::AdvisoryLockElsewhere => held && for_mint,
        Exclusion::Nothing => false,
    }
}

/// `mint` up to the point where it holds the fence row and has checked epoch, fence and deadline.
pub fn mint_takes_row(devices: &Devices, world: &World, place: usize) -> Option<World> {
    let call = world.calls[place]?;
    if call.what != What::Mint || call.holding || waits(devices, world, true) {
        return None;
    }
    let mut next = *world;
    let there = world.target.role.is_some();
    let refused = (devices.deadline && world.target.late)
        || match world.target.fence {
            Fence::Absent => false,
            // Made before; if somebody dropped it, it is not made again.
            Fence::Open => !there,
            Fence::Closed => true,
        };
    if !admits(devices, &mut next, call.epoch) {
        refuse_epoch(&mut next, place);
    } else if refused {
        answer(&mut next, place, Issuing::Failed);
    } else if there {
        answer(&mut next, place, Issuing::Minted);
    } else {
        next.calls[place] = Some(Call {
            holding: true,
            ..call
        });
    }
    Some(next)
}

/// The role is there.
pub fn mint_commits(devices: &Devices, world: &World, place: usize) -> Option<World> {
    world.calls[place].filter(|call| call.holding)?;
    let mut next = *world;
    next.target.role = Some(Role {
        login: true,
        renamed: false,
    });
    if next.target.fence == Fence::Absent && devices.exclusion != Exclusion::Nothing {
        next.target.fence = Fence::Open;
    }
    next.used.made = true;
    next.broken.unrecorded |= unrecorded(devices, world);
    answer(&mut next, place, Issuing::Minted);
    Some(next)
}

/// The store in charge does not know of the login that is made now. A target that went back in
/// time has forgotten who is in charge until that broker sees it.
fn unrecorded(devices: &Devices, world: &World) -> bool {
    let charge = world.broker(world.in_charge());
    let forgotten = charge
        .in_charge
        .is_some_and(|at| at != world.target.identity);
    charge.record.is_none() && !(devices.identity && forgotten)
}

/// `extend`: a later VALID UNTIL, and nothing else.
pub fn extend_runs(devices: &Devices, world: &World, place: usize) -> Option<World> {
    let call = world.calls[place]?;
    if call.what != What::Extend || waits(devices, world, true) {
        return None;
    }
    let mut next = *world;
    if !admits(devices, &mut next, call.epoch) {
        refuse_epoch(&mut next, place);
        return Some(next);
    }
    if let Some(role) = next.target.role.as_mut()
        && !devices.extend_fenced
    {
        role.login = true;
    }
    answer(&mut next, place, Issuing::Idle);
    Some(next)
}

fn found(devices: &Devices, world: &World) -> Option<Role> {
    let by_oid = devices.by_oid && world.target.fence != Fence::Absent;
    world.target.role.filter(|role| by_oid || !role.renamed)
}

/// Fence and NOLOGIN in one transaction. Waits for the fence row and for the role's own row.
pub fn fence(devices: &Devices, world: &World, who: Who) -> Option<World> {
    let broker = world.broker(who);
    let due = broker.record.is_some_and(|record| record.must_be_revoked());
    let blocked =
        waits(devices, world, false) || world.backend.is_some_and(|backend| backend.holds_row);
    if !asks(world, who) || !due || broker.revoking != Work::Idle || blocked {
        return None;
    }
    let mut next = *world;
    if !admits(devices, &mut next, epoch(who)) {
        superseded(&mut next, who);
        return Some(next);
    }
    let role = found(devices, world);
    if devices.exclusion != Exclusion::Nothing {
        next.target.fence = Fence::Closed;
    }
    if let Some(role) = role
        && devices.nologin_first
    {
        next.target.role = Some(Role {
            login: false,
            ..role
        });
    }
    next.broker_mut(who).revoking = Work::Fenced(world.target.identity);
    Some(next)
}

/// `fence` or `drop_role` waited for `lock_timeout`: whoever holds the row is ended, be it a paused
/// creator or the tenant.
pub fn end_holders(devices: &Devices, world: &World, who: Who) -> Option<World> {
    let broker = world.broker(who);
    let due = broker.record.is_some_and(|record| record.must_be_revoked());
    let waiting = due && matches!(broker.revoking, Work::Idle | Work::Ended(_));
    if !devices.holders_ended || !asks(world, who) || !waiting {
        return None;
    }
    let mut next = *world;
    if next.backend.is_some_and(|backend| backend.holds_row) {
        next.backend = None;
    }
    if devices.exclusion == Exclusion::FenceRow {
        end_calls(&mut next, u8::MAX);
    }
    Some(next)
}

/// Ends transactions of ours that are under way and carry a lower epoch.
pub fn end_calls(world: &mut World, below: u8) {
    for place in 0..world.calls.len() {
        if world.calls[place].is_some_and(|call| call.holding && call.epoch < below) {
            answer(world, place, Issuing::Failed);
        }
    }
}

/// `pg_terminate_backend` by role, and for those that only `pg_locks` shows: it is refused for those
/// of others, and for one that has no role yet.
pub fn end_sessions(devices: &Devices, world: &World, who: Who) -> Option<World> {
    let Work::Fenced(at) = world.broker(who).revoking else {
        return None;
    };
    let mut next = asks(world, who).then_some(*world)?;
    next.backend = match world.backend {
        Some(backend) => {
            // The right to end it comes from the role, so it goes with that.
            let unattributed = Some(Backend {
                missed: true,
                ..backend
            });
            match backend.phase {
                Phase::Slipping => unattributed,
                Phase::Hidden if !devices.hidden => Some(backend),
                Phase::Hidden if found(devices, world).is_none() => unattributed,
                Phase::Hidden | Phase::Open => None,
            }
        }
        None => None,
    };
    next.broker_mut(who).revoking = Work::Ended(at);
    Some(next)
}

/// A session of it in `pg_stat_activity`, by oid: it outlives its role. Once the role is dropped
/// nobody can tell whose a hidden one is.
fn session(world: &World) -> bool {
    world
        .backend
        .is_some_and(|backend| backend.phase == Phase::Open)
}

/// DROP OWNED and DROP ROLE. Without NOLOGIN committed first, this is where all is committed,
/// after the census.
pub fn drop_role(devices: &Devices, world: &World, who: Who) -> Option<World> {
    let (at, last) = match (world.broker(who).revoking, devices.nologin_first) {
        (Work::Ended(at), true) => (at, false),
        (Work::Dropped(at), false) => (at, true),
        _ => return None,
    };
    let blocked = world.backend.is_some_and(|backend| backend.holds_row);
    let mut next = (asks(world, who) && !blocked).then_some(*world)?;
    if found(devices, world).is_some() {
        next.target.role = None;
    }
    next.broker_mut(who).revoking = if last {
        Work::Clean(at)
    } else {
        Work::Dropped(at)
    };
    Some(next)
}

/// Nothing of it is left, at the same target that holds the fence; else from the beginning.
pub fn census(devices: &Devices, world: &World, who: Who) -> Option<World> {
    let (at, last) = match (world.broker(who).revoking, devices.nologin_first) {
        (Work::Dropped(at), true) => (at, true),
        (Work::Ended(at), false) => (at, false),
        _ => return None,
    };
    let mut next = asks(world, who).then_some(*world)?;
    let moved = devices.identity && world.target.identity != at;
    let left = last && found(devices, world).is_some();
    next.broker_mut(who).revoking = match (moved || left || session(world), last) {
        (true, _) => Work::Idle,
        (false, true) => Work::Clean(at),
        (false, false) => Work::Dropped(at),
    };
    Some(next)
}

/// What a second look, or the reconciler, sees of a dead one.
pub fn shows(devices: &Devices, world: &World) -> bool {
    session(world) || found(devices, world).is_some()
}

/// Rows of what was revoked go when no creator can be late any more and nothing of it is left; a
/// session on a standby counts, see the limits in ADR 9.
pub fn prune(world: &World) -> Option<World> {
    let target = &world.target;
    let over = target.late && target.fence == Fence::Closed && target.role.is_none();
    if !target.up || !over || world.backend.is_some() || world.standby {
        return None;
    }
    let mut next = *world;
    next.target.fence = Fence::Absent;
    Some(next)
}

pub fn late(world: &World) -> Option<World> {
    let mut next = *world;
    next.target.late = true;
    Some(next)
}

pub fn start(world: &World) -> Option<World> {
    let mut next = *world;
    next.target.up = true;
    Some(next)
}

/// For the broker's steps.
pub fn reachable_by(world: &World, who: Who) -> bool {
    asks(world, who)
}
