//! (being written)

use crate::args;
use crate::exit::{Failure, Outcome};

pub async fn audit(_: args::Audit) -> Outcome {
    Err(Failure::usage("not there yet"))
}

pub async fn export(_: &crate::client::Peer, _: &std::path::Path) -> Result<(), Failure> {
    Err(Failure::usage("not there yet"))
}
