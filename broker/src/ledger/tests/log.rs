//! Proofs, tiles, checkpoints and receipts, checked by the functions an outsider would use.

use std::sync::Arc;

use ephor_crypto::ed25519::{self, LogKey};
use ephor_proto::log::{Checkpoint, SignedNote, VerifyFn, split_bundle, verify_receipt};
use tlog_tiles::tlog::{self, Hash};

use super::fixture::*;
use crate::ledger::log::{
    Found, Signer, consistency, inclusion, receipt, root_at, signed_checkpoint, tile,
};
use crate::ledger::*;

const VERIFY: VerifyFn = |key, message, signature| ed25519::verify(key, message, signature);

pub(super) fn bytes(reader: &Reader, path: &str) -> Vec<u8> {
    match tile(reader, path).unwrap().unwrap() {
        Found::Bytes(bytes) => bytes,
        Found::Pruned(at) => panic!("{path} was pruned at {at:?}"),
    }
}

fn filled(ledger: &Ledger, batches: u32) {
    let tickets: Vec<Ticket> = (0..batches)
        .map(|index| ledger.submit(issue(index).1).unwrap())
        .collect();
    for ticket in tickets {
        ticket.wait().unwrap();
    }
}

fn hashes(proof: Vec<[u8; 32]>) -> Vec<Hash> {
    proof.into_iter().map(Hash).collect()
}

#[test]
fn inclusion_and_consistency_hold_for_every_size_and_fail_for_another_leaf() {
    let store = Store::new();
    let ledger = store.open();
    filled(&ledger, 23);
    let reader = ledger.reader();
    let Head { size, root } = reader.head().unwrap();
    assert_eq!(size, 69);
    for index in 0..size {
        let leaf = tlog::record_hash(reader.event(index).unwrap().unwrap().json.as_bytes());
        let proof = hashes(inclusion(&reader, index, size).unwrap());
        tlog::check_record(&proof, size, Hash(root), index, leaf).unwrap();
        let other = tlog::record_hash(b"other");
        assert!(tlog::check_record(&proof, size, Hash(root), index, other).is_err());
    }
    for old in 1..=size {
        let old_root = root_at(&reader, old).unwrap().unwrap();
        let proof = hashes(consistency(&reader, old, size).unwrap());
        tlog::check_tree(&proof, size, Hash(root), old, Hash(old_root)).unwrap();
    }
    assert_eq!(root_at(&reader, size + 1).unwrap(), None);
    assert!(inclusion(&reader, 0, size + 1).is_err());
    assert!(inclusion(&reader, size, size).is_err());
    assert!(consistency(&reader, 0, size).is_err());
}

#[test]
fn a_receipt_verifies_with_the_log_key_alone() {
    let store = Store::new();
    let ledger = store.open();
    filled(&ledger, 4);
    let (credential, first) = issue(100);
    commit(&ledger, first).unwrap();
    let mut told = event("receipt");
    told.task = Some(credential.task);
    let rows = vec![Row::Receipt {
        task: credential.task,
        event: 1,
    }];
    commit(&ledger, revoke(rows, vec![event("listed"), told.clone()])).unwrap();
    filled(&ledger, 9);

    let signer = Signer {
        origin: ledger.installation().origin.clone(),
        key: Arc::new(LogKey::generate().unwrap()),
        beside: Vec::new(),
    };
    let reader = ledger.reader();
    assert_eq!(reader.receipts(None, 10).unwrap(), [credential.task]);
    assert!(receipt(&reader, &signer, task_id()).unwrap().is_none());
    let receipt = receipt(&reader, &signer, credential.task).unwrap().unwrap();
    let vkey = signer.verifier_key().unwrap();
    assert_eq!(verify_receipt(&receipt, &vkey, VERIFY).unwrap().event, told);
    let other = Signer {
        origin: signer.origin.clone(),
        key: Arc::new(LogKey::generate().unwrap()),
        beside: Vec::new(),
    };
    let others = other.verifier_key().unwrap();
    assert!(verify_receipt(&receipt, &others, VERIFY).is_err());

    // While one key follows another, a receipt is good by either.
    let both = Signer {
        beside: vec![signer.key.clone()],
        ..other
    };
    let by_both = super::super::log::receipt(&reader, &both, credential.task);
    let by_both = by_both.unwrap().unwrap();
    for key in [&vkey, &others] {
        assert_eq!(verify_receipt(&by_both, key, VERIFY).unwrap().event, told);
    }

    // One receipt: a second is refused.
    let rows = vec![Row::Receipt {
        task: credential.task,
        event: 0,
    }];
    let again = commit(&ledger, revoke(rows, vec![event("again")])).unwrap_err();
    assert_eq!(again, CommitError::Conflict(Key::Receipt(credential.task)));
}

#[test]
fn the_signed_checkpoint_is_that_of_the_snapshot_and_of_an_empty_log_too() {
    let store = Store::new();
    let ledger = store.open();
    let signer = Signer {
        origin: "ephor.test/log".to_owned(),
        key: Arc::new(LogKey::generate().unwrap()),
        beside: Vec::new(),
    };
    let check = |note: &SignedNote| -> Checkpoint {
        let note: SignedNote = note.to_string().parse().unwrap();
        note.verify(&signer.verifier_key().unwrap(), VERIFY)
            .unwrap()
            .parse()
            .unwrap()
    };
    let empty = check(&signed_checkpoint(&ledger.reader(), &signer).unwrap());
    assert_eq!((empty.size(), empty.root()), (0, tlog::EMPTY_HASH.0));
    filled(&ledger, 1);
    let reader = ledger.reader();
    let one = check(&signed_checkpoint(&reader, &signer).unwrap());
    assert_eq!((one.size(), one.root()), (3, ledger.head().root));
    filled(&ledger, 1);
    // The snapshot stands still while the log grows.
    assert_eq!(check(&signed_checkpoint(&reader, &signer).unwrap()), one);
}

#[test]
fn tiles_are_those_of_tlog_tiles_and_bundles_hold_the_leaves() {
    let store = Store::new();
    let ledger = store.open();
    filled(&ledger, 176); // 528 leaves: two full tiles and a partial one
    let reader = ledger.reader();
    let leaf = |index| reader.event(index).unwrap().unwrap().json;
    let first = bytes(&reader, "tile/0/000");
    assert_eq!(first.len(), 256 * 32);
    for (index, hash) in first.chunks(32).enumerate() {
        assert_eq!(hash, tlog::record_hash(leaf(index as u64).as_bytes()).0);
    }
    let above = bytes(&reader, "tile/1/000.p/2");
    assert_eq!(above[..32], root_at(&reader, 256).unwrap().unwrap());
    let partial = bytes(&reader, "tile/entries/002.p/16");
    let entries = split_bundle(&partial).unwrap();
    assert_eq!(entries.len(), 16);
    assert_eq!(entries[15], leaf(527).as_bytes());
    assert_eq!(
        split_bundle(&bytes(&reader, "tile/entries/001"))
            .unwrap()
            .len(),
        256
    );
    for absent in [
        "tile/0/002",
        "tile/0/002.p/17",
        "tile/0/003.p/1",
        "tile/1/000",
        "tile/2/000.p/1",
        "tile/0/2.p/1",
        "tile/0/x000/002.p/1",
        "tile/0/002.p/0",
        "tile/0/002.p/256",
        "tile/00/000",
        "tile/8/000",
        "tile/-1/000",
        "tile/entries/../000",
        "tile/0/",
        "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
        "",
        "tile/data/000",
        "/tile/0/000",
        "tile/0/000/",
    ] {
        assert_eq!(tile(&reader, absent).unwrap(), None, "{absent}");
    }
}
