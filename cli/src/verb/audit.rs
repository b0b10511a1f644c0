//! `ephor audit show|ls|export|verify|key`

mod about;
mod events;
mod story;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use ephor_proto::http::admin::{Credential, Pruned, Record, Status};
use ephor_proto::id::{IdQuery, TaskId};
use ephor_proto::log::VerifierKey;

use crate::args;
use crate::client::{Peer, segment};
use crate::clock;
use crate::exit::{CHECK_FAILED, Failure, Outcome, USAGE};
use crate::show::{self, moment};
use crate::verify::{self, Dir, Log, Proven, Source};
use crate::words::plural;

/// Most tasks and decisions that are asked for around one id.
const AROUND_MAX: usize = 20;

/// Does what was asked.
pub async fn audit(verb: args::Audit) -> Outcome {
    let broker = Peer::broker();
    match verb {
        args::Audit::Show { id, listing } => show_about(&broker, &id, listing.output).await?,
        args::Audit::Ls {
            limit,
            after,
            listing,
        } => {
            let records = latest(&broker, limit, after).await?;
            show::listing(
                listing.output,
                &records,
                &events::short(),
                &events::whole(),
                "No events.",
            )?;
        }
        args::Audit::Export { to } => {
            let summary = verify::export(&broker, &to).await?;
            show::to_stdout(&exported(&summary, &to))?;
        }
        args::Audit::Verify { dir, task, key } => {
            if !dir.is_dir() {
                return Err(Failure::usage(format!(
                    "{} is no directory. Name the one that was written:  ephor audit export --to DIR",
                    dir.display()
                )));
            }
            show::to_stdout(&verified(&Dir(dir), task.as_deref(), &key)?)?
        }
        args::Audit::Key => {
            let status: Status = broker.read("/v1/status").await?;
            show::to_stdout(&format!("{}\n", status.log_key))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// So many events after a leaf; without one, the newest.
async fn latest(broker: &Peer, limit: u32, after: Option<u64>) -> Result<Vec<Record>, Failure> {
    let after = match after {
        Some(after) => Some(after),
        None => {
            let status: Status = broker.read("/v1/status").await?;
            status
                .log_size
                .saturating_sub(u64::from(limit))
                .checked_sub(1)
        }
    };
    let after = after
        .map(|after| format!("&after={after}"))
        .unwrap_or_default();
    broker
        .read(&format!("/v1/audit?limit={limit}{after}"))
        .await
}

async fn show_about(broker: &Peer, id: &str, output: args::Output) -> Result<(), Failure> {
    let records: Vec<Record> = broker.read(&format!("/v1/audit/{}", segment(id))).await?;
    let status: Status = broker.read("/v1/status").await?;
    if records.is_empty() {
        let pruned = status.pruned.filter(|pruned| pruned.entries > 0);
        let also = pruned.map_or_else(String::new, |pruned| {
            format!(
                "\nThe text of the first {} events was pruned by retention, last on {}.",
                pruned.entries,
                moment(pruned.at, clock::wall())
            )
        });
        return Err(Failure::usage(format!(
            "no event is about `{id}`.{also}\nTo see what there is:  ephor audit ls"
        )));
    }
    let found = about::credentials(&records, id);
    // An event names its task and its decision: what they tell completes the story.
    let mut pool: BTreeMap<u64, Record> = BTreeMap::new();
    let around = about::around(&records, &found);
    for also in around.into_iter().take(AROUND_MAX) {
        let more: Vec<Record> = broker
            .read(&format!("/v1/audit/{}", segment(&also)))
            .await?;
        pool.extend(more.into_iter().map(|record| (record.index, record)));
    }
    pool.extend(records.iter().map(|record| (record.index, record.clone())));
    let mut text = String::new();
    let mut is_pruned = all_before(&records, status.pruned.as_ref());
    for credential in &found {
        let now = state_now(broker, credential).await?;
        is_pruned |= now.is_none();
        text.push_str(&story::of(
            credential,
            &pool,
            now.as_ref(),
            clock::wall(),
            show::to_terminal(),
        ));
        text.push('\n');
    }
    let fit = show::to_terminal().then_some(show::WIDTH);
    text.push_str(&show::table(&records, &events::short(), fit));
    if let Some(pruned) = status.pruned.filter(|_| is_pruned) {
        let (at, before) = (
            moment(pruned.at, clock::wall()),
            moment(pruned.before, clock::wall()),
        );
        text.push_str(&format!(
            "Its detail was pruned by retention, which on {at} took what was over before {before}. These events remain.\n"
        ));
    }
    show::group(output, &records, &records, &events::whole(), &text)
}

/// Whether all of it is from before what retention keeps.
fn all_before(records: &[Record], pruned: Option<&Pruned>) -> bool {
    let is_before = |record: &Record| {
        pruned.is_some_and(|pruned| {
            events::time(record, "/time").is_some_and(|time| time < pruned.before)
        })
    };
    records.iter().all(is_before)
}

/// The credential as it stands; `None` once its row is pruned.
async fn state_now(broker: &Peer, credential: &str) -> Result<Option<Credential>, Failure> {
    match broker
        .read(&format!("/v1/credentials/{}", segment(credential)))
        .await
    {
        Ok(credential) => Ok(Some(credential)),
        Err(failure) if failure.code == USAGE => Ok(None),
        Err(failure) => Err(failure),
    }
}

fn exported(summary: &verify::Summary, to: &Path) -> String {
    let pruned = match summary.pruned {
        0 => String::new(),
        pruned => format!(", the text of the first {pruned} pruned by retention"),
    };
    format!(
        "{}/  log/ ({}{pruned})  receipts/ ({})  verify.py (short; read it)\nCheck it without us:\n  python3 {0}/verify.py {0} --key {}\n",
        to.display(),
        plural(
            usize::try_from(summary.events).unwrap_or(usize::MAX),
            "event"
        ),
        summary.receipts,
        summary.key,
    )
}

fn verified(source: &impl Source, task: Option<&str>, key: &str) -> Result<String, Failure> {
    let key: VerifierKey = key
        .parse()
        .map_err(|why| Failure::usage(format!("--key: {why}")))?;
    let wanted = match task {
        Some(task) => vec![named(source, task)?],
        None => source.receipts().map_err(refused)?.into_iter().collect(),
    };
    let log = Log::read(source, &key).map_err(refused)?;
    let events = usize::try_from(log.size()).unwrap_or(usize::MAX);
    let mut out = format!(
        "ok: {}, root signed by {}\n",
        plural(events, "event"),
        key.name()
    );
    if log.pruned() > 0 {
        out.push_str(&format!(
            "    of the first {} only the hashes are there: retention pruned their text, as the log says\n",
            log.pruned()
        ));
    }
    for task in wanted {
        out.push_str(&holds(&log.check(source, task).map_err(refused)?));
    }
    Ok(out)
}

/// The task, or receipt, that a person means by any form of its id.
fn named(source: &impl Source, typed: &str) -> Result<TaskId, Failure> {
    let query: IdQuery = typed.parse().map_err(Failure::usage)?;
    let all = source.receipts().map_err(refused)?;
    let mut found = all
        .into_iter()
        .filter(|task| query.matches(task) || query.matches(&task.receipt()));
    match (found.next(), found.next()) {
        (Some(task), None) => Ok(task),
        (None, _) => Err(Failure::usage(format!(
            "this export has no receipt of `{typed}`."
        ))),
        (Some(_), Some(_)) => Err(Failure::usage(format!(
            "`{typed}` fits several tasks: write more of it."
        ))),
    }
}

fn holds(proven: &Proven) -> String {
    let totals = proven.event.totals.unwrap_or_default();
    let now = clock::wall();
    let end = show::Ended {
        dead: totals.dead,
        listed: totals.listed,
        listed_kinds: Vec::new(),
        listed_until: totals.listed_until,
        receipt: Some(proven.task.receipt().short()),
    };
    let at = moment(proven.event.time, now);
    format!(
        "ok: leaf {}, {at}, task {}: {}\n",
        proven.index,
        proven.task,
        show::ended(&end, now)
    )
}

fn refused(why: verify::Refused) -> Failure {
    Failure::new(
        CHECK_FAILED,
        format!("invalid: {why}.\nThe export was changed, or the key is another log's."),
    )
}
