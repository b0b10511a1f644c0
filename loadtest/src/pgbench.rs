//! What `pgbench` types at a server beside the broker's library, and how fast.

use anyhow::{Context, ensure};
use ephor_broker::clock::SystemClock;
use ephor_broker::kind::name;
use ephor_crypto::scram::ScramVerifier;
use ephor_proto::time::Clock;
use ephor_testkit::postgres::Cluster;

use crate::target::{EPOCH, INSTALLATION, LIFE};

/// What pgbench types, as whom and where.
pub struct Typed {
    /// For `-f`.
    pub script: String,
    /// More options.
    pub more: &'static [&'static str],
    /// Whose login.
    pub user: &'static str,
    /// Where.
    pub database: &'static str,
}

/// The statement that the library sends, with a name and a credential of its own each time, and with the
/// same verifier or none.
pub fn same_statement(verifier: Option<&ScramVerifier>) -> Typed {
    // pgbench takes what follows a colon for a variable.
    let quoted = |text: &str| format!("'{}'", text.replace(':', "' || chr(58) || '"));
    let verifier = verifier.map_or_else(|| "NULL".to_owned(), |one| quoted(one.expose()));
    let installation = name::installation_part(INSTALLATION);
    let until = SystemClock.wall().as_millis() + LIFE;
    let script = format!(
        "\\set n random(100000000000000, 999999999999999)\n\
         SELECT m.role_oid, m.system_id, m.timeline, m.lsn, m.at_ms FROM ephor.mint({EPOCH}, \
         ('00000000000000000' || :n::bigint::text)::uuid, \
         'eph_orders_db_{installation}_00000000000' || :n::bigint::text, '{{orders_rw}}', {until}, 10, \
         {verifier}, '{{statement_timeout,30s}}', {until}) m;\n"
    );
    Typed {
        script,
        more: &["-M", "prepared"],
        user: "ephor",
        database: "ephor",
    }
}

/// How often a second pgbench could do that.
pub fn pgbench(
    cluster: &Cluster,
    (connections, seconds): (usize, u64),
    typed: &Typed,
) -> anyhow::Result<f64> {
    let file = cluster.socket_dir().join("create.pgbench");
    std::fs::write(&file, &typed.script)?;
    let mut command = cluster.command("pgbench");
    command.arg("-h").arg(cluster.socket_dir());
    command.args(["-p", &cluster.port().to_string(), "-U", typed.user]);
    command.args(["-n", "-j", "2", "-c", &connections.to_string()]);
    command.args(typed.more);
    command.args(["-T", &seconds.to_string(), "-f"]).arg(&file);
    let output = command.arg(typed.database).output()?;
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
