//! Another target: a server of its own behind a relay that, from a word on, keeps each answer for
//! 30 s, as a server does whose every statement hangs.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use anyhow::{Context, ensure};
use ephor_broker::tasks::Tasks;
use ephor_crypto::scram::{ScramVerifier, password};
use ephor_testkit::postgres::{Cluster, Options as ClusterOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::stock::{Held, gather};
use crate::clock::Moment;
use crate::fixture::Fixture;
use crate::target;

/// What each answer is kept for.
const HANGS: Duration = Duration::from_secs(30);
/// How long all may take to be dead once answers come again.
const RECOVERS: Duration = Duration::from_secs(90);
const ENTITLEMENT: &str = "stuck-db";
const GROUP: &str = "stuck_rw";
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap();

/// See the module.
pub struct Stuck {
    cluster: Cluster,
    hangs: watch::Sender<bool>,
}

impl Stuck {
    /// A prepared server, its relay, and the policy that names it.
    pub async fn prepare(fixture: &Fixture) -> anyhow::Result<Self> {
        let cluster = Cluster::with(&ClusterOptions::default())?;
        let secret = password()?;
        let verifier = Some(ScramVerifier::new(&secret, ITERATIONS)?);
        let tasks = Tasks::new();
        target::prepare(&cluster, (GROUP, &["orders"]), verifier, &tasks).await?;
        tasks.shutdown(Duration::from_secs(1)).await;
        let file = fixture.target_secrets().join("target-stuck");
        let mut file = std::fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(file)?;
        file.write_all(secret.expose())?;
        let policy = fixture.policy()?;
        // The port is one that the broker may reach already.
        let port = port_of(&policy)?;
        let relay = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port));
        let (hangs, word) = watch::channel(false);
        let listener = TcpListener::bind(relay).await?;
        tokio::task::spawn_local(serve(listener, cluster.port(), word));
        fixture
            .apply(&(policy.clone() + &with(&policy, relay)?))
            .await?;
        Ok(Self { cluster, hangs })
    }

    /// Tasks that hold a login there.
    pub async fn gather(&self, fixture: &Fixture, count: usize) -> anyhow::Result<Vec<Held>> {
        gather(fixture, ENTITLEMENT, count, false).await
    }

    /// From now on nothing is answered in time; and these tasks end.
    pub async fn hang(&self, held: Vec<Held>) -> anyhow::Result<()> {
        self.hangs.send_replace(true);
        for mut one in held {
            one.process.start_kill()?;
            one.process.wait().await?;
        }
        Ok(())
    }

    /// Answers come again: all that waited is ended now, and nothing was before.
    pub async fn let_go(&self, count: usize) -> anyhow::Result<()> {
        let ours = "SELECT count(*) FROM pg_roles WHERE rolname ~ '^eph_'";
        let left = self.cluster.psql("postgres", ours)?;
        ensure!(
            left == count.to_string(),
            "{left} of {count} logins are left at a target that hangs"
        );
        self.hangs.send_replace(false);
        let start = Moment::now();
        while self.cluster.psql("postgres", ours)? != "0" {
            ensure!(
                start.elapsed() < RECOVERS,
                "logins are left at a target that answers again"
            );
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }
}

fn port_of(policy: &str) -> anyhow::Result<u16> {
    let port = policy.lines().find_map(|line| {
        let rest = line.split_once("@127.0.0.1:")?.1;
        rest.split('/').next()?.parse().ok()
    });
    port.context("the policy of `ephor dev --pg` has no target on loopback")
}

/// What the policy of `ephor dev --pg` gets for the other target.
fn with(policy: &str, at: SocketAddr) -> anyhow::Result<String> {
    let who = policy
        .lines()
        .find_map(|line| line.strip_prefix("who     = "));
    let who = who.context("the policy of `ephor dev --pg` has no entitlement")?;
    Ok(format!(
        "\n[target.stuck]\nowner = \"team:dev\"\n\
         postgres = {{ url = \"postgres://ephor@{at}/orders\", tls = \"off\" }}\n\
         [entitlement.{ENTITLEMENT}]\nowner = \"team:dev\"\npurpose = \"To hang\"\nwho = {who}\n\
         gives = [{{ postgres = {{ target = \"stuck\", role = \"{GROUP}\" }} }}]\n"
    ))
}

async fn serve(listener: TcpListener, port: u16, hangs: watch::Receiver<bool>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else {
            continue;
        };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let (_, never) = watch::channel(false);
        // Of each question the server hears at once; of its answer nobody, for so long.
        tokio::task::spawn_local(relay(from_client, to_server, never));
        tokio::task::spawn_local(relay(from_server, to_client, hangs.clone()));
    }
}

async fn relay(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut hangs: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => {
                if *hangs.borrow() {
                    // Over when the time is, or everybody is let go.
                    let _ = timeout(HANGS, hangs.wait_for(|hangs| !hangs)).await;
                }
                if to
                    .write_all(buffer.get(..read).unwrap_or_default())
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
    }
}
