//! A database login as a model that a checker walks through: every order of the steps of mint,
//! renew, revoke and prove, with brokers that stop at any of them. ADR 9 says what is in it.

mod adversity;
mod broker;
mod devices;
mod steps;
mod target;
mod world;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ephor_proto::state::credential::CredentialState;
use stateright::{Checker, HasDiscoveries, Model, Property};

use devices::{Devices, Exclusion, Ours};
use steps::Step;
use world::{Fence, Who, World};

struct Protocol {
    devices: Devices,
    logins: u8,
    faults: u8,
    /// A bit for every step that was possible somewhere.
    taken: Arc<AtomicU64>,
    /// Only this property, and only where it fails first.
    only: Option<&'static str>,
    failed: AtomicBool,
}

impl Protocol {
    /// Whether it holds, or has failed before where only the first failure counts.
    fn first(&self, holds: bool) -> bool {
        holds || (self.only.is_some() && self.failed.swap(true, Ordering::Relaxed))
    }

    fn of(devices: Devices, faults: u8) -> Self {
        Self {
            devices,
            logins: 1,
            faults,
            taken: Arc::default(),
            only: None,
            failed: AtomicBool::new(false),
        }
    }
}

/// A step and the world that it makes.
#[derive(Clone, PartialEq)]
struct Taken(Step, World);

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

const RECORDED: &str = "no login without a record";
const DEAD: &str = "what is called dead cannot act, or is going to be reopened";
const UNMAKEABLE: &str = "what is called dead cannot be made";
const CLOSED: &str = "what is fenced stays closed, and nothing comes back to life";
const ENDS: &str = "a revocation is never given up";

impl Model for Protocol {
    type State = World;
    type Action = Taken;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.logins, self.faults)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Taken>) {
        let mut bits = 0;
        let steps = Step::all(&self.devices, world, &mut bits);
        self.taken.fetch_or(bits, Ordering::Relaxed);
        actions.extend(steps.into_iter().map(|(step, next)| Taken(step, next)));
    }

    fn next_state(&self, _: &World, taken: Taken) -> Option<World> {
        Some(taken.1)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always(RECORDED, |model: &Self, world| model.first(recorded(world))),
            Property::always(DEAD, |model: &Self, world| model.first(dead(world))),
            Property::always(UNMAKEABLE, |model: &Self, world| {
                model.first(unmakeable(&model.devices, world))
            }),
            Property::always(CLOSED, |model: &Self, world| model.first(closed(world))),
            Property::always(ENDS, |model: &Self, world| model.first(ended(world))),
        ];
        all.retain(|property| self.only.is_none_or(|only| only == property.name));
        all
    }
}

fn recorded(world: &World) -> bool {
    !world.broken.unrecorded
}

/// Excused are two cases only: the session that no view showed at the census, until the second
/// look; and a target that is another than the one in the evidence, until the reconciler's.
fn dead(world: &World) -> bool {
    let proven = |who: &Who| world.state(*who) == Some(CredentialState::Dead);
    Who::BOTH.into_iter().filter(proven).all(|who| {
        let record = world.broker(who).record.unwrap();
        let open = world.target.role.is_some_and(|role| role.login);
        let missed = world.backend.is_some_and(|backend| backend.missed);
        let looks = record.look_due || who != world.in_charge();
        let moved = record.evidence != world.target.identity;
        !world.can_act() || moved || (!open && missed && looks)
    })
}

/// *For ever after*: the fence is closed, or the deadline is past, or it will be reopened.
fn unmakeable(devices: &Devices, world: &World) -> bool {
    let proven = |who: &Who| world.state(*who) == Some(CredentialState::Dead);
    Who::BOTH.into_iter().filter(proven).all(|who| {
        let record = world.broker(who).record.unwrap();
        let moved = devices.identity && record.evidence != world.target.identity;
        let late = devices.deadline && world.target.late;
        world.target.fence == Fence::Closed || late || moved
    })
}

fn closed(world: &World) -> bool {
    let open = world.target.role.is_some_and(|role| role.login);
    let reopened = open && world.target.fence == Fence::Closed;
    !reopened && !world.broken.revived
}

/// At rest everybody did what they could, so the login is dead, and rightly called so.
fn ended(world: &World) -> bool {
    let record = world.broker(world.in_charge()).record;
    let ended = !world.can_act()
        && record.is_none_or(|record| record.state == CredentialState::Dead && !record.look_due);
    ended || !world.at_rest
}

/// How many faults a run of the whole protocol may have; more by hand, which takes minutes.
fn faults() -> u8 {
    let named = std::env::var("EPHOR_MODEL_FAULTS");
    named.map_or(2, |faults| faults.parse().unwrap())
}

fn told(path: stateright::Path<World, Taken>) -> String {
    let steps = path.into_actions().into_iter();
    let steps: Vec<_> = steps.map(|step| format!("{step:?}")).collect();
    steps.join(" ")
}

#[test]
fn the_protocol_holds() {
    let taken = Arc::new(AtomicU64::new(0));
    let model = Protocol {
        devices: Devices::ALL,
        logins: 2,
        taken: Arc::clone(&taken),
        ..Protocol::of(Devices::ALL, faults())
    };
    let checked = model
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures);
    let checked = checked.spawn_bfs().join();
    if let Some((name, path)) = checked.discoveries().into_iter().next() {
        panic!("not so: {name}\n{}", told(path));
    }
    // A model in which nothing happens holds, too.
    let taken = taken.load(Ordering::Relaxed);
    let never = Step::every().enumerate();
    let never = never.filter(|(place, _)| taken & (1 << place) == 0);
    let never: Vec<_> = never.map(|(_, step)| step).collect();
    assert_eq!(never, [Step::GiveUp(Who::First), Step::GiveUp(Who::Second)]);
}

/// "Never given up" looks at the worlds that rest, so every run must come to rest.
#[test]
fn every_run_ends() {
    let model = Protocol::of(Devices::ALL, 1);
    let mut open = vec![(World::new(model.logins, model.faults), None::<Vec<World>>)];
    let (mut under_way, mut done) = (HashSet::new(), HashSet::new());
    while let Some((world, rest)) = open.pop() {
        let mut next = rest.unwrap_or_else(|| {
            under_way.insert(world);
            let steps = Step::all(&model.devices, &world, &mut 0);
            assert!(!steps.is_empty() || world.at_rest);
            steps.into_iter().map(|(_, next)| next).collect()
        });
        let Some(step) = next.pop() else {
            under_way.remove(&world);
            done.insert(world);
            continue;
        };
        open.push((world, Some(next)));
        assert!(!under_way.contains(&step), "a circle: {step:#?}");
        if !done.contains(&step) {
            open.push((step, None));
        }
    }
    assert!(done.len() > 10_000, "{}", done.len());
}

/// How a property fails first: breadth first, so in the fewest steps.
fn shortest(property: &'static str, devices: Devices, faults: u8) -> Option<String> {
    let model = Protocol {
        only: Some(property),
        ..Protocol::of(devices, faults)
    };
    let checked = model.checker().finish_when(HasDiscoveries::Any);
    checked.spawn_bfs().join().discovery(property).map(told)
}

#[test]
fn each_device_is_needed() {
    const ALL: Devices = Devices::ALL;
    // With how many faults it fails, and which property.
    #[rustfmt::skip]
    let naive = [
        (0, "no intent", RECORDED, Devices { intent: false, ..ALL }),
        (1, "no fence", DEAD, Devices { exclusion: Exclusion::Nothing, ..ALL }),
        (1, "an advisory lock as fence", ENDS, Devices { exclusion: Exclusion::AdvisoryLock, ..ALL }),
        (0, "an advisory lock of another database", DEAD, Devices { exclusion: Exclusion::AdvisoryLockElsewhere, ..ALL }),
        (0, "no deadline", DEAD, Devices { deadline: false, ..ALL }),
        (1, "waiting for whoever holds the row", ENDS, Devices { holders_ended: false, ..ALL }),
        (0, "NOLOGIN not committed when sessions are ended", DEAD, Devices { nologin_first: false, ..ALL }),
        (0, "no look at hidden backends", DEAD, Devices { hidden: false, ..ALL }),
        (0, "no second look", DEAD, Devices { second_look: false, ..ALL }),
        (0, "a second look that waits for no hidden backend", DEAD, Devices { waits_for_hidden: false, ..ALL }),
        (1, "a role found by its name", DEAD, Devices { by_oid: false, ..ALL }),
        (2, "evidence without system id and timeline", ENDS, Devices { identity: false, ..ALL }),
        (1, "evidence without system id and timeline", UNMAKEABLE, Devices { identity: false, ..ALL }),
        (1, "no epoch", RECORDED, Devices { epoch: false, ..ALL }),
        (1, "an epoch that lets calls under way go on", RECORDED, Devices { calls_ended: false, ..ALL }),
        (2, "a reconciler that knows names only", ENDS, Devices { ours: Ours::Names, ..ALL }),
        (2, "a reconciler that knows roles only", ENDS, Devices { ours: Ours::Roles, ..ALL }),
        (0, "a renewal that looks at no fence", CLOSED, Devices { extend_fenced: false, ..ALL }),
        (1, "giving up", ENDS, Devices { for_ever: false, ..ALL }),
    ];
    let fails = naive.map(|(faults, name, property, devices)| {
        let path = shortest(property, devices, faults);
        let path = path.unwrap_or_else(|| panic!("{name}: {property} holds"));
        format!("{name}\n  not so: {property}\n  {path}\n")
    });
    let (file, found) = ("tests/login/counterexamples.txt", fails.join("\n"));
    if std::env::var_os("EPHOR_REGENERATE").is_some() {
        std::fs::write(file, &found).unwrap();
    }
    let kept = std::fs::read_to_string(file).unwrap();
    assert!(
        kept == found,
        "{file} is stale; run this test with EPHOR_REGENERATE=1. Now:\n{found}"
    );
}
