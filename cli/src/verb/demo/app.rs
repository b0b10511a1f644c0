//! `ephor __demo-app`: the program of the tour. It asks for a token and a certificate, and where there is
//! a database for a login, uses each of them once, hands a copy of all to whoever reads its output (the thief), and lives on until it is killed.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use ephor_proto::http::agent::{CredentialRequest, Credentials, Login};
use nix::sys::signal::SigSet;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use zeroize::Zeroizing;

use super::handshake::{Copy, Shaken};
use super::scene::{ENTITLEMENT, PROGRAM};
use super::web;
use crate::client::Peer;
use crate::clock::Stopwatch;
use crate::exit::{Failure, Outcome};
use crate::postgres::Target;
use crate::process::{Child, Command, Environment, Stdio};
use crate::show::to_stdout;

/// Longest wait for its one line.
const SAID_MAX: Duration = Duration::from_secs(10);

/// What the program says, in one line. Holds a secret: no `Debug`.
#[derive(Serialize, Deserialize)]
pub struct Said {
    /// From its request to the token in its memory.
    pub asked_to_delivered_micros: u64,
    /// What the agent says its stages took (`Server-Timing`).
    pub timing: Option<String>,
    /// The whole answer of the agent.
    pub answer: Credentials,
    /// How the service answered its call.
    pub status: u16,
    /// Whether the service took its handshake.
    pub taken: bool,
    /// Rows that it read from the database, where it got a login.
    pub rows: Option<i64>,
}

/// `ephor __demo-app PORT TLS_PORT AUDIENCE`
pub async fn app_main(port: u16, tls_port: u16, audience: &str) -> Outcome {
    ephor_crypto::tls::install();
    let agent = Peer::agent();
    let request = CredentialRequest {
        entitlement: ENTITLEMENT.to_owned(),
        ..CredentialRequest::default()
    };
    let asked = Stopwatch::start();
    let (answer, timing): (Credentials, _) = agent.post_timed("/v1/credentials", &request).await?;
    let asked_to_delivered_micros = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
    let wanted = answer
        .credentials
        .iter()
        .find(|one| one.audience.as_deref() == Some(audience));
    let token = wanted.and_then(|one| one.token.as_deref());
    let token = token
        .ok_or_else(|| Failure::usage(format!("{ENTITLEMENT} gave no token for {audience}.")))?;
    let status = charge(port, token).await?;
    let shaken = certificate_of(&answer)?.shake(tls_port).await?;
    let rows = match login_of(&answer) {
        Some(login) => Some(count(&Target::handed_over(login)?).await?),
        None => None,
    };
    let said = Said {
        asked_to_delivered_micros,
        timing,
        answer,
        status,
        taken: matches!(shaken, Shaken::Taken(_)),
        rows,
    };
    let line = serde_json::to_string(&said).map_err(|why| Failure::local("cannot say it", why))?;
    to_stdout(&Zeroizing::new(line + "\n"))?;
    // Ends with the tour at the latest, whatever happens to that.
    let _ = std::io::stdin().read(&mut [0]);
    Ok(ExitCode::SUCCESS)
}

/// The certificate in an answer, ready for use.
///
/// # Errors
/// When there is none.
pub fn certificate_of(answer: &Credentials) -> Result<Copy, Failure> {
    let certificate = (answer.credentials.iter()).find_map(|one| one.certificate.as_ref());
    let none = || Failure::usage(format!("{ENTITLEMENT} gave no certificate."));
    Copy::of(certificate.ok_or_else(none)?)
}

/// The database login in an answer, if there is one.
pub fn login_of(answer: &Credentials) -> Option<&Login> {
    answer.credentials.iter().find_map(|one| one.login.as_ref())
}

/// Reads the table of the tour with a login; gives the number of rows.
///
/// # Errors
/// What the server said.
pub async fn count(target: &Target) -> Result<i64, Failure> {
    let asked = "SELECT count(*) FROM orders";
    let row = target.with("", async |client| client.query_one(asked, &[]).await);
    row.await?
        .try_get(0)
        .map_err(|why| Failure::local("the number of rows", why))
}

/// One call of the service; gives the status.
///
/// # Errors
/// When the service cannot be reached.
pub async fn charge(port: u16, token: &str) -> Result<u16, Failure> {
    let bearer = format!("Bearer {token}");
    let get = web::Get {
        url: format!("http://127.0.0.1:{port}/charge"),
        bearer: Some(bearer),
    };
    web::call(None, &get).await.map(|answer| answer.status)
}

/// The program, running; killed when dropped.
pub struct App {
    process: Child,
    output: BufReader<Receiver>,
    _stdin: OwnedFd,
}

impl App {
    /// Starts `program` against the agent at `socket`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        program: &Path,
        socket: &Path,
        (port, tls_port): (u16, u16),
        audience: &str,
        mask: SigSet,
    ) -> Result<Self, Failure> {
        let failed = |why: &dyn std::fmt::Display| {
            Failure::local(format!("cannot start {}", program.display()), why)
        };
        let (stdin, held) = pipe_with(PipeFlags::CLOEXEC).map_err(|why| failed(&why))?;
        let (output, stdout) = pipe_with(PipeFlags::CLOEXEC).map_err(|why| failed(&why))?;
        let mut environment = Environment::inherited();
        environment.set(
            "EPHOR_SOCKET",
            std::os::unix::ffi::OsStrExt::as_bytes(socket.as_os_str()),
        );
        let argv: [OsString; 5] = [
            PROGRAM.into(),
            "__demo-app".into(),
            port.to_string().into(),
            tls_port.to_string().into(),
            audience.into(),
        ];
        let own_stderr = std::io::stderr();
        let command = Command {
            program: OsStr::new(program),
            argv: &argv,
            environment: &environment,
            mask,
            stdio: Some(Stdio {
                stdin: stdin.as_fd(),
                stdout: stdout.as_fd(),
                stderr: own_stderr.as_fd(),
            }),
            own_group: true,
        };
        let process = command.spawn().map_err(|why| failed(&why.desc()))?;
        rustix::io::ioctl_fionbio(&output, true).map_err(|why| failed(&why))?;
        let output = Receiver::from_owned_fd(output).map_err(|why| failed(&why))?;
        Ok(Self {
            process,
            output: BufReader::new(output),
            _stdin: held,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.process.pid().as_raw_nonzero().get()
    }

    /// What it says.
    ///
    /// # Errors
    /// When it ends or stays silent instead.
    pub async fn said(&mut self) -> Result<Said, Failure> {
        let mut line = Zeroizing::new(String::new());
        let read = tokio::time::timeout(SAID_MAX, self.output.read_line(&mut line)).await;
        match read {
            Ok(Ok(1..)) => serde_json::from_str(&line)
                .map_err(|why| Failure::local("the program said nonsense", why)),
            Ok(Ok(0)) => Err(Failure::local(PROGRAM, "it ended without a word")),
            Ok(Err(why)) => Err(Failure::local(PROGRAM, why)),
            Err(_) => Err(Failure::local(
                PROGRAM,
                format!("it said nothing for {} s", SAID_MAX.as_secs()),
            )),
        }
    }

    /// `kill -9`
    pub fn kill(&self) {
        self.process.signal(nix::sys::signal::Signal::SIGKILL);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.process.kill_and_reap();
    }
}
