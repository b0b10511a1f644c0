//! What it takes for a note to say something of this log.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use crate::issue::tests::harness::Bench;
use ephor_proto::problem::Code;

#[tokio::test]
async fn only_a_signed_note_of_more_than_nothing_confirms_the_log() {
    let bench = Bench::new().await;
    let broker = &bench.broker;
    assert_eq!(broker.ledger.head().size, 0);
    let of_nothing = broker.newest_checkpoint().unwrap();
    bench.token().await;
    broker
        .compare_with_seen("web-1", &of_nothing)
        .await
        .unwrap();
    assert!(!broker.may_sweep(), "every log begins with nothing");

    // Its text is public; who can read it cannot sign it.
    let note = broker.newest_checkpoint().unwrap();
    let (text, signature) = note.trim_end().rsplit_once(' ').unwrap();
    let mut forged = signature.to_owned();
    let last = forged.pop().unwrap();
    let at = forged.len() - 8;
    let other = if forged.as_bytes()[at] == b'A' {
        "B"
    } else {
        "A"
    };
    forged.replace_range(at..=at, other);
    let forged = format!("{text} {forged}{last}\n");
    let refused = broker.compare_with_seen("web-1", &forged).await;
    assert_eq!(refused.unwrap_err().code, Code::InvalidRequest);
    assert!(!broker.may_sweep());

    broker.compare_with_seen("web-1", &note).await.unwrap();
    assert!(broker.may_sweep());
}
