//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures Ephor beside bare servers on the same machine.
#[derive(Debug, Parser)]
#[command(name = "ephor-loadtest", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub what: What,
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Start broker and agent with `ephor dev`, measure, print JSON; exit 1 if a target is missed
    Run(Run),
    /// Mixed load while both daemons are killed at random; exit 1 if anything is lost, orphaned or double
    Chaos(Chaos),
    /// Half of capacity while keys, policies, broker and agent change; exit 1 if an application notices
    Operate(Operate),
    /// `ephor inventory scan` on a PostgreSQL server full of left-overs; exit 1 if it takes too long
    Inventory(Inventory),
    /// Logins at PostgreSQL made and dropped by the broker's library, beside the same statements typed by
    /// pgbench; exit 1 if a target is missed
    Logins(Logins),
    /// Tasks with a login at PostgreSQL and an open session end at a steady rate, through agent, broker and
    /// server: how long until refused, ended, dropped, proven; and the same while another target hangs
    Ends(Ends),
    /// Logins with a client certificate at a PostgreSQL server: how many are made a second
    CertificateLogins(CertificateLogins),
    /// Many live logins at PostgreSQL, then broker and server die and come back; exit 1 if one is lost
    Scale(Scale),
    /// A process that is a task (internal).
    #[command(name = "__task", hide = true)]
    Task {
        /// The agent's socket.
        socket: PathBuf,
    },
    /// The bare server (internal).
    #[command(name = "__bare", hide = true)]
    BareServer {
        /// Where to listen.
        socket: PathBuf,
        /// Make and sign this once a request.
        #[arg(long, value_enum)]
        sign: Option<Made>,
    },
    /// A process that fetches a token, prints it and waits to be killed (internal).
    #[command(name = "__hold", hide = true)]
    Holder {
        /// The agent's socket.
        socket: PathBuf,
    },
    /// A process that fetches its certificate, prints it and waits to be killed (internal).
    #[command(name = "__hold-certificate", hide = true)]
    CertificateHolder {
        /// The agent's socket.
        socket: PathBuf,
    },
    /// A process that gets a database login, prints it and waits to be killed (internal).
    #[command(name = "__hold-login", hide = true)]
    LoginHolder {
        /// The agent's socket.
        socket: PathBuf,
        /// By what right.
        entitlement: String,
    },
    /// One client process among many (internal).
    #[command(name = "__worker", hide = true)]
    Worker {
        /// The socket to call.
        socket: PathBuf,
        /// What it does at the word.
        #[command(flatten)]
        work: Work,
    },
}

/// `ephor-loadtest certificate-logins`
#[derive(Debug, Args)]
pub struct CertificateLogins {
    /// Runs; the median counts
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Length of one run
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
}

/// `ephor-loadtest logins`
#[derive(Debug, Args)]
pub struct Logins {
    /// Alternating runs of ours and pgbench
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Length of one run
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// Logins dropped together
    #[arg(long, default_value_t = 10_000)]
    pub together: usize,
}

/// `ephor-loadtest ends`
#[derive(Debug, Args)]
pub struct Ends {
    /// The `ephor` binary under test
    #[arg(long, default_value = "target/release/ephor")]
    pub ephor: PathBuf,
    /// Tasks that end, one process each
    #[arg(long, default_value_t = 500)]
    pub tasks: usize,
    /// Ends a second
    #[arg(long, default_value_t = 50)]
    pub rate: u64,
    /// Runs with a target that hangs, and as many without, by turns; 0: none
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Tasks that end in one of those runs
    #[arg(long, default_value_t = 100)]
    pub round_tasks: usize,
}

/// `ephor-loadtest scale`
#[derive(Debug, Args)]
pub struct Scale {
    /// The `ephor` binary under test
    #[arg(long, default_value = "target/release/ephor")]
    pub ephor: PathBuf,
    /// Logins
    #[arg(long, default_value_t = 50_000)]
    pub live: usize,
    /// Seconds that each lives, unless it is renewed; at most 600, the default of the fixture's policy
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(30..=600))]
    pub ttl: u64,
    /// Seconds without broker and server
    #[arg(long, default_value_t = 30)]
    pub away: u64,
    /// Seconds that are watched after that
    #[arg(long, default_value_t = 120)]
    pub watch: u64,
}

/// What one worker does at the word.
#[derive(Debug, Clone, Args)]
pub struct Work {
    /// What it asks for.
    #[arg(long, value_enum)]
    pub made: Made,
    /// By what right.
    #[arg(long)]
    pub entitlement: String,
    /// How often; a task holds at most 256 at its agent.
    #[arg(long)]
    pub calls: usize,
}

impl Work {
    /// About as much as a task may hold, of its own identity.
    pub fn much(made: Made) -> Self {
        Self {
            made,
            entitlement: "identity".to_owned(),
            calls: 250,
        }
    }
}

/// What is made once a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Made {
    /// A token: one signature.
    Token,
    /// A certificate: a key, and one signature.
    Certificate,
}

/// `ephor-loadtest run`
#[derive(Debug, Args)]
pub struct Run {
    /// The `ephor` binary under test
    #[arg(long, default_value = "target/release/ephor")]
    pub ephor: PathBuf,
    /// Scenarios; absent: all
    #[arg(value_parser = ["cached", "cold", "cold-certificate", "flat", "exit", "certificate", "crl", "narrow", "memory"])]
    pub scenarios: Vec<String>,
    /// Alternating runs of each scenario and its bare twin
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Length of one closed- or open-loop run
    #[arg(long, default_value_t = 5)]
    pub seconds: u64,
    /// Tasks of the scenarios `exit` and `certificate`
    #[arg(long, default_value_t = 500)]
    pub tasks: usize,
    /// Tasks a second of the scenarios `exit` and `certificate`
    #[arg(long, default_value_t = 20)]
    pub task_rate: u64,
    /// Live credentials at the broker in the scenarios `flat`, `crl`, `narrow` and `memory`
    #[arg(long, default_value_t = 100_000)]
    pub live: usize,
}

/// `ephor-loadtest chaos`
#[derive(Debug, Args)]
pub struct Chaos {
    /// The `ephor` binary under test
    #[arg(long, default_value = "target/release/ephor")]
    pub ephor: PathBuf,
    /// How long
    #[arg(long, default_value_t = 30)]
    pub minutes: u64,
    /// Seconds between two kills of a daemon, on average; each has moments of its own
    #[arg(long, default_value_t = 20)]
    pub kill_every: u64,
    /// Seconds of load between two comparisons of everything
    #[arg(long, default_value_t = 120)]
    pub check_every: u64,
    /// Tasks at the same time
    #[arg(long, default_value_t = 8)]
    pub workers: u32,
    /// Repeats the choices of another run, not its timing; absent: one of its own
    #[arg(long)]
    pub seed: Option<u64>,
}

/// `ephor-loadtest operate`
#[derive(Debug, Args)]
pub struct Operate {
    /// The `ephor` binary under test
    #[arg(long, default_value = "target/release/ephor")]
    pub ephor: PathBuf,
    /// Policies to apply
    #[arg(long, default_value_t = 20)]
    pub policies: u32,
    /// Restarts of the broker, and of the agent
    #[arg(long, default_value_t = 5)]
    pub restarts: u32,
    /// New requests a second beside the cached ones
    #[arg(long, default_value_t = 20)]
    pub new_rate: u64,
}

/// `ephor-loadtest inventory`
#[derive(Debug, Args)]
pub struct Inventory {
    /// The `ephor` binary under test
    #[arg(long, default_value = "target/release/ephor")]
    pub ephor: PathBuf,
    /// Logins that somebody left
    #[arg(long, default_value_t = 2_000)]
    pub left_overs: usize,
    /// Scans
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
}
