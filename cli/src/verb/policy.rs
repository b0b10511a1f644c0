//! (being written)

use crate::args;
use crate::exit::{Failure, Outcome};

pub async fn policy(_: args::Policy) -> Outcome {
    Err(Failure::usage("not there yet"))
}
