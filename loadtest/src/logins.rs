//! `ephor-loadtest logins`: what the broker's library makes and drops at a PostgreSQL server, beside the
//! same statements typed by `pgbench`, on as many connections and with as many SCRAM iterations.
//!
//! Ours does more than it types: the fence row, the check of the group, the answer read. The password,
//! its verifier and the name are made within the time.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use ephor_broker::clock::SystemClock;
use ephor_broker::kind::name;
use ephor_broker::kind::postgres::{
    Access, Admin, Ending, Ident, Login, Options, Password, RoleName, Target as Server, Tls,
    install,
};
use ephor_broker::tasks::Tasks;
use ephor_crypto::random;
use ephor_crypto::scram::{ScramVerifier, password};
use ephor_proto::id::CredentialId;
use ephor_proto::postgres::Address;
use ephor_proto::time::{Clock, UnixMillis};
use ephor_testkit::postgres::{Cluster, Options as ClusterOptions};
use futures_util::future::try_join_all;
use serde_json::json;

use crate::args::Logins;
use crate::clock::Moment;
use crate::host;
use crate::measure::median;
use crate::scenario::{Finding, Target};

/// Connections, of ours as of pgbench.
const CONNECTIONS: usize = 8;
/// Ours must reach this part of pgbench's rate.
const OF_PGBENCH: f64 = 0.8;
/// Logins dropped in a second, when many end together.
const DROPS: f64 = 3_000.0;
const EPOCH: u32 = 1;
const INSTALLATION: &str = "loadtest";
/// What PostgreSQL and every driver take, and the least.
const ITERATIONS: [u32; 2] = [4096, 1];

/// Runs it; whether the targets held.
pub async fn run(args: &Logins) -> anyhow::Result<bool> {
    let cluster = Cluster::with(&ClusterOptions {
        settings: vec!["max_connections = 100".to_owned()],
        hba: vec!["local all all trust".to_owned()],
        ..ClusterOptions::default()
    })?;
    cluster.psql(
        "postgres",
        "CREATE DATABASE orders; CREATE DATABASE billing",
    )?;
    let tasks = Tasks::new();
    let server = prepared(&cluster, &tasks).await?;
    let mut targets = Vec::new();
    let mut detail = serde_json::Map::new();
    for iterations in ITERATIONS {
        let (ours, bare) = creates(&cluster, &server, args, iterations).await?;
        let pairs = ours.iter().zip(&bare);
        let ratio = median(pairs.map(|(ours, bare)| ours / bare).collect());
        let what = match iterations {
            1 => "creates to pgbench's, 1 iteration",
            _ => "creates to pgbench's, 4096 iterations",
        };
        targets.push(Target::at_least(what, OF_PGBENCH, ratio));
        let pair = json!({ "ours_per_second": ours, "pgbench_per_second": bare });
        detail.insert(format!("creates_{iterations}"), pair);
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

async fn prepared(cluster: &Cluster, tasks: &Tasks) -> anyhow::Result<Server> {
    let socket = cluster.socket_dir().to_str().context("socket")?;
    let address = Address::of(socket, cluster.port())?;
    let options = Options {
        login: Ident::parse("ephor")?,
        verifier: None,
        groups: vec![Ident::parse("orders_rw")?],
        make_groups: true,
        admin_database: Ident::parse("ephor")?,
        databases: vec![Ident::parse("orders")?, Ident::parse("billing")?],
    };
    let admin = Admin {
        address: address.clone(),
        user: "postgres".to_owned(),
        password: None,
        database: "postgres".to_owned(),
        tls: Tls::Off,
    };
    install(&admin, &options, tasks).await?;
    let access = Access {
        name: "orders".to_owned(),
        installation: name::installation_part(INSTALLATION),
        hosts: vec![address],
        user: "ephor".to_owned(),
        password: Password::None,
        admin_database: options.admin_database,
        databases: options.databases,
        standbys: Vec::new(),
        tls: Tls::Off,
        connections: CONNECTIONS,
    };
    Ok(Server::new(access, tasks))
}

/// Rates of ours and of pgbench, by turns, each on a server as empty of logins as the other.
async fn creates(
    cluster: &Cluster,
    server: &Server,
    args: &Logins,
    iterations: u32,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
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
        ours.push(made.load(Ordering::Relaxed) as f64 / end.elapsed().as_secs_f64());
        bare.push(pgbench(cluster, args.seconds, iterations)?);
        sweep(cluster)?;
    }
    Ok((ours, bare))
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
        valid_until: UnixMillis::from_millis(now.as_millis() + 3_600_000),
        connection_limit: Some(10),
        settings: vec![("statement_timeout".to_owned(), "30s".to_owned())],
        deadline: UnixMillis::from_millis(now.as_millis() + 10_000),
    };
    server.mint(EPOCH, &login, Some(&verifier)).await?;
    Ok(login)
}

/// The same two statements in a transaction, prepared as far as they can be, as a superuser.
fn pgbench(cluster: &Cluster, seconds: u64, iterations: u32) -> anyhow::Result<f64> {
    let iterations = NonZeroU32::new(iterations).context("iterations")?;
    let verifier = ScramVerifier::new(&password()?, iterations)?;
    let script = format!(
        "\\set n random(1, 1000000000000000)\nBEGIN;\n\
         CREATE ROLE bench_:n LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT \
         CONNECTION LIMIT 10 VALID UNTIL '2100-01-01' PASSWORD '{}' IN ROLE orders_rw;\n\
         ALTER ROLE bench_:n SET statement_timeout = '30s';\nCOMMIT;\n",
        verifier.expose()
    );
    let file = cluster.socket_dir().join("create.pgbench");
    std::fs::write(&file, script)?;
    let mut command = cluster.command("pgbench");
    command.arg("-h").arg(cluster.socket_dir());
    command.args(["-U", "postgres", "-n", "-j", "2"]);
    command.args([
        "-p",
        &cluster.port().to_string(),
        "-c",
        &CONNECTIONS.to_string(),
    ]);
    command
        .args(["-T", &seconds.to_string(), "-f"])
        .arg(&file)
        .arg("postgres");
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "pgbench: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = "));
    let rate = rate
        .and_then(|rest| rest.split(' ').next())
        .context("pgbench said no rate")?;
    Ok(rate.parse()?)
}

/// Forgets all logins of a round; not measured.
fn sweep(cluster: &Cluster) -> anyhow::Result<()> {
    let sql = "SELECT format('DROP ROLE %I', rolname) FROM pg_roles WHERE rolname ~ '^(bench|eph)_'\n\\gexec\n\
               DELETE FROM ephor.fence;\nVACUUM;\n";
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
