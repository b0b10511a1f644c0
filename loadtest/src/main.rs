//! Measures Ephor on this machine. Throughput and latency stand beside *bare* ones from the same
//! run: the same socket and HTTP stack answering a constant, or a constant and one signature. The
//! ratio survives a noisy machine; the absolute figures do not. What a bare server does not have
//! (an end that is noticed, memory of what is held, restarts) is measured against fixed targets.

mod args; //      the command line
mod certificates; // logins that a certificate lets in
mod bare; //      the server to compare with
mod chaos; //     both daemons killed at random
mod client; //    HTTP/1.1 over a Unix socket or TLS, one keep-alive connection
mod clock; //     the only place that reads a clock
mod crowd; //     as many live credentials as there are to be
mod ends; //      database logins whose tasks end
mod fixture; //   broker and agent under test
mod host; //      CPU, memory and run queue, from /proc
mod inventory; // a look at a server full of left-overs
mod logins; //    a database server's logins, made and dropped
mod measure; //   closed loop, open loop, histograms
mod operate; //   everything that is done to a service that runs
mod pgbench; //   what is typed at a database server to compare with
mod raw; //       a client that costs the machine little
mod scale; //     many logins, and everything restarted
mod scenario; //  what is measured
mod target; //    a PostgreSQL server, made a target
mod workers; //   client processes with tasks of their own

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    ephor_crypto::tls::install();
    match run(args::Cli::parse()) {
        Ok(held) => ExitCode::from(u8::from(!held)),
        Err(why) => {
            host::say(&format!("loadtest: {why:#}"));
            ExitCode::from(1)
        }
    }
}

fn run(cli: args::Cli) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match cli.what {
        args::What::BareServer { socket, sign } => {
            runtime.block_on(bare::serve(&socket, sign)).map(|()| true)
        }
        args::What::Holder { socket } => runtime
            .block_on(scenario::exit::hold(&socket))
            .map(|()| true),
        args::What::LoginHolder {
            socket,
            entitlement,
        } => runtime
            .block_on(ends::hold(&socket, &entitlement))
            .map(|()| true),
        args::What::CertificateHolder { socket } => runtime
            .block_on(scenario::certificate::hold(&socket))
            .map(|()| true),
        args::What::Worker { socket, work } => runtime
            .block_on(workers::work(&socket, &work))
            .map(|()| true),
        args::What::Chaos(chaos) => chaos::run(&chaos),
        args::What::CertificateLogins(logins) => runtime.block_on(certificates::run(&logins)),
        args::What::Logins(logins) => runtime.block_on(logins::run(&logins)),
        args::What::Ends(ends) => runtime.block_on(ends::run(&ends)),
        args::What::Scale(scale) => runtime.block_on(scale::run(&scale)),
        args::What::Inventory(inventory) => inventory::run(&inventory),
        args::What::Operate(operate) => operate::run(&runtime, &operate),
        args::What::Task { socket } => ephor_testkit::chaos::task::serve(&socket).map(|()| true),
        args::What::Run(run) => runtime.block_on(scenario::run_all(run)),
    }
}
