//! Stage 2: may this agent speak for that subject?

mod attested;

pub use attested::Attested;
