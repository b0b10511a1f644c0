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
    /// One client process among many (internal).
    #[command(name = "__worker", hide = true)]
    Worker {
        /// The socket to call.
        socket: PathBuf,
        /// What it asks for.
        #[arg(long, value_enum, default_value_t = Made::Token)]
        made: Made,
    },
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
    #[arg(value_parser = ["cached", "cold", "cold-certificate", "exit", "certificate", "memory"])]
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
    /// Live credentials at the broker in the scenario `memory`
    #[arg(long, default_value_t = 100_000)]
    pub live: usize,
}
