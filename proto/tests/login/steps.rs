//! Every step there is, by the name of the function that does it. A step is atomic; a broker
//! that is paused is one whose next step is not taken yet, so every pause is in the model.

use super::devices::Devices;
use super::world::{Who, World};
use super::{adversity, broker, target};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[rustfmt::skip]
pub enum Step {
    // A broker.
    Intent, Mint, Minted, MintFailed, Tick, Revoke(Who),
    Renew(Who), Extend(Who),
    Fence(Who), EndHolders(Who), EndSessions(Who), DropRole(Who), Census(Who), Prove(Who),
    CensusAgain(Who), Ours(Who), GiveUp(Who),
    Restart(Who), Recover,
    // The target, for the call in this place.
    MintTakesRow(usize), MintCommits(usize), ExtendRuns(usize), Prune, Late, Start,
    // The tenant.
    Login, Attributed, Shown, LoginOnStandby, LockOwnRow, TakeAdvisoryLock,
    // Faults.
    Crash(Who), LoseReply(Who), Copy, Stop, DbaDrops, DbaRenames,
    RestoreEmpty, RestoreMade, RestoreRenamed, FailOver,
    // Nothing is left to do.
    Rest,
}

impl Step {
    /// Steps that something or somebody is bound to take. Where none is left the world rests.
    #[rustfmt::skip]
    const BOUND: [Self; 41] = {
        use Step::*;
        use Who::{First as A, Second as B};
        [
            Intent, Mint, Minted, MintFailed, Tick, Revoke(A), Revoke(B), Extend(A), Extend(B),
            Fence(A), Fence(B), EndHolders(A), EndHolders(B), EndSessions(A), EndSessions(B),
            DropRole(A), DropRole(B), Census(A), Census(B), Prove(A), Prove(B),
            CensusAgain(A), CensusAgain(B), Ours(A), Ours(B), GiveUp(A), GiveUp(B),
            Restart(A), Restart(B), Recover,
            MintTakesRow(0), MintTakesRow(2), MintCommits(0), MintCommits(2),
            ExtendRuns(0), ExtendRuns(1), ExtendRuns(2), Late, Start, Attributed, Shown,
        ]
    };

    /// Steps that may be taken or not.
    #[rustfmt::skip]
    const FREE: [Self; 20] = {
        use Step::*;
        use Who::{First as A, Second as B};
        [
            Login, Renew(A), Renew(B), Prune, LoginOnStandby, LockOwnRow, TakeAdvisoryLock,
            Crash(A), Crash(B), LoseReply(A), LoseReply(B), Copy, Stop, DbaDrops, DbaRenames,
            RestoreEmpty, RestoreMade, RestoreRenamed, FailOver, Rest,
        ]
    };

    pub fn every() -> impl Iterator<Item = Self> {
        Self::BOUND.into_iter().chain(Self::FREE)
    }

    /// Every step that changes this world, and the world it makes. Sets the bits of the steps, in
    /// the order of `every`.
    pub fn all(devices: &Devices, world: &World, bits: &mut u64) -> Vec<(Self, World)> {
        let mut steps = Vec::with_capacity(16);
        for (place, step) in Self::every().enumerate() {
            let bound = place < Self::BOUND.len();
            if world.at_rest && !bound {
                break;
            }
            let next = match step {
                Self::Rest => steps
                    .iter()
                    .all(|(_, bound)| !bound)
                    .then_some(world.resting()),
                _ => step.take(devices, world).filter(|next| next != world),
            };
            if let Some(next) = next {
                *bits |= 1 << place;
                steps.push(((step, next), bound));
            }
        }
        steps.into_iter().map(|(step, _)| step).collect()
    }

    fn take(self, devices: &Devices, world: &World) -> Option<World> {
        use Step as S;
        match self {
            S::Intent => broker::intent(devices, world),
            S::Mint => broker::mint(devices, world),
            S::Minted => broker::minted(world),
            S::MintFailed => broker::mint_failed(world),
            S::Tick => broker::tick(world),
            S::Revoke(who) => broker::revoke(world, who),
            S::Renew(who) => broker::renew(world, who),
            S::Extend(who) => broker::extend(world, who),
            S::Fence(who) => target::fence(devices, world, who),
            S::EndHolders(who) => target::end_holders(devices, world, who),
            S::EndSessions(who) => target::end_sessions(devices, world, who),
            S::DropRole(who) => target::drop_role(devices, world, who),
            S::Census(who) => target::census(devices, world, who),
            S::Prove(who) => broker::prove(devices, world, who),
            S::CensusAgain(who) => broker::census_again(devices, world, who),
            S::Ours(who) => broker::ours(devices, world, who),
            S::GiveUp(who) => broker::give_up(devices, world, who),
            S::Restart(who) => broker::restart(world, who),
            S::Recover => broker::recover(devices, world),
            S::MintTakesRow(place) => target::mint_takes_row(devices, world, place),
            S::MintCommits(place) => target::mint_commits(devices, world, place),
            S::ExtendRuns(place) => target::extend_runs(devices, world, place),
            S::Prune => target::prune(world),
            S::Late => target::late(world),
            S::Start => target::start(world),
            S::Login => adversity::login(world),
            S::Attributed => adversity::attributed(world),
            S::Shown => adversity::shown(world),
            S::LoginOnStandby => adversity::login_on_standby(world),
            S::LockOwnRow => adversity::lock_own_row(world),
            S::TakeAdvisoryLock => adversity::take_advisory_lock(world),
            S::Crash(who) => adversity::crash(world, who),
            S::LoseReply(who) => adversity::lose_reply(world, who),
            S::Copy => adversity::copy(world),
            S::Stop => adversity::stop(world),
            S::DbaDrops => adversity::dba_drops(world),
            S::DbaRenames => adversity::dba_renames(world),
            S::RestoreEmpty => adversity::restore(world, None),
            S::RestoreMade => adversity::restore(world, Some(false)),
            S::RestoreRenamed => adversity::restore(world, Some(true)),
            S::FailOver => adversity::fail_over(world),
            S::Rest => None,
        }
    }
}
