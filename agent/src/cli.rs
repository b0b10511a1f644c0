//! `ephor-agent join | run | check-config`, also reached as `ephor __agent …`.
//!
//! Exit codes: 0, 64 for wrong usage, 69 when the broker cannot be reached, 77 when it refuses,
//! 78 for settings, identity or host that cannot be used.

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use ephor_confine::Report;
use ephor_confine::logs::QUIET;
use ephor_confine::supervise::Inherited;
use ephor_crypto::tls;
use ephor_proto::problem::{FirstWord, wrong_usage};
use ephor_proto::spiffe::HostName;
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

use crate::app;
use crate::clock::SystemClock;
use crate::config::{Config, ConfigError, LogFormat, Partial};
use crate::harden;
use crate::tasks::{self, Tasks};
use crate::uplink::join::{Join, JoinError, Token, join};

const USAGE: u8 = 64;
const UNREACHABLE: u8 = 69;
const REFUSED: u8 = 77;
const CONFIG: u8 = 78;

/// The per-host daemon of Ephor: attests callers, delivers credentials, notices the end.
#[derive(Parser)]
#[command(name = "ephor-agent", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make this host part of a fleet, once, with a one-time token.
    Join(JoinArgs),
    /// Serve the callers of this host until SIGTERM.
    Run(RunArgs),
    /// Check settings without starting anything.
    CheckConfig(Settings),
    /// Lists the crash points of a test build.
    #[cfg(feature = "failpoints")]
    CrashPoints,
}

/// Settings by flag; they win over the environment (EPHOR_AGENT_NAME) and the file.
#[derive(Args, Clone)]
struct Settings {
    /// Settings file [default: /etc/ephor/agent.toml, if it is there].
    #[arg(long, value_name = "FILE", env = "EPHOR_AGENT_CONFIG")]
    config: Option<PathBuf>,
    /// Where identity, journal and checkpoint are.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The broker, as https://HOST:PORT.
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// The name of this host.
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
}

#[derive(Args)]
struct JoinArgs {
    #[command(flatten)]
    settings: Settings,
    /// File with the join token; `-` reads it from standard input.
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    settings: Settings,
    /// The socket that callers use.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Take over sockets, memory and open connections from the agent that runs, if one does; it
    /// ends then.
    #[arg(long)]
    take_over: bool,
    /// Write {"pid", "socket"} here, atomically, once serving.
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// Stop as for SIGTERM when standard input ends: for a parent that may be killed.
    #[arg(long)]
    stop_on_stdin_eof: bool,
}

/// The command line, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program with these arguments (without its own name).
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(std::iter::once("ephor-agent".into()).chain(args)) {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr() {
                say(&wrong_usage(&error.render().to_string()));
                return USAGE.into();
            }
            // --help and --version. A closed pipe is no reason to fail.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
    };
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&failure.text);
            failure.code.into()
        }
    }
}

/// What to say and how to exit.
struct Failure {
    code: u8,
    text: String,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self {
            code: CONFIG,
            text: error.to_string(),
        }
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    let (settings, socket) = match &command {
        Command::Join(args) => (args.settings.clone(), None),
        Command::Run(args) => (args.settings.clone(), args.socket.clone()),
        Command::CheckConfig(settings) => (settings.clone(), None),
        #[cfg(feature = "failpoints")]
        Command::CrashPoints => {
            list_crash_points();
            return Ok(());
        }
    };
    let flags = Partial {
        broker: settings.broker,
        state_dir: settings.state_dir,
        socket,
        host: settings.host,
        ..Partial::default()
    };
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let config = Config::load(settings.config.as_deref(), environment, flags)?;
    match command {
        Command::CheckConfig(_) => print_line(&format!(
            "ok: settings are good; socket {}, state in {}",
            config.socket.display(),
            config.state_dir.display()
        )),
        #[cfg(feature = "failpoints")]
        Command::CrashPoints => Ok(()),
        Command::Join(args) => {
            let made = vec![(config.state_dir.clone(), 0o700)];
            prepare(&config, made)?;
            block_on(join_host(&config, &args.token_file))?
        }
        Command::Run(args) => {
            let inherited = Inherited::take();
            let parent = config.socket.parent().map(Path::to_owned);
            let made = parent.map(|parent| (parent, 0o755)).into_iter().collect();
            let confined = prepare(&config, made)?;
            confined.publish(&config.state_dir);
            if args.stop_on_stdin_eof {
                let failed = |error| Failure {
                    code: CONFIG,
                    text: format!("invalid: cannot watch standard input: {error}"),
                };
                stop_when_stdin_ends().map_err(failed)?;
            }
            let ready_file = args.ready_file.as_deref();
            let ended = block_on(app::run(config, ready_file, inherited, args.take_over))?;
            ended.map_err(|error| Failure {
                code: CONFIG,
                text: error.to_string(),
            })
        }
    }
}

/// What was asked for goes to standard output.
fn print_line(line: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure {
            code: UNREACHABLE,
            text: format!("unreachable: standard output cannot be written: {error}"),
        })
}

/// Sends this process SIGTERM when standard input ends. A thread, because a runtime waits for
/// its blocking reads at shutdown.
fn stop_when_stdin_ends() -> std::io::Result<()> {
    let watch = || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(watch)
        .map(drop)
}

/// What comes before the first thread and the first secret. `made` are directories to make, with
/// their modes.
fn prepare(config: &Config, made: Vec<(PathBuf, u32)>) -> Result<Report, Failure> {
    logs(config.log_format);
    #[cfg(feature = "failpoints")]
    crate::crash::armed::check().map_err(|text| Failure { code: USAGE, text })?;
    let confined = harden::harden(config, made).map_err(|error| Failure {
        code: CONFIG,
        text: format!("invalid: {error}"),
    })?;
    tls::install();
    Ok(confined)
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(tasks::threads())
        .enable_all()
        .thread_name("ephor-agent")
        .build();
    let runtime = runtime.map_err(|error| Failure {
        code: CONFIG,
        text: format!("invalid: starting threads: {error}"),
    })?;
    Ok(runtime.block_on(work))
}

async fn join_host(config: &Config, token_file: &Path) -> Result<(), Failure> {
    let usage = |text: &str| Failure {
        code: USAGE,
        text: format!("invalid: {text}"),
    };
    let broker = config
        .broker
        .as_deref()
        .ok_or_else(|| usage("join needs --broker https://HOST:PORT. Nothing was sent"))?;
    let host: &HostName = config
        .host
        .as_ref()
        .ok_or_else(|| usage("join needs --host NAME. Nothing was sent"))?;
    let token = read_token(token_file)?;
    let tasks = Tasks::new();
    let correlation = app::correlations(SystemClock::shared());
    let asked = Join {
        broker,
        host,
        state_dir: &config.state_dir,
        correlation,
        tasks: &tasks,
    };
    let joined = join(&asked, &token).await;
    tasks.stop().cancel();
    let identity = joined.map_err(|error| Failure {
        code: join_code(&error),
        text: error.to_string(),
    })?;
    say(&format!(
        "joined {} as {}. Start it with: ephor-agent run",
        broker, identity.leaf.spiffe_id
    ));
    Ok(())
}

fn read_token(path: &Path) -> Result<Token, Failure> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    let read = if path == Path::new("-") {
        std::io::stdin().take(4096).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(4096).read_to_string(&mut text))
    };
    let shown = path.display();
    if let Err(error) = read {
        return Err(Failure {
            code: CONFIG,
            text: format!(
                "invalid: reading the join token from {shown}: {error}. Nothing was sent"
            ),
        });
    }
    let not_one = || Failure {
        code: CONFIG,
        text: JoinError::Token(shown.to_string()).to_string(),
    };
    Token::parse(&text).ok_or_else(not_one)
}

fn join_code(error: &JoinError) -> u8 {
    match error {
        JoinError::Connect(_) | JoinError::Broken(_) => UNREACHABLE,
        JoinError::Refused(problem) => match problem.code.first_word() {
            FirstWord::Unreachable => UNREACHABLE,
            FirstWord::Denied | FirstWord::Pending | FirstWord::Overdue | FirstWord::Invalid => {
                REFUSED
            }
        },
        JoinError::Token(_)
        | JoinError::Joined(_)
        | JoinError::Answer(_)
        | JoinError::Identity(_)
        | JoinError::Crypto(_) => CONFIG,
    }
}

/// Logs go to standard error; `EPHOR_LOG` says which.
fn logs(format: LogFormat) {
    let filter = EnvFilter::try_from_env("EPHOR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = quieted(filter);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second start in one process (tests) keeps the first's.
    let _ = match format {
        LogFormat::Human => builder
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

fn quieted(filter: EnvFilter) -> EnvFilter {
    let quiet = QUIET.iter().filter_map(|directive| directive.parse().ok());
    quiet.fold(filter, EnvFilter::add_directive)
}

#[cfg(feature = "failpoints")]
#[allow(clippy::print_stdout, reason = "test builds only")]
fn list_crash_points() {
    println!("{}", crate::crash::POINTS.join("\n"));
}

/// A line for the person who started this.
#[allow(
    clippy::print_stderr,
    reason = "the one place where this program speaks to a person"
)]
fn say(text: &str) {
    eprintln!("ephor-agent: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(args: &[&str]) -> ExitCode {
        main(args.iter().map(OsString::from))
    }

    #[test]
    fn no_setting_makes_libraries_say_more() {
        for asked in ["trace", "h2=trace,hyper=debug,rustls=trace"] {
            let shown = quieted(EnvFilter::new(asked)).to_string();
            for directive in QUIET {
                assert!(
                    shown.split(',').any(|one| one == directive),
                    "{directive} in {shown}"
                );
            }
            for louder in ["h2=trace", "hyper=debug", "rustls=trace"] {
                assert!(!shown.contains(louder), "{shown}");
            }
        }
    }

    #[test]
    fn the_first_word_of_wrong_usage_is_invalid() {
        for (words, begins) in [
            (&["fly"][..], "invalid: unrecognized subcommand 'fly'"),
            (&[], "invalid: name what to do.\n"),
            (
                &["run", "--nothing"],
                "invalid: unexpected argument '--nothing'",
            ),
        ] {
            let argv = std::iter::once(&"ephor-agent").chain(words);
            let said = Cli::try_parse_from(argv)
                .map(drop)
                .map_err(|error| wrong_usage(&error.render().to_string()));
            assert!(said.as_ref().unwrap_err().starts_with(begins), "{said:?}");
        }
    }

    #[test]
    fn exit_codes_of_usage_and_settings() {
        assert_eq!(code(&["--help"]), ExitCode::SUCCESS);
        assert_eq!(code(&["--version"]), ExitCode::SUCCESS);
        assert_eq!(code(&[]), USAGE.into());
        assert_eq!(code(&["fly"]), USAGE.into());
        assert_eq!(code(&["run", "--no-such-flag"]), USAGE.into());
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/agent.toml");
        assert_eq!(
            code(&["check-config", "--config", sample]),
            ExitCode::SUCCESS
        );
        assert_eq!(
            code(&["check-config", "--config", "/nonexistent"]),
            CONFIG.into()
        );
        assert_eq!(
            code(&["check-config", "--config", sample, "--host", "a/b"]),
            CONFIG.into()
        );
    }
}
