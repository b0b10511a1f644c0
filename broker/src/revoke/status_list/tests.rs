//! Bits, signatures and places, as a verifier sees them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::io::Read;

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
