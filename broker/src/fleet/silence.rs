//! Silence: an agent not heard for 15 s, counted on boot time and only while it could have
//! been heard.

use std::sync::Arc;

use ephor_proto::state::agent::{AgentEvent, AgentState};
use ephor_proto::state::task::EndCause;
use ephor_proto::time::Boottime;

use super::update::Change;
use crate::app::Broker;
use crate::ledger::{HostRow, Lane};
use crate::limits;

/// Since when this broker could have heard agents. Pure.
///
/// A broker that was stopped, suspended or starved heard nobody and must not blame them: a
/// gap between two ticks starts the count anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readiness {
    since: Option<Boottime>,
    last_tick: Boottime,
}

impl Readiness {
    /// The listener accepts connections from now on.
    pub fn begin(&mut self, now: Boottime) {
        self.since = Some(now);
        self.last_tick = now;
    }

    /// Since when, if at all.
    #[must_use]
    pub fn since(&self) -> Option<Boottime> {
        self.since
    }

    /// Time passed. Gives since when agents could be heard without a gap.
    pub fn tick(&mut self, now: Boottime) -> Option<Boottime> {
        if now.millis_since(self.last_tick) > limits::STALL_MILLIS && self.since.is_some() {
            self.since = Some(now);
        }
        self.last_tick = now;
        self.since
    }
}

impl super::Fleet {
    /// Judges silence; gives the hosts that have just become silent.
    pub(crate) fn judge_silence(&self) -> Vec<String> {
        let now = self.clock.boottime();
        let Some(ready_since) = self.readiness().tick(now) else {
            return Vec::new();
        };
        let mut silent = Vec::new();
        for host in self.all() {
            let mut live = host.live();
            let before = live.state;
            let last_heard = live.last_heard;
            live.step(
                AgentEvent::Tick {
                    last_heard,
                    ready_since,
                },
                now,
            );
            if before != AgentState::Silent && live.state == AgentState::Silent {
                silent.push(host.name.to_string());
            }
        }
        silent
    }

    /// Hosts banned so recently that a request from before may still commit a task.
    pub(super) fn freshly_banned(&self) -> Vec<String> {
        let now = self.clock.boottime();
        let mut fresh = Vec::new();
        for host in self.all() {
            let mut live = host.live();
            let Some(since) = live.swept_since else {
                continue;
            };
            fresh.push(host.name.to_string());
            if now.millis_since(since) > limits::BAN_SWEEP_MILLIS {
                live.swept_since = None;
            }
        }
        fresh
    }
}

impl Broker {
    /// Keeps when a host was last heard over a restart. Only for listings, so a failure costs
    /// nothing but that.
    pub(super) async fn store_last_heard(&self, host: &str) {
        let Some(host) = self.fleet.find(host) else {
            return;
        };
        let last_heard = host.live().last_heard_at;
        let outcome = self
            .update_host("fleet.last_heard", Lane::Normal, &host.name, |stored| {
                let Some(row) = stored.filter(|row| row.last_heard < last_heard) else {
                    return Ok(None);
                };
                Ok(Some(Change::quiet(HostRow { last_heard, ..row })))
            })
            .await;
        if let Err(refusal) = outcome {
            tracing::debug!(host = %host.name, detail = refusal.detail, "when it was last heard was not stored");
        }
    }
}

/// Judges silence and sweeps after bans, every second, until stopped.
pub(crate) async fn keep_watch(broker: Arc<Broker>) {
    let stop = broker.tasks.stop_token();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(limits::SILENCE_TICK) => {}
        }
        for host in broker.fleet.judge_silence() {
            tracing::warn!(
                host,
                "agent silent: not heard for 15 s; nothing new is issued there"
            );
            broker.store_last_heard(&host).await;
        }
        if !broker.may_sweep() {
            continue;
        }
        for host in broker.fleet.freshly_banned() {
            broker.end_tasks_of(&host, EndCause::Revoked).await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Boottime {
        Boottime::from_millis(millis)
    }

    #[test]
    fn nobody_is_judged_before_the_listener_is_ready() {
        let mut readiness = Readiness::default();
        assert_eq!(readiness.tick(at(1_000_000)), None);
        readiness.begin(at(1_000_500));
        assert_eq!(readiness.tick(at(1_001_000)), Some(at(1_000_500)));
    }

    #[test]
    fn a_gap_starts_the_count_anew() {
        let mut readiness = Readiness::default();
        readiness.begin(at(0));
        for second in 1..=20 {
            assert_eq!(readiness.tick(at(second * 1000)), Some(at(0)));
        }
        let resumed = at(620_000);
        assert_eq!(readiness.tick(resumed), Some(resumed));
        assert_eq!(readiness.tick(at(621_000)), Some(resumed));
    }
}
