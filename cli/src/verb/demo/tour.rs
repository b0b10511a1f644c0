//! The tour itself, in the order of the nine stages. A line is printed when its step held.

use std::time::Duration;

use ephor_crypto::Secret;
use ephor_proto::event::AuditEvent;
use ephor_proto::http::admin::Record;
use ephor_proto::http::agent::{Completed, Credentials};
use ephor_proto::id::TaskId;
use ephor_proto::log::{Receipt, Verified, VerifierKey, verify_receipt};
use ephor_proto::postgres::short_login;
use ephor_proto::time::UnixMillis;
use nix::sys::signal::SigSet;
use rustls::AlertDescription;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::app::{self, App};
use super::handshake::{Copy, Shaken};
use super::login::Stolen;
use super::scene::{AUDIENCE, Cast, PROGRAM};
use super::service::Service;
use super::stages::Stages;
use super::status_list::{Place, Verifier};
use super::tell::{aside, attested_line, fact, find, held, line, not_held, owner, stage, timed};
use crate::client::Peer;
use crate::clock::{self, Stopwatch};
use crate::exit::Failure;
use crate::verb::dev::Installation;
use crate::words::{span, time_of_day, took, took_finely};

/// Longest wait for a refusal: promise P2's "always".
const REFUSED_MAX: Duration = Duration::from_secs(5);
/// Longest wait for the receipt after that.
const RECEIPT_MAX: Duration = Duration::from_secs(5);
/// Between two tries.
const TRY_EVERY: Duration = Duration::from_millis(1);

/// What the closing lines need.
pub struct Seen {
    /// The task of the program.
    pub task: TaskId,
    /// Verifier key of the log.
    pub log_key: String,
}

/// Everything the steps share.
struct Tour<'a> {
    admin: Peer,
    agent: Peer,
    service: &'a Service,
    verifier: Verifier,
    log_key: VerifierKey,
    /// Whether there is a database.
    has_login: bool,
}

/// Copies of everything, in the wrong hands, and a connection made with them.
struct Thief {
    token: Secret,
    place: Place,
    certificate: Copy,
    open: Box<TlsStream<TcpStream>>,
    /// Where there is a database.
    login: Option<Stolen>,
}

/// Walks through it.
///
/// # Errors
/// The first step that did not hold.
pub async fn tour(
    installation: &Installation,
    cast: &Cast,
    service: &Service,
    mask: SigSet,
) -> Result<Seen, Failure> {
    let log_key = installation.broker().log_key.clone();
    let tour = Tour {
        admin: Peer::broker_at(installation.layout().admin_socket()),
        agent: Peer::agent_at(installation.layout().socket()),
        service,
        verifier: Verifier::new(&installation.broker().issuer, &service.keys().await?)?,
        log_key: log_key
            .parse()
            .map_err(|why| Failure::local("the log's key", why))?,
        has_login: installation.layout().has_target(),
    };
    let mut app = App::start(
        &cast.program,
        &installation.layout().socket(),
        service.ports(),
        AUDIENCE,
        mask,
    )?;
    stage(
        "request",
        &format!(
            "{PROGRAM} (pid {}) asks for {}a token and a certificate",
            app.pid(),
            if tour.has_login { "a login, " } else { "" },
        ),
        None,
    )?;
    let said = app.said().await?;
    let task = said.answer.task;
    let stages = Stages::parse(said.timing.as_deref().unwrap_or_default());
    let limit = tour.issued(&said.answer, stages).await?;
    let mut thief = tour.deliver(said).await?;

    aside(
        &format!("$ kill -9 {}", app.pid()),
        "no goodbye from the program",
    )?;
    let killed_at = clock::wall();
    let killed = Stopwatch::start();
    app.kill();
    tour.refused(&mut thief).await?;
    let refused = killed.elapsed();
    tour.ended(task, limit, killed_at, refused).await?;
    drop(app);
    Ok(Seen { task, log_key })
}

impl Tour<'_> {
    /// Attest, decide, approve, issue: from the audit log, where each was recorded first.
    /// Gives the time until which a verifier that never asks takes one of them.
    async fn issued(&self, answer: &Credentials, stages: Stages) -> Result<UnixMillis, Failure> {
        let records = self.records(answer.task).await?;
        let attested = find(&records, "attest.task_opened")?.1;
        let time = stages.attest.map(took_finely);
        stage("attest", &attested_line(&attested)?, time)?;
        let decided = find(&records, "decide.allowed")?.1;
        stage(
            "decide",
            &format!(
                "allowed by {}, owner {}",
                fact(&decided, "rule")?,
                owner(&decided)
            ),
            stages.decide.map(took_finely),
        )?;
        held(
            decided.approval.is_some(),
            "the decision has no approval on record",
        )?;
        stage("approve", "by rule; no person needed for these", None)?;
        let (leaf, _) = find(&records, "issue.recorded")?;
        stage(
            "issue",
            &format!("recorded first (leaf {leaf}), then made"),
            stages.issue.map(took_finely),
        )?;
        for credential in &answer.credentials {
            let recorded = records.iter().filter_map(|(_, event)| {
                let is_issue = event.event_type == "issue.recorded";
                event.credential.as_ref().filter(|_| is_issue)
            });
            let part = recorded.into_iter().find(|part| part.id == credential.id);
            let part =
                part.ok_or_else(|| not_held("another credential was recorded than delivered"))?;
            let life = span(part.issued_at, part.expires_at);
            let until = time_of_day(credential.expires_at);
            let (word, id) = match (&credential.certificate, &credential.login) {
                (Some(certificate), _) => (
                    "cert",
                    format!("serial {}", Copy::of(certificate)?.short_serial()),
                ),
                (None, Some(login)) => ("login", short_login(&login.user)),
                (None, None) => ("token", format!("jti {}", credential.id.short())),
            };
            line(&format!(
                "  {word:5}  {id:22}until {until} ({life}: {})",
                credential.capped_by
            ))?;
        }
        // A server asks at every connect; only what is signed is taken by who does not ask.
        let signed = answer.credentials.iter().filter(|one| one.login.is_none());
        let ends = signed.map(|one| one.expires_at);
        ends.max().ok_or_else(|| not_held("nothing was delivered"))
    }

    /// The program used them; the thief has copies, and they work.
    async fn deliver(&self, said: app::Said) -> Result<Thief, Failure> {
        let login = match app::login_of(&said.answer) {
            Some(login) => Some(Stolen::of(login).await?),
            None => None,
        };
        held(
            login.is_some() == self.has_login,
            "the program got no login for the database",
        )?;
        held(
            said.status == 200,
            &format!("the program's call was answered {}", said.status),
        )?;
        held(said.taken, "the program's mTLS handshake was refused")?;
        let mut answer = said.answer;
        let certificate = app::certificate_of(&answer)?;
        let token = answer
            .credentials
            .iter_mut()
            .find_map(|one| one.token.take())
            .unwrap_or_default();
        let place = self.verifier.place(&token, AUDIENCE)?;
        held(
            !self.verifier.is_listed(&place).await?,
            "the token was listed from the start",
        )?;
        let (port, tls_port) = self.service.ports();
        let copy = app::charge(port, &token).await?;
        held(
            copy == 200,
            &format!("the thief's copy was answered {copy} while the program lived"),
        )?;
        held(
            !certificate.is_listed().await?,
            "the certificate was listed from the start",
        )?;
        let Shaken::Taken(open) = certificate.shake(tls_port).await? else {
            return Err(not_held(
                "the thief's handshake was refused while the program lived",
            ));
        };
        let time = Duration::from_micros(said.asked_to_delivered_micros);
        let read = match said.rows {
            Some(rows) => format!("{rows} rows read, "),
            None => String::new(),
        };
        stage(
            "deliver",
            &format!("used: {read}1 call answered 200, 1 mTLS handshake"),
            // There is no room for both.
            said.rows.is_none().then(|| took(time)),
        )?;
        line(match &login {
            Some(_) => "the thief's copies work too; he keeps a session and a connection open",
            None => "the thief's copies work too; he keeps a connection open",
        })?;
        Ok(Thief {
            token: Secret::from_string(token),
            place,
            certificate,
            open,
            login,
        })
    }

    /// Until the service refuses the copies, fresh lists show them, and the connection is closed.
    async fn refused(&self, thief: &mut Thief) -> Result<(), Failure> {
        let (port, tls_port) = self.service.ports();
        let token = thief
            .token
            .expose_str()
            .map_err(|why| Failure::local("the token", why))?;
        let at_service = async {
            while app::charge(port, token).await? != 401 {
                tokio::time::sleep(TRY_EVERY).await;
            }
            Ok::<(), Failure>(())
        };
        let on_list = async {
            while !self.verifier.is_listed(&thief.place).await? {
                tokio::time::sleep(TRY_EVERY).await;
            }
            Ok::<(), Failure>(())
        };
        let certificate = &thief.certificate;
        let in_tls = async {
            loop {
                if let Shaken::Refused(alert) = certificate.shake(tls_port).await? {
                    return Ok::<_, Failure>(alert);
                }
                tokio::time::sleep(TRY_EVERY).await;
            }
        };
        let on_crl = async {
            while !certificate.is_listed().await? {
                tokio::time::sleep(TRY_EVERY).await;
            }
            Ok(())
        };
        // Whatever ends it: a word, an alert, or the end of the connection.
        let closed = async {
            let _end = thief.open.read_u8().await;
            Ok(())
        };
        let login = &mut thief.login;
        let at_database = async {
            match login {
                Some(login) => login.refused().await,
                None => Ok(()),
            }
        };
        let all =
            async { tokio::try_join!(at_service, on_list, in_tls, on_crl, closed, at_database) };
        let (_, _, alert, ..) = match tokio::time::timeout(REFUSED_MAX, all).await {
            Ok(done) => done?,
            Err(_) => {
                return Err(not_held(&format!(
                    "one of the thief's copies still works {} s after kill -9",
                    REFUSED_MAX.as_secs()
                )));
            }
        };
        held(
            alert == AlertDescription::CertificateRevoked,
            &format!("the service's alert was {alert:?}"),
        )?;
        held(
            !self.service.is_active(token).await?,
            "introspection calls the copy active",
        )
    }

    /// Complete, revoke, prove: what the log says of them, and the receipt.
    async fn ended(
        &self,
        task: TaskId,
        limit: UnixMillis,
        at: UnixMillis,
        refused: Duration,
    ) -> Result<(), Failure> {
        let (receipt, verified) = self.proven(task).await?;
        let records = self.records(task).await?;
        let ends = |(_, event): &&(u64, AuditEvent)| event.event_type.starts_with("complete.");
        let (_, complete) = records
            .iter()
            .find(ends)
            .ok_or_else(|| not_held("the log has no end of the task"))?;
        let ended_as = format!("the task ended as {:?}", complete.cause);
        held(complete.cause.as_deref() == Some("exited"), &ended_as)?;
        let listed = records
            .iter()
            .filter(|(_, event)| event.event_type == "revoke.listed");
        let listed = listed.map(|(_, event)| event.time).max();
        let listed = listed.ok_or_else(|| not_held("the log has no listing of this task"))?;

        let noticed = Duration::from_millis(complete.time.millis_since(at));
        stage(
            "complete",
            "the kernel reported the exit",
            Some(took(noticed)),
        )?;
        let gone = records
            .iter()
            .find(|(_, event)| event.event_type == "prove.dead");
        held(
            gone.is_some() == self.has_login,
            "the log does not say that the login is dead",
        )?;
        let last = gone.map_or(listed, |(_, event)| event.time.max(listed));
        let revoked = Duration::from_millis(last.millis_since(complete.time));
        let copies = match self.wiped(task).await? {
            1 => "1 copy".to_owned(),
            many => format!("{many} copies"),
        };
        match gone {
            Some((_, event)) => {
                let sessions = fact(event, "sessions_ended")?;
                held(
                    sessions != "0",
                    "the server ended no session of the thief's",
                )?;
                let ended = format!("host: {copies} wiped.  target: session ended, role dropped,");
                stage("revoke", &ended, None)?;
                timed("token and certificate listed", &took(revoked))?;
            }
            None => stage(
                "revoke",
                &format!("host: {copies} wiped.  target: both listed"),
                Some(took(revoked)),
            )?,
        }
        let rest = refused.saturating_sub(noticed + revoked);
        stage("prove", "the thief tries his copies", Some(took(rest)))?;
        if self.has_login {
            line("  login  FATAL: password authentication failed         refused")?;
            line("  login  the session that he kept open                 ended")?;
        }
        line("  token  introspection says active=false               listed")?;
        line("  token  its bit is set in a freshly fetched list      listed")?;
        line("  cert   TLS alert: certificate_revoked                listed")?;
        line("  cert   its serial is in a freshly fetched CRL        listed")?;
        line("  cert   the connection that he kept open              closed")?;
        let (time, id) = (took(refused), task.receipt().short());
        let dead = if self.has_login { "1 dead, " } else { "" };
        line(&format!(
            "{dead}2 listed {time} after kill -9.  Receipt {id}."
        ))?;
        let (leaf, size) = (receipt.index, verified.checkpoint.size());
        line(&format!(
            "Receipt verified: leaf {leaf} of {size}, signed by the log."
        ))?;
        let until = time_of_day(limit);
        line(&format!(
            "Limit: a verifier that never asks us takes them to {until}."
        ))
    }

    /// How many copies the agent wiped from its memory: it tells whoever owned the task.
    async fn wiped(&self, task: TaskId) -> Result<u32, Failure> {
        let target = format!("/v1/tasks/{task}/complete");
        let ended: Completed = self.agent.post(&target, &serde_json::json!({})).await?;
        held(ended.wiped > 0, "the agent wiped no copy")?;
        Ok(ended.wiped)
    }

    /// The receipt, verified against the key that the broker had before anything happened.
    async fn proven(&self, task: TaskId) -> Result<(Receipt, Verified), Failure> {
        let receipt = self.receipt(task).await?;
        let verified = verify_receipt(&receipt, &self.log_key, |key, message, signature| {
            ephor_crypto::ed25519::verify(key, message, signature)
        });
        let verified =
            verified.map_err(|why| not_held(&format!("the receipt does not verify: {why}")))?;
        held(
            verified.event.task == Some(task),
            "the receipt is of another task",
        )?;
        let totals = verified.event.totals.unwrap_or_default();
        let counts = format!("the receipt counts {totals:?}");
        let expected = (u32::from(self.has_login), 2);
        held((totals.dead, totals.listed) == expected, &counts)?;
        Ok((receipt, verified))
    }

    async fn receipt(&self, task: TaskId) -> Result<Receipt, Failure> {
        let target = format!("/v1/tasks/{task}/receipt");
        let there = async {
            loop {
                if let Ok(receipt) = self.admin.read::<Receipt>(&target).await {
                    return receipt;
                }
                tokio::time::sleep(TRY_EVERY).await;
            }
        };
        let receipt = tokio::time::timeout(RECEIPT_MAX, there).await;
        receipt.map_err(|_| not_held(&format!("no receipt after {} s", RECEIPT_MAX.as_secs())))
    }

    async fn records(&self, task: TaskId) -> Result<Vec<(u64, AuditEvent)>, Failure> {
        let records: Vec<Record> = self.admin.read(&format!("/v1/audit/{task}")).await?;
        let event = |record: Record| {
            let event = serde_json::from_value(record.event);
            event
                .map(|event| (record.index, event))
                .map_err(|why| Failure::local("the audit log", why))
        };
        records.into_iter().map(event).collect()
    }
}
