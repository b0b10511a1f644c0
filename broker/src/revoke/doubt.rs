//! A request of which it is not known whether it was recorded: its secret was dropped, so whatever
//! was recorded is revoked by id.

use ephor_proto::event::Outcome;
use ephor_proto::id::RequestId;
use ephor_proto::stage::Stage;

use super::{NotEnded, written};
use crate::app::Broker;
use crate::ledger::{Batch, Lane};

const REASON: &str = "it was not known whether its record was stored; the secret was dropped";

impl Broker {
    /// Finds out, and revokes what there is. The writer commits in the order of submission, so once
    /// the event below is on disk, the doubtful batch before it has its final fate.
    pub(super) async fn resolve_doubt(&self, request: RequestId) -> Result<(), NotEnded> {
        let mut event = self.event(Stage::Issue, "doubted", Outcome::Failed)?;
        event.request = Some(request);
        let batch = Batch {
            name: "issue.doubted",
            lane: Lane::Revoke,
            require: Vec::new(),
            rows: Vec::new(),
            events: vec![event.into()],
        };
        if written(self.ledger.submit(batch)?.await)?.is_none() {
            return Err(NotEnded::Contended);
        }
        let Some(stored) = self.ledger.reader().request(request)? else {
            return Ok(());
        };
        for credential in stored.credentials {
            self.drive_credential(credential, REASON).await?;
        }
        Ok(())
    }
}
