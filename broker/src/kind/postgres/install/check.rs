//! What is missing at a target, with the statement that mends it.

mod lent;
mod members;
mod settings;

pub use lent::check_static_roles;
pub use settings::{Setting, check_settings};

use ephor_proto::postgres::Address;
use tokio_postgres::Row;

use crate::kind::postgres::access::{Access, Password, Tls};
use crate::kind::postgres::connect::{Conn, Params, Purpose, field};
use crate::kind::postgres::failed::{Failed, NO_PASSWORD};
use crate::kind::postgres::name::{Ident, literal, quoted};
use crate::limits;
use crate::tasks::Tasks;

use super::SCHEMA_VERSION;

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// As it should be.
    Ok,
    /// Works without, but less is true then.
    Weak,
    /// The broker cannot do its work, or more than its work.
    Wrong,
    /// This login may not see it.
    Unknown,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// How it stands.
    pub grade: Grade,
    /// What was looked at and found.
    pub what: String,
    /// A statement or line that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    pub(super) fn ok(what: impl Into<String>) -> Self {
        Self {
            grade: Grade::Ok,
            what: what.into(),
            mend: None,
        }
    }

    pub(super) fn not(grade: Grade, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            grade,
            what: what.into(),
            mend: Some(mend.into()),
        }
    }
}

/// Looks at a target with the broker's own login. `groups` are those that policy names.
pub async fn check(access: &Access, groups: &[Ident], tasks: &Tasks) -> Vec<Finding> {
    let mut found = Vec::new();
    let admin = access.admin_database.as_str();
    let mut primary = None;
    for host in &access.hosts {
        match open(access, host, admin, tasks).await {
            Ok(conn) if conn.in_recovery => found.push(Finding::ok(format!(
                "{host} answers; it follows another server"
            ))),
            Ok(conn) => {
                found.push(Finding::ok(format!("{host} answers and takes writes")));
                primary = primary.or(Some((host, conn)));
            }
            Err(why) => found.push(not_reached(access, host, admin, &why)),
        }
    }
    let Some((host, conn)) = primary else {
        return found;
    };
    let look = Look {
        access,
        conn: &conn,
    };
    for piece in [
        look.server().await,
        look.schema().await,
        look.rights().await,
        look.members().await,
        look.groups(groups).await,
        look.databases().await,
        look.followers().await,
    ] {
        found.extend(piece.unwrap_or_else(|why| {
            vec![Finding::not(
                Grade::Unknown,
                why.to_string(),
                "ephor target init",
            )]
        }));
    }
    for database in &access.databases {
        found.extend(member(access, host, database, groups, tasks).await);
    }
    for host in &access.standbys {
        found.push(standby(access, host, tasks).await);
    }
    found
}

async fn open(
    access: &Access,
    host: &Address,
    database: &str,
    tasks: &Tasks,
) -> Result<Conn, Failed> {
    let purpose = Purpose {
        database,
        lock_wait: limits::PG_MINT_LOCK,
    };
    Conn::open(access, host, purpose, tasks).await
}

fn not_reached(access: &Access, host: &Address, database: &str, why: &Failed) -> Finding {
    let user = quoted(&access.user);
    let line = match host {
        Address::Socket { .. } => format!("local   {} {user}   scram-sha-256", quoted(database)),
        Address::Tcp { .. } => {
            let kind = match access.tls {
                Tls::Off => "host",
                Tls::VerifyFull { .. } => "hostssl",
            };
            format!(
                "{kind}   {} {user} THIS-HOST/32   scram-sha-256",
                quoted(database)
            )
        }
    };
    // What to do stands beside it here.
    let said = match why {
        Failed::Unauthorized { why, .. } | Failed::Missing { what: why, .. } => why.clone(),
        other => other.to_string(),
    };
    let mend = if let Some(mend) = without_password(access, &said) {
        mend
    } else if said.contains("pg_hba") {
        format!("a line in pg_hba.conf, then SELECT pg_reload_conf():  {line}")
    } else if said.contains("does not exist") {
        "ephor target init".to_owned()
    } else if said.contains("does not support TLS") {
        "ALTER SYSTEM SET ssl = on there, with a certificate for its name; or, if it is on this host, \
         tls = \"off\" of the target in the policy".to_owned()
    } else {
        match why {
            Failed::Unauthorized { .. } => {
                format!("ALTER ROLE {user} PASSWORD '...', and the same in the credential file")
            }
            _ => "see that the server runs and the network lets us through".to_owned(),
        }
    };
    let here = host.to_string();
    let said = if said.contains(&here) {
        said
    } else {
        format!("{here}: {said}")
    };
    Finding::not(Grade::Wrong, said, mend)
}

/// What mends it when there was no password to try: the one that the server knows is right.
fn without_password(access: &Access, said: &str) -> Option<String> {
    let of = quoted(&access.user);
    match &access.password {
        Password::File(file) if said.contains("others can read it") => {
            Some(format!("chmod 600 {}", file.display()))
        }
        Password::File(file) if said.contains("credential file") => Some(format!(
            "put the password of {of} into the file {}, mode 0600",
            file.display()
        )),
        Password::Absent(file) if said.contains(NO_PASSWORD) => Some(format!(
            "put the password of {of} into the file {}, mode 0600",
            file.display()
        )),
        Password::None if said.contains(NO_PASSWORD) => {
            Some(format!("--password-file FILE, with the password of {of}"))
        }
        Password::None | Password::Absent(_) | Password::File(_) | Password::Given(_) => None,
    }
}

async fn standby(access: &Access, host: &Address, tasks: &Tasks) -> Finding {
    match open(access, host, access.admin_database.as_str(), tasks).await {
        Ok(conn) if conn.in_recovery => Finding::ok(format!("standby {host} answers and follows")),
        Ok(_) => Finding::not(
            Grade::Weak,
            format!("standby {host} follows nobody"),
            "take it out of `standbys`, or into the hosts of `url`",
        ),
        Err(why) => not_reached(access, host, access.admin_database.as_str(), &why),
    }
}

struct Look<'a> {
    access: &'a Access,
    conn: &'a Conn,
}

impl Look<'_> {
    async fn rows(&self, sql: &'static str, params: Params<'_>) -> Result<Vec<Row>, Failed> {
        let rows = self.conn.call(self.access, "checking", sql, params).await;
        rows.map_err(|said| said.failed(&self.access.name))
    }

    async fn yes(&self, sql: &'static str, params: Params<'_>) -> Result<bool, Failed> {
        let rows = self.rows(sql, params).await?;
        rows.first()
            .map_or(Ok(false), |row| field(self.access, row, 0))
    }

    async fn server(&self) -> Result<Vec<Finding>, Failed> {
        const SQL: &str = "SELECT current_setting('server_version_num')::int, current_setting('server_version'),
            coalesce((SELECT s.ssl FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid()), false),
            current_setting('max_prepared_transactions')::int, current_setting('track_activities')::bool";
        let mut found = Vec::new();
        for row in self.rows(SQL, &[]).await? {
            let number: i32 = field(self.access, &row, 0)?;
            let version: String = field(self.access, &row, 1)?;
            found.push(match number / 10_000 {
                13..=18 => Finding::ok(format!("PostgreSQL {version}")),
                _ => Finding::not(
                    Grade::Weak,
                    format!("PostgreSQL {version} was not tried"),
                    "13 to 18 are",
                ),
            });
            if !field::<bool>(self.access, &row, 2)? && self.access.tls != Tls::Off {
                found.push(Finding::ok("by a Unix socket, without TLS"));
            }
            if field::<i32>(self.access, &row, 3)? > 0 {
                found.push(Finding::not(
                    Grade::Weak,
                    "max_prepared_transactions is not 0: a task can leave a prepared transaction, which only a superuser can end",
                    "ALTER SYSTEM SET max_prepared_transactions = 0, then restart",
                ));
            }
            if !field::<bool>(self.access, &row, 4)? {
                found.push(Finding::not(
                    Grade::Wrong,
                    "track_activities is off: sessions cannot be seen",
                    "ALTER SYSTEM SET track_activities = on; SELECT pg_reload_conf()",
                ));
            }
        }
        Ok(found)
    }

    async fn schema(&self) -> Result<Vec<Finding>, Failed> {
        const SQL: &str = "SELECT max(v.version) FROM ephor.version v";
        const PUBLIC: &str = "SELECT EXISTS (SELECT FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
            WHERE d.datname = current_database() AND a.grantee = 0 AND a.privilege_type = 'CONNECT')";
        let rows = self.rows(SQL, &[]).await?;
        let version: Option<i32> = match rows.first() {
            Some(row) => field(self.access, row, 0)?,
            None => None,
        };
        let mut found = vec![match version {
            Some(SCHEMA_VERSION) => Finding::ok(format!("schema version {SCHEMA_VERSION}")),
            Some(other) => Finding::not(
                Grade::Wrong,
                format!("schema version {other}; this is for {SCHEMA_VERSION}"),
                "ephor target init",
            ),
            None => Finding::not(Grade::Wrong, "no schema", "ephor target init"),
        }];
        if self.yes(PUBLIC, &[]).await? {
            let name = self.access.admin_database.quoted();
            found.push(Finding::not(
                Grade::Weak,
                format!("everybody may connect to the database {name}"),
                format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"),
            ));
        }
        Ok(found)
    }

    async fn rights(&self) -> Result<Vec<Finding>, Failed> {
        const SQL: &str = "SELECT r.rolname::text, r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls,
                r.rolcreaterole, r.rolcanlogin,
                pg_has_role(r.oid, 'pg_signal_backend', 'USAGE'), pg_has_role(r.oid, 'pg_read_all_stats', 'USAGE'),
                EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid), r.rolsuper
            FROM pg_roles r WHERE r.rolname IN (session_user, 'ephor_owner', 'ephor_signal')";
        let mut found = Vec::new();
        for row in self.rows(SQL, &[]).await? {
            let get = |place| field::<bool>(self.access, &row, place);
            let name: String = field(self.access, &row, 0)?;
            let role = quoted(&name);
            match name.as_str() {
                "ephor_owner" => {
                    if !get(2)? || get(3)? {
                        found.push(Finding::not(
                            Grade::Wrong,
                            "ephor_owner must be NOLOGIN and may make roles",
                            "ALTER ROLE ephor_owner NOLOGIN CREATEROLE",
                        ));
                    }
                }
                "ephor_signal" => {
                    if !get(4)? {
                        found.push(Finding::not(
                            Grade::Wrong,
                            "ephor_signal cannot end sessions",
                            "GRANT pg_signal_backend TO ephor_signal",
                        ));
                    }
                    if !get(5)? {
                        found.push(Finding::not(
                            Grade::Weak,
                            "use is unknown: ephor_signal does not see who is connected from where",
                            "GRANT pg_read_all_stats TO ephor_signal",
                        ));
                    }
                }
                _ if get(7)? => found.push(Finding::not(
                    Grade::Wrong,
                    format!("{role} is a superuser, and the broker's login may only call Ephor's functions"),
                    "use the login that `ephor target init` makes for the broker",
                )),
                _ if get(1)? || get(6)? => found.push(Finding::not(
                    Grade::Wrong,
                    format!("the broker's login {role} may do more than call Ephor's functions"),
                    format!("ALTER ROLE {role} NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS, and REVOKE its groups"),
                )),
                _ => found.push(Finding::ok(format!("the broker's login {role} may only call Ephor's functions"))),
            }
        }
        Ok(found)
    }

    async fn groups(&self, groups: &[Ident]) -> Result<Vec<Finding>, Failed> {
        const SQL: &str = "SELECT EXISTS (SELECT FROM ephor.allowed a WHERE a.role = $1::text),
            (SELECT r.rolcanlogin FROM pg_roles r WHERE r.rolname = $1::text),
            current_setting('server_version_num')::int < 160000 OR EXISTS (
                SELECT FROM pg_auth_members m WHERE m.admin_option AND m.member = 'ephor_owner'::regrole
                AND m.roleid = (SELECT r.oid FROM pg_roles r WHERE r.rolname = $1::text))";
        const MORE: &str = "SELECT a.role::text FROM ephor.allowed a WHERE NOT a.role = ANY ($1) ORDER BY 1 LIMIT 20";
        let mut found = Vec::new();
        let named: Vec<&str> = groups.iter().map(Ident::as_str).collect();
        // Before policy names any, nothing is too much.
        let more = match named.is_empty() {
            true => Vec::new(),
            false => self.rows(MORE, &[&named]).await?,
        };
        for row in &more {
            let name: String = field(self.access, row, 0)?;
            found.push(Finding::not(
                Grade::Weak,
                format!("logins of {} may be made here, and the policy looked at names none", quoted(&name)),
                format!(
                    "unless another installation needs them, in the database {}: DELETE FROM ephor.allowed WHERE role = {}",
                    self.access.admin_database.quoted(),
                    literal(&name)
                ),
            ));
        }
        for group in groups {
            let name = group.quoted();
            for row in self.rows(SQL, &[&group.as_str()]).await? {
                let get = |place| field::<bool>(self.access, &row, place);
                let again = "ephor target init, with its --group".to_owned();
                let can_login: Option<bool> = field(self.access, &row, 1)?;
                found.push(match can_login {
                    None => Finding::not(
                        Grade::Wrong,
                        format!("no group role {name}"),
                        format!("CREATE ROLE {name} NOLOGIN"),
                    ),
                    Some(true) => Finding::not(
                        Grade::Wrong,
                        format!("no login can be made of {name}: it can log in itself"),
                        "name another one; a group role is NOLOGIN",
                    ),
                    Some(false) if !get(0)? || !get(2)? => Finding::not(
                        Grade::Wrong,
                        format!("logins of {name} are not allowed here"),
                        again,
                    ),
                    Some(false) => Finding::ok(format!("logins of {name} may be made")),
                });
            }
        }
        Ok(found)
    }

    /// Databases that a login gets into and where nobody would drop what it leaves.
    async fn databases(&self) -> Result<Vec<Finding>, Failed> {
        const SQL: &str = "SELECT d.datname::text FROM pg_database d
            WHERE d.datallowconn AND NOT d.datname = ANY ($1) AND EXISTS (
                SELECT FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
                WHERE a.grantee = 0 AND a.privilege_type = 'CONNECT') ORDER BY 1";
        let listed = std::iter::once(&self.access.admin_database).chain(&self.access.databases);
        let listed: Vec<&str> = listed.map(Ident::as_str).collect();
        let mut found = Vec::new();
        for row in self.rows(SQL, &[&listed]).await? {
            let name = quoted(&field::<String>(self.access, &row, 0)?);
            found.push(Finding::not(
                Grade::Weak,
                format!("a login gets into the database {name}, which is not listed; if it leaves something there, it cannot be dropped"),
                format!("REVOKE CONNECT ON DATABASE {name} FROM PUBLIC, or list it in `databases`"),
            ));
        }
        Ok(found)
    }

    async fn followers(&self) -> Result<Vec<Finding>, Failed> {
        const SQL: &str = "SELECT ephor.followers()";
        let mut found = Vec::new();
        for row in self.rows(SQL, &[]).await? {
            let followers: i32 = field(self.access, &row, 0)?;
            let listed = i32::try_from(self.access.standbys.len()).unwrap_or(i32::MAX);
            if followers > listed {
                found.push(Finding::not(
                    Grade::Weak,
                    format!("{followers} servers follow this one, {listed} are listed: proofs will say that they are partial"),
                    "name them in `standbys`, if they let people in",
                ));
            }
        }
        Ok(found)
    }
}

/// A database where logins may own something.
async fn member(
    access: &Access,
    host: &Address,
    database: &Ident,
    groups: &[Ident],
    tasks: &Tasks,
) -> Vec<Finding> {
    const SQL: &str = "SELECT coalesce(has_function_privilege(to_regprocedure('ephor.drop_owned(text[],text)'), 'EXECUTE'), false)";
    const LEAVES: &str = "SELECT n.nspname::text FROM pg_namespace n
        WHERE has_schema_privilege((SELECT r.oid FROM pg_roles r WHERE r.rolname = $1::text), n.oid, 'CREATE')
          AND n.nspname !~ '^pg_' ORDER BY 1 LIMIT 20";
    let conn = match open(access, host, database.as_str(), tasks).await {
        Ok(conn) => conn,
        Err(why) => return vec![not_reached(access, host, database.as_str(), &why)],
    };
    let look = Look {
        access,
        conn: &conn,
    };
    let name = database.quoted();
    let mut found = match look.yes(SQL, &[]).await {
        Ok(true) => vec![Finding::ok(format!(
            "database {name}: what a login owns there can be dropped"
        ))],
        Ok(false) | Err(_) => vec![Finding::not(
            Grade::Wrong,
            format!(
                "database {name} has no schema of ours: a login that owns something there cannot be dropped"
            ),
            format!("ephor target init, with --database {database}"),
        )],
    };
    for group in groups {
        let Ok(rows) = look.rows(LEAVES, &[&group.as_str()]).await else {
            continue;
        };
        let schemas: Vec<String> = rows
            .iter()
            .filter_map(|row| field(access, row, 0).ok())
            .collect();
        if schemas.is_empty() {
            continue;
        }
        found.push(Finding::not(
            Grade::Weak,
            format!(
                "database {name}: as {} a task can leave tables, functions and triggers behind, in {}; they belong to the group and outlive the login",
                group.quoted(),
                schemas.join(", ")
            ),
            format!(
                "REVOKE CREATE ON SCHEMA {} FROM {}, or FROM PUBLIC, where no task has to make any",
                quoted(schemas.first().map_or("", String::as_str)),
                group.quoted()
            ),
        ));
    }
    found
}
