//! What certificates need beside an answer: a key made before asking, and the trust bundle.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use ephor_crypto::tls::TrustStore;
use ephor_proto::cred::IDENTITY;

use crate::limits;

/// Which requests bring a public key, and what the certificates are checked with.
#[derive(Default)]
pub struct Certificates {
    trust: Arc<TrustStore>,
    /// Entitlements of which the broker said that they give a certificate: only a key saved to be
    /// asked for. Held for a look-up, never across an await.
    known: RwLock<HashSet<Box<str>>>,
}

impl Certificates {
    /// With the CAs that the agent itself trusts.
    #[must_use]
    pub fn new(trust: Arc<TrustStore>) -> Self {
        Self {
            trust,
            known: RwLock::default(),
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
}
