//! A call that waits for a lock, and who holds it: a creator of ours that stands still, such as a
//! broker that was stopped in the middle. It has our own login, so we may end its session.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio_postgres::Row;

use super::connect::{Params, field};
use super::failed::{Failed, Said};
use super::pool::Pool;
use super::{Access, Target};
use crate::limits;

/// The sessions that a backend waits for; those of our own login are ended. What is held on a row or a
/// table is the very thing we want; a lock on a shared object may be somebody's who is just busy. `$2` is
/// how many milliseconds a transaction of ours may take in any case.
const BLOCKERS: &str = "SELECT a.pid, a.usename::text, CASE
        WHEN a.usename = session_user AND a.xact_start < clock_timestamp()
             - greatest($2::int * interval '1 ms', CASE WHEN w.kind = 'object' THEN interval '1 s' ELSE interval '50 ms' END)
        THEN pg_catalog.pg_terminate_backend(a.pid) ELSE false END
    FROM (SELECT max(l.locktype) AS kind FROM pg_catalog.pg_lock_status() l WHERE l.pid = $1 AND NOT l.granted) w,
         pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) b(pid)
    JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid
    WHERE a.pid <> pg_catalog.pg_backend_pid()";

impl Target {
    /// A call of the revoking side that ends whoever of ours is in its way. One that was in vain
    /// says who was.
    pub(super) async fn unblocked(
        &self,
        asked: &str,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Said> {
        let pool = (&self.inner.revoking, Duration::ZERO);
        self.unblocked_at(pool, asked, sql, params).await
    }

    /// The same elsewhere, and a transaction of ours in the way is let be for `patience`.
    pub(super) async fn unblocked_at(
        &self,
        (pool, patience): (&Pool, Duration),
        asked: &str,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Said> {
        // Not only when somebody is in the way: then there is no time to connect. What is wrong with it
        // the call itself will say.
        let _ = self.inner.watching.ready().await;
        let mut again = true;
        loop {
            let held = pool.take().await.map_err(Said::Failed)?;
            let (pid, used_before) = (held.conn.pid, held.used_before);
            let seen = Mutex::new(Vec::new());
            let (answer, ended) = tokio::select! {
                answered = pool.call_at(held, asked, sql, params) => answered,
                () = self.unblock((pid, patience), &seen) => unreachable_answer(self.access(), asked),
            };
            if again && used_before && ended {
                again = false;
                continue;
            }
            let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
            return answer.map_err(|said| with_blockers(said, &seen));
        }
    }

    /// Looks again and again who is in the way of `waiting`. Ends only with its caller.
    async fn unblock(&self, (waiting, patience): (i32, Duration), seen: &Mutex<Vec<String>>) {
        let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        tokio::time::sleep(limits::PG_UNBLOCK_AFTER).await;
        loop {
            // Who cannot be asked is not ended; the call itself says what is wrong.
            let rows = self
                .inner
                .watching
                .call("who is in the way", BLOCKERS, &[&waiting, &patience])
                .await;
            for row in rows.iter().flatten() {
                let told = (|| {
                    let pid: i32 = field(self.access(), row, 0)?;
                    let user: Option<String> = field(self.access(), row, 1)?;
                    Ok::<_, Failed>(format!("session {pid} of {}", user.unwrap_or_default()))
                })();
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(told) = told.ok().filter(|told| !seen.contains(told)) {
                    seen.push(told);
                }
            }
            tokio::time::sleep(limits::PG_UNBLOCK_PAUSE).await;
        }
    }
}

/// Never taken: the watch has no end. An error all the same, and not a panic.
fn unreachable_answer(access: &Access, asked: &str) -> (Result<Vec<Row>, Said>, bool) {
    let failed = Failed::Unknown {
        target: access.name.clone(),
        why: format!("{asked}: the watch ended"),
    };
    (Err(Said::Failed(failed)), false)
}

fn with_blockers(said: Said, seen: &[String]) -> Said {
    match said {
        Said::Failed(Failed::Busy { target, why }) if !seen.is_empty() => {
            Said::Failed(Failed::Busy {
                target,
                why: format!("{why}; in the way: {}", seen.join(", ")),
            })
        }
        other => other,
    }
}
