//! `ephor`: one command for users, operators and governance.

mod args; //    the command line
mod exit; //    exit codes, and how a failure is said
mod clock; //   the only reader of clocks
mod client; //  HTTP over the agent's and the broker's Unix sockets
mod cred; //    `cred://` references: where from
mod postgres; // a PostgreSQL server as people name it
mod pems; //    a certificate as files of PEM
mod login; //   a database login as a URL, variables, files or JSON
mod process; // starting processes with a chosen signal mask, and waiting for them
mod signals; // signals as a stream that says who sent them
mod show; //    tables, JSON, CSV; times and ids as people read them
mod words; //   small wording shared by the verbs
mod verify; //  audit exports: written and checked
mod verb; //    one module a verb

use std::process::ExitCode;

/// Both daemons allocate much and briefly on many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut argv = std::env::args_os();
    // `dev` and `demo` run broker and agent as processes of their own, from this binary.
    match argv.nth(1).as_deref().and_then(|verb| verb.to_str()) {
        Some("__broker") => ephor_broker::cli::main(argv),
        Some("__agent") => ephor_agent::cli::main(argv),
        Some(_) | None => verb::main(),
    }
}
