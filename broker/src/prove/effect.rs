//! What was ended at its target, as the log tells it: refused now and for ever after by the one who
//! enforces it, as looked at there.

use ephor_proto::event::Evidence;
use ephor_proto::stage::Stage;
use ephor_proto::state::credential::CredentialState;

use crate::app::Broker;
use crate::kind::effect::Content;
use crate::ledger::{CredentialRow, NewEvent};
use crate::revoke::NotEnded;

impl Broker {
    /// `prove.dead`: one credential is gone at its target.
    pub(crate) fn gone_event(
        &self,
        row: &CredentialRow,
        content: &Content,
    ) -> Result<NewEvent, NotEnded> {
        let mut event = self.about(Stage::Prove, "dead", row)?;
        event.cause = row.cause.map(|cause| cause.as_str().to_owned());
        event.used = Some(self.used(row));
        event.evidence = evidence_of(row, content).into_iter().collect();
        let sessions = content.gone.as_ref().map_or(0, |gone| gone.sessions_ended);
        let facts = [
            ("target", content.target.clone()),
            ("name", content.name.clone()),
            ("sessions_ended", sessions.to_string()),
        ];
        event
            .facts
            .extend(facts.map(|(name, value)| (name.to_owned(), value)));
        Ok(event.into())
    }
}

/// What shows that it is dead, or who answers for that nothing does; none before.
pub(super) fn evidence_of(row: &CredentialRow, content: &Content) -> Option<Evidence> {
    // What was reopened is not dead, whatever was seen before.
    let gone = content.gone.as_ref();
    let Some(gone) = gone.filter(|_| row.state == CredentialState::Dead) else {
        let accepted = content.accepted.as_ref()?;
        // No proof: nobody says that it is dead.
        return Some(Evidence {
            credential: row.id,
            kind: row.kind,
            state: row.state,
            proof: None,
            place: format!("{}, not asked: accepted by {}", content.target, accepted.by),
            at: accepted.at,
            until: None,
        });
    };
    Some(Evidence {
        credential: row.id,
        kind: row.kind,
        state: row.state,
        proof: Some(gone.proof),
        place: gone.place(&content.target),
        at: gone.at,
        until: None,
    })
}
