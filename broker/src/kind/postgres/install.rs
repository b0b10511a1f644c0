//! `ephor target init`: what is put into a server before the broker can work there. And `check`:
//! whether it is there and enough.
//!
//! What is run and what `--sql` prints come from the same pieces, so a DBA who types it alone does
//! exactly the same. All of it may be run again; a newer version replaces an older one.

mod certificates;
mod check;

use ephor_crypto::Secret;
use ephor_crypto::scram::ScramVerifier;
use ephor_proto::postgres::Address;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, SimpleQueryMessage};

pub use certificates::{ByCertificate, check_certificates};
pub use check::{Finding, Grade, Setting, check, check_settings, check_static_roles};

use super::access::Tls;
use super::connect::{NotConnected, connected};
use super::failed::{Failed, Tried, is_crossed, not_connected, words};
use super::name::{Ident, literal, quoted};
use crate::limits;
use crate::tasks::Tasks;

/// Of what is installed; a broker does nothing where an older one is.
pub const SCHEMA_VERSION: i32 = 3;

const ROLES: &str = include_str!("sql/roles.sql");
const GROUP: &str = include_str!("sql/group.sql");
const ADMIN: &str = include_str!("sql/admin.sql");
const MEMBER: &str = include_str!("sql/member.sql");
const STATIC: &str = include_str!("sql/static.sql");
const STATIC_IN: &str = include_str!("sql/static_in.sql");
const STATIC_ROLE: &str = include_str!("sql/static_role.sql");
const DONE: &str = include_str!("sql/done.sql");
/// What a connection of an administrator must not take from a database where others may write: there
/// somebody's `format(text, text)` fits better than the server's own, and would run with all rights.
const PINNED: [(&str, &str); 2] = [
    ("search_path", "pg_catalog"),
    ("standard_conforming_strings", "on"),
];

/// Of a role `r`: who can act as it reaches beyond what was given.
const BEYOND: &str = "r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls
       OR r.rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files',
                        'pg_signal_backend', 'pg_create_subscription', 'pg_checkpoint', 'pg_maintain',
                        'pg_signal_autovacuum_worker', 'ephor_owner', 'ephor_signal')";

/// What we have made in our schema and is not yet the owner's; what is, is not locked.
const OWNED: &str = "    FOR one IN SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relnamespace = 'ephor'::regnamespace
               AND c.relname IN ('version', 'installation', 'fence', 'allowed', 'session', 'static_role', 'checkout')
               AND c.relowner <> 'ephor_owner'::regrole LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO ephor_owner', one);
    END LOOP;";

/// Of a function that finds a few logins among many: plans are kept, and one that was made while there were few
/// must not read all of them later. So each is found by an index, and an OFFSET 0 keeps a query from being joined
/// otherwise.
const BY_INDEX: &str = "
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off SET enable_material = off";

/// What is installed.
pub struct Options {
    /// The broker's own login.
    pub login: Ident,
    /// Its password; absent: it stays as it is.
    pub verifier: Option<ScramVerifier>,
    /// Group roles that logins may be made of.
    pub groups: Vec<Ident>,
    /// Makes those of them that are not there, as NOLOGIN roles without any right.
    pub make_groups: bool,
    /// Logins of somebody's that may be lent to tasks.
    pub static_roles: Vec<Ident>,
    /// Where the schema with the fence goes; made if it is not there.
    pub admin_database: Ident,
    /// Every database where a login may own something.
    pub databases: Vec<Ident>,
}

/// Who installs, and where.
pub struct Admin {
    /// The server.
    pub address: Address,
    /// A superuser, or whoever may make roles and databases.
    pub user: String,
    /// Its password, if it needs one.
    pub password: Option<Secret>,
    /// A database to begin in, such as `postgres`.
    pub database: String,
    /// How it is known that it is the right server.
    pub tls: Tls,
}

/// Why it was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The options do not fit together.
    #[error("{0}")]
    Options(String),
    /// Nobody answers there, or no longer, or not so that it can be trusted.
    #[error("{0}")]
    Unreachable(String),
    /// The server answers, and does not let this user in.
    #[error("{0}")]
    Unauthorized(String),
    /// The server refused a statement; the database it was in is as before.
    #[error("database {database}: {why}")]
    Statement {
        /// Where.
        database: String,
        /// What the server said.
        why: String,
        /// It takes a right that this user does not have.
        is_denied: bool,
    },
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Which server.
    pub host: String,
    /// Its version, as it says it.
    pub server: String,
    /// Databases, the one with the fence first.
    pub databases: Vec<String>,
}

/// Statements for one database.
struct Section {
    /// None is where we are.
    database: Option<String>,
    /// Gives a statement to run, or nothing: what a transaction cannot do.
    first: Option<String>,
    /// One transaction.
    sql: String,
}

/// As a script for `psql`, to be started in any database as a superuser.
///
/// # Errors
/// [`InstallError::Options`].
pub fn install_sql(options: &Options) -> Result<String, InstallError> {
    let mut script = format!(
        "-- Ephor's schema, version {SCHEMA_VERSION}. For psql, as a superuser or as whoever may make roles:\n\
         --   psql -v ON_ERROR_STOP=1 -f FILE 'postgres://ADMIN@HOST/postgres'\n\
         -- It may be run again.\n"
    );
    let pinned: String = PINNED
        .iter()
        .map(|(setting, value)| format!("SET {setting} = {value};\n"))
        .collect();
    script.push_str(&pinned);
    for section in sections(options)? {
        if let Some(database) = &section.database {
            script.push_str(&format!("\n\\connect {}\n{pinned}", quoted(database)));
        }
        if let Some(first) = &section.first {
            script.push_str(&format!("\n{first}\n\\gexec\n"));
        }
        script.push_str(&format!("\nBEGIN;\n{}\nCOMMIT;\n", section.sql.trim_end()));
    }
    Ok(script)
}

/// Installs, all at once.
///
/// # Errors
/// [`InstallError`].
pub async fn install(
    admin: &Admin,
    options: &Options,
    tasks: &Tasks,
) -> Result<Installed, InstallError> {
    Install::begin(admin, options, tasks).await?.run().await
}

/// An installation whose administrator was let in. Nothing is made there before [`Self::run`]: whoever
/// must take it back knows from then on that there can be something.
pub struct Install<'a> {
    admin: &'a Admin,
    options: &'a Options,
    tasks: &'a Tasks,
    sections: Vec<Section>,
    client: Client,
    server: String,
}

impl<'a> Install<'a> {
    /// Connects, and reads the server's version.
    ///
    /// # Errors
    /// [`InstallError`], with nothing made.
    pub async fn begin(
        admin: &'a Admin,
        options: &'a Options,
        tasks: &'a Tasks,
    ) -> Result<Self, InstallError> {
        let sections = sections(options)?;
        let client = connect_to(admin, &admin.database, tasks).await?;
        let server = texts(&client, "SHOW server_version").await;
        let server = server.map_err(|why| failed(&admin.database, &why))?;
        Ok(Self {
            admin,
            options,
            tasks,
            sections,
            client,
            server: server.into_iter().next().unwrap_or_default(),
        })
    }

    /// Installs.
    ///
    /// # Errors
    /// [`InstallError`].
    pub async fn run(self) -> Result<Installed, InstallError> {
        let Self { admin, options, .. } = self;
        let mut client = self.client;
        let mut current = admin.database.clone();
        for section in self.sections {
            if let Some(database) = &section.database {
                client = connect_to(admin, database, self.tasks).await?;
                current.clone_from(database);
            }
            let done = uncrossed(&client, async || section.run(&client).await).await;
            done.map_err(|why| failed(&current, &why))?;
        }
        let databases = std::iter::once(&options.admin_database).chain(&options.databases);
        Ok(Installed {
            host: admin.address.to_string(),
            server: self.server,
            databases: databases.map(|name| name.as_str().to_owned()).collect(),
        })
    }
}

async fn connect_to(admin: &Admin, database: &str, tasks: &Tasks) -> Result<Client, InstallError> {
    let mut config = Config::new();
    config.user(&admin.user).dbname(database);
    config.application_name("ephor target");
    let pinned = PINNED.map(|(setting, value)| format!(" -c {setting}={value}"));
    config.options(format!(
        "-c client_min_messages=warning -c statement_timeout=60s{}",
        pinned.concat()
    ));
    if let Some(password) = &admin.password {
        config.password(password.expose());
    }
    match &admin.address {
        Address::Tcp { host, port } => config.host(host.as_str()).port(*port),
        Address::Socket { dir, port } => config.host_path(dir).port(*port),
    };
    let tried = Tried {
        target: "",
        host: &admin.address,
        user: &admin.user,
        database,
        absent: None,
    };
    let away = |why: String| InstallError::Unreachable(format!("{tried}: {why}"));
    let opened = connected(&config, &admin.address, &admin.tls, tasks);
    let opened = timeout(limits::PG_CONNECT, opened).await;
    let opened = opened.map_err(|_| away(format!("no answer within {:?}", limits::PG_CONNECT)))?;
    opened.map_err(|why| match why {
        NotConnected::Tls(why) => away(why),
        NotConnected::Server(why) => not_let_in(not_connected(&tried, &why)),
    })
}

/// Whether the server answered is all that matters here.
fn not_let_in(failed: Failed) -> InstallError {
    match failed {
        Failed::Unreachable { why, .. }
        | Failed::Busy { why, .. }
        | Failed::Unknown { why, .. }
        | Failed::Fenced { why, .. }
        | Failed::TooLate { why, .. } => InstallError::Unreachable(why),
        Failed::Unauthorized { why, .. }
        | Failed::Refused { why, .. }
        | Failed::NotAllowed { why, .. }
        | Failed::Taken { why, .. }
        | Failed::NotPrimary { why, .. }
        | Failed::Missing { what: why, .. } => InstallError::Unauthorized(why),
    }
}

/// Does it, and again as long as somebody else who installs or removes the same gets in its way.
///
/// # Errors
/// Those of `work`.
pub async fn uncrossed(
    client: &Client,
    work: impl AsyncFn() -> Result<(), tokio_postgres::Error>,
) -> Result<(), tokio_postgres::Error> {
    for _ in 1..limits::PG_INSTALL_ATTEMPTS {
        match work().await {
            Err(why) if is_crossed(&why) => {
                client.batch_execute("ROLLBACK").await?;
                tokio::time::sleep(limits::PG_INSTALL_PAUSE).await;
            }
            done => return done,
        }
    }
    work().await
}

impl Section {
    async fn run(&self, client: &Client) -> Result<(), tokio_postgres::Error> {
        if let Some(first) = &self.first {
            for statement in texts(client, first).await? {
                client.batch_execute(&statement).await?;
            }
        }
        let all = format!("BEGIN;\n{}\nCOMMIT;", self.sql);
        client.batch_execute(&all).await
    }
}

/// The first column of every row.
async fn texts(client: &Client, sql: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    let answer = client.simple_query(sql).await?;
    let text = |message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        // The library's enum may grow; rows are all that is asked for.
        _ => None,
    };
    Ok(answer.into_iter().filter_map(text).collect())
}

/// Without a word of the server, the connection is gone.
fn failed(database: &str, why: &tokio_postgres::Error) -> InstallError {
    let said = words(why);
    match why.as_db_error() {
        Some(error) => InstallError::Statement {
            database: database.to_owned(),
            why: said,
            is_denied: *error.code() == SqlState::INSUFFICIENT_PRIVILEGE,
        },
        None => InstallError::Unreachable(format!("database {database}: {said}")),
    }
}

fn sections(options: &Options) -> Result<Vec<Section>, InstallError> {
    if options.databases.is_empty() {
        return Err(InstallError::Options(
            "name at least one database that logins are for".to_owned(),
        ));
    }
    if options.databases.contains(&options.admin_database) {
        return Err(InstallError::Options(format!(
            "{} is for the broker alone; logins need another database",
            options.admin_database
        )));
    }
    let admin = options.admin_database.as_str();
    let mut all = vec![
        Section {
            database: None,
            first: None,
            sql: roles(options),
        },
        Section {
            database: None,
            first: Some(format!(
                "SELECT {} WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = {});",
                literal(&format!("CREATE DATABASE {}", quoted(admin))),
                literal(admin)
            )),
            sql: connect(options, admin, true),
        },
        Section {
            database: Some(admin.to_owned()),
            first: None,
            sql: filled(ADMIN, options) + &filled(STATIC, options) + &filled(STATIC_IN, options),
        },
    ];
    for database in &options.databases {
        let mut sql = connect(options, database.as_str(), false);
        sql.push_str(&filled(MEMBER, options));
        all.push(Section {
            database: Some(database.as_str().to_owned()),
            first: None,
            sql,
        });
    }
    all.push(Section {
        database: None,
        first: None,
        sql: DONE.to_owned(),
    });
    Ok(all)
}

fn connect(options: &Options, database: &str, alone: bool) -> String {
    let (database, login) = (quoted(database), options.login.quoted());
    let mut sql = String::new();
    if alone {
        sql.push_str(&format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC;\n"));
    }
    sql.push_str(&format!(
        "GRANT CONNECT ON DATABASE {database} TO {login};\n"
    ));
    sql
}

fn roles(options: &Options) -> String {
    let password = options.verifier.as_ref().map_or(String::new(), |verifier| {
        let verifier = literal(verifier.expose());
        format!("ALTER ROLE {} PASSWORD {verifier};", options.login.quoted())
    });
    let group = |group: &Ident| {
        let make = match options.make_groups {
            true => format!(
                "DO $ephor$ BEGIN\n    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {}) THEN\n        \
                 EXECUTE format('CREATE ROLE %I NOLOGIN', {});\n    END IF;\nEND $ephor$;\n",
                literal(group.as_str()),
                literal(group.as_str())
            ),
            false => String::new(),
        };
        make + &filled(GROUP, options).replace("@group_text@", &literal(group.as_str()))
    };
    let lent =
        |role: &Ident| filled(STATIC_ROLE, options).replace("@role_text@", &literal(role.as_str()));
    let mut groups: String = options.groups.iter().map(group).collect();
    groups.extend(options.static_roles.iter().map(lent));
    filled(ROLES, options)
        .replace("@password@", &password)
        .replace("@groups@", &groups)
}

/// A piece with the names in it. Names come last, so that none can bring a placeholder.
fn filled(piece: &str, options: &Options) -> String {
    let allow = |group: &Ident| {
        let name = literal(group.as_str());
        format!("INSERT INTO ephor.allowed (role) VALUES ({name}) ON CONFLICT DO NOTHING;\n")
    };
    let allowed: String = options.groups.iter().map(allow).collect();
    let lend = |role: &Ident| {
        let name = literal(role.as_str());
        format!(
            "INSERT INTO ephor.static_role (role) VALUES ({name}) ON CONFLICT DO NOTHING;\n\
             DO $ephor$\nDECLARE\n    found record;\nBEGIN\n    \
             SELECT * INTO found FROM ephor.why_not_lent({name});\n    IF found.why IS NOT NULL THEN\n        \
             RAISE '%', found.why USING HINT = found.mend;\n    END IF;\nEND\n$ephor$;\n"
        )
    };
    let lent: String = options.static_roles.iter().map(lend).collect();
    piece
        .replace("@beyond@", BEYOND)
        .replace("@owned@", OWNED)
        .replace(" @by_index@", BY_INDEX)
        .replace("@version@", &SCHEMA_VERSION.to_string())
        .replace("@login_text@", &literal(options.login.as_str()))
        .replace("@login@", &options.login.quoted())
        .replace("@allowed@", &allowed)
        .replace("@static@", &lent)
}
