//! What a login owns is dropped in every database, or becomes its group's: `DROP OWNED` acts on one.

use futures_util::future::try_join_all;

use super::{Act, is_over};
use crate::clock::Stopwatch;
use crate::kind::postgres::connect::{Params, field};
use crate::kind::postgres::failed::Failed;
use crate::kind::postgres::name::Ident;
use crate::kind::postgres::pool::Pool;
use crate::limits;

impl<'a> Act<'a> {
    /// Step 3, in all databases side by side.
    pub(super) async fn drop_owned(&self) -> Result<(), Failed> {
        let in_one = |(database, pool): (&'a String, &'a Pool)| async move {
            let dropped = self.drop_owned_in(pool).await;
            dropped.map_err(|failed| self.in_database(failed, database))
        };
        try_join_all(self.target.inner.members.iter().map(in_one)).await?;
        Ok(())
    }

    /// In one transaction; in pieces, where that would take more than its share of the server's locks.
    async fn drop_owned_in(&self, pool: &Pool) -> Result<(), Failed> {
        if self.drop_at_once(pool).await? {
            return Ok(());
        }
        if self.roles.len() > 1 {
            let why = "they own too much to be dropped together".to_owned();
            return Err(self.target.not_dead(why));
        }
        self.drop_pieces(pool).await?;
        if self.drop_at_once(pool).await? {
            return Ok(());
        }
        Err(Failed::Refused {
            target: self.target.name().to_owned(),
            why: "it owns more than 1000 things that depend on each other, which one transaction would have to lock".to_owned(),
        })
    }

    /// Whether it was not too much.
    async fn drop_at_once(&self, pool: &Pool) -> Result<bool, Failed> {
        const SQL: &str = "SELECT ephor.drop_owned($1, $2)";
        let group = self.group();
        let params: Params<'_> = &[&self.roles, &group];
        let rows = self.drop_call(pool, SQL, params).await?;
        Ok(field::<i32>(self.access(), self.target.only(&rows)?, 0)? >= 0)
    }

    /// Until nothing is left that can be dropped by itself. Each piece is committed.
    async fn drop_pieces(&self, pool: &Pool) -> Result<(), Failed> {
        const SQL: &str = "SELECT ephor.drop_some($1, $2, $3)";
        let begun = Stopwatch::start();
        while !is_over(begun, limits::PG_PIECES) {
            let group = self.group();
            let params: Params<'_> = &[&self.roles, &group, &limits::PG_PIECE_LOCKS];
            let rows = self.drop_call(pool, SQL, params).await?;
            if field::<i32>(self.access(), self.target.only(&rows)?, 0)? == 0 {
                return Ok(());
            }
        }
        let why = "it owns so much that it is dropped in pieces; the next try goes on".to_owned();
        Err(self.target.not_dead(why))
    }

    async fn drop_call(
        &self,
        pool: &Pool,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<Vec<tokio_postgres::Row>, Failed> {
        let begun = Stopwatch::start();
        let mut tries = 1;
        loop {
            let place = (pool, limits::PG_ANSWER);
            let asked = "dropping what it owns";
            let done = self.target.unblocked_at(place, asked, sql, params).await;
            match done.map_err(|said| said.failed(self.target.name())) {
                // Two at a time at the same group, or at the rights on the same table.
                Err(Failed::Busy { .. })
                    if tries < limits::PG_FENCE_TRIES
                        && !is_over(begun, limits::PG_MEMBER_LOCK) =>
                {
                    tries += 1;
                }
                other => return other,
            }
        }
    }

    fn group(&self) -> Option<&'a str> {
        self.reassign.map(Ident::as_str)
    }

    /// Where it was, and what a person can do when others have built on what a login owns: to destroy
    /// that is not for us.
    fn in_database(&self, failed: Failed, database: &str) -> Failed {
        match failed {
            Failed::Refused { target, why }
                if why.contains("depend") || why.contains("somebody stronger") =>
            {
                let roles = self.roles.join(", ");
                Failed::Refused {
                    target,
                    why: format!(
                        "database {database}: {why}; it cannot log in any more. To drop all of that too, as a superuser there: DROP OWNED BY {roles} CASCADE"
                    ),
                }
            }
            Failed::Refused { target, why } => Failed::Refused {
                target,
                why: format!("database {database}: {why}"),
            },
            Failed::Missing { target, what, mend } => Failed::Missing {
                target,
                what: format!("database {database}: {what}"),
                mend,
            },
            other => other,
        }
    }
}
