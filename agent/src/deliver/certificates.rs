//! What certificates need beside an answer: a key made before asking, and the trust bundle.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ephor_crypto::p256::{KeyError, SigningKey};
use ephor_crypto::tls::TrustStore;
use ephor_proto::cred::IDENTITY;
use ephor_proto::id::RequestId;

use crate::limits;

/// Which requests bring a public key, and what the certificates are checked with.
#[derive(Default)]
pub struct Certificates {
    trust: Arc<TrustStore>,
    /// Entitlements of which the broker said that they give a certificate: only a key saved to be
    /// asked for. Held for a look-up, never across an await.
    known: RwLock<HashSet<Box<str>>>,
    /// Keys of requests that a caller named and that have no answer yet: asked again with another
    /// key, the broker would take it for another request. Held for a look-up.
    unanswered: Mutex<HashMap<RequestId, Arc<SigningKey>>>,
}

impl Certificates {
    /// With the CAs that the agent itself trusts.
    #[must_use]
    pub fn new(trust: Arc<TrustStore>) -> Self {
        Self {
            trust,
            ..Self::default()
        }
    }

    /// Whether a certificate is known to come of this.
    #[must_use]
    pub fn are_given_by(&self, entitlement: &str, item: &str) -> bool {
        if entitlement == IDENTITY {
            return item.is_empty();
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.contains(entitlement)
    }

    /// The broker asked for a key.
    pub fn learn(&self, entitlement: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= limits::CERTIFICATE_ENTITLEMENTS {
            known.clear();
        }
        known.insert(entitlement.into());
    }

    /// A key for one request. A caller that names its request and has no answer gets the same key
    /// when it asks again; everyone else a fresh one each time.
    ///
    /// # Errors
    /// When the provider makes none.
    pub fn key_for(&self, named: Option<RequestId>) -> Result<Arc<SigningKey>, KeyError> {
        let Some(request) = named else {
            return SigningKey::generate().map(Arc::new);
        };
        let mut unanswered = self.unanswered();
        if let Some(key) = unanswered.get(&request) {
            return Ok(Arc::clone(key));
        }
        let key = SigningKey::generate().map(Arc::new)?;
        if unanswered.len() >= limits::UNANSWERED_KEYS {
            unanswered.clear();
        }
        unanswered.insert(request, Arc::clone(&key));
        Ok(key)
    }

    /// The request has its answer.
    pub fn answered(&self, named: Option<RequestId>) {
        if let Some(request) = named {
            self.unanswered().remove(&request);
        }
    }

    fn unanswered(&self) -> std::sync::MutexGuard<'_, HashMap<RequestId, Arc<SigningKey>>> {
        self.unanswered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The CAs of the trust domain.
    #[must_use]
    pub fn trust(&self) -> &Arc<TrustStore> {
        &self.trust
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_bounded_and_tokens_of_identity_bring_no_key() {
        let certificates = Certificates::default();
        assert!(certificates.are_given_by("identity", ""));
        assert!(!certificates.are_given_by("identity", "billing"));
        assert!(!certificates.are_given_by("web-cert", ""));
        for number in 0..limits::CERTIFICATE_ENTITLEMENTS {
            certificates.learn(&format!("other-{number}"));
        }
        certificates.learn("web-cert");
        assert!(certificates.are_given_by("web-cert", ""));
        let known = certificates
            .known
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        assert!(known.len() <= limits::CERTIFICATE_ENTITLEMENTS);
    }

    #[test]
    fn a_named_request_keeps_its_key_until_it_is_answered() {
        let certificates = Certificates::default();
        let request = |n: usize| Some(RequestId::from_parts(n as u64, [1; 10]));
        let spki = |named| {
            let key = certificates.key_for(named);
            key.map(|key| key.public_key().spki()).unwrap_or_default()
        };
        let first = spki(request(1));
        assert!(!first.is_empty());
        assert_eq!(spki(request(1)), first);
        assert_ne!(spki(request(2)), first);
        assert_ne!(spki(None), spki(None));
        certificates.answered(request(1));
        assert_ne!(spki(request(1)), first);
        for number in 0..=limits::UNANSWERED_KEYS {
            spki(request(number));
        }
        assert!(certificates.unanswered().len() <= limits::UNANSWERED_KEYS);
    }
}
