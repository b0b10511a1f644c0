//! `ephor-loadtest logins`: what the broker's library makes and drops at a PostgreSQL server, beside
//! `pgbench`, on as many connections and with as many SCRAM iterations.
//!
//! `pgbench` types two things: the very statement that the library sends (the call of `ephor.mint`, prepared,
//! by the same login), and what an administrator would type (CREATE ROLE and its setting, in one message, by a
//! superuser; no fence row, no check of the group, no answer). Its verifier is made once; ours makes password,
//! verifier and name each time, within the time.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use ephor_broker::clock::SystemClock;
use ephor_broker::kind::name;
use ephor_broker::kind::postgres::{Ending, Ident, Login, RoleName, Target as Server};
use ephor_broker::tasks::Tasks;
use ephor_crypto::random;
use ephor_crypto::scram::{ScramVerifier, password};
use ephor_proto::id::CredentialId;
use ephor_proto::time::{Clock, UnixMillis};
use ephor_testkit::postgres::{Cluster, Options as ClusterOptions};
use futures_util::future::try_join_all;
use serde_json::json;

use crate::args::Logins;
use crate::clock::Moment;
use crate::host;
use crate::measure::median;
use crate::pgbench::{Typed, pgbench, same_statement};
use crate::scenario::{Finding, Target};
use crate::target::{self, EPOCH, INSTALLATION, LIFE};

/// Connections, of ours as of pgbench.
const CONNECTIONS: usize = 8;
/// Ours must reach this part of pgbench's rate.
const OF_PGBENCH: f64 = 0.8;
/// Logins dropped in a second, when many end together.
const DROPS: f64 = 3_000.0;
/// What PostgreSQL and every driver take, and the least.
const ITERATIONS: [u32; 2] = [4096, 1];

/// Runs it; whether the targets held.
pub async fn run(args: &Logins) -> anyhow::Result<bool> {
    let cluster = Cluster::with(&ClusterOptions {
        settings: vec!["max_connections = 100".to_owned()],
        hba: vec!["local all all trust".to_owned()],
        ..ClusterOptions::default()
    })?;
    let tasks = Tasks::new();
    let databases = ["orders", "billing"];
    let target = target::prepare(&cluster, ("orders_rw", &databases), None, &tasks).await?;
    let server = target.library(CONNECTIONS, &tasks);
    let mut targets = Vec::new();
    let mut detail = serde_json::Map::new();
    for iterations in ITERATIONS {
        let rates = creates(&cluster, &server, args, iterations).await?;
        let (same, bare) = match iterations {
            1 => (
                "creates to pgbench's of the same statement, 1 iteration",
                "creates_1",
            ),
            _ => (
                "creates to pgbench's of the same statement, 4096 iterations",
                "creates_4096",
            ),
        };
        targets.push(Target::at_least(same, OF_PGBENCH, rates.ratio(&rates.same)));
        let told = json!({
            "ours_per_second": rates.ours,
            "same_statement_per_second": rates.same,
            "bare_statements_per_second": rates.bare,
            "to_bare": rates.ratio(&rates.bare),
        });
        detail.insert(bare.to_owned(), told);
    }
    let drops = drops(&cluster, &server, args.together).await?;
    targets.push(Target::at_least("drops a second, together", DROPS, drops));
    detail.insert("together".to_owned(), args.together.into());
    detail.insert("run_queue".to_owned(), json!(host::run_queue()));
    tasks.shutdown(Duration::from_secs(1)).await;
    let finding = Finding {
        scenario: "logins",
        targets,
        detail: detail.into(),
    };
    for target in &finding.targets {
        host::say(&target.told());
    }
    host::print(&serde_json::to_string_pretty(&finding)?)?;
    Ok(finding.targets.iter().all(|target| target.held))
}

/// Logins made a second, a value a round.
#[derive(Default)]
struct Rates {
    ours: Vec<f64>,
    same: Vec<f64>,
    bare: Vec<f64>,
}

impl Rates {
    /// Median of ours to theirs, round by round.
    fn ratio(&self, theirs: &[f64]) -> f64 {
        let pairs = self.ours.iter().zip(theirs);
        median(pairs.map(|(ours, theirs)| ours / theirs).collect())
    }
}

/// Ours and what pgbench types, by turns, each on a server as empty of logins as the others.
async fn creates(
    cluster: &Cluster,
    server: &Server,
    args: &Logins,
    iterations: u32,
) -> anyhow::Result<Rates> {
    let mut rates = Rates::default();
    for _ in 0..args.rounds {
        let end = Moment::now();
        let window = Duration::from_secs(args.seconds);
        let made = AtomicUsize::new(0);
        let caller = || async {
            while end.elapsed() < window {
                mint(server, iterations).await?;
                made.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        try_join_all((0..CONNECTIONS).map(|_| caller())).await?;
        let ours = made.load(Ordering::Relaxed) as f64 / end.elapsed().as_secs_f64();
        sweep(cluster)?;
        let same = pgbench(
            cluster,
            (CONNECTIONS, args.seconds),
            &same_statement(Some(&verifier(iterations)?)),
        )?;
        sweep(cluster)?;
        let bare = pgbench(
            cluster,
            (CONNECTIONS, args.seconds),
            &bare_statements(iterations)?,
        )?;
        sweep(cluster)?;
        host::say(&format!(
            "{iterations} iterations: ours {ours:.0}/s, pgbench {same:.0}/s, bare {bare:.0}/s; run queue {}",
            host::run_queue()
        ));
        rates.ours.push(ours);
        rates.same.push(same);
        rates.bare.push(bare);
    }
    Ok(rates)
}

async fn mint(server: &Server, iterations: u32) -> anyhow::Result<Login> {
    let now = SystemClock.wall();
    let secret = password()?;
    let iterations = NonZeroU32::new(iterations).context("iterations")?;
    let verifier = ScramVerifier::new(&secret, iterations)?;
    let login = Login {
        credential: CredentialId::from_parts(now.as_millis(), random::bytes()?),
        role: RoleName::parse(&name::make("orders-db", INSTALLATION, random::bytes()?))?,
        groups: vec![Ident::parse("orders_rw")?],
        database: Ident::parse("orders")?,
        valid_until: UnixMillis::from_millis(now.as_millis() + LIFE),
        connection_limit: Some(10),
        settings: vec![("statement_timeout".to_owned(), "30s".to_owned())],
        deadline: UnixMillis::from_millis(now.as_millis() + 10_000),
    };
    server.mint(EPOCH, &login, Some(&verifier)).await?;
    Ok(login)
}

/// A verifier for all of pgbench's logins.
fn verifier(iterations: u32) -> anyhow::Result<ScramVerifier> {
    let iterations = NonZeroU32::new(iterations).context("iterations")?;
    Ok(ScramVerifier::new(&password()?, iterations)?)
}

/// Two statements in a transaction, in one message, as a superuser.
fn bare_statements(iterations: u32) -> anyhow::Result<Typed> {
    let verifier = verifier(iterations)?;
    let script = format!(
        "\\set n random(1, 1000000000000000)\nBEGIN\\;\
         CREATE ROLE bench_:n LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT \
         CONNECTION LIMIT 10 VALID UNTIL '2100-01-01' PASSWORD '{}' IN ROLE orders_rw\\;\
         ALTER ROLE bench_:n SET statement_timeout = '30s'\\;COMMIT;\n",
        verifier.expose()
    );
    Ok(Typed {
        script,
        more: &[],
        user: "postgres",
        database: "postgres",
    })
}

/// Forgets all logins of a round; not measured.
fn sweep(cluster: &Cluster) -> anyhow::Result<()> {
    let sql = "SELECT 'DROP ROLE ' || string_agg(quote_ident(rolname), ', ') FROM (\
               SELECT rolname, row_number() OVER () / 500 AS n FROM pg_roles WHERE rolname ~ '^(bench|eph)_') r \
               GROUP BY n\n\\gexec\nDELETE FROM ephor.fence;\nVACUUM;\nCHECKPOINT;\n";
    cluster.psql("ephor", sql)?;
    Ok(())
}

/// Makes many, ends them together, and gives the rate; a program that is not ours looks that none is left.
async fn drops(cluster: &Cluster, server: &Server, count: usize) -> anyhow::Result<f64> {
    let left = AtomicUsize::new(count);
    let caller = || async {
        let mut made = Vec::new();
        while left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok()
        {
            let login = mint(server, 1).await?;
            made.push(Ending {
                credential: login.credential,
                role: login.role,
                reassign: None,
            });
        }
        anyhow::Ok(made)
    };
    let made = try_join_all((0..CONNECTIONS).map(|_| caller())).await?;
    let endings: Vec<Ending> = made.into_iter().flatten().collect();
    ensure!(endings.len() == count, "{} were made", endings.len());
    let start = Moment::now();
    let done = server.revoke_many(EPOCH, &endings).await;
    let took = start.elapsed();
    for outcome in &done {
        let evidence = outcome.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
        ensure!(evidence.dropped && evidence.role_absent);
    }
    let none = cluster.psql(
        "postgres",
        "SELECT count(*) FROM pg_roles WHERE rolname ~ '^eph_'",
    )?;
    ensure!(none == "0", "{none} are left");
    Ok(count as f64 / took.as_secs_f64())
}
