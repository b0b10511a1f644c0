//! A request whose caller was matched to subjects by the policy in force.

use ephor_proto::id::InstanceId;
use ephor_proto::problem::Code;
use ephor_proto::spiffe::SpiffeId;

use crate::fleet::Peer;
use crate::policy::{Evidence, Snapshot};
use crate::request::{Refusal, Requested};

/// Proof that the agent of this host may speak for these subjects. Made by
/// [`Attested::check`] only.
///
/// ```compile_fail
/// fn pry(a: ephor_broker::attest::Attested) {
///     let ephor_broker::attest::Attested { candidates: _, .. } = a;
/// }
/// ```
#[derive(Debug)]
pub struct Attested {
    requested: Requested,
    host: String,
    instance: InstanceId,
    boot_id: String,
    candidates: Vec<SpiffeId>,
}

impl Attested {
    /// Matches the caller against `[workload].runs` for the host that the channel proved. The
    /// agent's word is evidence about its own host only; that it names a host counts for nothing.
    ///
    /// # Errors
    /// `evidence_needed` when a rule compares a hash that was not sent, `unknown_workload` when
    /// nothing matches.
    pub fn check(
        requested: Requested,
        peer: &Peer,
        policy: &Snapshot,
    ) -> Result<Self, Box<(Requested, Refusal)>> {
        let evidence = Evidence::from(requested.evidence());
        let matched = policy.match_workloads(peer.host(), &evidence);
        if matched.wants_sha256 && evidence.exe_sha256.is_empty() {
            return Err(Box::new((requested, super::hash_needed())));
        }
        if matched.subjects.is_empty() {
            let refusal = unmatched(&evidence, peer.host());
            return Err(Box::new((requested, refusal)));
        }
        Ok(Self {
            requested,
            host: peer.host().to_owned(),
            instance: peer.instance(),
            boot_id: peer.boot_id().to_owned(),
            candidates: matched.subjects,
        })
    }

    /// What was asked.
    pub fn requested(&self) -> &Requested {
        &self.requested
    }

    /// The host, from its certificate.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The agent's present start.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// The host's present boot.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// The subjects the caller is; never empty.
    pub fn candidates(&self) -> &[SpiffeId] {
        &self.candidates
    }
}

fn unmatched(evidence: &Evidence, host: &str) -> Refusal {
    let exe = if evidence.exe.is_empty() {
        "unreadable"
    } else {
        &evidence.exe
    };
    let unit = if evidence.unit.is_empty() {
        "none"
    } else {
        &evidence.unit
    };
    let detail = format!(
        "no workload of the policy matches uid {} ({}), exe {exe}, unit {unit} on {host}; \
         add a `runs` entry, or see `ephor policy explain --host {host}`",
        evidence.uid, evidence.user,
    );
    Refusal::new(Code::UnknownWorkload, detail)
}
