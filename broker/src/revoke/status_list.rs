//! Token status lists (draft-ietf-oauth-status-list-21): what verifiers fetch to learn which
//! tokens no longer hold.
//!
//! Bits follow committed state only: they are set after the commit that revoked, never
//! before it, and rebuilt from the store at start. A list is signed again when a bit changed or
//! its signature grew old, not per request; however many revocations wait, one
//! build serves them all.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use ephor_crypto::jws::JwsSigner;
use ephor_proto::time::UnixMillis;
use serde::Serialize;

use crate::limits;

/// Bits in one list.
pub const LIST_BITS: u32 = 1 << 17;
const LIST_BYTES: usize = (LIST_BITS / 8) as usize;
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

struct List {
    number: u32,
    /// Guards the bits; held for a few instructions only.
    bits: Mutex<Bits>,
    /// Held while a list is compressed and signed, so that waiters share one build.
    building: tokio::sync::Mutex<()>,
    current: ArcSwapOption<Built>,
}

struct Bits {
    revoked: Vec<u8>,
    used: Vec<u8>,
    used_count: u32,
    version: u64,
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

impl List {
    fn new(number: u32) -> Self {
        let bits = Bits {
            revoked: vec![0; LIST_BYTES],
            used: vec![0; LIST_BYTES],
            used_count: 0,
            version: 0,
        };
        Self {
            number,
            bits: Mutex::new(bits),
            building: tokio::sync::Mutex::new(()),
            current: ArcSwapOption::empty(),
        }
    }

    /// A list of an earlier epoch.
    fn void(number: u32) -> Self {
        let list = Self::new(number);
        list.change(|bits| bits.revoked.fill(0xff));
        list
    }

    fn change<T>(&self, act: impl FnOnce(&mut Bits) -> T) -> T {
        act(&mut self.bits.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn snapshot(&self) -> (u64, Vec<u8>) {
        self.change(|bits| (bits.version, bits.revoked.clone()))
    }

    /// A random free index, or none when the list is half full: beyond that, guessing
    /// a free one takes long and neighbours become linkable.
    fn reserve(&self) -> Result<Option<u32>, ListError> {
        for _ in 0..limits::STATUS_INDEX_TRIES {
            let index = u32::from_le_bytes(ephor_crypto::random::bytes::<4>()?) % LIST_BITS;
            let taken = self.change(|bits| {
                if bits.used_count >= LIST_BITS / 2 {
                    return None;
                }
                Some(bits.mark_used(index))
            });
            match taken {
                None => return Ok(None),
                Some(true) => return Ok(Some(index)),
                Some(false) => {}
            }
        }
        Ok(None)
    }

    fn fresh(&self, now: UnixMillis, kid: &str) -> Option<Arc<Built>> {
        let built = self.current.load_full()?;
        let version = self.change(|bits| bits.version);
        (built.version == version && built.is_good(now, kid)).then_some(built)
    }
}

impl Bits {
    /// False when it was in use already.
    fn mark_used(&mut self, index: u32) -> bool {
        let fresh = write_bit(&mut self.used, index, true);
        self.used_count += u32::from(fresh);
        fresh
    }

    fn set(&mut self, index: u32) {
        self.mark_used(index);
        if write_bit(&mut self.revoked, index, true) {
            self.version += 1;
        }
    }

    fn clear(&mut self, index: u32) {
        if write_bit(&mut self.used, index, false) {
            self.used_count -= 1;
        }
        if write_bit(&mut self.revoked, index, false) {
            self.version += 1;
        }
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

/// Index `i` is bit `i % 8`, least significant first, of byte `i / 8`.
fn bit(bytes: &[u8], index: u32) -> Option<bool> {
    bytes
        .get(index as usize / 8)
        .map(|byte| (byte >> (index % 8)) & 1 == 1)
}

/// True when the bit changed.
fn write_bit(bytes: &mut [u8], index: u32, value: bool) -> bool {
    let Some(byte) = bytes.get_mut(index as usize / 8) else {
        return false;
    };
    let before = *byte;
    if value {
        *byte |= 1 << (index % 8);
    } else {
        *byte &= !(1 << (index % 8));
    }
    *byte != before
}

fn deflate(bits: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bits)?;
    encoder.finish()
}

fn inflate(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut bits = Vec::with_capacity(LIST_BYTES);
    flate2::read::ZlibDecoder::new(packed)
        .take(LIST_BYTES as u64 + 1)
        .read_to_end(&mut bits)?;
    Ok(bits)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
mod tests {
    use super::*;
    use ephor_crypto::jwt::{Expected, TokenKind, VerifyKeys, verify};
    use ephor_crypto::p256::SigningKey;

    const NOW: UnixMillis = UnixMillis::from_unix_seconds(1_800_000_000);

    fn lists() -> (StatusLists, VerifyKeys) {
        let key = Arc::new(SigningKey::generate().unwrap());
        let mut keys = VerifyKeys::new();
        keys.insert("k1", key.public_key());
        let signer = Arc::new(JwsSigner::new(key, TYP, "k1").unwrap());
        (
            StatusLists::new(
                "http://lists.test/",
                "https://issuer.test",
                Places::default(),
                signer,
            ),
            keys,
        )
    }

    /// What a verifier does, sharing nothing with the code above but zlib.
    fn stranger_reads(token: &[u8], keys: &VerifyKeys, index: usize) -> bool {
        let expected = Expected {
            kind: TokenKind::StatusList,
            issuer: "https://issuer.test",
            audience: &[],
            now_unix: 1_800_000_000,
            leeway_seconds: 0,
        };
        let verified = verify(std::str::from_utf8(token).unwrap(), keys, &expected).unwrap();
        let claims = verified.claims();
        assert!(claims.sub.starts_with("http://lists.test/status/"));
        assert_eq!(claims.rest["ttl"], 5);
        assert_eq!(claims.rest["status_list"]["bits"], 1);
        let packed = URL_SAFE_NO_PAD
            .decode(claims.rest["status_list"]["lst"].as_str().unwrap())
            .unwrap();
        let mut bits = Vec::new();
        flate2::read::ZlibDecoder::new(&packed[..])
            .read_to_end(&mut bits)
            .unwrap();
        assert_eq!(bits.len(), 16 * 1024);
        bits[index / 8] & (1 << (index % 8)) != 0
    }

    #[tokio::test]
    async fn a_revoked_index_is_seen_by_a_verifier_and_its_neighbours_are_not() {
        let (lists, keys) = lists();
        let slot = lists.reserve().unwrap();
        let before = lists.current(slot.list, NOW).await.unwrap();
        assert!(!stranger_reads(&before.token, &keys, slot.index as usize));
        assert!(!before.is_revoked(slot.index));
        lists.revoke(slot);
        let after = lists.current(slot.list, NOW).await.unwrap();
        assert!(stranger_reads(&after.token, &keys, slot.index as usize));
        assert!(!stranger_reads(
            &after.token,
            &keys,
            slot.index as usize ^ 1
        ));
        assert!(after.is_revoked(slot.index) && !after.is_revoked(slot.index ^ 1));
        assert!(
            after.is_revoked(LIST_BITS),
            "an index outside the list is rejected"
        );
    }

    #[tokio::test]
    async fn a_list_is_signed_again_only_when_it_changed_or_grew_old() {
        let (lists, _) = lists();
        let slot = lists.reserve().unwrap();
        let first = lists.current(0, NOW).await.unwrap();
        let again = lists
            .current(0, NOW.saturating_add_millis(4_000))
            .await
            .unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        lists.revoke(slot);
        let changed = lists
            .current(0, NOW.saturating_add_millis(4_000))
            .await
            .unwrap();
        assert_eq!(changed.version, first.version + 1);
        lists.revoke(slot);
        let same = lists
            .current(0, NOW.saturating_add_millis(5_000))
            .await
            .unwrap();
        assert!(
            Arc::ptr_eq(&changed, &same),
            "revoking twice changes nothing"
        );
        let old = lists
            .current(0, NOW.saturating_add_millis(60_000))
            .await
            .unwrap();
        assert!(!Arc::ptr_eq(&changed, &old));
        let back = lists.current(0, NOW).await.unwrap();
        assert_eq!(
            back.issued_at, NOW,
            "a token from the future is not served after a step back"
        );
    }

    #[tokio::test]
    async fn restored_credentials_keep_index_and_bit() {
        let (lists, _) = lists();
        lists.restore(Slot { list: 2, index: 7 }, true);
        lists.restore(Slot { list: 2, index: 9 }, false);
        let built = lists.current(2, NOW).await.unwrap();
        assert!(built.is_revoked(7) && !built.is_revoked(9));
        assert!(matches!(
            lists.current(3, NOW).await,
            Err(ListError::Unknown(3))
        ));
        lists.release(Slot { list: 2, index: 7 });
        assert!(!lists.current(2, NOW).await.unwrap().is_revoked(7));
    }

    #[test]
    fn a_number_that_is_none_of_this_epochs_does_not_make_all_lists_full() {
        let (lists, _) = lists();
        let list = limits::STATUS_LISTS_MAX;
        lists.restore(Slot { list, index: 7 }, true);
        assert_eq!(lists.reserve().unwrap().list, 0);
    }

    #[tokio::test]
    async fn lists_of_an_earlier_epoch_say_revoked_whatever_is_asked() {
        let key = Arc::new(SigningKey::generate().unwrap());
        let signer = Arc::new(JwsSigner::new(key, TYP, "k1").unwrap());
        let places = Places::default().next(NOW);
        assert_eq!(
            (places.first, places.former.as_slice()),
            (1_800_000_000, &[0][..])
        );
        let again = places.next(NOW);
        assert!(again.first >= places.first + limits::STATUS_LISTS_MAX);
        assert_eq!(again.former, [0, 1_800_000_000]);
        let lists = StatusLists::new("http://lists.test/", "https://issuer.test", places, signer);
        lists.restore(Slot { list: 0, index: 7 }, false);
        for list in [0, 3] {
            let built = lists.current(list, NOW).await.unwrap();
            assert!((0..LIST_BITS).all(|index| built.is_revoked(index)));
        }
        // Anybody may ask for any of them.
        let again = lists.current(3, NOW).await.unwrap();
        assert!(Arc::ptr_eq(&again, &lists.current(3, NOW).await.unwrap()));
        let later = NOW.saturating_add_millis(60_000);
        assert!(!Arc::ptr_eq(
            &again,
            &lists.current(3, later).await.unwrap()
        ));
        for list in 0..limits::FORMER_LISTS_KEPT as u32 + 5 {
            lists.current(list, later).await.unwrap();
        }
        assert_eq!(lists.former.kept().len(), limits::FORMER_LISTS_KEPT);
        let slot = lists.reserve().unwrap();
        assert_eq!(slot.list, 1_800_000_000);
        let built = lists.current(slot.list, NOW).await.unwrap();
        assert!(!built.is_revoked(slot.index));
        assert!(lists.current(limits::STATUS_LISTS_MAX, NOW).await.is_err());
    }

    #[test]
    fn no_index_is_given_twice_and_full_lists_are_followed_by_new_ones() {
        let (lists, _) = lists();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..LIST_BITS / 2 + 10 {
            let slot = lists.reserve().unwrap();
            assert!(seen.insert((slot.list, slot.index)));
        }
        assert_eq!(seen.iter().filter(|(list, _)| *list == 1).count(), 10);
    }
}
