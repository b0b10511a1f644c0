//! The broker's server certificate: one day, from our own CA, renewed in the process.
//!
//! Its key lives in memory only and is new each time: there is nothing to store or steal.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::{CertificateSlot, certified_key};
use ephor_crypto::x509::{ServerNames, X509Error};
use ephor_proto::spiffe::TrustDomain;
use ephor_proto::time::UnixMillis;

use super::state::KeyState;
use super::{HeldCa, Keys};
use crate::app::Broker;
use crate::limits;

/// The names in the server certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    spiffe_id: String,
    dns: Vec<String>,
    ips: Vec<IpAddr>,
}

impl Names {
    /// The configured names, those of this machine's loopback, and the listener's address.
    #[must_use]
    pub fn new(trust_domain: &TrustDomain, configured: &[String], listen: IpAddr) -> Self {
        let mut dns = vec!["localhost".to_owned()];
        let mut ips = vec![
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ];
        for name in configured {
            match name.parse::<IpAddr>() {
                Ok(ip) => ips.push(ip),
                Err(_) => dns.push(name.clone()),
            }
        }
        if !listen.is_unspecified() {
            ips.push(listen);
        }
        dns.sort();
        dns.dedup();
        ips.sort();
        ips.dedup();
        Self {
            spiffe_id: format!("spiffe://{trust_domain}/broker"),
            dns,
            ips,
        }
    }

    /// As a certificate has them.
    pub(super) fn in_certificate<T>(&self, use_them: impl FnOnce(&ServerNames<'_>) -> T) -> T {
        let dns: Vec<&str> = self.dns.iter().map(String::as_str).collect();
        use_them(&ServerNames {
            spiffe_id: &self.spiffe_id,
            dns: &dns,
            ips: &self.ips,
        })
    }
}

/// Puts fresh certificates with a fresh key into `slot`: one of each trusted CA, for clients that
/// ask for it. To those that do not, the oldest is shown while it is trusted, because it is the one
/// that everyone knows; `bridge` goes along for those who trust only a CA of the epoch before. Gives
/// the end of the first that ends.
///
/// # Errors
/// When a name cannot stand in a certificate, there is no randomness, or no CA is valid.
pub fn renew(
    slot: &CertificateSlot,
    keys: &Keys,
    names: &Names,
    bridge: Option<&[u8]>,
    now: UnixMillis,
) -> Result<UnixMillis, X509Error> {
    let key = Arc::new(SigningKey::generate()?);
    let mut all = Vec::new();
    let mut first_end = None;
    for held in keys.cas() {
        let now_unix = i64::try_from(now.as_unix_seconds()).unwrap_or(i64::MAX);
        if !held.ca.certificate().valid_at(now_unix) {
            continue;
        }
        let (leaf, end) = issue(held, &key, names, now)?;
        // The CA goes along: a joining agent knows only its hash.
        let own = held.ca.certificate().der().to_vec();
        let above = held.chain().into_iter().skip(1);
        let bridge = bridge.map(<[u8]>::to_vec);
        let chain: Vec<Vec<u8>> = [leaf, own].into_iter().chain(above).chain(bridge).collect();
        let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
        let certified = certified_key(&chain, Arc::clone(&key));
        all.push((held.state, held.ca.sha256(), certified));
        first_end = Some(first_end.map_or(end, |first: i64| first.min(end)));
    }
    let usual = all
        .iter()
        .find(|(state, _, _)| *state != KeyState::Prepared)
        .map(|(_, _, certified)| Arc::clone(certified))
        .ok_or(X509Error::Ca("none of them is valid at this time"))?;
    let by_ca = all.into_iter().map(|(_, ca, certified)| (ca, certified));
    slot.replace_all(usual, by_ca.collect());
    let end = u64::try_from(first_end.unwrap_or(0)).unwrap_or(0);
    Ok(UnixMillis::from_unix_seconds(end))
}

fn issue(
    held: &HeldCa,
    key: &SigningKey,
    names: &Names,
    now: UnixMillis,
) -> Result<(Vec<u8>, i64), X509Error> {
    let (not_before, wanted) = super::validity(now, limits::SERVER_CERTIFICATE_SECONDS);
    let not_after = wanted.min(held.ca.certificate().not_after());
    let spki = key.public_key().spki();
    let serial = super::serial()?;
    let leaf = names.in_certificate(|names| {
        held.ca
            .issue_server(names, &spki, serial, not_before, not_after)
    })?;
    Ok((leaf, not_after))
}

/// How long to wait before the next renewal: two thirds of what is left, looked at again
/// at least every hour because a suspend stops this wait but not the certificate.
#[must_use]
pub fn next_renewal(now: UnixMillis, end: UnixMillis) -> Duration {
    Duration::from_millis(end.millis_since(now) / 3 * 2)
}

/// Renews for ever, and whenever the keys changed. A failure is logged and tried again while the
/// old certificate lasts.
pub async fn keep_renewed(
    broker: Arc<Broker>,
    slot: Arc<CertificateSlot>,
    names: Names,
    mut end: UnixMillis,
    stop: tokio_util::sync::CancellationToken,
) {
    let look = Duration::from_secs(60);
    let clock = &broker.clock;
    let mut changed = broker.keys_changed.subscribe();
    let mut due = clock
        .boottime()
        .saturating_add(next_renewal(clock.wall(), end));
    loop {
        let is_new_key = tokio::select! {
            () = stop.cancelled() => return,
            // Its sender lives in `broker`.
            _ = changed.changed() => true,
            () = tokio::time::sleep(look) => false,
        };
        if !is_new_key && clock.boottime() < due {
            continue;
        }
        match renew(
            &slot,
            &broker.keys.load(),
            &names,
            broker.bridge(),
            clock.wall(),
        ) {
            Ok(renewed) => {
                end = renewed;
                due = clock
                    .boottime()
                    .saturating_add(next_renewal(clock.wall(), end));
                tracing::info!(until = %end, "server certificate renewed");
            }
            Err(error) => {
                // At the next look, whatever was planned.
                due = clock.boottime();
                tracing::error!(%error, until = %end, "server certificate not renewed; trying again")
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_configured_loopback_and_listener() {
        let domain = TrustDomain::new("test.example").unwrap();
        let configured = [
            "ephor.test".to_owned(),
            "10.0.0.7".to_owned(),
            "localhost".to_owned(),
        ];
        let names = Names::new(&domain, &configured, "192.0.2.1".parse().unwrap());
        assert_eq!(names.spiffe_id, "spiffe://test.example/broker");
        assert_eq!(names.dns, ["ephor.test", "localhost"]);
        let ips: Vec<String> = names.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.0.0.7", "127.0.0.1", "192.0.2.1", "::1"]);
        let any = Names::new(&domain, &[], "0.0.0.0".parse().unwrap());
        assert!(!any.ips.iter().any(IpAddr::is_unspecified));
    }

    #[test]
    fn a_renewed_certificate_is_another_one_and_ends_with_the_ca() {
        let domain = TrustDomain::new("test.example").unwrap();
        let names = Names::new(&domain, &[], "127.0.0.1".parse().unwrap());
        let sealer = crate::keys::tests::sealer(1);
        let made = UnixMillis::from_unix_seconds(1_800_007_200 - limits::CA_SECONDS);
        let rows = Keys::generate(&sealer, &domain, "t", made).unwrap();
        let keys = Keys::unseal(&sealer, &rows, &domain, "o").unwrap();
        let slot = CertificateSlot::empty();
        let now = UnixMillis::from_unix_seconds(1_800_000_100);
        let end = renew(&slot, &keys, &names, None, now).unwrap();
        let first = slot.current().unwrap();
        assert_eq!(end.as_unix_seconds(), 1_800_007_200);
        assert_eq!(first.cert.len(), 2, "the CA goes along");
        renew(&slot, &keys, &names, None, now).unwrap();
        assert_ne!(first.cert.first(), slot.current().unwrap().cert.first());
        assert_eq!(
            next_renewal(now, now.saturating_add_millis(86_400_000)),
            Duration::from_secs(57_600)
        );
    }
}
