//! Places per uid, so that one user cannot take them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A number of places, shared out by uid. Cheap to clone.
#[derive(Clone)]
pub struct Quota {
    inner: Arc<Inner>,
}

struct Inner {
    per_uid: usize,
    all: usize,
    /// Guards the counts; held for an addition.
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_uid: HashMap<u32, usize>,
}

/// One place of a uid; given back when dropped.
pub struct Place {
    quota: Quota,
    uid: u32,
}

impl Quota {
    /// At most `all` places, `per_uid` for each uid. Root has `per_uid` of its own beside them,
    /// so that an administrator finds a place when users took every other.
    #[must_use]
    pub fn new(per_uid: usize, all: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                per_uid,
                all,
                taken: Mutex::default(),
            }),
        }
    }

    /// A place, if there is one left for this uid.
    #[must_use]
    pub fn take(&self, uid: u32) -> Option<Place> {
        let Inner { per_uid, all, .. } = *self.inner;
        let mut taken = self.lock();
        let most = if uid == 0 {
            all.saturating_add(per_uid)
        } else {
            all
        };
        let own = taken.by_uid.get(&uid).copied().unwrap_or(0);
        if own >= per_uid || taken.all >= most {
            return None;
        }
        taken.by_uid.insert(uid, own + 1);
        taken.all += 1;
        Some(Place {
            quota: self.clone(),
            uid,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.inner
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.quota.lock();
        taken.all = taken.all.saturating_sub(1);
        let left = taken
            .by_uid
            .get(&self.uid)
            .map_or(0, |own| own.saturating_sub(1));
        if left == 0 {
            taken.by_uid.remove(&self.uid);
        } else {
            taken.by_uid.insert(self.uid, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_uid_has_its_share_and_root_a_reserve() {
        let quota = Quota::new(2, 3);
        let (one, _two) = (quota.take(7).unwrap(), quota.take(7).unwrap());
        assert!(quota.take(7).is_none(), "its share");
        let _three = quota.take(8).unwrap();
        assert!(quota.take(9).is_none(), "all");
        let _root = quota.take(0).unwrap();
        drop(one);
        assert!(quota.take(9).is_none(), "root's place counts too");
        drop(_root);
        assert!(quota.take(9).is_some() && quota.take(7).is_some());
    }
}
