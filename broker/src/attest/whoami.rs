//! Which subjects a caller is, by the policy in force.

use ephor_proto::grpc::v1;
use ephor_proto::problem::{Code, Problem};

use crate::app::Broker;
use crate::fleet::Peer;
use crate::policy::Evidence;
use crate::request::Refusal;

impl Broker {
    /// The subjects of a process; none is an answer too.
    ///
    /// # Errors
    /// `evidence_needed` when a rule compares a hash that was not sent.
    pub async fn whoami(
        &self,
        peer: &Peer,
        r: v1::WhoamiRequest,
    ) -> Result<v1::WhoamiResponse, Problem> {
        self.whoami_within(peer, &r)
            .map_err(|refusal| refusal.into_problem(self.correlation()))
    }

    fn whoami_within(
        &self,
        peer: &Peer,
        r: &v1::WhoamiRequest,
    ) -> Result<v1::WhoamiResponse, Refusal> {
        let _work = self.throttle.admit(peer.host(), self.clock.boottime())?;
        let evidence = r
            .evidence
            .as_ref()
            .ok_or_else(|| Refusal::new(Code::InvalidRequest, "`evidence` is missing"))?;
        let evidence = Evidence::from(evidence);
        let policy = self.policy.load();
        let matched = policy.match_workloads(peer.host(), &evidence);
        if matched.wants_sha256 && evidence.exe_sha256.is_empty() {
            return Err(super::hash_needed());
        }
        Ok(v1::WhoamiResponse {
            subjects: matched.subjects.iter().map(ToString::to_string).collect(),
            policy_version: policy.version().to_owned(),
        })
    }
}
