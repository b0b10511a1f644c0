//! A host of the epoch before comes back: with the certificate that it has, for a new one, once.
//!
//! The store is too old to know everything. A certificate that it does not know is believed when it
//! is younger than the one it knows, or of a host that joined after the copy was made: the old CA
//! signed it. Bans made after the copy are lost; so only the hosts that an operator named come back.

use ephor_crypto::digest::sha256;
use ephor_crypto::p256::P256Public;
use ephor_proto::event::Outcome;
use ephor_proto::grpc::v1;
use ephor_proto::problem::{Code, Problem};
use ephor_proto::stage::Stage;
use ephor_proto::state::agent::AgentState;
use ephor_proto::time::UnixMillis;

use super::update::Change;
use crate::app::Broker;
use crate::issue::defect;
use crate::ledger::{HostRow, Lane};
use crate::limits;
use crate::recover::Readmission;
use crate::request::Refusal;
use crate::surface::tls::AgentCertificate;

impl Broker {
    /// Certifies a new key for an agent whose certificate is of the epoch before.
    ///
    /// # Errors
    /// `unauthenticated` when that host may not come back, or another key of it has; `agent_banned`.
    pub(crate) async fn readmit(
        &self,
        certificate: &AgentCertificate,
        r: v1::RenewIdentityRequest,
    ) -> Result<v1::RenewIdentityResponse, Problem> {
        let correlation = self.correlation();
        let outcome = self.readmit_within(certificate, &r).await;
        outcome.map_err(|refusal| refusal.into_problem(correlation))
    }

    async fn readmit_within(
        &self,
        certificate: &AgentCertificate,
        r: &v1::RenewIdentityRequest,
    ) -> Result<v1::RenewIdentityResponse, Refusal> {
        let now = self.may_issue()?;
        let name = certificate.host();
        let admitted = self
            .readmission
            .as_ref()
            .filter(|readmission| readmission.admits(name.as_str(), now));
        let readmission = admitted.ok_or_else(|| {
            let detail = format!(
                "a new epoch began here, and host `{name}` was not named to come back; join it again (ephor host \
                 invite {name})"
            );
            Refusal::new(Code::Unauthenticated, detail)
        })?;
        let key = P256Public::from_spki(&r.public_key_der).map_err(|error| {
            Refusal::new(Code::InvalidRequest, format!("`public_key_der`: {error}"))
        })?;
        let ends = now
            .saturating_add_millis(limits::AGENT_CERTIFICATE_SECONDS * 1000)
            .min(self.keys.load().ca_end());
        self.update_host("fleet.readmit", Lane::Normal, name, |stored| {
            let before = check(readmission, certificate, stored)?;
            let row = readmitted(
                &before,
                certificate,
                (&key, now, ends),
                self.installation.epoch,
            );
            let mut event = self.event(Stage::Operate, "readmitted", Outcome::Ok)?;
            event.agent = Some(self.agent_id(&row.name));
            let facts = [
                ("generation", row.generation.to_string()),
                ("known_before", before.is_some().to_string()),
                (
                    "seen_size",
                    r.checkpoint
                        .lines()
                        .nth(1)
                        .unwrap_or("0")
                        .chars()
                        .take(20)
                        .collect(),
                ),
            ];
            let facts = facts.map(|(name, value)| (name.to_owned(), value));
            event.facts.extend(facts);
            Ok(Some(Change::new(row, event.into())))
        })
        .await?;
        let id = self.agent_id(name.as_str());
        let keys = self.keys.load();
        let (certificate_der, until) = keys.issue_agent(&id, &key.spki(), now).map_err(defect)?;
        tracing::warn!(host = %name, %until, "host came back from the epoch before");
        Ok(v1::RenewIdentityResponse {
            certificate_der,
            ca_certificates_der: self.trusted_cas(),
        })
    }
}

/// The stored row, if this certificate may come back for it.
fn check(
    readmission: &Readmission,
    certificate: &AgentCertificate,
    stored: Option<HostRow>,
) -> Result<Option<HostRow>, Refusal> {
    let name = certificate.host();
    let Some(row) = stored else { return Ok(None) };
    if row.state == AgentState::Banned {
        let detail =
            format!("host `{name}` is banned; it can only come back with a new join token");
        return Err(Refusal::new(Code::AgentBanned, detail));
    }
    let shown = certificate.spki_sha256();
    let is_known = row.spki_sha256 == shown || row.previous_spki_sha256 == Some(shown);
    let is_back = row.epoch >= readmission.epoch();
    // Again only for the key that came back first, until the one it got is used: the answer may
    // get lost.
    let may = if is_back {
        row.previous_spki_sha256 == Some(shown)
    } else {
        is_known || certificate.not_after() > row.certificate_expires_at
    };
    if may {
        return Ok(Some(row));
    }
    tracing::warn!(host = %name, "a second certificate of a host wants to come back: it was copied, or replaced");
    let detail = format!(
        "the certificate of host `{name}` was replaced, or another copy of it came back first. Was this host or its \
         state copied? Then ban it, and join again"
    );
    Err(Refusal::new(Code::Unauthenticated, detail))
}

fn readmitted(
    before: &Option<HostRow>,
    certificate: &AgentCertificate,
    (key, now, ends): (&P256Public, UnixMillis, UnixMillis),
    epoch: u32,
) -> HostRow {
    let spki_sha256 = sha256(&key.spki());
    let previous_spki_sha256 = Some(certificate.spki_sha256());
    let certificate_expires_at = ends.floor_second();
    match before {
        Some(row) => HostRow {
            spki_sha256,
            previous_spki_sha256,
            certificate_expires_at,
            generation: row.generation.saturating_add(1),
            epoch,
            ..row.clone()
        },
        None => HostRow {
            name: certificate.host().to_string(),
            version: 0,
            state: AgentState::Joined,
            joined_at: now,
            last_heard: None,
            boot_id: String::new(),
            instance: None,
            spki_sha256,
            previous_spki_sha256,
            certificate_expires_at,
            generation: 1,
            banned_at: None,
            epoch,
        },
    }
}
