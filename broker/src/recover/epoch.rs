//! `ephor broker recover`: a new epoch, because nobody can tell what an old copy lacks.
//!
//! One commit, so that half a recovery is none: new token key and CAs, the old ones distrusted at
//! once, everything stored live revoking, join tokens void, hosts that were not named locked out, and
//! the log goes on under a new name. It ends this run of the broker, which then opens the store anew.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ephor_crypto::x509::CaCertificate;
use ephor_proto::event::{AuditEvent, Outcome};
use ephor_proto::http::admin;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::HostName;
use ephor_proto::stage::Stage;
use ephor_proto::time::UnixMillis;
use serde::{Deserialize, Serialize};

use super::behind;
use crate::app::Broker;
use crate::issue::{defect, refused_by_store, store_unavailable};
use crate::keys::rotate::stored_keys;
use crate::keys::state::KeyKind;
use crate::keys::{Keys, Owner, serial};
use crate::ledger::{Batch, CommitError, KeyRow, Lane, Ledger, NewEpoch, ReadError, Reason, Row};
use crate::limits;
use crate::request::Refusal;
use crate::revoke::Places;

/// Name of the setting that says who may come back, and how.
const READMISSION: &str = "readmission";
/// Name of the setting that lists the origins of the logs of earlier epochs.
const FORMER: &str = "former_origins";
/// Name of the setting that says which numbers status lists have.
const PLACES: &str = "status_list_places";

/// Who of the epoch before may come back with the certificate that it has, to get a new one.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct StoredReadmission {
    epoch: u32,
    until: UnixMillis,
    /// `None` is all, also those that the store does not know.
    hosts: Option<BTreeSet<String>>,
    /// The CAs that were trusted then, DER in base64.
    cas: Vec<String>,
    /// The new CA's certificate by the old one: how those who trust only that one know the broker.
    bridge: String,
}

/// See [`StoredReadmission`].
#[derive(Debug, Clone)]
pub(crate) struct Readmission {
    stored: StoredReadmission,
    cas: Vec<CaCertificate>,
    bridge: Vec<u8>,
}

impl Readmission {
    /// As stored, unless its time is over.
    pub(crate) fn load(ledger: &Ledger, now: UnixMillis) -> Result<Option<Self>, ReadError> {
        let stored = ledger.reader().meta(READMISSION)?;
        let Some(stored) = stored.and_then(|text| serde_json::from_str(&text).ok()) else {
            return Ok(None);
        };
        let stored: StoredReadmission = stored;
        let read = |text: &String| STANDARD.decode(text).ok();
        let cas = stored.cas.iter().filter_map(read);
        let cas = cas
            .filter_map(|der| CaCertificate::from_der(&der).ok())
            .collect();
        let bridge = read(&stored.bridge).unwrap_or_default();
        let is_open = now < stored.until;
        Ok(is_open.then_some(Self {
            stored,
            cas,
            bridge,
        }))
    }

    /// The CAs of the epoch before: good for coming back, and for nothing else.
    pub(crate) fn cas(&self) -> &[CaCertificate] {
        &self.cas
    }

    /// Whether a CA with this key identifier is one of those. Its signature is the handshake's to
    /// check.
    pub(crate) fn issued(&self, authority_key_id: &[u8]) -> bool {
        self.cas.iter().any(|ca| ca.key_id() == authority_key_id)
    }

    /// To send behind our own certificate.
    pub(crate) fn bridge(&self) -> &[u8] {
        &self.bridge
    }

    /// The epoch that they come back to.
    pub(crate) fn epoch(&self) -> u32 {
        self.stored.epoch
    }

    /// Whether a host may come back at `now`.
    pub(crate) fn admits(&self, host: &str, now: UnixMillis) -> bool {
        let named = self.stored.hosts.as_ref();
        now < self.stored.until && named.is_none_or(|hosts| hosts.contains(host))
    }
}

/// Origins of the logs of earlier epochs.
pub(crate) fn former_origins(ledger: &Ledger) -> Result<Vec<String>, ReadError> {
    let stored = ledger.reader().meta(FORMER)?;
    Ok(stored
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default())
}

/// Where the status lists of this epoch begin.
pub(crate) fn places(ledger: &Ledger) -> Result<Places, ReadError> {
    let stored = ledger.reader().meta(PLACES)?;
    Ok(stored
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default())
}

impl Broker {
    /// Begins a new epoch. When this returns, this run writes no more; see
    /// `Broker::epoch_ended`.
    ///
    /// # Errors
    /// `conflict` when nothing says that this store is old and it was not forced;
    /// `invalid_request`, or what the store says. Nothing was changed then.
    pub async fn recover(&self, asked: &admin::Recover) -> Result<admin::Recovered, Refusal> {
        let behind = self.behind();
        if behind.is_none() && !asked.force {
            let detail = "nothing says that this store is older than what others have seen of it; a new epoch \
                          revokes everything. If you know better: --force";
            return Err(Refusal::new(Code::Conflict, detail));
        }
        if self.ledger.health().reserve_in_use {
            let detail =
                "the store is full, and some revocations lie in its reserve; free space first";
            return Err(Refusal::new(Code::StoreFull, detail));
        }
        let admit = hosts(asked.admit.as_deref())?;
        // To the end: no rotation may read the keys before this commit and write them after it.
        let _one_at_a_time = self.rotating.lock().await;
        let now = self.clock.wall();
        let next = Next::of(self, admit, now)?;
        let live = self
            .ledger
            .reader()
            .live_count()
            .map_err(store_unavailable)?;
        let mut event = self.event(Stage::Operate, "recovered", Outcome::Ok)?;
        event.epoch = next.epoch;
        self.describe(&mut event, &next, behind.as_deref(), live);
        let event = self.with_reason(event, &asked.reason)?;
        // What was refused so far is still of this epoch.
        self.write_refusals(true).await;
        let answer = next.answer(live);
        let batch = Batch {
            name: "operate.recovered",
            lane: Lane::Normal,
            require: Vec::new(),
            rows: next.rows()?,
            events: vec![event],
        };
        let ticket = self
            .ledger
            .submit(batch)
            .map_err(|full| Refusal::new(Code::Busy, full.to_string()))?;
        match ticket.await {
            Ok(_) => {}
            // It is not ours any more, and whose it is the next start finds out.
            Err(CommitError::Refused(Reason::EpochLost)) => {
                self.ended_epoch.cancel();
                let detail = "this epoch has ended already; see `ephor broker status`";
                return Err(Refusal::new(Code::Conflict, detail));
            }
            Err(CommitError::Refused(reason)) => return Err(refused_by_store(&reason)),
            Err(CommitError::Conflict(key)) => return Err(defect(format!("{key} changed"))),
            // The next start finds what is so.
            Err(CommitError::Unknown) => {
                self.ended_epoch.cancel();
                let detail =
                    "it is not known whether the new epoch began; see `ephor broker status`";
                return Err(Refusal::new(Code::StoreUnavailable, detail));
            }
        }
        tracing::warn!(
            epoch = answer.epoch,
            origin = answer.origin,
            "a new epoch began"
        );
        self.ended_epoch.cancel();
        Ok(answer)
    }

    /// What goes behind our own certificate for agents of the epoch before.
    pub(crate) fn bridge(&self) -> Option<&[u8]> {
        self.readmission.as_ref().map(Readmission::bridge)
    }

    /// Resolves when this run's epoch has ended: the store has to be opened anew.
    pub(crate) async fn epoch_ended(&self) {
        self.ended_epoch.cancelled().await;
    }

    fn describe(
        &self,
        event: &mut AuditEvent,
        next: &Next,
        behind: Option<&super::Behind>,
        live: u64,
    ) {
        let mut fact = |name: &str, value: String| {
            event.facts.insert(name.to_owned(), value);
        };
        fact("origin", next.origin.clone());
        fact("origin_before", self.installation.origin.clone());
        fact("credentials", live.to_string());
        fact(
            "admit",
            next.admit
                .as_ref()
                .map_or_else(|| "all".to_owned(), |hosts| hosts.len().to_string()),
        );
        if let Some(behind) = behind {
            fact("seen_size", behind.seen_size.to_string());
            if let Some(host) = &behind.host {
                fact("seen_by", host.clone());
                // So that whoever holds the lost log can show where this one left it.
                fact(
                    "seen_root",
                    behind.seen.lines().nth(2).unwrap_or_default().to_owned(),
                );
            }
        }
    }
}

/// The names in an admission; `None` is all.
fn hosts(admit: Option<&[String]>) -> Result<Option<BTreeSet<String>>, Refusal> {
    let Some(admit) = admit else { return Ok(None) };
    if admit.len() > limits::HOSTS {
        return Err(Refusal::new(
            Code::TooLarge,
            "`admit` names more hosts than there may be",
        ));
    }
    let checked = admit.iter().map(|name| {
        let parsed: Result<HostName, _> = name.parse();
        parsed
            .map(|name| name.to_string())
            .map_err(|error| Refusal::new(Code::InvalidRequest, format!("`admit`: {error}")))
    });
    checked.collect::<Result<_, _>>().map(Some)
}

/// All that the new epoch will be.
struct Next {
    epoch: u32,
    origin: String,
    admit: Option<BTreeSet<String>>,
    keys: Vec<KeyRow>,
    readmission: StoredReadmission,
    places: Places,
    former: Vec<String>,
    now: UnixMillis,
}

impl Next {
    fn of(
        broker: &Broker,
        admit: Option<BTreeSet<String>>,
        now: UnixMillis,
    ) -> Result<Self, Refusal> {
        let installation = &broker.installation;
        let epoch = installation.epoch.saturating_add(1);
        let random: [u8; 4] = ephor_crypto::random::bytes().map_err(defect)?;
        // The epoch alone would come again when an older copy is restored another time.
        let origin = format!(
            "{}/{}.{epoch}.{}",
            installation.trust_domain,
            installation.id,
            ephor_crypto::digest::hex(&random)
        );
        let owner = Owner {
            trust_domain: &installation.trust_domain,
            installation: &installation.id,
        };
        let stored = stored_keys(&broker.ledger).map_err(store_unavailable)?;
        // That for databases, too: the copy may have been made before it was distrusted.
        let kinds = [KeyKind::Ca, KeyKind::Token, KeyKind::Database];
        let written =
            Keys::replace_all(&broker.sealer, &stored, &kinds, owner, now).map_err(defect)?;
        let keys = broker.keys.load();
        // The log key signs on.
        let log = KeyKind::Log.as_str();
        let stays = stored.into_iter().filter(|row| row.name == log);
        let all: Vec<KeyRow> = written.iter().cloned().chain(stays).collect();
        let new = Keys::unseal(&broker.sealer, &all, &installation.trust_domain, &origin)
            .map_err(defect)?;
        let until = now.saturating_add_millis(limits::AGENT_CERTIFICATE_SECONDS * 1000);
        let old_end = keys.ca().certificate().not_after();
        let seconds = |time: UnixMillis| i64::try_from(time.as_unix_seconds()).unwrap_or(i64::MAX);
        let begin = now.saturating_sub_millis(limits::CERTIFICATE_BACKDATE_SECONDS * 1000);
        let bridge = keys.ca().cross_sign(
            new.ca(),
            serial().map_err(defect)?,
            seconds(begin),
            seconds(until).min(old_end),
        );
        let trusted = keys.trusted();
        let readmission = StoredReadmission {
            epoch,
            until,
            hosts: admit.clone(),
            cas: trusted.iter().map(|ca| STANDARD.encode(ca.der())).collect(),
            bridge: STANDARD.encode(bridge.map_err(defect)?),
        };
        let places = places(&broker.ledger).map_err(store_unavailable)?.next(now);
        let mut former = broker.former_origins.clone();
        former.push(installation.origin.clone());
        Ok(Self {
            epoch,
            origin,
            admit,
            keys: written,
            readmission,
            places,
            former,
            now,
        })
    }

    fn answer(&self, live: u64) -> admin::Recovered {
        admin::Recovered {
            epoch: u64::from(self.epoch),
            origin: self.origin.clone(),
            credentials: live,
            readmission_until: self.readmission.until,
        }
    }

    fn rows(self) -> Result<Vec<Row>, Refusal> {
        let meta = |name: &str, value: String| Row::Meta(name.to_owned(), value);
        let mut rows: Vec<Row> = self.keys.into_iter().map(Row::Key).collect();
        rows.push(meta(behind::META, String::new()));
        let readmission = serde_json::to_string(&self.readmission).map_err(defect)?;
        rows.push(meta(READMISSION, readmission));
        rows.push(meta(
            PLACES,
            serde_json::to_string(&self.places).map_err(defect)?,
        ));
        let former = serde_json::to_string(&self.former).map_err(defect)?;
        rows.push(meta(FORMER, former));
        rows.push(Row::NewEpoch(NewEpoch {
            origin: self.origin,
            admit: self.admit.map(|hosts| hosts.into_iter().collect()),
            at: self.now,
        }));
        Ok(rows)
    }
}

#[cfg(test)]
mod tests;
