//! A host joins: one token, one winner, one certificate.
//!
//! Token and host change in one commit, each guarded by its version, so that of any number of
//! parallel redemptions one wins. The certificate is signed after that commit is durable.
//! What was wrong with a token is for the audit log; the caller learns what it may do.

use ephor_crypto::digest::sha256;
use ephor_crypto::p256::P256Public;
use ephor_crypto::x509::verify_csr;
use ephor_proto::event::Outcome;
use ephor_proto::grpc::{VERSION, compatible, v1};
use ephor_proto::problem::{Code, Problem};
use ephor_proto::spiffe::{HostName, HostPattern};
use ephor_proto::stage::Stage;
use ephor_proto::state::agent::{AgentEvent, AgentState};
use ephor_proto::state::task::EndCause;
use ephor_proto::state::{Effect, agent};
use ephor_proto::time::UnixMillis;

use super::token::Presented;
use super::update::Change;
use crate::app::Broker;
use crate::issue::{defect, store_unavailable};
use crate::ledger::{HostRow, JoinTokenRow, Lane, Row};
use crate::limits;
use crate::request::{Refusal, RefusalKey};

/// A join that is well-formed; whether it may is decided against the store.
struct Joining {
    host: HostName,
    key: P256Public,
    token: Presented,
}

/// Why a token was refused. Told to the audit log, not to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Because {
    Unknown,
    Used,
    Expired,
    OtherHost,
    Living,
    BeforeBan,
}

impl Because {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "no such token",
            Self::Used => "already used",
            Self::Expired => "expired",
            Self::OtherHost => "not for this host",
            Self::Living => "the name belongs to a living agent",
            Self::BeforeBan => "made before the host was banned",
        }
    }
}

impl Broker {
    /// Redeems a join token.
    ///
    /// # Errors
    /// `version_skew`, `invalid_request`, `join_refused`, or what the store says.
    pub async fn join(&self, r: v1::JoinRequest) -> Result<v1::JoinResponse, Problem> {
        let correlation = self.correlation();
        self.join_within(r)
            .await
            .map_err(|refusal| refusal.into_problem(correlation))
    }

    async fn join_within(&self, r: v1::JoinRequest) -> Result<v1::JoinResponse, Refusal> {
        check_version(r.version)?;
        let now = self.may_issue()?;
        let joining = parse(r)?;
        let mut refused = None;
        self.update_host("fleet.join", Lane::Normal, &joining.host, |stored| {
            let (change, because) = self.decide_join(&joining, stored, now)?;
            refused = because;
            Ok(change)
        })
        .await?;
        if let Some(because) = refused {
            return Err(self.refuse_join(&joining, because).await);
        }
        crate::crash_point!("join.after_commit");
        // The new holder of the name cannot speak for what the old one held.
        self.end_tasks_of(joining.host.as_str(), EndCause::Lost)
            .await;
        let id = self.agent_id(joining.host.as_str());
        let (certificate_der, _) = self
            .keys
            .load()
            .issue_agent(&id, &joining.key.spki(), now)
            .map_err(defect)?;
        tracing::info!(host = %joining.host, join_token = %joining.token.id, "host joined");
        Ok(v1::JoinResponse {
            certificate_der,
            ca_certificates_der: self.trusted_cas(),
            trust_domain: self.installation.trust_domain.to_string(),
            installation: self.installation.id.clone(),
        })
    }

    /// The change that a redemption makes, or why it is refused.
    fn decide_join(
        &self,
        joining: &Joining,
        stored: Option<HostRow>,
        now: UnixMillis,
    ) -> Result<(Option<Change>, Option<Because>), Refusal> {
        let token = self
            .ledger
            .reader()
            .join_token(&joining.token.hash)
            .map_err(store_unavailable)?;
        let token = match self.check_token(joining, token, stored.as_ref(), now) {
            Ok(token) => token,
            Err(because) => return Ok((None, Some(because))),
        };
        if stored.is_none() && self.fleet.len() >= limits::HOSTS {
            return Err(Refusal::new(
                Code::Busy,
                format!("{} hosts are known here already", limits::HOSTS),
            ));
        }
        let ends = now
            .saturating_add_millis(limits::AGENT_CERTIFICATE_SECONDS * 1000)
            .min(self.keys.load().ca_end());
        let row = HostRow {
            name: joining.host.to_string(),
            version: 0,
            state: AgentState::Joined,
            joined_at: now,
            last_heard: None,
            boot_id: String::new(),
            instance: None,
            spki_sha256: sha256(&joining.key.spki()),
            previous_spki_sha256: None,
            certificate_expires_at: ends.floor_second(),
            generation: stored.map_or(1, |row| row.generation.saturating_add(1)),
            banned_at: None,
            epoch: self.installation.epoch,
        };
        let mut event = self.event(Stage::Operate, "joined", Outcome::Ok)?;
        event.agent = Some(self.agent_id(&row.name));
        event
            .facts
            .insert("join_token".to_owned(), token.id.to_string());
        event
            .facts
            .insert("generation".to_owned(), row.generation.to_string());
        let mut change = Change::new(row, event.into());
        change.rows.push(Row::JoinToken(JoinTokenRow {
            version: token.version.saturating_add(1),
            used_by: Some(joining.host.to_string()),
            ..token
        }));
        Ok((Some(change), None))
    }

    fn check_token(
        &self,
        joining: &Joining,
        token: Option<JoinTokenRow>,
        stored: Option<&HostRow>,
        now: UnixMillis,
    ) -> Result<JoinTokenRow, Because> {
        let token = token.ok_or(Because::Unknown)?;
        if token.used_by.is_some() {
            return Err(Because::Used);
        }
        if now >= token.expires_at {
            return Err(Because::Expired);
        }
        let pattern: Result<HostPattern, _> = token.host_pattern.parse();
        if !pattern.is_ok_and(|pattern| pattern.matches(&joining.host)) {
            return Err(Because::OtherHost);
        }
        let Some(row) = stored else { return Ok(token) };
        if row
            .banned_at
            .is_some_and(|banned_at| token.id.unix_millis() <= banned_at.as_millis())
        {
            return Err(Because::BeforeBan);
        }
        // What is stored does not know of silence: the living state does.
        let state = self
            .fleet
            .find(&row.name)
            .map_or(row.state, |host| host.live().state);
        let admitted = agent::step(state, AgentEvent::Rejoin, self.clock.boottime())
            .is_ok_and(|(_, effects)| effects.contains(Effect::Admit));
        if admitted {
            Ok(token)
        } else {
            Err(Because::Living)
        }
    }

    /// One answer for all reasons: who holds a wrong token learns nothing about the right ones.
    async fn refuse_join(&self, joining: &Joining, because: Because) -> Refusal {
        let refusal = match because {
            Because::Living => Refusal::new(
                Code::JoinRefused,
                format!(
                    "host `{}` has a living agent; ban it first (ephor host ban {0}) or use another name",
                    joining.host
                ),
            ),
            Because::Unknown
            | Because::Used
            | Because::Expired
            | Because::OtherHost
            | Because::BeforeBan => Refusal::new(
                Code::JoinRefused,
                format!(
                    "the join token is used, expired, or not for host `{}`; \
                         get a new one (ephor host invite {0}) and try again",
                    joining.host
                ),
            ),
        };
        tracing::warn!(host = %joining.host, join_token = %joining.token.id, because = because.as_str(), "join refused");
        let mut event = match self.event(Stage::Operate, "join_refused", Outcome::Denied) {
            Ok(event) => event,
            Err(error) => return error,
        };
        event.code = Some(Code::JoinRefused);
        event.cause = Some(because.as_str().to_owned());
        event
            .facts
            .insert("host".to_owned(), joining.host.to_string());
        event
            .facts
            .insert("join_token".to_owned(), joining.token.id.to_string());
        let known = because != Because::Unknown;
        let key = RefusalKey {
            // Anyone can make up names and ids: unknown tokens share one window.
            host: if known {
                joining.host.to_string()
            } else {
                "(unknown)".to_owned()
            },
            who: if known {
                joining.token.id.to_string()
            } else {
                "(unknown)".to_owned()
            },
            what: because.as_str().to_owned(),
            code: Code::JoinRefused,
        };
        self.note_refusal(key, event, None).await;
        refusal
    }
}

/// The versions of both ends must be at most one minor version apart.
pub(super) fn check_version(theirs: Option<v1::Version>) -> Result<(), Refusal> {
    let theirs = theirs.unwrap_or_default();
    if compatible(VERSION, theirs) {
        return Ok(());
    }
    let detail = format!(
        "this broker speaks version {}.{}, the agent {}.{}; they may be one minor version apart: upgrade the older one",
        VERSION.major, VERSION.minor, theirs.major, theirs.minor
    );
    Err(Refusal::new(Code::VersionSkew, detail))
}

fn parse(r: v1::JoinRequest) -> Result<Joining, Refusal> {
    let invalid = |detail: String| Refusal::new(Code::InvalidRequest, detail);
    let text = ephor_crypto::Secret::from_string(r.token);
    let host = r
        .host
        .parse()
        .map_err(|error| invalid(format!("`host`: {error}")))?;
    if r.csr_der.len() > limits::CSR {
        return Err(Refusal::new(
            Code::TooLarge,
            format!("`csr_der` has more than {} bytes", limits::CSR),
        ));
    }
    let key = verify_csr(&r.csr_der).map_err(|error| invalid(format!("`csr_der`: {error}")))?;
    let token = text.expose_str().ok().and_then(Presented::parse);
    let token = token.ok_or_else(|| {
        invalid("`token` is no join token (ej1.…); check that it was copied whole".to_owned())
    })?;
    Ok(Joining { host, key, token })
}
