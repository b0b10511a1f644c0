//! Keeping certificate and trust set new. Both only ever move on: what fails is tried again, and
//! what is in use stays until it expires.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use ephor_crypto::x509::CaCertificate;
use ephor_proto::time::UnixMillis;

use super::Shared;
use super::held::{Fetched, Held};
use crate::agent::Agent;
use crate::backoff::{Backoff, jittered};
use crate::clock;
use crate::error::Error;
use crate::limits;

/// Asks the agent for a certificate.
pub async fn fetch(
    agent: &Agent,
    entitlement: Option<&str>,
    ttl: Option<Duration>,
) -> Result<Fetched, Error> {
    Fetched::read(agent.certificate(entitlement, ttl).await?)
}

/// Fetches the next certificate when the agent has it, for ever.
pub async fn certificate(shared: Arc<Shared>) {
    let mut backoff = Backoff::new(limits::RENEW_RETRY_FIRST, limits::RENEW_RETRY_MAX);
    loop {
        wait_until(due(&shared.held.load())).await;
        let fetched = fetch(&shared.agent, shared.entitlement.as_deref(), shared.ttl).await;
        match fetched.and_then(|fetched| shared.renew(fetched)) {
            Ok(true) => backoff.reset(),
            // The agent itself still waits for the broker.
            Ok(false) => retry(&shared.held.load(), backoff.next()).await,
            Err(error) => {
                let until = shared.held.load().expires_at;
                tracing::warn!(%error, %until, "the certificate was not renewed; trying again");
                let told = error.retry_after().unwrap_or_default();
                retry(&shared.held.load(), backoff.next().max(told)).await;
            }
        }
    }
}

/// Waits before the next try; the less, the sooner the certificate in use ends.
async fn retry(held: &Held, wait: Duration) {
    let left = Duration::from_millis(held.expires_at.millis_since(clock::wall()));
    let most = (left / 4).clamp(limits::RENEW_RETRY_FIRST, limits::RENEW_RETRY_MAX);
    tokio::time::sleep(wait.min(most)).await;
}

/// Follows the trust bundle, for ever.
pub async fn bundle(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(limits::BUNDLE_EVERY).await;
        let bundle = shared.agent.bundle().await;
        let cas = bundle.and_then(|bundle| Ok(CaCertificate::all_from_pem(&bundle.x509)?));
        match cas {
            Ok(cas) => shared.trust(cas),
            Err(error) => tracing::debug!(%error, "the trust bundle was not looked at"),
        }
    }
}

impl Shared {
    /// Takes a newer certificate into use; false when it is the one in use.
    fn renew(&self, Fetched { held, cas }: Fetched) -> Result<bool, Error> {
        self.trust(cas);
        if held.serial == self.held.load().serial {
            return Ok(false);
        }
        if held.id.trust_domain() != self.trust_domain {
            return Err(Error::Answer {
                what: "the agent",
                why: format!("{} is of another trust domain", held.id),
            });
        }
        self.learn_issuers(&held);
        let status = held.status();
        self.held.store(Arc::new(held));
        self.status.send_replace(status);
        Ok(true)
    }

    /// Trusts these CAs and no others; what stands under another one is closed.
    fn trust(&self, cas: Vec<CaCertificate>) {
        let _one = self
            .changing_trust
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = self.trust.current();
        if before
            .iter()
            .map(CaCertificate::der)
            .eq(cas.iter().map(CaCertificate::der))
        {
            return;
        }
        let is_gone = |ca: &CaCertificate| !cas.iter().any(|other| other.der() == ca.der());
        let some_went = before.iter().any(is_gone);
        self.trust.replace(cas);
        if some_went {
            // What it signed, or vouched for, goes with it.
            self.lists.forget_issuers();
            self.learn_issuers(&self.held.load());
            self.lists.forget_unsigned();
        }
        // After the change, before the walk: who registers later sees the count, who registered
        // earlier is walked over.
        self.trust_changes.fetch_add(1, Ordering::SeqCst);
        self.live.close_distrusted(|chain| self.is_trusted(chain));
    }
}

/// A little after the agent has the next one, so that many processes do not ask in step; at the
/// end of this one at the latest.
fn due(held: &Held) -> UnixMillis {
    let left = held.expires_at.millis_since(held.refresh_at);
    let jitter = jittered(Duration::from_millis(left / 10));
    let jitter = u64::try_from(jitter.as_millis()).unwrap_or(0);
    let due = held.refresh_at.saturating_add_millis(jitter);
    due.min(held.expires_at)
}

async fn wait_until(due: UnixMillis) {
    loop {
        let left = Duration::from_millis(due.millis_since(clock::wall()));
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(limits::RENEW_LOOK)).await;
    }
}
