//! One module a verb, dispatched on a runtime of one thread: these are commands, not servers.

mod run;
mod cert;
mod db;
mod hold;
mod token;
mod whoami;
mod dev;
mod demo;
mod task;
mod credential;
mod host;
mod policy;
mod audit;
mod broker;
mod target;
mod inventory;
mod doctor;
mod completion;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use ephor_proto::problem::wrong_usage;

use crate::args::{Cli, Verb};
use crate::exit::{self, Failure, Outcome};

/// Parses the command line, does it, and says what went wrong.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(why) => return usage(&why),
    };
    let outcome = match cli.verb {
        // Outlives its parent and must hold nothing: no runtime.
        Verb::Clean { dir } => return run::cleaner_main(&dir),
        Verb::Completion(args) => completion::completion(&args),
        Verb::Man(args) => completion::man(&args),
        verb => on_runtime(verb),
    };
    outcome.unwrap_or_else(|failure| exit::report(&failure))
}

fn usage(why: &clap::Error) -> ExitCode {
    let text = why.render().to_string();
    match why.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let shown = crate::show::to_stdout(&text);
            shown.map_or_else(|failure| exit::report(&failure), |()| ExitCode::SUCCESS)
        }
        _ => {
            crate::show::to_stderr(&format!("ephor: {}\n", wrong_usage(&text)));
            ExitCode::from(exit::USAGE)
        }
    }
}

fn on_runtime(verb: Verb) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|why| Failure::local("cannot start", why))?;
    let outcome = runtime.block_on(dispatch(verb));
    // Nothing may hold the exit up: what still runs there is abandoned by design.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(verb: Verb) -> Outcome {
    match verb {
        Verb::Demo(args) => demo::demo(args).await,
        Verb::Dev(args) => dev::dev(args).await,
        Verb::Run(args) => run::run(args).await,
        Verb::Db(args) => db::db(args).await,
        Verb::Hold(args) => hold::hold(args).await,
        Verb::Holding { variable, parent } => hold::holding(&variable, parent).await,
        Verb::KeepPg => dev::keeper_main().await,
        Verb::Token(args) => token::token(args).await,
        Verb::Cert(args) => cert::cert(args).await,
        Verb::Task(args) => task::task(args).await,
        Verb::Credential(args) => credential::credential(args).await,
        Verb::Host(args) => host::host(args).await,
        Verb::Policy(args) => policy::policy(args).await,
        Verb::Audit(args) => audit::audit(args).await,
        Verb::Broker(args) => broker::broker(args).await,
        Verb::Target(args) => target::target(args).await,
        Verb::Inventory(args) => inventory::inventory(args).await,
        Verb::Whoami(args) => whoami::whoami(args).await,
        Verb::Doctor(args) => doctor::doctor(args).await,
        Verb::Completion(args) => completion::completion(&args),
        Verb::Man(args) => completion::man(&args),
        Verb::DemoApp {
            port,
            tls_port,
            audience,
        } => demo::app_main(port, tls_port, &audience).await,
        Verb::Clean { dir } => Ok(run::cleaner_main(&dir)),
    }
}
