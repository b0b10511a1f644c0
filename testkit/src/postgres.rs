//! A real PostgreSQL server in a temporary directory: Debian's own binaries, own port on loopback
//! and own Unix socket, `fsync` on. The superuser `postgres` comes in by the socket without a
//! password, everybody else with one.
//!
//! What is true in it is asked by `psql`, never by a driver of ours. The server cannot outlive the
//! test: it ends when a pipe closes that the test process holds, however that process ends.

mod server;
mod session;
mod standby;
mod tls;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::wait;
use server::Server;
pub use session::Session;
pub use tls::Tls;

/// How long a server may take to start, to stop or to follow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who the server runs as; it refuses to run as root.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

/// What a cluster is made with; see [`Cluster::with`].
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Lines of `postgresql.conf`, such as `max_connections = 20`; they win over the built-in ones.
    pub settings: Vec<String>,
    /// Lines of `pg_hba.conf` that come before the built-in ones.
    pub hba: Vec<String>,
    /// Files put beside the data, by name: certificates and keys, readable by the server alone.
    pub files: Vec<(String, Vec<u8>)>,
}

/// One server with its data. Ended and removed when dropped.
pub struct Cluster {
    server: Server,
    port: u16,
    account: Option<Account>,
    /// Last, because fields are dropped in this order.
    dir: TempDir,
}

impl Cluster {
    /// A new server that takes connections.
    ///
    /// # Errors
    /// When there is no PostgreSQL on this machine, or it does not start.
    pub fn start() -> anyhow::Result<Self> {
        Self::with(&Options::default())
    }

    /// As [`Self::start`], with settings of the caller's.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn with(options: &Options) -> anyhow::Result<Self> {
        let made = Self::prepare()?;
        let data = made.data();
        let mut initdb = made.command("initdb");
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"]);
        initdb.arg("--no-sync").arg("-D").arg(&data);
        succeed(&mut initdb)?;
        for (name, content) in &options.files {
            made.put(&data.join(name), content)?;
        }
        std::fs::write(data.join("pg_hba.conf"), hba(&options.hba))?;
        made.configure(&options.settings)?;
        made.started()
    }

    /// A directory of its own, owned by the account that the server will run as.
    fn prepare() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ephor-pg").tempdir()?;
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711))?;
        let account = account()?;
        if let Some(account) = account {
            chown(dir.path(), Some(account.uid), Some(account.gid))?;
        }
        let port = free_port()?;
        Ok(Self {
            server: Server::none(),
            port,
            account,
            dir,
        })
    }

    /// Writes what is ours of `postgresql.conf`, then `settings`.
    fn configure(&self, settings: &[String]) -> anyhow::Result<()> {
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\n\
             shared_buffers = 32MB\nfsync = on\nlog_min_messages = warning\n\
             log_line_prefix = '%m [%p] %u@%d '\nwal_level = replica\n",
            self.port,
            self.dir.path().display()
        );
        for line in settings {
            writeln!(text, "{line}")?;
        }
        self.put(&self.data().join("ephor.conf"), text.as_bytes())?;
        let conf = self.data().join("postgresql.conf");
        let before = std::fs::read_to_string(&conf)?;
        if !before.contains("include 'ephor.conf'") {
            std::fs::write(&conf, before + "\ninclude 'ephor.conf'\n")?;
        }
        Ok(())
    }

    /// Puts a file beside the data, readable by the server alone; it is read at the next
    /// [`Self::reload`].
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_file(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        self.put(&self.data().join(name), content)
    }

    /// Replaces the lines of `pg_hba.conf` that come before the built-in ones, from the next
    /// [`Self::reload`] on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_hba(&self, first: &[String]) -> anyhow::Result<()> {
        std::fs::write(self.data().join("pg_hba.conf"), hba(first))?;
        Ok(())
    }

    /// Makes the server read its settings and files again, and waits until it has.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn reload(&self) -> anyhow::Result<()> {
        const LOADED: &str = "select pg_conf_load_time()";
        let before = self.psql("postgres", LOADED)?;
        self.psql("postgres", "select pg_reload_conf()")?;
        wait::until("PostgreSQL has read its settings", PATIENCE, || {
            let now = self.psql("postgres", LOADED).ok()?;
            (now != before).then_some(())
        })
    }

    fn put(&self, path: &Path, content: &[u8]) -> anyhow::Result<()> {
        std::fs::write(path, content)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        if let Some(account) = self.account {
            chown(path, Some(account.uid), Some(account.gid))?;
        }
        Ok(())
    }

    fn started(mut self) -> anyhow::Result<Self> {
        self.boot()?;
        Ok(self)
    }

    /// Starts it again after [`Self::stop`] or [`Self::crash`], on the same port.
    ///
    /// # Errors
    /// With the end of its log, when it does not take connections in time.
    pub fn boot(&mut self) -> anyhow::Result<()> {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data());
        self.server = Server::start(&command, &self.log_path())?;
        let socket = self.socket_dir().join(format!(".s.PGSQL.{}", self.port));
        wait::until("PostgreSQL takes connections", PATIENCE, || {
            (socket.exists() && self.psql("postgres", "select 1").is_ok()).then_some(())
        })
        .with_context(|| self.log())
    }

    /// Stops it as an administrator does: sessions are ended, all is written.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.server
            .end(self.postmaster(), rustix::process::Signal::INT)
    }

    /// Stops it as a power cut would: nothing more is written.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn crash(&mut self) -> anyhow::Result<()> {
        self.server
            .end(self.postmaster(), rustix::process::Signal::QUIT)
    }

    /// The server's own process, as it wrote it down.
    #[must_use]
    pub fn postmaster(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// Its port, on loopback and in the name of the socket.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its Unix socket is.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its data.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// `postgres://USER@127.0.0.1:PORT/DATABASE`.
    #[must_use]
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// The same by the Unix socket: how the superuser comes in without a password.
    #[must_use]
    pub fn socket_url(&self, user: &str, database: &str) -> String {
        let dir = self.socket_dir().display().to_string().replace('/', "%2F");
        format!("postgres://{user}@{dir}:{}/{database}", self.port)
    }

    /// One of PostgreSQL's programs, run as the server's account, with nothing inherited that
    /// would lead it to another server.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(binary(program));
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        clean(&mut command);
        command
    }

    /// What `sql` prints, unaligned and without headings, asked by the superuser with `psql`.
    /// Several statements run one by one, each committed for itself.
    ///
    /// # Errors
    /// With what `psql` said, when a statement fails.
    pub fn psql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let mut command = self.command("psql");
        command.arg("-h").arg(self.socket_dir());
        command.args(["-U", "postgres"]);
        self.ask(command, database, sql)
    }

    /// The same as somebody else, over TCP and with a password.
    ///
    /// # Errors
    /// As [`Self::psql`].
    pub fn psql_as(
        &self,
        (user, password): (&str, &str),
        database: &str,
        sql: &str,
    ) -> anyhow::Result<String> {
        self.ask(self.client("psql", user, password), database, sql)
    }

    /// A client program that logs in over TCP as `user`; database and work are for the caller to add.
    #[must_use]
    pub fn client(&self, program: &str, user: &str, password: &str) -> Command {
        let mut command = self.command(program);
        command.args(["-h", "127.0.0.1", "-U", user]);
        command.env("PGPASSWORD", password);
        command
    }

    fn ask(&self, mut command: Command, database: &str, sql: &str) -> anyhow::Result<String> {
        command.args(["-X", "-A", "-t", "-q", "-w", "-v", "ON_ERROR_STOP=1"]);
        command.args(["-p", &self.port.to_string(), "-d", database]);
        // By file, so that every statement is a transaction of its own and `\connect` works.
        command.args(["-f", "-"]).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting psql")?;
        let mut input = child.stdin.take().context("psql's input")?;
        let text = sql.to_owned();
        let writer =
            std::thread::spawn(move || std::io::Write::write_all(&mut input, text.as_bytes()));
        let output = child.wait_with_output()?;
        // It may have stopped reading at an error; that one is told below.
        let _ = writer.join();
        ensure!(output.status.success(), "psql: {}", said(&output));
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }
}

/// The environment that would lead a client elsewhere.
fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C.UTF-8");
    command.env("PGCONNECT_TIMEOUT", "10");
}

fn hba(first: &[String]) -> String {
    let mut text = first.join("\n");
    text.push_str(
        "\nlocal all postgres trust\nlocal replication postgres trust\n\
         host replication postgres 127.0.0.1/32 trust\n\
         local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n",
    );
    text
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// An account for the server when we are root: Debian's `postgres`, else `nobody`.
fn account() -> anyhow::Result<Option<Account>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let find = |name: &str| {
        let line = passwd
            .lines()
            .find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some(Account {
            uid: fields.next()?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
        })
    };
    let found = find("postgres").or_else(|| find("nobody"));
    Ok(Some(found.context(
        "neither `postgres` nor `nobody` in /etc/passwd",
    )?))
}

/// Where a program of PostgreSQL is: beside the server, which Debian keeps out of the path.
fn binary(program: &str) -> PathBuf {
    directories()
        .into_iter()
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(program))
}

/// Whether a server can be started on this machine.
#[must_use]
pub fn installed() -> bool {
    directories()
        .iter()
        .any(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file())
}

/// The newest installed version first, then what `pg_config` says, then the path.
fn directories() -> Vec<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
        })
        .collect();
    versions.sort();
    let mut found: Vec<PathBuf> = versions.into_iter().rev().map(|(_, path)| path).collect();
    if let Ok(said) = Command::new("pg_config").arg("--bindir").output() {
        found.push(PathBuf::from(String::from_utf8_lossy(&said.stdout).trim()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    found.extend(std::env::split_paths(&path));
    found
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("starting {program} (Debian package `postgresql` has it)"))?;
    ensure!(output.status.success(), "{program}: {}", said(&output));
    Ok(())
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    format!("{}: {}", output.status, text.trim())
}

#[cfg(test)]
mod tests;
