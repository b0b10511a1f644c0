//! A PostgreSQL server of a scenario's own, made a target: what `ephor target init` does, by its library.

use anyhow::Context;
use ephor_broker::kind::name;
use ephor_broker::kind::postgres::{Access, Admin, Ident, Options, Password, Target, Tls, install};
use ephor_broker::tasks::Tasks;
use ephor_crypto::scram::ScramVerifier;
use ephor_proto::postgres::Address;
use ephor_testkit::postgres::Cluster;

/// In the names of logins that a scenario makes without a broker.
pub const INSTALLATION: &str = "loadtest";

/// Of the broker that a scenario stands in for.
pub const EPOCH: u32 = 1;
/// What a login is good for, in milliseconds; the server refuses more than 90 days.
pub const LIFE: u64 = 3_600_000;

/// What is there after [`prepare`].
pub struct Prepared {
    address: Address,
    options: Options,
}

/// Makes the databases, which must not be there, and one as a target; login `ephor` has this password,
/// or none.
pub async fn prepare(
    cluster: &Cluster,
    (group, databases): (&str, &[&str]),
    verifier: Option<ScramVerifier>,
    tasks: &Tasks,
) -> anyhow::Result<Prepared> {
    for database in databases {
        cluster.psql("postgres", &format!("CREATE DATABASE {database}"))?;
    }
    let socket = cluster.socket_dir().to_str().context("socket")?;
    let address = Address::of(socket, cluster.port())?;
    let databases = databases.iter().map(|name| Ident::parse(name));
    let options = Options {
        login: Ident::parse("ephor")?,
        verifier,
        groups: vec![Ident::parse(group)?],
        make_groups: true,
        static_roles: Vec::new(),
        admin_database: Ident::parse("ephor")?,
        databases: databases.collect::<Result<_, _>>()?,
    };
    let admin = Admin {
        address: address.clone(),
        user: "postgres".to_owned(),
        password: None,
        database: "postgres".to_owned(),
        tls: Tls::Off,
    };
    install(&admin, &options, tasks).await?;
    Ok(Prepared { address, options })
}

impl Prepared {
    /// The broker's library, connected as `ephor`, which the server must let in without a password.
    pub fn library(self, connections: usize, tasks: &Tasks) -> Target {
        let access = Access {
            name: "orders".to_owned(),
            installation: name::installation_part(INSTALLATION),
            hosts: vec![self.address],
            user: "ephor".to_owned(),
            password: Password::None,
            admin_database: self.options.admin_database,
            databases: self.options.databases,
            standbys: Vec::new(),
            tls: Tls::Off,
            connections,
        };
        Target::new(access, tasks)
    }
}
