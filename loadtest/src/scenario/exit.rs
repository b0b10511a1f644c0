//! Task exit → refused: from `kill -9` of a process to introspection refusing its token.

use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::task::LocalSet;

use super::{Finding, Target};
use crate::args::Run;
use crate::client::{Call, Connection};
use crate::clock::Moment;
use crate::fixture::Fixture;
use crate::measure::Collector;

/// Between the start of a task and its kill.
const LIFE: Duration = Duration::from_secs(2);
/// Between two questions to introspection.
const POLL: Duration = Duration::from_millis(2);
/// A token that still works after this is a failure.
const GIVE_UP: Duration = Duration::from_secs(10);

/// A steady stream of tasks; each is killed two seconds after its start.
pub async fn run(run: &Run) -> anyhow::Result<Finding> {
    let fixture = Rc::new(Fixture::start(&run.ephor).await?);
    let start = Moment::now();
    let gap = Duration::from_secs_f64(1.0 / run.task_rate as f64);
    let local = LocalSet::new();
    let running: Vec<_> = (0..run.tasks)
        .map(|number| {
            let fixture = Rc::clone(&fixture);
            let begin = start.after(gap.mul_f64(number as f64));
            local.spawn_local(async move { one(&fixture, begin).await })
        })
        .collect();
    let mut collector = Collector::new()?;
    local
        .run_until(async {
            for task in running {
                collector.add(task.await??);
            }
            anyhow::Ok(())
        })
        .await?;
    drop(local);
    let latency = collector.latency();
    Rc::into_inner(fixture)
        .context("the fixture is still in use")?
        .stop()
        .await?;
    Ok(Finding {
        scenario: "exit",
        targets: vec![Target::at_most(
            "task exit to refused, p99 ms",
            250.0,
            latency.p99_us as f64 / 1000.0,
        )],
        detail: json!({ "tasks": run.tasks, "per_second": run.task_rate, "latency": latency }),
    })
}

async fn one(fixture: &Fixture, begin: Moment) -> anyhow::Result<Duration> {
    tokio::time::sleep(begin.remaining()).await;
    let mut holder = Command::new(std::env::current_exe()?)
        .arg("__hold")
        .arg(fixture.socket()?)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(holder.stdout.take().context("no standard output")?).lines();
    let token = lines
        .next_line()
        .await?
        .context("the holder got no token")?;
    let mut https = fixture.https().await?;
    let ask = Call::post(
        "/introspect",
        "application/x-www-form-urlencoded",
        format!("token={token}"),
    )
    .with("authorization", format!("Bearer {token}"));
    if !active(&mut https, &ask).await? {
        bail!("a fresh token is refused");
    }
    tokio::time::sleep(begin.after(LIFE).remaining()).await;
    let killed = Moment::now();
    holder.start_kill()?;
    while active(&mut https, &ask).await? {
        if killed.elapsed() > GIVE_UP {
            bail!("a token still works {GIVE_UP:?} after its task was killed");
        }
        tokio::time::sleep(POLL).await;
    }
    let took = killed.elapsed();
    holder.wait().await?;
    Ok(took)
}

/// What introspection answers.
pub async fn active(https: &mut Connection, ask: &Call) -> anyhow::Result<bool> {
    let answer: serde_json::Value = serde_json::from_slice(&https.call(ask).await?)?;
    answer
        .get("active")
        .and_then(serde_json::Value::as_bool)
        .context("introspection said neither yes nor no")
}

/// The process that is killed: fetches a token, prints it, waits.
pub async fn hold(socket: &Path) -> anyhow::Result<()> {
    let mut connection = Connection::unix(socket).await?;
    let body = connection
        .call(&Call::get("/v1/token?audience=load"))
        .await?;
    let answer: serde_json::Value = serde_json::from_slice(&body)?;
    let token = answer
        .get("token")
        .and_then(serde_json::Value::as_str)
        .context("no token in the answer")?;
    crate::host::print(token)?;
    std::future::pending().await
}
