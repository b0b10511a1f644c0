//! (being written)

use crate::args;
use crate::exit::{Failure, Outcome};

pub async fn audit(_: args::Audit) -> Outcome {
    Err(Failure::usage("not there yet"))
}
