//! The agent through its public API: its socket on one side, a broker made of memory on the other.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

#[path = "agent/broker.rs"]
mod broker;
#[path = "agent/world.rs"]
mod world;

#[path = "agent/away.rs"]
mod away;
#[path = "agent/certificate.rs"]
mod certificate;
#[path = "agent/database.rs"]
mod database;
#[path = "agent/ends.rs"]
mod ends;
#[path = "agent/fetch.rs"]
mod fetch;
#[path = "agent/join.rs"]
mod join;
#[path = "agent/refusals.rs"]
mod refusals;
