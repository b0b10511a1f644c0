//! `ephor dev --pg URL`: database logins on a laptop, without a policy file. What `ephor target init` would
//! put into the server goes there as the URL's user, with a login for this broker alone, which is
//! removed at the end with whatever it made: see [`Keeper`].

mod clean; //    at the server
mod keeper; //   the process that does it, however we end
mod listener; // whether loopback is the same server

use ephor_broker::kind::postgres::{Ident, Options, uncrossed};
use ephor_crypto::Secret;
use ephor_crypto::scram::{self, ScramVerifier};
use ephor_proto::postgres::Address;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use super::layout::Layout;
use crate::exit::{DENIED, Failure, UNREACHABLE};
use crate::postgres::Target;
use crate::show::to_stderr;

pub use keeper::{Keeper, keeper_main};

/// The entitlement of the built-in policy that gives a login.
pub const ENTITLEMENT: &str = "dev-db";
/// The target of the built-in policy.
const TARGET: &str = "dev";
/// Where the broker reads its password.
const SECRET_FILE: &str = "target-dev";
/// The group role that logins are made of.
const GROUP: &str = "ephor_dev";
/// Where the schema goes, as `ephor target init` has it.
const ADMIN_DATABASE: &str = "ephor";
/// Rounds of the broker's own verifier: its password has 256 random bits.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap();
/// Names the broker's login; there as long as it may be at its server.
pub const LOGIN_FILE: &str = "pg.login";
/// Longest statement of ours; and nothing that others put into the database stands in for the server's own
/// functions and operators, because it would run with this user's rights.
const OPTIONS: &str = "-c statement_timeout=30s -c client_min_messages=warning \
    -c search_path=pg_catalog -c standard_conforming_strings=on";

/// A server that is prepared for one installation.
pub struct Database {
    server: Target,
    login: String,
    address: Address,
    tls: Option<PathBuf>,
}

impl Database {
    /// Prepares the server; its login is [`login_name`]'s. `before` is called before the first thing is made
    /// there: whatever is made is for the caller to take back.
    ///
    /// # Errors
    /// When it cannot be reached, or its user may not do that.
    pub async fn prepare(
        server: Target,
        login: String,
        layout: &Layout,
        before: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let (_, ca) = server.verified()?;
        let random = |why: &dyn std::fmt::Display| Failure::local("cannot make a password", why);
        let password = scram::password().map_err(|why| random(&why))?;
        let verifier = ScramVerifier::new(&password, ITERATIONS).map_err(|why| random(&why))?;
        let options = Options {
            login: ident(&login)?,
            verifier: Some(verifier),
            groups: vec![ident(GROUP)?],
            make_groups: true,
            static_roles: Vec::new(),
            admin_database: ident(ADMIN_DATABASE)?,
            databases: vec![ident(&server.database)?],
        };
        server.prepare(&options, before).await?;
        server
            .with(OPTIONS, async |client| {
                uncrossed(client, async || client.batch_execute(&rights()).await).await
            })
            .await?;
        let address = reachable(&server, &login, &password).await?;
        let secret = zeroize::Zeroizing::new(password.expose_str().unwrap_or_default().to_owned());
        let secrets = layout.make_target_secrets()?;
        layout.write(&secrets.join(SECRET_FILE), &secret)?;
        let tls = ca;
        Ok(Self {
            server,
            login,
            address,
            tls,
        })
    }

    /// Says what was done.
    pub fn announce(&self) {
        to_stderr(&format!(
            "ephor: logins at {} work as {GROUP}, which may do anything in database {}.\n",
            self.address, self.server.database
        ));
    }

    /// What the built-in policy says of it.
    pub fn policy(&self, path: &str) -> String {
        format!(
            "{}\n[entitlement.{ENTITLEMENT}]\nowner   = \"team:dev\"\npurpose = \"Local development\"\n\
             who     = [\"{path}\"]\ngives   = [{}]\n",
            self.table("team:dev"),
            self.give()
        )
    }

    /// An item of `gives`.
    pub fn give(&self) -> String {
        format!("{{ postgres = {{ target = \"{TARGET}\", role = \"{GROUP}\" }} }}")
    }

    /// `[target.…]`
    pub fn table(&self, owner: &str) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let url = match &self.address {
            Address::Tcp { .. } => format!(
                "postgres://{}@{}/{}",
                self.login,
                self.address,
                escaped(&self.server.database)
            ),
            Address::Socket { dir, port } => format!(
                "postgres://{}@/{}?host={}&port={port}",
                self.login,
                escaped(&self.server.database),
                escaped(dir)
            ),
        };
        let tls = match (&self.tls, &self.address) {
            (Some(ca), _) => format!(", ca_file = {}", quoted(&ca.display().to_string())),
            (None, Address::Socket { .. }) => String::new(),
            (None, Address::Tcp { .. }) => ", tls = \"off\"".to_owned(),
        };
        let url = quoted(&url);
        format!("\n[target.{TARGET}]\nowner    = \"{owner}\"\npostgres = {{ url = {url}{tls} }}\n")
    }
}

/// What the group may do: everything in the database of the URL, now and with what its user makes
/// later. What the URL's user may not give is left out.
fn rights() -> String {
    let group = quoted(GROUP);
    format!(
        "DO $$ DECLARE s text; k text; BEGIN \
           BEGIN EXECUTE format('GRANT ALL ON DATABASE %I TO {group}', current_database()); \
           EXCEPTION WHEN insufficient_privilege THEN NULL; END; \
           FOR s IN SELECT nspname FROM pg_namespace \
                    WHERE nspname NOT LIKE 'pg\\_%' AND nspname NOT IN ('information_schema', 'ephor') LOOP \
             BEGIN EXECUTE format('GRANT ALL ON SCHEMA %I TO {group}', s); \
             EXCEPTION WHEN insufficient_privilege THEN NULL; END; \
             FOREACH k IN ARRAY ARRAY['TABLES', 'SEQUENCES', 'ROUTINES'] LOOP \
               BEGIN EXECUTE format('GRANT ALL ON ALL %s IN SCHEMA %I TO {group}', k, s); \
               EXCEPTION WHEN insufficient_privilege THEN NULL; END; \
             END LOOP; \
           END LOOP; \
           FOREACH k IN ARRAY ARRAY['TABLES', 'SEQUENCES', 'ROUTINES'] LOOP \
             EXECUTE format('ALTER DEFAULT PRIVILEGES GRANT ALL ON %s TO {group}', k); \
           END LOOP; END $$;"
    )
}

/// Where a login with a password is let in. Debian's server lets nobody in by its socket but who has
/// the name of the role on the host; then by loopback, if it is the same server that listens there.
async fn reachable(server: &Target, login: &str, password: &Secret) -> Result<Address, Failure> {
    let try_at = async |address: &Address| {
        let as_login = server.of_login(address.clone(), login, password);
        let asked = as_login.with(OPTIONS, async |client| {
            client.batch_execute("SELECT 1").await
        });
        asked.await
    };
    let own = &server.address;
    let mut said = match try_at(own).await {
        Ok(()) => return Ok(own.clone()),
        Err(why) if why.code != DENIED => return Err(why),
        Err(why) => why.message,
    };
    if let Address::Socket { dir, port } = own {
        let loopback = Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: *port,
        };
        let socket = Path::new(dir).join(format!(".s.PGSQL.{port}"));
        let tried = match listener::is_of(&socket, *port).await {
            Ok(()) => try_at(&loopback).await.map_err(|why| why.message),
            Err(why) => Err(why),
        };
        match tried {
            Ok(()) => return Ok(loopback),
            Err(why) => said.push_str(&format!("\n{why}")),
        }
    }
    Err(Failure::denied(format!(
        "the server lets no login with a password in; pg_hba.conf needs a line such as\n  \
         host all all 127.0.0.1/32 scram-sha-256\n{said}"
    )))
}

/// The same login for a directory whose record names one that may still be there; else a new one.
pub fn login_name(layout: &Layout) -> Result<String, Failure> {
    if let Some(known) = recorded(layout.dir()) {
        return Ok(known);
    }
    let random: [u8; 4] =
        ephor_crypto::random::bytes().map_err(|why| Failure::local("cannot make a name", why))?;
    let random: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("ephor_broker_{random}"))
}

/// The login that may be at its server, by the record of it.
fn recorded(dir: &Path) -> Option<String> {
    let known = std::fs::read_to_string(login_file(dir)).ok()?;
    Some(known.trim_end().to_owned())
}

/// The record of a login, for a start after one that was killed.
fn login_file(dir: &Path) -> PathBuf {
    dir.join(LOGIN_FILE)
}

/// Takes back what starts that were killed left at this server, together with whoever kept it for them.
pub async fn take_back_stale(server: &Target) -> Result<(), Failure> {
    for (dir, lock) in super::layout::stale_with_login() {
        let login = recorded(&dir).unwrap_or_default();
        match clean::clean(server, &login).await {
            Ok(true) => {
                let _ = std::fs::remove_dir_all(&dir);
            }
            // Another server's stay until that one is named again.
            Ok(false) => {}
            // Whoever makes something there next says so, and what to do.
            Err(why) if why.code == UNREACHABLE => return Ok(()),
            Err(why) => return Err(why),
        }
        drop(lock);
    }
    Ok(())
}

fn ident(name: &str) -> Result<Ident, Failure> {
    Ident::parse(name).map_err(Failure::usage)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn escaped(text: &str) -> String {
    crate::words::query_escaped(text)
}
