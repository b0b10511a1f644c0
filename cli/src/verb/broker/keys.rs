//! The broker's own keys: what there is, and what follows.

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use ephor_proto::http::admin::{CaRequest, Chain, Key, Reason, Rotate};
use ephor_proto::time::UnixMillis;

use crate::args;
use crate::client::Peer;
use crate::clock;
use crate::exit::{Failure, Outcome};
use crate::show::{self, Column, brief, moment};

/// Most of a chain's file that is read, in bytes; the broker takes half of it.
const CHAIN_MAX: u64 = 64 * 1024;

/// What was asked of a rotation.
pub(super) struct Asked {
    pub(super) kind: args::KeyKind,
    pub(super) now: bool,
    pub(super) force: bool,
    pub(super) distrust: bool,
    pub(super) reason: String,
}

/// Lists them.
pub(super) async fn list(broker: &Peer, all: bool, listing: args::Listing) -> Outcome {
    let mut keys: Vec<Key> = broker.read("/v1/keys").await?;
    keys.retain(|key| all || key.state != "destroyed");
    tell(listing, &keys)?;
    Ok(ExitCode::SUCCESS)
}

/// Rotates or distrusts, and lists what there is then.
pub(super) async fn rotate(broker: &Peer, asked: Asked, listing: args::Listing) -> Outcome {
    let kind = asked.kind.as_str();
    let mut keys: Vec<Key> = if asked.distrust {
        let reason = Reason {
            reason: asked.reason,
        };
        broker
            .post(&format!("/v1/keys/{kind}/distrust"), &reason)
            .await?
    } else {
        let rotate = Rotate {
            now: asked.now,
            force: asked.force,
            reason: asked.reason,
        };
        broker
            .post(&format!("/v1/keys/{kind}/rotate"), &rotate)
            .await?
    };
    keys.retain(|key| key.kind == kind && key.state != "destroyed");
    tell(listing, &keys)?;
    if let Some(said) = said(kind, &keys, clock::wall()) {
        show::to_stderr(&said);
    }
    Ok(ExitCode::SUCCESS)
}

/// The request out, the chain in.
pub(super) async fn ca(broker: &Peer, verb: args::Ca) -> Outcome {
    match verb {
        args::Ca::Csr { reason } => {
            let request: CaRequest = broker
                .post("/v1/keys/ca/request", &Reason { reason })
                .await?;
            show::to_stdout(&request.csr_pem)?;
        }
        args::Ca::Import {
            chain,
            reason,
            listing,
        } => {
            let asked = Chain {
                chain_pem: read(&chain)?,
                reason,
            };
            let mut keys: Vec<Key> = broker.post("/v1/keys/ca/chain", &asked).await?;
            keys.retain(|key| key.kind == "ca" && key.state != "destroyed");
            tell(listing, &keys)?;
            if let Some(said) = said("ca", &keys, clock::wall()) {
                show::to_stderr(&said);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// As much as a chain may be, and one byte: the broker says what is too much.
fn read(path: &Path) -> Result<String, Failure> {
    let failed = |why: std::io::Error| Failure::local(path.display(), why);
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .take(CHAIN_MAX)
            .read_to_string(&mut text)
            .map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(CHAIN_MAX)
            .read_to_string(&mut text)
            .map_err(failed)?;
    }
    Ok(text)
}

/// What is to be known beside the table.
fn said(kind: &str, keys: &[Key], now: UnixMillis) -> Option<String> {
    let next = keys.iter().find(|key| key.state == "prepared")?;
    let from = moment(next.until?, now);
    Some(format!(
        "ephor: version {} of the {kind} key is published, and used from {from} on by itself.\n",
        next.version
    ))
}

fn tell(listing: args::Listing, keys: &[Key]) -> Result<(), Failure> {
    show::listing(listing.output, keys, &short(), &whole(), "No keys.")
}

fn short() -> [Column<Key>; 6] {
    let now = clock::wall();
    [
        Column::new("KEY", |key: &Key| key.kind.clone()),
        Column::new("VERSION", |key: &Key| key.version.to_string()),
        Column::new("STATE", |key: &Key| key.state.clone()),
        Column::elastic("ID", |key: &Key| key.id.clone()),
        Column::new("SINCE", move |key: &Key| brief(key.since, now)),
        Column::new("UNTIL", move |key: &Key| {
            key.until
                .map(|until| moment(until, now))
                .unwrap_or_default()
        }),
    ]
}

fn whole() -> [Column<Key>; 7] {
    let time = |at: Option<UnixMillis>| at.map(|at| at.to_string()).unwrap_or_default();
    [
        Column::new("kind", |key: &Key| key.kind.clone()),
        Column::new("version", |key: &Key| key.version.to_string()),
        Column::new("state", |key: &Key| key.state.clone()),
        Column::new("id", |key: &Key| key.id.clone()),
        Column::new("since", |key: &Key| key.since.to_string()),
        Column::new("until", move |key: &Key| time(key.until)),
        Column::new("ends", move |key: &Key| time(key.ends)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_key_is_told_with_its_time() {
        let at = UnixMillis::from_unix_seconds(1_700_000_000);
        let key = |state: &str| Key {
            kind: "token".to_owned(),
            version: 2,
            state: state.to_owned(),
            id: "x".to_owned(),
            since: at,
            until: Some(at),
            ends: None,
        };
        let said = |keys: &[Key]| super::said("token", keys, at);
        assert_eq!(said(&[key("active")]), None);
        let told = said(&[key("active"), key("prepared")]).unwrap_or_default();
        assert!(
            told.contains("version 2 of the token key is published"),
            "{told}"
        );
    }
}
