//! The command line. Verbs in the order people meet them: run, ask, govern.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ephor_proto::http::agent::Bind;

/// Just-in-time credentials that die with the task.
#[derive(Debug, Parser)]
#[command(name = "ephor", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Every verb.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// A guided tour of the main job on this host; exit 0 only if every step held
    Demo(Demo),
    /// Broker and agent on this host, with a throw-away store
    Dev(Dev),
    /// Run a command as a task: credentials by env, file or fd; at the end all is revoked
    Run(Run),
    /// A database login for one command, psql unless another is named
    Db(Db),
    /// Hold a database login for a program that is started elsewhere, until Ctrl-C
    Hold(Hold),
    /// Fetch one token for the calling process
    Token(Token),
    /// Fetch one certificate with its key for the calling process
    Cert(Cert),
    /// Tasks: units of work that credentials are bound to
    #[command(subcommand)]
    Task(Task),
    /// Credentials: what is out, and revoking it
    #[command(subcommand)]
    Credential(Credential),
    /// Hosts: invite, list, ban
    #[command(subcommand)]
    Host(Host),
    /// The policy: check, explain, compare, test, apply, and what was in force
    #[command(subcommand)]
    Policy(Policy),
    /// The audit log: show, list, export, verify
    #[command(subcommand)]
    Audit(Audit),
    /// The broker itself: how it stands, backups, a new epoch, its keys
    #[command(subcommand)]
    Broker(Broker),
    /// Database servers that logins are made at: prepare one, check it
    #[command(subcommand)]
    Target(Target),
    /// Credentials that others made: what is left over where, read-only and without a daemon
    #[command(subcommand)]
    Inventory(Inventory),
    /// Who the calling process is to the agent
    Whoami(Whoami),
    /// Which protections are in force on this host, what is missing, and how to get it
    Doctor(Doctor),
    /// Print completions for a shell
    Completion(Completion),
    /// Print the manual page, or write those of all three programs into a directory
    Man(Man),
    /// Removes a task's files when the run that made them is gone (internal).
    #[command(name = "__clean", hide = true)]
    Clean {
        /// Directory to remove when standard input ends.
        dir: PathBuf,
    },
    /// Shows what `ephor hold` holds (internal).
    #[command(name = "__hold", hide = true)]
    Holding {
        /// The variable that names its JSON.
        variable: String,
        /// Whose end is its end.
        parent: u32,
    },
    /// Takes back what `ephor dev --pg` made at a server when that is gone (internal).
    #[command(name = "__keep-pg", hide = true)]
    KeepPg,
    /// The workload of the demo (internal).
    #[command(name = "__demo-app", hide = true)]
    DemoApp {
        /// Port of the service to call.
        port: u16,
        /// Port where it speaks mTLS.
        tls_port: u16,
        /// Its audience.
        audience: String,
    },
}

/// `ephor demo`
#[derive(Debug, Args)]
pub struct Demo {
    /// Write the audit export and verify.py there, for checking without Ephor
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Leave the database out, where PostgreSQL is installed
    #[arg(long)]
    pub no_postgres: bool,
}

/// `ephor dev`
#[derive(Debug, Args)]
pub struct Dev {
    /// Where everything goes; absent: a temporary directory, removed at the end
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// A policy directory instead of the built-in one. The broker connects to the ports of its targets;
    /// the password for [target.NAME] goes into targets/target-NAME in --dir, mode 0600
    #[arg(long, value_name = "DIR")]
    pub policy: Option<PathBuf>,
    /// A PostgreSQL server to make logins at, such as postgres:///shop, as a user who may make roles
    /// there: CMD gets DATABASE_URL and libpq's variables
    #[arg(long, value_name = "URL", conflicts_with = "policy")]
    pub pg: Option<String>,
    /// Run this as a task, print the receipt, and stop
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `ephor run`
#[derive(Debug, Default, Args)]
pub struct Run {
    /// References to credentials, by variable name; may be repeated
    #[arg(
        long = "env",
        value_name = "NAME=REF",
        help = "NAME=cred://ENTITLEMENT[/ITEM][?as=env|file|fd]; may be repeated"
    )]
    pub env: Vec<String>,
    /// File of such lines; absent: ./ephor.env if there is one
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Beside each URL of a database, set libpq's variables (PGHOST, PGUSER, ...), too
    #[arg(long)]
    pub pg_env: bool,
    /// Why, this time
    #[arg(long)]
    pub reason: Option<String>,
    /// Wait for the last descendant, not just for the command itself
    #[arg(long)]
    pub wait_tree: bool,
    /// Send this to the command when its files were rewritten, such as HUP
    #[arg(long, value_name = "SIGNAL")]
    pub reload_signal: Option<String>,
    /// Run this in a shell when files were rewritten; EPHOR_RENEWED names them, and the names of
    /// files lead to them as in the command
    #[arg(long, value_name = "LINE")]
    pub reload_command: Option<OsString>,
    /// Write what happened as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Ends with the process of that id, which must have started this one (internal).
    #[arg(long, hide = true, value_name = "PID")]
    pub parent: Option<u32>,
    /// No file of references is read, not even ./ephor.env.
    #[arg(skip)]
    pub no_file: bool,
    /// What people call the command, where that is not its name.
    #[arg(skip)]
    pub called: Option<&'static str>,
    /// Command and arguments, verbatim
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

impl Run {
    /// With the references of its own only.
    pub fn alone(self) -> Self {
        Self {
            no_file: true,
            ..self
        }
    }

    /// With another name of the command in what is said.
    pub fn called(self, name: &'static str) -> Self {
        Self {
            called: Some(name),
            ..self
        }
    }
}

/// `ephor db`
#[derive(Debug, Args)]
pub struct Db {
    /// Entitlement that gives the login
    pub entitlement: String,
    /// Why, this time
    #[arg(long)]
    pub reason: Option<String>,
    /// Write what happened as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Command that reads libpq's variables or DATABASE_URL
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `ephor hold`
#[derive(Debug, Args)]
pub struct Hold {
    /// Entitlement that gives the login
    pub entitlement: String,
    /// Why, this time
    #[arg(long)]
    pub reason: Option<String>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = HoldOutput::Table)]
    pub output: HoldOutput,
}

/// Forms of `ephor hold`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HoldOutput {
    /// What a dialog asks for, one a line
    Table,
    /// The connection URL alone
    Url,
    /// One object
    Json,
}

/// `ephor token`
#[derive(Debug, Args)]
pub struct Token {
    /// Entitlement that gives the token; for the caller's own identity name --audience instead
    #[arg(required_unless_present = "audience", conflicts_with = "audience")]
    pub entitlement: Option<String>,
    /// Who the identity token is for
    #[arg(long)]
    pub audience: Option<String>,
    /// Wanted lifetime, such as 90s or 5m
    #[arg(long)]
    pub ttl: Option<String>,
    /// Why, this time
    #[arg(long)]
    pub reason: Option<String>,
    /// Ancestor process whose task it joins: `parent`, or a pid
    #[arg(long, default_value = "parent", value_parser = parse_bind)]
    pub bind: Bind,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = TokenOutput::Token)]
    pub output: TokenOutput,
}

/// `ephor doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// Settings of the agent, to find its state
    #[arg(long, value_name = "FILE", env = "EPHOR_AGENT_CONFIG", default_value = ephor_agent::config::DEFAULT_FILE)]
    pub agent_config: PathBuf,
    /// Settings of the broker, to find its state
    #[arg(long, value_name = "FILE", env = "EPHOR_BROKER_CONFIG", default_value = ephor_broker::config::DEFAULT_FILE)]
    pub broker_config: PathBuf,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = DoctorOutput::Text)]
    pub output: DoctorOutput,
}

/// Forms of `ephor doctor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DoctorOutput {
    /// For people
    Text,
    /// For programs
    Json,
}

/// `ephor completion`
#[derive(Debug, Args)]
pub struct Completion {
    /// For which shell
    pub shell: clap_complete::Shell,
    /// For which program
    #[arg(long = "for", value_enum, value_name = "PROGRAM", default_value_t = Program::Ephor)]
    pub program: Program,
}

/// The three programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Program {
    /// The command line
    Ephor,
    /// The central service
    EphorBroker,
    /// The per-host daemon
    EphorAgent,
}

/// `ephor man`
#[derive(Debug, Args)]
pub struct Man {
    /// Where to write the pages, such as /usr/local/share/man/man1
    pub dir: Option<PathBuf>,
}

/// `ephor cert`
#[derive(Debug, Args)]
pub struct Cert {
    /// Entitlement that gives the certificate; absent: the caller's own identity
    pub entitlement: Option<String>,
    /// Wanted lifetime, such as 90s or 5m
    #[arg(long)]
    pub ttl: Option<String>,
    /// Ancestor process whose task it joins: `parent`, or a pid
    #[arg(long, default_value = "parent", value_parser = parse_bind)]
    pub bind: Bind,
    /// Write tls.crt, tls.key, ca.crt and tls.pem there (0600) instead of printing
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    pub to: Option<PathBuf>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = CertOutput::Pem)]
    pub output: CertOutput,
}

/// Forms of `ephor cert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CertOutput {
    /// The key, and the certificates after it
    Pem,
    /// Everything the agent answered
    Json,
}

/// `ephor whoami`
#[derive(Debug, Args)]
pub struct Whoami {
    /// Ancestor process that is asked about: `parent`, or a pid
    #[arg(long, default_value = "parent", value_parser = parse_bind)]
    pub bind: Bind,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = WhoamiOutput::Text)]
    pub output: WhoamiOutput,
}

/// Forms of `ephor whoami`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WhoamiOutput {
    /// For people
    Text,
    /// Everything the agent answered
    Json,
}

/// Forms of `ephor token`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenOutput {
    /// The token alone
    Token,
    /// Everything the agent answered
    Json,
}

/// Forms of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// Aligned columns
    #[default]
    Table,
    /// One JSON array or object, ids whole
    Json,
    /// RFC 4180
    Csv,
}

/// How a listing is printed.
#[derive(Debug, Clone, Copy, Args)]
pub struct Listing {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// `ephor task`
#[derive(Debug, Subcommand)]
pub enum Task {
    /// List tasks
    Ls {
        /// Closed ones, too
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        listing: Listing,
    },
    /// One task and its credentials
    Show {
        /// Any form of its id
        id: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// End a task: all its credentials are revoked
    End {
        /// Any form of its id
        id: String,
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
    },
}

/// `ephor credential`
#[derive(Debug, Subcommand)]
pub enum Credential {
    /// List credentials that are live or being revoked
    Ls {
        /// Ended ones, too
        #[arg(long)]
        all: bool,
        /// Only those whose revocation is late
        #[arg(long)]
        overdue: bool,
        #[command(flatten)]
        listing: Listing,
    },
    /// One credential: who, why, until when
    Show {
        /// Any form of its id, a jti, or a login's name
        id: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Revoke one credential
    Revoke {
        /// Any form of its id, or a jti
        id: String,
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Answer for an overdue one whose server is no more: recorded, and listed for ever
    Accept {
        /// Any form of its id, or a login's name
        id: String,
        /// Why nothing can show that it is dead
        #[arg(long)]
        reason: String,
    },
}

/// `ephor host`
#[derive(Debug, Subcommand)]
pub enum Host {
    /// List hosts
    Ls {
        #[command(flatten)]
        listing: Listing,
    },
    /// Make a one-time join token
    Invite {
        /// Name of the host, or a pattern such as web-*
        host: String,
        /// Life of the token
        #[arg(long, default_value = "15m")]
        ttl: String,
        /// Write it there (0600) instead of printing it
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
    },
    /// Ban a host at once: streams closed, tasks completed, credentials revoked
    Ban {
        /// Its name
        host: String,
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
    },
}

/// `ephor policy`
#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Check a policy directory; no daemon needed
    Check {
        /// Directory of *.toml
        dir: PathBuf,
    },
    /// What the policy allows: for a subject, a host, or an entitlement
    Explain {
        /// What can this subject get?
        #[arg(long)]
        subject: Option<String>,
        /// What could a compromised host of this name get?
        #[arg(long)]
        host: Option<String>,
        /// Who can get this?
        #[arg(long)]
        entitlement: Option<String>,
        /// Read this directory instead of asking the broker
        #[arg(long, value_name = "DIR")]
        policy: Option<PathBuf>,
        #[command(flatten)]
        listing: Listing,
    },
    /// What a policy directory would change; exit 1 when it would change anything
    Diff {
        /// Directory of *.toml
        dir: PathBuf,
        /// Compare with this directory instead of what the broker has in force
        #[arg(long, value_name = "DIR")]
        policy: Option<PathBuf>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Ask a policy a file of cases; exit 1 when one does not hold
    Test {
        /// TOML with `[[case]]` tables
        file: PathBuf,
        /// Read this directory instead of asking the broker
        #[arg(long, value_name = "DIR")]
        policy: Option<PathBuf>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Put a policy directory into force; what it no longer allows is revoked
    Apply {
        /// Directory of *.toml
        dir: PathBuf,
        /// Say what would happen, and do nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        listing: Listing,
    },
    /// A version with its text: the one in force, or any that was
    Show {
        /// The beginning of its hash; absent: the one in force
        version: Option<String>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Every version that was in force, newest first
    History {
        #[command(flatten)]
        listing: Listing,
    },
}

/// `ephor broker`
#[derive(Debug, Subcommand)]
pub enum Broker {
    /// How it stands: whether it issues, and why not
    Status {
        #[command(flatten)]
        listing: Listing,
    },
    /// Copy the store while the broker serves; `ephor-broker restore` puts a copy back
    Backup {
        /// A new directory for it
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// Also put the master key there: whoever has such a backup is the broker
        #[arg(long)]
        with_master_key: bool,
    },
    /// Begin a new epoch after an old copy was restored: everything issued before is refused
    Recover {
        /// Why
        #[arg(long)]
        reason: String,
        /// Hosts that may come back: `all`, or their names with commas between
        #[arg(long, value_name = "all|HOST,...", value_delimiter = ',')]
        admit: Vec<String>,
        /// Also when nothing says that the store is old
        #[arg(long)]
        force: bool,
    },
    /// List the broker's own keys: CA, token key, log key, CA for database logins
    Keys {
        /// Also those that are destroyed
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        listing: Listing,
    },
    /// Publish the next key of a kind; it is used by itself when everyone can know it
    Rotate {
        /// Which
        kind: KeyKind,
        /// Use the published one now; refused while there may be those who do not know it
        #[arg(long)]
        now: bool,
        /// With --now: use it all the same, and make one if there is none
        #[arg(long, requires = "now")]
        force: bool,
        /// Stop trusting the retired ones now, whatever is still signed by them
        #[arg(long, conflicts_with = "now")]
        distrust: bool,
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// A CA that another one signs: the request out, the chain in
    #[command(subcommand)]
    Ca(Ca),
}

/// `ephor broker ca`
#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Print a request (PKCS#10, PEM) for the certificate of the next CA, to be signed elsewhere
    Csr {
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Take the chain that was signed for it, and publish it as the next CA
    Import {
        /// Certificates in PEM: the CA's own first, its root last; - is standard input
        chain: PathBuf,
        /// Why
        #[arg(long, default_value = "")]
        reason: String,
        #[command(flatten)]
        listing: Listing,
    },
}

/// Kinds of the broker's own keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyKind {
    /// Issues certificates
    Ca,
    /// Signs tokens and status lists
    Token,
    /// Signs the audit log's checkpoints
    Log,
    /// Issues the certificates of database logins
    Database,
}

impl KeyKind {
    /// As the broker knows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ca => "ca",
            Self::Token => "token",
            Self::Log => "log",
            Self::Database => "database",
        }
    }
}

/// `ephor target`
#[derive(Debug, Subcommand)]
pub enum Target {
    /// Install at a PostgreSQL server what the broker needs there; may be run again
    Init(TargetInit),
    /// Let the broker give its own login at a target of the policy another password, made there and
    /// known to nobody else
    RotateSecret {
        /// Name of the target in policy
        target: String,
        /// Why; goes into the audit log
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Say what is missing at a server, and the statement that mends it; exit 1 if the broker cannot
    /// work there
    Check(TargetCheck),
    /// Print the CA of logins with a certificate (PEM): what a server's ssl_ca_file must hold
    Ca,
}

/// `ephor target init`
#[derive(Debug, Args)]
pub struct TargetInit {
    /// The server as its administrator reaches it, and the database that logins are for:
    /// postgres://ADMIN@HOST/DATABASE?sslmode=...; the password better from PGPASSWORD or ~/.pgpass
    pub url: String,
    /// Group role that logins may be made of; may be repeated
    #[arg(
        long = "group",
        value_name = "ROLE",
        required_unless_present = "static_roles"
    )]
    pub groups: Vec<String>,
    /// Make those of them that are not there, without any right
    #[arg(long)]
    pub make_groups: bool,
    /// Login of somebody's that may be lent to one task at a time: its password is then Ephor's to set;
    /// may be repeated
    #[arg(long = "static-role", value_name = "ROLE")]
    pub static_roles: Vec<String>,
    /// Every database where a login may own or be given something; absent: that of the URL
    #[arg(long = "database", value_name = "DATABASE")]
    pub databases: Vec<String>,
    /// Where Ephor's own schema goes; made if it is not there
    #[arg(long, value_name = "DATABASE", default_value = "ephor")]
    pub admin_database: String,
    /// The broker's own login; made if it is not there
    #[arg(long, value_name = "ROLE", default_value = "ephor")]
    pub login: String,
    /// File whose first line is its password, the same that the broker reads; absent: it stays as it is
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Print what would be run, for psql, and connect to nothing
    #[arg(long)]
    pub sql: bool,
}

/// `ephor target check`
#[derive(Debug, Args)]
pub struct TargetCheck {
    /// A target of the policy, or a server as the broker reaches it: postgres://ephor@HOST/DATABASE
    pub target: String,
    /// Read this policy instead of asking the broker for the one in force
    #[arg(long, value_name = "DIR")]
    pub policy: Option<PathBuf>,
    /// File whose first line is the password of the broker's login; absent: the broker's own file, or
    /// for a URL PGPASSWORD and ~/.pgpass
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Settings of the broker, to find that file; absent: /etc/ephor/broker.toml
    #[arg(long, value_name = "FILE", env = "EPHOR_BROKER_CONFIG")]
    pub broker_config: Option<PathBuf>,
    /// With a URL: group role that logins are to be made of; may be repeated
    #[arg(long = "group", value_name = "ROLE")]
    pub groups: Vec<String>,
    /// With a URL: login that may be lent; may be repeated
    #[arg(long = "static-role", value_name = "ROLE")]
    pub static_roles: Vec<String>,
    /// With a URL: every database where a login may own something; absent: that of the URL
    #[arg(long = "database", value_name = "DATABASE")]
    pub databases: Vec<String>,
    /// With a URL: logins of its database are to come in by certificate
    #[arg(long)]
    pub certificates: bool,
    /// With a URL: where Ephor's own schema is
    #[arg(long, value_name = "DATABASE", default_value = "ephor")]
    pub admin_database: String,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = DoctorOutput::Text)]
    pub output: DoctorOutput,
}

/// `ephor inventory`
#[derive(Debug, Subcommand)]
pub enum Inventory {
    /// Look at a PostgreSQL server: logins past their end, still connected, never ending, too
    /// strong, without an owner; exit 1 when something is left over
    Scan(Scan),
}

/// `ephor inventory scan`
#[derive(Debug, Args)]
pub struct Scan {
    /// The server, as psql takes it: postgres://USER@HOST:PORT/DATABASE?sslmode=...; the password
    /// better from PGPASSWORD, PGPASSFILE or ~/.pgpass
    pub url: String,
    /// Print SQL that removes what is past its end, for psql; nothing of it is run
    #[arg(long, conflicts_with = "output")]
    pub sql: bool,
    /// In that SQL, who takes over what they own; absent: the one group that each is in
    #[arg(long, value_name = "ROLE", requires = "sql")]
    pub reassign_to: Option<String>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// `ephor audit`
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// Everything about any id, jti or host name
    Show {
        /// Any form of any id: of a receipt (r-7kq2), task, credential, request or decision; a login's name
        id: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// List events, newest last
    Ls {
        /// How many at most
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// Start after this leaf index
        #[arg(long)]
        after: Option<u64>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Write the log, the receipts and verify.py into a new directory
    Export {
        /// A directory that does not exist or is empty
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Check an export, or one task's receipt in it
    Verify {
        /// What `audit export` wrote
        dir: PathBuf,
        /// Only this task's receipt
        task: Option<String>,
        /// The log's verifier key, from someone you trust
        #[arg(long, value_name = "VKEY")]
        key: String,
    },
    /// Print the log's verifier key
    Key,
}

fn parse_bind(text: &str) -> Result<Bind, String> {
    text.parse()
}
