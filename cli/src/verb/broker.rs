//! `ephor broker keys|rotate|ca`

mod keys;

use crate::args;
use crate::client::Peer;
use crate::exit::Outcome;

/// Does what was asked.
pub async fn broker(verb: args::Broker) -> Outcome {
    let broker = Peer::broker();
    match verb {
        args::Broker::Ca(verb) => keys::ca(&broker, verb).await,
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
