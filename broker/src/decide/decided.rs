//! A request that policy allowed.

use ephor_proto::id::DecisionId;
use ephor_proto::spiffe::SpiffeId;
use ephor_proto::time::UnixMillis;

use super::{Allowed, Denied, Query, Verdict, Window, decide};
use crate::attest::Attested;
use crate::policy::Snapshot;

/// What the decision needs beside the request.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// Wall time, believed.
    pub now: UnixMillis,
    /// When the task opened; now for a new one.
    pub task_opened_at: UnixMillis,
    /// The task's own deadline.
    pub task_deadline: Option<UnixMillis>,
    /// End of what signs.
    pub ca_end: UnixMillis,
    /// For a renewal: who holds the credential, and until when its grant is open.
    pub renewing: Option<Renewing<'a>>,
}

/// What a renewal draws on.
#[derive(Debug, Clone, Copy)]
pub struct Renewing<'a> {
    /// The credential's holder; a renewal never changes it.
    pub subject: &'a SpiffeId,
    /// Its grant's window.
    pub window: Window,
}

/// Proof that policy allowed a request. Made by [`Decided::by`] only.
///
/// ```compile_fail
/// fn pry(d: ephor_broker::decide::Decided) {
///     let ephor_broker::decide::Decided { allowed: _, .. } = d;
/// }
/// ```
#[derive(Debug)]
pub struct Decided {
    attested: Attested,
    id: DecisionId,
    allowed: Allowed,
}

impl Decided {
    /// Asks the policy; the decision gets `id`, whichever way it goes.
    ///
    /// # Errors
    /// The denial, with what was asked.
    pub fn by(
        policy: &Snapshot,
        attested: Attested,
        id: DecisionId,
        given: Circumstances<'_>,
    ) -> Result<Self, Box<(Attested, Denied)>> {
        let requested = attested.requested();
        let renewed: Option<[SpiffeId; 1]> =
            given.renewing.map(|renewing| [renewing.subject.clone()]);
        let query = Query {
            candidates: renewed
                .as_ref()
                .map_or(attested.candidates(), |only| only.as_slice()),
            subject: requested.subject(),
            entitlement: requested.entitlement(),
            item: requested.item(),
            requested: requested.ttl(),
            now: given.now,
            task_opened_at: given.task_opened_at,
            task_deadline: given.task_deadline,
            ca_end: given.ca_end,
            renewing: given.renewing.map(|renewing| renewing.window),
        };
        match decide(policy, &query) {
            Verdict::Allowed(allowed) => Ok(Self {
                attested,
                id,
                allowed,
            }),
            Verdict::Denied(denied) => Err(Box::new((attested, denied))),
        }
    }

    /// What was asked, and by whom.
    pub fn attested(&self) -> &Attested {
        &self.attested
    }

    /// The decision's id; it is in every answer.
    pub fn id(&self) -> DecisionId {
        self.id
    }

    /// What was allowed.
    pub fn allowed(&self) -> &Allowed {
        &self.allowed
    }
}
