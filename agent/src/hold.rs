//! Credentials in memory, and nowhere else.
//!
//! A hit answers from here without the broker, a lock across an await or a new copy of the
//! secret. What is here is bound to its task: [`Hold::wipe`] removes all of a task at once
//! and leaves a tombstone, so that an answer still on its way in finds no place. It must
//! never hand out a credential past its hard end, and never write one anywhere.

pub mod entry;
pub mod flight;
pub mod login;
pub mod renew;
pub mod schedule;

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as MapEntry;
use ephor_proto::id::{CredentialId, RequestId, TaskId};
use ephor_proto::time::Boottime;
use indexmap::{Equivalent, IndexMap};
use tokio::sync::watch;

use crate::attest::Fingerprint;
use crate::limits;
use crate::request::Asker;

pub use entry::{Held, Lifetime};
pub use flight::{Lead, Outcome};

/// What makes two requests of one task equal: the whole attested identity and everything asked for.
pub struct Key {
    /// Why, this time.
    pub reason: Box<str>,
    /// Audience for `identity`; else empty.
    pub item: Box<str>,
    /// For what.
    pub entitlement: Box<str>,
    /// Wanted seconds, if any were named.
    pub ttl_seconds: Option<u64>,
    /// Workload named by the request; else empty.
    pub subject: Box<str>,
    /// Set only when the caller brought its own idempotency key.
    pub request: Option<RequestId>,
    /// Who asked.
    pub fingerprint: Fingerprint,
}

/// A [`Key`] that borrows everything, for looking up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyRef<'a> {
    /// See [`Key`].
    pub reason: &'a str,
    /// See [`Key`].
    pub item: &'a str,
    /// See [`Key`].
    pub entitlement: &'a str,
    /// See [`Key`].
    pub ttl_seconds: Option<u64>,
    /// See [`Key`].
    pub subject: &'a str,
    /// See [`Key`].
    pub request: Option<RequestId>,
    /// See [`Key`].
    pub fingerprint: &'a Fingerprint,
}

impl Key {
    /// For looking up.
    #[must_use]
    pub fn view(&self) -> KeyRef<'_> {
        KeyRef {
            reason: &self.reason,
            item: &self.item,
            entitlement: &self.entitlement,
            ttl_seconds: self.ttl_seconds,
            subject: &self.subject,
            request: self.request,
            fingerprint: &self.fingerprint,
        }
    }
}

impl KeyRef<'_> {
    /// For keeping.
    #[must_use]
    pub fn to_key(self) -> Arc<Key> {
        Arc::new(Key {
            reason: self.reason.into(),
            item: self.item.into(),
            entitlement: self.entitlement.into(),
            ttl_seconds: self.ttl_seconds,
            subject: self.subject.into(),
            request: self.request,
            fingerprint: self.fingerprint.clone(),
        })
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.view() == other.view()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.view().hash(state);
    }
}

impl Hash for KeyRef<'_> {
    /// Without the fingerprint: within one task it is nearly always the same.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let asked = (self.reason, self.item, self.entitlement, self.subject);
        (asked, self.ttl_seconds, self.request).hash(state);
    }
}

impl Equivalent<Arc<Key>> for KeyRef<'_> {
    fn equivalent(&self, key: &Arc<Key>) -> bool {
        *self == key.view()
    }
}

/// What a look-up found.
pub enum Found {
    /// A credential that is still good.
    Held(Arc<Held>),
    /// The same request is on its way; wait for it.
    Flying(watch::Receiver<Option<Outcome>>),
    /// Nobody asked yet: the holder of this asks, for all.
    Lead(Lead, watch::Receiver<Option<Outcome>>),
    /// The task has ended.
    Ended,
    /// The task holds as many as it may.
    Full,
}

enum State {
    Flying {
        flight: u64,
        outcome: watch::Receiver<Option<Outcome>>,
    },
    Held(Arc<Held>),
}

/// What one task holds or waits for.
type Slots = IndexMap<Arc<Key>, State, ahash::RandomState>;

enum TaskHold {
    Open(Slots),
    Ended,
}

/// The store. Cheap to clone.
#[derive(Clone, Default)]
pub struct Hold {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    tasks: DashMap<TaskId, TaskHold, ahash::RandomState>,
    /// Guards the order in which tombstones are forgotten.
    tombstones: Mutex<VecDeque<TaskId>>,
    flights: AtomicU64,
    held: AtomicUsize,
    served: AtomicU64,
}

impl Hold {
    /// The credential for `key`, if it is here and good at `now`. The hot path: one shard
    /// read lock, released before this returns.
    #[must_use]
    pub fn serve(&self, task: TaskId, key: KeyRef<'_>, now: Boottime) -> Option<Arc<Held>> {
        let found = self.inner.tasks.view(&task, |_, hold| match hold {
            TaskHold::Open(slots) => good(slots, key, now),
            TaskHold::Ended => None,
        })??;
        self.inner.served.fetch_add(1, Ordering::Relaxed);
        Some(found)
    }

    /// Looks up `key` and, when nothing is there, takes the lead for it in the same step.
    #[must_use]
    pub fn enter(&self, task: TaskId, key: &Arc<Key>, now: Boottime) -> Found {
        let mut guard = self
            .inner
            .tasks
            .entry(task)
            .or_insert_with(|| TaskHold::Open(Slots::default()));
        let TaskHold::Open(slots) = guard.value_mut() else {
            return Found::Ended;
        };
        match slots.get(key) {
            Some(State::Flying { outcome, .. }) => return Found::Flying(outcome.clone()),
            Some(State::Held(held)) if held.is_good(now) => {
                self.inner.served.fetch_add(1, Ordering::Relaxed);
                return Found::Held(Arc::clone(held));
            }
            Some(State::Held(_)) | None => {}
        }
        let before = slots.len();
        // Not at every look-up: each time the slots have doubled, and before one is refused.
        if before.is_power_of_two() || before >= limits::CREDENTIALS_PER_TASK {
            slots.retain(|_, state| match state {
                State::Flying { .. } => true,
                State::Held(held) => held.is_good(now),
            });
        }
        self.inner
            .held
            .fetch_sub(before - slots.len(), Ordering::Relaxed);
        if slots.len() >= limits::CREDENTIALS_PER_TASK
            || self.inner.held.load(Ordering::Relaxed) >= limits::CREDENTIALS
        {
            return Found::Full;
        }
        let flight = self.inner.flights.fetch_add(1, Ordering::Relaxed);
        let (sender, outcome) = watch::channel(None);
        let flying = State::Flying {
            flight,
            outcome: outcome.clone(),
        };
        // One whose life is over, if it is still there, makes room for its successor.
        if slots.insert(Arc::clone(key), flying).is_none() {
            self.inner.held.fetch_add(1, Ordering::Relaxed);
        }
        drop(guard);
        let lead = Lead::new(self.clone(), (task, Arc::clone(key), flight), sender);
        Found::Lead(lead, outcome)
    }

    /// Puts a renewed credential in place of `old`. False when the task ended or `old` was
    /// wiped meanwhile: the new copy is then dropped, which wipes it.
    #[must_use]
    pub fn replace(&self, task: TaskId, old: &Arc<Held>, new: Arc<Held>) -> bool {
        self.with_slots(task, |slots| {
            let state = slots
                .values_mut()
                .find(|state| matches!(state, State::Held(held) if Arc::ptr_eq(held, old)));
            match state {
                Some(state) => {
                    *state = State::Held(new);
                    true
                }
                None => false,
            }
        })
        .unwrap_or(false)
    }

    /// Removes one held copy, as when its life is over.
    pub fn remove(&self, task: TaskId, old: &Arc<Held>) {
        self.retain(task, |held| !Arc::ptr_eq(held, old));
    }

    /// Removes every copy of one credential; the number of copies wiped.
    pub fn wipe_credential(&self, task: TaskId, id: CredentialId) -> u32 {
        self.retain(task, |held| !held.has(id))
    }

    /// Removes all that is held for a task, for good. Each copy is overwritten when its
    /// last reader (an answer being written) lets go of it. Returns the number of copies.
    pub fn wipe(&self, task: TaskId) -> u32 {
        let before = match self.inner.tasks.entry(task) {
            MapEntry::Occupied(mut occupied) => occupied.insert(TaskHold::Ended),
            MapEntry::Vacant(vacant) => {
                vacant.insert(TaskHold::Ended);
                TaskHold::Open(Slots::default())
            }
        };
        let TaskHold::Open(slots) = before else {
            return 0;
        };
        self.inner.held.fetch_sub(slots.len(), Ordering::Relaxed);
        let copies = slots.values().map(|state| match state {
            State::Flying { .. } => 0,
            State::Held(held) => held.copies(),
        });
        let copies = copies.sum();
        self.bury(task);
        copies
    }

    /// Removes all that is held for open tasks, which stay open: a new epoch made it void. Gives what
    /// was held by whom, so that it can be asked for again.
    #[must_use]
    pub fn void(&self) -> Vec<(TaskId, Arc<Key>, Arc<Asker>)> {
        let mut void = Vec::new();
        for task in self.tasks() {
            let removed = self.with_slots(task, |slots| {
                let before = slots.len();
                slots.retain(|key, state| match state {
                    State::Held(held) => {
                        void.push((task, Arc::clone(key), Arc::clone(&held.asker)));
                        false
                    }
                    State::Flying { .. } => true,
                });
                before - slots.len()
            });
            let removed = removed.unwrap_or(0);
            self.inner.held.fetch_sub(removed, Ordering::Relaxed);
        }
        void
    }

    /// The tasks that may hold something.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskId> {
        let open =
            self.inner.tasks.iter().filter_map(|entry| {
                matches!(entry.value(), TaskHold::Open(_)).then_some(*entry.key())
            });
        open.collect()
    }

    /// What is held for a task now.
    #[must_use]
    pub fn list(&self, task: TaskId, now: Boottime) -> Vec<(Arc<Key>, Arc<Held>)> {
        let listed = self.inner.tasks.view(&task, |_, hold| match hold {
            TaskHold::Open(slots) => slots.iter().filter_map(|slot| held_in(slot, now)).collect(),
            TaskHold::Ended => Vec::new(),
        });
        listed.unwrap_or_default()
    }

    /// Everything held that is good at `now`, for an agent that takes over.
    #[must_use]
    pub fn all(&self, now: Boottime) -> Vec<(TaskId, Arc<Key>, Arc<Held>)> {
        let mut all = Vec::new();
        for task in self.tasks() {
            let of_task = self.list(task, now).into_iter();
            all.extend(of_task.map(|(key, held)| (task, key, held)));
        }
        all
    }

    /// Puts in what another agent held. False when the task ended, or has something there.
    #[must_use]
    pub fn put(&self, task: TaskId, key: &Arc<Key>, held: &Arc<Held>) -> bool {
        let mut guard = self
            .inner
            .tasks
            .entry(task)
            .or_insert_with(|| TaskHold::Open(Slots::default()));
        let TaskHold::Open(slots) = guard.value_mut() else {
            return false;
        };
        if slots.len() >= limits::CREDENTIALS_PER_TASK || slots.contains_key(key) {
            return false;
        }
        slots.insert(Arc::clone(key), State::Held(Arc::clone(held)));
        self.inner.held.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Answers served from memory since the start.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.inner.served.load(Ordering::Relaxed)
    }

    /// Credentials in memory and requests for some on their way.
    #[must_use]
    pub fn held(&self) -> usize {
        self.inner.held.load(Ordering::Relaxed)
    }

    /// Lands a flight: its slot now holds the credential. False when the task ended.
    fn land(&self, task: TaskId, key: &Arc<Key>, flight: u64, held: &Arc<Held>) -> bool {
        self.with_slots(task, |slots| match slots.get_mut(key) {
            Some(state) if state.is_flight(flight) => {
                *state = State::Held(Arc::clone(held));
                true
            }
            Some(_) | None => false,
        })
        .unwrap_or(false)
    }

    fn cancel(&self, task: TaskId, key: &Arc<Key>, flight: u64) {
        let removed = self.with_slots(task, |slots| {
            let flies = slots.get(key).is_some_and(|state| state.is_flight(flight));
            flies && slots.swap_remove(key).is_some()
        });
        let removed = usize::from(removed.unwrap_or(false));
        self.inner.held.fetch_sub(removed, Ordering::Relaxed);
    }

    fn retain(&self, task: TaskId, keep: impl Fn(&Arc<Held>) -> bool) -> u32 {
        let removed = self.with_slots(task, |slots| {
            let mut copies = 0;
            let before = slots.len();
            slots.retain(|_, state| match state {
                State::Held(held) if !keep(held) => {
                    copies += held.copies();
                    false
                }
                State::Held(_) | State::Flying { .. } => true,
            });
            (before - slots.len(), copies)
        });
        let (slots, copies) = removed.unwrap_or((0, 0));
        self.inner.held.fetch_sub(slots, Ordering::Relaxed);
        copies
    }

    fn with_slots<T>(&self, task: TaskId, act: impl FnOnce(&mut Slots) -> T) -> Option<T> {
        let mut guard = self.inner.tasks.get_mut(&task)?;
        match guard.value_mut() {
            TaskHold::Open(slots) => Some(act(slots)),
            TaskHold::Ended => None,
        }
    }

    /// Keeps the number of tombstones bounded. A task id is never opened again, so an old
    /// tombstone only guards answers that were already on their way.
    fn bury(&self, task: TaskId) {
        let forgotten = {
            let mut order = self
                .inner
                .tombstones
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            order.push_back(task);
            if order.len() > limits::TOMBSTONES {
                order.pop_front()
            } else {
                None
            }
        };
        if let Some(old) = forgotten {
            self.inner.tasks.remove(&old);
        }
    }
}

impl State {
    fn is_flight(&self, number: u64) -> bool {
        matches!(self, Self::Flying { flight, .. } if *flight == number)
    }
}

fn good(slots: &Slots, key: KeyRef<'_>, now: Boottime) -> Option<Arc<Held>> {
    match slots.get(&key)? {
        State::Held(held) if held.is_good(now) => Some(Arc::clone(held)),
        State::Held(_) | State::Flying { .. } => None,
    }
}

fn held_in((key, state): (&Arc<Key>, &State), now: Boottime) -> Option<(Arc<Key>, Arc<Held>)> {
    match state {
        State::Held(held) if held.is_good(now) => Some((Arc::clone(key), Arc::clone(held))),
        State::Held(_) | State::Flying { .. } => None,
    }
}

#[cfg(test)]
pub(crate) mod tests;
