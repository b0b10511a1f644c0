//! Named test 10: whatever the broker served before, between and after crashes is of one
//! history. Every checkpoint and every tile an outsider could fetch is kept and judged at the
//! end by `verify.py`, which shares no code with us.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ephor_testkit::checker::{self, History, judge};
use ephor_testkit::installation::{Installation, SETTLE, Side};
use ephor_testkit::wait;
use ephor_testkit::workload::Workload;

/// Every line between the commit of an event and what an outsider sees of it.
const CRASHES: &[&str] = &[
    "ledger.before_checkpoint:3",
    "ledger.before_commit:3",
    "ledger.after_commit:3",
    "ledger.after_commit:4",
    "ledger.after_answer:3",
    "prove.before_signature",
    "prove.before_signature:4",
    "prove.after_signature",
    "prove.after_signature:4",
    "prove.tile",
    "prove.tile:3",
];

/// For each note: signed by the log's key, and its root is that of the first leaves of the one
/// final log, recomputed. Two notes that both are prefixes of one log are consistent. For each
/// bundle: its bytes are those of the final log.
const JUDGE: &str = r#"
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import verify
export, served, key = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
size, _ = verify.open_note((export / "log/checkpoint").read_text(), key)
leaves = verify.read_leaves(export / "log", size, 0)
heights = verify.subtrees([verify.sha256(b"\0", leaf) for leaf in leaves])
sizes = set()
for note in served.glob("*.note"):
    size, root = verify.open_note(note.read_text(), key)
    verify.need(size <= len(leaves), f"a head of {size} was served, the log has {len(leaves)}")
    verify.need(verify.root(heights, size) == root, f"the head of {size} is of another history")
    sizes.add(size)
for bundle in served.glob("*.entries"):
    width = int(bundle.stem)
    whole = b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves[:width])
    verify.need(bundle.read_bytes() == whole, f"the entries of {width} are of another history")
print(len(sizes))
"#;

/// Fetches what is public, over and over, and keeps all of it.
fn watch(kit: &Installation, done: &AtomicBool, seen: &Mutex<BTreeSet<Vec<u8>>>) {
    let served = kit.path("served");
    while !done.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(5));
        let Ok(note) = kit.public("/checkpoint") else {
            continue;
        };
        if note.status != 200 || !seen.lock().unwrap().insert(note.bytes.clone()) {
            continue;
        }
        let number = seen.lock().unwrap().len();
        std::fs::write(served.join(format!("{number}.note")), &note.bytes).unwrap();
        let size = String::from_utf8_lossy(&note.bytes)
            .lines()
            .nth(1)
            .unwrap()
            .to_owned();
        let width = size.parse::<u64>().unwrap().min(255);
        let Ok(entries) = kit.public(&format!("/tile/entries/000.p/{width}")) else {
            continue;
        };
        if entries.status == 200 {
            std::fs::write(served.join(format!("{width}.entries")), entries.bytes).unwrap();
        }
    }
}

#[test]
fn named_10_no_two_heads_whatever_line_the_broker_dies_at() {
    let kit = super::running();
    std::fs::create_dir(kit.path("served")).unwrap();
    let (done, seen) = (AtomicBool::new(false), Mutex::new(BTreeSet::new()));
    let mut history = History::default();
    std::thread::scope(|scope| {
        scope.spawn(|| watch(&kit, &done, &seen));
        let _stop = Stop(&done);
        for point in CRASHES {
            kit.stop(Side::Broker).unwrap();
            kit.try_start(Side::Broker, &[("EPHOR_CRASH", point)])
                .unwrap();
            let mut during = Workload::start(&kit).unwrap();
            let died = wait::until(&format!("{point} is reached"), SETTLE, || {
                let dead = kit.has_ended(Side::Broker);
                if !dead {
                    let _ = during.ask(&format!("a{}", wait::monotonic()));
                }
                dead.then_some(())
            });
            died.unwrap();
            assert_eq!(kit.killed_by(Side::Broker), Some(9), "{point}");
            kit.start_daemon(Side::Broker, &[]).unwrap();
            history.end(&mut during).unwrap();
            // The agent presents the highest checkpoint it has seen: the broker refuses to issue
            // when it is not one of its own.
            kit.wait_connected().unwrap();
        }
    });
    let mut stays = Workload::start(&kit).unwrap();
    history
        .running
        .push(wait::until("a token", SETTLE, || stays.ask("after").ok().flatten()).unwrap());
    judge(&kit, &history).unwrap();
    let key = checker::log_key(&kit).unwrap();
    let judged = Command::new(checker::python())
        .args(["-c", JUDGE])
        .args([kit.path("export"), kit.path("served")])
        .arg(key)
        .output()
        .unwrap();
    assert!(
        judged.status.success(),
        "{}",
        String::from_utf8_lossy(&judged.stderr)
    );
    let sizes: usize = String::from_utf8(judged.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(
        sizes > CRASHES.len(),
        "only {sizes} different heads were seen: this judged nothing"
    );
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
