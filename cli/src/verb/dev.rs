//! (being written)
use crate::args;
use crate::exit::Outcome;
pub async fn dev(_: args::Dev) -> Outcome {
    Err(crate::exit::Failure::usage("not there yet"))
}
