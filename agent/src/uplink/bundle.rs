//! The fleet's CAs change while this host is in it: what the broker says is trusted now is trusted
//! now, is on disk before it is, and this host's certificate follows the CA that issues.
//!
//! It must never leave this host without a CA: a set that cannot be used changes nothing.

use std::sync::atomic::Ordering;

use ephor_crypto::x509::{CaCertificate, Leaf};
use ephor_proto::grpc::v1;

use super::backoff::jitter;
use super::identity::Identity;
use super::session::{Renewal, Wiring};
use crate::limits;

/// Takes the set into force; a failure is logged, and the broker sends it again.
pub(super) async fn take(wiring: &Wiring, bundle: Option<v1::CaBundle>) {
    let (Some(renewal), Some(bundle)) = (&wiring.renewal, bundle) else {
        return;
    };
    // Told once: a broker that goes on about the same set must not make this host renew for ever.
    if renewal.ca_sequence.load(Ordering::Relaxed) == bundle.sequence {
        return;
    }
    match replace(wiring, renewal, &bundle).await {
        Ok(()) => renewal
            .ca_sequence
            .store(bundle.sequence, Ordering::Relaxed),
        Err(reason) => {
            tracing::error!(
                reason,
                "the CAs of the fleet changed, and this host could not follow; trying again"
            )
        }
    }
}

async fn replace(wiring: &Wiring, renewal: &Renewal, bundle: &v1::CaBundle) -> Result<(), String> {
    let present = renewal.trust.current();
    let domain = present.first().map(CaCertificate::trust_domain);
    let cas = usable(&bundle.ca_certificates_der, domain)?;
    let same = cas.len() == present.len()
        && cas
            .iter()
            .zip(present.iter())
            .all(|(one, other)| one.der() == other.der());
    if !same {
        store(wiring, renewal, cas.clone()).await?;
        tracing::info!(
            cas = cas.len(),
            sequence = bundle.sequence,
            "the CAs of the fleet changed"
        );
        renewal.trust.replace(cas);
    }
    if !bundle.issuing_key_id.is_empty() && issuer_of(renewal) != bundle.issuing_key_id {
        // Each host at a moment of its own, so that a large fleet does not renew at once.
        let part = bundle.renew_within_milliseconds / u64::from(u16::MAX);
        let wait = part.saturating_mul(u64::from(jitter()));
        let at = wiring.uplink.clock.wall().as_millis().saturating_add(wait);
        renewal.renew_at_millis.fetch_min(at, Ordering::Relaxed);
        renewal.sooner.notify_one();
    }
    Ok(())
}

fn usable(ders: &[Vec<u8>], domain: Option<&str>) -> Result<Vec<CaCertificate>, String> {
    if ders.is_empty() || ders.len() > limits::CAS {
        return Err(format!("the broker sent {} CA certificates", ders.len()));
    }
    let parsed = ders
        .iter()
        .map(|der| CaCertificate::from_der(der).map_err(|error| error.to_string()));
    let cas = parsed.collect::<Result<Vec<_>, _>>()?;
    if cas.iter().any(|ca| Some(ca.trust_domain()) != domain) {
        return Err("the broker sent a CA of another trust domain".to_owned());
    }
    Ok(cas)
}

/// One writer at a time: the identity is one file, and renewing replaces it, too.
async fn store(wiring: &Wiring, renewal: &Renewal, cas: Vec<CaCertificate>) -> Result<(), String> {
    let _one_writer = renewal.file.lock().await;
    let state_dir = renewal.state_dir.clone();
    let write = move || {
        let mut identity = Identity::load(&state_dir)?;
        identity.cas = cas;
        identity.store(&state_dir)
    };
    let written = wiring.tasks.blocking("uplink.identity", write).await;
    written
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())
}

/// Key identifier of the CA that issued the certificate in use.
fn issuer_of(renewal: &Renewal) -> Vec<u8> {
    let current = renewal.slot.current();
    let leaf = current
        .as_ref()
        .and_then(|certified| certified.cert.first())
        .and_then(|der| Leaf::parse(der).ok());
    leaf.map(|leaf| leaf.authority_key_id).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ephor_crypto::x509::Ca;

    use super::*;

    #[test]
    fn a_set_that_cannot_be_used_is_refused() {
        let der = |domain: &str| {
            let ca = Ca::create("t", domain, 1_800_000_000, 1_900_000_000).unwrap();
            ca.certificate().der().to_vec()
        };
        let domain = Some("td.test");
        assert_eq!(
            usable(&[der("td.test"), der("td.test")], domain)
                .unwrap()
                .len(),
            2
        );
        assert!(usable(&[], domain).is_err());
        assert!(usable(&[der("td.test"), der("other.test")], domain).is_err());
        assert!(usable(&[vec![1, 2, 3]], domain).is_err());
        assert!(usable(&vec![der("td.test"); limits::CAS + 1], domain).is_err());
    }
}
