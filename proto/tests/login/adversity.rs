//! The tenant, who is hostile; the administrator of the database, who does not ask; and what
//! breaks. A fault takes one from the budget, so that all mixtures of a few are tried.

use super::world::{Backend, Fence, Issuing, Phase, Role, What, Who, Work, World};

fn fault(world: &World) -> Option<World> {
    let faults_left = world.faults_left.checked_sub(1)?;
    Some(World {
        faults_left,
        ..*world
    })
}

/// Past the password and the check of LOGIN. Worst case: the password is known as soon as the
/// role is there, and VALID UNTIL stops nobody.
pub fn login(world: &World) -> Option<World> {
    let role = world.target.role?;
    if !world.target.up || !role.login || world.backend.is_some() {
        return None;
    }
    Some(World {
        logins_left: world.logins_left.checked_sub(1)?,
        backend: Some(Backend {
            phase: Phase::Slipping,
            missed: false,
            holds_row: false,
        }),
        ..*world
    })
}

fn phase(world: &World, from: Phase, to: Phase) -> Option<World> {
    let backend = world.backend.filter(|backend| backend.phase == from)?;
    Some(World {
        backend: Some(Backend {
            phase: to,
            ..backend
        }),
        ..*world
    })
}

/// It has the role's oid now, which makes it visible in `pg_locks` and possible to end.
pub fn attributed(world: &World) -> Option<World> {
    phase(world, Phase::Slipping, Phase::Hidden)
}

/// In `pg_stat_activity`; `post_auth_delay` puts this off for as long as the tenant likes.
pub fn shown(world: &World) -> Option<World> {
    phase(world, Phase::Hidden, Phase::Open)
}

/// On a standby that no policy lists: evidence is partial there.
pub fn login_on_standby(world: &World) -> Option<World> {
    if world.standby || !world.target.role?.login {
        return None;
    }
    Some(World {
        standby: true,
        ..fault(world)?
    })
}

/// `BEGIN; ALTER ROLE CURRENT_USER PASSWORD …` and no commit.
pub fn lock_own_row(world: &World) -> Option<World> {
    let backend = world
        .backend
        .filter(|backend| backend.phase == Phase::Open)?;
    if backend.holds_row {
        return None;
    }
    Some(World {
        backend: Some(Backend {
            holds_row: true,
            ..backend
        }),
        ..fault(world)?
    })
}

/// Of another session of the tenant, which is not the broker's to end.
pub fn take_advisory_lock(world: &World) -> Option<World> {
    let mut next = fault(world)?;
    next.target.advisory_held = true;
    (!world.target.advisory_held).then_some(next)
}

/// `kill -9` of a broker. The target goes on with what it was asked.
pub fn crash(world: &World, who: Who) -> Option<World> {
    if !world.broker(who).running {
        return None;
    }
    let mut next = fault(world)?;
    abandon(&mut next, who)?;
    let broker = next.broker_mut(who);
    broker.running = false;
    broker.issuing = Issuing::Idle;
    broker.revoking = Work::Idle;
    Some(next)
}

/// The connection is lost: the call may never have arrived, may be under way, may be done.
pub fn lose_reply(world: &World, who: Who) -> Option<World> {
    let call = world.calls[who.index()]?;
    let mut next = fault(world)?;
    abandon(&mut next, who)?;
    next.broker_mut(who).issuing = match call.what {
        What::Mint => Issuing::Permit,
        What::Extend => Issuing::Idle,
    };
    Some(next)
}

fn abandon(world: &mut World, who: Who) -> Option<()> {
    let Some(call) = world.calls[who.index()].take() else {
        return Some(());
    };
    if world.calls[2].is_some() {
        return None;
    }
    world.calls[2] = Some(call);
    Some(())
}

/// Somebody starts a second broker over a copy of the store as it is now.
pub fn copy(world: &World) -> Option<World> {
    if world.used.copied {
        return None;
    }
    let mut next = fault(world)?;
    next.used.copied = true;
    next.brokers[1].running = true;
    next.brokers[1].record = world.brokers[0].record;
    Some(next)
}

/// The server stops: sessions, calls and what was not committed are gone.
fn severed(world: &mut World) {
    world.backend = None;
    for who in Who::BOTH {
        if let Some(call) = world.calls[who.index()] {
            world.broker_mut(who).issuing = match call.what {
                What::Mint => Issuing::Permit,
                What::Extend => Issuing::Idle,
            };
        }
    }
    world.calls = [None; 3];
}

pub fn stop(world: &World) -> Option<World> {
    if world.used.stopped {
        return None;
    }
    let mut next = fault(world)?;
    next.used.stopped = true;
    next.target.up = false;
    severed(&mut next);
    Some(next)
}

/// `DROP ROLE` by hand; an open session of the role goes on.
pub fn dba_drops(world: &World) -> Option<World> {
    if world.used.dba {
        return None;
    }
    world.target.role?;
    let mut next = fault(world)?;
    next.used.dba = true;
    next.target.role = None;
    Some(next)
}

pub fn dba_renames(world: &World) -> Option<World> {
    if world.used.dba {
        return None;
    }
    let role = world.target.role?;
    let mut next = fault(world)?;
    next.used.dba = true;
    next.target.role = Some(Role {
        renamed: true,
        ..role
    });
    Some(next)
}

/// The target is restored to a state before the mint (`None`), or to one in which the role is
/// there, by its own or by another name. The fence is older, and so is the epoch.
pub fn restore(world: &World, renamed: Option<bool>) -> Option<World> {
    if world.target.identity > 0 || (renamed.is_some() && !world.used.made) {
        return None;
    }
    if renamed == Some(true) && !world.used.dba {
        return None;
    }
    let mut next = fault(world)?;
    severed(&mut next);
    next.target.up = true;
    next.target.identity = 1;
    next.target.epoch = 1;
    next.target.role = renamed.map(|renamed| Role {
        login: true,
        renamed,
    });
    next.target.fence = match renamed {
        Some(_) => Fence::Open,
        None => Fence::Absent,
    };
    Some(next)
}

/// A standby that has everything takes over, and the tenant's session there with it.
pub fn fail_over(world: &World) -> Option<World> {
    if world.target.identity > 0 {
        return None;
    }
    let mut next = fault(world)?;
    severed(&mut next);
    next.target.up = true;
    next.target.identity = 1;
    next.standby = false;
    next.backend = world.standby.then_some(Backend {
        phase: Phase::Open,
        missed: false,
        holds_row: false,
    });
    Some(next)
}
