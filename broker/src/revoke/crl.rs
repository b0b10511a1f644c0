//! Certificate revocation lists: what verifiers fetch to learn which certificates no longer hold.
//!
//! Each credential gets its list at the intent, because the URL stands in the certificate. Entries
//! follow committed state only, as bits of status lists do: put in after the commit that revoked,
//! and rebuilt from the store at start. A list is bounded, since each change makes and signs the
//! whole of it; however many revocations wait, one making serves them all.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use ephor_crypto::x509::{CrlContent, RevocationList, Revoked, Serial, pem};
use ephor_proto::id::CredentialId;
use ephor_proto::time::{Boottime, UnixMillis};

use super::ListError;
use crate::clock::SharedClock;
use crate::keys::{HeldCa, Keys};
use crate::limits;

/// A list as served.
#[derive(Debug)]
pub struct BuiltCrl {
    /// Changes that were in it.
    pub version: u64,
    /// DER (RFC 5280 §5), signed.
    pub der: Bytes,
    issued_at: UnixMillis,
    made_at: Boottime,
    /// What a verifier reads back from `der`.
    list: RevocationList,
}

impl BuiltCrl {
    /// Whether a verifier that reads this list refuses all of `serials`.
    #[must_use]
    pub fn lists_all(&self, serials: &[Serial]) -> bool {
        serials.iter().all(|serial| self.list.is_revoked(serial))
    }

    /// Its number (RFC 5280 §5.2.3).
    #[must_use]
    pub fn number(&self) -> u64 {
        self.list.number()
    }
}

/// All revocation lists of this installation. A list is signed by the CA that signed the
/// certificates in it, so each CA has its own: the version of the CA stands in the upper bits of
/// the list's number.
pub struct Crls {
    base_url: String,
    clock: SharedClock,
    /// Guards which lists exist; each has its own lock.
    lists: RwLock<BTreeMap<u32, Arc<List>>>,
    /// The lists of everything as they were last made; held while they are.
    whole: tokio::sync::Mutex<Option<Whole>>,
}

/// For each CA one list of everything, in PEM.
struct Whole {
    pem: Bytes,
    number: u64,
    made_at: Boottime,
}

struct List {
    number: u32,
    /// Guards the entries; held for a copy of them at most.
    entries: Mutex<Entries>,
    /// Held while a list is made, so that waiters share one making.
    making: tokio::sync::Mutex<()>,
    current: ArcSwapOption<BuiltCrl>,
}

struct Entries {
    /// Credentials that name this list and are not forgotten yet.
    members: usize,
    revoked: BTreeMap<CredentialId, Vec<Revoked>>,
    version: u64,
    /// The number of the newest list that was made.
    last: u64,
}

impl Crls {
    /// Lists published under `base_url` (`BASE/crl/N`); empty until [`Crls::restore`] was called for
    /// each stored credential.
    pub fn new(base_url: &str, clock: SharedClock) -> Self {
        Self {
            base_url: base_url.trim_end_matches('/').to_owned(),
            clock,
            lists: RwLock::default(),
            whole: tokio::sync::Mutex::default(),
        }
    }

    /// The URL that stands in certificates and in list `number`.
    pub fn uri(&self, number: u32) -> String {
        format!("{}/crl/{number}", self.base_url)
    }

    /// The version of the CA that signs list `number`.
    #[must_use]
    pub const fn ca_of(number: u32) -> u32 {
        number / limits::CRLS_PER_CA
    }

    /// Takes a place for a new credential in a list of the CA of this version. Give it back with
    /// [`Crls::release`] when the intent was not recorded.
    ///
    /// # Errors
    /// When all lists are full.
    pub fn reserve(&self, ca: u32) -> Result<u32, ListError> {
        let first = ca.saturating_mul(limits::CRLS_PER_CA);
        let all = first..first.saturating_add(limits::CRLS_PER_CA);
        let newest = self.newest_of(&all).unwrap_or(first);
        // The newest first: ends come soonest among the youngest, and so change few lists.
        for number in (first..=newest).rev().chain([newest + 1]) {
            if !all.contains(&number) {
                break;
            }
            let has_room = self.list_or_new(number).change(|entries| {
                let has_room = entries.members < limits::CREDENTIALS_PER_CRL;
                entries.members += usize::from(has_room);
                has_room
            });
            if has_room {
                return Ok(number);
            }
        }
        Err(ListError::Full(limits::CRLS_PER_CA))
    }

    /// Puts a stored credential back in its place; `revoked` when its certificates are.
    pub fn restore(&self, number: u32, id: CredentialId, revoked: Option<Vec<Revoked>>) {
        self.list_or_new(number).change(|entries| {
            entries.members += 1;
            if let Some(revoked) = revoked {
                entries.put(id, revoked);
            }
        });
    }

    /// Lists the certificates of a credential. Call only after the commit that revoked it.
    pub fn revoke(&self, number: u32, id: CredentialId, revoked: Vec<Revoked>) {
        self.list_or_new(number)
            .change(|entries| entries.put(id, revoked));
    }

    /// Frees a place: its intent was not recorded, or its listing was pruned.
    pub fn release(&self, number: u32, id: Option<CredentialId>) {
        if let Some(list) = self.list(number) {
            list.change(|entries| {
                entries.members = entries.members.saturating_sub(1);
                if id.is_some_and(|id| entries.revoked.remove(&id).is_some()) {
                    entries.version += 1;
                }
            });
        }
    }

    /// Number and count of changes of every list: what has another count than before has to be
    /// fetched again.
    pub fn versions(&self) -> Vec<(u32, u64)> {
        let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
        let version = |list: &Arc<List>| (list.number, list.change(|entries| entries.version));
        lists.values().map(version).collect()
    }

    /// The list as served now: made again when it changed since, or when it grew old.
    ///
    /// # Errors
    /// When there is no such list, or `keys` cannot sign it (any more).
    pub async fn current(
        &self,
        number: u32,
        keys: &ArcSwap<Keys>,
    ) -> Result<Arc<BuiltCrl>, ListError> {
        let list = self.list(number).ok_or(ListError::Unknown(number))?;
        if let Some(built) = self.fresh(&list) {
            return Ok(built);
        }
        let _one_maker = list.making.lock().await;
        if let Some(built) = self.fresh(&list) {
            return Ok(built);
        }
        if let Some(before) = list.current.load_full() {
            let since = self.clock.boottime().millis_since(before.made_at);
            let pause = u64::try_from(limits::CRL_PAUSE.as_millis()).unwrap_or(0);
            let left = pause.saturating_sub(since);
            tokio::time::sleep(std::time::Duration::from_millis(left)).await;
        }
        let built = Arc::new(self.make(&list, &keys.load())?);
        list.current.store(Some(Arc::clone(&built)));
        Ok(built)
    }

    /// For each CA that is trusted one list of all that it revoked, in PEM: for programs that want a
    /// list of every certificate of a chain, the CA's own included, and read it from a file. Made at
    /// most once in [`limits::CRL_WHOLE_PAUSE_MILLIS`]: it is as large as all lists together.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub async fn whole(&self, keys: &ArcSwap<Keys>) -> Result<Bytes, ListError> {
        let mut whole = self.whole.lock().await;
        let now = self.clock.boottime();
        let last = match whole.as_ref() {
            Some(last) if now.millis_since(last.made_at) < limits::CRL_WHOLE_PAUSE_MILLIS => {
                return Ok(last.pem.clone());
            }
            Some(last) => last.number,
            None => 0,
        };
        let number = self.clock.wall().as_millis().max(last + 1);
        let mut text = String::new();
        for held in keys.load().cas() {
            let der = self.of_ca(held, number)?;
            text.push_str(&pem("X509 CRL", &der));
        }
        let pem = Bytes::from(text);
        *whole = Some(Whole {
            pem: pem.clone(),
            number,
            made_at: now,
        });
        Ok(pem)
    }

    fn of_ca(&self, held: &HeldCa, number: u64) -> Result<Vec<u8>, ListError> {
        let first = held.version.saturating_mul(limits::CRLS_PER_CA);
        let all = first..first.saturating_add(limits::CRLS_PER_CA);
        let lists: Vec<Arc<List>> = {
            let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
            lists.range(all).map(|(_, list)| Arc::clone(list)).collect()
        };
        let entries = |list: &Arc<List>| {
            list.change(|entries| {
                entries
                    .revoked
                    .values()
                    .flatten()
                    .cloned()
                    .collect::<Vec<_>>()
            })
        };
        let revoked: Vec<Revoked> = lists.iter().flat_map(entries).collect();
        let this_update = self.clock.wall().as_unix_seconds();
        let content = CrlContent {
            url: None,
            number,
            this_update: signed(this_update),
            next_update: signed(this_update + limits::CRL_LIFE_SECONDS),
            revoked: &revoked,
        };
        let der = held.ca.sign_crl(&content);
        der.map_err(|e| ListError::Build(first, e.to_string()))
    }

    fn fresh(&self, list: &List) -> Option<Arc<BuiltCrl>> {
        let built = list.current.load_full()?;
        let version = list.change(|entries| entries.version);
        let now = self.clock.wall();
        // A clock that went back must not leave a list from the future in place.
        let young =
            now >= built.issued_at && now.millis_since(built.issued_at) < limits::CRL_REMAKE_MILLIS;
        (built.version == version && young).then_some(built)
    }

    fn make(&self, list: &List, keys: &Keys) -> Result<BuiltCrl, ListError> {
        let failed = |what: String| ListError::Build(list.number, what);
        let now = self.clock.wall();
        let (version, number, revoked) = list.change(|entries| {
            entries.last = now.as_millis().max(entries.last + 1);
            let revoked: Vec<Revoked> = entries.revoked.values().flatten().cloned().collect();
            (entries.version, entries.last, revoked)
        });
        let this_update = now.as_unix_seconds();
        let content = CrlContent {
            url: Some(&self.uri(list.number)),
            number,
            this_update: signed(this_update),
            next_update: signed(this_update + limits::CRL_LIFE_SECONDS),
            revoked: &revoked,
        };
        let held = keys.ca_of(Self::ca_of(list.number));
        let ca = &held.ok_or(ListError::Distrusted(list.number))?.ca;
        let der = ca.sign_crl(&content).map_err(|e| failed(e.to_string()))?;
        // What is checked later as evidence is what a verifier reads, not what we wrote.
        let read_back = RevocationList::verify(&der, &[ca.certificate().clone()]);
        Ok(BuiltCrl {
            version,
            list: read_back.map_err(|e| failed(e.to_string()))?,
            der: der.into(),
            issued_at: now,
            made_at: self.clock.boottime(),
        })
    }

    fn newest_of(&self, numbers: &Range<u32>) -> Option<u32> {
        let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
        lists
            .range(numbers.clone())
            .next_back()
            .map(|(number, _)| *number)
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
        // A count from the clock: no reader takes a restarted broker's list for the one it has.
        let new = || Arc::new(List::new(number, self.clock.wall()));
        Arc::clone(lists.entry(number).or_insert_with(new))
    }
}

fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

impl List {
    fn new(number: u32, now: UnixMillis) -> Self {
        Self {
            number,
            entries: Mutex::new(Entries {
                members: 0,
                revoked: BTreeMap::new(),
                version: now.as_millis(),
                last: 0,
            }),
            making: tokio::sync::Mutex::new(()),
            current: ArcSwapOption::empty(),
        }
    }

    fn change<T>(&self, act: impl FnOnce(&mut Entries) -> T) -> T {
        act(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Entries {
    fn put(&mut self, id: CredentialId, revoked: Vec<Revoked>) {
        let is_new = self.revoked.get(&id) != Some(&revoked);
        if is_new {
            self.revoked.insert(id, revoked);
            self.version += 1;
        }
    }
}
