//! Heartbeats: what an agent still runs, and what it should know.

use std::collections::{HashMap, HashSet};

use ephor_proto::grpc::v1;
use ephor_proto::id::TaskId;
use ephor_proto::limits::MAX_TASKS_PER_HEARTBEAT;
use ephor_proto::problem::{Code, Problem};
use ephor_proto::state::agent::{AgentEvent, AgentState};
use ephor_proto::state::task::{EndCause, TaskState};

use super::Peer;
use super::rollcall::{RollCall, missing};
use crate::app::Broker;
use crate::complete::{By, End, agent_cause};
use crate::issue::store_unavailable;
use crate::request::Refusal;

impl Broker {
    /// Takes the agent's set of open tasks for the whole truth about its host. Of those missing from it, the agent
    /// says which ended and why; the others are lost.
    ///
    /// # Errors
    /// `invalid_request` when the set is malformed; nothing is concluded from it then.
    pub async fn heartbeat(
        &self,
        peer: &Peer,
        r: v1::HeartbeatRequest,
    ) -> Result<v1::HeartbeatResponse, Problem> {
        let correlation = self.correlation();
        self.heartbeat_within(peer, r)
            .await
            .map_err(|refusal| refusal.into_problem(correlation))
    }

    async fn heartbeat_within(
        &self,
        peer: &Peer,
        r: v1::HeartbeatRequest,
    ) -> Result<v1::HeartbeatResponse, Refusal> {
        // First: a store that went back must not conclude anything from the set.
        self.compare_with_seen(peer.host(), &r.checkpoint).await?;
        let present = parse_set(&r.open_tasks, r.ended_tasks.len())?;
        let told = parse_ended(&r.ended_tasks)?;
        if r.boot_id != peer.boot_id() {
            let detail = "`boot_id` is another one than this start of the agent said in Hello";
            return Err(Refusal::new(Code::InvalidRequest, detail));
        }
        let open = self.standing(peer.host())?;
        let call = RollCall {
            boot_id: peer.boot_id(),
            instance: peer.instance(),
            seq: r.seq,
            present: &present,
        };
        let gone = missing(&call, &open);
        if !gone.is_empty() {
            tracing::info!(
                host = peer.host(),
                tasks = gone.len(),
                "tasks missing from the heartbeat are completed"
            );
            let correlation = self.correlation();
            let end = |task| match told.get(&task) {
                // Its own notice is on the way, and may be long: the agent tells only so many at once.
                Some(cause) => End {
                    task,
                    cause: *cause,
                    by: By::Agent(correlation),
                },
                None => End {
                    task,
                    cause: EndCause::Lost,
                    by: By::Broker,
                },
            };
            self.end_tasks(gone.into_iter().map(end).collect()).await;
        }
        self.heard(peer);
        let standing: HashSet<TaskId> = open.iter().map(|task| task.id).collect();
        let closed_tasks = self.ended_of(peer.host(), present.difference(&standing))?;
        Ok(v1::HeartbeatResponse {
            closed_tasks,
            policy_version: self.policy.load().version().to_owned(),
            checkpoint: self.newest_checkpoint()?,
            ca_bundle: (r.ca_sequence != self.keys.load().sequence()).then(|| self.ca_bundle()),
        })
    }

    /// Only now may it be given anything again: what ended in its silence is known.
    fn heard(&self, peer: &Peer) {
        let now = self.clock.boottime();
        let mut live = peer.host.live();
        let was = live.state;
        live.step(AgentEvent::Heard, now);
        live.last_heard = now;
        live.last_heard_at = Some(self.clock.wall());
        if was == AgentState::Silent && live.state == AgentState::Active {
            tracing::info!(host = peer.host(), "agent heard again");
        }
    }

    /// Of tasks that are not open here, those that ended here. One that is unknown is left
    /// alone: the request that opens it may be on its way.
    fn ended_of<'a>(
        &self,
        host: &str,
        tasks: impl Iterator<Item = &'a TaskId>,
    ) -> Result<Vec<Vec<u8>>, Refusal> {
        let reader = self.ledger.reader();
        let mut ended = Vec::new();
        for id in tasks {
            match reader.task(*id).map_err(store_unavailable)? {
                Some(row) if row.host == host => match row.state {
                    TaskState::Open => {}
                    TaskState::Completing(_) | TaskState::Closed { .. } => {
                        ended.push(id.to_bytes().to_vec())
                    }
                },
                Some(_) | None => {}
            }
        }
        Ok(ended)
    }
}

fn parse_set(tasks: &[Vec<u8>], ended: usize) -> Result<HashSet<TaskId>, Refusal> {
    let all = tasks.len().saturating_add(ended);
    if all > MAX_TASKS_PER_HEARTBEAT {
        let detail = format!(
            "`open_tasks` and `ended_tasks` have {all} entries; at most {MAX_TASKS_PER_HEARTBEAT} are accepted"
        );
        return Err(Refusal::new(Code::TooLarge, detail));
    }
    let parsed = tasks.iter().map(|bytes| parse_id(bytes, "open_tasks"));
    parsed.collect()
}

fn parse_ended(ended: &[v1::EndedTask]) -> Result<HashMap<TaskId, EndCause>, Refusal> {
    let parsed = ended.iter().map(|end| {
        let task = parse_id(&end.task_id, "ended_tasks")?;
        Ok((task, agent_cause(&end.cause)?))
    });
    parsed.collect()
}

fn parse_id(bytes: &[u8], field: &str) -> Result<TaskId, Refusal> {
    TaskId::from_slice(bytes).map_err(|error| {
        let detail = format!("`{field}` is malformed: {error}");
        Refusal::new(Code::InvalidRequest, detail)
    })
}
