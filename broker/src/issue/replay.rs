//! The same request id again: a retry whose first answer was lost gets the same credential,
//! signed again from the stored content; never a second one.

use ephor_proto::problem::Code;
use ephor_proto::time::UnixMillis;

use super::{Intent, defect, store_unavailable};
use crate::app::Broker;
use crate::attest::Attested;
use crate::clock::Stopwatch;
use crate::deliver::{self, Delivery, Timings};
use crate::ledger::Reader;
use crate::request::Refusal;
use ephor_proto::grpc::v1;

impl Broker {
    /// The stored answer of this request, if it was recorded before.
    ///
    /// # Errors
    /// `conflict` when the id was used for something else or is older than what is kept, `credential_ended` when what it
    /// was given has ended since.
    pub(super) fn replay(
        &self,
        reader: &Reader,
        attested: &Attested,
        now: UnixMillis,
        attest_micros: u64,
    ) -> Result<Option<v1::IssueResponse>, Refusal> {
        let issuing = Stopwatch::start();
        let requested = attested.requested();
        let Some(stored) = reader.request(requested.id()).map_err(store_unavailable)? else {
            if reader
                .may_be_pruned(requested.id())
                .map_err(store_unavailable)?
            {
                let detail = "this request id is older than what retention keeps, so whether it was answered \
                              before is not known; make a new id, and set the host's clock if it is behind";
                return Err(Refusal::new(Code::Conflict, detail));
            }
            return Ok(None);
        };
        // The digest covers the host, so nobody learns of another host's request this way.
        if stored.digest != requested.digest() {
            let detail = "this request id was used for another request; make a new id";
            return Err(Refusal::new(Code::Conflict, detail));
        }
        let permit =
            Intent::recorded_before(reader, &stored.credentials, now).map_err(store_unavailable)?;
        let Some(permit) = permit else {
            let detail =
                "what this request was given has ended since; ask again with a new request id";
            return Err(Refusal::new(Code::CredentialEnded, detail));
        };
        let holds =
            |row: &crate::ledger::CredentialRow| attested.candidates().contains(&row.subject);
        if !permit.credentials().iter().all(holds) {
            let detail = "the caller is no longer the subject that this request was answered for";
            return Err(Refusal::new(Code::AttestationFailed, detail));
        }
        let sealed = self.sign(permit.intent()).map_err(defect)?;
        let Some(delivery) = Delivery::stored(&stored, permit.credentials()) else {
            return Err(defect("a consumed request without a decision"));
        };
        let timings = Timings {
            attest: attest_micros,
            decide: 0,
            issue: issuing.micros(),
        };
        deliver::deliver(&permit, sealed, &delivery, timings).map(Some)
    }
}
