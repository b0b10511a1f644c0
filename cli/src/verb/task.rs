//! (being written)

use crate::args;
use crate::exit::{Failure, Outcome};

pub async fn task(_: args::Task) -> Outcome {
    Err(Failure::usage("not there yet"))
}
