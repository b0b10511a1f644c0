//! Token status lists (draft-ietf-oauth-status-list-21): what verifiers fetch to learn which
//! tokens no longer hold.
//!
//! Bits follow committed state only: they are set after the commit that revoked, never
//! before it, and rebuilt from the store at start. A list is signed again when a bit changed or
//! its signature grew old, not per request; however many revocations wait, one
//! build serves them all.

mod bits; //  of one list
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use ephor_crypto::jws::JwsSigner;
use ephor_proto::time::UnixMillis;
use serde::Serialize;

use crate::limits;
use bits::{List, bit, deflate, inflate};

/// Bits in one list.
pub const LIST_BITS: u32 = 1 << 17;
/// The `typ` header of a list token.
pub const TYP: &str = "statuslist+jwt";

/// Where a credential stands in the lists. Given at its intent and never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Number of the list.
    pub list: u32,
    /// Index of the bit in it.
    pub index: u32,
}

/// Why a list could not take or show a credential.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// Every list is full.
    #[error("all {0} lists are full; credentials must expire before new ones are issued")]
    Full(u32),
    /// No randomness for an index.
    #[error(transparent)]
    Random(#[from] ephor_crypto::random::RandomError),
    /// Compressing or signing failed.
    #[error("making list {0} failed: {1}")]
    Build(u32, String),
    /// The CA that signs it is distrusted: nobody needs it any more.
    #[error("the CA of list {0} is distrusted, and so is every certificate that names it")]
    Distrusted(u32),
    /// No list has that number.
    #[error("there is no list {0}")]
    Unknown(u32),
}

/// A signed list as served.
#[derive(Debug)]
pub struct Built {
    /// Changes that were in it; grows by one with each changed bit.
    pub version: u64,
    /// The compact JWT.
    pub token: Bytes,
    /// Which key signed it.
    kid: String,
    /// When it was signed.
    pub issued_at: UnixMillis,
    /// The bits as a verifier reads them back from `token`.
    bits: Vec<u8>,
}

impl Built {
    /// Whether a verifier that reads this token finds the bit set. Out of range is set:
    /// verifiers reject such an index.
    pub fn is_revoked(&self, index: u32) -> bool {
        bit(&self.bits, index).unwrap_or(true)
    }

    /// Whether it may still be served, if nothing in it changed.
    fn is_good(&self, now: UnixMillis, kid: &str) -> bool {
        let age = now.millis_since(self.issued_at);
        // A clock that went back must not leave a token from the future in place.
        let is_young = age < limits::STATUS_LIST_RESIGN_MILLIS && now >= self.issued_at;
        self.kid == kid && is_young
    }
}

/// Which numbers lists have. Each epoch begins its own: what an earlier one gave out after the copy
/// that this store was restored from is not known here, so all of its lists say revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Places {
    /// The first list of this epoch.
    pub first: u32,
    /// The first lists of those before.
    pub former: Vec<u32>,
}

impl Places {
    /// The places of the next epoch, which begins at `now`: beyond every number given before.
    #[must_use]
    pub fn next(&self, now: UnixMillis) -> Self {
        let least = self.first.saturating_add(limits::STATUS_LISTS_MAX);
        let time =
            u32::try_from(now.as_unix_seconds()).unwrap_or(u32::MAX - limits::STATUS_LISTS_MAX);
        let mut former = self.former.clone();
        former.push(self.first);
        Self {
            first: least.max(time),
            former,
        }
    }

    fn is_former(&self, list: u32) -> bool {
        self.former.iter().any(|first| of(*first).contains(&list))
    }

    /// Whether a status list has that number, of this epoch or an earlier one.
    pub(super) fn has(&self, list: u32) -> bool {
        of(self.first).contains(&list) || self.is_former(list)
    }
}

/// The numbers of the lists of one epoch.
fn of(first: u32) -> Range<u32> {
    first..first.saturating_add(limits::STATUS_LISTS_MAX)
}

/// All lists of this installation.
pub struct StatusLists {
    base_url: String,
    issuer: String,
    places: Places,
    signer: ArcSwap<JwsSigner>,
    /// Guards which lists exist; each has its own lock.
    lists: RwLock<BTreeMap<u32, Arc<List>>>,
    former: Former,
    #[cfg(test)]
    broken: std::sync::atomic::AtomicBool,
}

/// Lists of earlier epochs as they were last made; they never change but in their signature.
#[derive(Default)]
struct Former {
    /// Guards those that are kept; held for a look only.
    kept: Mutex<BTreeMap<u32, Arc<Built>>>,
    /// Held while one is compressed and signed.
    building: tokio::sync::Mutex<()>,
}

impl Former {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Built>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StatusLists {
    /// Lists published under `base_url` (`BASE/status/N`) for tokens of `issuer`; empty until
    /// [`StatusLists::restore`] was called for each stored credential.
    pub fn new(base_url: &str, issuer: &str, places: Places, signer: Arc<JwsSigner>) -> Self {
        let first = BTreeMap::from([(places.first, Arc::new(List::new(places.first)))]);
        Self {
            base_url: base_url.trim_end_matches('/').to_owned(),
            issuer: issuer.to_owned(),
            places,
            signer: ArcSwap::new(signer),
            lists: RwLock::new(first),
            former: Former::default(),
            #[cfg(test)]
            broken: false.into(),
        }
    }

    /// Signs with this key from now on; what another signed is not served again.
    pub fn sign_with(&self, signer: Arc<JwsSigner>) {
        self.signer.store(signer);
    }

    /// The URL that stands in tokens and is the `sub` of list `number`.
    pub fn uri(&self, number: u32) -> String {
        format!("{}/status/{number}", self.base_url)
    }

    /// Whether that is the number of a status list, of this epoch or an earlier one.
    pub(super) fn has_place(&self, number: u32) -> bool {
        self.places.has(number)
    }

    /// Puts a stored credential back in its place.
    pub fn restore(&self, slot: Slot, revoked: bool) {
        if self.places.is_former(slot.list) {
            return;
        }
        self.list_or_new(slot.list).change(|bits| {
            bits.mark_used(slot.index);
            if revoked {
                bits.set(slot.index);
            }
        });
    }

    /// A random index that no credential has. Give it back with [`StatusLists::release`] when the
    /// intent was not recorded.
    ///
    /// # Errors
    /// When all lists are full or there is no randomness.
    pub fn reserve(&self) -> Result<Slot, ListError> {
        let mut number = self.newest();
        while of(self.places.first).contains(&number) {
            let list = self.list_or_new(number);
            if let Some(index) = list.reserve()? {
                return Ok(Slot {
                    list: number,
                    index,
                });
            }
            number += 1;
        }
        Err(ListError::Full(limits::STATUS_LISTS_MAX))
    }

    /// Frees an index: its intent was not recorded, or its listing was pruned.
    pub fn release(&self, slot: Slot) {
        if let Some(list) = self.list(slot.list) {
            list.change(|bits| bits.clear(slot.index));
        }
    }

    /// Lists a credential. Call only after the commit that revoked it.
    pub fn revoke(&self, slot: Slot) {
        if self.places.is_former(slot.list) {
            return;
        }
        self.list_or_new(slot.list)
            .change(|bits| bits.set(slot.index));
    }

    /// The list as served now: signed again when a bit changed since, or when it grew old.
    ///
    /// # Errors
    /// When there is no such list or it cannot be built.
    pub async fn current(&self, number: u32, now: UnixMillis) -> Result<Arc<Built>, ListError> {
        if self.places.is_former(number) {
            return self.of_earlier_epoch(number, now).await;
        }
        let list = self.list(number).ok_or(ListError::Unknown(number))?;
        if let Some(built) = list.fresh(now, self.signer.load().kid()) {
            return Ok(built);
        }
        let _one_builder = list.building.lock().await;
        if let Some(built) = list.fresh(now, self.signer.load().kid()) {
            return Ok(built);
        }
        let built = Arc::new(self.build(&list, now)?);
        list.current.store(Some(Arc::clone(&built)));
        Ok(built)
    }

    /// As [`StatusLists::current`]; anybody may ask for any of them, so only a few are kept, and one is
    /// made at a time.
    async fn of_earlier_epoch(
        &self,
        number: u32,
        now: UnixMillis,
    ) -> Result<Arc<Built>, ListError> {
        let kept = || {
            let built = self.former.kept().get(&number).map(Arc::clone)?;
            built
                .is_good(now, self.signer.load().kid())
                .then_some(built)
        };
        if let Some(built) = kept() {
            return Ok(built);
        }
        let _one_builder = self.former.building.lock().await;
        if let Some(built) = kept() {
            return Ok(built);
        }
        let built = Arc::new(self.build(&List::void(number), now)?);
        let mut all = self.former.kept();
        while all.len() >= limits::FORMER_LISTS_KEPT && !all.contains_key(&number) {
            let oldest = all.iter().min_by_key(|(_, built)| built.issued_at);
            match oldest.map(|(oldest, _)| *oldest) {
                Some(oldest) => drop(all.remove(&oldest)),
                None => break,
            }
        }
        all.insert(number, Arc::clone(&built));
        Ok(built)
    }

    /// Makes every build fail.
    #[cfg(test)]
    pub(crate) fn break_builds(&self, broken: bool) {
        self.broken
            .store(broken, std::sync::atomic::Ordering::SeqCst);
    }

    fn newest(&self) -> u32 {
        let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
        // A row that was set aside may have brought in any number.
        let newest = lists.range(of(self.places.first)).next_back();
        newest.map_or(self.places.first, |(number, _)| *number)
    }

    fn list(&self, number: u32) -> Option<Arc<List>> {
        let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
        lists.get(&number).map(Arc::clone)
    }

    fn list_or_new(&self, number: u32) -> Arc<List> {
        if let Some(list) = self.list(number) {
            return list;
        }
        let mut lists = self.lists.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(
            lists
                .entry(number)
                .or_insert_with(|| Arc::new(List::new(number))),
        )
    }

    fn build(&self, list: &List, now: UnixMillis) -> Result<Built, ListError> {
        let failed = |what: String| ListError::Build(list.number, what);
        #[cfg(test)]
        if self.broken.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(failed("broken by a test".to_owned()));
        }
        let (version, bits) = list.snapshot();
        let packed = deflate(&bits).map_err(|e| failed(e.to_string()))?;
        // What is checked later as evidence is what a verifier unpacks, not what we packed.
        let read_back = inflate(&packed).map_err(|e| failed(e.to_string()))?;
        let iat = now.as_unix_seconds();
        let claims = ListClaims {
            iss: &self.issuer,
            sub: self.uri(list.number),
            iat,
            exp: iat + limits::STATUS_LIST_LIFE_SECONDS,
            ttl: limits::STATUS_LIST_TTL_SECONDS,
            status_list: Packed {
                bits: 1,
                lst: URL_SAFE_NO_PAD.encode(&packed),
            },
        };
        let claims = serde_json::to_vec(&claims).map_err(|e| failed(e.to_string()))?;
        let signer = self.signer.load_full();
        let token = signer.sign(&claims).map_err(|e| failed(e.to_string()))?;
        // A status list is public; nothing in it is a secret.
        let token = Bytes::copy_from_slice(token.expose());
        Ok(Built {
            version,
            token,
            kid: signer.kid().to_owned(),
            issued_at: now,
            bits: read_back,
        })
    }
}

#[derive(Serialize)]
struct ListClaims<'a> {
    iss: &'a str,
    sub: String,
    iat: u64,
    exp: u64,
    ttl: u64,
    status_list: Packed,
}

#[derive(Serialize)]
struct Packed {
    bits: u8,
    lst: String,
}
