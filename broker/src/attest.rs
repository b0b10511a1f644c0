//! Stage 2: may this agent speak for that subject?
//!
//! An agent is believed about processes on its own host, and the channel says which host
//! that is. What it claims beyond that counts for nothing.

mod attested;

pub use attested::Attested;
