//! `ephor-loadtest certificate-logins`: logins that a client certificate lets in. There is no SCRAM to be
//! computed for them, so what is left is the server's work and one signature.
//!
//! Within the time are the name, the certificate, signed for a key as an agent brings it, and the call of
//! the library; by turns, `pgbench` types the same call. The server speaks TLS; at the end `psql` logs in
//! with what was made last.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use ephor_broker::clock::SystemClock;
use ephor_broker::kind::effect::certificate::ClientCertificate;
use ephor_broker::kind::name;
use ephor_broker::kind::postgres::{CERTIFICATE, Ident, Login, RoleName, Target as Server};
use ephor_broker::tasks::Tasks;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::random;
use ephor_crypto::x509::{Ca, pem, secret_pem};
use ephor_proto::id::CredentialId;
use ephor_proto::time::{Clock, UnixMillis};
use ephor_testkit::postgres::{Cluster, Options as ClusterOptions, Tls as ServerTls};
use futures_util::future::try_join_all;
use serde_json::json;

use crate::args::CertificateLogins;
use crate::clock::Moment;
use crate::host;
use crate::measure::median;
use crate::pgbench::{pgbench, same_statement};
use crate::scenario::{Finding, Target};
use crate::target::{self, EPOCH, INSTALLATION, LIFE};

/// Connections of the library.
const CONNECTIONS: usize = 8;
/// Logins made in a second.
const CREATES: f64 = 1_500.0;
/// Life of the CA, in seconds.
const CA_LIFE: u64 = 86_400;

/// What a login is made with: the agent's half, and the broker's.
struct Makes {
    server: Server,
    ca: Ca,
    key: SigningKey,
}

/// Runs it; whether the target held.
pub async fn run(args: &CertificateLogins) -> anyhow::Result<bool> {
    let tls = ServerTls::make()?;
    let options = tls.options();
    let cluster = Cluster::with(&ClusterOptions {
        settings: [options.settings, vec!["max_connections = 100".to_owned()]].concat(),
        hba: vec![
            "local all all trust".to_owned(),
            format!("hostssl all +{CERTIFICATE} 127.0.0.1/32 cert"),
        ],
        files: options.files,
    })?;
    let tasks = Tasks::new();
    let makes = prepared(&cluster, &tasks).await?;
    makes.server.begin_epoch(EPOCH).await?;
    let (mut rates, mut same, mut last) = (Vec::new(), Vec::new(), None);
    for _ in 0..args.rounds {
        sweep(&cluster)?;
        let typed = same_statement(None);
        same.push(pgbench(&cluster, (CONNECTIONS, args.seconds), &typed)?);
        sweep(&cluster)?;
        let (rate, login) = round(&makes, args.seconds).await?;
        rates.push(rate);
        last = Some(login);
    }
    let (role, der) = last.context("no round")?;
    let said = logged_in(&cluster, &tls, &makes, (&role, &der))?;
    ensure!(said == role, "psql is {said}, not {role}");
    tasks.shutdown(Duration::from_secs(1)).await;
    let finding = Finding {
        scenario: "certificate-logins",
        targets: vec![Target::at_least(
            "logins with a certificate made a second",
            CREATES,
            median(rates.clone()),
        )],
        detail: json!({
            "creates_per_second": rates,
            "same_statement_per_second": same,
            "run_queue": host::run_queue(),
        }),
    };
    for target in &finding.targets {
        host::say(&target.told());
    }
    host::print(&serde_json::to_string_pretty(&finding)?)?;
    Ok(finding.targets.iter().all(|target| target.held))
}

async fn prepared(cluster: &Cluster, tasks: &Tasks) -> anyhow::Result<Makes> {
    let now = i64::try_from(SystemClock.wall().as_unix_seconds())?;
    let end = now + i64::try_from(CA_LIFE)?;
    let ca = Ca::create("loadtest", "load.test", now - 60, end)?;
    cluster.put_file("clients.pem", ca.certificate().pem().as_bytes())?;
    cluster.psql("postgres", "ALTER SYSTEM SET ssl_ca_file = 'clients.pem'")?;
    cluster.reload()?;
    let target = target::prepare(cluster, ("orders_rw", &["orders"]), None, tasks).await?;
    Ok(Makes {
        server: target.library(CONNECTIONS, tasks),
        ca,
        key: SigningKey::generate()?,
    })
}

/// Logins made a second, and the last of them with its certificate.
async fn round(makes: &Makes, seconds: u64) -> anyhow::Result<(f64, (String, Vec<u8>))> {
    let start = Moment::now();
    let window = Duration::from_secs(seconds);
    let made = AtomicUsize::new(0);
    let caller = || async {
        let mut last = None;
        while start.elapsed() < window {
            last = Some(mint(makes).await?);
            made.fetch_add(1, Ordering::Relaxed);
        }
        anyhow::Ok(last)
    };
    let last = try_join_all((0..CONNECTIONS).map(|_| caller())).await?;
    let rate = made.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    host::say(&format!("{rate:.0}/s; run queue {}", host::run_queue()));
    let last = last.into_iter().flatten().next();
    Ok((rate, last.context("none was made")?))
}

async fn mint(makes: &Makes) -> anyhow::Result<(String, Vec<u8>)> {
    let now = SystemClock.wall();
    let until = UnixMillis::from_millis(now.as_millis() + LIFE);
    let login = Login {
        credential: CredentialId::from_parts(now.as_millis(), random::bytes()?),
        role: RoleName::parse(&name::make("orders-db", INSTALLATION, random::bytes()?))?,
        groups: vec![Ident::parse("orders_rw")?],
        database: Ident::parse("orders")?,
        valid_until: until,
        connection_limit: Some(10),
        settings: vec![("statement_timeout".to_owned(), "30s".to_owned())],
        deadline: UnixMillis::from_millis(now.as_millis() + 10_000),
    };
    let role = login.role.to_string();
    let certificate = ClientCertificate::new(makes.key.public_key(), (now, until));
    let der = certificate.signed(&makes.ca, login.credential, &role)?;
    makes.server.mint(EPOCH, &login, None).await?;
    Ok((role, der))
}

/// Who a program that is not ours is there, with the files as they would be handed out.
fn logged_in(
    cluster: &Cluster,
    tls: &ServerTls,
    makes: &Makes,
    (role, der): (&str, &[u8]),
) -> anyhow::Result<String> {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir()?;
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        anyhow::Ok(path.display().to_string())
    };
    let ca = file("ca", &tls.ca)?;
    let certificate = file("crt", pem("CERTIFICATE", der).as_bytes())?;
    let key = file("key", secret_pem(makes.key.to_pkcs8()).expose())?;
    let mut psql = Command::new("psql");
    psql.args(["-X", "-w", "-Atc", "SELECT session_user"]);
    psql.arg(format!(
        "host=localhost port={} dbname=orders user={role} sslmode=verify-full sslrootcert={ca} \
         sslcert={certificate} sslkey={key}",
        cluster.port()
    ));
    let output = psql.output()?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "psql: {why}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Forgets all logins of a round; not measured.
fn sweep(cluster: &Cluster) -> anyhow::Result<()> {
    let sql = "SELECT format('DROP ROLE %I', rolname) FROM pg_roles WHERE rolname ~ '^eph_'\n\\gexec\n\
               DELETE FROM ephor.fence;\nVACUUM;\n";
    cluster.psql("ephor", sql)?;
    Ok(())
}
