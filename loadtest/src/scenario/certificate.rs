//! Task exit → handshake refused and open connection closed: from `kill -9` of a process to the
//! end of what a thief does with a copy of its certificate, at a server of the `client` crate.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ephor_client::{Agent, Identity, Incoming, Listener, Peers};
use ephor_crypto::Secret;
use ephor_crypto::p256::SigningKey;
use ephor_crypto::tls::{
    CertificateSlot, Peer, PinnedCa, TrustStore, certified_key, client_config,
};
use ephor_crypto::x509::CaCertificate;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::{JoinSet, LocalSet};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Finding, Target};
use crate::args::Run;
use crate::client::{Call, Connection};
use crate::clock::Moment;
use crate::fixture::Fixture;
use crate::measure::Collector;

/// Between the start of a task and its kill.
const LIFE: Duration = Duration::from_secs(2);
/// Between two handshakes of a thief: what is measured is at most this too long.
const POLL: Duration = Duration::from_millis(20);
/// A certificate that still works after this is a failure.
const GIVE_UP: Duration = Duration::from_secs(10);
/// The promise, in milliseconds.
const BOUND_MS: f64 = 1000.0;

/// A steady stream of tasks; each is killed two seconds after its start.
pub async fn run(run: &Run) -> anyhow::Result<Finding> {
    let fixture = Rc::new(Fixture::start(&run.ephor).await?);
    let identity = Identity::start(&Agent::at(fixture.socket()?)).await?;
    let id = identity.status().id;
    let peers = Peers::trust_domain(id.trust_domain().as_str())?;
    let listener = Listener::bind(("127.0.0.1", 0), &identity, peers, &[]).await?;
    let service: Rc<(SocketAddr, String)> = Rc::new((listener.local_addr()?, id.to_string()));
    let local = LocalSet::new();
    let serving = local.spawn_local(serve(listener));
    let start = Moment::now();
    let gap = Duration::from_secs_f64(1.0 / run.task_rate as f64);
    let running: Vec<_> = (0..run.tasks)
        .map(|number| {
            let (fixture, service) = (Rc::clone(&fixture), Rc::clone(&service));
            let begin = start.after(gap.mul_f64(number as f64));
            local.spawn_local(async move { one(&fixture, &service, begin).await })
        })
        .collect();
    let (mut refused, mut closed) = (Collector::new()?, Collector::new()?);
    local
        .run_until(async {
            for task in running {
                let (refused_after, closed_after) = task.await??;
                refused.add(refused_after);
                closed.add(closed_after);
            }
            anyhow::Ok(())
        })
        .await?;
    serving.abort();
    drop((local, identity));
    let (refused, closed) = (refused.latency(), closed.latency());
    Rc::into_inner(fixture)
        .context("the fixture is still in use")?
        .stop()
        .await?;
    let at_most = |what, latency: &crate::measure::Latency| {
        Target::at_most(what, BOUND_MS, latency.p99_us as f64 / 1000.0)
    };
    Ok(Finding {
        scenario: "certificate",
        targets: vec![
            at_most("task exit to handshake refused, p99 ms", &refused),
            at_most("task exit to open connection closed, p99 ms", &closed),
        ],
        detail: json!({
            "tasks": run.tasks, "per_second": run.task_rate,
            "handshake_refused": refused, "connection_closed": closed,
        }),
    })
}

/// A byte for everybody who may come in, and then nothing until one side ends it.
async fn serve(listener: Listener) {
    let mut connections = JoinSet::new();
    loop {
        if let Ok(incoming) = listener.accept().await {
            connections.spawn(greet(incoming));
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn greet(incoming: Incoming) {
    let Ok(mut connection) = incoming.handshake().await else {
        return;
    };
    if connection.write_all(b"x").await.is_ok() && connection.flush().await.is_ok() {
        let _ = connection.read(&mut [0]).await;
    }
}

/// How long one task's certificate and connection lived on.
async fn one(
    fixture: &Fixture,
    service: &(SocketAddr, String),
    begin: Moment,
) -> anyhow::Result<(Duration, Duration)> {
    tokio::time::sleep(begin.remaining()).await;
    let mut holder = Command::new(std::env::current_exe()?)
        .arg("__hold-certificate")
        .arg(fixture.socket()?)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(holder.stdout.take().context("no standard output")?).lines();
    let answer = lines.next_line().await?;
    let thief = thief(
        &answer.context("the holder got no certificate")?,
        &service.1,
    )?;
    let mut open = call(&thief, service.0)
        .await
        .context("a fresh certificate is refused")?;
    tokio::time::sleep(begin.after(LIFE).remaining()).await;
    let killed = Moment::now();
    holder.start_kill()?;
    let closed = async {
        // Nothing more is ever sent: whatever ends this is the end.
        let _ = tokio::time::timeout(GIVE_UP, open.read(&mut [0])).await;
        killed.elapsed()
    };
    let refused = async {
        while call(&thief, service.0).await.is_ok() && killed.elapsed() < GIVE_UP {
            tokio::time::sleep(POLL).await;
        }
        killed.elapsed()
    };
    let (refused, closed) = tokio::join!(refused, closed);
    if refused.max(closed) >= GIVE_UP {
        bail!("a certificate still works {GIVE_UP:?} after its task was killed");
    }
    holder.wait().await?;
    Ok((refused, closed))
}

/// What somebody else makes of a copy.
fn thief(answer: &str, service: &str) -> anyhow::Result<TlsConnector> {
    let answer: serde_json::Value = serde_json::from_str(answer)?;
    let text = |name: &str| {
        let text = answer
            .get("certificate")
            .and_then(|all| all.get(name)?.as_str());
        text.with_context(|| format!("the answer has no {name}"))
    };
    let chain = CertificateDer::pem_slice_iter(text("chain")?.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>()?;
    let chain: Vec<&[u8]> = chain.iter().map(|der| &**der).collect();
    let key = PrivatePkcs8KeyDer::from_pem_slice(text("private_key")?.as_bytes())?;
    let key = SigningKey::from_pkcs8(&Secret::new(key.secret_pkcs8_der().to_vec()))?;
    let slot = CertificateSlot::new(certified_key(&chain, Arc::new(key)));
    let trust = TrustStore::new(CaCertificate::all_from_pem(text("bundle")?)?);
    let servers = PinnedCa::new(Arc::new(trust), Peer::spiffe_id(service));
    let config = client_config(Arc::new(servers), Some(Arc::new(slot)), &[])?;
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A connection that the server has greeted.
async fn call(thief: &TlsConnector, service: SocketAddr) -> anyhow::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(service).await?;
    let name = Peer::spiffe_id("").server_name();
    let mut stream = thief.connect(name, tcp).await?;
    stream.read_exact(&mut [0]).await?;
    Ok(stream)
}

/// The process that is killed: fetches its certificate, prints it, waits.
pub async fn hold(socket: &Path) -> anyhow::Result<()> {
    let mut connection = Connection::unix(socket).await?;
    let body = connection.call(&Call::get("/v1/certificate")).await?;
    crate::host::print(std::str::from_utf8(&body)?)?;
    std::future::pending().await
}
