//! `ephor credential ls|show|revoke|accept`

mod late;

use std::process::ExitCode;

use ephor_proto::http::admin::{Credential, Ended, Reason};
use ephor_proto::ttl::Ttl;

use crate::args;
use crate::client::{Peer, segment};
use crate::clock;
use crate::exit::Outcome;
use crate::show::{
    self, Column, Fields, brief, credential_line, kind_word, moment, path_of, state_word,
};

/// Does what was asked.
pub async fn credential(verb: args::Credential) -> Outcome {
    let broker = Peer::broker();
    match verb {
        args::Credential::Ls {
            all,
            overdue,
            listing,
        } => {
            let (target, none) = match (all, overdue) {
                (_, true) => ("/v1/credentials?overdue=true", "None is overdue."),
                (true, false) => ("/v1/credentials", "No credentials."),
                (false, false) => (
                    "/v1/credentials?state=live",
                    "No live credentials.  Ended ones, too: ephor credential ls --all",
                ),
            };
            let mut credentials: Vec<Credential> = broker.read(target).await?;
            if !all && !overdue {
                // What is being revoked may still be let in somewhere.
                let revoking = "/v1/credentials?state=revoking";
                credentials.append(&mut broker.read(revoking).await?);
            }
            if overdue && listing.output == args::Output::Table && !credentials.is_empty() {
                show::to_stdout(&late::told(&credentials, clock::wall()))?;
                return Ok(ExitCode::SUCCESS);
            }
            show::listing(listing.output, &credentials, &short(), &whole(), none)?;
        }
        args::Credential::Show { id, listing } => {
            let credential = find(&broker, &id).await?;
            show::single(listing.output, &credential, &whole(), &told(&credential))?;
        }
        args::Credential::Revoke { id, reason } => {
            // Which one it is, before it is ended: the answer is about its task.
            let credential = find(&broker, &id).await?;
            let target = format!("/v1/credentials/{}/revoke", credential.id);
            let ended: Ended = broker.post(&target, &Reason { reason }).await?;
            return super::task::say_ended(&broker, &ended, Some(&credential)).await;
        }
        args::Credential::Accept { id, reason } => {
            let credential = find(&broker, &id).await?;
            let target = format!("/v1/credentials/{}/accept", credential.id);
            let accepted: Credential = broker.post(&target, &Reason { reason }).await?;
            show::to_stdout(&format!(
                "{} is accepted as it is: not dead, and still listed.  ephor credential ls --overdue\n",
                accepted.short
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn find(broker: &Peer, id: &str) -> Result<Credential, crate::exit::Failure> {
    broker
        .read(&format!("/v1/credentials/{}", segment(id)))
        .await
}

fn state(credential: &Credential) -> String {
    match credential.overdue {
        Some(_) => format!("{}, overdue", credential.state),
        None => state_word(&credential.state).to_owned(),
    }
}

/// The columns that people see.
pub(super) fn short() -> [Column<Credential>; 7] {
    let now = clock::wall();
    [
        Column::new("CREDENTIAL", |credential: &Credential| {
            credential.short.clone()
        }),
        Column::new("KIND", |credential: &Credential| {
            kind_word(&credential.kind).to_owned()
        }),
        Column::new("STATE", state),
        Column::new("UNTIL", move |credential: &Credential| {
            brief(credential.expires_at, now)
        }),
        Column::elastic("FOR", |credential: &Credential| credential.scope.clone()),
        Column::elastic("SUBJECT", |credential: &Credential| {
            path_of(&credential.subject).to_owned()
        }),
        Column::elastic("HOST", |credential: &Credential| credential.host.clone()),
    ]
}

fn whole() -> Vec<Column<Credential>> {
    let mut whole = vec![
        Column::new("credential", |credential: &Credential| {
            credential.id.to_string()
        }),
        Column::new("kind", |credential: &Credential| credential.kind.clone()),
        Column::new("state", |credential: &Credential| credential.state.clone()),
        Column::new("scope", |credential: &Credential| credential.scope.clone()),
        Column::new("subject", |credential: &Credential| {
            credential.subject.clone()
        }),
        Column::new("host", |credential: &Credential| credential.host.clone()),
        Column::new("task", |credential: &Credential| {
            credential.task.to_string()
        }),
        Column::new("entitlement", |credential: &Credential| {
            credential.entitlement.clone()
        }),
        Column::new("owner", |credential: &Credential| credential.owner.clone()),
        Column::new("purpose", |credential: &Credential| {
            credential.purpose.clone()
        }),
        Column::new("request", |credential: &Credential| {
            credential.request.to_string()
        }),
        Column::new("decision", |credential: &Credential| {
            credential.decision.to_string()
        }),
        Column::new("rule", |credential: &Credential| credential.rule.clone()),
        Column::new("issued_at", |credential: &Credential| {
            credential.issued_at.to_string()
        }),
        Column::new("expires_at", |credential: &Credential| {
            credential.expires_at.to_string()
        }),
        Column::new("capped_by", |credential: &Credential| {
            credential.capped_by.clone()
        }),
        Column::new("cause", |credential: &Credential| {
            credential.cause.clone().unwrap_or_default()
        }),
        Column::new("narrowed_by", |credential: &Credential| {
            credential.narrowed_by.clone().unwrap_or_default()
        }),
        Column::new("revoked_at", |credential: &Credential| {
            credential
                .revoked_at
                .map(|at| at.to_string())
                .unwrap_or_default()
        }),
        Column::new("overdue", |credential: &Credential| {
            credential.overdue.clone().unwrap_or_default()
        }),
    ];
    whole.extend(late::columns());
    whole
}

fn told(credential: &Credential) -> String {
    let now = clock::wall();
    let life = Ttl::from_seconds(credential.expires_at.millis_since(credential.issued_at) / 1000);
    let what = credential_line(&credential.kind, &credential.short, &credential.scope);
    let ended = credential.revoked_at.map(|at| match &credential.cause {
        Some(cause) => format!("{}, {cause}{}", moment(at, now), narrowed(credential)),
        None => moment(at, now),
    });
    let fields = Fields::new(&what, &state(credential), show::to_terminal())
        .line(
            "held by",
            format!("{} on {}", path_of(&credential.subject), credential.host),
        )
        .line("task", credential.task.short())
        .line(
            "entitlement",
            format!("{}: {}", credential.entitlement, credential.purpose),
        )
        .line(
            "allowed by",
            format!(
                "{}, owner {}, decision {}",
                credential.rule,
                credential.owner,
                credential.decision.short()
            ),
        )
        .line(
            "lifetime",
            format!("{life}, capped by {}", credential.capped_by),
        )
        .line("issued", moment(credential.issued_at, now))
        .line("expires", moment(credential.expires_at, now))
        .line("ended", ended);
    late::lines(fields, credential, now)
        .line("history", format!("ephor audit show {}", credential.short))
        .text()
}

/// ` by policy 6b1e`
fn narrowed(credential: &Credential) -> String {
    let version = credential.narrowed_by.as_deref();
    version.map_or_else(String::new, |version| {
        format!(" by policy {}", version.get(..4).unwrap_or(version))
    })
}

/// A credential for tests.
#[cfg(test)]
pub(super) fn sample(state: &str) -> Credential {
    use ephor_proto::id::{CredentialId, DecisionId, RequestId, TaskId};
    use ephor_proto::time::UnixMillis;

    Credential {
        id: CredentialId::from_parts(1, [1; 10]),
        short: "k-7q2m".to_owned(),
        kind: "jwt".to_owned(),
        state: state.to_owned(),
        task: TaskId::from_parts(1, [2; 10]),
        subject: "spiffe://example.org/orders/web".to_owned(),
        host: "web-3".to_owned(),
        entitlement: "billing-api".to_owned(),
        owner: "team:orders".to_owned(),
        purpose: "reads invoices".to_owned(),
        scope: "billing".to_owned(),
        request: RequestId::from_parts(1, [3; 10]),
        decision: DecisionId::from_parts(1, [4; 10]),
        rule: "orders.toml:12".to_owned(),
        issued_at: UnixMillis::from_unix_seconds(1_700_000_000),
        expires_at: UnixMillis::from_unix_seconds(1_700_000_300),
        capped_by: "ttl.kind.jwt".to_owned(),
        cause: None,
        revoked_at: None,
        narrowed_by: None,
        overdue: None,
        late: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_is_never_called_dead_and_overdue_is_never_hidden() {
        assert_eq!(state(&sample("contained")), "listed");
        assert_eq!(state(&sample("dead")), "dead");
        let late = Credential {
            overdue: Some("store full".to_owned()),
            ..sample("revoking")
        };
        assert_eq!(state(&late), "revoking, overdue");
        assert_eq!(show::unsettled(&[late]), 1);
        assert_eq!(show::unsettled(&[sample("contained"), sample("dead")]), 0);
        assert_eq!(
            show::unsettled(&[sample("live"), sample("a state from the future")]),
            2
        );
    }

    #[test]
    fn shown_with_what_capped_it() {
        let told = told(&sample("live"));
        assert!(
            told.starts_with("token k-7q2m for billing                 live\n"),
            "{told}"
        );
        assert!(
            told.contains("  lifetime     5m, capped by ttl.kind.jwt\n"),
            "{told}"
        );
        assert!(!told.contains("ended"), "{told}");
    }

    #[test]
    fn the_table_fits_80_columns() {
        let long = Credential {
            scope: "https://billing.example.org/a/very/long/audience/indeed".to_owned(),
            ..sample("live")
        };
        let shown = show::table(&[long], &short(), Some(80));
        assert!(
            shown.lines().all(|line| line.chars().count() <= 80),
            "{shown}"
        );
        assert!(shown.contains("k-7q2m") && shown.contains('…'), "{shown}");
    }
}
