//! `ephor-broker init | run | check-config`, also reached as `ephor __broker`.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use ephor_confine::logs::QUIET;
use ephor_confine::supervise::Inherited;
use ephor_proto::problem::wrong_usage;
use tracing_subscriber::EnvFilter;

use crate::app::{self, InitOptions, StartError};
use crate::clock::SystemClock;
use crate::config::{Config, LogFormat, Settings};
use crate::harden;
use crate::policy::Snapshot;
use crate::recover::{self, RestoreOptions};

const USAGE: u8 = 64;
const CONFIG: u8 = 78;

/// The central service of Ephor: decides, issues, revokes and proves.
#[derive(Parser)]
#[command(name = "ephor-broker", version, disable_help_subcommand = true)]
struct Arguments {
    /// Settings file (default: /etc/ephor/broker.toml if it exists).
    #[arg(long, global = true, env = "EPHOR_BROKER_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a new installation and print its first join token.
    Init {
        /// Host name or pattern that the token is good for.
        #[arg(long, default_value = "*", value_name = "HOST")]
        token_for: String,
        /// Write the token to this new file (mode 0600) instead of printing it.
        #[arg(long)]
        token_file: Option<PathBuf>,
        /// Make no join token.
        #[arg(long, conflicts_with_all = ["token_file", "token_for"])]
        no_token: bool,
    },
    /// Serve until SIGTERM or SIGINT.
    Run {
        /// Write addresses and keys to this file (JSON) once everything is served.
        #[arg(long)]
        ready_file: Option<PathBuf>,
        /// Stop as for SIGTERM when standard input ends: for a parent that may be killed.
        #[arg(long)]
        stop_on_stdin_eof: bool,
    },
    /// Put a backup in the place of the store, while no broker runs. It then begins a new epoch.
    Restore {
        /// The backup: a directory that `ephor broker backup` made.
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        /// Move a store that is there aside.
        #[arg(long)]
        force: bool,
    },
    /// Check settings and policy, and stop.
    CheckConfig,
    /// Lists the crash points of a test build.
    #[cfg(feature = "failpoints")]
    CrashPoints,
}

/// The command line, for manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the command line; `args` without the program's name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments =
        match Arguments::try_parse_from(std::iter::once("ephor-broker".into()).chain(args)) {
            Ok(arguments) => arguments,
            Err(error) => {
                if error.use_stderr() {
                    complain(&wrong_usage(&error.render().to_string()));
                    return ExitCode::from(USAGE);
                }
                // --help and --version. A closed pipe is no reason to fail.
                let _ = error.print();
                return ExitCode::SUCCESS;
            }
        };
    match execute(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err((message, code)) => {
            complain(&message);
            ExitCode::from(code)
        }
    }
}

/// The environment variables that are settings.
fn variables(command: &clap::Command) -> impl Iterator<Item = &str> {
    command
        .get_arguments()
        .filter_map(|argument| argument.get_env()?.to_str())
}

fn execute(arguments: Arguments) -> Result<(), (String, u8)> {
    #[cfg(feature = "failpoints")]
    crate::crash::armed::check().map_err(|text| (text, USAGE))?;
    let bad_setting = |error: crate::config::ConfigError| (error.to_string(), CONFIG);
    let names = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let command = Arguments::command();
    let known: Vec<_> = variables(&command).collect();
    crate::config::check_variables(names, &known).map_err(bad_setting)?;
    let config =
        Config::load(arguments.config.as_deref(), arguments.settings).map_err(bad_setting)?;
    start_log(config.log_format);
    let failed = |error: StartError| (error.to_string(), error.exit_code());
    let unconfined = |error: ephor_confine::ConfineError| (format!("invalid: {error}"), CONFIG);
    match arguments.command {
        Command::Init {
            token_for,
            token_file,
            no_token,
        } => {
            harden::harden(&config, harden::For::Init).map_err(unconfined)?;
            let options = InitOptions {
                token_for: (!no_token).then_some(token_for),
                token_file,
            };
            match app::init(&config, &options).map_err(failed)? {
                Some(token) => print_line(token.expose()),
                None => Ok(()),
            }
        }
        Command::Run {
            ready_file,
            stop_on_stdin_eof,
        } => {
            let inherited = Inherited::take();
            let ready = ready_file.as_deref();
            harden::harden(&config, harden::For::Run { ready })
                .map_err(unconfined)?
                .publish(&config.state_dir);
            if stop_on_stdin_eof {
                stop_when_stdin_ends().map_err(|error| {
                    (
                        format!("invalid: cannot watch standard input: {error}"),
                        CONFIG,
                    )
                })?;
            }
            app::run(&config, ready_file.as_deref(), inherited).map_err(failed)
        }
        Command::Restore { from, force } => {
            harden::harden(&config, harden::For::Init).map_err(unconfined)?;
            let options = RestoreOptions { from, force };
            let restored = recover::restore(&config, &options, SystemClock::shared().wall());
            let restored = restored.map_err(|error| (error.to_string(), CONFIG))?;
            print_line(restored.to_string().as_bytes())
        }
        #[cfg(feature = "failpoints")]
        Command::CrashPoints => print_line(crate::crash::POINTS.join("\n").as_bytes()),
        Command::CheckConfig => {
            let policy =
                Snapshot::load(&config.policy_dir).map_err(|error| (error.to_string(), CONFIG))?;
            print_line(
                format!(
                    "ok: settings are good; policy {} of {}",
                    policy.version(),
                    policy.trust_domain()
                )
                .as_bytes(),
            )
        }
    }
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

/// Logs go to stderr; what is logged is `EPHOR_LOG`'s to say.
fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("EPHOR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let quiet = QUIET.iter().filter_map(|directive| directive.parse().ok());
    let filter = quiet.fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // Already set in a process that runs several of us, such as a test: that one stays.
    let _ = match format {
        LogFormat::Human => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(ansi).try_init()
        }
        LogFormat::Json => builder.json().try_init(),
    };
}

fn print_line(line: &[u8]) -> Result<(), (String, u8)> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(line)
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush())
        .map_err(|error| (format!("cannot write to stdout: {error}"), 70))
}

fn complain(message: &str) {
    // Where stderr is closed nobody reads it.
    let _ = writeln!(std::io::stderr(), "ephor-broker: {message}");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("ephor-broker").chain(words.iter().copied()))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
        let run = parse(&[
            "run",
            "--ready-file",
            "/r",
            "--take-over",
            "--state-dir",
            "/s",
        ])
        .unwrap();
        assert_eq!(run.settings.take_over, Some(true));
        assert_eq!(run.settings.state_dir, Some("/s".into()));
        assert!(matches!(
            run.command,
            Command::Run {
                ready_file: Some(_),
                stop_on_stdin_eof: false
            }
        ));
        assert!(parse(&["--config", "/f", "check-config"]).is_ok());
        assert!(parse(&["init", "--no-token"]).is_ok());
        assert!(parse(&["init", "--no-token", "--token-file", "/t"]).is_err());
        assert!(parse(&[]).is_err());
        assert!(parse(&["run", "--https-listen", "nowhere"]).is_err());
    }

    #[test]
    fn the_first_word_of_wrong_usage_is_invalid() {
        for (words, begins) in [
            (&["walk"][..], "invalid: unrecognized subcommand 'walk'"),
            (&[], "invalid: name what to do.\n"),
            (
                &["run", "--https-listen", "nowhere"],
                "invalid: value 'nowhere' for '--https-listen ",
            ),
        ] {
            let said = parse(words)
                .map(drop)
                .map_err(|error| wrong_usage(&error.render().to_string()));
            assert!(said.as_ref().unwrap_err().starts_with(begins), "{said:?}");
        }
    }

    #[test]
    fn every_key_is_a_variable_too() {
        let command = Arguments::command();
        let named: Vec<_> = variables(&command).collect();
        assert!(
            named.contains(&"EPHOR_BROKER_STATE_DIR") && named.contains(&"EPHOR_BROKER_CONFIG")
        );
        assert_eq!(named.len(), 21, "{named:?}");
    }

    #[test]
    fn wrong_usage_is_64() {
        let code = |words: &[&str]| format!("{:?}", main(words.iter().map(OsString::from)));
        assert_eq!(code(&["walk"]), format!("{:?}", ExitCode::from(64)));
        assert_eq!(
            code(&["--config", "/nonexistent", "check-config"]),
            format!("{:?}", ExitCode::from(78))
        );
    }
}
