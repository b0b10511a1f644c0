//! Judges P1 to P5 from the exported log, the database file and the client's own history.
//!
//! It never asks a daemon what is true, except introspection and the status of its own tokens:
//! those are what a service would go by. It reads leaves as plain JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, ensure};
use ephor_proto::log::{bundle_path, split_bundle};
use serde_json::Value;

use crate::installation::{Installation, SETTLE, TOKEN_SECONDS};
use crate::wait;
use crate::workload::{Held, Workload};

/// What the client knows.
#[derive(Debug, Default)]
pub struct History {
    /// Tokens of processes that were killed.
    pub ended: Vec<Held>,
    /// Newest tokens of processes that still run.
    pub running: Vec<Held>,
    /// Processes that were killed, whether or not they were given anything.
    pub gone: Vec<u32>,
}

impl History {
    /// Kills a process and writes down what it had.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn end(&mut self, workload: &mut Workload) -> anyhow::Result<()> {
        workload.kill()?;
        self.gone.push(workload.pid());
        self.ended.extend_from_slice(workload.held());
        Ok(())
    }
}

/// Checks everything; the first thing that does not hold is the error.
///
/// # Errors
/// Says which promise is broken, and by what.
pub fn judge(installation: &Installation, history: &History) -> anyhow::Result<()> {
    running_still_work(installation, history)?;
    ended_are_refused(installation, history)?;
    nothing_is_left_open(installation, history)?;
    let dir = installation.path("export");
    recorded_before_live(&judge_log(installation, &dir)?, history)?;
    store_agrees(&installation.database(), history)
}

/// The log by itself, exported to `dir`: one receipt a task, one credential a request, and a
/// stranger's verifier accepts it. Gives its leaves.
///
/// # Errors
/// As [`judge`].
pub fn judge_log(installation: &Installation, dir: &Path) -> anyhow::Result<Vec<Value>> {
    let _ = std::fs::remove_dir_all(dir);
    export(installation, dir)?;
    let leaves = leaves(dir)?;
    one_receipt_a_task(&leaves)?;
    one_credential_a_request(&leaves)?;
    strangers_agree(installation, dir)?;
    Ok(leaves)
}

/// What an auditor takes away.
fn export(installation: &Installation, dir: &Path) -> anyhow::Result<()> {
    let mut command = installation.ephor();
    let done = command
        .args(["audit", "export", "--to"])
        .arg(dir)
        .output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "audit export: {said}");
    Ok(())
}

/// P2: what a killed process held is refused.
fn ended_are_refused(installation: &Installation, history: &History) -> anyhow::Result<()> {
    for held in &history.ended {
        wait::until(
            &format!("P2: {} of an ended task is refused", held.jti),
            SETTLE,
            || {
                let answer = installation.introspect(&held.token).ok()?;
                (answer.status == 200 && answer.body.get("active") == Some(&Value::Bool(false)))
                    .then_some(())
            },
        )?;
    }
    Ok(())
}

/// P2: no task of a killed process stays open, not even one that was refused everything.
fn nothing_is_left_open(installation: &Installation, history: &History) -> anyhow::Result<()> {
    let mut left = Vec::new();
    let closed = wait::until(
        "P2: every task of a killed process is closed",
        SETTLE,
        || {
            let tasks = installation.admin("/v1/tasks").ok()?;
            let of_gone = |task: &&Value| {
                let pid = task.get("pid").and_then(Value::as_u64);
                history
                    .gone
                    .iter()
                    .any(|gone| pid == Some(u64::from(*gone)))
                    && text(task, "state") != "closed"
            };
            left = tasks
                .as_array()?
                .iter()
                .filter(of_gone)
                .map(ToString::to_string)
                .collect();
            left.is_empty().then_some(())
        },
    );
    closed.with_context(|| left.join("\n"))
}

/// P10: what a running process holds still works.
fn running_still_work(installation: &Installation, history: &History) -> anyhow::Result<()> {
    for held in &history.running {
        let answer = installation.introspect(&held.token)?;
        ensure!(
            answer.body.get("active") == Some(&Value::Bool(true)),
            "P10: {} of a running task is refused: {} {}",
            held.jti,
            answer.status,
            answer.body
        );
    }
    Ok(())
}

/// P1 and P4: every token a client has was recorded, and lives no longer than policy says.
fn recorded_before_live(leaves: &[Value], history: &History) -> anyhow::Result<()> {
    let recorded: BTreeSet<&str> = leaves
        .iter()
        .filter(|leaf| text(leaf, "type") == "issue.recorded" && text(leaf, "outcome") == "ok")
        .filter_map(|leaf| leaf.pointer("/credential/id").and_then(Value::as_str))
        .collect();
    for held in history.ended.iter().chain(&history.running) {
        ensure!(
            recorded.contains(held.jti.as_str()),
            "P1: {} was delivered but never recorded",
            held.jti
        );
        ensure!(
            held.life <= TOKEN_SECONDS,
            "P4: {} lives {} s, policy says {TOKEN_SECONDS}",
            held.jti,
            held.life
        );
    }
    Ok(())
}

fn one_receipt_a_task(leaves: &[Value]) -> anyhow::Result<()> {
    let mut receipts = BTreeMap::<&str, u32>::new();
    for leaf in leaves
        .iter()
        .filter(|leaf| text(leaf, "type") == "prove.receipt")
    {
        *receipts.entry(text(leaf, "task")).or_default() += 1;
    }
    let twice: Vec<_> = receipts.iter().filter(|(_, count)| **count > 1).collect();
    ensure!(
        twice.is_empty(),
        "P2: tasks with more than one receipt: {twice:?}"
    );
    Ok(())
}

/// P3: a request never made two credentials.
fn one_credential_a_request(leaves: &[Value]) -> anyhow::Result<()> {
    let mut made = BTreeMap::<&str, BTreeSet<&str>>::new();
    for leaf in leaves
        .iter()
        .filter(|leaf| text(leaf, "type") == "issue.recorded")
    {
        let credential = leaf
            .pointer("/credential/id")
            .and_then(Value::as_str)
            .context("a credential")?;
        made.entry(text(leaf, "request"))
            .or_default()
            .insert(credential);
    }
    for (request, credentials) in made {
        ensure!(
            credentials.len() == 1,
            "P3: request {request} made {credentials:?}"
        );
    }
    Ok(())
}

/// P5: what was delivered is in the store, and nothing of a closed task is live there.
fn store_agrees(database: &Path, history: &History) -> anyhow::Result<()> {
    let store = rusqlite::Connection::open_with_flags(
        database,
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    )?;
    let mut states = BTreeMap::<String, String>::new();
    let mut rows = store.prepare("SELECT lower(hex(id)), state FROM credential")?;
    for row in rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))? {
        let (id, state) = row?;
        states.insert(id, state);
    }
    for held in history.ended.iter().chain(&history.running) {
        let state = states.get(&held.jti.replace('-', ""));
        ensure!(
            state.is_some(),
            "P5: {} was delivered but is not in the store",
            held.jti
        );
    }
    for held in &history.ended {
        let state = states.get(&held.jti.replace('-', "")).map(String::as_str);
        ensure!(
            matches!(state, Some("contained" | "dead")),
            "P2: {} of an ended task is {state:?}",
            held.jti
        );
    }
    let orphans: i64 = store.query_row(
        "SELECT count(*) FROM credential c JOIN task t ON t.id = c.task WHERE t.state = 'closed' AND c.state IN ('live', 'revoking')",
        [],
        |row| row.get(0),
    )?;
    ensure!(orphans == 0, "P2: {orphans} credentials outlive their task");
    Ok(())
}

/// P6: `verify.py`, which shares no code with us, accepts the log and every receipt.
fn strangers_agree(installation: &Installation, dir: &Path) -> anyhow::Result<()> {
    let mut command = std::process::Command::new(python());
    command.arg(dir.join("verify.py")).arg(dir);
    let done = command.args(["--key", &log_key(installation)?]).output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "P6: {said}");
    Ok(())
}

/// The log's verifier key, as `ephor audit key` gives it.
///
/// # Errors
/// When the broker does not give it.
pub fn log_key(installation: &Installation) -> anyhow::Result<String> {
    Ok(text(&installation.admin("/v1/status")?, "log_key").to_owned())
}

/// The Python that has the packages of `examples/requirements.txt`; `scripts/test` names it.
#[must_use]
pub fn python() -> String {
    std::env::var("EPHOR_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

/// All leaves of an export, as JSON.
///
/// # Errors
/// When the export is not as documented.
pub fn leaves(dir: &Path) -> anyhow::Result<Vec<Value>> {
    let checkpoint = std::fs::read_to_string(dir.join("log/checkpoint"))?;
    let size: u64 = checkpoint.lines().nth(1).context("a size")?.parse()?;
    let mut leaves = Vec::new();
    for number in 0..size.div_ceil(256) {
        let width = u16::try_from((size - number * 256).min(256))?;
        let bundle = std::fs::read(dir.join("log").join(bundle_path(number, width)))?;
        for leaf in
            split_bundle(&bundle).map_err(|why| anyhow::anyhow!("bundle {number}: {why}"))?
        {
            leaves.push(serde_json::from_slice(leaf)?);
        }
    }
    Ok(leaves)
}

fn text<'a>(leaf: &'a Value, name: &str) -> &'a str {
    leaf.get(name).and_then(Value::as_str).unwrap_or_default()
}
