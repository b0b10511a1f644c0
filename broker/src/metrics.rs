//! What this process counts since its start, and how things are now.
//!
//! Counting is one relaxed addition (`ephor_proto::metrics`). What the store knows is asked of it when
//! someone looks, at most once in [`limits::COUNTS_EVERY`]: a scrape must never be work.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ephor_proto::metrics::{self, Label, Latency, Page, Refusals, Sizes, Stages};
use ephor_proto::stage::Stage;
use ephor_proto::state::agent::AgentState;
use ephor_proto::time::Boottime;
use serde::Serialize;

use crate::app::Broker;
use crate::ledger::{Counts, Health};
use crate::limits;
use crate::revoke::Waiting;

/// Stages passed and refused.
pub static STAGES: Stages = Stages::new();
/// Refusals that left this process.
pub static REFUSALS: Refusals = Refusals::new();
/// One commit of the ledger, disk included.
pub static COMMIT: Latency = Latency::latency();
/// Batches that one commit took.
pub static GROUP: Sizes = Sizes::sizes();

/// The last counts of the store, and when they were made.
#[derive(Default)]
pub struct Counted {
    /// Guards the counts; held for a copy.
    last: Mutex<Option<(Boottime, Counts)>>,
}

/// How this broker is, for a load balancer or an operator.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// Whether it would issue now.
    pub ready: bool,
    /// `ok`, or why it issues nothing.
    pub store: String,
    /// The version in force. Without a good one a broker does not start.
    pub policy: String,
    /// `ok`, or why wall time is not believed.
    pub clock: String,
    /// `ok`, or why someone must look first.
    pub issuing: String,
}

impl Broker {
    /// Whether it would issue now, and if not, why.
    pub fn readiness(&self) -> Readiness {
        let ok = || "ok".to_owned();
        let store = self.ledger.health().stopped;
        let clock = self.clock_guard.check().err();
        let issuing = self.may_issue().err();
        Readiness {
            ready: issuing.is_none(),
            store: store.map_or_else(ok, |reason| reason.to_string()),
            policy: self.policy.load().version().to_owned(),
            clock: clock.map_or_else(ok, |fault| fault.to_string()),
            issuing: issuing.map_or_else(ok, |refusal| refusal.detail),
        }
    }

    /// All metrics as OpenMetrics text. `None` when they could not be written.
    pub async fn metrics(self: &Arc<Self>) -> Option<String> {
        let counts = self.counts().await;
        let (health, ready) = (self.ledger.health(), self.readiness().ready);
        let agents = self.fleet.states();
        let waiting = [self.pending.len(), self.timers.len()].map(|n| n as u64);
        let at_targets = self.queues.waiting(self.clock.boottime());
        let next_ca = self.next_database_ca();
        let next_ca = next_ca.map(|from| from.millis_since(self.clock.wall()).max(1));
        let page = metrics::page(move |page| {
            STAGES.tell(page, &Stage::ALL)?;
            REFUSALS.tell(page)?;
            tell_now(page, ready, &agents, waiting)?;
            tell_targets(page, &at_targets)?;
            page.gauges(
                "database_ca_next_seconds",
                "Until the next CA for databases is used, which servers must have by then; 0 when none is published",
                [([], next_ca.unwrap_or_default().div_ceil(1000))],
            )?;
            tell_ledger(page, &health)?;
            counts
                .as_ref()
                .map_or(Ok(()), |counts| tell_counts(page, counts))
        });
        page.ok()
    }

    /// What the store counts, no older than [`limits::COUNTS_EVERY`]; `None` when it cannot be read.
    async fn counts(self: &Arc<Self>) -> Option<Counts> {
        let now = self.clock.boottime();
        let last = || {
            self.counted
                .last
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let fresh = last()
            .as_ref()
            .filter(|(at, _)| u128::from(now.millis_since(*at)) < limits::COUNTS_EVERY.as_millis())
            .map(|(_, counts)| counts.clone());
        if fresh.is_some() {
            return fresh;
        }
        let ledger = self.ledger.clone();
        let counted = tokio::task::spawn_blocking(move || ledger.reader().counts()).await;
        match counted {
            Ok(Ok(counts)) => {
                *last() = Some((now, counts.clone()));
                Some(counts)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the store could not be counted");
                None
            }
            Err(_panicked) => None,
        }
    }
}

fn tell_now(
    page: &mut Page<'_>,
    ready: bool,
    agents: &[(AgentState, u64)],
    [ends, timers]: [u64; 2],
) -> std::fmt::Result {
    let version = (Label::Version, env!("CARGO_PKG_VERSION"));
    page.gauges("build_info", "The running version", [([version], 1)])?;
    page.gauges(
        "ready",
        "Whether it would issue now",
        [([], u64::from(ready))],
    )?;
    let agents = agents
        .iter()
        .map(|(state, n)| ([(Label::State, state.as_str())], *n));
    page.gauges("agents", "Hosts by the state of their agent", agents)?;
    page.gauges("ends_pending", "Ends that are not proven yet", [([], ends)])?;
    page.gauges(
        "timers",
        "Credentials whose end by time is awaited",
        [([], timers)],
    )
}

/// Without their names: a label is never of the input.
fn tell_targets(page: &mut Page<'_>, queues: &[Waiting]) -> std::fmt::Result {
    let (ends, late) = queues.iter().fold((0, 0), |(ends, late), queue| {
        (ends + queue.ends, late + queue.late)
    });
    let states = [("waiting", ends - late), ("overdue", late)];
    let states = states.map(|(state, n)| ([(Label::State, state)], n));
    page.gauges(
        "target_ends",
        "Credentials that are being ended at their targets",
        states,
    )?;
    let mut words = BTreeMap::new();
    for (word, n) in queues.iter().flat_map(|queue| &queue.words) {
        *words.entry(*word).or_insert(0) += n;
    }
    let words = words
        .into_iter()
        .map(|(word, n)| ([(Label::Reason, word)], n));
    page.gauges(
        "target_overdue",
        "Late ends at targets, by why the last try did not reach them",
        words,
    )?;
    let seconds = |millis: Option<u64>| millis.unwrap_or_default().div_ceil(1000);
    let oldest = queues.iter().map(|queue| queue.oldest_millis).max();
    page.gauges(
        "target_oldest_seconds",
        "How long the oldest end waits at its target, as far as this process knows",
        [([], seconds(oldest))],
    )?;
    let next = queues.iter().filter_map(|queue| queue.next_millis).min();
    page.gauges(
        "target_next_try_seconds",
        "Until the next try of a late end; 0 when there is none",
        [([], seconds(next))],
    )
}

fn tell_ledger(page: &mut Page<'_>, health: &Health) -> std::fmt::Result {
    let (revoke, normal) = health.waiting;
    let lanes = [("revoke", revoke), ("normal", normal)];
    let lanes = lanes.map(|(lane, n)| ([(Label::Queue, lane)], n as u64));
    page.gauges("ledger_waiting", "Batches waiting for the store", lanes)?;
    page.histograms(
        "ledger_commit_seconds",
        "Time that a durable commit took",
        [([], &COMMIT)],
    )?;
    page.histograms(
        "ledger_group",
        "Batches that went into one commit",
        [([], &GROUP)],
    )?;
    for (name, help, value) in [
        ("ledger_commits", "Commits", health.commits),
        ("ledger_batches", "Batches committed", health.batches),
        (
            "ledger_conflicts",
            "Batches decided on stale data",
            health.conflicts,
        ),
        (
            "ledger_refused",
            "Batches that the store refused",
            health.refused,
        ),
        (
            "ledger_reserved",
            "Batches that went to the reserve",
            health.reserved,
        ),
        (
            "ledger_queue_full",
            "Batches refused because a lane was full",
            health.queue_full,
        ),
    ] {
        page.counters(name, help, [([], value)])?;
    }
    let reserve = u64::from(health.reserve_in_use);
    page.gauges(
        "ledger_reserve_in_use",
        "1 while the store lacks what the reserve holds",
        [([], reserve)],
    )
}

fn tell_counts(page: &mut Page<'_>, counts: &Counts) -> std::fmt::Result {
    let credentials = counts.credentials.iter().map(|(kind, state, n)| {
        (
            [(Label::Kind, kind.as_str()), (Label::State, state.as_str())],
            *n,
        )
    });
    page.gauges(
        "credentials",
        "Credentials that are not dead, by kind and state",
        credentials,
    )?;
    let tasks = [
        ("open", counts.tasks_open),
        ("completing", counts.tasks_completing),
    ];
    let tasks = tasks.map(|(state, n)| ([(Label::State, state)], n));
    page.gauges("tasks", "Tasks that are not closed", tasks)?;
    page.gauges(
        "overdue",
        "Credentials whose revocation is late",
        [([], counts.overdue)],
    )
}
