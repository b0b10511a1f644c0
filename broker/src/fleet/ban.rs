//! Banning a host, and listing hosts.

use ephor_proto::event::Outcome;
use ephor_proto::http::admin;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::HostName;
use ephor_proto::stage::Stage;
use ephor_proto::state::agent::AgentState;
use ephor_proto::state::task::EndCause;

use super::Host;
use super::update::Change;
use crate::app::Broker;
use crate::issue::store_unavailable;
use crate::ledger::{HostRow, Lane};
use crate::request::Refusal;

impl Broker {
    /// Locks a host out: its requests are refused and its connections cut as soon as that is
    /// durable, its tasks are completed. Banning twice changes nothing.
    ///
    /// # Errors
    /// `not_found`, or what the store says.
    pub async fn ban(&self, host: &str, reason: &str) -> Result<admin::Host, Refusal> {
        let unknown = || {
            Refusal::new(
                Code::NotFound,
                format!("no host `{host}` has joined here (ephor host ls)"),
            )
        };
        let name: HostName = host.parse().map_err(|_| unknown())?;
        let (found, changed) = self
            .update_host("fleet.ban", Lane::Revoke, &name, |stored| {
                let row = stored.ok_or_else(unknown)?;
                if row.state == AgentState::Banned {
                    return Ok(None);
                }
                let mut event = self.event(Stage::Operate, "banned", Outcome::Ok)?;
                event.agent = Some(self.agent_id(&row.name));
                let banned_at = Some(event.time);
                let event = self.with_reason(event, reason)?;
                let row = HostRow {
                    state: AgentState::Banned,
                    banned_at,
                    ..row
                };
                Ok(Some(Change::new(row, event)))
            })
            .await?;
        let found = found.ok_or_else(unknown)?;
        if changed {
            tracing::warn!(
                host,
                "host banned; its connections are cut, its tasks completed"
            );
        }
        // Recovery revokes everything; until then nothing here is known well enough to be ended.
        if self.vouch().is_ok() {
            self.end_tasks_of(host, EndCause::Revoked).await;
        }
        self.listed_host(&found)
    }

    /// All hosts, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn hosts(&self) -> Result<Vec<admin::Host>, Refusal> {
        let mut hosts: Vec<admin::Host> = self
            .fleet
            .all()
            .iter()
            .map(|host| self.listed_host(host))
            .collect::<Result<_, _>>()?;
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(hosts)
    }

    fn listed_host(&self, host: &Host) -> Result<admin::Host, Refusal> {
        let name = host.name.as_str();
        let open = self
            .ledger
            .reader()
            .open_tasks_of(name)
            .map_err(store_unavailable)?;
        let live = host.live();
        Ok(admin::Host {
            name: name.to_owned(),
            state: live.state.as_str().to_owned(),
            joined_at: live.row.joined_at,
            last_heard: live.last_heard_at,
            open_tasks: open.len() as u64,
            certificate_expires_at: live.row.certificate_expires_at,
        })
    }
}
