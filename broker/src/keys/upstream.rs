//! A CA of ours that another one signs: the request goes out, the chain comes in.
//!
//! The key is made here and never leaves. What comes in is checked by issuing under it, before
//! anyone is told to trust it; from then on it rotates as any other.

use std::net::IpAddr;

use ephor_crypto::p256::SigningKey;
use ephor_crypto::x509::{ca_csr, certificates_of_pem, check_chain};
use ephor_proto::http::admin;
use ephor_proto::problem::Code;

use super::rotate::stored_keys;
use super::server::Names;
use super::state::{KeyKind, KeyState, moved, next_version};
use super::{fresh, open};
use crate::app::Broker;
use crate::issue::{defect, store_unavailable};
use crate::ledger::KeyRow;
use crate::limits;
use crate::request::Refusal;

impl Broker {
    /// The request for the certificate of our next CA, PEM. Asked again before a chain came in, it
    /// is for the same key.
    ///
    /// # Errors
    /// When the clock or the store cannot be trusted now.
    pub async fn ca_request(&self, reason: &str) -> Result<String, Refusal> {
        let _one_at_a_time = self.rotating.lock().await;
        let now = self.may_issue()?;
        let rows = stored_keys(&self.ledger).map_err(store_unavailable)?;
        let (row, key) = match requested(&rows) {
            Some(row) => (row.clone(), self.private(row)?),
            None => {
                let key = SigningKey::generate().map_err(defect)?;
                let place = (next_version(&rows, KeyKind::Ca), KeyState::Requested);
                let pair = (key.to_pkcs8(), key.public_key().spki());
                let row =
                    fresh::seal(&self.sealer, KeyKind::Ca, place, pair, now).map_err(defect)?;
                self.write_keys(vec![row.clone()], reason).await?;
                (row, key)
            }
        };
        let domain = &self.installation.trust_domain;
        let name = format!("Ephor {domain} {} {}", self.installation.id, row.version);
        ca_csr(&key, &fresh::common_name(name), domain.as_str()).map_err(defect)
    }

    /// Takes the chain that was signed for our request, and publishes its CA as the next one. One that was
    /// published before it, and never used, gives way.
    ///
    /// # Errors
    /// `conflict` without a request, `invalid_request` with a chain under which nothing could be issued.
    pub async fn import_ca(&self, asked: &admin::Chain) -> Result<Vec<admin::Key>, Refusal> {
        let _one_at_a_time = self.rotating.lock().await;
        let now = self.may_issue()?;
        let rows = stored_keys(&self.ledger).map_err(store_unavailable)?;
        let Some(row) = requested(&rows) else {
            let detail = "no request is out that this chain could answer; make one first: ephor broker ca csr";
            return Err(Refusal::new(Code::Conflict, detail));
        };
        let chain = self.checked_chain(row, &asked.chain_pem, now.as_unix_seconds())?;
        let (own, above) = chain
            .split_first()
            .ok_or_else(|| defect("an empty chain was accepted"))?;
        let next = KeyRow {
            public: own.clone(),
            chain: above.concat(),
            ..moved(
                row,
                KeyKind::Ca,
                KeyState::Prepared,
                super::rotate::after_all(&rows, now),
            )
        };
        let unused = rows
            .iter()
            .filter(|row| row.name == next.name && row.state == KeyState::Prepared);
        let mut written: Vec<KeyRow> = unused
            .map(|row| moved(row, KeyKind::Ca, KeyState::Destroyed, next.since))
            .collect();
        written.push(next);
        self.write_keys(written, &asked.reason).await?;
        self.list_keys()
    }

    fn checked_chain(
        &self,
        row: &KeyRow,
        pem: &str,
        now_unix: u64,
    ) -> Result<Vec<Vec<u8>>, Refusal> {
        let invalid = |detail: String| Refusal::new(Code::InvalidRequest, detail);
        if pem.len() > limits::CHAIN_BYTES {
            let detail = format!("the chain is longer than {} bytes", limits::CHAIN_BYTES);
            return Err(Refusal::new(Code::TooLarge, detail));
        }
        let chain =
            certificates_of_pem(pem.as_bytes()).map_err(|error| invalid(error.to_string()))?;
        if chain.len() > limits::CHAIN_CERTIFICATES {
            let most = limits::CHAIN_CERTIFICATES;
            return Err(invalid(format!(
                "the chain has more than {most} certificates"
            )));
        }
        let domain = &self.installation.trust_domain;
        // Our own server certificate is tried: name constraints may forbid any of its names.
        let loopback = || Names::new(domain, &[], IpAddr::from([127, 0, 0, 1]));
        let names = self.server_names.get().cloned().unwrap_or_else(loopback);
        let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        // As long as it is needed at least: its lead, and one agent's certificate under it.
        let least = self.schedule.ca_lead / 1000 + limits::AGENT_CERTIFICATE_SECONDS;
        let times = (signed(now_unix), signed(now_unix.saturating_add(least)));
        let key = self.private(row)?;
        names
            .in_certificate(|names| check_chain(&chain, key, names, times, domain.as_str()))
            .map_err(|error| invalid(error.to_string()))?;
        Ok(chain)
    }

    fn private(&self, row: &KeyRow) -> Result<SigningKey, Refusal> {
        let secret = open(&self.sealer, row).map_err(defect)?;
        SigningKey::from_pkcs8(&secret).map_err(defect)
    }
}

fn requested(rows: &[KeyRow]) -> Option<&KeyRow> {
    rows.iter()
        .find(|row| row.name == KeyKind::Ca.as_str() && row.state == KeyState::Requested)
}

#[cfg(test)]
mod tests;
