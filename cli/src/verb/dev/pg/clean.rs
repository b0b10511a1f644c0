//! What a broker's login leaves at a server is removed there: its own role and whatever it made. In
//! pieces that may each be repeated, since an earlier clean-up may have ended anywhere.

use std::time::Duration;

use tokio_postgres::{Client, Error};

use super::{ADMIN_DATABASE, OPTIONS, quoted};
use crate::exit::{Failure, UNREACHABLE};
use crate::postgres::Target;

/// What is at the server of a login.
struct Left<'a> {
    server: &'a Target,
    /// The database with the fence, if it is there. Where this user may not enter, he has made nothing.
    admin: Option<Target>,
    login: &'a str,
    is_superuser: bool,
}

/// Attempts: others who install or clean up there at the same time get in the way.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// Ends and removes what `login` made, then the login itself. Says whether it was there.
///
/// # Errors
/// What is left, and why. The login cannot log in any more if the server did anything at all.
pub async fn clean(server: &Target, login: &str) -> Result<bool, Failure> {
    for _ in 1..ATTEMPTS {
        match clean_once(server, login).await {
            Err(why) if why.code != UNREACHABLE => tokio::time::sleep(PAUSE).await,
            done => return done,
        }
    }
    clean_once(server, login).await
}

async fn clean_once(server: &Target, login: &str) -> Result<bool, Failure> {
    const LOOK: &str = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1::text),
        EXISTS (SELECT FROM pg_database WHERE datname = $2::text AND has_database_privilege(oid, 'CONNECT')),
        (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)";
    let shut = format!("ALTER ROLE {} NOLOGIN", quoted(login));
    let looked = server.with(OPTIONS, async |client| {
        let row = client.query_one(LOOK, &[&login, &ADMIN_DATABASE]).await?;
        let there: (bool, bool, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        if there.0 {
            client.batch_execute(&shut).await?;
        }
        Ok(there)
    });
    let (is_there, has_admin, is_superuser) = looked.await?;
    if !is_there {
        return Ok(false);
    }
    let left = Left {
        server,
        admin: has_admin.then(|| server.in_database(ADMIN_DATABASE)),
        login,
        is_superuser,
    };
    // Who installed kept no right of the owners, and takes them for this only.
    let take = format!(
        "GRANT ephor_owner, ephor_signal, {} TO CURRENT_USER",
        quoted(login)
    );
    let removed = match left.own(&take).await {
        Ok(()) => left.remove().await,
        Err(why) => Err(why),
    };
    let given_back = left
        .own("REVOKE ephor_owner, ephor_signal FROM CURRENT_USER")
        .await;
    removed.and(given_back).map(|()| true)
}

impl Left<'_> {
    /// What only who is no superuser needs.
    async fn own(&self, sql: &str) -> Result<(), Failure> {
        if self.is_superuser {
            return Ok(());
        }
        let run = async |client: &mut Client| client.batch_execute(sql).await;
        self.server.with(OPTIONS, run).await
    }

    async fn remove(&self) -> Result<(), Failure> {
        let mut roles = self.made().await?;
        roles.push(self.login.to_owned());
        self.end(&roles).await?;
        // It acts on one database; what one role holds must not keep the others.
        let mut trouble = None;
        for place in std::iter::once(self.server).chain(&self.admin) {
            let owned = each(place, &roles, "DROP OWNED BY").await?;
            trouble = trouble.or(owned);
        }
        roles.pop();
        let dropped = each(self.server, &roles, "DROP ROLE IF EXISTS").await?;
        if let Some(why) = dropped {
            return Err(self.server.failed(&trouble.unwrap_or(why)));
        }
        if let Some(admin) = &self.admin {
            let forget = async |client: &mut Client| match has_schema(client).await? {
                true => {
                    client
                        .execute(
                            "DELETE FROM ephor.installation WHERE login = $1::text",
                            &[&self.login],
                        )
                        .await
                }
                false => Ok(0),
            };
            admin.with(OPTIONS, forget).await?;
        }
        let last = each(self.server, &[self.login.to_owned()], "DROP ROLE IF EXISTS").await?;
        match last {
            None => Ok(()),
            Some(why) => Err(self.server.failed(&trouble.unwrap_or(why))),
        }
    }

    /// The logins that it made and that are still there.
    async fn made(&self) -> Result<Vec<String>, Failure> {
        const MADE: &str = "SELECT r.rolname::text FROM pg_roles r JOIN ephor.installation i
            ON r.rolname ~ ('^eph_[a-z0-9_]*_' || i.installation || '_[0-9a-z]{26}$') WHERE i.login = $1::text";
        let Some(admin) = &self.admin else {
            return Ok(Vec::new());
        };
        let read = async |client: &mut Client| {
            if !has_schema(client).await? {
                return Ok(Vec::new());
            }
            let rows = client.query(MADE, &[&self.login]).await?;
            rows.iter().map(|row| row.try_get(0)).collect()
        };
        admin.with(OPTIONS, read).await
    }

    /// Nobody gets in as one of them any more, nor stays.
    async fn end(&self, roles: &[String]) -> Result<(), Failure> {
        const END: &str = "SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a WHERE a.usename = ANY ($1::text[])";
        const MEMBER: &str = "SELECT pg_has_role($1::text::regrole::oid, 'USAGE')";
        let end = async |client: &mut Client| {
            for role in roles {
                let name = quoted(role);
                client
                    .batch_execute(&format!("ALTER ROLE {name} NOLOGIN"))
                    .await?;
                let is_member: bool = client.query_one(MEMBER, &[&name]).await?.try_get(0)?;
                if !is_member {
                    client
                        .batch_execute(&format!("GRANT {name} TO CURRENT_USER"))
                        .await?;
                }
            }
            client.query(END, &[&roles]).await.map(drop)
        };
        self.server.with(OPTIONS, end).await
    }
}

/// Does one thing to each role; gives the first error, after all were tried.
async fn each(place: &Target, roles: &[String], what: &str) -> Result<Option<Error>, Failure> {
    let run = async |client: &mut Client| {
        let mut first = None;
        for role in roles {
            let done = client
                .batch_execute(&format!("{what} {}", quoted(role)))
                .await;
            first = first.or(done.err());
        }
        Ok(first)
    };
    place.with(OPTIONS, run).await
}

async fn has_schema(client: &Client) -> Result<bool, Error> {
    let asked = "SELECT to_regclass('ephor.installation') IS NOT NULL";
    client.query_one(asked, &[]).await?.try_get(0)
}
