//! Looks at a server: one read-only transaction, one snapshot, bounded in time. It never writes,
//! and nothing of it depends on what a role of that server put into its search path.

use std::net::IpAddr;

use ephor_proto::time::UnixMillis;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, IsolationLevel, Row, Transaction};

use super::seen::{
    Attributes, Database, Holding, Member, Prepared, Role, Seen, Server, Session, ValidUntil,
};

/// What the session is opened with: even a statement outside the transaction could change nothing.
pub const OPTIONS: &str = "-c default_transaction_read_only=on -c search_path=pg_catalog \
    -c statement_timeout=20s -c lock_timeout=2s -c idle_in_transaction_session_timeout=30s";

/// How one part of the catalog was read.
type Part<T> = Result<Option<Vec<T>>, tokio_postgres::Error>;

const SERVER: &str = "
    SELECT current_setting('server_version_num')::int4,
           current_database()::text,
           session_user::text,
           pg_is_in_recovery(),
           (extract(epoch FROM now()) * 1000)::int8,
           pg_has_role(session_user, 'pg_read_all_stats', 'USAGE')";

const ROLES: &str = "
    SELECT r.oid, r.rolname::text, r.rolcanlogin,
           CASE WHEN isfinite(r.rolvaliduntil)
                THEN least(greatest(extract(epoch FROM r.rolvaliduntil) * 1000, 0), 1e15)::int8
                WHEN r.rolvaliduntil < now() THEN 0
           END,
           r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication, r.rolbypassrls,
           shobj_description(r.oid, 'pg_authid')
      FROM pg_roles r
     ORDER BY r.rolname";

// The options of a membership are columns since 16; before, every one allows SET ROLE.
const MEMBERS: &str = "
    SELECT m.roleid, m.member,
           coalesce((to_jsonb(m) ->> 'inherit_option')::bool, r.rolinherit),
           coalesce((to_jsonb(m) ->> 'set_option')::bool, true),
           m.admin_option
      FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member";

// What a backend is, is not shown to everybody; without a database and of the server's own role it
// is one of its workers.
const SESSIONS: &str = "
    SELECT a.pid, a.usesysid, a.datname::text,
           (extract(epoch FROM a.backend_start) * 1000)::int8,
           a.client_addr
      FROM pg_stat_activity a
     WHERE a.usesysid IS NOT NULL AND a.pid <> pg_backend_pid()
       AND coalesce(a.backend_type IN ('client backend', 'walsender'),
                    a.usesysid <> 10 OR a.datid IS NOT NULL)
     ORDER BY a.pid";

// A backend that is still signing in (post_auth_delay) holds locks before it is listed.
const HIDDEN: &str = "
    SELECT DISTINCT l.pid
      FROM pg_locks l
     WHERE l.pid IS NOT NULL
       AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = l.pid)";

const STANDBYS: &str = "SELECT count(*)::int8 FROM pg_stat_replication";

// Default privileges and user mappings have an owner, but only to be dropped with it.
const HOLDINGS: &str = "
    SELECT d.refobjid, db.datname::text, coalesce(db.datallowconn, true),
           count(*) FILTER (WHERE d.owns), count(*) FILTER (WHERE NOT d.owns)
      FROM (SELECT *, deptype = 'o' AND classid NOT IN
                   ('pg_default_acl'::regclass, 'pg_user_mapping'::regclass) AS owns
              FROM pg_shdepend) d
      LEFT JOIN pg_database db ON db.oid = d.dbid
     WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid <> 0
     GROUP BY 1, 2, 3";

// In any database: only the owner of Ephor's functions, or a superuser, gives the right to call one.
const BROKERS: &str = "
    SELECT DISTINCT d.refobjid
      FROM pg_shdepend d
      JOIN pg_shdepend o ON (o.dbid, o.classid, o.objid) = (d.dbid, d.classid, d.objid)
      JOIN pg_roles r ON r.oid = o.refobjid
     WHERE d.classid = 'pg_proc'::regclass
       AND d.refclassid = 'pg_authid'::regclass AND d.deptype = 'a'
       AND o.refclassid = 'pg_authid'::regclass AND o.deptype = 'o'
       AND r.rolname IN ('ephor_owner', 'ephor_signal') AND NOT r.rolcanlogin";

// Whether they are there, and are Ephor's own: a view of somebody's under such a name would run with our rights.
const HAS_LENT: &str = "
    SELECT count(*) > 0,
           count(*) FILTER (WHERE c.relkind = 'r' AND r.oid = n.nspowner
                              AND r.rolname = 'ephor_owner' AND NOT r.rolcanlogin) = 2
      FROM pg_class c
      JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_roles r ON r.oid = c.relowner
     WHERE n.nspname = 'ephor' AND c.relname IN ('static_role', 'checkout')";

const LENT: &str = "
    SELECT r.oid FROM ephor.static_role s JOIN pg_roles r ON r.rolname = s.role
     UNION SELECT c.role_oid FROM ephor.checkout c WHERE c.state <> 'in'";

const PREPARED: &str = "SELECT gid, owner::text, database::text FROM pg_prepared_xacts";

/// Reads it all. `address` and `name` are those of the connection.
///
/// # Errors
/// When the server refuses even its list of roles, or the connection breaks.
pub async fn look(
    client: &mut Client,
    address: String,
    name: String,
) -> Result<Seen, tokio_postgres::Error> {
    let mut tx = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let row = tx.query_one(SERVER, &[]).await?;
    let server = Server {
        address,
        name,
        version: u32::try_from(row.try_get::<_, i32>(0)?).unwrap_or_default(),
        database: row.try_get(1)?,
        login: row.try_get(2)?,
        standby: row.try_get(3)?,
        standbys: None,
        at: millis(row.try_get(4)?),
    };
    let sees_sessions: bool = row.try_get(5)?;
    let roles = tx.query(ROLES, &[]).await?;
    let mut seen = Seen {
        server,
        roles: roles.iter().map(role).collect::<Result<_, _>>()?,
        members: part(&mut tx, MEMBERS, member).await?,
        sessions: part(&mut tx, SESSIONS, session).await?,
        holdings: part(&mut tx, HOLDINGS, holding).await?,
        prepared: part(&mut tx, PREPARED, prepared).await?,
        brokers: part(&mut tx, BROKERS, |row| row.try_get(0)).await?,
        lent: None,
        hidden: part(&mut tx, HIDDEN, |row| row.try_get(0)).await?,
        sees_sessions,
    };
    let standbys = part(&mut tx, STANDBYS, |row| row.try_get::<_, i64>(0)).await?;
    seen.server.standbys = standbys
        .and_then(|counts| counts.first().copied())
        .and_then(|count| u32::try_from(count).ok());
    tx.rollback().await?;
    Ok(seen)
}

/// The roles that a broker of ours lends, by the tables of them in this database, if it has them. `None`: what
/// has their names is not Ephor's, and nothing is known.
///
/// # Errors
/// When this login may not read them.
pub async fn lent(client: &mut Client) -> Result<Option<Vec<u32>>, tokio_postgres::Error> {
    let found = client.query_one(HAS_LENT, &[]).await?;
    match (found.try_get(0)?, found.try_get(1)?) {
        (false, _) => Ok(Some(Vec::new())),
        (true, false) => Ok(None),
        (true, true) => {
            let rows = client.query(LENT, &[]).await?;
            rows.iter().map(|row| row.try_get(0)).collect()
        }
    }
}

/// One query; `None` when this login may not, or the server takes too long over it.
async fn part<T>(
    tx: &mut Transaction<'_>,
    query: &str,
    read: impl Fn(&Row) -> Result<T, tokio_postgres::Error>,
) -> Part<T> {
    let savepoint = tx.savepoint("part").await?;
    match savepoint.query(query, &[]).await {
        Ok(rows) => {
            savepoint.commit().await?;
            rows.iter().map(read).collect::<Result<_, _>>().map(Some)
        }
        Err(why) if may_be_left_out(&why) => {
            savepoint.rollback().await?;
            Ok(None)
        }
        Err(why) => Err(why),
    }
}

fn may_be_left_out(why: &tokio_postgres::Error) -> bool {
    let left_out = [
        SqlState::INSUFFICIENT_PRIVILEGE,
        SqlState::QUERY_CANCELED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_FUNCTION,
    ];
    why.code().is_some_and(|code| left_out.contains(code))
}

fn millis(value: i64) -> UnixMillis {
    UnixMillis::from_millis(u64::try_from(value).unwrap_or(0))
}

fn role(row: &Row) -> Result<Role, tokio_postgres::Error> {
    let until: Option<i64> = row.try_get(3)?;
    Ok(Role {
        oid: row.try_get(0)?,
        name: row.try_get(1)?,
        can_login: row.try_get(2)?,
        valid_until: until.map_or(ValidUntil::Never, |until| ValidUntil::At(millis(until))),
        attributes: Attributes {
            superuser: row.try_get(4)?,
            createrole: row.try_get(5)?,
            createdb: row.try_get(6)?,
            replication: row.try_get(7)?,
            bypassrls: row.try_get(8)?,
        },
        comment: row.try_get(9)?,
    })
}

fn member(row: &Row) -> Result<Member, tokio_postgres::Error> {
    Ok(Member {
        group: row.try_get(0)?,
        member: row.try_get(1)?,
        inherit: row.try_get(2)?,
        set: row.try_get(3)?,
        admin: row.try_get(4)?,
    })
}

fn session(row: &Row) -> Result<Session, tokio_postgres::Error> {
    let since: Option<i64> = row.try_get(3)?;
    let from: Option<IpAddr> = row.try_get(4)?;
    Ok(Session {
        pid: row.try_get(0)?,
        role: row.try_get(1)?,
        database: row.try_get(2)?,
        since: since.map(millis),
        from: from.map(|from| from.to_string()),
    })
}

fn holding(row: &Row) -> Result<Holding, tokio_postgres::Error> {
    let name: Option<String> = row.try_get(1)?;
    let allows_connections = row.try_get(2)?;
    let count = |at| Ok(u64::try_from(row.try_get::<_, i64>(at)?).unwrap_or_default());
    Ok(Holding {
        role: row.try_get(0)?,
        database: name.map(|name| Database {
            name,
            allows_connections,
        }),
        owns: count(3)?,
        named_in: count(4)?,
    })
}

fn prepared(row: &Row) -> Result<Prepared, tokio_postgres::Error> {
    Ok(Prepared {
        gid: row.try_get(0)?,
        owner: row.try_get(1)?,
        database: row.try_get(2)?,
    })
}
