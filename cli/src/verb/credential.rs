//! (being written)

use crate::args;
use crate::exit::{Failure, Outcome};

pub async fn credential(_: args::Credential) -> Outcome {
    Err(Failure::usage("not there yet"))
}
