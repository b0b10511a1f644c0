//! `ephor broker status|backup|recover|keys|rotate|ca`

mod backup;
mod keys;
mod recover;
mod status;

use crate::args;
use crate::client::Peer;
use crate::exit::Outcome;

/// Does what was asked.
pub async fn broker(verb: args::Broker) -> Outcome {
    let broker = Peer::broker();
    match verb {
        args::Broker::Ca(verb) => keys::ca(&broker, verb).await,
        args::Broker::Status { listing } => status::status(&broker, listing).await,
        args::Broker::Backup {
            to,
            with_master_key,
        } => backup::backup(&broker, &to, with_master_key).await,
        args::Broker::Recover {
            reason,
            admit,
            force,
        } => recover::recover(&broker, reason, admit, force).await,
        args::Broker::Keys { all, listing } => keys::list(&broker, all, listing).await,
        args::Broker::Rotate {
            kind,
            now,
            force,
            distrust,
            reason,
            listing,
        } => {
            let asked = keys::Asked {
                kind,
                now,
                force,
                distrust,
                reason,
            };
            keys::rotate(&broker, asked, listing).await
        }
    }
}
