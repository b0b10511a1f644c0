//! Places at a server: so many connections into one database, opened when needed and kept.
//!
//! Making logins and revoking them never take each other's places.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ephor_proto::postgres::Address;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_postgres::Row;

use super::access::Access;
use super::connect::{Conn, Params, Purpose};
use super::failed::{Failed, Said};
use crate::limits;
use crate::tasks::Tasks;

/// Which servers a pool may connect to.
#[derive(Debug, Clone)]
pub(super) enum Servers {
    /// The first host of the target that takes writes.
    Primary,
    /// One that follows, or is asked whatever it is.
    One(Address),
}

/// See the module.
pub(super) struct Pool {
    access: Arc<Access>,
    servers: Servers,
    database: String,
    lock_wait: Duration,
    places: Arc<Semaphore>,
    /// Guards only the list: held for a push or a pop.
    idle: Mutex<Vec<Conn>>,
    tasks: Tasks,
}

/// A connection in use. Unless it is given back it is closed: nobody knows its state.
pub(super) struct Held {
    pub(super) conn: Conn,
    /// Whether it had been used before: then the server may have ended it meanwhile.
    pub(super) used_before: bool,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(
        access: &Arc<Access>,
        servers: Servers,
        database: &str,
        (places, lock_wait): (usize, Duration),
        tasks: &Tasks,
    ) -> Self {
        Self {
            access: Arc::clone(access),
            servers,
            database: database.to_owned(),
            lock_wait,
            places: Arc::new(Semaphore::new(places.max(1))),
            idle: Mutex::default(),
            tasks: tasks.clone(),
        }
    }

    /// A connection that has not ended, as far as is known here.
    pub(super) async fn take(&self) -> Result<Held, Failed> {
        let waiting = Arc::clone(&self.places).acquire_owned();
        let permit = timeout(limits::PG_PLACE_WAIT, waiting).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Failed::Busy {
                target: self.access.name.clone(),
                why: format!("all its connections into {} are in use", self.database),
            });
        };
        let kept = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|conn| !conn.is_closed());
            idle.pop()
        };
        let used_before = kept.is_some();
        let conn = match kept {
            Some(conn) => conn,
            None => self.connected().await?,
        };
        Ok(Held {
            conn,
            used_before,
            _permit: permit,
        })
    }

    /// Opens a connection if none is kept, so that one is there when it is needed in a hurry.
    ///
    /// # Errors
    /// [`Failed`].
    pub(super) async fn ready(&self) -> Result<(), Failed> {
        let held = self.take().await?;
        self.give_back(held);
        Ok(())
    }

    /// How far the server's clock is ahead of ours, in milliseconds, as it was when the connection was opened.
    ///
    /// # Errors
    /// [`Failed`], when there is no connection.
    pub(super) async fn ahead(&self) -> Result<i64, Failed> {
        let held = self.take().await?;
        let ahead = held.conn.ahead;
        self.give_back(held);
        Ok(ahead)
    }

    pub(super) fn give_back(&self, held: Held) {
        if !held.conn.is_closed() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.push(held.conn);
        }
    }

    /// A connection to a server that this version can work with.
    async fn connected(&self) -> Result<Conn, Failed> {
        let conn = self.connect().await?;
        if self.database == self.access.admin_database.as_str() {
            conn.refuse_older_schema(&self.access).await?;
        }
        Ok(conn)
    }

    async fn connect(&self) -> Result<Conn, Failed> {
        let purpose = Purpose {
            database: &self.database,
            lock_wait: self.lock_wait,
        };
        let hosts = match &self.servers {
            Servers::One(host) => {
                return Conn::open(&self.access, host, purpose, &self.tasks).await;
            }
            Servers::Primary => &self.access.hosts,
        };
        let mut failed = None;
        for host in hosts {
            match Conn::open(&self.access, host, purpose, &self.tasks).await {
                Ok(conn) if !conn.in_recovery => return Ok(conn),
                Ok(_) => {
                    failed.get_or_insert(Failed::NotPrimary {
                        target: self.access.name.clone(),
                        why: format!("{host} is in recovery, or follows another server"),
                    });
                }
                // A host that refuses us is told rather than one that is away.
                Err(why) => {
                    failed.get_or_insert(why);
                }
            }
        }
        Err(failed.unwrap_or_else(|| Failed::Unreachable {
            target: self.access.name.clone(),
            why: "it has no host".to_owned(),
        }))
    }

    /// One call on any connection of the pool. All our calls may be repeated, so one that met a
    /// connection that had ended meanwhile is asked again on a new one.
    pub(super) async fn call(
        &self,
        asked: &str,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<Row>, Said> {
        let held = self.take().await.map_err(Said::Failed)?;
        let used_before = held.used_before;
        let (answer, ended) = self.call_at(held, asked, sql, params).await;
        if used_before && ended {
            // Every other kept connection has likely ended with it.
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clear();
            let held = self.take().await.map_err(Said::Failed)?;
            return self.call_at(held, asked, sql, params).await.0;
        }
        answer
    }

    /// One call on a connection that was taken; it is given back if it still stands. Also whether it
    /// had ended before there was an answer.
    pub(super) async fn call_at(
        &self,
        held: Held,
        asked: &str,
        sql: &'static str,
        params: Params<'_>,
    ) -> (Result<Vec<Row>, Said>, bool) {
        let answer = held.conn.call(&self.access, asked, sql, params).await;
        let told = matches!(&answer, Err(Said::Ended(_)));
        let unknown = told || matches!(&answer, Err(Said::Failed(Failed::Unknown { .. })));
        let ended = told || (unknown && held.conn.is_closed());
        let moved = matches!(&answer, Err(Said::Failed(Failed::NotPrimary { .. })));
        // What is not answered may still be at work there, on that connection.
        if !unknown && !moved {
            self.give_back(held);
        }
        (answer, ended)
    }
}
