//! Task exit → revocation list, while many are listed already: from `kill -9` of a process to a
//! list, fetched and verified, that names its certificate.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use ephor_crypto::x509::{CaCertificate, RevocationList, Serial};
use serde_json::{Value, json};

use super::{Finding, Target};
use crate::args::{Made, Run, Work};
use crate::client::{Call, Connection};
use crate::clock::Moment;
use crate::crowd::Crowd;
use crate::fixture::Fixture;
use crate::host;
use crate::measure::Collector;
use crate::workers::{Worker, Workers};

/// Certificates that end each second.
const ENDS: usize = 500;
/// In one task, which ends at once.
const A_TASK: usize = 10;
/// Tasks that ask for theirs at the same time.
const AT_ONCE: usize = 50;
/// How long.
const SECONDS: usize = 10;
/// Between two looks at the lists.
const POLL: Duration = Duration::from_millis(10);
/// Until a crowd that was killed is listed as a whole; until the last task is.
const LISTED_MAX: Duration = Duration::from_secs(120);
/// The promise, in milliseconds.
const BOUND_MS: f64 = 1000.0;

/// `live` certificates are made and end; then tasks of ten certificates end at a steady rate.
pub async fn run(run: &Run) -> anyhow::Result<Finding> {
    let fixture = Fixture::start(&run.ephor).await?;
    let crowd = Crowd::gather(&fixture, &run.ephor, Made::Certificate, run.live).await?;
    let mut verifier = Verifier::new(&fixture).await?;
    let killed = Moment::now();
    drop(crowd.workers);
    while verifier.look().await? < run.live {
        if killed.elapsed() > LISTED_MAX {
            bail!("only {} are listed after {LISTED_MAX:?}", verifier.listed());
        }
        tokio::time::sleep(POLL).await;
    }
    let crowd_listed = killed.elapsed();
    host::say(&format!("{} listed", verifier.listed()));
    let other = fixture.another_host(&run.ephor, "ending").await?;
    let work = Work {
        calls: A_TASK,
        ..Work::much(Made::Certificate)
    };
    let mut ending = Vec::new();
    while ending.len() < ENDS * SECONDS / A_TASK {
        // An agent takes 64 requests of one user at once.
        let mut some = Workers::start(&other.socket, AT_ONCE, &work).await?;
        some.work().await?;
        ending.extend(some.into_each());
    }
    let turns = turns(&mut verifier, ending).await?;
    let latency = turns.latency();
    let listed = verifier.listed();
    drop(crowd.hosts);
    fixture.stop().await?;
    Ok(Finding {
        scenario: "crl",
        targets: vec![Target::at_most(
            "task exit to its list, p99 ms",
            BOUND_MS,
            latency.p99_us as f64 / 1000.0,
        )],
        detail: json!({
            "ends_per_second": ENDS, "listed": listed, "latency": latency,
            "crowd_listed_ms": crowd_listed.as_millis() as u64,
        }),
    })
}

/// Kills a task when it is due, looks for those that were killed, and says how long each took.
async fn turns(verifier: &mut Verifier, tasks: Vec<Worker>) -> anyhow::Result<Collector> {
    let mut collector = Collector::new()?;
    let mut waiting: HashMap<Serial, Moment> = HashMap::new();
    let start = Moment::now();
    let gap = Duration::from_secs(1).mul_f64(A_TASK as f64 / ENDS as f64);
    let mut tasks = tasks.into_iter().enumerate().peekable();
    while tasks.peek().is_some() || !waiting.is_empty() {
        while let Some((_, mut task)) =
            tasks.next_if(|(number, _)| start.after(gap.mul_f64(*number as f64)) <= Moment::now())
        {
            waiting.insert(from_hex(&task.serial)?, Moment::now());
            task.kill()?;
        }
        verifier.look().await?;
        waiting.retain(|serial, killed| {
            let is_listed = verifier.lists(serial);
            if is_listed {
                collector.add(killed.elapsed());
            }
            !is_listed
        });
        if start.elapsed() > LISTED_MAX {
            bail!(
                "{} are still not listed after {LISTED_MAX:?}",
                waiting.len()
            );
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(collector)
}

/// Fetches each list whenever it has changed, and verifies it.
struct Verifier {
    https: Connection,
    cas: Vec<CaCertificate>,
    lists: HashMap<String, (String, Rc<RevocationList>)>,
}

impl Verifier {
    async fn new(fixture: &Fixture) -> anyhow::Result<Self> {
        let cas = std::fs::read_to_string(fixture.ca_file()?)?;
        Ok(Self {
            https: fixture.https().await?,
            cas: CaCertificate::all_from_pem(&cas)?,
            lists: HashMap::new(),
        })
    }

    /// How many are listed now.
    async fn look(&mut self) -> anyhow::Result<usize> {
        let index: Value = serde_json::from_slice(&self.https.call(&Call::get("/crl")).await?)?;
        let lists = index.get("lists").and_then(Value::as_array);
        for list in lists.context("the index has no lists")? {
            let text = |name: &str| list.get(name).and_then(Value::as_str);
            let (url, version) = (
                text("url").context("url")?,
                text("version").context("version")?,
            );
            if self
                .lists
                .get(url)
                .is_some_and(|(known, _)| known == version)
            {
                continue;
            }
            let path = url
                .find("/crl/")
                .and_then(|at| url.get(at..))
                .context("no /crl/N")?;
            let der = self.https.call(&Call::get(path)).await?;
            let list = RevocationList::verify(&der, &self.cas)?;
            self.lists
                .insert(url.to_owned(), (version.to_owned(), Rc::new(list)));
        }
        Ok(self.listed())
    }

    fn listed(&self) -> usize {
        self.lists.values().map(|(_, list)| list.len()).sum()
    }

    fn lists(&self, serial: &Serial) -> bool {
        self.lists.values().any(|(_, list)| list.is_revoked(serial))
    }
}

fn from_hex(serial: &str) -> anyhow::Result<Serial> {
    let byte = |at| {
        let pair = serial.get(at..at + 2).unwrap_or_default();
        u8::from_str_radix(pair, 16).with_context(|| format!("serial {serial:?}"))
    };
    let bytes = (0..serial.len()).step_by(2).map(byte);
    Ok(Serial::new(&bytes.collect::<Result<Vec<_>, _>>()?)?)
}
