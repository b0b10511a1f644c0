//! A server with Ephor's schema, a target at it, and a census that is not ours.

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use ephor_crypto::scram::{ScramVerifier, password};
use ephor_crypto::{Secret, random};
use ephor_proto::id::CredentialId;
use ephor_proto::postgres::Address;
use ephor_proto::time::{Clock, UnixMillis};
use ephor_testkit::postgres::{Cluster, Options as ClusterOptions};

use crate::clock::SystemClock;
use crate::kind::postgres::*;
use crate::tasks::Tasks;

pub(super) const EPOCH: u32 = 3;

/// A server, and what `target init` was told.
pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) tasks: Tasks,
}

/// A login and its password.
pub(super) struct Out {
    pub(super) login: Login,
    pub(super) password: Secret,
    pub(super) oid: u32,
}

impl Out {
    pub(super) fn name(&self) -> &str {
        self.login.role.as_str()
    }

    pub(super) fn pair(&self) -> (&str, &str) {
        (self.name(), self.password.expose_str().unwrap())
    }

    pub(super) fn ending(&self) -> Ending {
        Ending {
            credential: self.login.credential,
            role: self.login.role.clone(),
            reassign: None,
        }
    }
}

pub(super) fn ident(text: &str) -> Ident {
    Ident::parse(text).unwrap()
}

pub(super) fn now() -> u64 {
    SystemClock.wall().as_millis()
}

pub(super) fn options(password: Option<&Secret>) -> Options {
    Options {
        login: ident("ephor"),
        verifier: password.map(|p| ScramVerifier::new(p, 4096.try_into().unwrap()).unwrap()),
        groups: vec![ident("orders_rw"), ident("orders_ro")],
        make_groups: true,
        static_roles: Vec::new(),
        admin_database: ident("ephor"),
        databases: vec![ident("orders"), ident("billing")],
    }
}

/// Shared by the tests that leave the server as it is. It ends with the process.
pub(super) fn shared() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        // A runtime of its own: the caller is inside one.
        let made = std::thread::spawn(|| World::make(&ClusterOptions::default()));
        made.join().unwrap()
    })
}

impl World {
    /// Blocking: for threads without a runtime.
    pub(super) fn make(cluster: &ClusterOptions) -> Self {
        let cluster = Cluster::with(cluster).unwrap();
        cluster
            .psql(
                "postgres",
                "create database orders; create database billing; create database other",
            )
            .unwrap();
        let world = Self {
            cluster,
            tasks: Tasks::new(),
        };
        world.set_password("first");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let tasks = Tasks::new();
            let secret = Secret::from_string("first".to_owned());
            install(&world.admin(), &options(Some(&secret)), &tasks)
                .await
                .unwrap();
        });
        let migrations = "grant all on schema public to orders_rw; create table t (n int);
            grant all on t to orders_rw; grant select on t to orders_ro";
        for database in ["orders", "billing"] {
            world.cluster.psql(database, migrations).unwrap();
        }
        world
    }

    pub(super) async fn own(cluster: ClusterOptions) -> Self {
        let made = tokio::task::spawn_blocking(move || Self::make(&cluster));
        made.await.unwrap()
    }

    /// The superuser, by the socket.
    pub(super) fn admin(&self) -> Admin {
        Admin {
            address: Address::of(
                self.cluster.socket_dir().to_str().unwrap(),
                self.cluster.port(),
            )
            .unwrap(),
            user: "postgres".to_owned(),
            password: None,
            database: "postgres".to_owned(),
            tls: Tls::Off,
        }
    }

    pub(super) fn password_file(&self) -> PathBuf {
        // Goes with the server, which may be a static that is never dropped.
        self.cluster.socket_dir().join("password")
    }

    pub(super) fn set_password(&self, text: &str) {
        let text = format!("{text}\n");
        crate::files::replace(
            &self.password_file(),
            text.as_bytes(),
            crate::files::PRIVATE,
        )
        .unwrap();
    }

    pub(super) fn access(&self) -> Access {
        Access {
            name: "orders".to_owned(),
            installation: crate::kind::name::installation_part("test"),
            hosts: vec![Address::of("127.0.0.1", self.cluster.port()).unwrap()],
            user: "ephor".to_owned(),
            password: Password::File(self.password_file()),
            admin_database: ident("ephor"),
            databases: vec![ident("orders"), ident("billing")],
            standbys: Vec::new(),
            tls: Tls::Off,
            connections: 8,
        }
    }

    pub(super) fn target(&self) -> Target {
        Target::new(self.access(), &self.tasks)
    }

    /// Makes a login of `orders_rw` for a minute.
    pub(super) async fn mint(&self, target: &Target) -> Out {
        let (login, secret) = login(&["orders_rw"]);
        let verifier = verifier(&secret);
        let minted = target.mint(EPOCH, &login, Some(&verifier)).await.unwrap();
        Out {
            login,
            password: secret,
            oid: minted.oid,
        }
    }

    /// Nothing of it can act: no role, no session, shown or hidden, and its password is refused.
    pub(super) fn assert_dead(&self, out: &Out) {
        let question = format!(
            "select count(*) from pg_roles where oid = {oid} or rolname = '{name}';
             select count(*) from pg_stat_activity where usesysid = {oid};
             select count(*) from pg_shdepend where refobjid = {oid};",
            oid = out.oid,
            name = out.name()
        );
        let found = self.cluster.psql("postgres", &question).unwrap();
        assert_eq!(found, "0\n0\n0", "{}", out.name());
        let refused = self
            .cluster
            .psql_as(out.pair(), "orders", "select 1")
            .unwrap_err();
        assert!(
            refused.to_string().contains("authentication failed"),
            "{refused}"
        );
    }

    /// Lets the group make schemas. One at a time: the server refuses two changes of one database.
    pub(super) fn allow_schemas(&self) {
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap();
        for database in ["orders", "billing"] {
            let grant = format!("grant create on database {database} to orders_rw");
            self.cluster.psql(database, &grant).unwrap();
        }
    }

    pub(super) fn ask(&self, sql: &str) -> String {
        self.cluster.psql("orders", sql).unwrap()
    }
}

pub(super) fn verifier(secret: &Secret) -> ScramVerifier {
    // Few, so that tests are fast; the form is the same.
    ScramVerifier::new(secret, 16.try_into().unwrap()).unwrap()
}

pub(super) fn login(groups: &[&str]) -> (Login, Secret) {
    let credential = CredentialId::from_parts(now(), random::bytes().unwrap());
    let login = Login {
        credential,
        role: RoleName::parse(&crate::kind::name::make(
            "orders-db",
            "test",
            random::bytes().unwrap(),
        ))
        .unwrap(),
        groups: groups.iter().map(|group| ident(group)).collect(),
        database: ident("orders"),
        valid_until: UnixMillis::from_millis(now() + 60_000),
        connection_limit: Some(20),
        settings: vec![("statement_timeout".to_owned(), "30s".to_owned())],
        deadline: UnixMillis::from_millis(now() + 10_000),
    };
    (login, password().unwrap())
}
