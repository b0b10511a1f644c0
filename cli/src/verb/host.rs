//! (being written)

use crate::args;
use crate::exit::{Failure, Outcome};

pub async fn host(_: args::Host) -> Outcome {
    Err(Failure::usage("not there yet"))
}
