//! A new certificate for an agent that is already here.
//!
//! The new key is bound to the host of the channel; the caller's present key stays good
//! until the new one is used, because the answer may get lost.

use ephor_crypto::digest::sha256;
use ephor_crypto::p256::P256Public;
use ephor_proto::event::Outcome;
use ephor_proto::grpc::v1;
use ephor_proto::problem::{Code, Problem};
use ephor_proto::stage::Stage;

use super::hello::still_member;
use super::update::Change;
use super::{Member, parse_instance};
use crate::app::Broker;
use crate::issue::defect;
use crate::ledger::{HostRow, Lane};
use crate::limits;
use crate::request::Refusal;

impl Broker {
    /// Certifies the caller's next key.
    ///
    /// # Errors
    /// `stale_instance`, `invalid_request`, or what the store says.
    pub async fn renew_identity(
        &self,
        member: &Member,
        r: v1::RenewIdentityRequest,
    ) -> Result<v1::RenewIdentityResponse, Problem> {
        let correlation = self.correlation();
        self.renew_within(member, r)
            .await
            .map_err(|refusal| refusal.into_problem(correlation))
    }

    async fn renew_within(
        &self,
        member: &Member,
        r: v1::RenewIdentityRequest,
    ) -> Result<v1::RenewIdentityResponse, Refusal> {
        let instance = parse_instance(&r.instance_id)?;
        let now = self.may_issue()?;
        let key = P256Public::from_spki(&r.public_key_der).map_err(|error| {
            Refusal::new(Code::InvalidRequest, format!("`public_key_der`: {error}"))
        })?;
        let ends = now
            .saturating_add_millis(limits::AGENT_CERTIFICATE_SECONDS * 1000)
            .min(self.keys.load().ca_end());
        self.update_host(
            "fleet.renew_identity",
            Lane::Normal,
            &member.host.name,
            |stored| {
                let row = still_member(member, stored)?;
                if row.instance != Some(instance) {
                    let detail = format!("another start of the agent on `{}` is current", row.name);
                    return Err(Refusal::new(Code::StaleInstance, detail));
                }
                let row = HostRow {
                    spki_sha256: sha256(&key.spki()),
                    previous_spki_sha256: Some(member.spki_sha256),
                    certificate_expires_at: ends.floor_second(),
                    generation: row.generation.saturating_add(1),
                    ..row
                };
                let mut event = self.event(Stage::Operate, "identity_renewed", Outcome::Ok)?;
                event.agent = Some(self.agent_id(&row.name));
                event
                    .facts
                    .insert("generation".to_owned(), row.generation.to_string());
                Ok(Some(Change::new(row, event.into())))
            },
        )
        .await?;
        let id = self.agent_id(member.host());
        let (certificate_der, until) = self
            .keys
            .load()
            .issue_agent(&id, &key.spki(), now)
            .map_err(defect)?;
        tracing::info!(host = member.host(), %until, "agent certificate renewed");
        Ok(v1::RenewIdentityResponse {
            certificate_der,
            ca_certificates_der: self.trusted_cas(),
        })
    }
}
