//! `ephor policy diff` and `apply`.

use std::path::Path;
use std::process::ExitCode;

use ephor_broker::policy::{Snapshot, read_files};
use ephor_proto::http::admin::{ApplyPolicy, PolicyApplied, PolicyChange, Status};
use serde::Serialize;

use super::{short_version, snapshot};
use crate::args::Listing;
use crate::client::Peer;
use crate::exit::{CHECK_FAILED, CONFIG, Failure, Outcome, STILL_REVOKING};
use crate::show::{self, Column};
use crate::words::plural;

#[derive(Serialize)]
struct Difference {
    from: String,
    to: String,
    changes: Vec<PolicyChange>,
}

/// Compares; 1 when there is a difference of meaning.
pub(super) async fn diff(dir: &Path, with: Option<&Path>, listing: Listing) -> Outcome {
    let (new, read) = snapshot(Some(dir)).await?;
    let (old, place) = snapshot(with).await?;
    let difference = Difference {
        from: old.version().to_owned(),
        to: new.version().to_owned(),
        changes: new.changes_from(&old),
    };
    let changes = &difference.changes;
    let mut text = format!(
        "policy {} ({place}) to {} ({read}): {}\n",
        old.short_version(),
        new.short_version(),
        match changes.len() {
            0 if difference.from == difference.to => "the same files".to_owned(),
            0 => "they mean the same".to_owned(),
            some => plural(some, "change"),
        }
    );
    text.push_str(&told(changes));
    show::group(listing.output, &difference, changes, &columns(), &text)?;
    Ok(match changes.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(CHECK_FAILED),
    })
}

/// Sends the files; the broker checks them once more.
pub(super) async fn apply(dir: &Path, dry_run: bool, listing: Listing) -> Outcome {
    let broker = Peer::broker();
    let files = read_files(dir);
    let checked = files.and_then(|files| Snapshot::from_files(files.clone()).map(|_| files));
    let files = match checked {
        Ok(files) => files,
        Err(errors) => {
            let stays = match broker.read::<Status>("/v1/status").await {
                Ok(status) => format!(
                    "\nPolicy {} stays in force.",
                    short_version(&status.policy_version)
                ),
                // Nobody there to change anything.
                Err(_) => "\nNothing was applied.".to_owned(),
            };
            return Err(Failure::new(CONFIG, format!("{errors}{stays}")));
        }
    };
    let ask = ApplyPolicy { files, dry_run };
    let applied: PolicyApplied = broker.post("/v1/policy/apply", &ask).await?;
    show::group(
        listing.output,
        &applied,
        &applied.changes,
        &columns(),
        &result(&applied),
    )?;
    Ok(match applied.finished {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(STILL_REVOKING),
    })
}

fn result(applied: &PolicyApplied) -> String {
    let (new, old) = (
        short_version(&applied.version),
        short_version(&applied.previous),
    );
    if !applied.changed {
        return format!("policy {new} is in force already; nothing was changed.\n");
    }
    let means = match applied.changes.len() {
        0 => "it means the same".to_owned(),
        some => plural(some, "change"),
    };
    let head = match applied.dry_run {
        true => format!("policy {new} would take the place of {old}: {means}\n"),
        false => format!("policy {new} in force, after {old}: {means}\n"),
    };
    let mut text = head + &told(&applied.changes);
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let credentials = plural(count(applied.credentials), "credential");
    let tasks = match applied.tasks {
        0 => String::new(),
        some => format!(", {} ended", plural(count(some), "task")),
    };
    text.push_str(&match (applied.dry_run, applied.finished) {
        (true, _) => format!(
            "It would revoke {credentials}{}.  Nothing was done.\n",
            tasks.replace(" ended", " to end")
        ),
        (false, true) => format!("{credentials} revoked{tasks}.\n"),
        (false, false) => {
            "Still being revoked: what it no longer allows (ephor credential ls).\n".to_owned()
        }
    });
    for warning in &applied.warnings {
        text.push_str(&format!("{}\n", show::value(warning)));
    }
    if let Some(note) = &applied.note {
        text.push_str(&format!("note: {}\n", show::value(note)));
    }
    text
}

fn told(changes: &[PolicyChange]) -> String {
    if changes.is_empty() {
        return String::new();
    }
    let short = [
        Column::new("  EFFECT", |change: &PolicyChange| {
            format!("  {}", change.effect)
        }),
        Column::new("WHAT", |change: &PolicyChange| change.what.clone()),
        Column::elastic("DETAIL", detail),
    ];
    show::table(changes, &short, show::to_terminal().then_some(show::WIDTH))
}

/// With the subject where the rest does not name it.
fn detail(change: &PolicyChange) -> String {
    match &change.subject {
        Some(subject)
            if !change.what.ends_with(subject) && !change.detail.contains(subject.as_str()) =>
        {
            format!("{subject}: {}", change.detail)
        }
        Some(_) | None => change.detail.clone(),
    }
}

fn columns() -> [Column<PolicyChange>; 4] {
    [
        Column::new("effect", |change: &PolicyChange| change.effect.clone()),
        Column::new("what", |change: &PolicyChange| change.what.clone()),
        Column::new("subject", |change: &PolicyChange| {
            change.subject.clone().unwrap_or_default()
        }),
        Column::new("detail", |change: &PolicyChange| change.detail.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied() -> PolicyApplied {
        PolicyApplied {
            version: "6b1e0000".to_owned(),
            previous: "4f2a0000".to_owned(),
            changed: true,
            dry_run: false,
            changes: vec![
                PolicyChange {
                    effect: "narrowed".to_owned(),
                    what: "ttl".to_owned(),
                    subject: None,
                    detail: "max 1h to 30m".to_owned(),
                },
                PolicyChange {
                    effect: "removed".to_owned(),
                    what: "entitlement billing-api".to_owned(),
                    subject: Some("orders/web".to_owned()),
                    detail: "token for billing".to_owned(),
                },
            ],
            credentials: 3,
            tasks: 1,
            finished: true,
            warnings: Vec::new(),
            note: None,
        }
    }

    #[test]
    fn what_changed_and_what_it_took_away() {
        let expected = "\
policy 6b1e in force, after 4f2a: 2 changes
  EFFECT    WHAT                     DETAIL
  narrowed  ttl                      max 1h to 30m
  removed   entitlement billing-api  orders/web: token for billing
3 credentials revoked, 1 task ended.
";
        assert_eq!(result(&applied()), expected);
    }

    #[test]
    fn a_dry_run_and_an_unfinished_one_say_so() {
        let dry = PolicyApplied {
            dry_run: true,
            ..applied()
        };
        let said = result(&dry);
        assert!(
            said.starts_with("policy 6b1e would take the place of 4f2a: "),
            "{said}"
        );
        assert!(
            said.ends_with("It would revoke 3 credentials, 1 task to end.  Nothing was done.\n"),
            "{said}"
        );
        let slow = PolicyApplied {
            finished: false,
            ..applied()
        };
        assert!(result(&slow).contains("Still being revoked"));
    }
}
