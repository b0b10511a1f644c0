//! Known vectors of RFC 6962, and every way to tamper with a receipt.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use super::*;
use crate::event::Outcome;
use crate::id::EventId;
use crate::log::{leaf_hash, node_hash, sample};
use crate::stage::Stage;
use crate::time::UnixMillis;
use proptest::prelude::*;

/// The root of RFC 6962 §2.1, by its definition: a second opinion on the library.
fn root(leaves: &[Vec<u8>]) -> [u8; 32] {
    match leaves {
        [leaf] => leaf_hash(leaf),
        leaves => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            node_hash(root(left), root(right))
        }
    }
}

/// The audit path of RFC 6962 §2.1.1, by its definition.
fn path(index: usize, leaves: &[Vec<u8>]) -> Vec<[u8; 32]> {
    if leaves.len() == 1 {
        return vec![];
    }
    let k = split(leaves.len());
    let (left, right) = leaves.split_at(k);
    let (mut below, sibling) = if index < k {
        (path(index, left), root(right))
    } else {
        (path(index - k, right), root(left))
    };
    below.push(sibling);
    below
}

/// The largest power of two below `n`.
fn split(n: usize) -> usize {
    n.next_power_of_two() / 2
}

fn leaf(n: u8) -> Vec<u8> {
    let event = AuditEvent::new(
        EventId::from_parts(1, [n; 10]),
        UnixMillis::from_millis(1),
        (Stage::Prove, "receipt"),
        Outcome::Ok,
        ("inst", 1),
    );
    event.leaf_bytes().unwrap()
}

fn receipt(index: usize, leaves: &[Vec<u8>]) -> Receipt {
    let key = sample::key("log.example");
    let size = u64::try_from(leaves.len()).unwrap();
    let head = Checkpoint::new("log.example", size, root(leaves)).unwrap();
    let note = sample::sign(&head.to_string(), &key);
    let text = String::from_utf8(leaves[index].clone()).unwrap();
    Receipt::new(
        text,
        u64::try_from(index).unwrap(),
        &path(index, leaves),
        &note,
    )
}

fn verify(receipt: &Receipt) -> Result<Verified, BadReceipt> {
    verify_receipt(receipt, &sample::key("log.example"), sample::verify)
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn the_known_tree_of_certificate_transparency() {
    // The eight leaves and roots of the reference implementation's tests (certificate-transparency).
    let leaves: Vec<Vec<u8>> = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
    .map(hex)
    .to_vec();
    let roots = [
        (
            1,
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        ),
        (
            2,
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        ),
        (
            3,
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        ),
        (
            8,
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ),
    ];
    for (size, expected) in roots {
        assert_eq!(root(&leaves[..size]).to_vec(), hex(expected), "{size}");
    }
}

#[test]
fn a_receipt_verifies_at_every_place_of_every_tree() {
    for size in 1..=20u8 {
        let leaves: Vec<Vec<u8>> = (0..size).map(leaf).collect();
        for index in 0..usize::from(size) {
            let shown = verify(&receipt(index, &leaves)).unwrap();
            assert_eq!(shown.event.leaf_bytes().unwrap(), leaves[index]);
            assert_eq!(shown.checkpoint.size(), u64::from(size));
        }
    }
}

fn seven() -> Vec<Vec<u8>> {
    (0..7).map(leaf).collect()
}

#[test]
fn each_tampering_is_refused_for_its_own_reason() {
    let good = receipt(3, &seven());
    assert!(verify(&good).is_ok());
    let with = |change: fn(&mut Receipt)| {
        let mut bad = good.clone();
        change(&mut bad);
        verify(&bad).unwrap_err()
    };
    use BadReceipt as B;
    assert!(matches!(
        with(|r| r.leaf = r.leaf.replace("\"ok\"", "\"no\"")),
        B::NotIncluded(3)
    ));
    assert!(matches!(with(|r| r.leaf.push(' ')), B::NotIncluded(3)));
    assert!(matches!(with(|r| r.index = 2), B::NotIncluded(2)));
    assert!(matches!(with(|r| r.index = 7), B::NotIncluded(7)));
    assert!(matches!(with(|r| r.index = u64::MAX), B::TooLarge));
    assert!(matches!(with(|r| r.proof.truncate(2)), B::NotIncluded(3)));
    assert!(matches!(with(|r| r.proof.swap(0, 1)), B::NotIncluded(3)));
    assert!(matches!(
        with(|r| r.proof.push(r.proof[0].clone())),
        B::NotIncluded(3)
    ));
    assert!(matches!(with(|r| r.proof[1] = "AAAA".into()), B::Hash(1)));
    assert!(matches!(
        with(|r| r.proof = vec![r.proof[0].clone(); 65]),
        B::TooLarge
    ));
    assert!(matches!(
        with(|r| r.checkpoint.clear()),
        B::Note(BadNote::Form)
    ));
    let resized = with(|r| r.checkpoint = r.checkpoint.replacen("\n7\n", "\n8\n", 1));
    assert!(matches!(resized, B::Note(BadNote::Forged(_))));
}

#[test]
fn another_logs_key_or_head_is_refused() {
    let good = receipt(3, &seven());
    let other = sample::key("other.example");
    let refused = verify_receipt(&good, &other, sample::verify).unwrap_err();
    assert!(matches!(refused, BadReceipt::Note(BadNote::NotSigned(_))));
    // Same name, another key.
    let twin = VerifierKey::new("log.example", [9; 32]).unwrap();
    assert!(verify_receipt(&good, &twin, sample::verify).is_err());
    // Our key over another log's head.
    let key = sample::key("log.example");
    let head = Checkpoint::new("other.example", 7, root(&seven())).unwrap();
    let mut moved = good;
    moved.checkpoint = sample::sign(&head.to_string(), &key).to_string();
    assert!(matches!(
        verify(&moved).unwrap_err(),
        BadReceipt::OtherLog(_)
    ));
}

#[test]
fn a_node_cannot_pass_for_a_leaf() {
    // The concatenation of two hashes hashes differently as a leaf than as a node.
    let leaves = seven();
    let (left, right) = (leaf_hash(&leaves[0]), leaf_hash(&leaves[1]));
    assert_ne!(leaf_hash(&[left, right].concat()), node_hash(left, right));
}

#[test]
fn the_json_has_four_fields() {
    let json = serde_json::to_value(receipt(0, &seven())).unwrap();
    let names: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(names, ["leaf", "index", "proof", "checkpoint"]);
}

proptest! {
    #[test]
    fn any_changed_byte_is_refused(index in 0usize..7, field in 0u8..3, at: prop::sample::Index, flip in 1u8..128) {
        let good = receipt(index, &seven());
        let mut bad = good.clone();
        let text = match field {
            0 => &mut bad.leaf,
            1 => &mut bad.checkpoint,
            _ => &mut bad.proof[0],
        };
        let mut bytes = text.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let Ok(changed) = String::from_utf8(bytes) else { return Ok(()) };
        *text = changed;
        prop_assert!(verify(&bad).is_err());
    }
}
