//! (being written)
use crate::args;
use crate::exit::Outcome;
pub async fn demo(_: args::Demo) -> Outcome {
    Err(crate::exit::Failure::usage("not there yet"))
}
pub async fn app_main(_: u16, _: &str) -> Outcome {
    Err(crate::exit::Failure::usage("not there yet"))
}
