//! Which certificates no longer hold. What is not known is refused: a certificate that names no
//! list, a list that was not seen, one that has expired, and everything once nobody looks any
//! more. A list never goes back to an older one, and none is believed that no trusted CA signed.

pub mod poll;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use ephor_crypto::tls::{TrustStore, Verified};
use ephor_crypto::x509::{CaCertificate, Leaf, RevocationList, X509Error};
use rustls::CertificateError;
use rustls_pki_types::UnixTime;
use thiserror::Error;
use tokio::sync::Notify;

use crate::clock;
use crate::limits;

/// Why a list was not taken.
#[derive(Debug, Error)]
pub enum Rejected {
    /// Malformed, or signed by nobody we trust.
    #[error(transparent)]
    Crl(#[from] X509Error),
    /// A list of another URL was served under this one.
    #[error("it is the list of {0}")]
    Misplaced(String),
    /// Somebody plays back an old list.
    #[error("its number {number} is below {known}, which was seen before")]
    Older {
        /// Its number.
        number: u64,
        /// The one we have.
        known: u64,
    },
    /// Its CA went meanwhile.
    #[error("its CA is no longer trusted")]
    Distrusted,
    /// There are too many.
    #[error("there are more than {} lists", limits::LISTS)]
    TooMany,
}

/// Every list that is known.
pub struct Lists {
    /// By URL. Held for a look-up or an insert.
    lists: RwLock<HashMap<Box<str>, Arc<RevocationList>>>,
    /// Lists that nobody we know has signed: the chain of a peer may bring its CA.
    unsigned: RwLock<HashMap<Box<str>, Bytes>>,
    /// CAs below the trusted ones, from verified chains.
    issuers: RwLock<Vec<CaCertificate>>,
    /// Boot time of the last look after which every known list was as the index has it, in
    /// milliseconds.
    looked_at: AtomicU64,
    max_staleness: Option<Duration>,
    trust: Arc<TrustStore>,
    /// Nobody looks any more.
    is_blind: AtomicBool,
    /// A peer showed a certificate of a list that is not known yet.
    pub look: Notify,
}

impl Lists {
    /// Lists of the CAs in `trust`, and of those below them.
    pub fn new(trust: Arc<TrustStore>, max_staleness: Option<Duration>) -> Self {
        Self {
            lists: RwLock::default(),
            unsigned: RwLock::default(),
            issuers: RwLock::default(),
            looked_at: AtomicU64::new(0),
            max_staleness,
            trust,
            is_blind: AtomicBool::new(false),
            look: Notify::new(),
        }
    }

    /// Whether a peer's certificate holds, as far as is known. Called in handshakes.
    ///
    /// # Errors
    /// What becomes the alert: `certificate_revoked` when it is listed.
    pub fn admit(&self, peer: &Verified<'_>) -> Result<(), CertificateError> {
        let unknown = CertificateError::UnknownRevocationStatus;
        if self.is_blind.load(Ordering::SeqCst) || self.is_stale() {
            return Err(unknown);
        }
        let url = peer.leaf.crl.as_deref().ok_or(unknown.clone())?;
        let known = self.list(url).or_else(|| self.signed_by(url, peer));
        // A list of another CA says nothing about it, be it a trusted one.
        let Some(list) = known.filter(|list| list.is_of_issuer(peer.leaf)) else {
            self.look.notify_one();
            return Err(unknown);
        };
        if list.is_revoked(&peer.leaf.serial) {
            return Err(CertificateError::Revoked);
        }
        if peer.now > list.next_update() {
            return Err(CertificateError::ExpiredRevocationListContext {
                time: at(peer.now),
                next_update: at(list.next_update()),
            });
        }
        Ok(())
    }

    /// Whether its list says that it is revoked.
    pub fn is_listed(&self, leaf: &Leaf) -> bool {
        let list = leaf.crl.as_deref().and_then(|url| self.list(url));
        list.is_some_and(|list| list.is_revoked(&leaf.serial))
    }

    /// Remembers the CAs of a chain that was verified: they sign lists.
    pub fn learn(&self, verified: &Verified<'_>) {
        if verified.issuers.is_empty() {
            return;
        }
        let mut known = self.issuers.write().unwrap_or_else(PoisonError::into_inner);
        // Under CAs that are no longer trusted: what they vouched for was forgotten already.
        if !Arc::ptr_eq(verified.trusted, &self.trust.current()) {
            return;
        }
        for issuer in verified.issuers {
            if known.iter().any(|known| known.der() == issuer.der()) {
                continue;
            }
            if known.len() >= limits::ISSUERS {
                known.remove(0);
            }
            known.push(issuer.clone());
        }
    }

    /// Forgets the CAs that were learned, because one that is trusted no more may have vouched for
    /// them.
    pub fn forget_issuers(&self) {
        let mut issuers = self.issuers.write().unwrap_or_else(PoisonError::into_inner);
        issuers.clear();
    }

    /// Forgets the lists that no CA has signed that is known now.
    pub fn forget_unsigned(&self) {
        let mut lists = self.lists.write().unwrap_or_else(PoisonError::into_inner);
        let signers = self.signers();
        lists.retain(|_, list| signers.iter().any(|ca| list.is_signed_by(ca)));
        drop(lists);
        self.unsigned().clear();
    }

    /// The CAs whose lists are believed now.
    fn signers(&self) -> Vec<CaCertificate> {
        let issuers = self.issuers.read().unwrap_or_else(PoisonError::into_inner);
        let cas = self.trust.current();
        cas.iter().chain(issuers.iter()).cloned().collect()
    }

    /// Takes a list that was fetched from `url`, if a trusted CA or a known one below signed it;
    /// gives it back when it is newer than what was known.
    fn take(&self, url: &str, der: &Bytes) -> Result<Option<Arc<RevocationList>>, Rejected> {
        match RevocationList::verify(der, &self.signers()) {
            Ok(list) => self.put(url, list),
            Err(error) => {
                let mut unsigned = self.unsigned();
                if unsigned.len() < limits::ISSUERS {
                    unsigned.insert(url.into(), der.clone());
                }
                Err(error.into())
            }
        }
    }

    fn put(
        &self,
        url: &str,
        list: RevocationList,
    ) -> Result<Option<Arc<RevocationList>>, Rejected> {
        if list.url() != url {
            return Err(Rejected::Misplaced(list.url().to_owned()));
        }
        let mut lists = self.lists.write().unwrap_or_else(PoisonError::into_inner);
        // Again: its CA may have gone while it was read. Now whoever goes takes it along.
        if !self.signers().iter().any(|ca| list.is_signed_by(ca)) {
            return Err(Rejected::Distrusted);
        }
        if let Some(known) = lists.get(url) {
            let (number, known) = (list.number(), known.number());
            if number < known {
                return Err(Rejected::Older { number, known });
            }
            if number == known {
                return Ok(None);
            }
        } else if lists.len() >= limits::LISTS {
            return Err(Rejected::TooMany);
        }
        let list = Arc::new(list);
        lists.insert(url.into(), Arc::clone(&list));
        drop(lists);
        self.unsigned().remove(url);
        Ok(Some(list))
    }

    /// A list that waited for the CA which a peer's chain brings.
    fn signed_by(&self, url: &str, peer: &Verified<'_>) -> Option<Arc<RevocationList>> {
        if peer.issuers.is_empty() {
            return None;
        }
        self.learn(peer);
        let der = self.unsigned().get(url).cloned()?;
        let list = RevocationList::verify(&der, peer.issuers).ok()?;
        self.put(url, list).ok()?;
        self.list(url)
    }

    fn list(&self, url: &str) -> Option<Arc<RevocationList>> {
        let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
        lists.get(url).map(Arc::clone)
    }

    fn unsigned(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<Box<str>, Bytes>> {
        self.unsigned
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// All that is known of is as the index has it.
    fn is_current(&self) {
        self.looked_at
            .store(clock::boottime().as_millis(), Ordering::SeqCst);
    }

    /// Forgets lists that have expired and are no longer published.
    fn retain(&self, published: &HashSet<&str>) {
        let now = clock::unix_seconds();
        let mut lists = self.lists.write().unwrap_or_else(PoisonError::into_inner);
        lists.retain(|url, list| now <= list.next_update() || published.contains(&**url));
        drop(lists);
        self.unsigned().retain(|url, _| published.contains(&**url));
    }

    /// How long ago every list that is known was as the index had it.
    pub fn seen(&self) -> Option<Duration> {
        let at = self.looked_at.load(Ordering::SeqCst);
        let since = clock::boottime().as_millis().saturating_sub(at);
        (at != 0).then(|| Duration::from_millis(since))
    }

    fn is_stale(&self) -> bool {
        let too_old = |most| self.seen().is_none_or(|seen| seen > most);
        self.max_staleness.is_some_and(too_old)
    }
}

fn at(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}
