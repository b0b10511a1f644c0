//! `Hello`: which start of an agent is speaking, and on which boot of its host.

use ephor_proto::event::Outcome;
use ephor_proto::grpc::{VERSION, v1};
use ephor_proto::id::InstanceId;
use ephor_proto::limits::HEARTBEAT_MILLIS;
use ephor_proto::problem::{Code, Problem};
use ephor_proto::stage::Stage;
use ephor_proto::state::agent::{AgentEvent, AgentState};
use ephor_proto::state::task::EndCause;
use ephor_proto::time::UnixMillis;

use super::join::check_version;
use super::rollcall::{Standing, of_earlier_boots};
use super::update::Change;
use super::{Live, Member, parse_instance};
use crate::app::Broker;
use crate::issue::store_unavailable;
use crate::ledger::{HostRow, Lane};
use crate::limits;
use crate::request::Refusal;

impl Broker {
    /// Makes the caller the current start of its agent; ends what earlier boots left open.
    ///
    /// # Errors
    /// `version_skew`, `invalid_request`, `stale_instance` for a start that another has followed,
    /// or what the store says.
    pub async fn hello(
        &self,
        member: &Member,
        r: v1::HelloRequest,
    ) -> Result<v1::HelloResponse, Problem> {
        let correlation = self.correlation();
        self.hello_within(member, r)
            .await
            .map_err(|refusal| refusal.into_problem(correlation))
    }

    async fn hello_within(
        &self,
        member: &Member,
        r: v1::HelloRequest,
    ) -> Result<v1::HelloResponse, Refusal> {
        check_version(r.version)?;
        let instance = parse_instance(&r.instance_id)?;
        check_boot_id(&r.boot_id)?;
        let name = &member.host.name;
        let before = not_superseded(member, instance)?;
        let (host, changed) = self
            .update_host("fleet.hello", Lane::Normal, name, |stored| {
                let row = still_member(member, stored)?;
                let settled =
                    row.spki_sha256 == member.spki_sha256 && row.previous_spki_sha256.is_none();
                if row.instance == Some(instance) && row.boot_id == r.boot_id && settled {
                    return Ok(None);
                }
                let mut event = self.event(Stage::Operate, "agent_started", Outcome::Ok)?;
                event.agent = Some(self.agent_id(&row.name));
                event
                    .facts
                    .insert("instance".to_owned(), instance.to_string());
                event.facts.insert("boot_id".to_owned(), r.boot_id.clone());
                let row = HostRow {
                    state: AgentState::Active,
                    last_heard: Some(self.clock.wall()),
                    boot_id: r.boot_id.clone(),
                    instance: Some(instance),
                    // Whoever speaks with the newest key has it: the one before is void.
                    previous_spki_sha256: row
                        .previous_spki_sha256
                        .filter(|_| row.spki_sha256 != member.spki_sha256),
                    ..row
                };
                Ok(Some(Change::new(row, event.into())))
            })
            .await?;
        let host = host.ok_or_else(|| gone(member))?;
        let renew_at = {
            let mut live = host.live();
            live.step(AgentEvent::Heard, self.clock.boottime());
            live.last_heard = self.clock.boottime();
            live.last_heard_at = Some(self.clock.wall());
            live.supersede(before.filter(|before| *before != instance));
            renew_identity_at(live.row.certificate_expires_at)
        };
        if changed {
            tracing::info!(host = %name, %instance, "agent says hello");
        }
        // Before the answer: the agent may take new tasks only once the old ones are ending.
        let ended = of_earlier_boots(&r.boot_id, &self.standing(name.as_str())?);
        if !ended.is_empty() {
            tracing::info!(host = %name, tasks = ended.len(), "the host booted; its earlier tasks are completed");
            self.complete_tasks(ended, EndCause::Lost).await;
        }
        Ok(self.hello_answer(renew_at))
    }

    fn hello_answer(&self, renew_at: UnixMillis) -> v1::HelloResponse {
        v1::HelloResponse {
            version: Some(VERSION),
            trust_domain: self.installation.trust_domain.to_string(),
            installation: self.installation.id.clone(),
            issuer: self.installation.issuer.clone(),
            heartbeat_milliseconds: u32::try_from(HEARTBEAT_MILLIS).unwrap_or(u32::MAX),
            log_key: self.keys.load().log_vkey().to_owned(),
            renew_identity_at: renew_at.as_millis(),
            ca_bundle: Some(self.ca_bundle()),
        }
    }

    /// Open tasks of a host.
    pub(super) fn standing(&self, host: &str) -> Result<Vec<Standing>, Refusal> {
        let rows = self
            .ledger
            .reader()
            .open_tasks_of(host)
            .map_err(store_unavailable)?;
        Ok(rows.iter().map(Standing::from).collect())
    }

    /// Ends all open tasks of a host. What cannot be read now is found by the next sweep.
    pub(crate) async fn end_tasks_of(&self, host: &str, cause: EndCause) {
        match self.standing(host) {
            Ok(open) if open.is_empty() => {}
            Ok(open) => {
                self.complete_tasks(open.into_iter().map(|task| task.id).collect(), cause)
                    .await
            }
            Err(refusal) => tracing::error!(
                host,
                detail = refusal.detail,
                "cannot read the open tasks of a host"
            ),
        }
    }
}

/// The start that is current now, unless the caller is one that another has followed. Two of one
/// identity would otherwise take turns for ever, each turn an event.
fn not_superseded(member: &Member, caller: InstanceId) -> Result<Option<InstanceId>, Refusal> {
    let live = member.host.live();
    if !live.superseded.contains(&caller) {
        return Ok(live.row.instance);
    }
    let host = member.host();
    tracing::warn!(%host, instance = %caller, "an earlier start of an agent speaks again: its state was copied");
    let detail = format!(
        "a later start of the agent of `{host}` is active. Was this host or its state copied? Then ban it, and join \
         again. If not, restart this agent"
    );
    Err(Refusal::new(Code::StaleInstance, detail))
}

impl Live {
    /// Remembers a start that was followed by another.
    fn supersede(&mut self, start: Option<InstanceId>) {
        let Some(start) = start.filter(|start| !self.superseded.contains(start)) else {
            return;
        };
        if self.superseded.len() >= limits::SUPERSEDED_STARTS {
            self.superseded.pop_front();
        }
        self.superseded.push_back(start);
    }
}

/// The stored row, if the caller's key is still one of this host's: it was checked when the
/// request came, and a ban or a re-join may have been committed since.
pub(super) fn still_member(member: &Member, stored: Option<HostRow>) -> Result<HostRow, Refusal> {
    let row = stored.ok_or_else(|| gone(member))?;
    if row.state == AgentState::Banned {
        return Err(Refusal::new(
            Code::AgentBanned,
            format!("host `{}` is banned", row.name),
        ));
    }
    let used = Some(member.spki_sha256);
    if Some(row.spki_sha256) == used || row.previous_spki_sha256 == used {
        Ok(row)
    } else {
        Err(gone(member))
    }
}

fn gone(member: &Member) -> Refusal {
    let detail = format!("the certificate of host `{}` was replaced", member.host());
    Refusal::new(Code::Unauthenticated, detail)
}

fn check_boot_id(boot_id: &str) -> Result<(), Refusal> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if (1..=limits::BOOT_ID).contains(&boot_id.len()) && boot_id.bytes().all(allowed) {
        return Ok(());
    }
    let detail = "`boot_id` is not the text of /proc/sys/kernel/random/boot_id";
    Err(Refusal::new(Code::InvalidRequest, detail))
}

/// At two thirds of its life.
fn renew_identity_at(expires_at: UnixMillis) -> UnixMillis {
    expires_at.saturating_sub_millis(limits::AGENT_CERTIFICATE_SECONDS * 1000 / 3)
}
