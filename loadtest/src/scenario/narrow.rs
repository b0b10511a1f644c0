//! A policy that takes something away, while many are live: from its apply to introspection
//! refusing what it no longer allows.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Finding, Target};
use crate::args::{Made, Run, Work};
use crate::client::{Call, Connection};
use crate::clock::Moment;
use crate::crowd::Crowd;
use crate::fixture::Fixture;
use crate::host;
use crate::measure::Collector;
use crate::workers::Workers;

/// Processes with tokens of the entitlement that goes.
const HOLDERS: usize = 8;
/// Tokens of it that are asked about, half of them made before all others, half after.
const WATCHED: usize = 20;
/// A token that still works after this is a failure.
const GIVE_UP: Duration = Duration::from_secs(60);
/// The promise, in milliseconds.
const BOUND_MS: f64 = 1000.0;
const ENTITLEMENT: &str = "narrowed";

/// 2 000 of `live` and a few more lose what allowed them.
pub async fn run(run: &Run) -> anyhow::Result<Finding> {
    let fixture = Fixture::start(&run.ephor).await?;
    let before = fixture.policy()?;
    let with = format!("{before}{}", entitlement(&before)?);
    fixture.apply(&with).await?;
    let mut agent = Connection::unix(&fixture.socket()?).await?;
    let mut watched = Vec::new();
    watch(&mut agent, &mut watched, 0..WATCHED / 2).await?;
    let crowd = Crowd::gather(&fixture, &run.ephor, Made::Token, run.live).await?;
    let work = Work {
        entitlement: ENTITLEMENT.to_owned(),
        ..Work::much(Made::Token)
    };
    let mut holders = Workers::start(&fixture.socket()?, HOLDERS, &work).await?;
    holders.work().await?;
    watch(&mut agent, &mut watched, WATCHED / 2..WATCHED).await?;
    let mut https = fixture.https().await?;
    for token in &watched {
        if !active(&mut https, token).await? {
            bail!("a fresh token is refused");
        }
    }
    let narrowed = holders.calls() as usize + watched.len();
    let start = Moment::now();
    let answer = fixture.apply(&before).await?;
    let answered = start.elapsed();
    let mut collector = Collector::new()?;
    while !watched.is_empty() {
        let mut left = Vec::new();
        for token in watched {
            if active(&mut https, &token).await? {
                left.push(token);
            } else {
                collector.add(start.elapsed());
            }
        }
        watched = left;
        if start.elapsed() > GIVE_UP {
            bail!(
                "{} tokens still work {GIVE_UP:?} after the policy",
                watched.len()
            );
        }
    }
    let refused = collector.latency();
    drop((crowd, holders, agent));
    fixture.stop().await?;
    host::say(&answer);
    Ok(Finding {
        scenario: "narrow",
        targets: vec![Target::at_most(
            "policy applied to the last of what it takes away refused, ms",
            BOUND_MS,
            refused.max_us as f64 / 1000.0,
        )],
        detail: json!({
            "live": run.live, "narrowed": narrowed, "refused": refused,
            "answered_ms": answered.as_millis() as u64,
        }),
    })
}

/// What the one workload of that policy is given for a while.
fn entitlement(policy: &str) -> anyhow::Result<String> {
    let workload = policy.lines().find_map(|line| {
        let rest = line.strip_prefix("[workload.\"")?;
        rest.strip_suffix("\"]")
    });
    let workload = workload.context("the policy of `ephor dev` has no workload")?;
    Ok(format!(
        r#"
[entitlement.{ENTITLEMENT}]
owner   = "team:dev"
purpose = "To be taken away"
who     = ["{workload}"]
gives   = [{{ jwt = {{ audience = "load" }} }}]
ttl     = "1h"
"#
    ))
}

/// Tokens of the entitlement, in this process's own task.
async fn watch(
    agent: &mut Connection,
    watched: &mut Vec<String>,
    numbers: std::ops::Range<usize>,
) -> anyhow::Result<()> {
    for number in numbers {
        let body = json!({"entitlement": ENTITLEMENT, "reason": format!("watched {number}"), "ttl_seconds": 3600});
        let call = Call::post("/v1/credentials", "application/json", body.to_string());
        let answer: Value = serde_json::from_slice(&agent.call(&call).await?)?;
        let token = answer
            .pointer("/credentials/0/token")
            .and_then(Value::as_str);
        watched.push(token.context("no token in the answer")?.to_owned());
    }
    Ok(())
}

async fn active(https: &mut Connection, token: &str) -> anyhow::Result<bool> {
    let ask = Call::post(
        "/introspect",
        "application/x-www-form-urlencoded",
        format!("token={token}"),
    )
    .with("authorization", format!("Bearer {token}"));
    super::exit::active(https, &ask).await
}
