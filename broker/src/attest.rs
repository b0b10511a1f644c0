//! Stage 2: may this agent speak for that subject?
//!
//! An agent is believed about processes on its own host, and the channel says which host
//! that is. What it claims beyond that counts for nothing.

mod attested;
mod whoami;

pub use attested::Attested;

use ephor_proto::problem::Code;

use crate::request::Refusal;

fn hash_needed() -> Refusal {
    let detail = "policy compares the executable's SHA-256 here; send it and try again";
    Refusal::new(Code::EvidenceNeeded, detail)
}
