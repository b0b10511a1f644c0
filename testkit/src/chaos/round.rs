//! At rest: the store against what the tasks were told.

use std::collections::BTreeMap;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use super::load::{Got, Rest};
use super::{Report, lists};
use crate::installation::{Installation, SETTLE};
use crate::wait;

/// Tokens that introspection is asked about in a round; the lists and the store are compared whole.
const ASKED: usize = 60;
/// Said of one kind of defect.
const SAID: usize = 5;

/// What does not hold.
///
/// # Errors
/// When it cannot be found out.
pub(super) fn check(
    kit: &Installation,
    rest: &Rest<'_>,
    report: &mut Report,
) -> anyhow::Result<Vec<String>> {
    kit.wait_connected()?;
    let mut broken = Vec::new();
    if let Err(why) = all_closed(kit, &rest.staying_pids()) {
        broken.push(format!("orphan: {why:#}"));
    }
    let held = match rest.ask_staying() {
        Ok(held) => held,
        Err(why) => {
            broken.push(format!("disturbed: {why:#}"));
            Vec::new()
        }
    };
    let store = open(kit)?;
    let held = not_about_to_expire(&store, held)?;
    report.issued += (rest.ended.len() + held.len()) as u64;
    report.tasks += rest.tasks;
    broken.extend(lost_or_orphan(&store, &rest.ended, &held)?);
    broken.extend(double(&store)?);
    broken.extend(receipts(&store)?);
    broken.extend(introspected(kit, &rest.ended, &held));
    // Lists follow the store within their pause.
    let agree = wait::until("the lists agree with the store", SETTLE, || {
        lists::differences(kit, &store).ok().filter(Vec::is_empty)
    });
    if agree.is_err() {
        let differences = lists::differences(kit, &store)?;
        broken.extend(differences.into_iter().take(SAID));
    }
    Ok(broken)
}

fn open(kit: &Installation) -> anyhow::Result<Connection> {
    let store = Connection::open_with_flags(kit.database(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    store.busy_timeout(SETTLE)?;
    Ok(store)
}

/// Only tasks that stay are open, one for each.
fn all_closed(kit: &Installation, staying: &[u32]) -> anyhow::Result<()> {
    let store = open(kit)?;
    let mut left = Vec::new();
    let closed = wait::until("every task of an ended process is closed", SETTLE, || {
        left = unclosed(&store, staying).ok()?;
        left.is_empty().then_some(())
    });
    closed.map_err(|why| {
        let said: Vec<_> = left.iter().take(SAID).collect();
        anyhow::anyhow!("{why}: {} are not: {said:?}", left.len())
    })
}

fn unclosed(store: &Connection, staying: &[u32]) -> anyhow::Result<Vec<String>> {
    let mut rows =
        store.prepare("SELECT lower(hex(id)), pid, state FROM task WHERE state <> 'closed'")?;
    let mut seen = BTreeMap::<u32, u32>::new();
    let mut left = Vec::new();
    let rows = rows.query_map([], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, u32>(1)?,
            row.get::<_, String>(2)?,
        ))
    })?;
    for row in rows {
        let (id, pid, state) = row?;
        let count = seen.entry(pid).or_default();
        *count += 1;
        if !staying.contains(&pid) || *count > 1 {
            left.push(format!("{id} of process {pid}: {state}"));
        }
    }
    Ok(left)
}

/// Lost: a task has it, the store does not know it. Orphan: it is live, its task is not.
fn lost_or_orphan(store: &Connection, ended: &[Got], held: &[Got]) -> anyhow::Result<Vec<String>> {
    let mut broken = Vec::new();
    let mut find = store.prepare("SELECT state FROM credential WHERE id = unhex(?1)")?;
    let mut state = |got: &Got| -> anyhow::Result<Option<String>> {
        let mut rows = find.query([&got.id])?;
        Ok(rows.next()?.map(|row| row.get(0)).transpose()?)
    };
    for got in ended {
        match state(got)?.as_deref() {
            Some("contained" | "dead") => {}
            Some(state) => broken.push(format!("orphan: {} of an ended task is {state}", got.id)),
            None => broken.push(format!("lost: {} is not in the store", got.id)),
        }
    }
    for got in held {
        match state(got)?.as_deref() {
            Some("live") => {}
            state => broken.push(format!(
                "disturbed: {} of a running task is {state:?}",
                got.id
            )),
        }
    }
    let orphans: i64 = store.query_row(
        "SELECT count(*) FROM credential c JOIN task t ON t.id = c.task \
         WHERE t.state = 'closed' AND c.state NOT IN ('contained', 'dead')",
        [],
        |row| row.get(0),
    )?;
    broken.truncate(SAID);
    if orphans > 0 {
        broken.push(format!("orphan: {orphans} credentials outlive their task"));
    }
    Ok(broken)
}

/// What is about to expire says nothing about what is refused.
fn not_about_to_expire(store: &Connection, held: Vec<Got>) -> anyhow::Result<Vec<Got>> {
    let soon = lists::now_millis() + lists::MARGIN;
    let mut find = store
        .prepare("SELECT count(*) FROM credential WHERE id = unhex(?1) AND expires_at <= ?2")?;
    let mut kept = Vec::new();
    for got in held {
        if find.query_row((&got.id, soon), |row| row.get::<_, i64>(0))? == 0 {
            kept.push(got);
        }
    }
    Ok(kept)
}

/// One request never has two credentials.
fn double(store: &Connection) -> anyhow::Result<Vec<String>> {
    let mut rows = store.prepare(
        "SELECT lower(hex(request)), count(*) FROM credential GROUP BY request HAVING count(*) > 1 LIMIT 5",
    )?;
    let rows = rows.query_map([], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))
    })?;
    rows.map(|row| {
        let (request, count) = row?;
        Ok(format!("double: request {request} has {count} credentials"))
    })
    .collect()
}

/// A closed task has one receipt, in the store and in the log.
fn receipts(store: &Connection) -> anyhow::Result<Vec<String>> {
    let count = |sql: &str| store.query_row(sql, [], |row| row.get::<_, i64>(0));
    let without = count(
        "SELECT count(*) FROM task t LEFT JOIN receipt r ON r.task = t.id \
         WHERE t.state = 'closed' AND r.task IS NULL",
    )?;
    let twice = count(
        "SELECT count(*) - count(DISTINCT json_extract(json, '$.task')) FROM leaf \
         WHERE json_extract(json, '$.type') = 'prove.receipt'",
    )?;
    let mut broken = Vec::new();
    if without > 0 {
        broken.push(format!("receipts: {without} closed tasks have none"));
    }
    if twice > 0 {
        broken.push(format!("receipts: {twice} more than tasks"));
    }
    Ok(broken)
}

/// What a service is told: the newest of the ended, and all that those who stay hold.
fn introspected(kit: &Installation, ended: &[Got], held: &[Got]) -> Vec<String> {
    let newest = ended.iter().rev().filter(|got| got.token.is_some());
    let asked = newest
        .take(ASKED)
        .map(|got| (got, false))
        .chain(held.iter().map(|got| (got, true)));
    let mut broken = Vec::new();
    for (got, expected) in asked {
        let Some(token) = &got.token else { continue };
        let said = wait::until("introspection answers", SETTLE, || {
            kit.introspect(token).ok().filter(|said| said.status == 200)
        });
        let active = said
            .ok()
            .and_then(|said| said.body.get("active").and_then(Value::as_bool));
        if active != Some(expected) {
            broken.push(format!(
                "introspection says {active:?} of {}, which is {}",
                got.id,
                if expected {
                    "held by a running task"
                } else {
                    "of an ended task"
                }
            ));
        }
    }
    broken.truncate(SAID);
    broken
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TABLES: &str = "
        CREATE TABLE task (id BLOB, pid INTEGER, state TEXT);
        CREATE TABLE credential (id BLOB, task BLOB, request BLOB, state TEXT, expires_at INTEGER);
        CREATE TABLE receipt (task BLOB, leaf INTEGER);
        CREATE TABLE leaf (json TEXT);
        INSERT INTO task VALUES (x'01', 7, 'closed'), (x'02', 8, 'open');
        INSERT INTO credential VALUES (x'a1', x'01', x'e1', 'contained', 1), (x'a2', x'02', x'e2', 'live', 1);
        INSERT INTO receipt VALUES (x'01', 1);
        INSERT INTO leaf VALUES ('{\"type\":\"prove.receipt\",\"task\":\"01\"}'), ('{\"type\":\"x\",\"task\":\"01\"}');
    ";

    fn found(damage: &str) -> Vec<String> {
        let store = Connection::open_in_memory().unwrap();
        store.execute_batch(TABLES).unwrap();
        store.execute_batch(damage).unwrap();
        let got = |id: &str| Got {
            id: id.to_owned(),
            token: None,
        };
        let mut found = unclosed(&store, &[8]).unwrap();
        found.extend(lost_or_orphan(&store, &[got("a1")], &[got("a2")]).unwrap());
        found.extend(double(&store).unwrap());
        found.extend(receipts(&store).unwrap());
        found
    }

    #[test]
    fn each_defect_is_found() {
        assert_eq!(found(""), Vec::<String>::new());
        for (damage, word) in [
            ("DELETE FROM credential WHERE id = x'a1'", "lost: a1"),
            (
                "UPDATE credential SET state = 'live' WHERE id = x'a1'",
                "orphan: 1 credentials",
            ),
            (
                "UPDATE credential SET state = 'dead' WHERE id = x'a2'",
                "disturbed: a2",
            ),
            (
                "UPDATE credential SET request = x'e1'",
                "double: request e1",
            ),
            ("DELETE FROM receipt", "receipts: 1 closed"),
            ("INSERT INTO leaf SELECT json FROM leaf", "receipts: 1 more"),
            (
                "UPDATE task SET state = 'completing' WHERE pid = 7",
                "01 of process 7",
            ),
            (
                "INSERT INTO task VALUES (x'03', 8, 'open')",
                "03 of process 8",
            ),
        ] {
            let found = found(damage);
            assert!(
                found.iter().any(|what| what.starts_with(word)),
                "{damage}: {found:?}"
            );
        }
    }
}
