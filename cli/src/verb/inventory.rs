//! `ephor inventory scan`: what others left on a PostgreSQL server, and who is still in there.
//!
//! It reads one snapshot with the rights of whoever runs it, and changes nothing. What that login
//! may not see is said, never taken for nothing. Clean-up SQL is printed, never run.

mod look; //   one read-only transaction
mod seen; //   what it saw
mod maker; //  who made a login, by its name
mod owner; //  who answers for it, by the comment on it
mod reach; //  which rights a role has through its groups
mod report; // what is wrong about each
mod told; //   for people
mod plan; //   what a clean-up removes, and what not
mod script; // the clean-up, for psql
mod quote; //  names in it

use std::process::ExitCode;

use serde::Serialize;
use tokio_postgres::Client;

use self::report::{Login, Report};
use self::seen::Seen;
use crate::args::{self, Output};
use crate::exit::{CHECK_FAILED, Failure, Outcome};
use crate::postgres::Target;
use crate::show::{self, Column};

/// Does what was asked.
pub async fn inventory(verb: args::Inventory) -> Outcome {
    match verb {
        args::Inventory::Scan(args) => scan(args).await,
    }
}

/// Looks, and prints. With `--sql` the answer is the SQL; else something left over is exit 1.
async fn scan(args: args::Scan) -> Outcome {
    let target = Target::of(&args.url)?;
    let (address, name) = (target.address.to_string(), target.name());
    let look = async |client: &mut Client| look::look(client, address, name).await;
    let mut seen = target.with(look::OPTIONS, look).await?;
    seen.lent = lent(&target, &seen).await;
    let report = report::report(&seen);
    if args.sql {
        let text = sql(&seen, &report, args.reassign_to.as_deref())?;
        show::to_stdout(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&report, args.output)?;
    Ok(if report.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(CHECK_FAILED)
    })
}

/// What brokers of ours lend there, wherever their tables are; `None` when one of them cannot be read.
async fn lent(target: &Target, seen: &Seen) -> Option<Vec<u32>> {
    let mut lent = Vec::new();
    for database in seen.databases_of_ephor()? {
        let target = target.in_database(&database);
        let look = async |client: &mut Client| look::lent(client).await;
        lent.append(&mut target.with(look::OPTIONS, look).await.ok()??);
    }
    Some(lent)
}

fn sql(seen: &Seen, report: &Report, reassign_to: Option<&str>) -> Result<String, Failure> {
    let (Some(prepared), Some(_)) = (&seen.prepared, &seen.holdings) else {
        let not_seen = report.not_seen.join("\n");
        return Err(Failure::denied(format!(
            "no SQL without knowing all that they hold.\n{not_seen}"
        )));
    };
    let plan = plan::plan(report, prepared, reassign_to)?;
    Ok(script::script(report, &plan))
}

/// The report for programs.
#[derive(Serialize)]
struct Told<'a> {
    server: &'a seen::Server,
    clean: bool,
    not_seen: &'a [String],
    logins: &'a [Login],
}

fn print(report: &Report, output: Output) -> Result<(), Failure> {
    let told = Told {
        server: &report.server,
        clean: report.is_clean(),
        not_seen: &report.not_seen,
        logins: &report.logins,
    };
    if output == Output::Csv {
        for not_seen in &report.not_seen {
            show::to_stderr(&format!("ephor: not seen: {not_seen}\n"));
        }
    }
    let text = told::text(report, show::to_terminal().then_some(show::WIDTH));
    show::group(output, &told, &report.logins, &columns(), &text)
}

/// One line a login, for a review in a spreadsheet.
fn columns() -> [Column<Login>; 16] {
    let time =
        |at: Option<ephor_proto::time::UnixMillis>| at.map(|at| at.to_string()).unwrap_or_default();
    let count = |count: Option<u64>| count.map(|count| count.to_string()).unwrap_or_default();
    [
        Column::new("login", |login: &Login| {
            login.name.clone().unwrap_or_default()
        }),
        Column::new("oid", |login: &Login| login.oid.to_string()),
        Column::new("made_by", |login: &Login| login.maker.word().to_owned()),
        Column::new("installation", |login: &Login| {
            login.installation.clone().unwrap_or_default()
        }),
        Column::new("made_at", move |login: &Login| time(login.made_at)),
        Column::new("valid_until", move |login: &Login| time(login.valid_until)),
        Column::new("owner", |login: &Login| {
            login.owner.clone().unwrap_or_default()
        }),
        Column::new("comment", |login: &Login| {
            login.comment.clone().unwrap_or_default()
        }),
        Column::new("findings", |login: &Login| {
            words(login.findings.iter().map(|finding| finding.word()))
        }),
        Column::new("sessions", |login: &Login| {
            login
                .sessions
                .as_ref()
                .map(|sessions| sessions.len().to_string())
                .unwrap_or_default()
        }),
        Column::new("connected_past_seconds", move |login: &Login| {
            count(login.connected_past_seconds)
        }),
        Column::new("powers", |login: &Login| {
            words(login.powers.iter().map(reach::Power::told))
        }),
        Column::new("groups", |login: &Login| words(&login.groups)),
        Column::new("members", |login: &Login| words(&login.members)),
        Column::new("owns", move |login: &Login| {
            count(login.holds.is_some().then(|| login.owned()))
        }),
        Column::new("named_in", move |login: &Login| {
            let holds = login.holds.as_ref();
            count(holds.map(|holds| holds.iter().map(|holds| holds.named_in).sum()))
        }),
    ]
}

fn words<W: AsRef<str>>(words: impl IntoIterator<Item = W>) -> String {
    let words: Vec<String> = words
        .into_iter()
        .map(|word| word.as_ref().to_owned())
        .collect();
    words.join("; ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
