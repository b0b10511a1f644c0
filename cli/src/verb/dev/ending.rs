//! What was made at targets is ended before the broker stops: with it goes who could end it.

use std::time::Duration;

use ephor_proto::http::admin::{Credential, Ended, Reason};
use ephor_proto::kind::Kind;

use super::layout::{Layout, is_temporary};
use crate::client::Peer;
use crate::exit::Failure;
use crate::show::{kind_word, to_stderr};
use crate::words::{plural, shell_quoted};

/// For all of it; what a target has not ended by then is said.
const MOST: Duration = Duration::from_secs(10);

/// Revokes what is live outside, and says so; or what is left.
pub async fn end_outside(layout: &Layout) {
    if !layout.has_target() {
        return;
    }
    let broker = Peer::broker_at(layout.admin_socket());
    let ended = tokio::time::timeout(MOST, revoke_all(&broker)).await;
    let left = match tokio::time::timeout(MOST, outside(&broker, "revoking")).await {
        Ok(Ok(left)) => Some(left),
        Ok(Err(_)) | Err(_) => None,
    };
    let dir = layout.dir();
    let then = match is_temporary(dir) {
        true => "Nobody ends that any more: it was known in a temporary directory only.".to_owned(),
        false => format!(
            "The next start ends that:  ephor dev --dir {} --policy …",
            shell_quoted(&dir.display().to_string())
        ),
    };
    match (ended, left) {
        (_, None) | (Ok(Err(_)), _) => to_stderr(&format!(
            "ephor: the broker does not answer: what it made at targets may be let in until it expires.\n       {then}\n"
        )),
        (_, Some(left)) if !left.is_empty() => to_stderr(&format!(
            "ephor: overdue: {} not ended yet: {}.\n       {then}\n",
            plural(left.len(), "credential"),
            named(&left)
        )),
        (Ok(Ok(ended)), Some(_)) if !ended.is_empty() => {
            to_stderr(&format!(
                "ephor: revoked with the broker: {}.\n",
                named(&ended)
            ));
        }
        _ => {}
    }
}

async fn revoke_all(broker: &Peer) -> Result<Vec<Credential>, Failure> {
    let mut live = Vec::new();
    for state in ["intended", "live", "replacing"] {
        live.append(&mut outside(broker, state).await?);
    }
    let reason = Reason {
        reason: "ephor dev stops".to_owned(),
    };
    for one in &live {
        let target = format!("/v1/credentials/{}/revoke", one.id);
        // What it could not end is still there when we look.
        let _: Result<Ended, Failure> = broker.post(&target, &reason).await;
    }
    Ok(live)
}

/// Those of a state that are something at a target.
async fn outside(broker: &Peer, state: &str) -> Result<Vec<Credential>, Failure> {
    let all: Vec<Credential> = broker
        .read(&format!("/v1/credentials?state={state}"))
        .await?;
    let is_outside = |one: &Credential| {
        let kind = one.kind.parse::<Kind>();
        kind.is_ok_and(|kind| !kind.is_signed())
    };
    Ok(all.into_iter().filter(is_outside).collect())
}

/// `login k-7q2m, secret k-8w3n`
fn named(all: &[Credential]) -> String {
    let named = all
        .iter()
        .map(|one| format!("{} {}", kind_word(&one.kind), one.short));
    named.collect::<Vec<_>>().join(", ")
}
