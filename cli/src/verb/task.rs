//! `ephor task ls|show|end`

use std::process::ExitCode;

use ephor_proto::http::admin::{Credential, Ended, Reason, Task};
use ephor_proto::id::TaskId;

use crate::args;
use crate::client::{Peer, segment};
use crate::clock;
use crate::exit::{Outcome, STILL_REVOKING};
use crate::show::{self, Column, Fields, brief, moment, path_of};
use crate::words::plural;

/// Does what was asked.
pub async fn task(verb: args::Task) -> Outcome {
    let broker = Peer::broker();
    match verb {
        args::Task::Ls { all, listing } => {
            let target = if all {
                "/v1/tasks"
            } else {
                "/v1/tasks?state=open"
            };
            let tasks: Vec<Task> = broker.read(target).await?;
            let none = if all {
                "No tasks."
            } else {
                "No open tasks.  Closed ones, too: ephor task ls --all"
            };
            show::listing(listing.output, &tasks, &short(), &whole(), none)?;
        }
        args::Task::Show { id, listing } => {
            let task: Task = broker.read(&format!("/v1/tasks/{}", segment(&id))).await?;
            show::single(listing.output, &task, &whole(), &told(&task))?;
        }
        args::Task::End { id, reason } => {
            let target = format!("/v1/tasks/{}/end", segment(&id));
            let ended: Ended = broker.post(&target, &Reason { reason }).await?;
            return say_ended(&broker, &ended, None).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Says how an end came out; exit 80 while something that should be over is not. `only` one
/// credential was to be ended, or else all of the task.
pub(super) async fn say_ended(broker: &Peer, ended: &Ended, only: Option<&Credential>) -> Outcome {
    let task: Task = broker.read(&format!("/v1/tasks/{}", ended.task)).await?;
    let concerned: Vec<Credential> = match only {
        Some(only) => task
            .credentials
            .into_iter()
            .filter(|credential| credential.id == only.id)
            .collect(),
        None => task.credentials,
    };
    let listed = concerned
        .iter()
        .filter(|credential| show::state_word(&credential.state) == "listed");
    let end = show::Ended {
        dead: ended.dead,
        listed: ended.listed,
        listed_kinds: listed
            .map(|credential| show::kind_word(&credential.kind))
            .collect(),
        listed_until: ended.listed_until,
        receipt: ended
            .receipt
            .as_ref()
            .map(|_| receipt_of(ended.task, &task.short)),
    };
    show::to_stdout(&format!("{}\n", show::ended(&end, clock::wall())))?;
    let open = show::unsettled(&concerned);
    if open == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    show::to_stderr(&format!(
        "ephor: overdue: {} still being revoked; it is tried until it is done.\n       To follow:  ephor task show {}\n",
        plural(open, "credential"),
        task.short
    ));
    Ok(ExitCode::from(STILL_REVOKING))
}

/// A receipt has the bits of its task, so the short form is as unique.
fn receipt_of(task: TaskId, short: &str) -> String {
    match short.strip_prefix("t-") {
        Some(suffix) => format!("r-{suffix}"),
        None => task.receipt().short(),
    }
}

fn state(task: &Task) -> String {
    match &task.cause {
        Some(cause) => format!("{} ({cause})", task.state),
        None => task.state.clone(),
    }
}

/// `2 live, 1 listed`
fn credentials(task: &Task) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for word in task
        .credentials
        .iter()
        .map(|credential| show::state_word(&credential.state))
    {
        match counts.iter_mut().find(|(known, _)| *known == word) {
            Some((_, number)) => *number += 1,
            None => counts.push((word, 1)),
        }
    }
    let parts: Vec<String> = counts
        .into_iter()
        .map(|(word, number)| format!("{number} {word}"))
        .collect();
    if parts.is_empty() {
        "none".to_owned()
    } else {
        parts.join(", ")
    }
}

fn short() -> [Column<Task>; 6] {
    let now = clock::wall();
    [
        Column::new("TASK", |task: &Task| task.short.clone()),
        Column::elastic("SUBJECT", |task: &Task| path_of(&task.subject).to_owned()),
        Column::elastic("HOST", |task: &Task| task.host.clone()),
        Column::new("SINCE", move |task: &Task| brief(task.opened_at, now)),
        Column::new("STATE", state),
        Column::elastic("CREDENTIALS", credentials),
    ]
}

fn whole() -> [Column<Task>; 11] {
    [
        Column::new("task", |task: &Task| task.id.to_string()),
        Column::new("subject", |task: &Task| task.subject.clone()),
        Column::new("host", |task: &Task| task.host.clone()),
        Column::new("pid", |task: &Task| task.pid.to_string()),
        Column::new("rule", |task: &Task| task.rule.clone()),
        Column::new("state", |task: &Task| task.state.clone()),
        Column::new("cause", |task: &Task| {
            task.cause.clone().unwrap_or_default()
        }),
        Column::new("opened_at", |task: &Task| task.opened_at.to_string()),
        Column::new("ended_at", |task: &Task| {
            task.ended_at.map(|at| at.to_string()).unwrap_or_default()
        }),
        Column::new("credentials", |task: &Task| {
            task.credentials.len().to_string()
        }),
        Column::new("overdue", |task: &Task| {
            task.credentials
                .iter()
                .filter(|c| c.overdue.is_some())
                .count()
                .to_string()
        }),
    ]
}

fn told(task: &Task) -> String {
    let now = clock::wall();
    let found = match task.rule.as_str() {
        "run" => "started by ephor run",
        "unit" => "found by its systemd unit",
        "ancestor" => "found as the caller's ancestor",
        "peer" => "the calling process itself",
        other => other,
    };
    let head = Fields::new(
        &format!("task {} of {}", task.short, path_of(&task.subject)),
        &state(task),
        show::to_terminal(),
    )
    .line(
        "runs",
        format!("pid {} on {}, {found}", task.pid, task.host),
    )
    .line("opened", moment(task.opened_at, now))
    .line("ended", task.ended_at.map(|at| moment(at, now)))
    .text();
    if task.credentials.is_empty() {
        return format!("{head}  No credentials.\n");
    }
    let fit = show::to_terminal().then_some(show::WIDTH);
    format!(
        "{head}\n{}",
        show::table(&task.credentials, &super::credential::short(), fit)
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::credential::sample;
    use super::*;
    use ephor_proto::time::UnixMillis;

    fn some_task() -> Task {
        let credential = sample("contained");
        Task {
            id: credential.task,
            short: "t-7kq2".to_owned(),
            host: "web-3".to_owned(),
            subject: "spiffe://example.org/orders/web".to_owned(),
            rule: "run".to_owned(),
            pid: 4182,
            state: "closed".to_owned(),
            cause: Some("exited".to_owned()),
            opened_at: UnixMillis::from_unix_seconds(1_700_000_000),
            ended_at: None,
            credentials: vec![credential.clone(), credential, sample("live")],
        }
    }

    #[test]
    fn a_line_says_what_is_out() {
        assert_eq!(credentials(&some_task()), "2 listed, 1 live");
        assert_eq!(
            credentials(&Task {
                credentials: vec![],
                ..some_task()
            }),
            "none"
        );
        assert_eq!(state(&some_task()), "closed (exited)");
        let line = show::table(&[some_task()], &short(), Some(80));
        assert!(
            line.contains(
                "t-7kq2  orders/web  web-3  2023-11-14  closed (exited)  2 listed, 1 live"
            ),
            "{line}"
        );
    }

    #[test]
    fn a_receipt_is_as_long_as_its_task() {
        let task = some_task().id;
        assert_eq!(receipt_of(task, "t-7kq2x"), "r-7kq2x");
        assert_eq!(receipt_of(task, &task.to_string()), task.receipt().short());
    }

    #[test]
    fn shown_in_full_with_its_credentials() {
        let told = told(&some_task());
        assert!(told.starts_with("task t-7kq2 of orders/web"), "{told}");
        assert!(
            told.contains("pid 4182 on web-3, started by ephor run"),
            "{told}"
        );
        assert!(told.contains("k-7q2m"), "{told}");
    }
}
